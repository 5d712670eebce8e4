"""The store over PostgreSQL: the same contract as over SQLite, on a real server, and the tables that its migrations make."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.adapters.sql_engine import store_url
from reconciler.adapters.sql_schema import events, metadata
from reconciler.ports import Store, TerminalError, TransientError
from tests.adapters.store_contract import StoreContract
from tests.support.postgres import Cluster

pytestmark = pytest.mark.system


@pytest.fixture
def stores(postgres: Cluster) -> Iterator[Callable[[], Store]]:
    opened: list[SqlStore] = []
    url = postgres.store_url()

    def open_it() -> Store:
        opened.append(open_store(url))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()
    postgres.drop(url)


class TestPostgresStore(StoreContract):
    """The contract, over PostgreSQL."""


@pytest.fixture
def empty(postgres: Cluster) -> Iterator[str]:
    url = postgres.url()
    yield url
    postgres.drop(url)


def test_the_migrations_make_what_the_tables_say(empty: str) -> None:
    store = open_store(empty)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        made = {
            row.indexname: row.indexdef
            for row in connection.exec_driver_sql("SELECT indexname, indexdef FROM pg_indexes")
        }
    # Alembic does not compare the condition of a partial index, and it is what keeps open actions single.
    partial = {name for name, text in made.items() if " WHERE " in text and not name.startswith("pg_")}
    wanted = {
        str(index.name)
        for table in metadata.tables.values()
        for index in table.indexes
        if index.dialect_options["postgresql"]["where"] is not None
    }
    assert partial == wanted and wanted
    assert store.begin_epoch() == 1
    store.close()


def test_a_database_of_another_program_or_a_newer_version_is_left_alone(empty: str, postgres: Cluster) -> None:
    store = open_store(empty)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    with pytest.raises(TerminalError, match="'9999', which this version does not know"):
        open_store(empty)


def test_a_server_that_is_away_is_a_passing_trouble_and_no_secret_is_shown(empty: str) -> None:
    away = store_url("postgresql+psycopg2://ops:hunter2@127.0.0.1:1/store")
    with pytest.raises(TransientError) as caught:
        open_store(away.render_as_string(hide_password=False))
    assert "hunter2" not in str(caught.value)
    store = open_store(empty)
    with pytest.raises(TerminalError) as refused, store._db.write("a test") as connection:
        connection.execute(insert(events), [{"id": 1, "kind": "x" * 99, "key": "s3cret"}])
    assert "s3cret" not in str(refused.value)
    store.close()
