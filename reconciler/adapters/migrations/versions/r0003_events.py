"""What happened: events, and the log of devices' health."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Two tables, and the counter that numbers events. There is no way down: an older program is run on a backup."""
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=512), nullable=False),
        sa.Column("commit_sha", sa.String(length=64), nullable=True),
        sa.Column("wave", sa.String(length=63), nullable=True),
        sa.Column("site", sa.String(length=63), nullable=True),
        sa.Column("device", sa.String(length=63), nullable=True),
        sa.Column("release", sa.String(length=192), nullable=True),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    for column in ("at", "commit_sha", "wave", "device"):
        op.create_index(op.f(f"ix_events_{column}"), "events", [column], unique=False)
    op.create_index("uq_events_kind_key", "events", ["kind", "key"], unique=True)
    op.create_table(
        "health_log",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("health", sa.String(length=8), nullable=False),
        sa.Column("release", sa.String(length=192), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_health_log")),
    )
    op.create_index(op.f("ix_health_log_at"), "health_log", ["at"], unique=False)
    op.create_index("ix_health_log_device_id", "health_log", ["device", "id"], unique=False)
    counters = sa.table("counters", sa.column("name", sa.String), sa.column("value", sa.BigInteger))
    op.bulk_insert(counters, [{"name": "event", "value": 0}])
