"""What the HTTP service is given: its limits, and the few things that it needs of the rest of the program.

Decides nothing; filled in by `controller.bootstrap` (or by a test) and handed to `create_app`. Callables are called
from worker threads and may block; what they raise as a `PortError` becomes an answer with its remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from reconciler.controller.reports import Sources
from reconciler.model.observed import Snapshot
from reconciler.ports import Export, Store
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.exchange import SiteConfig


@dataclass(frozen=True, slots=True)
class Policy:
    """What the fleet repo says about reporting: the interval asked of devices, and the silence that makes them
    stale."""

    report_every_s: int = 60
    stale_after_s: int = 900


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates are requests a second, each with the burst that a quiet caller has saved up."""

    body_bytes: int = 256 * 1024
    body_timeout_s: float = 20.0
    per_device: tuple[float, int] = (5.0, 60)
    per_address: tuple[float, int] = (500.0, 3000)
    """A site, or a whole region behind one address translator, reports from one address."""
    refused_per_address: tuple[float, int] = (0.5, 30)
    """Requests without a valid token: room for a mistyped one, none for guessing."""
    batch: int = 100
    queue: int = 5000
    """Reports waiting to be recorded before new ones are asked to come again."""


def _nowhere(_assignment: Assignment) -> Sources:
    return Sources()


def _no_config(_device: str) -> SiteConfig | None:
    return None


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that `create_app` needs.

    `config` renders the files of a device's own site, secrets resolved in memory, or None where git knows no such
    device; `sources` gives the addresses for an assignment; `artifact` finds a file of the directory image store
    (TerminalError: absent), None where artifacts are served elsewhere; `operators` are the sha256 hashes of the
    tokens that may read everything that operators read, `readers` those that may read plan, status and the observed
    snapshot alone; `export` and `stores` are what the snapshot is made of: everything recorded, and what the loop last saw
    in the stores (None: nothing yet); `metrics_open` lets anybody who reaches the service read the
    metrics; `not_ready` names what keeps the service from being ready, nothing if it is; `reported` is told after
    reports were recorded, so that the loop wakes.
    """

    store: Store
    now: Callable[[], datetime]
    policy: Callable[[], Policy] = Policy
    sources: Callable[[Assignment], Sources] = _nowhere
    config: Callable[[str], SiteConfig | None] = _no_config
    artifact: Callable[[str, str], Path] | None = None
    operators: Callable[[], frozenset[str]] = frozenset
    readers: Callable[[], frozenset[str]] = frozenset
    export: Callable[[], AbstractContextManager[Export]] | None = None
    stores: Callable[[], Snapshot | None] = lambda: None
    metrics_open: bool = False
    not_ready: Callable[[], Sequence[str]] = tuple
    reported: Callable[[], None] = lambda: None
    tls: bool = False
    limits: Limits = Limits()
