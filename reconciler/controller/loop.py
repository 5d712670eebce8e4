"""The loop: gather, plan, execute, record; then wait for the next instant at which the answer can differ.

One thread runs it. The server and the watchers only wake it. It owns no state that must survive: a loop that is killed at
any line and started again repeats or completes what the journal says. Started by `bootstrap`. Source: design §6.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from reconciler.controller.assign import ON_DEVICES, Artifacts, Assigner, Draft, marks, without
from reconciler.controller.boards import Boards
from reconciler.controller.chronicle import Chronicle
from reconciler.controller.conditions import MAX_MESSAGE, Conditions, Finding, Type, check_status
from reconciler.controller.execute import Executor
from reconciler.controller.gather import Gatherer, World
from reconciler.controller.herald import Herald, not_configured
from reconciler.controller.notify import Notifier
from reconciler.controller.notify import not_configured as nobody_told
from reconciler.controller.pulse import Pulse
from reconciler.controller.record import Log, Recorder
from reconciler.controller.settings import LoopSettings
from reconciler.model.observed import ArtifactState
from reconciler.model.plan import ActionKind, Plan
from reconciler.model.scalars import format_instant
from reconciler.planner.live import Live
from reconciler.ports import (
    AssignmentRow,
    AssignmentSigner,
    Clock,
    Doorbell,
    Intent,
    PortError,
    Store,
    TransientError,
)

SPIN = 20
"""Ticks in a row that may each leave more to do; then the loop waits for its gap. More would be a defect."""
_LEAST = timedelta(seconds=1)
_SHOWN = 2
_ROOM = 20
_EPOCHS_AHEAD = 1_000_000
"""A device that claims a serial further ahead lies: following it would use up the numbers."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop is made of; `bootstrap` puts it together."""

    clock: Clock
    store: Store
    gatherer: Gatherer
    live: Live
    executor: Executor
    assigner: Assigner
    recorder: Recorder
    signer: AssignmentSigner
    artifacts: Artifacts
    doorbell: Doorbell
    conditions: Conditions
    log: Log
    herald: Herald | None = None
    """Who tells the forge; None where there is none."""
    chronicle: Chronicle | None = None
    """Who tells what happened; None where nobody will ask."""
    notifier: Notifier | None = None
    """Who tells it to people's chats and services; None where nobody is told."""
    boards: Boards | None = None
    """Where every tick is put up for people; None where nobody looks."""
    pulse: Pulse = field(default_factory=Pulse)
    """Where the loop says how it is."""


