"""The desired state: which commit is in force, and what it asks for. The git half of `gather`.

Decides nothing about a commit itself: `repo.load` says whether it is valid, `repo.accept` whether it may come into force, and
the settings what it may point at. Whatever is wrong with the branch's head, the last good commit stays in force and a
condition says why. Called by `gather` alone. Source: design §3, last paragraph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from reconciler.controller.conditions import Finding, Type
from reconciler.controller.pace import Poll
from reconciler.controller.settings import Settings
from reconciler.model.desired import Desired
from reconciler.ports import Commit, GitSource, Store, TerminalError, TransientError
from reconciler.repo.accept import Head, Refused, accept
from reconciler.repo.load import LoadResult, load_changed, load_tree

_SHOWN = 3


class Source:
    """Keeps the commit in force. `epoch` is the writer's; the store keeps which commit is in force over restarts."""

    def __init__(
        self,
        git: GitSource,
        store: Store,
        settings: Settings,
        poll: Poll,
        epoch: int,
        *,
        loaded: tuple[str, LoadResult] | None = None,
    ) -> None:
        self._git, self._store, self._settings, self._epoch = git, store, settings, epoch
        self.poll = poll
        self.loaded = loaded
        """The commit that was loaded last, and what came of it: the next one is loaded from there."""
        self._judged: str | None = None
        self.desired: Desired | None = None
        self.refused: tuple[str, str] | None = None
        """The head that is not acted on, and why; None where the head is in force."""

    def renewed(self, epoch: int) -> None:
        """The writer's epoch has been raised."""
        self._epoch = epoch

    def restore(self) -> Iterator[Finding]:
        """Load the commit that was in force when the last controller stopped."""
        sha = self._store.last_good_commit()
        if sha is None:
            yield Finding(Type.FLEET_VALID, None, "NoCommitYet", "no commit has come into force yet")
            return
        try:
            result = self._load_mended(sha)
        except TerminalError as error:
            yield Finding(
                Type.FLEET_VALID, False, "LastCommitLost", f"{sha[:12]}, last in force, is unreadable: {error}"
            )
            return
        if result.desired is None:
            # A newer version of this program may be stricter; the head is judged next.
            yield self._invalid(sha, result)
            return
        self.desired = replace(result.desired, commit=sha)
        yield Finding(Type.FLEET_VALID, True, "InForce", f"{sha[:12]} is in force")

    def refresh(self, now: datetime, draw: float) -> Iterator[Finding]:
        """Ask the remote where that is due, and judge a head that has not been judged."""
        if not self.poll.is_due(now):
            return
        try:
            head = self._git.refresh()
            findings = list(self._consider(head, now))
            for finding in findings:
                if finding.status is False:
                    self.refused = (head.sha, finding.message)
        except TransientError as error:
            self.poll.failed(now, draw, error.retry_after_s)
            yield Finding(Type.GIT_READY, False, "Unreachable", str(error))
            return
        except TerminalError as error:
            self.poll.failed(now, draw)
            yield Finding(Type.GIT_READY, False, "Refused", str(error))
            return
        self.poll.answered(now, draw)
        yield Finding(Type.GIT_READY, True, "UpToDate", f"the branch is at {head.sha[:12]}")
        yield from findings

    def _consider(self, head: Commit, now: datetime) -> Iterator[Finding]:
        """Put the head in force, or say why not. A head is judged once."""
        if head.sha == self._judged:
            return
        self.refused = None
        before = self.desired
        if before is not None and before.commit == head.sha:
            self._judged = head.sha
            return
        result = self._load(head.sha)
        if result.desired is None:
            self._judged = head.sha
            yield self._invalid(head.sha, result)
            return
        beyond = self.beyond_what_is_allowed(result.desired)
        if beyond is not None:
            self._judged = head.sha
            yield Finding(Type.FLEET_VALID, False, "NotAllowed", f"{head.sha[:12]}: {beyond}; {self._in_force()}")
            return
        last = self._store.last_good_commit()
        verdict = accept(
            Head(head.sha, head.message, head.signer),
            last_good=last,
            is_ancestor=last is None or self._git.is_ancestor(last, head.sha),
            signature_required=self._settings.commits.required,
            allowed_signers=self._settings.commits.signers,
            sites_before=() if before is None else before.sites.keys(),
            sites_after=result.desired.sites.keys(),
        )
        self._judged = head.sha
        if isinstance(verdict, Refused):
            reason = "".join(word.capitalize() for word in verdict.reason.value.split("-"))
            yield Finding(Type.FLEET_VALID, False, reason, f"{verdict.message}; {self._in_force()}")
            return
        self._store.accept_commit(self._epoch, head.sha, now)
        self.desired = replace(result.desired, commit=head.sha)
        yield Finding(Type.FLEET_VALID, True, "InForce", f"{head.sha[:12]} is in force")

    def _load(self, sha: str) -> LoadResult:
        """A commit's documents; of a commit after one that is loaded, only what changed is read."""
        if self.loaded is None:
            result = load_tree(self._git.files(sha), self._git.blob)
        else:
            before, known = self.loaded
            result = known if before == sha else load_changed(known, self._git.changed(before, sha), self._git.blob)
        self.loaded = (sha, result)
        return result

    def _load_mended(self, sha: str) -> LoadResult:
        """The same of a mirror that may be damaged: asking the remote mends it."""
        try:
            return self._load(sha)
        except TransientError:
            self._git.refresh()
            return self._load(sha)

    def _invalid(self, sha: str, result: LoadResult) -> Finding:
        errors = [problem for problem in result.problems if problem.severity == "error"]
        shown = "; ".join(str(problem) for problem in errors[:_SHOWN])
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        return Finding(
            Type.FLEET_VALID,
            False,
            "Invalid",
            f"{sha[:12]} has {len(errors)} errors: {shown}{more}; {self._in_force()}",
        )

    def _in_force(self) -> str:
        commit = self.desired.commit if self.desired is not None else None
        return f"{commit[:12]} stays in force" if commit else "nothing is in force"

    def beyond_what_is_allowed(self, desired: Desired) -> str | None:
        """What of the fleet's document goes beyond the settings: it may narrow them, never widen."""
        fleet, allowed = desired.fleet, self._settings.allowed
        place = fleet.images if fleet.images.endswith("/") else f"{fleet.images}/"
        if not any(place.startswith(prefix) for prefix in allowed.images):
            return f"`images: {fleet.images}` is outside of what the settings allow ({', '.join(allowed.images)})"
        if fleet.registry.partition("/")[0] not in allowed.registries:
            return f"`registry: {fleet.registry}` is none that the settings allow ({', '.join(allowed.registries)})"
        known = {key.upper() for key in self._settings.keys.releases}
        foreign = sorted(key for key in fleet.release_keys if key.upper() not in known)
        if foreign:
            return (
                f"`releaseKeys` names {', '.join(foreign)}, which the settings do not allow:"
                " add it to `keys.releases` and to the keyring there, or take it out of fleet.yaml"
            )
        return None
