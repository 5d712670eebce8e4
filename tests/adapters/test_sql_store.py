"""The SQL store: the port's contract, its files, its schema, and what it says when something is wrong."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from reconciler.adapters import sql_migrate
from reconciler.adapters.sql import SqlStore, open_store
from reconciler.adapters.sql_schema import metadata
from reconciler.model.observed import CheckChange, DeviceObservation, Health
from reconciler.ports import Store, TerminalError, TransientError
from tests.adapters.store_contract import NOW, Opener, StoreContract, seen


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Callable[[], Store]]:
    opened: list[SqlStore] = []

    def open_it() -> Store:
        opened.append(open_store(tmp_path / "state" / "store.db"))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


class TestSqlStore(StoreContract):
    """The contract, over SQLite."""


def test_an_export_is_of_one_instant_and_reads_devices_as_they_are_asked_for(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db")
    names = [f"SITE-{number:04}-1" for number in range(2500)]
    store.observe([seen(name) for name in names], sequences={})
    with store.export() as export:
        store.observe([seen(names[-1], image="v9"), seen("SITE-9999-1")], sequences={})
        found = [DeviceObservation.model_validate_json(text) for text in export.devices]
    assert found == [seen(name) for name in names]
    assert export.facts == store.facts()
    with store.export() as later:
        assert later.cursor > export.cursor
        assert sum(1 for _ in later.devices) == 2501
    store.close()


def test_sqlite_keeps_commits_over_a_power_cut(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db")
    with store.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 15000}
    store.close()


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    open_store(tmp_path / "new" / "store.db").close()
    assert stat.S_IMODE((tmp_path / "new" / "store.db").stat().st_mode) == 0o600


def test_the_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db")
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        # Alembic does not compare the condition of a partial index, and it is what keeps open actions single.
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        made = {row.name: row.sql for row in connection.exec_driver_sql(query)}
        for table in metadata.tables.values():
            for index in table.indexes:
                assert made[str(index.name)] == str(CreateIndex(index).compile(store.engine)), index.name
    store.close()


def test_the_newest_revision_is_the_one_the_program_knows() -> None:
    config = Config()
    config.set_main_option("script_location", "reconciler.adapters:migrations")
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [sql_migrate.HEAD]
    assert {revision.revision for revision in script.walk_revisions()} == set(sql_migrate.KNOWN)


def test_postgresql_would_accept_every_table() -> None:
    dialect = postgresql.dialect()
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE" in str(CreateIndex(index).compile(dialect=dialect))


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(TerminalError, match=r"'9999', which this version does not know.*newer version"):
        open_store(path)


def test_an_upgrade_that_is_killed_leaves_an_empty_store_that_upgrades(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_args: object) -> bool:
        sql_migrate.migrate(*_args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("reconciler.adapters.sql.migrate", stop)
        with pytest.raises(KeyboardInterrupt):
            open_store(tmp_path / "store.db")
    store = open_store(tmp_path / "store.db")
    assert store.begin_epoch() == 1
    store.close()


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.commit()
    connection.close()
    with pytest.raises(TerminalError, match="this program did not make"):
        open_store(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n" * 100)
    with pytest.raises(TerminalError, match=r"not a database.*check that the store's file"):
        open_store(path)


@pytest.mark.parametrize("place", ["mysql://root:hunter2@host/db", "ftp://x", "sqlite://", "://"])
def test_a_place_that_cannot_be_a_store_is_refused_without_repeating_it(place: str) -> None:
    with pytest.raises(TerminalError) as caught:
        open_store(place)
    assert "hunter2" not in str(caught.value)


def test_a_store_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="no store at"):
        open_store(tmp_path / "store.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TerminalError, match="cannot make the store"):
        open_store(tmp_path / "file" / "store.db")


def test_a_locked_store_is_a_transient_error(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store.db", busy_timeout_s=0.05)
    holder = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientError, match="database is locked") as caught:
        store.begin_epoch()
    assert caught.value.retry_after_s
    holder.execute("ROLLBACK")
    holder.close()
    assert store.begin_epoch() == 1
    store.close()


def test_a_row_that_an_earlier_version_wrote_is_read_and_goes_on(stores: Opener, tmp_path: Path) -> None:
    store = stores()
    store.observe([seen("A")], sequences={"A": ("a", 1)})
    connection = sqlite3.connect(tmp_path / "state" / "store.db")
    # As it was before checks were kept: names alone.
    old = '{"name":"A","image":"v1","health":"critical","checksWorse":["vpn"]}'
    connection.execute("UPDATE observations SET document = ?", (old,))
    connection.commit()
    connection.close()
    (found,) = store.snapshot().devices
    assert (found.checks_worse, found.checks, found.attempt) == (("vpn",), (), None)
    more = found.model_copy(update={"checks": (CheckChange(name="vpn", now=Health.CRITICAL, since=NOW),)})
    store.observe([more], sequences={"A": ("a", 2)})
    assert stores().snapshot().devices == (more,)


def test_a_healthy_device_has_the_row_that_it_always_had(stores: Opener, tmp_path: Path) -> None:
    store = stores()
    store.observe([seen("A", image="v1", health=Health.OK)], sequences={"A": ("a", 1)})
    connection = sqlite3.connect(tmp_path / "state" / "store.db")
    ((document,),) = connection.execute("SELECT document FROM observations")
    connection.close()
    assert set(json.loads(document)) == {"name", "image", "health", "lastSeen"}


def test_a_damaged_row_is_named(stores: Opener, tmp_path: Path) -> None:
    store = stores()
    store.observe([seen("A")], sequences={"A": ("a", 1)})
    connection = sqlite3.connect(tmp_path / "state" / "store.db")
    connection.execute("""UPDATE observations SET document = '{"name": "A", "health": "purple"}'""")
    connection.commit()
    connection.close()
    with pytest.raises(TerminalError, match="'A' cannot be read"):
        store.snapshot()


def test_no_error_shows_a_tokens_hash(stores: Opener, tmp_path: Path) -> None:
    store = stores()
    connection = sqlite3.connect(tmp_path / "state" / "store.db")
    connection.execute("DROP TABLE tokens")
    connection.commit()
    connection.close()
    with pytest.raises(TerminalError) as caught:
        store.add_token("A", "5ec7e7", NOW)
    assert "5ec7e7" not in str(caught.value)
    assert "tokens" in str(caught.value)
