"""Whether the branch's new head may come into force. Pure: it is told all it needs, and reads nothing.

The controller calls it with a head that has loaded without errors; at a refusal the last good commit stays in force and
the condition shows the reason. It does not judge what the documents say (`repo.check`), nor who pushed (the server's).

Three rules; the first that applies is the reason:

1. `rewritten`: the head does not follow from the last good commit. A forced push, or the branch was reset.
2. `unsigned`: commit signatures are required, and the head has none by an allowed signer. Only the head is asked: its
   signature covers its whole tree, and through its parents its history.
3. `removal-unconfirmed`: more than 5 % of the sites in force are gone (by name; a renamed site is one removed and one
   added), and the message of the head has no line that confirms exactly as many:

       Confirm-Removed-Sites: 12

   The key is read in any case. The line may stand anywhere after the message's first line (a merge's message holds the
   pull request's text), indented or not. Lines of that key that differ from each other confirm nothing.

Source: design §3.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

CONFIRM_KEY = "Confirm-Removed-Sites"
REMOVED_PERCENT = 5
"""More than this many of a hundred sites removed at once wants a confirmation; exactly as many does not."""

_CONFIRM = re.compile(rf"^[ \t]*{CONFIRM_KEY}[ \t]*:[ \t]*(.*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Refusal(StrEnum):
    """Why a head is not put in force."""

    REWRITTEN = "rewritten"
    UNSIGNED = "unsigned"
    REMOVAL_UNCONFIRMED = "removal-unconfirmed"


@dataclass(frozen=True, slots=True)
class Head:
    """The branch's head: hash, message, and the allowed signer's fingerprint (None: unsigned, or by another key)."""

    sha: str
    message: str
    signer: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The head may come into force. `removed` are the sites that go with it, sorted."""

    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The head may not. `message` says what is wrong, why it matters, and what to do."""

    reason: Refusal
    message: str


def accept(
    head: Head,
    *,
    last_good: str | None,
    is_ancestor: bool,
    signature_required: bool,
    allowed_signers: Collection[str],
    sites_before: Collection[str],
    sites_after: Collection[str],
) -> Accepted | Refused:
    """Judge a head. `is_ancestor`: `last_good` is an ancestor of it; both are of no meaning where nothing is in force
    yet (None).
    """
    if last_good is not None and last_good != head.sha and not is_ancestor:
        return Refused(
            Refusal.REWRITTEN,
            f"{head.sha[:12]} does not follow from {last_good[:12]}, the commit in force: the branch was rewritten; "
            f"push a commit that has {last_good[:12]} among its ancestors (git revert instead of git reset)",
        )
    # Checked against the allowed ones here too: the source may have been told others.
    if signature_required and (
        head.signer is None or head.signer.upper() not in {key.upper() for key in allowed_signers}
    ):
        by = "has no valid signature" if head.signer is None else f"is signed by {head.signer}, which is not allowed"
        return Refused(
            Refusal.UNSIGNED,
            f"{head.sha[:12]} {by}, and the settings require one by an allowed signer; "
            "merge it again with a signed commit (git commit -S), or correct the allowed signers",
        )
    removed = tuple(sorted(set(sites_before) - set(sites_after)))
    if len(removed) * 100 > REMOVED_PERCENT * len(set(sites_before)):
        confirmed = _confirmed(head.message)
        if confirmed != len(removed):
            return Refused(Refusal.REMOVAL_UNCONFIRMED, _unconfirmed(head, removed, len(set(sites_before)), confirmed))
    return Accepted(removed)


def _confirmed(message: str) -> int | None:
    """The count that the message confirms, None where it confirms none, or where its lines differ."""
    values = set(_CONFIRM.findall(message.partition("\n")[2]))
    if len(values) != 1:
        return None
    value = values.pop()
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else None


def _unconfirmed(head: Head, removed: tuple[str, ...], before: int, confirmed: int | None) -> str:
    shown = ", ".join(removed[:5]) + (f" and {len(removed) - 5} more" if len(removed) > 5 else "")
    said = "confirms no count" if confirmed is None else f"confirms {confirmed}"
    return (
        f"{head.sha[:12]} removes {len(removed)} of {before} sites ({shown}), more than {REMOVED_PERCENT} %, "
        f"and its message {said}; if that is meant, push a commit on top "
        f"whose message has the line `{CONFIRM_KEY}: {len(removed)}`"
    )
