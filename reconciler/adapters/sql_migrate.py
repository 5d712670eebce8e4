"""Brings a store to this program's schema when it is opened, and refuses one that is not ours or is newer.

Called by `adapters.sql.open_store`. Alembic is imported only where there is something to migrate: commands that look
at an up-to-date store need not pay for it.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

from reconciler.adapters.sql_schema import metadata
from reconciler.ports import TerminalError

HEAD = "0004"
"""The newest revision in `migrations/versions`; a test holds it to them."""
KNOWN = ("0001", "0002", "0003", HEAD)
"""Every revision, oldest first."""


def revision_of(connection: Connection) -> str | None:
    """The store's revision, None for an empty database. TerminalError: another program's database."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if tables & set(metadata.tables) or (tables and connection.dialect.name == "sqlite"):
        raise TerminalError(
            "the database holds tables that this program did not make",
            needed_for="the store",
            remedy="give the store a file (or database) of its own in the settings",
        )
    return None


def migrate(connection: Connection) -> bool:
    """Upgrade to `HEAD` inside the caller's transaction; returns whether there was anything to do.

    TerminalError: the store was written by a newer version of this program.
    """
    revision = revision_of(connection)
    if revision == HEAD:
        return False
    if revision is not None and revision not in KNOWN:
        raise TerminalError(
            f"the store has schema {revision!r}, which this version does not know (it knows up to {HEAD!r})",
            needed_for="the store",
            remedy="run the newer version of reconciler that wrote it, or restore a backup made before the upgrade",
        )
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "reconciler.adapters:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return True
