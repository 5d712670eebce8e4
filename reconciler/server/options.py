"""What the HTTP service is given: its limits, and the few things that it needs of the rest of the program.

Decides nothing; filled in by `controller.bootstrap` (or by a test) and handed to `create_app`. Callables are called
from worker threads and may block; what they raise as a `PortError` becomes an answer with its remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from reconciler.controller.boards import Boards
from reconciler.controller.pulse import Pulse
from reconciler.controller.reports import Sources
from reconciler.model.observed import Snapshot
from reconciler.ports import Commit, Export, ImageStore, Store
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.exchange import SiteConfig
from reconciler.server.foreseen import Foresee
from reconciler.server.ports import AccessStore
from reconciler.server.tokens import FileToken


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
    stream_clients: int = 1000
    """Who may listen to the stream of events at once."""


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """How long a browser stays logged in: unused, and at all."""

    idle_s: float = 12 * 3600.0
    longest_s: float = 7 * 86400.0


def _real_time() -> datetime:
    return datetime.now(UTC)


def _nowhere(_assignment: Assignment) -> Sources:
    return Sources()


def _no_config(_device: str) -> SiteConfig | None:
    return None


class Intent(Protocol):
    """Something that a commit changed in the desired state."""

    @property
    def sentence(self) -> str:
        """For people: `wave canary: image v1.4.1 → v1.4.2`."""

    def to_dict(self) -> dict[str, Any]:
        """`kind`, `name`, `what`, `field`, `from`, `to`, `file`, `line`."""


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that `create_app` needs.

    `config` renders the files of a device's own site, secrets resolved in memory, or None where git knows no such
    device; `sources` gives the addresses for an assignment; `artifact` finds a file of the directory image store
    (TerminalError: absent), None where artifacts are served elsewhere; `access` keeps operators' tokens, sessions and
    the audit log, `operators` are tokens that stand in a file; `wall` is real time, by which tokens and sessions expire,
    also where the loop's time is stepped; `export` and `stores` are what the snapshot is made of: everything recorded,
    and what the loop last saw in the stores (None: nothing yet); `local` says that this machine alone reaches the
    service, so that pages and metrics ask for no token; `public_url` is the address under which browsers know it, where
    that is not its own; `not_ready` names what keeps the service from being ready, nothing if it is; `reported` is told
    after reports were recorded, so that the loop wakes; `boards` and `pulse` are what the loop last left for people, and what
    it says of its own work; `notified` counts attempts to notify, by target and what came of them; `images`, `signed_by`
    (release, SHA256SUMS, signature → fingerprint; TerminalError: refused) and `commit` are what a release and a commit are
    looked up by; `changed` gives the paths that differ between two commits, `asked` what the second of them asked for (None: not
    known); `foresee` makes a forecast (None: none is shown).
    """

    store: Store
    now: Callable[[], datetime]
    access: AccessStore
    policy: Callable[[], Policy] = Policy
    sources: Callable[[Assignment], Sources] = _nowhere
    config: Callable[[str], SiteConfig | None] = _no_config
    artifact: Callable[[str, str], Path] | None = None
    operators: Callable[[], Sequence[FileToken]] = tuple
    wall: Callable[[], datetime] = _real_time
    sessions: SessionTimes = SessionTimes()
    audit_kept_s: float = 365 * 86400.0
    export: Callable[[], AbstractContextManager[Export]] | None = None
    stores: Callable[[], Snapshot | None] = lambda: None
    local: bool = False
    public_url: str | None = None
    not_ready: Callable[[], Sequence[str]] = tuple
    reported: Callable[[], None] = lambda: None
    tls: bool = False
    boards: Boards | None = None
    images: ImageStore | None = None
    signed_by: Callable[[str, bytes, bytes], str] | None = None
    commit: Callable[[str], Commit] | None = None
    changed: Callable[[str, str], Mapping[str, object | None]] | None = None
    asked: Callable[[str, str], Sequence[Intent] | None] | None = None
    foresee: Foresee | None = None
    pulse: Pulse | None = None
    notified: Callable[[], Mapping[tuple[str, str], int]] = dict
    limits: Limits = Limits()

    @property
    def secure(self) -> bool:
        """Whether browsers reach the service by TLS: its own, or that of a proxy before it."""
        return self.tls or (self.public_url or "").startswith("https://")
