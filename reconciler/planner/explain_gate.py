"""Why a wave holds: which earlier wave it waits for, how far that one's soak is, and which devices keep its gate open. Pure.

`causes` is the way in for every reason: those of a wave are told here and go down to devices, the others are
`explain_device`'s. Nothing is judged again: gates, entries and classes are those that stage one left. Source: design §4.1,
§4.3, §4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reconciler.model.plan import Reason
from reconciler.model.scalars import format_instant
from reconciler.planner.explain_device import device_links, said_of, starts_of
from reconciler.planner.explain_values import Change, Link, elapsed, names, wave_ask
from reconciler.planner.explain_view import View
from reconciler.planner.gates import TrackGates
from reconciler.planner.judge import Gate, Judged, Seen
from reconciler.planner.windows import NEVER, NONE, instant, micros

_WAITS = (Reason.WAVE_WAITS, Reason.SOAKING, Reason.GATE_UNRESOLVED)
_FIRST = (
    Reason.IDENTITY_CONFLICT,
    Reason.UNKNOWN_IMAGE,
    Reason.GATE_FAILED,
    Reason.ATTEMPTS_EXHAUSTED,
    Reason.WITHDRAWN,
    Reason.NO_ROLLBACK_IMAGE,
    Reason.IMAGE_NOT_READY,
    Reason.PAUSED,
    Reason.FROZEN,
    Reason.TAG_DRIFT,
    *_WAITS,
)
"""Reasons told first where a wave waits for devices with several: what a person must look at, then what holds them all."""
_LAST = (Reason.NO_WINDOW, Reason.OUTSIDE_WINDOW, Reason.IN_PROGRESS, None, Reason.SERIALISED, Reason.BUDGET)
"""None: it starts now."""


def causes(view: View, number: int, reason: Reason, rows: Sequence[int], depth: int) -> list[Link]:
    """The links behind a reason, for devices of one wave that share it: nearest cause first."""
    wave = view.wave(rows[0])
    if reason is Reason.GATE_FAILED:
        return failed_links(view, number, int(view.track(number).target[rows[0]]), depth)
    if reason in _WAITS and wave >= 0:
        gates = view.state.ground.gates[number]
        if gates.entry[wave].reason is not None:
            return waiting_links(view, number, wave, depth)
        return gate_links(view, number, wave, depth)
    return device_links(view, number, reason, rows, depth)


def waiting_links(view: View, number: int, wave: int, depth: int) -> list[Link]:
    """A wave that may not begin, and what the earlier wave is doing that it waits for."""
    gates = view.state.ground.gates[number]
    entry, code = gates.entry[wave], view.facts(wave).ask(number)
    assert entry.reason is not None, "asked why a wave waits that does not"
    out = [view.wave_link(wave, entry.reason.value, "waits", depth=depth, until=_until(entry.reason, entry.until))]
    if entry.reason is not Reason.SOAKING:
        return out + _asked_links(view, number, entry.blocker, code, depth + 1)
    soaking = [
        earlier
        for earlier in range(wave)
        if gates.judged[earlier].gate is Gate.SOAKING
        and view.facts(earlier).ask(number) == code
        and not gates.proven[earlier]
    ]
    # The one that ends last first: it is the one that says until when.
    for earlier in sorted(soaking, key=lambda index: (-gates.judged[index].soak_ends, -index)):
        out += gate_links(view, number, earlier, depth + 1)
    return out


def _until(reason: Reason, until: int) -> int:
    return until if reason is Reason.SOAKING else NEVER


def _asked_links(view: View, number: int, wave: int, code: int, depth: int) -> list[Link]:
    """An earlier wave that keeps a later one from `code`: it may not even be asked to run it."""
    own = view.facts(wave).ask(number)
    if own == code:
        return gate_links(view, number, wave, depth)
    release = view.release(number, code)
    now = f"asks for {view.release(number, own)}" if own >= 0 else "asks for no release"
    ask = view.wave_target(wave, number)
    change = Change(f"raise wave {view.facts(wave).spec.name} to {release}", None, ask)
    said = f"{now}, and has no proof for {release}"
    return [view.wave_link(wave, Reason.WAVE_WAITS.value, said, depth=depth, changes=[change], ask=ask)]


def gate_links(view: View, number: int, wave: int, depth: int) -> list[Link]:
    """Why a wave's gate for the release that it asks for is not passed, down to the devices. Nothing where it is."""
    gates = view.state.ground.gates[number]
    judged, code = gates.judged[wave], view.facts(wave).ask(number)
    if code in gates.failed:
        return failed_links(view, number, code, depth)
    if judged.gate is Gate.SOAKING:
        return _soak_links(view, number, wave, judged, depth)
    if judged.gate is Gate.UNRESOLVED:
        return _unresolved_links(view, number, wave, judged, depth)
    if judged.gate is Gate.FAILED:
        return [
            _failed_now(view, number, wave, judged, depth),
            *_class_links(view, number, wave, Seen.FAILED, depth + 1),
        ]
    if judged.gate is Gate.INCOMPLETE:
        return _incomplete_links(view, number, wave, judged, gates, depth)
    return []


