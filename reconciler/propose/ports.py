"""What a proposal needs of the world beside `reconciler.ports`: the clone that a person works in. Protocols alone.

Implemented by `adapters.git_clone`; called by `propose.publish` and the command line. Values and errors that cross it are those of
`reconciler.ports`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from reconciler.ports import Commit, TreeEntry


class Clone(Protocol):
    """A person's clone. Its work tree, index and checked-out branch are never touched. Paths are those below the fleet folder.

    TransientError: the remote did not answer. TerminalError: git, or the remote, refuses.
    """

    @property
    def below(self) -> str:
        """The fleet folder's path in the repository, with a `/` at its end; empty where it is the repository's top."""

    base_branch: str
    """Name of the branch that proposals are for."""

    @property
    def shallow(self) -> bool:
        """Whether the history here is cut off."""

    def base(self) -> Commit:
        """The commit that a proposal starts from: the head of the base branch."""

    def resolve(self, revision: str) -> Commit:
        """The commit that a revision names."""

    def files(self, sha: str) -> Sequence[TreeEntry]:
        """Every file of the fleet folder in a commit, sorted by path."""

    def blobs(self, wanted: Iterable[str]) -> Mapping[str, bytes]:
        """The bytes of many blobs, read in one go."""

    def merge_base(self, one: str, other: str) -> str | None:
        """The commit from which two went apart."""

    def merged(self, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
        """Three texts merged as git would; None where they conflict."""

    def versions(self, path: str, sha: str) -> Sequence[tuple[str, bytes]]:
        """A file at each commit of the line of `sha` that changed it, newest first: hash and bytes."""

    def changed(self, old: str, new: str) -> Sequence[tuple[str, TreeEntry | None, TreeEntry | None]]:
        """What differs between two commits: path in the *repository*, before, after."""

    def commit(self, parent: str, files: Mapping[str, bytes | None], modes: Mapping[str, str], message: str) -> str:
        """A new commit on `parent` with these files (None: removed). No branch points at it yet."""

    def branch(self, name: str, *, remote: bool) -> str | None:
        """Where a branch stands, on the remote or here; its commit can be read afterwards."""

    def push(self, sha: str, name: str) -> None:
        """Make a branch on the remote. TerminalError: one of this name is there."""

    def keep(self, sha: str, name: str) -> None:
        """Make a branch here. TerminalError: one of this name is there."""
