"""Tells the forge how the rollout stands, beside the loop: the tick hands over what is to be shown and never waits.

One thread sends what differs from what it has sent; the latest word on a thing replaces an earlier one that did not get out.
A forge that does not answer is tried again with growing delays, its own wish honoured; a condition (`ForgeReady`) says so,
and nothing else depends on it. Nothing is kept: after a restart everything is sent once more, and the forge's adapter leaves out
what is there already. On one thing it speaks once a minute at most, and where the words changed and the state did not, once in two
hours, since a forge keeps a thousand statuses a commit. Called by the loop; made by `bootstrap`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from reconciler.controller.conditions import Finding, Type
from reconciler.controller.news import Notice, news_of
from reconciler.controller.pace import Backoff
from reconciler.model.plan import Plan
from reconciler.ports import Forge, PortError, TransientError

_EVERY_S = 60.0
_WORDS_EVERY_S = 7200.0
_REFUSED_S = 900.0
"""A refusal (a permission, a removed environment) is for a person to mend, outside of our sight: it is tried again now and then."""

Key = tuple[str, str | None, str | None]


class Herald:
    """Sends news to a forge. `tell` and `finding` are the loop's; both return at once. `stop` ends the thread.

    `environments`: the beginning of the deployments' names, None for none. `wake` lets the loop record a condition that changed.
    """

    def __init__(
        self,
        forge: Forge,
        log: Callable[..., object],
        *,
        environments: str | None,
        backoff: Backoff,
        wake: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._forge, self._log, self._environments = forge, log, environments
        self._backoff, self._wake, self._now, self._draw = backoff, wake, now, draw
        self._changed = threading.Condition()
        self._wanted: dict[Key, Notice] = {}
        self._last: set[Key] = set()
        self._sent: dict[Key, tuple[Notice, float]] = {}
        self._not_before: dict[Key, tuple[Notice, float]] = {}
        self._deployments: dict[tuple[str, str], int] = {}
        self._pause_until, self._failures = 0.0, 0
        self._down: TransientError | None = None
        """Why it does not answer: of the forge, whatever it was asked for, until something gets through."""
        self._refused: dict[Key, PortError] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._sending = False

    # ------------------------------------------------ the loop's side

    def tell(self, plan: Plan | None, refused: tuple[str, str] | None) -> None:
        """Show this from now on; no plan, where nothing is in force yet. `refused`: the branch's head that is not acted on,
        and why."""
        commit = plan.commit if plan is not None else None
        news = news_of(plan, refused, self._environments)
        keys = {notice.key for notice in news}
        with self._changed:
            for key in self._last - keys:
                self._supersede(key, commit)
            self._last = keys
            changed = False
            for notice in news:
                changed |= self._wanted.get(notice.key) != notice
                self._wanted[notice.key] = notice
            if changed and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="herald", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _supersede(self, key: Key, commit: str | None) -> None:
        """The last word on what is not followed any more; none where nothing was said, or what was said stays true."""
        before = self._wanted.pop(key, None)
        said = self._sent.get(key)
        last = before.superseded(commit) if before is not None and commit is not None and key[0] != commit else None
        if said is None or last is None:
            self._sent.pop(key, None)
            self._refused.pop(key, None)
            self._not_before.pop(key, None)
        else:
            self._wanted[key] = last

    def finding(self) -> Finding:
        """The condition `ForgeReady`."""
        with self._changed:
            if self._down is not None:
                return Finding(Type.FORGE_READY, False, "NotAnswering", str(self._down))
            if self._refused:
                return Finding(Type.FORGE_READY, False, "Refused", "; ".join(self._told()[:3]))
            return Finding(Type.FORGE_READY, True, "UpToDate", "the forge shows how the rollout stands, or soon will")

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent or has failed once; whether that was so in time. For a single pass."""
        until = self._now() + timeout_s
        with self._changed:
            while self._sending or self._next(self._now())[0] is not None:
                left = until - self._now()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.5))
            return True

    def stop(self, timeout_s: float) -> None:
        """Send nothing more. What was not sent is made again from the plan after a restart."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    # ------------------------------------------------ the thread's side

    def _work(self) -> None:
        while True:
            with self._changed:
                self._sending = False
                self._changed.notify_all()
                notice, due = self._next(self._now())
                while notice is None and not self._stopping:
                    self._changed.wait(None if due is None else max(0.0, due - self._now()))
                    notice, due = self._next(self._now())
                if self._stopping or notice is None:
                    return
                self._sending = True
            self._outcome(notice, self._send(notice))

    def _next(self, now: float) -> tuple[Notice | None, float | None]:
        """A notice to send now; else when there may be one (None: not before something changes)."""
        due: float | None = None
        for key, notice in self._wanted.items():
            at = self._due_at(key, notice)
            if at is None:
                continue
            if at <= now:
                return notice, None
            due = at if due is None else min(due, at)
        return None, due

    def _due_at(self, key: Key, notice: Notice) -> float | None:
        """When to send it; None where it was sent."""
        at = self._pause_until
        refused, not_before = self._not_before.get(key, (None, 0.0))
        if refused == notice:
            at = max(at, not_before)
        said, said_at = self._sent.get(key, (None, 0.0))
        if said == notice:
            return None
        if said is not None:
            at = max(at, said_at + (_WORDS_EVERY_S if said.state == notice.state else _EVERY_S))
        return at

    def _send(self, notice: Notice) -> PortError | None:
        """Send it; returns the error where it failed."""
        try:
            if notice.context is not None:
                self._forge.set_status(notice.sha, notice.context, notice.state, notice.description)
            else:
                environment = notice.environment or ""
                place = (notice.sha, environment)
                if place not in self._deployments:
                    self._deployments[place] = self._forge.deploy(*place, notice.description)
                self._forge.set_deployment(self._deployments[place], notice.state, notice.description)
            return None
        except PortError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a defect here must not end the thread, nor be silent
            return PortError(
                f"unexpected {type(error).__name__}", needed_for="the forge", remedy="this is a defect; see the log"
            )

    def _outcome(self, notice: Notice, error: PortError | None) -> None:
        with self._changed:
            now, before = self._now(), self._told()
            if error is None:
                self._failures, self._down = 0, None
                self._refused.pop(notice.key, None)
                self._not_before.pop(notice.key, None)
                self._sent[notice.key] = (notice, now)
                if notice.key not in self._last and self._wanted.get(notice.key) == notice:
                    # The last word on a commit that is not followed any more.
                    del self._wanted[notice.key], self._sent[notice.key]
                    self._deployments.pop((notice.sha, notice.environment or ""), None)
            elif isinstance(error, TransientError):
                self._down = error
                self._failures += 1
                self._pause_until = now + self._backoff.delay_s(self._failures, self._draw(), error.retry_after_s)
            else:
                # It answered, though not as we wish.
                self._failures, self._down = 0, None
                self._refused[notice.key] = error
                self._not_before[notice.key] = (notice, now + _REFUSED_S)
            changed = self._told() != before
        if changed:
            self._log("forge", **({"error": str(error)} if error is not None else {"answers": True}))
            self._wake()

    def _told(self) -> Sequence[str]:
        """What is wrong, in words."""
        return sorted({str(error) for error in self._refused.values()} | ({str(self._down)} if self._down else set()))


def not_configured() -> Finding:
    """The condition where there is no forge: nothing is missing."""
    return Finding(Type.FORGE_READY, True, "NotConfigured", "the settings name no forge")
