"""Finds the commit that raised a release: what `propose-revert` has to take back. Reads git through its port; pure else.

Walks the branch's own line (first parents) back from the commit in force, for as long as the waves ask for the release.
Called by `execute`. Source: design §4.7, "the reconciler proposes the revert once".
"""

from __future__ import annotations

from pydantic import ValidationError

from reconciler.model.desired import WavesSpec
from reconciler.ports import GitSource, TerminalError
from reconciler.repo import reader
from reconciler.repo.documents import SUFFIXES, WavesDocument

FURTHEST = 1000


def commit_that_raised(git: GitSource, in_force: str, key: str) -> str:
    """The commit since which some wave asks for `key` (`v1.4.2`, or `video-ingest@2.8.0`) without a break.

    TerminalError: no wave asks for it at `in_force`, or the branch's history ends (or goes back further than looked)
    while one does: then there is no commit to take back.
    """
    purpose = f"proposing a revert of {key}"
    sha = in_force
    if not _asks(git, sha, key):
        raise TerminalError(f"no wave asks for {key} at {sha[:12]}", needed_for=purpose)
    for _ in range(FURTHEST):
        parents = git.commit(sha).parents
        if not parents:
            raise TerminalError(
                f"{key} is asked for since the first commit {sha[:12]}, so there is nothing to go back to",
                needed_for=purpose,
                remedy="name the release to run instead, in a commit of your own",
            )
        if not _asks(git, parents[0], key):
            return sha
        sha = parents[0]
    raise TerminalError(
        f"{key} is asked for since more than {FURTHEST} commits", needed_for=purpose, remedy="revert it by hand"
    )


def _asks(git: GitSource, sha: str, key: str) -> bool:
    """Whether some wave asks for the release at a commit. A commit whose waves cannot be read asks for nothing."""
    waves = _waves(git, sha)
    if waves is None:
        return False
    app, at_sign, release = key.partition("@")
    if at_sign:
        return any(wave.apps.get(app) == release for wave in waves.waves)
    return any(wave.image == key for wave in waves.waves)


def _waves(git: GitSource, sha: str) -> WavesSpec | None:
    paths = {f"waves{suffix}" for suffix in SUFFIXES}
    for entry in git.files(sha):
        if entry.path in paths:
            try:
                return WavesDocument.model_validate(reader.read(git.blob(entry.blob))).spec
            except (reader.Refused, ValidationError):
                return None
    return None
