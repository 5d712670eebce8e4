"""Operators' tokens, sessions, acknowledgements and the audit log in SQL. Implements `server.ports.AccessStore`; decides nothing.

Made by `adapters.sql.SqlStore`, over its database and its transactions. Hashes alone are kept: who reads the store can neither
speak for an operator nor take over a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from reconciler.adapters.sql_engine import Database
from reconciler.adapters.sql_schema import acknowledgements, audit, operators, sessions
from reconciler.model.access import (
    Acknowledgement,
    AuditEntry,
    Deed,
    OperatorToken,
    Outcome,
    Scope,
    Session,
    parse_scopes,
)
from reconciler.ports import TerminalError

SESSIONS = 50
"""Sessions of one token at once; the one that was opened first gives way."""


class SqlAccess:
    """`server.ports.AccessStore` over the store's database. Safe for use by many threads."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # ------------------------------------------------------------ operators

    def add_operator(self, token_hash: str, token: OperatorToken, *, replace: bool = False) -> None:
        """Keep an operator's token; see the port."""
        with self._db.write("making an operator's token") as connection:
            found = connection.execute(select(operators).where(operators.c.name == token.name)).one_or_none()
            if found is not None and _operator(found).valid(token.created_at) and not replace:
                raise TerminalError(
                    f"{token.name} has a token that is good",
                    needed_for="making another",
                    remedy="give --replace to make the old one invalid, or choose another name",
                )
            connection.execute(delete(operators).where(operators.c.name == token.name))
            row = {
                "name": token.name,
                "hash": token_hash,
                "scopes": ",".join(sorted(token.scopes)),
                "created_at": token.created_at,
                "expires_at": token.expires_at,
                "last_used_at": token.last_used_at,
                "revoked_at": token.revoked_at,
            }
            connection.execute(insert(operators).values(row))

    def operator(self, token_hash: str) -> OperatorToken | None:
        """Whose token has this hash; found by an index, which tells nothing, as for devices."""
        with self._db.read("recognising an operator") as connection:
            found = connection.execute(select(operators).where(operators.c.hash == token_hash)).one_or_none()
            return _operator(found) if found is not None else None

    def operators(self) -> Sequence[OperatorToken]:
        """All of them, by name."""
        with self._db.read("the operators' tokens") as connection:
            return [_operator(row) for row in connection.execute(select(operators).order_by(operators.c.name))]

    def revoke_operator(self, name: str, at: datetime) -> bool:
        """Make a token invalid, and end its sessions."""
        with self._db.write("revoking a token") as connection:
            mine = (operators.c.name == name) & operators.c.revoked_at.is_(None)
            token_hash = connection.execute(select(operators.c.hash).where(mine)).scalar_one_or_none()
            if token_hash is None:
                return False
            connection.execute(update(operators).where(mine).values(revoked_at=at))
            connection.execute(delete(sessions).where(sessions.c.token_hash == token_hash))
            return True

    def use_operator(self, token_hash: str, at: datetime) -> None:
        """Note when it was last used."""
        with self._db.write("noting that a token was used") as connection:
            connection.execute(update(operators).where(operators.c.hash == token_hash).values(last_used_at=at))

    # ------------------------------------------------------------ sessions

    def add_session(self, session_hash: str, session: Session, *, idle_s: float, longest_s: float) -> None:
        """Open a session, and drop those that have ended."""
        now = session.created_at
        with self._db.write("opening a session") as connection:
            ended = (sessions.c.seen_at <= now - timedelta(seconds=idle_s)) | (
                sessions.c.created_at <= now - timedelta(seconds=longest_s)
            )
            connection.execute(delete(sessions).where(ended))
            mine = select(sessions.c.hash).where(sessions.c.token_hash == session.token_hash)
            newest_first = mine.order_by(sessions.c.created_at.desc(), sessions.c.hash).offset(SESSIONS - 1)
            too_many = connection.execute(newest_first).scalars().all()
            connection.execute(delete(sessions).where(sessions.c.hash.in_(too_many)))
            connection.execute(
                insert(sessions).values(
                    hash=session_hash,
                    token_hash=session.token_hash,
                    created_at=now,
                    seen_at=session.seen_at,
                    address=session.address,
                )
            )

    def session(self, session_hash: str) -> Session | None:
        """The session with this hash."""
        with self._db.read("recognising a session") as connection:
            row = connection.execute(select(sessions).where(sessions.c.hash == session_hash)).one_or_none()
            return Session(row.token_hash, row.created_at, row.seen_at, row.address) if row is not None else None

    def use_session(self, session_hash: str, at: datetime) -> None:
        """Note when it was last used."""
        with self._db.write("noting that a session was used") as connection:
            connection.execute(update(sessions).where(sessions.c.hash == session_hash).values(seen_at=at))

    def end_session(self, session_hash: str) -> bool:
        """End a session; returns whether there was one."""
        with self._db.write("ending a session") as connection:
            return connection.execute(delete(sessions).where(sessions.c.hash == session_hash)).rowcount == 1

    # ------------------------------------------------------------ acknowledgements

    def acknowledge(self, device: str, given: Sequence[Acknowledgement]) -> None:
        """Keep these as all the acknowledgements of the device."""
        with self._db.write("acknowledging a flag") as connection:
            connection.execute(delete(acknowledgements).where(acknowledgements.c.device == device))
            rows = [
                {"device": device, "release": one.release, "by": one.by, "at": one.at, "note": one.note}
                for one in given
            ]
            if rows:
                connection.execute(insert(acknowledgements), rows)

    def acknowledgements(self, device: str | None = None) -> Sequence[Acknowledgement]:
        """All of them, or a device's, by device and release."""
        query = select(acknowledgements).order_by(acknowledgements.c.device, acknowledgements.c.release)
        if device is not None:
            query = query.where(acknowledgements.c.device == device)
        with self._db.read("the acknowledgements") as connection:
            return [
                Acknowledgement(row.device, row.release, row.by, row.at, row.note) for row in connection.execute(query)
            ]

    # ------------------------------------------------------------ the audit log

    def add_audit(self, entry: AuditEntry) -> None:
        """Write a deed down."""
        with self._db.write("the audit log") as connection:
            connection.execute(
                insert(audit).values(
                    at=entry.at,
                    who=entry.who,
                    address=entry.address,
                    what=entry.what.value,
                    about=entry.about,
                    outcome=entry.outcome.value,
                )
            )

    def audit(
        self, *, since: datetime | None = None, before: int | None = None, limit: int = 100
    ) -> Sequence[AuditEntry]:
        """Deeds, newest first."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if since is not None:
            query = query.where(audit.c.at >= since)
        if before is not None:
            query = query.where(audit.c.id < before)
        with self._db.read("the audit log") as connection:
            return [
                AuditEntry(row.at, row.who, row.address, Deed(row.what), row.about, Outcome(row.outcome), row.id)
                for row in connection.execute(query)
            ]

    def prune_audit(self, before: datetime, *, refused: int) -> int:
        """Drop what is old, and of what was refused all but the newest."""
        with self._db.write("pruning the audit log") as connection:
            old = connection.execute(delete(audit).where(audit.c.at < before)).rowcount
            of_refused = audit.c.outcome == Outcome.REFUSED.value
            newest = select(audit.c.id).where(of_refused).order_by(audit.c.id.desc())
            last = connection.execute(newest.offset(refused).limit(1)).scalar_one_or_none()
            if last is not None:
                old += connection.execute(delete(audit).where(of_refused & (audit.c.id <= last))).rowcount
            return old


def _operator(row: Row[Any]) -> OperatorToken:
    return OperatorToken(
        row.name, _scopes(row.scopes), row.created_at, row.expires_at, row.last_used_at, row.revoked_at
    )


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return parse_scopes(text)
    except ValueError:
        raise TerminalError(
            f"a token on record has scopes that this version does not know: {text!r}",
            needed_for="recognising an operator",
            remedy="make that token again with `reconciler token operator --replace`",
        ) from None
