"""From judged waves to what may move: proofs and failures, and whether each wave may begin on its release. Pure.

A wave may move to a release only when every earlier wave has a proof for it, on record or passed now; a failure of any wave,
on record or judged now, stops the release in all of them while it is open. Design §4.1 and §4.4, contract fine print 3 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reconciler.model.plan import Reason
from reconciler.planner.columns import Columns
from reconciler.planner.judge import Gate, Judged
from reconciler.planner.roster import Bools, Roster
from reconciler.planner.windows import NEVER


@dataclass(frozen=True, slots=True)
class Entry:
    """Whether a wave may begin: no reason, or why it waits, until when, and for which wave."""

    reason: Reason | None = None
    until: int = NEVER
    blocker: int = -1


@dataclass(slots=True)
class TrackGates:
    """One track's gates over all waves."""

    judged: list[Judged]
    entry: list[Entry]
    """Per wave, for the release that it asks for."""
    failed: set[int]
    """Codes of releases that are stopped."""
    proven: list[bool]
    """Per wave: it has a proof for its own release, on record or established now."""
    failed_here: list[bool]
    """Per wave: its own gate failed now, and is charged."""
    new_proofs: list[tuple[int, int]] = field(default_factory=list)
    """(wave, code) established by this plan."""
    new_failures: list[tuple[int, int]] = field(default_factory=list)


def gates(roster: Roster, obs: Columns, track: int, judged: list[Judged]) -> TrackGates:
    """Chain the waves' judgements on one track."""
    asks = [wave.ask(track) for wave in roster.waves]
    codes = sorted({code for code in asks if code >= 0})
    on_record = {code: obs.proven(roster.key(track, code)) for code in codes}
    stopped = obs.open_failures
    failed = {code for code in codes if roster.key(track, code) in stopped}
    out = TrackGates(judged, [], failed, [False] * len(asks), [False] * len(asks))
    failures_on_record = {(verdict.wave, verdict.key) for verdict in obs.failures if obs.is_open(verdict)}
    for code in codes:
        asking = [wave for wave in roster.waves if wave.ask(track) == code]
        # Once the last wave that asks is proven too, a failure is flagged, not charged (fine print 3).
        settled = all(on_record[code][wave.index] or judged[wave.index].gate is Gate.EMPTY for wave in asking)
        for wave in asking:
            if judged[wave.index].gate is Gate.FAILED and not settled:
                out.failed_here[wave.index] = True
                failed.add(code)
                if (wave.spec.name, roster.key(track, code)) not in failures_on_record:
                    out.new_failures.append((wave.index, code))
    for wave in roster.waves:
        code = asks[wave.index]
        if code < 0:
            continue
        recorded = bool(on_record[code][wave.index])
        passed_now = judged[wave.index].gate is Gate.PASSED and code not in failed
        out.proven[wave.index] = recorded or passed_now
        if passed_now and not recorded:
            out.new_proofs.append((wave.index, code))
    out.entry = [_entry(out, asks, on_record, wave.index) for wave in roster.waves]
    return out


def _entry(out: TrackGates, asks: list[int], on_record: dict[int, Bools], wave: int) -> Entry:
    """May `wave` begin? The first wave always may; each other needs every earlier one."""
    code = asks[wave]
    if code < 0:
        return Entry()
    soaking, unresolved = -1, -1
    until = -1
    for earlier in range(wave):
        gate = out.judged[earlier].gate
        if gate is Gate.EMPTY or on_record[code][earlier]:
            continue
        if asks[earlier] == code:
            if out.proven[earlier]:
                continue
            if gate is Gate.SOAKING:
                soaking, until = earlier, max(until, out.judged[earlier].soak_ends)
                continue
            if gate is Gate.UNRESOLVED:
                unresolved = earlier
                continue
        return Entry(Reason.WAVE_WAITS, blocker=earlier)
    if unresolved >= 0:
        return Entry(Reason.GATE_UNRESOLVED, blocker=unresolved)
    return Entry(Reason.SOAKING, until, soaking) if soaking >= 0 else Entry()
