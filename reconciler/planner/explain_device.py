"""Why a device itself is held, one function a reason of the ladder: who is silent since when, what is in flight. Pure.

Reasons that belong to a wave (its gate, an earlier one's soak) are `explain_gate`'s. Called by it and by `explain`, for one
device or for all of a wave that share a reason. Nothing is decided: what is said follows from the code that the planner left.
Source: contract, fine print 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from reconciler.model.observed import ArtifactState
from reconciler.model.plan import Reason
from reconciler.model.scalars import format_duration, format_instant
from reconciler.planner.columns import CRITICAL, UNKNOWN
from reconciler.planner.explain_values import Change, Link, elapsed, fleet_ask, image_ask, names, site_ask, wave_ask
from reconciler.planner.explain_view import View, at
from reconciler.planner.explain_window import window_links
from reconciler.planner.judge import Seen
from reconciler.planner.messages import plain
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.want_app import TagState
from reconciler.planner.windows import NEVER, NONE, SECOND, instant

Rows = Sequence[int]
_NEXT_STEP = {
    ArtifactState.ABSENT: "it is built next",
    ArtifactState.BUILT: "it is signed next",
    ArtifactState.SIGNED: "it is published next",
}


def device_links(view: View, number: int, reason: Reason, rows: Rows, depth: int) -> list[Link]:
    """The causes of a reason that is a device's own, for devices that share it."""
    if reason in (Reason.OUTSIDE_WINDOW, Reason.NO_WINDOW):
        return window_links(view, number, reason, rows, depth)
    return _LINKS[reason](view, number, rows, depth)


# ---------------------------------------------------------------- what a device says


