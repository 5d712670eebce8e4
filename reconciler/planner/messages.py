"""Sentences for holds: what is held, why, and until when, with the names and values that matter. Pure."""

from __future__ import annotations

from collections.abc import Callable

from reconciler.model.desired import FleetSpec
from reconciler.model.plan import Reason
from reconciler.model.scalars import format_duration, format_instant
from reconciler.planner.judge import Judged
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.state import State
from reconciler.planner.windows import NEVER, instant

_MOST_NAMES = 3


def message(
    state: State, number: int, reason: Reason, wave: int, code: int, until: int, devices: tuple[str, ...]
) -> str:
    """One sentence. `number` is the track (-1: configuration), `code` its release, `until` microseconds or NEVER."""
    named = what(state, number, code)
    name = state.roster.waves[wave].spec.name if wave >= 0 else "no wave"
    then = "" if until == NEVER else f" until {format_instant(instant(until))}"
    who = devices[0] if len(devices) == 1 else f"{len(devices)} devices" if devices else f"wave {name!r}"
    maker = _SENTENCES[reason]
    return maker(_Words(state, number, wave, code, named, name, who, then, devices))


class _Words:
    """What a sentence may name."""

    def __init__(
        self,
        state: State,
        number: int,
        wave: int,
        code: int,
        what: str,
        name: str,
        who: str,
        then: str,
        devices: tuple[str, ...],
    ) -> None:
        self.state, self.number, self.wave, self.code = state, number, wave, code
        self.what, self.name, self.who, self.then, self.devices = what, name, who, then, devices

    @property
    def fleet(self) -> FleetSpec:
        """The fleet's settings."""
        return self.state.roster.desired.fleet

    def blocker(self) -> tuple[str, Judged | None]:
        """The earlier wave that this one waits for, and how it was judged."""
        gates = self.state.ground.gates[max(self.number, 0)]
        index = gates.entry[self.wave].blocker
        if index < 0:
            return self.name, gates.judged[self.wave] if self.wave >= 0 else None
        return self.state.roster.waves[index].spec.name, gates.judged[index]

    def progress(self) -> str:
        """How far the blocking wave has come."""
        name, judged = self.blocker()
        if judged is None:
            return name
        index = self.state.ground.gates[max(self.number, 0)].entry[self.wave].blocker
        if index >= 0 and self.state.roster.waves[index].ask(max(self.number, 0)) != self.code:
            return f"wave {name!r} does not ask for it, and has no proof for it"
        return (
            f"wave {name!r} has {judged.healthy} of {judged.devices} devices healthy on it"
            f" ({judged.failed} failed, {judged.offline} offline)"
        )


def what(state: State, number: int, code: int) -> str:
    """How a sentence names a release of a track: `v1.4.2`, `video-ingest 2.8.0`, or (-1) the configuration."""
    if number < 0:
        return "its configuration"
    if code < 0:
        return "its release"
    if number == IMAGE_TRACK:
        return plain(state.obs.release_names[code])
    app = state.roster.apps[number - 1]
    return f"{app.name} {app.versions[code]}"


def plain(text: str) -> str:
    """What a device said, as one line of a terminal can show it."""
    return text if text.isprintable() else ascii(text)


def _withdrawn(words: _Words) -> str:
    name = words.state.obs.release_names[words.code]
    why = words.state.roster.desired.images[name].withdrawn
    return f"{words.what} is withdrawn in git: {why}"


def _failed(words: _Words) -> str:
    gates = words.state.ground.gates[words.number]
    roster = words.state.roster
    key = roster.key(words.number, words.code)
    waves = sorted(
        {roster.waves[index].spec.name for index, code in gates.new_failures if code == words.code}
        | {v.wave for v in words.state.obs.failures if v.key == key and words.state.obs.is_open(v)}
    )
    where = ", ".join(repr(wave) for wave in waves)
    stopped = f"{words.what} is stopped in every wave: the gate of wave {where} failed"
    return f"wave {words.name!r}: {stopped}; revert it, or ask for another release"


