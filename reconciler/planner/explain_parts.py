"""One device explained: its image, configuration and apps, each with what it runs, what it shall run, and why not yet. Pure.

Called by `explain`, and by `explain_site` for every device of a site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reconciler.model.observed import NO_CONFIG, Attempt, CheckChange, ClockSeen, RefusalSeen
from reconciler.model.plan import Action, Reason, Why
from reconciler.model.scalars import format_instant
from reconciler.planner.explain_device import said_of
from reconciler.planner.explain_gate import causes
from reconciler.planner.explain_values import Ask, Link, Places, arrows, chain_lines
from reconciler.planner.explain_view import View
from reconciler.planner.judge import Seen
from reconciler.planner.messages import message, plain
from reconciler.planner.render import device_actions, named, until_of, wave_name
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.want import RUNGS
from reconciler.planner.want_image import WHYS
from reconciler.planner.windows import NEVER, NONE, instant

_BUDGET_WHY = "As many devices are in flight as the wave allows, or another device of the site is."
_SEEN = {
    Seen.OUTSIDE: "not counted by its wave",
    Seen.FAILED: "failed",
    Seen.SILENT: "silent",
    Seen.SILENT_AFTER: "silent since it got the release",
    Seen.NEITHER: "neither charged nor credited",
    Seen.HEALTHY: "healthy on the release",
    Seen.PENDING: "on the release, not judged yet",
    Seen.NOT_THERE: "not on the release yet",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One track of a device: its image, its configuration, or an app."""

    subject: str
    """`image`, `configuration`, or the app's name."""
    running: str | None
    target: str | None
    because: str | None
    """Where the target comes from, where that is not the wave: a pin, a first release, a rescue."""
    judged: str | None
    """What the device says about its wave's release."""
    decision: str
    """`settled`, `start`, or the reason it is held."""
    message: str
    why: str
    """The rung's sentence."""
    until: datetime | None
    chain: tuple[Link, ...]
    """The reasons, nearest first; the first link is the device itself."""
    ask: Ask | None
    """The value of git that asks for the target."""

    def asks(self) -> Iterator[Ask]:
        """Every value of git that is spoken of."""
        yield from asks_of(self.ask, self.chain)

    def authored(self) -> Iterator[Ask]:
        """Those that are shown with who asked for them."""
        yield from authored_of(self.ask, self.chain)

    def to_dict(self, places: Places) -> dict[str, Any]:
        """For `--output json`."""
        found = places.get(self.ask) if self.ask else None
        return {
            "subject": self.subject,
            "running": self.running,
            "target": self.target,
            "because": self.because,
            "judged": self.judged,
            "decision": self.decision,
            "message": self.message,
            "why": self.why,
            "until": format_instant(self.until) if self.until else None,
            "summary": arrows(self.chain),
            "chain": [link.to_dict(places) for link in self.chain],
            "askedFor": found.to_dict() if found and found.exact else None,
        }

    def lines(self, places: Places) -> list[str]:
        """For people."""
        arrow = f"{plain(self.running or 'nothing')} → {plain(self.target or 'nothing')}"
        out = [f"  {self.subject}: {arrow}: {self.decision}"]
        out.append(f"    {arrows(self.chain) if self.chain else self.message}")
        if self.why:
            out.append(f"    why: {self.why}")
        if self.because:
            out.append(f"    target: {self.because}")
        found = places.get(self.ask) if self.ask else None
        if found and found.exact:
            out.append(f"    {found.sentence()}")
        return out + chain_lines(self.chain, places, "    ")


def asks_of(first: Ask | None, chain: tuple[Link, ...]) -> Iterator[Ask]:
    """Every value of git that a chain speaks of."""
    yield from authored_of(first, chain)
    for link in chain:
        yield from (change.ask for change in link.changes if change.ask is not None)


def authored_of(first: Ask | None, chain: tuple[Link, ...]) -> Iterator[Ask]:
    """Those that are shown with who asked for them; the others are only named as what to edit."""
    if first is not None:
        yield first
    yield from (link.ask for link in chain if link.ask is not None)


