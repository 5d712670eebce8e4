"""What stood at the end of a run: what each wave was asked for, and what held it. Pure; for both engines of virtual time.

Reads the planner's last state; decides nothing. Source: design §4.
"""

from __future__ import annotations

from reconciler.model.plan import Plan, Reason
from reconciler.planner.judge import Gate
from reconciler.planner.live import Live
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.simulate.trace import Held

Asked = tuple[tuple[str, str, int], ...]


def asked_of(live: Live) -> Asked:
    """(wave, key, devices that it is judged by) of the commit in force, in the waves' order; a wave's image before its apps."""
    if live.state is None:
        return ()
    state = live.state
    roster, out = state.roster, []
    apps = sorted((number for number in roster.tracks if number != IMAGE_TRACK), key=lambda n: roster.apps[n - 1].name)
    for wave in roster.waves:
        for number in (IMAGE_TRACK, *apps):
            code = wave.ask(number)
            if code >= 0:
                judged = state.ground.gates[number].judged[wave.index]
                out.append((wave.spec.name, roster.key(number, code), judged.devices))
    return tuple(out)


def held_of(live: Live, plan: Plan) -> dict[tuple[str, str], tuple[Held, ...]]:
    """(wave, key) → what holds it in the last plan, for what is asked for and not proven."""
    if live.state is None:
        return {}
    state, waiting = live.state, set()
    for number in state.roster.tracks:
        gates = state.ground.gates[number]
        for wave in state.roster.waves:
            if wave.ask(number) >= 0 and not gates.proven[wave.index]:
                waiting.add((wave.spec.name, state.roster.key(number, wave.ask(number))))
    out: dict[tuple[str, str], list[Held]] = {}
    for hold in plan.holds:
        key = hold.image if hold.app is None else f"{hold.app}@{hold.release}"
        place = (hold.wave or "", key or "")
        if place in waiting:
            out.setdefault(place, []).append(Held(hold.reason.value, hold.message, hold.until))
    for place in waiting - out.keys():
        # All its devices are where they shall be, so nothing holds them: it is the gate itself that cannot pass.
        if (own := _gate_of(live, *place)) is not None:
            out[place] = [own]
    return {place: tuple(held) for place, held in out.items()}


def _gate_of(live: Live, name: str, key: str) -> Held | None:
    """A gate that is failed or unresolved, as its own wave sees it."""
    assert live.state is not None
    roster = live.state.roster
    for number in roster.tracks:
        for wave in roster.waves:
            if wave.spec.name != name or wave.ask(number) < 0 or roster.key(number, wave.ask(number)) != key:
                continue
            judged = live.state.ground.gates[number].judged[wave.index]
            counts = f"{judged.healthy} of {judged.devices} devices healthy on it"
            counts += f" ({judged.failed} failed, {judged.offline} offline)"
            if judged.gate is Gate.UNRESOLVED:
                more = "too many are silent" if judged.offline else "none is left to judge by"
                return Held(Reason.GATE_UNRESOLVED.value, f"wave {name!r} has {counts}: {more}")
            if judged.gate is Gate.FAILED:
                return Held(Reason.GATE_FAILED.value, f"wave {name!r} has {counts}")
    return None
