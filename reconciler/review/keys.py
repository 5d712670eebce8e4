"""Signing keys that expire before a rollout ends. Pure: told what the keyrings hold, it says which of it matters, and when.

A device refuses what an expired key signed, whenever it was signed; so a key must outlive the calendar. Called by `review.make`
with what `adapters.gpg_keys` read. Source: design §5 "Trust".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reconciler.model.scalars import format_instant
from reconciler.ports import PublicKey

SOON_DAYS = 30


@dataclass(frozen=True, slots=True)
class Keyring:
    """A keyring that was read: where it is, and its keys."""

    place: str
    keys: tuple[PublicKey, ...]


@dataclass(frozen=True, slots=True)
class KeyNote:
    """One key, and what is wrong with it (`expires`, `expired`, `revoked`), or `fine`."""

    place: str
    fingerprint: str
    user: str
    expires_at: datetime | None
    state: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "keyring": self.place,
            "fingerprint": self.fingerprint,
            "user": self.user,
            "expiresAt": format_instant(self.expires_at) if self.expires_at is not None else None,
            "state": self.state,
        }


@dataclass(frozen=True, slots=True)
class Keys:
    """What was found. `missing` are release keys that `Fleet` names and no keyring holds; `unread` says why nothing was read."""

    notes: tuple[KeyNote, ...]
    missing: tuple[str, ...]
    unread: str

    @property
    def bad(self) -> tuple[KeyNote, ...]:
        """Keys that end the rollout early."""
        return tuple(note for note in self.notes if note.state != "fine")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "looked": not self.unread,
            "unread": self.unread or None,
            "keys": [note.to_dict() for note in self.notes],
            "missing": list(self.missing),
        }


def keys_of(
    keyrings: Sequence[Keyring], unread: str, release_keys: Iterable[str], at: datetime, until: datetime
) -> Keys:
    """Judge every key for a rollout that runs from `at` until `until`. A key that is in several keyrings is told once each."""
    notes = [
        KeyNote(ring.place, key.fingerprint, key.user, key.expires_at, _state(key, at, until))
        for ring in keyrings
        for key in ring.keys
    ]
    known = {note.fingerprint for note in notes}
    missing = sorted({key.upper() for key in release_keys} - known) if notes else []
    return Keys(tuple(notes), tuple(missing), unread)


def _state(key: PublicKey, at: datetime, until: datetime) -> str:
    if key.revoked:
        return "revoked"
    if key.expires_at is None or key.expires_at > until:
        return "fine"
    return "expired" if key.expires_at <= at else "expires"
