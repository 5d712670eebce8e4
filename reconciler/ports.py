"""What the loop needs of the world, as Protocols, with the errors each may raise. Imports the model alone.

Every port has a real adapter and a local twin in `reconciler.adapters`, held to one contract suite (`tests/adapters/`).
Adapters translate every foreign error into `TransientError` or `TerminalError`; no `ClientError`, no git object and no SQL row
crosses a port. Names, values and instants in the arguments are plain text, bytes, and aware UTC datetimes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from reconciler.model.desired import ImageSpec
from reconciler.model.history import LineOrigin, PastFile
from reconciler.model.observed import Artifact, DeviceObservation, Holding, Snapshot
from reconciler.model.plan import Action, Facts
from reconciler.ports_events import EventLog


class PortError(Exception):
    """A step could not be taken. Three slots: what is wrong, for what it was needed, what to do."""

    def __init__(self, wrong: str, *, needed_for: str = "", remedy: str = "") -> None:
        self.wrong, self.needed_for, self.remedy = wrong, needed_for, remedy
        parts = [wrong, f"needed for {needed_for}" if needed_for else "", remedy]
        super().__init__("; ".join(part for part in parts if part))


class TransientError(PortError):
    """May go away by itself: retried with backoff. `retry_after_s` is the system's own wish, if it gave one."""

    def __init__(
        self, wrong: str, *, needed_for: str = "", remedy: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(wrong, needed_for=needed_for, remedy=remedy)
        self.retry_after_s = retry_after_s


class TerminalError(PortError):
    """Will not go away by itself: stalls what needed it until the input changes, and raises a condition."""


class Clock(Protocol):
    """Time. Production uses the system's clock, the demo a stepped one, tests a hand-held one."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""

    def wait(self, until: datetime | None) -> bool:
        """Return True once `wake` was called, False once `until` is reached (None: wait for `wake` alone)."""

    def wake(self) -> None:
        """End a `wait` in progress, or the next one at once. Safe from any thread."""


# ---------------------------------------------------------------- git


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit as the loop needs it. `signer` is the 40-hex fingerprint of a valid signature's primary key, or None.
    `parents` are the hashes of its parents, the branch's own line first."""

    sha: str
    author: str
    message: str
    committed_at: datetime
    signer: str | None = None
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A file of a commit's tree: its path, the hash of its bytes, and its git mode (`100644`, `120000` for a symlink)."""

    path: str
    blob: str
    mode: str
    size: int | None = None


class GitSource(Protocol):
    """A fleet repo's branch, mirrored bare. Loading executes nothing that the repo holds."""

    def refresh(self) -> Commit:
        """Fetch and return the branch's head. TransientError: unreachable. TerminalError: no such repo or branch."""

    def commit(self, sha: str) -> Commit:
        """A commit by hash. TerminalError: unknown."""

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Whether `descendant` follows from `ancestor` without a rewrite."""

    def files(self, sha: str) -> Sequence[TreeEntry]:
        """Every entry of the commit's tree, sorted by path."""

    def changed(self, old: str, new: str) -> Mapping[str, TreeEntry | None]:
        """Paths that differ between two commits → the new entry, None where removed. Costs what changed, not the tree."""

    def blob(self, blob: str) -> bytes:
        """The bytes of a blob by hash."""

    def export(self, sha: str, folder: str, to: Path) -> None:
        """Write a folder of a commit's tree below `to` (regular files only), for a builder. TerminalError: no such folder."""

    def propose_revert(self, branch: str, of: str, title: str, evidence: str) -> str:
        """Push `branch` with a revert of what commit `of` changed and the evidence in its message; returns the new commit.

        Idempotent: a branch that exists already is left alone and its commit returned. Never touches the main branch.
        TransientError: not pushed. TerminalError: the revert does not apply.
        """


class LineHistory(Protocol):
    """Who wrote which line of a fleet repo's files. TransientError, TerminalError: git does not tell."""

    def lines(self, file: str | PastFile, numbers: Sequence[int]) -> Mapping[int, LineOrigin]:
        """Line numbers (from 1) of a file → where they come from. A bare path is that of the file as it is read now."""

    def text(self, file: PastFile) -> bytes:
        """The file's bytes as the commit has them."""


# ---------------------------------------------------------------- stores of releases, apps, secrets; the doorbell


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of an artifact: its name, size in bytes and sha256 (64 hex digits)."""

    name: str
    size: int
    sha256: str


UploadProgress = Callable[[str, int, int], None]
"""Called with a file's name, how many of its bytes the store has taken, and how many there are; from any thread."""


class ImageStore(Protocol):
    """Artifacts of image releases: folders named FAMILY-RELEASE-YYYYMMDD with SHA256SUMS, SHA256SUMS.gpg, manifest.json."""

    def artifacts(self) -> Mapping[str, Artifact]:
        """Release → state and digest, of every release in the store. One listing and the index, not one call a release."""

    def stage(self, release: str, name: str, files: Sequence[Path], progress: UploadProgress | None = None) -> None:
        """Put built files (manifest.json and SHA256SUMS among them) under folder `name`: state `built`. Idempotent.

        TerminalError: the folder holds other bytes under one of these names, or the release was published with another image,
        also where that was removed since. TransientError: the release is being removed.
        """

    def attach_signature(self, release: str, signature: bytes) -> None:
        """Put SHA256SUMS.gpg: state `signed`."""

    def publish(self, release: str) -> None:
        """Read everything back, compare with SHA256SUMS, then add the release to the index, last and atomically.

        A published release is immutable. TerminalError: bytes do not match (the release becomes `broken`).
        """

    def read(self, release: str, name: str) -> bytes:
        """A small file of an artifact (manifest.json, SHA256SUMS, SHA256SUMS.gpg). TerminalError: absent."""

    def download(self, release: str, name: str, to: Path) -> ArtifactFile:
        """Copy one file of an artifact to `to`, hashing as it goes."""

    def folder(self, release: str) -> str | None:
        """The folder's name of a release, or None."""

    def url(self, release: str, name: str, expires_s: int = 3600) -> str:
        """An address from which a device can fetch the file without a credential of its own."""

    def holdings(self) -> Sequence[Holding]:
        """Everything the store holds, by release, cut-off uploads and removals too: what retention judges."""

    def remove(self, release: str) -> None:
        """Take a release out: the index first, in one step, then its files. Idempotent, and a repeat ends what was cut off.

        For good: the same bytes may be staged again, other bytes of a release that was published may not. Who may call: a
        person's `image prune`, never the loop.
        """


class Registry(Protocol):
    """The container registry that holds the apps: mutable tags over immutable digests."""

    def tags(self, repository: str) -> Mapping[str, str]:
        """Tag → digest (`sha256:…`), all of the repository's."""

    def retag(self, repository: str, tag: str, digest: str) -> None:
        """Point `tag` at `digest` and read it back. TerminalError: the digest is not in the repository."""

    def exists(self, repository: str, digest: str) -> bool:
        """Whether the repository holds the manifest."""


class Doorbell(Protocol):
    """Asks devices to call in now. Best effort: a device that is not reached calls in by itself."""

    def ring(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Device → `pending`, `delivered`, `timed-out` or `unknown`. Never raises for a single device."""


class Secrets(Protocol):
    """Secrets by reference. Values are read at deployment time only and are never stored, logged or shown."""

    def versions(self, references: Iterable[str]) -> Mapping[str, str]:
        """Reference → id of its current version; references that do not exist are left out."""

    def value(self, reference: str) -> str:
        """The current value. TerminalError: no such secret, or no permission."""


# ---------------------------------------------------------------- building and signing


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: the artifact's folder name, its files in a local folder, and the digest of the raw image."""

    release: str
    name: str
    folder: Path
    digest: str


class Builder(Protocol):
    """Builds a release from its recipe. Holds no key and no credential."""

    def build(self, release: str, spec: ImageSpec, recipe: Path, commit: str) -> Built:
        """Build, check and pack. Same inputs, same bytes. TerminalError: the recipe or a check failed (names the stage)."""


class Signer(Protocol):
    """Another process, another home: signs what an accepted commit names and whose bytes it has rechecked itself."""

    def sign_release(self, release: str, commit: str) -> bytes:
        """Detached signature over the release's SHA256SUMS. TerminalError: commit, manifest or bytes do not agree."""


class AssignmentSigner(Protocol):
    """Signs a tick's Merkle root with the assignment key."""

    def sign_root(self, root: bytes) -> bytes:
        """Detached OpenPGP signature over `root`."""


# ---------------------------------------------------------------- the forge: where pull requests are


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A pull request: `state` is `open`, `closed` (not merged) or `merged`; `head` the commit at the tip of its branch."""

    number: int
    url: str
    branch: str
    base: str
    head: str
    title: str
    state: str


class Forge(Protocol):
    """Pull requests, their comments, and what is shown at a commit: GitHub, or what speaks its API.

    TransientError: unreachable, or the rate limit (`retry_after_s` says until when). TerminalError: not allowed, or no such thing.
    """

    def pull_request(self, branch: str) -> PullRequest | None:
        """The newest pull request from `branch` of this repository, whatever its state; None where there never was one."""

    def pull_requests(self) -> Sequence[PullRequest]:
        """All that are open, by number."""

    def open_pull_request(self, branch: str, base: str, title: str, body: str) -> PullRequest:
        """Open one, or return the newest that was ever opened from `branch`: never a second."""

    def comment(self, number: int, marker: str, body: str) -> str:
        """The one comment of ours that carries `marker` (an HTML comment in its text), made or brought up to date; its address."""

    def set_status(self, sha: str, context: str, state: str, description: str, url: str | None = None) -> None:
        """A commit's status under `context`: `pending`, `success`, `failure` or `error`. A repeat of the same is not sent."""

    def deploy(self, sha: str, environment: str, description: str) -> int:
        """The deployment of a commit to an environment, made if it is not there; its id."""

    def set_deployment(self, deployment: int, state: str, description: str, url: str | None = None) -> None:
        """A deployment's state: `queued`, `in_progress`, `success`, `failure`, `error` or `inactive`. A repeat is not sent."""


# ---------------------------------------------------------------- what a reviewer looks at (`review.ports`)


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch: its name as a person writes it (`promote/v1.4.2`, `origin/promote/v1.4.2`), and the commit at its tip."""

    name: str
    sha: str


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public OpenPGP key. `expires_at`: from then on nothing that it signs counts (the primary key's expiry, or that of the
    last of its keys that can sign, whichever is first); None for never."""

    fingerprint: str
    user: str
    expires_at: datetime | None
    revoked: bool = False


# ---------------------------------------------------------------- the store


@dataclass(frozen=True, slots=True)
class Intent:
    """An action written down before it is taken. `key` is `Action.key`: while the intent is open no other has it."""

    id: int
    key: str
    action: Action
    commit: str | None
    created_at: datetime
    attempts: int = 0
    not_before: datetime | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """A device's assignment as issued: its leaf document, and the signed root that covers it."""

    device: str
    epoch: int
    n: int
    document: bytes
    proof: tuple[bytes, ...]
    index: int
    root: bytes
    signature: bytes
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ConditionRow:
    """A condition of the loop: `GitReady`, `StoresReady`, …; `status` is True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Changes:
    """What the recorder wrote since `cursor`: devices whose observation changed, and the cursor to ask from next time."""

    cursor: int
    devices: tuple[DeviceObservation, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What one tick decided, to be recorded in one transaction: facts, intents, assignments, and devices' new marks.

    `observations` are patches, since reports go on arriving while a tick decides: of each, the marks that are set
    explicitly (`updating_to`, `updating_since`, `rebooting_since`, `restarting_app`, `restarting_since`,
    `configuring_since`, `health_before_update`) are written over the device's current observation; None clears a mark.
    Write `DeviceObservation(name=…, updating_to=…, updating_since=…)`; do not copy an observation, or old marks return.
    """

    at: datetime
    commit: str | None
    facts: Facts
    actions: tuple[Action, ...] = ()
    assignments: tuple[AssignmentRow, ...] = ()
    observations: tuple[DeviceObservation, ...] = ()
    tags_set: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    conditions: tuple[ConditionRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Export:
    """Everything recorded, as it stood at one instant: what `Store.snapshot` gives, without holding a fleet in memory.

    `facts` is all but the devices; `devices` are read as they are asked for, each the contract's JSON of one device, by name.
    `cursor` grows with every change of a device.
    """

    cursor: int
    facts: Snapshot
    devices: Iterator[str]


class Store(EventLog, Protocol):
    """State that must survive. Every method is one transaction; every write carries the writer's epoch where it decides.

    TransientError: busy or unreachable. TerminalError: the schema is not ours, or the epoch is not the current one (fenced).
    """

    def snapshot(self) -> Snapshot:
        """Everything recorded, for a cold start and for `plan` without `--observed`."""

    def facts(self) -> Snapshot:
        """Everything recorded but the devices: what a running loop reads again when it has written facts."""

    def changes_since(self, cursor: int, limit: int | None = None) -> Changes:
        """Observations recorded after `cursor` (0: all), oldest change first; `limit` at most, to be asked for again."""

    def observe(self, observations: Sequence[DeviceObservation], *, sequences: Mapping[str, tuple[str, int]]) -> int:
        """Record folded reports, replacing each device's observation; returns the new cursor. `sequences` maps a device to
        its boot id and sequence; a report that is not newer than what is recorded is dropped, not an error."""

    def observation(self, device: str) -> tuple[DeviceObservation, str, int] | None:
        """A device's observation with the boot id and sequence of the report it came from, or None."""

    def observed(self, devices: Sequence[str]) -> Mapping[str, tuple[DeviceObservation, str, int]]:
        """`observation` of many devices at once; in `transaction` their rows are locked until it ends."""

    def begin_epoch(self) -> int:
        """Take over as writer: raise the epoch above every one on record and return it."""

    def raise_epoch(self, above: int) -> int:
        """The same, above an epoch that a device reported (a restored backup)."""

    def next_serial(self, epoch: int, count: int) -> int:
        """Reserve `count` serial numbers under the epoch; returns the first."""

    def record(self, epoch: int, decision: Decision) -> tuple[Intent, ...]:
        """Write a tick's decision; returns the intents that are new. An action whose key is already open is not doubled."""

    def open_intents(self) -> tuple[Intent, ...]:
        """Intents without an outcome, oldest first: what a restart repeats or completes."""

    def finish(self, epoch: int, intent: Intent, outcome: str, detail: str, at: datetime) -> None:
        """Write an outcome: `done`, or `failed` (terminal)."""

    def retry(self, epoch: int, intent: Intent, error: str, not_before: datetime) -> None:
        """Write that an intent failed for now, and when to try again."""

    def prune_journal(self, epoch: int, before: datetime) -> int:
        """Drop intents that were finished before an instant; returns how many. Open ones always stay."""

    def save_plan(self, epoch: int, document: str) -> None:
        """Keep the last plan's JSON, for `status` and the HTTP API."""

    def last_plan(self) -> str | None:
        """The last plan's JSON, or None before the first tick."""

    def assignment(self, device: str) -> AssignmentRow | None:
        """The device's latest assignment."""

    def assignments(self, devices: Sequence[str]) -> Mapping[str, AssignmentRow]:
        """The latest assignments of these devices; those that have none are left out."""

    def conditions(self) -> tuple[ConditionRow, ...]:
        """The loop's conditions as last recorded."""

    def last_good_commit(self) -> str | None:
        """The commit in force."""

    def accept_commit(self, epoch: int, sha: str, at: datetime) -> None:
        """Put a commit in force."""

    def journal(self, limit: int = 100) -> Sequence[Mapping[str, str | None]]:
        """The newest journal rows, for people: kind, key, outcome, times, error."""

    def add_token(self, device: str, token_hash: str, at: datetime) -> None:
        """Enrol a device: keep the hash of its token, replacing an earlier one."""

    def device_of_token(self, token_hash: str) -> str | None:
        """Whose token has this hash, or None."""

    def devices_of_tokens(self, token_hashes: Sequence[str]) -> Mapping[str, str]:
        """The same for many hashes at once; unknown ones are left out."""

    def revoke_token(self, device: str) -> bool:
        """Forget a device's token; returns whether it had one."""

    def tokens(self) -> Mapping[str, datetime]:
        """Enrolled devices, and when their token was made."""

    def transaction(self) -> AbstractContextManager[None]:
        """Group calls into one transaction; nested use joins the outer one."""

    def close(self) -> None:
        """Release connections."""