def silent(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    """Devices that do not report."""
    last = view.state.obs.last_seen[list(rows)]
    never = [row for row, seen in zip(rows, last.tolist(), strict=True) if seen == NONE]
    gone = [row for row, seen in zip(rows, last.tolist(), strict=True) if seen != NONE]
    out = []
    if gone:
        since = int(last[last != NONE].min())
        longest = "the longest for " if len(gone) > 1 else "for "
        said = f"silent {longest}{elapsed(view.now - since)}"
        out.append(view.link(gone, Reason.OFFLINE.value, said, depth=depth, since=since, changes=[_report(view, gone)]))
    if never:
        said = "never heard of: no report is on record"
        out.append(view.link(never, Reason.OFFLINE.value, said, depth=depth, changes=[_report(view, never)]))
    return out


def _report(view: View, rows: Rows) -> Change:
    called = sorted(view.name(row) for row in rows)
    return Change(f"a report from {names(called)}")


def said_of(view: View, number: int, seen: Seen, rows: Rows, depth: int) -> list[Link]:
    """What devices of one class say about their wave's release: why they are not counted as healthy."""
    if seen in (Seen.SILENT, Seen.SILENT_AFTER):
        return silent(view, number, rows, depth)
    state, obs = view.state, view.state.obs
    first = rows[0]
    release = view.release(number, view.facts(view.wave(first)).ask(number))
    start = view.track(number).start[list(rows)]
    known = start[start != NONE]
    since = int(known.min()) if len(known) else NONE
    some = len(rows) > 1
    if seen is Seen.FAILED:
        return _failed(view, number, rows, depth, release, since)
    if seen is Seen.NEITHER:
        why = "critical before it came, or since something else changed"
        said = f"on {release} and critical, but not by it, so it counts neither as failed nor as healthy: {why}"
        return [view.link(rows, "neither", said, depth=depth, since=since)]
    if seen is Seen.HEALTHY:
        said = f"healthy on {release}" + (f" for {elapsed(view.now - since)}" if since != NONE and not some else "")
        return [view.link(rows, "healthy", said, depth=depth, since=since)]
    critical = [row for row in rows if obs.health[row] == CRITICAL]
    other = [row for row in rows if obs.health[row] != CRITICAL]
    out = []
    if critical:
        begin = [max(_since(view, number, row), int(obs.health_since[row])) for row in critical]
        fails = [value + state.roster.critical_for for value in begin if value != NONE]
        until = min(fails, default=NEVER)
        said = f"on {release} and critical{'' if some else ' for ' + elapsed(view.now - begin[0])}{view.checks(critical[0])}"
        changes = [Change("a report of good health")]
        if until != NEVER:
            limit = format_duration(state.roster.critical_for // SECOND)
            who = names(sorted(map(view.name, critical)))
            what = f"{who} counts as failed at {format_instant(instant(until))}, if critical until then (criticalFor: {limit})"
            changes.append(Change(what, instant(until)))
        out.append(view.link(critical, "pending", said, depth=depth, since=min(begin), until=until, changes=changes))
    if other:
        unknown = bool(obs.health[other[0]] == UNKNOWN)
        judged = "its health is not known yet" if unknown else "not judged yet: no instant of its health is on record"
        said = f"on {release}, {judged}"
        out.append(
            view.link(other, "pending", said, depth=depth, changes=[Change("a report with a result of healthcheck.sh")])
        )
    return out


def _since(view: View, number: int, row: int) -> int:
    obs = view.state.obs
    return int(obs.image_since[row] if number == IMAGE_TRACK else obs.app_since[number - 1][row])


def _failed(view: View, number: int, rows: Rows, depth: int, release: str, since: int) -> list[Link]:
    obs = view.state.obs
    lasting = [row for row in rows if _on(view, number, row)]
    still = set(lasting)
    gone = [row for row in rows if row not in still]
    out = []
    if lasting:
        begin = [max(_since(view, number, row), int(obs.health_since[row])) for row in lasting]
        longest = "the longest " if len(lasting) > 1 else ""
        limit = format_duration(view.roster.critical_for // SECOND)
        said = (
            f"failed on {release}: critical {longest}for {elapsed(view.now - min(begin))}, criticalFor is {limit}"
            f"{view.checks(lasting[0])}"
        )
        out.append(view.link(lasting, "failed", said, depth=depth, since=min(begin)))
    if gone:
        out += _spent(view, number, gone, depth, view.facts(view.wave(gone[0])).ask(number))
    return out


def _on(view: View, number: int, row: int) -> bool:
    obs, code = view.state.obs, view.facts(view.wave(row)).ask(number)
    if number == IMAGE_TRACK:
        return bool(obs.image[row] == code)
    digest = view.roster.apps[number - 1].digests[code]
    return bool(obs.app_digest[number - 1][row] == obs.app_digest_code[number - 1][digest])


# ---------------------------------------------------------------- the rungs


def _conflict(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    what = Change(
        "find the second device, and give it a name and a token of its own (`reconciler token add NAME --replace`)"
    )
    said = "claimed by two devices: they report under one name"
    return [view.link(rows, Reason.IDENTITY_CONFLICT.value, said, depth=depth, changes=[what])]


def _suspended(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    sites = list(dict.fromkeys(view.site(row) for row in rows))
    out = []
    for site in sites:
        ask = site_ask(site, "suspended")
        change = Change("resume the site: take back `suspended: true`", None, ask)
        out.append(Link("site", site, Reason.SUSPENDED.value, "suspended in git", depth, changes=(change,), ask=ask))
    return out


def in_flight_links(view: View, rows: Rows, depth: int) -> list[Link]:
    """What is being done to devices, since when, and when it will have timed out. Alike ones share a link."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(_doing(view, row), []).append(row)
    out = []
    for said, some in groups.items():
        since = min((_doing_since(view, row) for row in some), default=NONE)
        until = min(view.timeout(some))
        called = names(sorted(map(view.name, some)))
        changes = [Change(f"a report from {called} that it is done")]
        if until != NEVER:
            changes.append(
                Change(
                    f"{called} will have timed out at {format_instant(instant(until))}, if it is not done by then",
                    instant(until),
                )
            )
        out.append(
            view.link(some, Reason.IN_PROGRESS.value, said, depth=depth, since=since, until=until, changes=changes)
        )
    return out


def _doing(view: View, row: int) -> str:
    obs = view.state.obs
    if view.state.updating[row]:
        release = plain(obs.release_names[obs.updating_to[row]])
        rebooting = obs.rebooting_since[row] != NONE
        return f"being updated to {release}" + (", rebooting" if rebooting else "")
    if obs.restarting_since[row] != NONE:
        app = next((a.name for n, a in enumerate(view.roster.apps) if obs.restarts(n, row)), "an app")
        return f"restarting {app}"
    return "being given its configuration"


def _doing_since(view: View, row: int) -> int:
    obs = view.state.obs
    if view.state.updating[row]:
        return int(obs.updating_since[row])
    return int(obs.restarting_since[row] if obs.restarting_since[row] != NONE else obs.configuring_since[row])


def _serialised(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    """Something else on the same device, or its wave's tag, goes first."""
    busy = [row for row in rows if view.state.busy[row]]
    rest = [row for row in rows if not view.state.busy[row]]
    out = in_flight_links(view, busy, depth) if busy else []
    starting = [row for row in rest if starts_of(view, row)]
    if starting:
        said = f"{starts_of(view, starting[0])} now, and that goes first"
        out.append(
            view.link(
                starting, Reason.SERIALISED.value, said, depth=depth, changes=[Change("a report that it is done")]
            )
        )
    tagged = [row for row in rest if not starts_of(view, row)]
    if tagged:
        facts = view.facts(view.wave(tagged[0]))
        app = view.roster.apps[number - 1].name if number > 0 else "the app"
        said = f"of {app} is moved in this plan; devices restart once it was seen there"
        out.append(
            Link(
                "tag",
                facts.tag,
                Reason.SERIALISED.value,
                said,
                depth,
                changes=(Change("the registry shows the moved tag"),),
            )
        )
    return out


def starts_of(view: View, row: int) -> str | None:
    """What starts on a device in this plan, as a clause; None where nothing does."""
    state = view.state
    if state.tracks[IMAGE_TRACK].starts[row]:
        return f"is flashed to {view.target(IMAGE_TRACK, row)}"
    if state.config.starts[row]:
        return "is given its configuration"
    for number in view.roster.tracks:
        if number != IMAGE_TRACK and state.tracks[number].starts[row]:
            return f"is restarted for {view.target(number, row)}"
    return None


def _unknown(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    obs, out = view.state.obs, []
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(int(obs.image[row]), []).append(row)
    for code, some in groups.items():
        shown = ascii(obs.release_names[code])
        since = int(obs.image_since[some[0]]) if len(some) == 1 else NONE
        what = Change(f"describe {shown} in images/ of the fleet repo, or flash a release that git names by hand")
        said = f"on {shown}, which git does not name: somebody put it there"
        out.append(view.link(some, Reason.UNKNOWN_IMAGE.value, said, depth=depth, since=since, changes=[what]))
    return out


def _ahead(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    obs, row = view.state.obs, rows[0]
    code = int(obs.image[row])
    release = view.release(IMAGE_TRACK, code)
    taken = obs.members.get(view.roster.releases[code])
    wave = int(taken[view.roster.site_of[row]]) if taken is not None else -1
    here = view.facts(view.wave(row)).spec.name
    said = f"on {release}, higher than wave {here} asks for: membership alone moves no device back"
    changes = [Change(f"raise wave {here} to {release}", None, view.wave_target(view.wave(row), IMAGE_TRACK))]
    out = [view.link(rows, Reason.AHEAD.value, said, depth=depth, since=int(obs.image_since[row]), changes=changes)]
    if wave >= 0:
        said = f"took site {view.site(row)} for {release} and still wants it"
        ask = view.wave_target(wave, IMAGE_TRACK)
        lower = Change(f"lower wave {view.facts(wave).spec.name}", None, ask)
        out.append(view.wave_link(wave, Reason.AHEAD.value, said, depth=depth + 1, changes=[lower], ask=ask))
    return out


def _withdrawn(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    release = view.roster.releases[int(view.track(number).target[rows[0]])]
    why, ask = view.roster.desired.images[release].withdrawn or "", image_ask(release, "withdrawn")
    said = f"withdrawn in git: {plain(why)}"
    asked = view.asked(number, rows[0])
    changes = [Change("ask for another release", None, asked)] if asked else []
    changes.append(Change("take back `withdrawn`", None, ask))
    return [Link("release", release, Reason.WITHDRAWN.value, said, depth, changes=tuple(changes), ask=ask, why=why)]


def _paused(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    """The fleet, or waves of these devices."""
    out = []
    if view.roster.desired.fleet.paused:
        ask = fleet_ask("paused")
        change = Change("resume the fleet: take back `paused: true`", None, ask)
        out.append(Link("fleet", "fleet", Reason.PAUSED.value, "is paused in git", depth, changes=(change,), ask=ask))
    for wave in sorted({view.wave(row) for row in rows} - {-1}):
        if view.facts(wave).spec.paused:
            ask = wave_ask(wave, "paused")
            change = Change("resume the wave: take back `paused: true`", None, ask)
            out.append(
                view.wave_link(wave, Reason.PAUSED.value, "is paused in git", depth=depth, changes=[change], ask=ask)
            )
    return out


def frozen_links(view: View, depth: int) -> list[Link]:
    """The freezes that hold now, up to the instant at which something may move: those that touch are one."""
    until, out = view.now, []
    given = [(item.from_, item.to, item.why) for item in view.roster.desired.fleet.freezes]
    for opens, closes, why in view.roster.freezes:
        if opens <= until < closes:
            until = closes
            ask = fleet_ask("freezes", given.index((instant(opens), instant(closes), why)))
            said = f"{'is' if opens <= view.now else 'stays'} frozen: {plain(why)}"
            ends = Change(f"the freeze ends at {format_instant(instant(closes))}", instant(closes))
            edit = Change("end the freeze earlier", None, ask)
            out.append(
                Link(
                    "fleet", "fleet", Reason.FROZEN.value, said, depth, at(opens), at(closes),
                    changes=(ends, edit), ask=ask, why=why,
                )
            )  # fmt: skip
    return sorted(out, key=lambda link: link.until or instant(0), reverse=True)


def _exhausted(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    return _spent(view, number, rows, depth, int(view.track(number).target[rows[0]]))


def _spent(view: View, number: int, rows: Rows, depth: int, code: int) -> list[Link]:
    """Devices that used up their attempts on a release, or were rescued from it."""
    obs, row = view.state.obs, rows[0]
    release, limit = view.release(number, code), view.roster.desired.fleet.attempts
    key = obs.release_names[code] if number == IMAGE_TRACK else view.roster.apps[number - 1].key(code)
    rescued = obs.rescued.get(row, {}).get(key)
    last = [int(obs.attempt_failed_at[r]) for r in rows if obs.attempt_failed_at[r] != NONE]
    ask = view.asked(number, row)
    changes = [Change("look at the device, then ask for another release", None, ask)]
    if rescued is not None:
        said = f"rescued from {release} at {format_instant(rescued)}, and not sent there again"
        return [view.link(rows, Reason.ATTEMPTS_EXHAUSTED.value, said, depth=depth, changes=changes)]
    used = obs.failed.get(row, {}).get(key, 0)
    late = view.state.ground.update_timed_out if number == IMAGE_TRACK else view.state.ground.restart_timed_out
    used += int(bool(late[row]))
    count = f"{used} of {limit}" if len(rows) == 1 else f"all {limit}"
    said = f"failed {release} as often as allowed: {count} attempts used"
    since = max(last, default=NONE)
    return [view.link(rows, Reason.ATTEMPTS_EXHAUSTED.value, said, depth=depth, since=since, changes=changes)]


def _not_ready(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    return _artifacts(view, Reason.IMAGE_NOT_READY, rows, depth)


def _no_rollback(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    return _artifacts(view, Reason.NO_ROLLBACK_IMAGE, rows, depth)


def _artifacts(view: View, reason: Reason, rows: Rows, depth: int) -> list[Link]:
    out = []
    back = reason is Reason.NO_ROLLBACK_IMAGE
    for code in dict.fromkeys(int(view.track(IMAGE_TRACK).target[row]) for row in rows):
        release = view.release(IMAGE_TRACK, code)
        state = view.state.obs.artifacts.get(release, ArtifactState.ABSENT)
        follows = _NEXT_STEP.get(state, "its bytes are not what was published")
        change = Change(f"the artifact of {release} is published")
        if state is ArtifactState.BROKEN:
            change = Change("put the published bytes back into the image store")
        elif state is ArtifactState.ABSENT and back:
            follows = "what is gone back to is never built anew"
            change = Change("put the published artifact back into the image store")
        out.append(Link("artifact", release, reason.value, f"is {state.value}: {follows}", depth, changes=(change,)))
    return out


def _drift(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    out = []
    waves = {view.wave(row) for row in rows}
    for verdict in view.state.tag_verdicts[number - 1]:
        if verdict.wave in waves and verdict.state is TagState.DRIFTED:
            facts, app = view.facts(verdict.wave), view.roster.apps[verdict.app]
            ours = view.state.obs.tags_set.get(app.name, {}).get(facts.tag)
            said = f"of {app.name} was moved by somebody else: it points to {_short(verdict.current)}, we had set {_short(ours)}"
            ask = fleet_ask("tagDrift")
            changes = (Change("move the tag back"), Change("let it be restored: `tagDrift: restore`", None, ask))
            out.append(Link("tag", facts.tag, Reason.TAG_DRIFT.value, said, depth, changes=changes, ask=ask))
    return out


def _short(digest: str | None) -> str:
    return "nothing" if digest is None else plain(digest)[:19]


def _budget(view: View, number: int, rows: Rows, depth: int) -> list[Link]:
    """Another device of the site, or the wave's budget. Both ends with who is in flight."""
    out: list[Link] = []
    state, by_wave = view.state, {view.wave(row) for row in rows}
    for row in rows:
        others = [r for r in view.rows_of_site(row) if r != row and (state.busy[r] or starts_of(view, r))]
        if others:
            said = "one device of a site at a time, so that the site keeps its other video"
            out.append(Link("site", view.site(row), Reason.BUDGET.value, said, depth))
            out += _occupied(view, others, depth + 1)
            if len(out) > 8:
                break
    if out:
        return out
    for wave in sorted(by_wave):
        if wave < 0:
            what = Change("list the site in a wave, or raise the last wave's percent to 100", None, wave_ask(0))
            said = "in no wave, so there is no budget to start in"
            out.append(view.link(rows, Reason.BUDGET.value, said, depth=depth, changes=[what]))
            continue
        spec = view.facts(wave).spec
        slots = spec.max_in_flight.slots(state.able_in[wave])
        inside = state.places.wave_of == wave
        flying = np.flatnonzero(inside & state.busy).tolist()
        starting = state.config.starts.copy()
        for track in state.tracks:
            starting |= track.starts
        begin = np.flatnonzero(inside & starting & ~state.busy).tolist()
        said = f"has {len(flying) + len(begin)} in flight or starting of {slots} (maxInFlight: {spec.max_in_flight})"
        ask = wave_ask(wave, "maxInFlight")
        raised = Change("raise `maxInFlight`", None, ask)
        out.append(view.wave_link(wave, Reason.BUDGET.value, said, depth=depth, changes=[raised], ask=ask))
        out += _occupied(view, [*flying, *begin], depth + 1)
    return out


def _occupied(view: View, rows: list[int], depth: int) -> list[Link]:
    busy = [row for row in rows if view.state.busy[row]]
    begin = [row for row in rows if not view.state.busy[row]]
    out = in_flight_links(view, busy, depth) if busy else []
    if begin:
        change = Change(f"a report from {names(sorted(map(view.name, begin)))} that it is done")
        said = f"{starts_of(view, begin[0])} now" if len(begin) == 1 else "start now"
        out.append(view.link(begin, "start", said, depth=depth, changes=[change]))
    return out


_LINKS: dict[Reason, Callable[[View, int, Rows, int], list[Link]]] = {
    Reason.IDENTITY_CONFLICT: _conflict,
    Reason.SUSPENDED: _suspended,
    Reason.IN_PROGRESS: lambda view, _number, rows, depth: in_flight_links(view, rows, depth),
    Reason.SERIALISED: _serialised,
    Reason.OFFLINE: silent,
    Reason.UNKNOWN_IMAGE: _unknown,
    Reason.AHEAD: _ahead,
    Reason.WITHDRAWN: _withdrawn,
    Reason.PAUSED: _paused,
    Reason.FROZEN: lambda view, _number, _rows, depth: frozen_links(view, depth),
    Reason.ATTEMPTS_EXHAUSTED: _exhausted,
    Reason.IMAGE_NOT_READY: _not_ready,
    Reason.NO_ROLLBACK_IMAGE: _no_rollback,
    Reason.TAG_DRIFT: _drift,
    Reason.BUDGET: _budget,
}
