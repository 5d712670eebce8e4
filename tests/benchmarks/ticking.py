"""What a tick costs: the loop itself on a real store, 100 changed reports a tick, at a million devices and at a thousand.

Gather, plan, execute, record, as `reconciler run` does them. Git, image store, registry and secrets are quiet, as they are in
most ticks; the store is SQLite on disk with every device in it. Both loops take turns in one process.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import insert

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.adapters.sql_schema import counters, observations
from reconciler.controller.assign import Artifacts, Assigner
from reconciler.controller.boards import Boards
from reconciler.controller.chronicle import Chronicle
from reconciler.controller.conditions import Conditions, Finding
from reconciler.controller.execute import Executor, Hands
from reconciler.controller.gather import Gatherer, Polls
from reconciler.controller.jobs import Jobs
from reconciler.controller.loop import Loop, Parts
from reconciler.controller.pace import Backoff, Poll
from reconciler.controller.record import Recorder
from reconciler.controller.settings import LoopSettings
from reconciler.model.desired import Desired
from reconciler.model.observed import Artifact, DeviceObservation
from reconciler.planner.live import Live
from reconciler.planner.windows import instant
from tests.benchmarks.planning import DAY, NOW, fleet

REPORTS = 100
ROUNDS = 30
_PAGE = 20_000


class Quiet:
    """Every outside system in one: nothing moves in it."""

    refused: tuple[str, str] | None = None

    def __init__(self, desired: Desired) -> None:
        self.desired, self.poll = desired, Poll(10**9, Backoff(1, 1))

    def restore(self) -> list[Finding]:
        return []

    def refresh(self, now: datetime, draw: float) -> list[Finding]:
        self.poll.answered(now, draw)
        return []

    def artifacts(self) -> Mapping[str, Artifact]:
        return {name: Artifact.model_validate({"state": "published"}) for name in ("v1.4.1", "v1.4.2")}

    def tags(self, repository: str) -> Mapping[str, str]:
        return {}

    def versions(self, references: Any) -> Mapping[str, str]:
        return {}

    def ring(self, devices: Sequence[str]) -> Mapping[str, str]:
        return {}

    def sign_root(self, root: bytes) -> bytes:
        return b"signature"

    def folder(self, release: str) -> str | None:
        return None


class Clock:
    """Moves a second a tick."""

    at = instant(NOW)

    def now(self) -> datetime:
        return self.at

    def wait(self, until: datetime | None) -> bool:
        return False

    def wake(self) -> None:
        pass


class Bench:
    """A loop over a store that holds a whole fleet mid-soak: everyone reports, most are held by a wave before theirs."""

    def __init__(self, folder: Path, devices: int, *, watched: bool = True) -> None:
        self.roster, self.clock = fleet(devices), Clock()
        self.store = open_store(folder / "store.db")
        self._fill(self.store)
        self.random, self.sequence = random.Random(1), 0
        quiet: Any = Quiet(self.roster.desired)
        log, rng, backoff = (lambda *_, **__: None), random.Random(2), Backoff(5, 900)
        polls = Polls(*(Poll(10**9, backoff) for _ in range(3)))
        jobs = Jobs(threading.Event().set, nullcontext, inline=True)
        self.boards = Boards(self.store)
        parts = Parts(
            clock=self.clock,
            store=self.store,
            gatherer=Gatherer(quiet, self.store, quiet, quiet, quiet, polls, rng),
            live=Live(),
            executor=Executor(Hands(quiet, quiet, quiet, quiet, quiet, folder, quiet), jobs),
            assigner=Assigner(self.store, valid_s=172800, nights=2),
            recorder=Recorder(self.store, self.store.begin_epoch(), backoff, rng, log),
            signer=quiet,
            artifacts=Artifacts(quiet),
            doorbell=quiet,
            conditions=Conditions((), self.clock.now(), log),
            log=log,
            chronicle=Chronicle(self.store, log) if watched else None,
            boards=self.boards if watched else None,
        )
        self.loop = Loop(parts, LoopSettings())
        self.live = parts.live
        for _ in range(4):
            self.loop.tick()

    def _seen(self, row: int) -> DeviceObservation:
        roster, canary = self.roster, row in self.canaries
        since = instant(NOW - (DAY // 2 if canary else 30 * DAY))
        return DeviceObservation.model_validate(
            {
                "name": roster.device_names[row],
                "site": roster.site_names[roster.site_of[row]],
                "image": "v1.4.2" if canary else "v1.4.1",
                "imageSince": since,
                "previousImage": "v1.4.1" if canary else None,
                "health": "ok",
                "healthSince": since,
                "lastSeen": self.clock.at,
            }
        )

    @property
    def canaries(self) -> frozenset[int]:
        names = {f"S{site}-{number}" for site in (0, 1) for number in (1, 2)}
        return frozenset(self.roster.row_of[name] for name in names)

    def _fill(self, store: SqlStore) -> None:
        """Every device's row, as `observe` would have written it."""
        canaries = self.canaries
        plain = self._seen(next(row for row in range(self.roster.size) if row not in canaries))
        pattern = plain.model_dump_json(by_alias=True, exclude_defaults=True)
        name, site = plain.name, plain.site or ""
        with store.engine.begin() as connection:
            for first in range(0, self.roster.size, _PAGE):
                rows = []
                for row in range(first, min(first + _PAGE, self.roster.size)):
                    device = self.roster.device_names[row]
                    here = self.roster.site_names[self.roster.site_of[row]]
                    document = pattern.replace(f'"{name}"', f'"{device}"').replace(f'"{site}"', f'"{here}"')
                    if row in canaries:
                        document = self._seen(row).model_dump_json(by_alias=True, exclude_defaults=True)
                    rows.append(
                        {
                            "device": device,
                            "document": document,
                            "boot_id": "b",
                            "sequence": 0,
                            "boots": "[]",
                            "change": row + 1,
                        }
                    )
                connection.execute(insert(observations), rows)
            connection.execute(counters.update().where(counters.c.name == "change").values(value=self.roster.size))

    def tick(self) -> float:
        """100 devices report; the time of the tick that follows. Recording the reports is the server's work, not the tick's."""
        self.clock.at += timedelta(seconds=1)
        rows = self.random.sample(range(self.roster.size), REPORTS)
        self.sequence += 1
        seen = [self._seen(row) for row in rows]
        self.store.observe(seen, sequences={device.name: ("b", self.sequence) for device in seen})
        start = time.perf_counter()
        self.loop.tick()
        took = time.perf_counter() - start
        looked = self.live.looked
        assert looked is not None and len(looked) >= REPORTS, "a quiet tick looked at the whole fleet"
        return took


def measure(large: int = 1_000_000, small: int = 1_000) -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours in s, yardstick, its s, bar): the tick at `large` over the tick at `small`."""
    with tempfile.TemporaryDirectory() as folder:
        benches = []
        for devices in (small, large):
            place = Path(folder) / str(devices)
            place.mkdir()
            benches.append(Bench(place, devices))
        for bench in benches:
            for _ in range(3):
                bench.tick()
        pairs = [(benches[0].tick(), benches[1].tick()) for _ in range(ROUNDS)]
        for bench in benches:
            bench.store.close()
    first, second = median(pair[1] for pair in pairs), median(pair[0] for pair in pairs)
    yield f"tick with {REPORTS} changed reports, {large:,} devices", first, f"the same, {small:,} devices", second, 1.5


if __name__ == "__main__":
    for row in measure():
        print(row, row[1] / row[3])
