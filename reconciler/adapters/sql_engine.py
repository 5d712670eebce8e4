"""Connections, transactions and errors of the SQL store. Knows no table; called by `adapters.sql` alone.

On SQLite: WAL, `synchronous=FULL` (a commit survives a power cut), foreign keys, a busy timeout, and writers that
take the write lock at the start (`BEGIN IMMEDIATE`), so that what a transaction read is still true when it writes.
Every foreign error leaves as a `PortError`; statement parameters are never shown, since they may hold a token's hash.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql import ColumnElement

from reconciler.ports import PortError, TerminalError, TransientError

BUSY_TIMEOUT_S = 15.0
"""How long a writer waits for another one before it gives up for now."""

CHUNK = 500
"""Values in one IN list: below every database's limit on parameters."""

_CONNECTIONS = 16
# More threads than these queue for a connection: to open one costs more than to wait for one.
_WRITE = "reconciler_write"
_TRANSIENT = ("locked", "busy", "disk is full", "disk i/o", "connection", "timeout", "deadlock", "serialize")


def store_url(place: str | Path) -> URL:
    """A path, or an SQLAlchemy URL of SQLite or PostgreSQL → URL. TerminalError: neither."""
    text = str(place)
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).absolute()))
    try:
        url = make_url(text)
        name = url.get_backend_name()
    except ArgumentError:
        name = ""
    if name not in ("sqlite", "postgresql"):
        # The text itself may hold a password, so it is not repeated.
        raise TerminalError(
            "the store's address is neither a path nor a sqlite:// or postgresql:// URL",
            needed_for="the store",
            remedy="write the path of the store's file, as state/store.db",
        )
    return url


def open_engine(url: URL, *, create: bool, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Engine:
    """An engine whose connections are set up as the module says. A new SQLite file is made for its owner alone (0600).

    TerminalError: no such file and `create` is False, the file cannot be made, or the driver is not installed.
    """
    connect_args: dict[str, Any] = {}
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        _prepare_file(url, create)
        connect_args = {"timeout": busy_timeout_s, "check_same_thread": False}
    try:
        engine = create_engine(
            url,
            connect_args=connect_args,
            hide_parameters=True,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=not sqlite,
        )
    except (NoSuchModuleError, ImportError) as error:
        raise TerminalError(
            f"no driver for the store's database: {error}", needed_for="the store", remedy="install the driver"
        ) from None
    if sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_file(url: URL, create: bool) -> None:
    if not url.database or url.database == ":memory:":
        raise TerminalError(
            "the store's URL names no file", needed_for="the store", remedy="name one, as sqlite:///state/store.db"
        )
    path = Path(url.database)
    if path.exists():
        return
    if not create:
        raise TerminalError(
            f"no store at {path}",
            needed_for="reading what is recorded",
            remedy="check `store` in the settings, or start `reconciler run` once to make it",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise TerminalError(
            f"cannot make the store {path}: {error.strerror}",
            needed_for="the store",
            remedy="make its folder writable for this user",
        ) from None


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver would begin transactions by itself, and late: `begin` below does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise sqlite3.NotSupportedError(f"journal_mode is {mode!r}, and the file system does not allow WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def translated(needed_for: str) -> Iterator[None]:
    """Let no database error out: those that may pass are transient, the others terminal."""
    try:
        yield
    except PortError:
        raise
    except PoolTimeout:
        raise TransientError("the store has no free connection", needed_for=needed_for, retry_after_s=1.0) from None
    except (SQLAlchemyError, sqlite3.Error) as error:
        # `str(DBAPIError)` would show the statement; the driver's own words are enough.
        cause = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
        if any(word in cause.lower() for word in _TRANSIENT) or getattr(error, "connection_invalidated", False):
            raise TransientError(
                f"the store is busy or unreachable: {cause}", needed_for=needed_for, retry_after_s=1.0
            ) from None
        raise TerminalError(
            f"the store refused: {cause}",
            needed_for=needed_for,
            remedy="check that the store's file is a store of this program, whole, and writable",
        ) from None


class Database:
    """Transactions over an engine. A thread has at most one at a time; what is nested joins it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._local = threading.local()
        # SQLite has one writer: threads of this process queue here instead of polling the file's lock.
        self._writers = threading.Lock()

    @contextmanager
    def read(self, needed_for: str) -> Iterator[Connection]:
        """A consistent view; the open transaction of this thread, if it has one."""
        held: Connection | None = getattr(self._local, "connection", None)
        with translated(needed_for):
            if held is not None:
                yield held
                return
            with self.engine.connect() as connection, connection.begin():
                yield connection

    @contextmanager
    def write(self, needed_for: str) -> Iterator[Connection]:
        """One transaction: all or nothing. Nested use joins the outer one, and its failure undoes the outer one too."""
        held: Connection | None = getattr(self._local, "connection", None)
        if held is not None:
            try:
                with translated(needed_for):
                    yield held
            except BaseException:
                self._local.doomed = True
                raise
            return
        with self._queued(needed_for), translated(needed_for), self.engine.connect() as plain:
            connection = plain.execution_options(**{_WRITE: True})
            with connection.begin() as transaction:
                self._local.connection, self._local.doomed = connection, False
                try:
                    yield connection
                    if self._local.doomed:
                        transaction.rollback()
                        raise TerminalError("a part of the transaction failed, so nothing of it is kept")
                finally:
                    self._local.connection = None

    @contextmanager
    def _queued(self, needed_for: str) -> Iterator[None]:
        if not self._writers.acquire(timeout=BUSY_TIMEOUT_S):
            raise TransientError("the store's writer is busy", needed_for=needed_for, retry_after_s=1.0)
        try:
            yield
        finally:
            self._writers.release()


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    where: Callable[[Any], ColumnElement[bool]] | None = None,
    keep: bool = False,
) -> None:
    """Insert rows by primary key, replacing what is there, or leaving it with `keep`: as SQLite and PostgreSQL say it.

    `where` gets the columns of the new row and may compare them with the table's: rows for which it is false stay as
    they are.
    """
    if not rows:
        return
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    statement: Any = insert(table)
    keys = [column.name for column in table.primary_key.columns]
    others = {c.name: statement.excluded[c.name] for c in table.columns if c.name in rows[0] and c.name not in keys}
    if keep or not others:
        statement = statement.on_conflict_do_nothing(index_elements=keys)
    else:
        condition = where(statement.excluded) if where is not None else None
        statement = statement.on_conflict_do_update(index_elements=keys, set_=others, where=condition)
    connection.execute(statement, list(rows))


def chunked(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """The values in pieces that fit one IN list."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
