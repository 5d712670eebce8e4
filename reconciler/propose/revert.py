"""`rollback --commit`: undo what one commit changed in the fleet folder, as `git revert` would.

Path by path, for a commit with its first parent: where the base still holds what the commit wrote, the parent's text comes back;
else the three are merged, and a conflict ends it with the paths named. Pure but for the clone that is handed in.
"""

from __future__ import annotations

from reconciler.ports import TreeEntry
from reconciler.propose.base import Base, Change, Declined
from reconciler.propose.ports import Clone


def revert_commit(clone: Clone, base: Base, sha: str, revision: str) -> Change:
    """The change that takes a commit back; `sha` is the commit that it starts from. Declined: nothing left, or a conflict."""
    bad = clone.resolve(revision)
    if not bad.parents:
        raise Declined(f"commit {bad.sha[:12]} is the first of its repository and cannot be taken back")
    if clone.merge_base(bad.sha, sha) != bad.sha:
        raise Declined(
            f"commit {bad.sha[:12]} is not on the base branch, so there is nothing to take back",
            remedy="name a commit that is merged, as `git log` shows it",
        )
    ours = [change for change in clone.changed(bad.parents[0], bad.sha) if change[0].startswith(clone.below)]
    outside = len(clone.changed(bad.parents[0], bad.sha)) - len(ours)
    files: dict[str, bytes | None] = {}
    modes: dict[str, str] = {}
    conflicts = []
    for name, before, after in ours:
        path = name.removeprefix(clone.below)
        old, new = _bytes(clone, before), _bytes(clone, after)
        here = base.read(path) if path in base.entries else None
        if here == old:
            continue
        if here == new:
            files[path] = old
        elif here is None or old is None or new is None:
            conflicts.append(path)
        else:
            merged = clone.merged(new, here, old)
            if merged is None:
                conflicts.append(path)
            elif merged != here:
                files[path] = merged
        if before is not None and path in files:
            modes[path] = before.mode
    if conflicts:
        raise Declined(
            f"commit {bad.sha[:12]} cannot be taken back: {', '.join(sorted(conflicts))} changed since",
            remedy="write the revert by hand, or use `reconciler rollback --to RELEASE`",
        )
    if not files:
        raise Declined(f"what commit {bad.sha[:12]} changed in the fleet repo is undone already")
    subject = bad.message.partition("\n")[0]
    says = [f"takes back commit {bad.sha[:12]} by {bad.author}: {subject}"]
    if outside:
        says.append(
            f"{outside} file{'s' if outside > 1 else ''} that it changed outside the fleet folder stay as they are"
        )
    return Change(
        f'Revert "{subject}"',
        f"revert/{bad.sha[:12]}",
        files,
        tuple(says),
        f"This reverts commit {bad.sha}.",
        modes=modes,
    )


def _bytes(clone: Clone, entry: TreeEntry | None) -> bytes | None:
    return None if entry is None else clone.blobs([entry.blob])[entry.blob]
