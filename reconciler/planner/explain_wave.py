"""One wave explained: its gate for every release that it asks for, its soak, who is missing, and when the next can begin. Pure.

Called by `explain`. Counts and states are the plan's own (`render.wave_status`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from reconciler.model.plan import Reason, WaveState
from reconciler.model.scalars import format_instant
from reconciler.planner.explain_device import device_links, said_of
from reconciler.planner.explain_gate import (
    failed_links,
    gate_links,
    rows_seen,
    soak_length,
    soak_start,
    soaked,
    waiting_links,
)
from reconciler.planner.explain_parts import asks_of, authored_of
from reconciler.planner.explain_values import Ask, Link, Places, arrows, chain_lines, names
from reconciler.planner.explain_view import View, at
from reconciler.planner.judge import Gate, Seen
from reconciler.planner.messages import plain
from reconciler.planner.render import track_state
from reconciler.planner.roster import IMAGE_TRACK, recorded_waves
from reconciler.planner.windows import NEVER, NONE, instant, micros

_CLASSES = {
    Seen.HEALTHY: "healthy",
    Seen.PENDING: "pending",
    Seen.NOT_THERE: "missing",
    Seen.FAILED: "failed",
    Seen.SILENT: "silent",
    Seen.SILENT_AFTER: "silent",
    Seen.NEITHER: "neither",
}
_STANDS = {
    WaveState.FAILED: "has failed",
    WaveState.WAITING: "waits to begin on",
    WaveState.ROLLING_BACK: "goes back to",
    WaveState.COMPLETE: "is complete on",
}


@dataclass(frozen=True, slots=True)
class Next:
    """When the next wave may begin on this release. `at` is None where it depends on more than the clock."""

    wave: str | None
    statement: str
    at: datetime | None = None
    ask: Ask | None = None

    def to_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {"wave": self.wave, "statement": self.statement, "at": format_instant(self.at) if self.at else None}


@dataclass(frozen=True, slots=True)
class WavePart:
    """A wave and one release that it asks for."""

    subject: str
    """`image`, or the app's name."""
    release: str | None
    state: WaveState
    devices: dict[str, tuple[str, ...]]
    """Names of the devices that it is judged by, by what they say: healthy, pending, missing, failed, silent, neither."""
    in_flight: tuple[str, ...]
    soak: str
    soak_since: datetime | None
    soak_until: datetime | None
    soaked: str | None
    """`31 h of 48 h`, while the soak runs."""
    proved_at: datetime | None
    chain: tuple[Link, ...]
    ask: Ask
    next: Next

    def asks(self) -> Iterator[Ask]:
        """Every value of git that is spoken of."""
        yield from asks_of(self.ask, self.chain)
        if self.next.ask is not None:
            yield self.next.ask

    def authored(self) -> Iterator[Ask]:
        """Those that are shown with who asked for them."""
        yield from authored_of(self.ask, self.chain)

    def to_dict(self, places: Places) -> dict[str, Any]:
        """For `--output json`: every name."""
        found = places.get(self.ask)
        return {
            "subject": self.subject,
            "release": self.release,
            "state": self.state.value,
            "devices": {word: list(called) for word, called in self.devices.items()},
            "inFlight": list(self.in_flight),
            "soak": {
                "length": self.soak,
                "since": format_instant(self.soak_since) if self.soak_since else None,
                "until": format_instant(self.soak_until) if self.soak_until else None,
                "progress": self.soaked,
            },
            "provedAt": format_instant(self.proved_at) if self.proved_at else None,
            "summary": arrows(self.chain),
            "chain": [link.to_dict(places) for link in self.chain],
            "next": self.next.to_dict(),
            "askedFor": found.to_dict() if found and found.exact else None,
        }

    def lines(self, places: Places) -> list[str]:
        """For people."""
        out = [f"  {self.subject}: {plain(self.release or 'nothing')}: {self.state.value}"]
        if self.release is None:
            return [*out, "    it asks for none"]
        if self.chain:
            out.append(f"    {arrows(self.chain)}")
        total = sum(map(len, self.devices.values()))
        healthy = len(self.devices.get("healthy", ()))
        out.append(f"    {healthy} of {total} healthy on it; it soaks for {self.soak}")
        for word, called in self.devices.items():
            if word != "healthy" and called:
                out.append(f"    {word}: {names(called)}")
        if self.in_flight:
            out.append(f"    in flight: {names(self.in_flight)}")
        if self.proved_at:
            out.append(f"    proved at {format_instant(self.proved_at)}")
        found = places.get(self.ask)
        if found and found.exact:
            out.append(f"    {found.sentence()}")
        out += chain_lines(self.chain, places, "    ")
        return [*out, f"    next: {self.next.statement}"]


