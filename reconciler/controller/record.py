"""What the loop writes to the store, and the one line it logs for each. The last step of a tick, and the first of its effects.

Decides nothing. Facts, intents, assignments and the marks of devices in flight are one transaction: after a kill either all
of a decision stands or none of it. An outcome is written after its effect; with a moved tag, what it was moved to.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from reconciler.controller.assign import ON_DEVICES
from reconciler.controller.conditions import Conditions
from reconciler.controller.jobs import Finished
from reconciler.controller.pace import Backoff
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import Action, ActionKind, Facts, Plan
from reconciler.ports import AssignmentRow, ConditionRow, Decision, Intent, Store, TerminalError, TransientError

Log = Callable[..., object]

JOURNAL_KEPT_S = 90 * 86400
_TIDY_EVERY = timedelta(hours=1)
_LONG_S = 0.05
_SELDOM = 20


class Recorder:
    """Writes decisions and outcomes under the writer's epoch. Errors of the store pass through: without it there is no loop."""

    def __init__(
        self,
        store: Store,
        epoch: int,
        backoff: Backoff,
        rng: random.Random,
        log: Log,
        *,
        journal_kept: float = JOURNAL_KEPT_S,
    ) -> None:
        self.epoch = epoch
        self._kept = timedelta(seconds=journal_kept)
        self._tidied: datetime | None = None
        self._store, self._backoff, self._random, self._log = store, backoff, rng, log
        self._conditions: tuple[ConditionRow, ...] = ()
        self._plan = ""
        self._next_text = 0.0

    def decide(
        self,
        plan: Plan,
        actions: Sequence[Action],
        assignments: Sequence[AssignmentRow],
        marks: Sequence[DeviceObservation],
    ) -> bool:
        """Write a decision down, if there is any; returns whether there was.

        Actions on devices are done with that: their effect is the assignment, which stands in the same transaction.
        """
        if not (actions or assignments or marks or _any(plan.facts)):
            return False
        decision = Decision(
            at=plan.at,
            commit=plan.commit,
            facts=plan.facts,
            actions=tuple(actions),
            assignments=tuple(assignments),
            observations=tuple(marks),
        )
        serials = {row.device: f"{row.epoch}.{row.n}" for row in assignments}
        with self._store.transaction():
            new = self._store.record(self.epoch, decision)
            for intent in new:
                if intent.action.kind in ON_DEVICES:
                    serial = serials.get(intent.action.fields["device"] or "", "")
                    self._store.finish(self.epoch, intent, "done", f"assignment {serial}", plan.at)
        self.tell(plan, new)
        return True

    def outcome(self, finished: Finished, now: datetime) -> TerminalError | None:
        """Write how an action ended; returns the error where it stalls it."""
        intent, error = finished.intent, finished.error
        if isinstance(error, TransientError):
            delay = self._backoff.delay_s(intent.attempts + 1, self._random.random(), error.retry_after_s)
            self._store.retry(self.epoch, intent, str(error), now + timedelta(seconds=delay))
            self._log("retry", action=intent.key, attempts=intent.attempts + 1, delay_s=round(delay), error=str(error))
            return None
        if error is not None:
            stalls = error if isinstance(error, TerminalError) else TerminalError(str(error))
            self._store.finish(self.epoch, intent, "failed", str(error), now)
            self._log("stalled", action=intent.key, error=str(error))
            return stalls
        self.done(intent, finished.detail, now)
        return None

    def done(self, intent: Intent, detail: str, now: datetime) -> None:
        """Write that an action is done. What a tag was set to is known from then on: elsewhere it has drifted."""
        fields = intent.action.fields
        with self._store.transaction():
            if intent.action.kind is ActionKind.RETAG:
                moved: Mapping[str, Mapping[str, str | None]] = {
                    fields["app"] or "": {fields["tag"] or "": fields["to"]}
                }
                self._store.record(self.epoch, Decision(at=now, commit=intent.commit, facts=Facts(), tags_set=moved))
            self._store.finish(self.epoch, intent, "done", detail, now)
        self._log("done", action=intent.key, detail=detail)

    def superseded(self, intent: Intent, now: datetime) -> None:
        """Close an intent that nobody asks for any more."""
        self._store.finish(self.epoch, intent, "failed", "superseded: the plan no longer asks for it", now)
        self._log("superseded", action=intent.key)

    def tidy(self, now: datetime) -> None:
        """Drop what was finished long ago from the journal, at most once an hour: it grows with every action."""
        if self._tidied is not None and timedelta(0) <= now - self._tidied < _TIDY_EVERY:
            return
        dropped = self._store.prune_journal(self.epoch, now - self._kept)
        self._tidied = now
        if dropped:
            self._log("journal pruned", intents=dropped)

    def status(self, conditions: Conditions, plan: Plan | None, now: datetime) -> None:
        """Keep conditions and plan for whoever asks, where they have changed."""
        rows = conditions.rows()
        text = self._text_of(plan)
        same_plan = plan is None or _without_instant(text) == _without_instant(self._plan)
        if rows == self._conditions and same_plan:
            return
        with self._store.transaction():
            if rows != self._conditions:
                decision = Decision(at=now, commit=None, facts=Facts(), conditions=rows)
                self._store.record(self.epoch, decision)
            if not same_plan:
                self._store.save_plan(self.epoch, text)
        self._conditions, self._plan = rows, text

    def _text_of(self, plan: Plan | None) -> str:
        """The plan's JSON. Of a large fleet it takes long to write, and is written only as often as that it stays a small part
        of the loop's time; a later tick writes what this one leaves out.
        """
        started = time.monotonic()
        if plan is None or started < self._next_text:
            return self._plan
        # Its work, and not how long the machine held it up: else what a small fleet's loop decided stayed unseen for that.
        before = time.thread_time()
        text = plan.to_json()
        took = time.thread_time() - before
        self._next_text = started + (_SELDOM * took if took > _LONG_S else 0)
        return text

    def tell(self, plan: Plan, new: Sequence[Intent]) -> None:
        """Log a decision that was written: its facts, and the actions that are new."""
        facts = plan.facts
        for proof in facts.proofs:
            self._log("proof", wave=proof.wave, release=proof.key)
        for failure in facts.failures:
            self._log("gate failed", wave=failure.wave, release=failure.key)
        for release, waves in sorted(facts.members.items()):
            for wave, sites in sorted(waves.items()):
                self._log("taken", wave=wave, release=release, sites=len(sites))
        for release in facts.closed:
            self._log("closed", release=release)
        for late in facts.timeouts:
            self._log("timed out", device=late.device, release=late.key)
        for rescue in facts.rescues:
            self._log("rescue", device=rescue.device, release=rescue.key)
        for intent in new:
            self._log(
                "action", action=intent.key, why=intent.action.fields.get("why"), commit=(intent.commit or "")[:12]
            )


def _any(facts: Facts) -> bool:
    return bool(facts.proofs or facts.failures or facts.members or facts.closed or facts.timeouts or facts.rescues)


def _without_instant(text: str) -> str:
    """A plan's JSON without its `at`, which differs every time."""
    head, _, rest = text.partition('"at": ')
    return head + rest.partition("\n")[2]
