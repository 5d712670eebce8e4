"""Operators' tokens, sessions, acknowledgements and the audit log in the store, over SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.adapters.sql_access import SESSIONS
from reconciler.adapters.sql_engine import open_engine, store_url
from reconciler.model.access import Acknowledgement, AuditEntry, Deed, OperatorToken, Outcome, Scope, Session
from reconciler.ports import TerminalError

NOW = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
DAY = timedelta(days=1)
READ = frozenset({Scope.READ})
LONG = {"idle_s": 43_200.0, "longest_s": 604_800.0}


@pytest.fixture
def store(place: str) -> Iterator[SqlStore]:
    opened = open_store(place)
    yield opened
    opened.close()


def token(name: str = "anna", at: datetime = NOW, expires: datetime | None = None) -> OperatorToken:
    return OperatorToken(name, READ, at, expires)


def test_a_token_is_found_by_its_hash_with_all_that_is_known_of_it(store: SqlStore) -> None:
    kept = OperatorToken("anna", frozenset({Scope.READ, Scope.ACKNOWLEDGE}), NOW, NOW + 90 * DAY)
    store.access.add_operator("aa", kept)
    assert store.access.operator("aa") == kept
    assert store.access.operator("bb") is None
    store.access.use_operator("aa", NOW + DAY)
    (listed,) = store.access.operators()
    assert listed.last_used_at == NOW + DAY


def test_a_name_has_one_good_token(store: SqlStore) -> None:
    store.access.add_operator("aa", token(expires=NOW + DAY))
    with pytest.raises(TerminalError, match="anna has a token that is good"):
        store.access.add_operator("bb", token())
    assert store.access.operator("bb") is None
    store.access.add_operator("bb", token(), replace=True)
    assert (store.access.operator("aa"), store.access.operator("bb")) == (None, token())
    # One that was revoked, or has expired, gives way without a word.
    assert store.access.revoke_operator("anna", NOW)
    store.access.add_operator("cc", token(expires=NOW + DAY))
    store.access.add_operator("dd", token(at=NOW + DAY))
    assert store.access.operator("dd") is not None


def test_revoking_ends_a_token_and_its_sessions(store: SqlStore) -> None:
    for name, token_hash in (("anna", "aa"), ("ben", "bb")):
        store.access.add_operator(token_hash, token(name))
        store.access.add_session(f"s-{name}", Session(token_hash, NOW, NOW), **LONG)
    assert [store.access.revoke_operator("anna", NOW + DAY) for _ in range(2)] == [True, False]
    assert not store.access.revoke_operator("nobody", NOW)
    found = store.access.operator("aa")
    assert found is not None
    assert (found.revoked_at, found.valid(NOW)) == (NOW + DAY, False)
    assert (store.access.session("s-anna"), store.access.session("s-ben")) == (None, Session("bb", NOW, NOW))


def test_sessions_that_have_ended_are_dropped(store: SqlStore) -> None:
    store.access.add_session("idle", Session("aa", NOW, NOW), **LONG)
    store.access.add_session("used", Session("aa", NOW, NOW), **LONG)
    store.access.use_session("used", NOW + timedelta(hours=11))
    later = NOW + timedelta(hours=12)
    store.access.add_session("new", Session("aa", later, later, "192.0.2.7"), **LONG)
    assert [store.access.session(name) is not None for name in ("idle", "used", "new")] == [False, True, True]
    assert [store.access.end_session("new") for _ in range(2)] == [True, False]


def test_a_token_has_so_many_sessions_and_no_more(store: SqlStore) -> None:
    for number in range(SESSIONS + 2):
        at = NOW + timedelta(seconds=number)
        store.access.add_session(f"s{number}", Session("aa", at, at), **LONG)
    store.access.add_session("other", Session("bb", NOW, NOW), **LONG)
    there = [store.access.session(f"s{number}") is not None for number in range(SESSIONS + 2)]
    assert there == [False, False, *[True] * SESSIONS]
    assert store.access.session("other") is not None


def test_acknowledgements_of_a_device_are_replaced_together(store: SqlStore) -> None:
    one = Acknowledgement("A-1", "v1.4.2", "anna", NOW, "disk ordered")
    two = Acknowledgement("A-1", "video-ingest@2.8.0", "anna", NOW)
    other = Acknowledgement("B-1", "v1.4.2", "ben", NOW)
    store.access.acknowledge("A-1", [one, two])
    store.access.acknowledge("B-1", [other])
    assert store.access.acknowledgements() == [one, two, other]
    store.access.acknowledge("A-1", [two])
    assert store.access.acknowledgements("A-1") == [two]
    store.access.acknowledge("A-1", [])
    assert store.access.acknowledgements() == [other]


def deed(at: datetime, outcome: Outcome = Outcome.DONE) -> AuditEntry:
    return AuditEntry(at, "anna", "192.0.2.7", Deed.LOGIN, "", outcome)


def test_the_audit_log_is_read_newest_first_and_page_by_page(store: SqlStore) -> None:
    for day in range(5):
        store.access.add_audit(deed(NOW + day * DAY))
    newest = store.access.audit(limit=2)
    assert [entry.at for entry in newest] == [NOW + 4 * DAY, NOW + 3 * DAY]
    older = store.access.audit(before=newest[-1].id, limit=2)
    assert [entry.at for entry in older] == [NOW + 2 * DAY, NOW + DAY]
    assert len(store.access.audit(since=NOW + 3 * DAY)) == 2


def test_the_audit_log_is_bounded_in_age_and_in_refusals(store: SqlStore) -> None:
    for day in range(4):
        store.access.add_audit(deed(NOW + day * DAY))
        store.access.add_audit(deed(NOW + day * DAY, Outcome.REFUSED))
    assert store.access.prune_audit(NOW + DAY, refused=2) == 2 + 1
    kept = [(entry.at, entry.outcome) for entry in store.access.audit()]
    assert kept == [
        (NOW + 3 * DAY, Outcome.REFUSED),
        (NOW + 3 * DAY, Outcome.DONE),
        (NOW + 2 * DAY, Outcome.REFUSED),
        (NOW + 2 * DAY, Outcome.DONE),
        (NOW + DAY, Outcome.DONE),
    ]
    assert store.access.prune_audit(NOW, refused=2) == 0


def test_what_is_undone_in_the_store_is_undone_here_too(store: SqlStore) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.access.add_operator("aa", token())
        store.access.add_audit(deed(NOW))
        raise ZeroDivisionError
    assert (store.access.operators(), store.access.audit()) == ([], [])


def test_scopes_of_a_newer_version_let_nobody_in(store: SqlStore) -> None:
    store.access.add_operator("aa", token())
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE operators SET scopes = 'read,launch'")
    with pytest.raises(TerminalError, match="does not know"):
        store.access.operator("aa")


def test_a_store_of_the_version_before_is_upgraded_and_keeps_what_it_has(tmp_path: Path) -> None:
    engine = open_engine(store_url(tmp_path / "store.db"), create=True)
    config = Config()
    config.set_main_option("script_location", "reconciler.adapters:migrations")
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO tokens VALUES ('A-1', 'dd', '2026-01-15 01:30:00')")
    engine.dispose()
    store = open_store(tmp_path / "store.db")
    assert store.device_of_token("dd") == "A-1"
    store.access.add_operator("aa", token())
    store.close()