def rows_seen(view: View, number: int, wave: int, *classes: Seen) -> list[int]:
    """The rows of a wave that stage one put into some classes."""
    seen = view.track(number).seen
    found: list[int] = np.flatnonzero((view.state.places.wave_of == wave) & np.isin(seen, classes)).tolist()
    return found


def _class_links(view: View, number: int, wave: int, seen: Seen, depth: int) -> list[Link]:
    rows = rows_seen(view, number, wave, seen)
    return said_of(view, number, seen, rows, depth) if rows else []


# ---------------------------------------------------------------- soaking


def soak_start(view: View, number: int, wave: int) -> int:
    """The instant from which a wave's soak counts; NONE for none."""
    return int(view.track(number).sums.start[wave])


def soaked(view: View, number: int, wave: int) -> str:
    """`31 h of 48 h`."""
    length = view.facts(wave).soak_of(number)
    return f"{elapsed(view.now - soak_start(view, number, wave))} of {elapsed(length)}"


def _soak_links(view: View, number: int, wave: int, judged: Judged, depth: int) -> list[Link]:
    name, release = view.facts(wave).spec.name, view.release(number, view.facts(wave).ask(number))
    start = soak_start(view, number, wave)
    opens = format_instant(instant(judged.soak_ends))
    key = "appSoak" if number > 0 and view.facts(wave).spec.app_soak is not None else "soak"
    out = [
        view.wave_link(
            wave,
            Reason.SOAKING.value,
            f"soaks {release}, {soaked(view, number, wave)}{_tolerance(view, wave, judged)}",
            depth=depth,
            since=start,
            until=judged.soak_ends,
            changes=[Change(f"opens at {opens} if wave {name} stays healthy", instant(judged.soak_ends))],
            ask=wave_ask(wave, key),
        )
    ]
    tolerated = rows_seen(view, number, wave, Seen.SILENT, Seen.SILENT_AFTER)
    bound = rows_seen(view, number, wave, *Seen)
    bound = [row for row in bound if int(view.track(number).start[row]) == start]
    for seen in Seen:
        rows = [row for row in bound if view.track(number).seen[row] == seen]
        if rows:
            out += _tolerated(view, number, seen, rows, depth + 1)
    failed = [row for row in rows_seen(view, number, wave, Seen.FAILED) if row not in set(bound)]
    if failed:
        out += _tolerated(view, number, Seen.FAILED, failed, depth + 1)
    rest = [row for row in tolerated if row not in set(bound)]
    if rest:
        out += _tolerated(view, number, Seen.SILENT, rest, depth + 1)
    return out


def _tolerated(view: View, number: int, seen: Seen, rows: list[int], depth: int) -> list[Link]:
    """Devices by which a soak that runs is bound: nothing that they could do is needed for its end."""
    return [replace(link, changes=()) for link in said_of(view, number, seen, rows, depth)]