@dataclass(frozen=True, slots=True)
class WaveExplanation:
    """Everything the plan says about one wave."""

    wave: str
    at: datetime
    commit: str | None
    sites: dict[str, tuple[str, ...]]
    """Its sites by the rule that put them there: listed, recorded, drawn."""
    devices: int
    apart: tuple[str, ...]
    """Devices that it is not judged by: suspended, pinned or ahead."""
    parts: tuple[WavePart, ...]

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
            "of": "wave",
            "wave": self.wave,
            "at": format_instant(self.at),
            "commit": self.commit,
            "sites": {word: list(called) for word, called in self.sites.items()},
            "devices": self.devices,
            "apart": list(self.apart),
            "parts": [part.to_dict(places or {}) for part in self.parts],
        }

    def lines(self, places: Places | None = None) -> list[str]:
        """For people."""
        count = sum(map(len, self.sites.values()))
        ways = {"listed": "listed by name", "recorded": "taken on record", "drawn": "drawn by percentage"}
        how = ", ".join(f"{len(called)} {ways[word]}" for word, called in self.sites.items() if called)
        out = [
            f"wave {self.wave} at {format_instant(self.at)}: {count} site{'' if count == 1 else 's'}"
            f"{f' ({how})' if how else ''}, {self.devices} device{'' if self.devices == 1 else 's'}"
        ]
        if self.apart:
            out.append(f"  not judged by (suspended, pinned or ahead): {names(self.apart)}")
        return out + [line for part in self.parts for line in part.lines(places or {})]


def explain_wave(view: View, wave: int) -> WaveExplanation:
    """What the plan says about a wave."""
    roster, state, facts = view.roster, view.state, view.facts(wave)
    inside = np.flatnonzero(state.places.wave_of == wave)
    apart = roster.suspended_of[inside] | (roster.pin_of[inside] >= 0) | state.ahead[inside]
    tracks = [number for number in roster.tracks if number == IMAGE_TRACK or facts.ask(number) >= 0]
    return WaveExplanation(
        wave=facts.spec.name,
        at=instant(view.now),
        commit=roster.desired.commit,
        sites=_sites(view, wave),
        devices=len(inside),
        apart=_called(view, inside[apart].tolist()),
        parts=tuple(_part(view, number, wave) for number in tracks),
    )


def _called(view: View, rows: list[int]) -> tuple[str, ...]:
    return tuple(sorted(map(view.name, rows)))


def _sites(view: View, wave: int) -> dict[str, tuple[str, ...]]:
    out: dict[str, list[str]] = {"listed": [], "recorded": [], "drawn": []}
    recorded = recorded_waves(view.roster, view.state.obs.members)
    for site in np.flatnonzero(view.state.places.site_wave == wave).tolist():
        rule = "drawn"
        if view.roster.listed_wave[site] >= 0:
            rule = "listed"
        elif site in recorded and view.state.obs.members[recorded[site]][site] == wave:
            rule = "recorded"
        out[rule].append(view.roster.site_names[site])
    return {word: tuple(sorted(called)) for word, called in out.items()}


def _part(view: View, number: int, wave: int) -> WavePart:
    state, facts = view.state, view.facts(wave)
    code = facts.ask(number)
    judged = state.ground.gates[number].judged[wave]
    devices: dict[str, tuple[str, ...]] = {}
    for word in dict.fromkeys(_CLASSES.values()):
        devices[word] = _called(view, rows_seen(view, number, wave, *(s for s, w in _CLASSES.items() if w == word)))
    soaking = judged.gate is Gate.SOAKING
    inside = state.places.wave_of == wave
    ends = judged.soak_ends
    return WavePart(
        subject="image" if number == IMAGE_TRACK else view.roster.apps[number - 1].name,
        release=None if code < 0 else view.roster.key(number, code).rpartition("@")[2],
        state=track_state(state, number, wave),
        devices=devices,
        in_flight=_called(view, np.flatnonzero(inside & state.busy).tolist()),
        soak=soak_length(view, number, wave),
        soak_since=at(soak_start(view, number, wave)) if ends != NEVER else None,
        soak_until=at(ends),
        soaked=soaked(view, number, wave) if soaking else None,
        proved_at=_proved(view, number, wave),
        chain=tuple(_chain(view, number, wave)),
        ask=view.wave_target(wave, number),
        next=_next(view, number, wave),
    )


def _proved(view: View, number: int, wave: int) -> datetime | None:
    """When the wave's open proof was put on record, or now, where this plan establishes it."""
    obs, code = view.state.obs, view.facts(wave).ask(number)
    if code < 0:
        return None
    key, name = view.roster.key(number, code), view.facts(wave).spec.name
    recorded = [v.at for v in obs.proofs if v.key == key and v.wave == name and obs.is_open(v)]
    if not recorded and (wave, code) in view.state.ground.gates[number].new_proofs:
        return instant(view.now)
    return min(recorded, default=None)


