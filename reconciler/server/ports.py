"""What access control asks of a store: operators' tokens, sessions, acknowledgements and the audit log, as one Protocol.

Beside `ports.Store` and over the same database: the loop needs nothing of it. Implemented by `adapters.sql_access`. Every method
is one transaction, or joins the one that its thread has open in the store. TransientError: busy or unreachable.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from reconciler.model.access import Acknowledgement, AuditEntry, OperatorToken, Session


class AccessStore(Protocol):
    """Hashes are sha256, 64 hexadecimal digits: neither a token nor a session's id is ever given to a store."""

    def add_operator(self, token_hash: str, token: OperatorToken, *, replace: bool = False) -> None:
        """Keep an operator's token. One that is no longer good gives way; TerminalError: a good one has the name, and
        `replace` is not said."""

    def operator(self, token_hash: str) -> OperatorToken | None:
        """Whose token has this hash, good or not any more; None where it is nobody's."""

    def operators(self) -> Sequence[OperatorToken]:
        """All of them, by name, those that are expired or revoked too."""

    def revoke_operator(self, name: str, at: datetime) -> bool:
        """Make the token of this name invalid; returns whether there was one that was not revoked. Its sessions end with it."""

    def use_operator(self, token_hash: str, at: datetime) -> None:
        """Note when it was last used."""

    def add_session(self, session_hash: str, session: Session, *, idle_s: float, longest_s: float) -> None:
        """Open a session. Those that have ended are dropped, and a token's oldest where it has too many."""

    def session(self, session_hash: str) -> Session | None:
        """The session with this hash, or None."""

    def use_session(self, session_hash: str, at: datetime) -> None:
        """Note when it was last used."""

    def end_session(self, session_hash: str) -> bool:
        """End a session; returns whether there was one."""

    def acknowledge(self, device: str, given: Sequence[Acknowledgement]) -> None:
        """Keep these as all the acknowledgements of the device."""

    def acknowledgements(self, device: str | None = None) -> Sequence[Acknowledgement]:
        """All of them, or a device's, by device and release. Whether one still covers a flag is its caller's to decide."""

    def add_audit(self, entry: AuditEntry) -> None:
        """Write a deed down."""

    def audit(
        self, *, since: datetime | None = None, before: int | None = None, limit: int = 100
    ) -> Sequence[AuditEntry]:
        """Deeds, newest first: not older than `since`, with an id below `before`, `limit` at most."""

    def prune_audit(self, before: datetime, *, refused: int) -> int:
        """Drop deeds older than an instant, and of those that were refused all but the newest `refused`; returns how many."""