# ---------------------------------------------------------------- unresolved, failed, incomplete


def _unresolved_links(view: View, number: int, wave: int, judged: Judged, depth: int) -> list[Link]:
    spec = view.facts(wave).spec
    release = view.release(number, view.facts(wave).ask(number))
    if spec.max_offline.exceeded_by(judged.offline, judged.devices):
        said = (
            f"is unresolved on {release}: {judged.offline} of {judged.devices} silent, maxOffline is {spec.max_offline}"
        )
        change = Change("raise `maxOffline`", None, wave_ask(wave, "maxOffline"))
        out = [
            view.wave_link(
                wave,
                Reason.GATE_UNRESOLVED.value,
                said,
                depth=depth,
                changes=[change],
                ask=wave_ask(wave, "maxOffline"),
            )
        ]
        rows = rows_seen(view, number, wave, Seen.SILENT, Seen.SILENT_AFTER)
        return out + said_of(view, number, Seen.SILENT, rows, depth + 1)
    if judged.devices == 0:
        said = f"is unresolved on {release}: every device of it is suspended, pinned or ahead, so none can prove it"
        change = Change("let a device of it count again, or take its sites out of the wave", None, None)
        return [view.wave_link(wave, Reason.GATE_UNRESOLVED.value, said, depth=depth, changes=[change])]
    said = f"is unresolved on {release}: none of its {judged.devices} devices is healthy on it"
    out = [view.wave_link(wave, Reason.GATE_UNRESOLVED.value, said, depth=depth)]
    for seen in (Seen.SILENT, Seen.SILENT_AFTER, Seen.FAILED, Seen.NEITHER):
        out += _class_links(view, number, wave, seen, depth + 1)
    return out


def _failed_now(view: View, number: int, wave: int, judged: Judged, depth: int) -> Link:
    spec = view.facts(wave).spec
    release = view.release(number, view.facts(wave).ask(number))
    said = f"failed {release}: {judged.failed} of {judged.devices} failed, maxFailed is {spec.max_failed}"
    return view.wave_link(
        wave,
        Reason.GATE_FAILED.value,
        said,
        depth=depth,
        since=_record(view, number, wave),
        ask=wave_ask(wave, "maxFailed"),
    )


def _record(view: View, number: int, wave: int) -> int:
    """When a wave's failure on the release that it asks for was put on record; NONE where it is not."""
    obs, key = view.state.obs, view.roster.key(number, view.facts(wave).ask(number))
    name = view.facts(wave).spec.name
    return max((micros(v.at) for v in obs.failures if v.key == key and v.wave == name and obs.is_open(v)), default=NONE)


def failed_links(view: View, number: int, code: int, depth: int) -> list[Link]:
    """A release that is stopped in every wave: whose gate failed, when, and by which devices."""
    obs, gates = view.state.obs, view.state.ground.gates[number]
    key, release = view.roster.key(number, code), view.release(number, code)
    proposed = max((item.at for item in obs.proposals if item.key == key), default=None)
    made = f"proposed at {format_instant(proposed)}" if proposed else "it is proposed in this plan"
    first = view.roster.asked.get(key, [-1])[0]
    ask = view.wave_target(first, number) if first >= 0 else None
    changes = (
        Change(f"merge a revert ({made})"),
        Change(f"ask for another release than {release}", None, ask),
    )
    kind = "release"
    said = "is stopped in every wave, and good health does not clear it"
    out = [Link(kind, release, Reason.GATE_FAILED.value, said, depth, changes=changes)]
    recorded = {v.wave for v in obs.failures if v.key == key and obs.is_open(v)}
    for facts in view.roster.waves:
        if facts.ask(number) != code and facts.spec.name not in recorded:
            continue
        if gates.failed_here[facts.index]:
            judged = gates.judged[facts.index]
            out.append(_failed_now(view, number, facts.index, judged, depth + 1))
            out += _class_links(view, number, facts.index, Seen.FAILED, depth + 2)
        elif facts.spec.name in recorded:
            at = max(micros(v.at) for v in obs.failures if v.key == key and v.wave == facts.spec.name)
            said = f"failed {release}: that is on record"
            out.append(view.wave_link(facts.index, Reason.GATE_FAILED.value, said, depth=depth + 1, since=at))
            if facts.ask(number) == code:
                out += _class_links(view, number, facts.index, Seen.FAILED, depth + 2)
    known = {facts.spec.name for facts in view.roster.waves}
    for verdict in obs.failures:
        if verdict.key == key and obs.is_open(verdict) and verdict.wave not in known:
            said = f"failed {release}: that is on record, though git names no such wave any more"
            out.append(Link("wave", verdict.wave, Reason.GATE_FAILED.value, said, depth + 1, verdict.at))
    return out


