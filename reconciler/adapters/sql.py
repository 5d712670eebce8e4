"""The store: state that must survive, in SQLite by default. Implements `ports.Store`; decides nothing.

Every method is one transaction, or joins the one its thread has open (`transaction`). Rows and SQL live in the modules
beside this one: `sql_schema` the tables, `sql_engine` connections and errors, `sql_observations` what devices report
and are marked with, `sql_journal` what ticks decide, `sql_events` what happened. A commit that returned is on disk. Any
number of processes may have the store open; which of them may decide is held by the epoch (`begin_epoch`). Source: design §6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, delete, insert, select, update

from reconciler.adapters import sql_journal as journal
from reconciler.adapters import sql_observations as recorded
from reconciler.adapters.sql_access import SqlAccess
from reconciler.adapters.sql_engine import BUSY_TIMEOUT_S, Database, chunked, open_engine, store_url, upsert
from reconciler.adapters.sql_events import SqlEvents
from reconciler.adapters.sql_migrate import HEAD, migrate, revision_of
from reconciler.adapters.sql_notices import SqlNotices
from reconciler.adapters.sql_schema import commits, counters, plans, tokens
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.ports import AssignmentRow, Changes, ConditionRow, Decision, Export, Intent, TerminalError


def open_store(place: str | Path, *, create: bool = True, busy_timeout_s: float = BUSY_TIMEOUT_S) -> SqlStore:
    """Open the store at a path or URL, bringing its schema up to date.

    TransientError: busy or unreachable. TerminalError: no store there (with `create` False), not a store of ours, or
    one written by a newer version.
    """
    engine = open_engine(store_url(place), create=create, busy_timeout_s=busy_timeout_s)
    store = SqlStore(engine)
    try:
        store.prepare()
    except BaseException:
        engine.dispose()
        raise
    return store


class SqlStore(SqlEvents):
    """`ports.Store` over SQLAlchemy. Safe for use by many threads."""

    def __init__(self, engine: Engine) -> None:
        self._db = Database(engine)
        self.access = SqlAccess(self._db)
        """Operators' tokens, sessions and the audit log, in the same database and the same transactions."""
        self.notices = SqlNotices(self._db)
        """Notifications that are on their way, likewise."""

    @property
    def engine(self) -> Engine:
        """The engine, for tests that watch it."""
        return self._db.engine

    def prepare(self) -> None:
        """Check the schema, and upgrade it under the write lock where it is older: two starters do it once."""
        with self._db.read("opening the store") as connection:
            revision = revision_of(connection)
        if revision != HEAD:
            with self._db.write("bringing the store's schema up to date") as connection:
                migrate(connection)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Group calls into one transaction; nested use joins the outer one."""
        with self._db.write("a transaction"):
            yield

    def close(self) -> None:
        """Release connections."""
        self._db.engine.dispose()

    # ------------------------------------------------------------ observations

    def snapshot(self) -> Snapshot:
        """Everything recorded, seen at one instant. Artifacts, tags and secret versions are the image store's to
        know."""
        with self._db.read("the observed snapshot") as connection:
            devices = recorded.everything(connection)
            return self._facts(connection).model_copy(update={"devices": devices})

    @contextmanager
    def export(self) -> Iterator[Export]:
        """The same, a few devices at a time. All of it is of one instant: until it is left, one reader's view is held open."""
        with self._db.read("the observed snapshot") as connection:
            cursor = recorded.last_change(connection)
            yield Export(cursor, self._facts(connection), recorded.documents(connection))

    def facts(self) -> Snapshot:
        """The same without the devices: it costs what was decided, not the fleet."""
        with self._db.read("proofs, failures and members") as connection:
            return self._facts(connection)

    @staticmethod
    def _facts(connection: Connection) -> Snapshot:
        return Snapshot(
            tags_set=journal.read_tags(connection),
            proofs=journal.read_verdicts(connection, "proof"),
            failures=journal.read_verdicts(connection, "failure"),
            members=journal.read_members(connection),
            proposals=journal.read_proposals(connection),
        )

    def changes_since(self, cursor: int, limit: int | None = None) -> Changes:
        """Observations recorded after `cursor` (0: all), oldest change first, `limit` at most."""
        with self._db.read("what changed since the last tick") as connection:
            return recorded.changes_since(connection, cursor, limit)

    def observe(self, observations: Sequence[DeviceObservation], *, sequences: Mapping[str, tuple[str, int]]) -> int:
        """Record folded reports; see the port. A device without an entry in `sequences` is written as it is given."""
        with self._db.write("recording reports") as connection:
            return recorded.observe(connection, observations, sequences)

    def observation(self, device: str) -> tuple[DeviceObservation, str, int] | None:
        """A device's observation with the boot id and sequence of its report (`""`, -1 where none has come yet)."""
        return self.observed([device]).get(device)

    def observed(self, devices: Sequence[str]) -> Mapping[str, tuple[DeviceObservation, str, int]]:
        """The same for many devices at once; those that are not on record are left out."""
        with self._db.read("a device's observation") as connection:
            rows = recorded.read(connection, devices)
        return {
            device: (row.observation, row.boot_id or "", row.sequence if row.sequence is not None else -1)
            for device, row in rows.items()
        }

    # ------------------------------------------------------------ the writer in office

    def begin_epoch(self) -> int:
        """Take over as writer: raise the epoch above every one on record and return it."""
        return self.raise_epoch(0)

    def raise_epoch(self, above: int) -> int:
        """The same, above an epoch that a device reported (a restored backup)."""
        with self._db.write("taking over as writer") as connection:
            of_epoch = counters.c.name == "epoch"
            query = select(counters.c.value).where(of_epoch).with_for_update()
            raised = max(int(connection.execute(query).scalar_one()), above) + 1
            connection.execute(update(counters).where(of_epoch).values(value=raised))
            return raised

    def next_serial(self, epoch: int, count: int) -> int:
        """Reserve `count` serial numbers under the epoch; returns the first. Numbers rise over epochs too."""
        with self._db.write("serial numbers") as connection:
            journal.fence(connection, epoch)
            return recorded.take(connection, "serial", count) - count + 1

    # ------------------------------------------------------------ ticks

    def record(self, epoch: int, decision: Decision) -> tuple[Intent, ...]:
        """Write a tick's decision; returns the intents that are new. `decision.observations` are patches of marks
        (`sql_observations`): they are merged into the rows' current observations."""
        with self._db.write("recording a decision") as connection:
            journal.fence(connection, epoch)
            journal.record_facts(connection, decision.facts)
            recorded.apply(connection, decision.observations, decision.facts)
            journal.record_tags(connection, decision.tags_set)
            journal.record_assignments(connection, decision.assignments)
            journal.record_conditions(connection, decision.conditions)
            return journal.add_intents(connection, epoch, decision.commit, decision.at, decision.actions)

    def open_intents(self) -> tuple[Intent, ...]:
        """Intents without an outcome, oldest first: what a restart repeats or completes."""
        with self._db.read("the action journal") as connection:
            return journal.open_intents(connection)

    def finish(self, epoch: int, intent: Intent, outcome: str, detail: str, at: datetime) -> None:
        """Write an outcome: `done`, or `failed`. A proposal is on record from the moment its action is done."""
        with self._db.write("writing an outcome") as connection:
            journal.fence(connection, epoch)
            journal.finish(connection, intent, outcome, detail, at)

    def retry(self, epoch: int, intent: Intent, error: str, not_before: datetime) -> None:
        """Write that an intent failed for now, and when to try again."""
        with self._db.write("writing a failed try") as connection:
            journal.fence(connection, epoch)
            journal.retry(connection, intent, error, not_before)

    def journal(self, limit: int = 100) -> Sequence[Mapping[str, str | None]]:
        """The newest journal rows, newest first: id, kind, key, commit, outcome, times, attempts, detail, error."""
        with self._db.read("the action journal") as connection:
            return journal.newest(connection, limit)

    def prune_journal(self, epoch: int, before: datetime) -> int:
        """Drop intents that were finished before an instant; returns how many. Open ones always stay."""
        with self._db.write("pruning the journal") as connection:
            journal.fence(connection, epoch)
            return journal.prune(connection, before)

    def assignment(self, device: str) -> AssignmentRow | None:
        """The device's latest assignment."""
        return self.assignments([device]).get(device)

    def assignments(self, devices: Sequence[str]) -> Mapping[str, AssignmentRow]:
        """The latest assignments of these devices; those that have none are left out."""
        with self._db.read("devices' assignments") as connection:
            return journal.read_assignments(connection, devices)

    def conditions(self) -> tuple[ConditionRow, ...]:
        """The loop's conditions as last recorded."""
        with self._db.read("the loop's conditions") as connection:
            return journal.read_conditions(connection)

    def save_plan(self, epoch: int, document: str) -> None:
        """Keep the last plan as it was printed, for `status` and whoever asks over HTTP."""
        with self._db.write("keeping the plan") as connection:
            journal.fence(connection, epoch)
            upsert(connection, plans, [{"name": "last", "document": document}])

    def last_plan(self) -> str | None:
        """The last plan's JSON, or None before the first tick."""
        with self._db.read("the last plan") as connection:
            return connection.execute(select(plans.c.document).where(plans.c.name == "last")).scalar_one_or_none()

    # ------------------------------------------------------------ commits

    def last_good_commit(self) -> str | None:
        """The commit in force."""
        with self._db.read("the commit in force") as connection:
            return connection.execute(select(commits.c.sha).order_by(commits.c.id.desc()).limit(1)).scalar_one_or_none()

    def accept_commit(self, epoch: int, sha: str, at: datetime) -> None:
        """Put a commit in force. The one in force already is not written again."""
        with self._db.write("putting a commit in force") as connection:
            journal.fence(connection, epoch)
            if self.last_good_commit() != sha:
                connection.execute(insert(commits).values(sha=sha, accepted_at=at))

    # ------------------------------------------------------------ devices' tokens

    def add_token(self, device: str, token_hash: str, at: datetime) -> None:
        """Enrol a device: keep the hash of its token, replacing an earlier one. TerminalError: another device has
        it."""
        with self._db.write("enrolling a device") as connection:
            owner = self.device_of_token(token_hash)
            if owner not in (None, device):
                raise TerminalError(
                    f"this token is {owner}'s already",
                    needed_for=f"enrolling {device}",
                    remedy="let `reconciler token add` make one",
                )
            upsert(connection, tokens, [{"device": device, "hash": token_hash, "created_at": at}])

    def device_of_token(self, token_hash: str) -> str | None:
        """Whose token has this hash, or None."""
        return self.devices_of_tokens([token_hash]).get(token_hash)

    def devices_of_tokens(self, token_hashes: Sequence[str]) -> Mapping[str, str]:
        """The same for many hashes at once; unknown ones are left out.

        Found by an index: its timing tells nothing, since who sends a token cannot steer the bits of its sha256.
        """
        found: dict[str, str] = {}
        with self._db.read("recognising devices") as connection:
            for piece in chunked(sorted(set(token_hashes))):
                query = select(tokens.c.device, tokens.c.hash).where(tokens.c.hash.in_(piece))
                found.update((row.hash, row.device) for row in connection.execute(query))
        return found

    def revoke_token(self, device: str) -> bool:
        """Forget a device's token; returns whether it had one."""
        with self._db.write("revoking a token") as connection:
            return connection.execute(delete(tokens).where(tokens.c.device == device)).rowcount == 1

    def tokens(self) -> Mapping[str, datetime]:
        """Enrolled devices, by name, and when their token was made."""
        with self._db.read("the enrolled devices") as connection:
            rows = connection.execute(select(tokens.c.device, tokens.c.created_at).order_by(tokens.c.device))
            return {row.device: row.created_at for row in rows}