def _soaking(words: _Words) -> str:
    name, _ = words.blocker()
    gates = words.state.ground.gates[words.number]
    index = gates.entry[words.wave].blocker
    soak = words.state.roster.waves[index].soak_of(words.number) // 1_000_000
    return f"wave {words.name!r} waits: wave {name!r} soaks {words.what} for {format_duration(soak)}{words.then}"


def _unresolved(words: _Words) -> str:
    return (
        f"wave {words.name!r} waits for {words.what}: {words.progress()}, too many silent (or none at all) to judge by"
    )


def _frozen(words: _Words) -> str:
    now = words.state.now
    why = next((why for opens, closes, why in words.state.roster.freezes if opens <= now < closes), "freeze")
    return f"{words.who}: nothing moves forward{words.then} ({why})"


def _unknown(words: _Words) -> str:
    state = words.state
    codes = {int(state.obs.image[state.roster.row_of[device]]) for device in words.devices}
    names = sorted(state.obs.release_names[code] for code in codes)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    shown = ", ".join(ascii(name) for name in names[:_MOST_NAMES])
    return f"{words.who} on {shown}{more}, which git does not name; a person must look"


def _exhausted(words: _Words) -> str:
    return f"{words.who} failed {words.what} as often as allowed (attempts: {words.fleet.attempts})"


def _artifact(words: _Words) -> str:
    name = words.what
    state = words.state.obs.artifacts.get(name)
    return f"{words.who} waits for {name}: its artifact is {state.value if state else 'absent'}, not published"


def _window(words: _Words) -> str:
    need = (
        ""
        if words.number != IMAGE_TRACK
        else f", or less than {format_duration(words.fleet.flash_duration)} of it is left"
    )
    return f"{words.who}: the maintenance window is closed{need}{words.then}"


_SENTENCES: dict[Reason, Callable[[_Words], str]] = {
    Reason.IDENTITY_CONFLICT: lambda w: f"{w.who}: two devices claim this name; find the second one and enrol it anew",
    Reason.SUSPENDED: lambda w: f"{w.who}: the site is suspended in git",
    Reason.IN_PROGRESS: lambda w: f"{w.who}: an action is in progress, {w.what} follows",
    Reason.SERIALISED: lambda w: f"{w.who}: another action goes first, {w.what} follows",
    Reason.OFFLINE: lambda w: (
        f"{w.who}: no report in the last {format_duration(w.fleet.stale_after)}; {w.what} is offered when one comes"
    ),
    Reason.UNKNOWN_IMAGE: _unknown,
    Reason.AHEAD: lambda w: f"{w.who} stays on a higher release than {w.what}: a wave took it there and still wants it",
    Reason.WITHDRAWN: _withdrawn,
    Reason.GATE_FAILED: _failed,
    Reason.PAUSED: lambda w: f"{w.who}: paused in git, {w.what} waits",
    Reason.FROZEN: _frozen,
    Reason.WAVE_WAITS: lambda w: f"wave {w.name!r} waits for {w.what}: {w.progress()}",
    Reason.SOAKING: _soaking,
    Reason.GATE_UNRESOLVED: _unresolved,
    Reason.ATTEMPTS_EXHAUSTED: _exhausted,
    Reason.IMAGE_NOT_READY: _artifact,
    Reason.NO_ROLLBACK_IMAGE: lambda w: (
        f"{w.who} cannot go back to {w.what}: its artifact is missing or does not verify"
    ),
    Reason.TAG_DRIFT: lambda w: f"wave {w.name!r}: somebody else moved the tag of {w.what}; nothing restarts under it",
    Reason.OUTSIDE_WINDOW: _window,
    Reason.NO_WINDOW: lambda w: f"{w.who}: the coming night has no window (daylight saving removes it){w.then}",
    Reason.BUDGET: lambda w: f"{w.who}: as many in flight as allowed, or another device of the site; {w.what} follows",
}