class Loop:
    """Ticks until it is stopped. `stop` may be called from a signal handler or any thread."""

    def __init__(self, parts: Parts, settings: LoopSettings, *, debug: bool = False) -> None:
        self._parts, self._settings, self._debug = parts, settings, debug
        self._stopping = False
        self._signing_trouble: dict[str, str] = {}
        self._store_failures = 0
        self._compiled: object = None
        self.plan: Plan | None = None
        self.world: World | None = None

    def first_tick(self) -> None:
        """One tick before anybody is served. A store that does not answer is waited for in `run`."""
        with suppress(TransientError):
            self.tick()

    def run(self) -> None:
        """Tick until stopped. TerminalError: the store is not ours any more (fenced), or time has ended."""
        spins = 0
        while not self._stopping:
            started = self._parts.clock.now()
            try:
                more = self.tick()
            except TransientError as error:
                # The store does not answer: nothing can be written down, so nothing is done.
                self._wait_for_store(error)
                continue
            self._store_failures = 0
            if self._stopping:
                break
            spins = spins + 1 if more else 0
            if more and spins < SPIN:
                continue
            spins = 0
            self._parts.clock.wait(self.next_due(started, self.plan.wake_at if self.plan is not None else None))
            self._keep_apart(started)
        if self._parts.boards is not None:
            self._parts.boards.close()
        self._parts.log("stopped")

    def stop(self) -> None:
        """Finish the tick, and end `run`."""
        self._stopping = True
        self._parts.clock.wake()

    def tick(self) -> bool:
        """One pass. Returns whether it changed something that may let more be done at once."""
        with self._parts.pulse.tick():
            now = self._parts.clock.now()
            world = self._gather(now)
            plan = self._plan(world)
            changed = self._execute(world, plan)
            self._record(world, plan, now)
        return changed

    # ------------------------------------------------ gather

    def _gather(self, now: datetime) -> World | None:
        parts = self._parts
        for finished in parts.executor.collect():
            stalls = parts.recorder.outcome(finished, now)
            if stalls is not None:
                parts.executor.stall(finished.intent, stalls)
            if finished.intent.action.kind is ActionKind.SIGN:
                self._note_signing("releases", finished.error)
            parts.gatherer.stores_changed()
            parts.gatherer.facts_changed()
        world, findings = parts.gatherer.gather(now)
        if world is not None and self._settle(world):
            world, more = parts.gatherer.gather(now)
            findings += more
        self._set(findings, now)
        self.world = world
        if world is not None:
            self._follow_epochs(world)
        return world

    def _settle(self, world: World) -> bool:
        """Give an outcome to intents whose effect is there: what a kill between effect and outcome has left."""
        parts, settled = self._parts, False
        for intent in parts.store.open_intents():
            if not parts.executor.holds(intent) and parts.executor.is_done(intent.action, world):
                parts.recorder.done(intent, "found done", world.now)
                parts.gatherer.facts_changed()
                settled = True
        return settled

    def _follow_epochs(self, world: World) -> None:
        """After a restored backup devices know serials above ours, and would refuse every word: rise above them."""
        recorder = self._parts.recorder
        told = max((device.serial[0] for device in world.changed if device.serial is not None), default=0)
        if recorder.epoch < told <= recorder.epoch + _EPOCHS_AHEAD:
            recorder.epoch = self._parts.store.raise_epoch(told)
            self._parts.gatherer.epoch_raised(recorder.epoch)
            self._parts.log("epoch raised", epoch=recorder.epoch, reported=told)

    # ------------------------------------------------ plan

    def _plan(self, world: World | None) -> Plan | None:
        if world is None:
            self.plan = None
            return None
        shared = world.observed if world.news else None
        live, boards = self._parts.live, self._parts.boards
        with boards.planning(live) if boards is not None else nullcontext():
            self.plan = live.advance(world.desired, world.changed, shared, world.now)
        self._parts.gatherer.taken()
        if self._parts.live.desired is not self._compiled:
            self._compiled = self._parts.live.desired
            _keep_from_collector()
        return self.plan

    # ------------------------------------------------ execute

    def _execute(self, world: World | None, plan: Plan | None) -> bool:
        """Write down what is to be done, with what devices are told; then take what is due."""
        if world is None or plan is None:
            return False
        parts = self._parts
        drafts, rows = self._assignments(world, plan)
        told = {draft.device for draft in drafts}
        if parts.chronicle is not None:
            parts.chronicle.begin(parts.recorder.epoch, world, plan, parts.conditions)
        plan = without(plan, {a.fields["device"] or "" for a in plan.actions if a.kind in ON_DEVICES} - told)
        parts.executor.unstall(plan.actions)
        actions = [action for action in plan.actions if parts.executor.takes(action, world)]
        marked = [mark for draft in drafts if (mark := marks(draft, world)) is not None]
        # An action whose intent is open is in the plan until it is done, and is not written down again.
        open_keys = {intent.key for intent in parts.store.open_intents()}
        actions = [action for action in actions if action.key not in open_keys]
        changed = parts.recorder.decide(plan, actions, rows, marked)
        if changed:
            parts.assigner.told(drafts, world.now)
            parts.gatherer.facts_changed()
            parts.doorbell.ring(sorted(draft.device for draft in drafts if draft.target.acts))
        self._take_open(world, plan)
        return changed

    def _assignments(self, world: World, plan: Plan) -> tuple[tuple[Draft, ...], tuple[AssignmentRow, ...]]:
        """What devices are told, signed; nothing at all where the signature cannot be made."""
        parts = self._parts
        try:
            drafts = parts.assigner.drafts(world, plan, parts.live, parts.artifacts.target)
        except PortError as error:
            parts.log("no assignments", error=str(error))
            return (), ()
        if not drafts:
            return (), ()
        epoch = parts.recorder.epoch
        first = parts.store.next_serial(epoch, len(drafts))
        try:
            rows = parts.assigner.seal(drafts, epoch, first, world.now, parts.signer.sign_root)
        except PortError as error:
            self._note_signing("assignments", error)
            return (), ()
        self._note_signing("assignments", None)
        return drafts, rows

    def _take_open(self, world: World, plan: Plan) -> None:
        """Start every open intent that the plan asks for and whose time has come; close what nobody asks for."""
        parts, wanted = self._parts, {action.key for action in plan.actions}
        for intent in parts.store.open_intents():
            if parts.executor.holds(intent):
                continue
            if intent.key not in wanted:
                parts.recorder.superseded(intent, world.now)
            elif intent.not_before is None or intent.not_before <= world.now:
                parts.executor.start(intent, world, plan)

    # ------------------------------------------------ record

    def _record(self, world: World | None, plan: Plan | None, now: datetime) -> None:
        herald = self._parts.herald
        if herald is not None:
            herald.tell(plan, self._parts.gatherer.refused)
        self._set(self._own_findings(world, plan), now)
        self._parts.recorder.status(self._parts.conditions, plan, now)
        self._tell(world, plan, now)
        self._parts.recorder.tidy(now)
        if self._debug:
            self.check()

    def _tell(self, world: World | None, plan: Plan | None, now: datetime) -> None:
        """What happened and what is, once everything that is to be seen is on record."""
        parts = self._parts
        if parts.chronicle is not None:
            refused, epoch = parts.gatherer.refused, parts.recorder.epoch
            parts.chronicle.tell(epoch, world, plan, parts.conditions, refused, now, parts.live)
        if parts.boards is not None:
            parts.boards.publish(world, plan, parts.live, parts.conditions.rows(), parts.gatherer.refused, now)

    def _own_findings(self, world: World | None, plan: Plan | None) -> Iterable[Finding]:
        stalled, executor = self.stalled, self._parts.executor
        waiting = {} if world is None or plan is None else executor.waiting(plan, world.commit)
        if stalled:
            text = "; ".join(f"{key}: {error}" for key, error in sorted(stalled.items()))
            yield Finding(Type.STALLED, True, "NeedsAttention", text)
        else:
            yield Finding(Type.STALLED, False, "NothingStalled")
        if self._signing_trouble:
            text = "; ".join(f"{what}: {error}" for what, error in sorted(self._signing_trouble.items()))
            yield Finding(Type.SIGNING_READY, False, "CannotSign", text)
        elif waiting:
            yield Finding(Type.SIGNING_READY, False, "AwaitingSignature", _by_hand(waiting))
        elif plan is not None:
            yield Finding(Type.SIGNING_READY, True, "CanSign")
        yield not_configured() if self._parts.herald is None else self._parts.herald.finding()
        yield nobody_told() if self._parts.notifier is None else self._parts.notifier.finding()
        if world is None or plan is None:
            yield Finding(
                Type.PROGRESSING, False, "NothingKnown", "no commit is in force, or the image store is unknown"
            )
            return
        flying, held = self._parts.live.in_flight, self._parts.live.held
        # Neither what a person has to do nor what failed and waits for its next attempt is work that goes on.
        later = [i for i in self._parts.store.open_intents() if i.not_before is not None and i.not_before > world.now]
        actions = len(plan.actions) - len(waiting) - len(later)
        again = f"; {_later(later)}" if later else ""
        if actions > 0 or flying:
            said = f"; {executor.underway}" if executor.underway else ""
            yield Finding(
                Type.PROGRESSING,
                True,
                "AtWork",
                f"{_counted(actions, 'action')}, {_counted(flying, 'device')} in flight{said}{again}",
            )
        elif later:
            yield Finding(Type.PROGRESSING, False, "Retrying", again.removeprefix("; "))
        elif held or waiting:
            yield Finding(
                Type.PROGRESSING, False, "Held", f"{_counted(held, 'device')} {'is' if held == 1 else 'are'} held"
            )
        else:
            yield Finding(Type.PROGRESSING, False, "AllDone", "every device runs what it should")

    @property
    def stalled(self) -> dict[str, str]:
        """What needs attention: stalled actions, and artifacts that are broken."""
        out = dict(self._parts.executor.stalled)
        artifacts = {} if self.world is None else self.world.observed.artifacts
        for release, artifact in artifacts.items():
            if artifact.state is ArtifactState.BROKEN:
                out[f"image {release}"] = (
                    "the artifact in the image store is broken: its bytes are not what was published"
                )
        return out

    def check(self) -> None:
        """Raise StatusFault where the status contradicts itself."""
        parts = self._parts
        world = self.world
        check_status(
            parts.conditions.rows(),
            now=parts.clock.now(),
            commit=parts.store.last_good_commit(),
            open_intents=parts.store.open_intents(),
            stalled=self.stalled,
            devices=() if world is None else world.everyone(),
        )

    # ------------------------------------------------ waiting

    def next_due(self, started: datetime, wake_at: datetime | None) -> datetime:
        """The next instant at which a tick may find something to do, if nobody wakes the loop before. `wake_at` is when the
        plan may say something else."""
        parts, now = self._parts, self._parts.clock.now()
        instants = [started + timedelta(seconds=self._settings.interval)]
        instants.append(parts.gatherer.due_at() or now)
        if wake_at is not None:
            instants.append(wake_at)
        instants += [i.not_before for i in parts.store.open_intents() if i.not_before and not parts.executor.holds(i)]
        # Never at once: what is due now was just tried, and time must be able to pass.
        return max(min(instants), now + _LEAST)

    def _keep_apart(self, started: datetime) -> None:
        """A burst of reports is one tick's work: whoever wakes the loop meanwhile is heard by that tick."""
        until = started + timedelta(seconds=self._settings.gap)
        # Finished work and a merge are no burst: what follows from them is done at once.
        parts = self._parts
        while not (self._stopping or parts.executor.busy or parts.gatherer.rung) and parts.clock.now() < until:
            parts.clock.wait(until)

    def _wait_for_store(self, error: TransientError) -> None:
        self._store_failures += 1
        delay = min(60.0, max(error.retry_after_s or 0.0, 0.5 * 2.0 ** min(self._store_failures, 7)))
        self._parts.log("store unreachable", error=str(error), delay_s=round(delay, 1))
        # Real time: the store is a real system, also where the loop's own time is stepped.
        time.sleep(min(delay, 5.0))

    def _set(self, findings: Iterable[Finding], now: datetime) -> None:
        for finding in findings:
            self._parts.conditions.set(finding, now)

    def _note_signing(self, what: str, error: PortError | None) -> None:
        if error is None:
            self._signing_trouble.pop(what, None)
        else:
            self._signing_trouble[what] = str(error)


def _by_hand(waiting: Mapping[str, str]) -> str:
    """Releases and the commands that sign them: as many whole commands as a message holds."""
    lines = [f"{release} is built and waits for its signature; run: {command}" for release, command in waiting.items()]
    shown = 1
    while shown < len(lines) and len("; ".join(lines[: shown + 1])) < MAX_MESSAGE - _ROOM:
        shown += 1
    more = f"; and {len(lines) - shown} more" if shown < len(lines) else ""
    return "; ".join(lines[:shown]) + more


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _later(intents: Sequence[Intent]) -> str:
    """What failed for now, and when it is tried again."""
    return "; ".join(
        f"{intent.key} failed ({intent.last_error}), tried {intent.attempts} times, again at "
        f"{format_instant(intent.not_before or intent.created_at)}"
        for intent in intents[:_SHOWN]
    ) + (f"; and {len(intents) - _SHOWN} more" if len(intents) > _SHOWN else "")


def _keep_from_collector() -> None:
    """A commit's documents and rows live until the next commit: the collector need not walk millions of them at every turn."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
