"""What a review needs of the world beside `reconciler.ports`: commits on this machine, and public keyrings. Protocols alone.

Implemented by `adapters.git_trees` and `adapters.gpg_keys`; called by `cli.diff` and `review.sides`. The values and errors that
cross them are those of `reconciler.ports`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from reconciler.ports import Branch, Commit, PublicKey, TreeEntry


class Revisions(Protocol):
    """The commits of a repository around a fleet folder. Reads objects alone: no work tree, no filter, no hook, no network.

    Paths are those below the fleet folder. TransientError: git did not answer in time. TerminalError: damaged, or no such thing.
    """

    @property
    def below(self) -> str:
        """The fleet folder's path in the repository, with a `/` at its end; empty where it is the repository's top."""

    def resolve(self, revision: str) -> Commit:
        """The commit that a revision names. TerminalError: it names none, or begins with `-`."""

    def files(self, sha: str) -> Sequence[TreeEntry]:
        """Every file of the fleet folder in a commit, sorted by path; none where the commit has no such folder."""

    def blobs(self, wanted: Iterable[str]) -> Mapping[str, bytes]:
        """The bytes of many blobs, read in one go. TerminalError: one is not there."""

    def merge_base(self, one: str, other: str) -> str | None:
        """The commit from which two went apart; None where their history shows none."""

    def merged(self, base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
        """Three texts merged as git would; None where they conflict."""

    def unmerged(self, into: Sequence[str], pattern: str, heads: Sequence[str] = ()) -> Sequence[Branch]:
        """Branches, local and remote-tracking, that match a glob and have commits that none of `into` has, newest first; one a
        commit. What a remote has of a branch that stands at one of `heads` here is that branch, as it was pushed: left out."""


class Keyrings(Protocol):
    """Looks into public keyrings."""

    def keys(self, keyring: bytes) -> Sequence[PublicKey]:
        """Every key of a keyring, in its order. TerminalError: no keyring, or nothing to read it with."""
