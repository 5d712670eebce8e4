"""The fleet repo as a `ports.GitSource`: a bare mirror of one branch in the state folder, read by hash.

Owns `STATE/mirror.git` and what lies beside it; nothing else writes there. Fetching is the only moment at which the
remote is asked, `propose_revert` the only one at which it is written to. Loading executes nothing that the repo holds:
there is no work tree, so no filter, hook, submodule or symlink of it is ever followed. Which commit may be acted on is
`repo.accept`'s to judge, not this module's.

What may go wrong and what is done: a fetch killed half-way leaves a marker, and the next refresh checks the mirror and
clones it anew where it is damaged; lock files that a killed git left are removed once the state folder's own lock is
held; that lock is inherited by git itself, so an orphaned fetch is waited for, not raced. Source: design §3, §4;
signatures: `protocol.signature`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from reconciler.adapters.git_objects import (
    MissingObject,
    ObjectReader,
    ParsedCommit,
    parse_commit,
    parse_raw_diff,
    parse_tree,
)
from reconciler.adapters.git_remote import (
    NEEDED_FOR,
    check_branch,
    check_sha,
    explain_failure,
    parse_remote,
)
from reconciler.adapters.git_run import GitProgram
from reconciler.ports import Commit, TerminalError, TransientError, TreeEntry

_REGULAR = frozenset({"100644", "100755"})
_NO_VERDICT = frozenset({"verifier-missing", "keyring-unreadable", "keyring-too-large", "no-keys"})
_REPACK_ABOVE = 27  # loose objects in one of 256 folders: about 6,900 in all, where git's own gc --auto would start


class GitMirror:
    """A branch of a fleet repo, mirrored bare. Implements `ports.GitSource`; safe from several threads.

    `state` is a folder of its own; `remote` a URL or local path, `branch` a short name (both checked, TerminalError).
    `signers_keyring` and `allowed` (40-hex primary fingerprints) decide whose signature makes a commit's `signer`;
    without a keyring every `signer` is None. `timeout_s` bounds a fetch or push, `clone_timeout_s` the first one.
    `ssh_command` and `credential_helper` are git's core.sshCommand and credential.helper; the user's own git
    configuration is not read.
    """

    def __init__(
        self,
        state: Path,
        remote: str,
        branch: str,
        *,
        signers_keyring: Path | None = None,
        allowed: frozenset[str] = frozenset(),
        timeout_s: float = 60.0,
        clone_timeout_s: float = 900.0,
        ssh_command: str | None = None,
        credential_helper: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.remote = parse_remote(remote)
        self.branch = check_branch(branch)
        self._state = state.absolute()
        self._mirror = self._state / "mirror.git"
        for key in allowed:
            if not re.fullmatch(r"[0-9A-Fa-f]{40}", key):
                raise TerminalError(
                    f"{key!r} is not a key's fingerprint",
                    needed_for="the signatures of commits",
                    remedy="write all 40 hex digits of the primary key, as gpg --list-keys --with-colons shows them",
                )
        self._keyring, self._allowed, self._now = signers_keyring, frozenset(map(str.upper, allowed)), now
        self._timeout_s, self._clone_timeout_s = timeout_s, clone_timeout_s
        self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._git = GitProgram(
            self._state,
            self.remote,
            timeout_s=timeout_s,
            ssh_command=ssh_command,
            credential_helper=credential_helper,
        )
        self._reader = ObjectReader(lambda: self._git.start("cat-file", "--batch", git_dir=self._mirror))
        self._commits: dict[str, Commit] = {}

    # ------------------------------------------------------------ fetching

    def refresh(self) -> Commit:
        """Fetch and return the branch's head (port).

        The mirror follows the remote, rewrites too; judging them is not done here.
        """
        with self.locked() as lock_fd:
            self._check_remote()
            if self._usable():
                self._fetch(self._mirror, lock_fd, self._timeout_s)
                self._repack(lock_fd)
            if not self._usable():
                self._clone(lock_fd)
            head = self._head(self._mirror)
        if head is None:
            raise TransientError(
                f"the mirror of {self.remote.url!r} has no head after a fetch",
                needed_for=NEEDED_FOR,
                remedy="it is cloned anew",
            )
        return self.commit(head)

    def _check_remote(self) -> None:
        folder = self.remote.folder
        if folder is not None and not folder.exists():
            raise TerminalError(
                f"there is no repository at {self.remote.url!r}",
                needed_for=NEEDED_FOR,
                remedy="correct the remote in the settings, or create it",
            )

    def _usable(self) -> bool:
        """Whether the mirror is there, of this remote, and whole.

        It is looked through only where a marker gives cause.
        """
        if not (self._mirror / "HEAD").exists() or self._read(self._mirror / "reconciler-remote") != self.remote.url:
            return False
        if not self._suspect.exists():
            return True
        self._reader.close()
        if not self._whole():
            return False
        self._suspect.unlink()
        return True

    def _whole(self) -> bool:
        """Whether every object can be read and the branch has its head. Reads the whole mirror: for suspicion only."""
        result = self._git.run(
            "fsck", "--no-dangling", "--no-progress", git_dir=self._mirror, timeout_s=self._clone_timeout_s
        )
        return result.status == 0 and self._head(self._mirror) is not None

    @property
    def _suspect(self) -> Path:
        """Present while a fetch runs and after damage was seen: the mirror is looked through before it is used."""
        return self._mirror / "reconciler-suspect"

    def _fetch(self, mirror: Path, lock_fd: int, timeout_s: float) -> None:
        for stale in (*mirror.glob("*.lock"), *(mirror / "refs").rglob("*.lock"), *mirror.glob("objects/pack/tmp_*")):
            stale.unlink(missing_ok=True)  # left by a git that was killed: we hold the lock that every fetch inherits
        suspect = mirror / "reconciler-suspect"
        suspect.touch()
        ref = f"refs/heads/{self.branch}"
        result = self._git.run(
            "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--refmap=",
            "--end-of-options",
            self.remote.url, f"+{ref}:{ref}",
            git_dir=mirror, timeout_s=timeout_s, lock_fd=lock_fd,
        )  # fmt: skip
        if result.status == 0:
            suspect.unlink()
            return
        error = explain_failure(result.err, url=self.remote.url, branch=self.branch)
        if mirror == self._mirror and self._usable():
            raise error  # the mirror is whole, so it is the remote; `_usable` took the marker away
        if mirror != self._mirror:
            raise error

    def _clone(self, lock_fd: int) -> None:
        """A new mirror beside the old one, put in its place once it is whole."""
        self._reader.close()
        for rest in self._state.glob("mirror.git.*"):
            shutil.rmtree(rest, ignore_errors=True)
        part, old = self._state / "mirror.git.new", self._state / "mirror.git.old"
        result = self._git.run(
            "init", "--quiet", "--bare", "--template=", f"--initial-branch={self.branch}", "--", str(part)
        )
        if result.status != 0:
            raise TransientError(
                f"no mirror can be made in {self._state} ({result.err.strip()})",
                needed_for=NEEDED_FOR,
                remedy="check disk and rights",
            )
        (part / "reconciler-remote").write_text(self.remote.url, encoding="utf-8")
        self._fetch(part, lock_fd, self._clone_timeout_s)
        if self._mirror.exists():
            self._mirror.rename(old)
        part.rename(self._mirror)
        shutil.rmtree(old, ignore_errors=True)
        self._commits.clear()

    def _repack(self, lock_fd: int) -> None:
        """Pack loose objects when there are many.

        Nothing is ever pruned: the commit in force may be off the branch by now.
        """
        sample = self._mirror / "objects" / "17"
        if sample.exists() and sum(1 for _ in sample.iterdir()) > _REPACK_ABOVE:
            self._git.must("repack", "-d", "-q", git_dir=self._mirror, timeout_s=self._clone_timeout_s, lock_fd=lock_fd)

    def _head(self, mirror: Path) -> str | None:
        result = self._git.run(
            "rev-parse", "--verify", "--quiet", f"refs/heads/{self.branch}^{{commit}}", git_dir=mirror
        )
        return result.text if result.status == 0 else None

    @staticmethod
    def _read(path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the state folder for one fetch or push; yields the lock's descriptor.

        TransientError: busy for too long.
        """
        fd = os.open(self._state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            give_up = time.monotonic() + self._timeout_s
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise TransientError(
                            f"another process holds {self._state} for more than {self._timeout_s:g} s",
                            needed_for=NEEDED_FOR,
                            remedy="give every reconciler a state folder of its own",
                        ) from None
                    time.sleep(0.02)
            yield fd
        finally:
            os.close(fd)  # an orphaned git keeps the lock by its own copy until it ends

    # ------------------------------------------------------------ reading

    def commit(self, sha: str) -> Commit:
        """A commit by hash, its signature checked (port)."""
        known = self._commits.get(sha)
        if known is not None:
            return known
        parsed = self.parsed(sha)
        commit = Commit(
            sha, parsed.author, parsed.message, parsed.committed_at, self._signer(sha, parsed), parsed.parents
        )
        if len(self._commits) > 1000:
            self._commits.clear()
        if commit.signer is not None or parsed.signature is None:
            self._commits[sha] = commit  # a refusal is not kept: a key may be added, a clock set right
        return commit

    def parsed(self, sha: str) -> ParsedCommit:
        """A commit object taken apart: its tree too, which `ports.Commit` leaves out."""
        data = self._object(check_sha(sha), "commit")
        try:
            return parse_commit(data)
        except (KeyError, ValueError) as error:
            raise TerminalError(
                f"commit {sha} is malformed ({error})", needed_for=NEEDED_FOR, remedy="remove it from the branch"
            ) from None

    def _signer(self, sha: str, commit: ParsedCommit) -> str | None:
        """The allowed primary key that signed, or None: unsigned, SSH or X.509, foreign, expired, weak, doubled.

        A verifier that could not judge is no verdict: Transient- or TerminalError.
        """
        if commit.signature is None or self._keyring is None or not self._allowed:
            return None
        if not commit.signature.startswith(b"-----BEGIN PGP SIGNATURE-----"):
            return None
        from reconciler.protocol.signature import Refused, verify_detached

        try:
            return verify_detached(commit.signed, commit.signature, self._keyring, self._allowed, self._now()).primary
        except Refused as refused:
            if refused.code == "verifier-failed":
                raise TransientError(refused.reason, needed_for=f"the signature of commit {sha[:12]}") from None
            if refused.code in _NO_VERDICT:
                raise TerminalError(
                    refused.reason,
                    needed_for=f"the signature of commit {sha[:12]}",
                    remedy="install gpgv, and export the signers' keys to the keyring with gpg --export",
                ) from None
            return None

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Whether `descendant` follows from `ancestor` (port). An ancestor that the mirror does not know is none."""
        result = self._git.run(
            "merge-base",
            "--is-ancestor",
            "--end-of-options",
            check_sha(ancestor),
            check_sha(descendant),
            git_dir=self._mirror,
        )
        if result.status in (0, 1):
            return result.status == 0
        self.commit(descendant)  # says that it is unknown, or damaged
        with contextlib.suppress(TerminalError):
            self.commit(ancestor)
            raise self._damage(descendant)
        return False

    def files(self, sha: str) -> Sequence[TreeEntry]:
        """Every entry of the commit's tree, sorted by path (port). Sizes are left out: they would cost a read each."""
        return parse_tree(
            self._listing("ls-tree", "-r", "-z", "--full-tree", "--end-of-options", check_sha(sha), commits=(sha,))
        )

    def changed(self, old: str, new: str) -> Mapping[str, TreeEntry | None]:
        """Paths that differ between two commits → the new entry, None where removed (port)."""
        return {path: after for path, _, after in self.differences(old, new)}

    def differences(self, old: str, new: str) -> list[tuple[str, TreeEntry | None, TreeEntry | None]]:
        """Paths that differ between two commits, with the old and the new entry."""
        listing = self._listing(
            "diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", "--no-ext-diff", "--end-of-options",
            check_sha(old), check_sha(new), commits=(old, new),
        )  # fmt: skip
        return list(parse_raw_diff(listing))

    def _listing(self, *arguments: str, commits: tuple[str, ...]) -> bytes:
        result = self._git.run(*arguments, git_dir=self._mirror)
        if result.status != 0:
            for sha in commits:
                self.commit(sha)
            raise self._damage(commits[-1])
        return result.out

    def blob(self, blob: str) -> bytes:
        """The bytes of a blob by hash (port). TerminalError: unknown, not a blob, or too large."""
        return self._object(check_sha(blob), "blob")

    def _object(self, name: str, kind: str) -> bytes:
        try:
            return self._reader.read(name, kind)
        except MissingObject as missing:
            if not (self._mirror / "HEAD").exists():
                raise TransientError(
                    "there is no mirror yet", needed_for=NEEDED_FOR, remedy="the next refresh clones it"
                ) from None
            # To a reader a broken object looks like one that never was; an unknown hash is rare enough to look closely.
            if missing.damaged or not self._whole():
                raise self._damage(name) from None
            raise TerminalError(
                f"{kind} {name} is not in the mirror of {self.remote.url!r}",
                needed_for=NEEDED_FOR,
                remedy=f"name a {kind} of branch {self.branch!r}",
            ) from None

    def _damage(self, name: str) -> TransientError:
        with contextlib.suppress(OSError):
            self._suspect.touch()
        return TransientError(
            f"the mirror cannot read object {name}",
            needed_for=NEEDED_FOR,
            remedy="the next refresh checks it and clones it anew",
        )

    # ------------------------------------------------------------ writing out

    def export(self, sha: str, folder: str, to: Path) -> None:
        """Write a folder of a commit's tree below `to` (port). `to` is made; it may exist only empty.

        File times are the commit's, modes 0644 or 0755. TerminalError: no such folder, or it holds anything but regular
        files.
        """
        prefix = folder.strip("/") + "/"
        entries = [entry for entry in self.files(sha) if entry.path.startswith(prefix)]
        if not entries or prefix == "/":
            raise TerminalError(
                f"commit {sha[:12]} has no folder {folder!r}",
                needed_for="building from a recipe",
                remedy="correct Image.spec.recipe",
            )
        for entry in entries:
            if entry.mode not in _REGULAR or {"..", ".", ".git", ""} & set(entry.path.split("/")):
                raise TerminalError(
                    f"{entry.path} is not a regular file (mode {entry.mode})",
                    needed_for="building from a recipe",
                    remedy="keep plain files in the recipe, and make links and devices in setup.sh",
                )
        to.mkdir(parents=True, exist_ok=True)
        if any(to.iterdir()):
            raise TerminalError(
                f"{to} is not empty", needed_for="building from a recipe", remedy="give an empty folder"
            )
        at = int(self.commit(sha).committed_at.timestamp())
        for entry in entries:
            path = to / entry.path.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(self.blob(entry.blob))
            path.chmod(0o755 if entry.mode == "100755" else 0o644)
            os.utime(path, (at, at))

    def propose_revert(self, branch: str, of: str, title: str, evidence: str) -> str:
        """Push `branch` with a revert of what commit `of` changed (port). See `adapters.git_revert`."""
        from reconciler.adapters.git_revert import Revert

        return Revert(self, self._git, self._mirror).propose(check_branch(branch), check_sha(of), title, evidence)

    def close(self) -> None:
        """End the child process that reads objects."""
        self._reader.close()
