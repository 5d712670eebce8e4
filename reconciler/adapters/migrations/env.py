"""Alembic's environment: runs the revisions over the connection and in the transaction of whoever opens the store."""

from __future__ import annotations

from alembic import context

from reconciler.adapters.sql_schema import metadata

connection = context.config.attributes["connection"]
# SQLite's schema changes are transactional too, since the store begins its transactions itself: half an upgrade
# cannot be.
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