def _chain(view: View, number: int, wave: int) -> list[Link]:
    """The wave's state, then its causes down to devices."""
    state, facts = view.state, view.facts(wave)
    gates, code = state.ground.gates[number], facts.ask(number)
    if code < 0:
        return []
    release, stands = view.release(number, code), track_state(state, number, wave)
    judged = gates.judged[wave]
    said = f"{_STANDS.get(stands, 'is ' + stands.value + ' on')} {release}"
    # A proof stands for good: a soak that began anew ends nothing of a wave that is complete.
    until = judged.soak_ends if judged.gate is Gate.SOAKING and stands is not WaveState.COMPLETE else NEVER
    if stands is WaveState.WAITING:
        until = gates.entry[wave].until if gates.entry[wave].reason is Reason.SOAKING else NEVER
    proved = _proved(view, number, wave)
    since = micros(proved) if proved and stands is WaveState.COMPLETE else NONE
    head = view.wave_link(wave, stands.value, said, depth=0, since=since, until=until)
    if code in gates.failed:
        return [head, *failed_links(view, number, code, 1)]
    if stands is WaveState.COMPLETE:
        # Its proof stands, and nobody waits for a soak that began anew; what keeps the gate from passing again is told.
        anew = judged.gate in (Gate.PASSED, Gate.EMPTY, Gate.SOAKING)
        return [head] if anew else [head, *_since_proof(view, number, wave)]
    halted = []
    if stands is WaveState.PAUSED:
        rows = np.flatnonzero(state.places.wave_of == wave).tolist()
        halted = device_links(view, number, Reason.PAUSED, rows, 1) if rows else []
    if gates.entry[wave].reason is not None and not gates.proven[wave]:
        # It waits: the link that says so is the head itself.
        return [head, *halted, *waiting_links(view, number, wave, 0)[1:]]
    # Where the gate says it all, its first link is about this wave, and takes the head's place.
    return (
        [head, *halted, *gate_links(view, number, wave, 1)] if halted else gate_links(view, number, wave, 0) or [head]
    )


def _since_proof(view: View, number: int, wave: int) -> list[Link]:
    """What would keep a gate from passing again, said of a wave that has passed it. Every device that is not well has a link."""
    links, judged = gate_links(view, number, wave, 1), view.state.ground.gates[number].judged[wave]
    if not links or links[0].kind != "wave":
        return links
    if judged.gate is Gate.INCOMPLETE and links[0].code == "incomplete":
        release = view.release(number, view.facts(wave).ask(number))
        said = f"has its proof; now {judged.healthy} of {judged.devices} devices are healthy on {release}"
    elif judged.gate is Gate.UNRESOLVED:
        said = f"has its proof; judged anew it {links[0].statement}"
    else:
        return links
    links[0] = replace(links[0], statement=said)
    told = {name for link in links if link.kind == "device" for name in (link.name, *link.devices)}
    for seen in (Seen.FAILED, Seen.PENDING, Seen.SILENT, Seen.SILENT_AFTER, Seen.NEITHER):
        rows = [row for row in rows_seen(view, number, wave, seen) if view.name(row) not in told]
        if rows:
            links += said_of(view, number, seen, rows, 2)
    return links


def _next(view: View, number: int, wave: int) -> Next:
    """When the wave after this one may begin on the release."""
    state, code, following = view.state, view.facts(wave).ask(number), wave + 1
    if following >= len(view.roster.waves):
        return Next(None, "there is no wave after this one")
    gates, facts = state.ground.gates[number], view.facts(following)
    name, release = facts.spec.name, view.release(number, code)
    if code < 0:
        return Next(name, f"wave {name} waits for nothing here: this wave asks for none")
    if facts.ask(number) != code:
        ask = view.wave_target(following, number)
        other = view.release(number, facts.ask(number)) if facts.ask(number) >= 0 else "nothing"
        return Next(name, f"wave {name} asks for {other}; it follows once git raises it to {release}", None, ask)
    if code in gates.failed:
        return Next(name, f"wave {name} does not begin: {release} is stopped")
    if gates.proven[following]:
        return Next(name, f"wave {name} has proved {release} itself")
    entry = gates.entry[following]
    if entry.reason is None:
        halted = state.ground.halted(following)
        return Next(name, f"wave {name} may begin now" + (f", but is {halted.value}" if halted else ""))
    if entry.reason is Reason.SOAKING:
        ends = format_instant(instant(entry.until))
        return Next(name, f"wave {name} may begin at {ends}, if what soaks stays healthy", instant(entry.until))
    return Next(name, f"wave {name} may begin when wave {view.facts(entry.blocker).spec.name} has a proof")
