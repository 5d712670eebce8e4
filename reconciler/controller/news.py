"""What the forge is to show of a rollout: a commit's status, and the deployment of each wave. Pure.

Follows from the commit in force and the plan alone, so that a controller that has just started says the same again. The words
are coarse on purpose (tenths of a wave, not devices): a forge keeps a thousand statuses a commit and name, and a rollout takes
weeks. Called by the loop; sent by `herald`. Source: contract, "Plan", wave states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reconciler.model.plan import Plan, WaveState, WaveStatus
from reconciler.model.scalars import format_instant

CONTEXT = "reconciler/rollout"
_OPEN = ("pending", "queued", "in_progress")
_DEPLOYED = {
    WaveState.WAITING: "queued",
    WaveState.PAUSED: "queued",
    WaveState.ROLLING: "in_progress",
    WaveState.SOAKING: "in_progress",
    WaveState.UNRESOLVED: "in_progress",
    WaveState.ROLLING_BACK: "in_progress",
    WaveState.FAILED: "failure",
    WaveState.COMPLETE: "success",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to be shown at a commit: the status named `context`, or the deployment to `environment` (the other is None)."""

    sha: str
    context: str | None
    environment: str | None
    state: str
    description: str

    @property
    def key(self) -> tuple[str, str | None, str | None]:
        """What it is about: a later notice with the same key takes its place."""
        return self.sha, self.context, self.environment

    def superseded(self, by: str) -> Notice | None:
        """What to show once another commit is in force; None where what is shown stays true."""
        if self.state not in _OPEN:
            return None
        # A status stays pending: neither did the rollout succeed, nor did it fail. It is followed at the newer commit.
        state = self.state if self.environment is None else "inactive"
        return replace(self, state=state, description=f"superseded by {by[:12]}, which is followed instead")


def news_of(plan: Plan | None, refused: tuple[str, str] | None, environments: str | None) -> tuple[Notice, ...]:
    """What is to be shown now. `refused` is the branch's head that is not acted on, and why; `environments` the beginning of
    their names, None for no deployments. Nothing before a commit is in force."""
    found: list[Notice] = []
    if refused is not None:
        found.append(Notice(refused[0], CONTEXT, None, "failure", f"not acted on: {refused[1]}"))
    sha = plan.commit if plan is not None else None
    if plan is None or sha is None:
        return tuple(found)
    waves = tuple(plan.waves)
    state, description = _status(waves)
    found.append(Notice(sha, CONTEXT, None, state, description))
    if environments is not None:
        for wave in waves:
            shown = _DEPLOYED.get(_worst(wave))
            if shown is not None:
                found.append(Notice(sha, None, f"{environments}/{wave.name}", shown, _wave(wave)))
    return tuple(found)


def _status(waves: Sequence[WaveStatus]) -> tuple[str, str]:
    """The whole rollout's state and words: the first wave that is not done is what everybody waits for."""
    states = [_worst(wave) for wave in waves]
    for wave, state in zip(waves, states, strict=True):
        if state is WaveState.FAILED:
            return "failure", f"{wave.name}: {_wave(wave)}"
    done = sum(state in (WaveState.COMPLETE, WaveState.IDLE) for state in states)
    going = next(
        (wave for wave, s in zip(waves, states, strict=True) if s not in (WaveState.COMPLETE, WaveState.IDLE)), None
    )
    if going is not None:
        return "pending", f"{done} of {len(waves)} waves complete; {going.name}: {_wave(going)}"
    # What is left at single devices (a pin, a configuration) comes and goes, and is no part of the rollout.
    return "success", f"all {len(waves)} waves are complete"


def _worst(wave: WaveStatus) -> WaveState:
    """A wave's state over its image and its apps: the one that keeps it from being done."""
    states = [wave.state, *(app.state for app in wave.apps.values())]
    order = (
        WaveState.FAILED, WaveState.ROLLING_BACK, WaveState.UNRESOLVED, WaveState.ROLLING, WaveState.SOAKING,
        WaveState.PAUSED, WaveState.WAITING, WaveState.COMPLETE,
    )  # fmt: skip
    return next((state for state in order if state in states), WaveState.IDLE)


def _wave(wave: WaveStatus) -> str:
    """Where a wave stands, in a few words that change seldom."""
    state = _worst(wave)
    release, on, soak = wave.image or "", wave.on_release, wave.soak_ends_at
    if wave.state is not state:
        name, app = next((name, app) for name, app in sorted(wave.apps.items()) if app.state is state)
        release, on, soak = f"{name} {app.release}", app.on_release, app.soak_ends_at
    if state is WaveState.FAILED:
        return f"the gate failed for {release}"
    if state is WaveState.COMPLETE:
        return f"{release} has soaked" if release else "complete"
    if state is WaveState.SOAKING:
        return f"{release} soaks" + (f" until {format_instant(soak)}" if soak is not None else "")
    if state is WaveState.UNRESOLVED:
        return f"the gate for {release} cannot be judged: too many devices are silent"
    if state in (WaveState.WAITING, WaveState.PAUSED):
        return f"{release} {'waits for an earlier wave' if state is WaveState.WAITING else 'is paused'}"
    part = 10 * (10 * on // wave.devices) if wave.devices else 0
    return (
        f"{release} {'goes back' if state is WaveState.ROLLING_BACK else 'rolls out'}, {part} % of the devices run it"
    )