def _incomplete_links(view: View, number: int, wave: int, judged: Judged, gates: TrackGates, depth: int) -> list[Link]:
    release = view.release(number, view.facts(wave).ask(number))
    said = f"is not complete: {judged.healthy} of {judged.devices} healthy on {release}{_tolerance(view, wave, judged)}"
    missing = rows_seen(view, number, wave, Seen.NOT_THERE)
    groups: dict[Reason | None, list[int]] = {}
    for row in missing:
        groups.setdefault(view.reason(number, row), []).append(row)
    settled = [row for row in groups.get(None, []) if not view.track(number).starts[row]]
    # Its own devices wait for an earlier wave: the chain goes on there.
    if set(groups) & set(_WAITS) and gates.entry[wave].reason is not None:
        return waiting_links(view, number, wave, depth)
    out = [view.wave_link(wave, "incomplete", said, depth=depth)]
    pending = rows_seen(view, number, wave, Seen.PENDING)
    for reason in (*_FIRST, "pending", *(r for r in Reason if r not in _FIRST and r not in _LAST), *_LAST):
        if reason == "pending":
            out += said_of(view, number, Seen.PENDING, pending, depth + 1) if pending else []
        elif reason in groups:
            rows = groups[reason]  # type: ignore[index]
            out += _held(view, number, reason, [row for row in rows if row not in set(settled)], release, depth + 1)  # type: ignore[arg-type]
    if settled:
        said = f"not on {release} by what is known: {settled_word(view, number, settled[0])}"
        out.append(
            view.link(settled, "settled", said, depth=depth + 1, changes=[Change("a report that shows it there")])
        )
    # Tolerated, but told: they are what is used of `maxFailed`.
    failed = rows_seen(view, number, wave, Seen.FAILED)
    return out + _tolerated(view, number, Seen.FAILED, failed, depth + 1) if failed else out


def _tolerance(view: View, wave: int, judged: Judged) -> str:
    """How much of `maxFailed` failed devices have used, and what one more would do; nothing where none failed."""
    if not judged.failed:
        return ""
    limit = view.facts(wave).spec.max_failed
    more = limit.still(judged.failed, judged.devices)
    ends = f": {more} more would fail it" if more else ""
    return f", {judged.failed} failed, maxFailed is {limit}{ends}"


def settled_word(view: View, number: int, row: int) -> str:
    """What a device is doing that is not on its wave's release and of which nothing is wanted now."""
    if view.state.busy[row]:
        return "something is in flight on it"
    return "it runs no such app yet" if number > 0 else "nothing is wanted of it now"


def _held(view: View, number: int, reason: Reason | None, rows: list[int], release: str, depth: int) -> list[Link]:
    if not rows:
        return []
    if reason is not None:
        return causes(view, number, reason, rows, depth)
    said = f"{starts_of(view, rows[0]) or 'starts'} now" if len(rows) == 1 else f"start on {release} now"
    who, soak = names(sorted(map(view.name, rows))), soak_length(view, number, view.wave(rows[0]))
    wait = Change(f"a report of good health on {release} from {who}, and then the soak of {soak}")
    return [view.link(rows, "start", said, depth=depth, changes=[wait])]


def soak_length(view: View, number: int, wave: int) -> str:
    """`48 h`."""
    return elapsed(view.facts(wave).soak_of(number))
