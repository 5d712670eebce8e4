"""Tables of the store, as SQLAlchemy Core sees them. Decides and opens nothing; `migrations/` makes the same.

Portable on purpose: every construct here exists in SQLite and in PostgreSQL, so that the same store can serve several
replicas later. Documents are JSON text in the model's own camelCase; instants are UTC. A test compares these tables
with what the migrations make. Source: design §6, "State that must survive".
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
)


class UtcInstant(TypeDecorator[datetime]):
    """An aware UTC datetime. SQLite forgets the zone, so it is put back when read; a naive value is a defect and is
    refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database, in UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant without an offset cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """From the database, aware."""
        if value is None:
            return None
        instant: datetime = value
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


# SQLite numbers rows by itself only where the key is called INTEGER; elsewhere a row number needs 64 bits.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# `epoch` is the writer in office, `serial` the last assignment number given out, `change` the last change number. One
# row each, updated in place: the row's lock makes change numbers appear in the order of commits, which a sequence
# would not.
counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# One row a device. `boots` is the short memory of boot ids and sequences by which late and doubled reports are known.
observations = Table(
    "observations",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("document", Text, nullable=False),
    Column("boot_id", String(128)),
    Column("sequence", BigInteger),
    Column("boots", Text, nullable=False),
    Column("change", BigInteger, nullable=False, index=True),
)

# Proofs and failures. At most one open verdict of a kind for a wave and release; closed ones are history.
verdicts = Table(
    "verdicts",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("verdict", String(8), nullable=False),
    Column("wave", String(63), nullable=False),
    Column("release", String(192), nullable=False),
    Column("at", UtcInstant, nullable=False),
    Column("closed", Boolean, nullable=False),
)
Index(
    "uq_verdicts_open",
    verdicts.c.verdict,
    verdicts.c.wave,
    verdicts.c.release,
    unique=True,
    sqlite_where=verdicts.c.closed.is_(false()),
    postgresql_where=verdicts.c.closed.is_(false()),
)

members = Table(
    "members",
    metadata,
    Column("release", String(192), primary_key=True),
    Column("wave", String(63), primary_key=True),
    Column("site", String(63), primary_key=True),
)

proposals = Table(
    "proposals",
    metadata,
    Column("release", String(192), primary_key=True),
    Column("at", UtcInstant, nullable=False),
)

tags_set = Table(
    "tags_set",
    metadata,
    Column("app", String(63), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("digest", String(71)),
)

# A signed root covers all assignments of a tick, so it is kept once.
roots = Table(
    "roots",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("proof", Text, nullable=False),
    Column("leaf", BigInteger, nullable=False),
    Column("root", String(64), ForeignKey("roots.id"), nullable=False, index=True),
    Column("expires_at", UtcInstant, nullable=False),
)

# The action journal. An intent is open while it has no outcome; an open action cannot be written down twice.
intents = Table(
    "intents",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("key", String(512), nullable=False),
    Column("action", Text, nullable=False),
    Column("commit_sha", String(64)),
    Column("epoch", BigInteger, nullable=False),
    Column("created_at", UtcInstant, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", UtcInstant),
    Column("last_error", Text),
    Column("outcome", String(8)),
    Column("detail", Text),
    Column("finished_at", UtcInstant),
    # An intent's number names it in logs and effects, so a number is never given out twice.
    sqlite_autoincrement=True,
)
Index(
    "uq_intents_open",
    intents.c.key,
    unique=True,
    sqlite_where=intents.c.outcome.is_(None),
    postgresql_where=intents.c.outcome.is_(None),
)

conditions = Table(
    "conditions",
    metadata,
    Column("type", String(63), primary_key=True),
    Column("status", String(8), nullable=False),
    Column("reason", String(63), nullable=False),
    Column("message", Text, nullable=False),
    Column("since", UtcInstant, nullable=False),
)

commits = Table(
    "commits",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("sha", String(64), nullable=False),
    Column("accepted_at", UtcInstant, nullable=False),
)

# Only the hash of a token is kept: who reads the store cannot speak for a device.
tokens = Table(
    "tokens",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_at", UtcInstant, nullable=False),
)

# The last plan as it was printed, for people who ask. One row.
plans = Table(
    "plans",
    metadata,
    Column("name", String(8), primary_key=True),
    Column("document", Text, nullable=False),
)

# ---------------------------------------------------------------- access: what people may do over HTTP, and did

# One token a name; only its hash is kept. Scopes are words with a comma between them.
operators = Table(
    "operators",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("scopes", String(128), nullable=False),
    Column("created_at", UtcInstant, nullable=False),
    Column("expires_at", UtcInstant),
    Column("last_used_at", UtcInstant),
    Column("revoked_at", UtcInstant),
)

# The token is named by its hash and not by a key of `operators`: it may stand in the operators' file.
sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("token_hash", String(64), nullable=False, index=True),
    Column("created_at", UtcInstant, nullable=False),
    Column("seen_at", UtcInstant, nullable=False),
    Column("address", String(64), nullable=False),
)

acknowledgements = Table(
    "acknowledgements",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("release", String(192), primary_key=True),
    Column("by", String(63), nullable=False),
    Column("at", UtcInstant, nullable=False),
    Column("note", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("at", UtcInstant, nullable=False, index=True),
    Column("who", String(128), nullable=False),
    Column("address", String(64), nullable=False),
    Column("what", String(32), nullable=False),
    Column("about", Text, nullable=False),
    Column("outcome", String(8), nullable=False),
    # A page of the log is asked for by number, so a number is never given out twice.
    sqlite_autoincrement=True,
)

# What happened. Numbers come from the counter `event`, whose row's lock makes them appear in the order of commits: whoever has
# read up to a number has missed none.
events = Table(
    "events",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcInstant, nullable=False, index=True),
    Column("kind", String(32), nullable=False),
    Column("key", String(512), nullable=False),
    Column("commit_sha", String(64), index=True),
    Column("wave", String(63), index=True),
    Column("site", String(63)),
    Column("device", String(63), index=True),
    Column("release", String(192)),
    Column("reason", String(64), nullable=False),
    Column("message", Text, nullable=False),
)
Index("uq_events_kind_key", events.c.kind, events.c.key, unique=True)

# A row where a device's health, or what its healthcheck says against it, changed.
health_log = Table(
    "health_log",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("device", String(63), nullable=False),
    Column("at", UtcInstant, nullable=False, index=True),
    Column("health", String(8), nullable=False),
    Column("release", String(192)),
    Column("document", Text, nullable=False),
)
Index("ix_health_log_device_id", health_log.c.device, health_log.c.id)

# ---------------------------------------------------------------- notifications

# How far a target was told: the number of the last event that is in one of its deliveries, or that it does not ask for.
notice_targets = Table(
    "notice_targets",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("event", BigInteger, nullable=False),
)

# A message to a target. It has no outcome until the target has taken it, or it was given up.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("target", String(63), nullable=False),
    Column("message_id", String(64), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("count", Integer, nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", UtcInstant, nullable=False),
    Column("ready_at", UtcInstant, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("refusals", Integer, nullable=False),
    Column("not_before", UtcInstant),
    Column("error", Text),
    Column("outcome", String(16)),
    Column("finished_at", UtcInstant),
    sqlite_autoincrement=True,
)
Index("ix_deliveries_target_outcome", deliveries.c.target, deliveries.c.outcome)