@dataclass(frozen=True, slots=True)
class DeviceExplanation:
    """Everything the plan says about one device."""

    device: str
    site: str
    wave: str | None
    at: datetime
    commit: str | None
    last_seen: datetime | None
    checks: tuple[CheckChange, ...]
    """Those that are worse than before the last update."""
    clock: ClockSeen | None
    """Its clock, where that is not right."""
    refusals: tuple[RefusalSeen, ...]
    """What it refused or could not do, as it says itself."""
    attempt: Attempt | None
    """What was worse during the last attempt at a release, if that attempt failed or still runs."""
    parts: tuple[Part, ...]
    actions: tuple[Action, ...]

    def asks(self) -> Iterator[Ask]:
        """Every value of git that is spoken of."""
        for part in self.parts:
            yield from part.asks()

    def authored(self) -> Iterator[Ask]:
        """Those that are shown with who asked for them."""
        for part in self.parts:
            yield from part.authored()

    def to_dict(self, places: Places | None = None) -> dict[str, Any]:
        """For `--output json`."""
        return {
            "apiVersion": "fleet/v1",
            "kind": "Explanation",
            "of": "device",
            "device": self.device,
            "site": self.site,
            "wave": self.wave,
            "at": format_instant(self.at),
            "commit": self.commit,
            "lastSeen": format_instant(self.last_seen) if self.last_seen else None,
            "checks": [_check(check) for check in self.checks],
            "clock": self.clock and self.clock.model_dump(mode="json", by_alias=True),
            "refusals": [item.model_dump(mode="json", by_alias=True) for item in self.refusals],
            "attempt": self.attempt
            and {
                "release": self.attempt.release,
                "checks": [_check(check) for check in self.attempt.checks],
            },
            "parts": [part.to_dict(places or {}) for part in self.parts],
            "actions": [action.to_dict() for action in self.actions],
        }

    def lines(self, places: Places | None = None) -> list[str]:
        """For people."""
        seen = format_instant(self.last_seen) if self.last_seen else "never"
        head = f"{self.device} at {self.site}, wave {self.wave or '-'}, at {format_instant(self.at)} (last seen {seen})"
        out = [head]
        if self.checks:
            out += ["  checks that are worse than before the last update", *map(_check_line, self.checks)]
        if self.attempt is not None:
            of = plain(self.attempt.release)
            out += [f"  checks that were worse during the last attempt at {of}"]
            out += map(_check_line, self.attempt.checks)
        if self.clock is not None:
            out.append(f"  clock: {_clock_line(self.clock)}")
        out += [
            f"  it says {item.code}, since {format_instant(item.since)}: {plain(item.reason)}" for item in self.refusals
        ]
        return out + [line for part in self.parts for line in part.lines(places or {})]


def _clock_line(clock: ClockSeen) -> str:
    way = "ahead of" if clock.ahead_s >= 0 else "behind"
    service = (
        ""
        if clock.synchronised
        else ", and its time service does not say that it is synchronised: it begins in no window"
    )
    return f"{abs(clock.ahead_s)} s {way} the recorder's{service}"


def _check(check: CheckChange) -> dict[str, Any]:
    """As in the snapshot."""
    return check.model_dump(mode="json", by_alias=True)


def _check_line(check: CheckChange) -> str:
    before = check.before.value if check.before is not None else "not there"
    said = f": {plain(check.message)}" if check.message else ""
    return f"    {plain(check.name)}: {before} before, {check.now.value} since {format_instant(check.since)}{said}"


def explain_device(view: View, row: int) -> DeviceExplanation:
    """What the plan says about the device of a row."""
    seen, name = int(view.state.obs.last_seen[row]), view.name(row)
    report = view.reports.get(name)
    tracks = (IMAGE_TRACK, -1, *(number for number in view.roster.tracks if number != IMAGE_TRACK))
    return DeviceExplanation(
        device=name,
        site=view.site(row),
        wave=wave_name(view.state, row),
        at=instant(view.now),
        commit=view.roster.desired.commit,
        last_seen=None if seen == NONE else instant(seen),
        checks=report.checks if report is not None else (),
        clock=report.clock if report is not None else None,
        refusals=report.refusals if report is not None else (),
        attempt=report.attempt if report is not None else None,
        parts=tuple(explain_part(view, number, row) for number in tracks),
        actions=tuple(action for action in device_actions(view.state) if action.fields.get("device") == name),
    )


def explain_part(view: View, number: int, row: int) -> Part:
    """One track of a device."""
    state, track = view.state, view.track(number)
    code, wave = int(track.target[row]), view.wave(row)
    running, target = _running(view, number, row), _target(view, number, code)
    judged = None if number < 0 else _SEEN[Seen(int(track.seen[row]))]
    reason = view.reason(number, row)
    until, said, why, decision = NEVER, "", "", "settled"
    if reason is not None:
        decision = reason.value
        until = until_of(state, number, reason, wave, int(view.roster.calendar_of[row]))
        why = next((rung.why for rung in RUNGS if rung.reason is reason), _BUDGET_WHY)
        said = message(state, number, reason, wave, code, until, (view.name(row),))
    elif track.starts[row]:
        decision, said = "start", "starts now"
    else:
        said = "nothing is wanted" if target is None or running == target else "not reported"
    chain = _chain(view, number, row, running, target, decision, until)
    then = None if until == NEVER else instant(until)
    because = _because(view, row, reason) if number == IMAGE_TRACK and target is not None else None
    ask = view.asked(number, row) if target is not None else None
    subject = "image" if number == IMAGE_TRACK else "configuration" if number < 0 else view.roster.apps[number - 1].name
    return Part(subject, running, target, because, judged, decision, said, why, then, chain, ask)


def _chain(
    view: View, number: int, row: int, running: str | None, target: str | None, decision: str, until: int
) -> tuple[Link, ...]:
    """The device, then its causes. Nothing where nothing is wanted and nothing is to be told."""
    named_target = view.release(number, int(view.track(number).target[row]))
    reason = view.reason(number, row)
    if reason is not None:
        apart = "is not on" if running != target else "is held on"
        said = f"{apart} {plain(named_target)}"
        head = view.link([row], decision, said, depth=0, until=until)
        return (head, *causes(view, number, reason, [row], 1))
    if decision == "start":
        verb = {IMAGE_TRACK: "is flashed to", -1: "is given"}.get(number, "is restarted for")
        return (view.link([row], decision, f"{verb} {plain(named_target)} now", depth=0),)
    if number < 0:
        return ()
    seen = Seen(int(view.track(number).seen[row]))
    if seen in (Seen.OUTSIDE, Seen.HEALTHY, Seen.NOT_THERE):
        return ()
    # The tag is right, so nothing is wanted; whether the device followed it is another matter.
    there = "is on" if running is not None and running == target else "is not known to be on"
    head = view.link([row], decision, f"{there} {plain(named_target)}", depth=0)
    return (head, *said_of(view, number, seen, [row], 1))


def _because(view: View, row: int, reason: Reason | None) -> str | None:
    """Where the image's target comes from, where it is not simply what the wave asks for."""
    state, roster = view.state, view.roster
    if roster.pin_of[row] >= 0:
        pin = roster.desired.sites[view.site(row)].pin
        assert pin is not None
        return f"the site pins it in git: {plain(pin.why)}"
    why = WHYS[int(state.tracks[IMAGE_TRACK].why[row])]
    if why is Why.PROVISION:
        return "the highest release that runs in the last wave, for a device that runs nothing known yet"
    if why is Why.RESCUE:
        return "what it ran before: it failed, and `onFailure: rollback` returns it"
    if why is Why.ROLLBACK and reason is not Reason.AHEAD:
        return "its wave asks for a lower release that ran before: it goes back, and gates, pauses and freezes do not bind it"
    if why is Why.REPAIR:
        return "its wave has proved this release, and somebody took the device off it"
    return None


def _running(view: View, number: int, row: int) -> str | None:
    obs = view.state.obs
    if number == IMAGE_TRACK:
        code = int(obs.image[row])
        return obs.release_names[code] if code >= 0 else None
    table = obs.digest_code if number < 0 else obs.app_digest_code[number - 1]
    code = int(obs.config[row] if number < 0 else obs.app_digest[number - 1][row])
    digest = next((text for text, value in table.items() if value == code), None) if code >= 0 else None
    if digest == NO_CONFIG:
        return None
    if number > 0 and digest in view.roster.apps[number - 1].digests:
        app = view.roster.apps[number - 1]
        return app.versions[app.digests.index(digest)]
    return digest


def _target(view: View, number: int, code: int) -> str | None:
    if code < 0:
        return None
    if number < 0:
        return view.roster.config_of[0][code]
    of = named(view.state, number, code)
    return of.image or of.release
