"""Rows of what a tick decides: the epoch's fence, facts of releases, assignments, conditions, and the action journal.

Called by `adapters.sql` inside a transaction. An intent is written before its effect and gets its outcome after it;
while it has none it is open, and an open action cannot be written down twice (a unique index holds that, whatever the
code does). Source: design §6, "Intent is written before an effect"; style, "A lease alone is no fence".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, false, insert, or_, select, update

from reconciler.adapters.sql_engine import chunked, upsert
from reconciler.adapters.sql_schema import (
    assignments,
    conditions,
    counters,
    intents,
    members,
    proposals,
    roots,
    tags_set,
    verdicts,
)
from reconciler.model.observed import Proposal, Verdict
from reconciler.model.plan import Action, ActionKind, Facts, VerdictFact
from reconciler.model.scalars import format_instant
from reconciler.ports import AssignmentRow, ConditionRow, Intent, TerminalError

OUTCOMES = ("done", "failed")


def fence(connection: Connection, epoch: int) -> None:
    """Refuse a writer that is not in office. TerminalError: fenced."""
    query = select(counters.c.value).where(counters.c.name == "epoch").with_for_update()
    current = int(connection.execute(query).scalar_one())
    if epoch != current:
        raise TerminalError(
            f"fenced: epoch {epoch} is not the current one ({current})",
            needed_for="writing to the store",
            remedy="another controller has taken over; stop this one, or start it again",
        )


def split_key(key: str) -> dict[str, str]:
    """`v1.4.2` → image; `video-ingest@2.8.0` → app and release: the fields that the snapshot names a release by."""
    app, at_sign, release = key.partition("@")
    return {"app": app, "release": release} if at_sign else {"image": key}


# ---------------------------------------------------------------- facts of releases


def record_facts(connection: Connection, facts: Facts) -> None:
    """Add proofs, failures and members; close releases. A verdict that stands already is not doubled."""
    _add_verdicts(connection, "proof", facts.proofs)
    _add_verdicts(connection, "failure", facts.failures)
    taken = [
        {"release": release, "wave": wave, "site": site}
        for release, waves in facts.members.items()
        for wave, sites in waves.items()
        for site in sites
    ]
    upsert(connection, members, taken, keep=True)
    for piece in chunked(sorted(facts.closed)):
        still_open = verdicts.c.release.in_(piece) & verdicts.c.closed.is_(false())
        connection.execute(update(verdicts).where(still_open).values(closed=True))
        connection.execute(delete(members).where(members.c.release.in_(piece)))
        connection.execute(delete(proposals).where(proposals.c.release.in_(piece)))


def _add_verdicts(connection: Connection, verdict: str, facts: Sequence[VerdictFact]) -> None:
    for fact in facts:
        same = and_(verdicts.c.verdict == verdict, verdicts.c.wave == fact.wave, verdicts.c.release == fact.key)
        if connection.execute(select(verdicts.c.id).where(same, verdicts.c.closed.is_(false()))).first() is None:
            row = {"verdict": verdict, "wave": fact.wave, "release": fact.key, "at": fact.at, "closed": False}
            connection.execute(insert(verdicts), row)


def read_verdicts(connection: Connection, verdict: str) -> tuple[Verdict, ...]:
    """Proofs or failures, open and closed, in the order in which they were recorded."""
    rows = connection.execute(select(verdicts).where(verdicts.c.verdict == verdict).order_by(verdicts.c.id))
    return tuple(Verdict(wave=row.wave, at=row.at, closed=row.closed, **split_key(row.release)) for row in rows)


def read_members(connection: Connection) -> dict[str, dict[str, tuple[str, ...]]]:
    """Release → wave → sites."""
    out: dict[str, dict[str, list[str]]] = {}
    for row in connection.execute(select(members).order_by(members.c.release, members.c.wave, members.c.site)):
        out.setdefault(row.release, {}).setdefault(row.wave, []).append(row.site)
    return {release: {wave: tuple(sites) for wave, sites in waves.items()} for release, waves in out.items()}


def read_proposals(connection: Connection) -> tuple[Proposal, ...]:
    """Reverts that were proposed."""
    rows = connection.execute(select(proposals).order_by(proposals.c.at, proposals.c.release))
    return tuple(Proposal(at=row.at, **split_key(row.release)) for row in rows)


def record_tags(connection: Connection, moved: Mapping[str, Mapping[str, str | None]]) -> None:
    """Remember what tags were set to."""
    rows = [
        {"app": app, "tag": tag, "digest": digest} for app, by_tag in moved.items() for tag, digest in by_tag.items()
    ]
    upsert(connection, tags_set, rows)


def read_tags(connection: Connection) -> dict[str, dict[str, str | None]]:
    """App → tag → digest that was set last."""
    out: dict[str, dict[str, str | None]] = {}
    for row in connection.execute(select(tags_set).order_by(tags_set.c.app, tags_set.c.tag)):
        out.setdefault(row.app, {})[row.tag] = row.digest
    return out


# ---------------------------------------------------------------- assignments, conditions


def record_assignments(connection: Connection, rows: Sequence[AssignmentRow]) -> None:
    """Replace devices' assignments. A lower serial never replaces a higher one; roots that cover nothing any more
    go."""
    if not rows:
        return
    ids = {(row.root, row.signature): hashlib.sha256(row.root + row.signature).hexdigest() for row in rows}
    covers = [{"id": ids[pair], "document": pair[0], "signature": pair[1]} for pair in ids]
    upsert(connection, roots, covers, keep=True)
    values = [
        {
            "device": row.device,
            "epoch": row.epoch,
            "n": row.n,
            "document": row.document,
            "proof": json.dumps([node.hex() for node in row.proof]),
            "leaf": row.index,
            "root": ids[row.root, row.signature],
            "expires_at": row.expires_at,
        }
        for row in rows
    ]
    old = assignments.c
    upsert(
        connection,
        assignments,
        values,
        where=lambda new: or_(old.epoch < new.epoch, and_(old.epoch == new.epoch, old.n < new.n)),
    )
    connection.execute(delete(roots).where(~exists().where(assignments.c.root == roots.c.id)))


def read_assignments(connection: Connection, devices: Sequence[str]) -> dict[str, AssignmentRow]:
    """The latest assignments of these devices."""
    found: dict[str, AssignmentRow] = {}
    joined = select(assignments, roots.c.document.label("root_document"), roots.c.signature).join_from(
        assignments, roots, assignments.c.root == roots.c.id
    )
    for piece in chunked(sorted(set(devices))):
        for row in connection.execute(joined.where(assignments.c.device.in_(piece))):
            found[row.device] = AssignmentRow(
                device=row.device,
                epoch=row.epoch,
                n=row.n,
                document=row.document,
                proof=tuple(bytes.fromhex(node) for node in json.loads(row.proof)),
                index=row.leaf,
                root=row.root_document,
                signature=row.signature,
                expires_at=row.expires_at,
            )
    return found


def record_conditions(connection: Connection, rows: Sequence[ConditionRow]) -> None:
    """Replace conditions by type."""
    names = ("type", "status", "reason", "message", "since")
    upsert(connection, conditions, [{name: getattr(row, name) for name in names} for row in rows])


def read_conditions(connection: Connection) -> tuple[ConditionRow, ...]:
    """All conditions, by type."""
    rows = connection.execute(select(conditions).order_by(conditions.c.type))
    return tuple(ConditionRow(row.type, row.status, row.reason, row.message, row.since) for row in rows)


# ---------------------------------------------------------------- the action journal


def add_intents(
    connection: Connection, epoch: int, commit: str | None, at: datetime, actions: Iterable[Action]
) -> tuple[Intent, ...]:
    """Write down actions that are not open; returns the new intents, in the order given."""
    wanted = {action.key: action for action in actions}
    for piece in chunked(sorted(wanted)):
        for (key,) in connection.execute(select(intents.c.key).where(intents.c.key.in_(piece), _is_open())):
            del wanted[key]
    if not wanted:
        return ()
    rows = [
        {
            "key": key,
            "action": json.dumps(action.to_dict(), ensure_ascii=False),
            "commit_sha": commit,
            "epoch": epoch,
            "created_at": at,
            "attempts": 0,
        }
        for key, action in wanted.items()
    ]
    connection.execute(insert(intents), rows)
    new: list[Intent] = []
    for piece in chunked(list(wanted)):
        found = connection.execute(select(intents).where(intents.c.key.in_(piece), _is_open()))
        new.extend(_intent(row) for row in found)
    return tuple(sorted(new, key=lambda intent: intent.id))


def _is_open() -> Any:
    return intents.c.outcome.is_(None)


def _intent(row: Row[Any]) -> Intent:
    try:
        fields = json.loads(row.action)
        kind = ActionKind(fields.pop("kind"))
    except (ValueError, KeyError, AttributeError, TypeError):
        # Neither taken nor dropped: what is not understood may be half done.
        raise TerminalError(
            f"the journal's intent {row.id} ({row.key[:200]}) is none that this version knows",
            needed_for="going on with what is open",
            remedy="start the version that wrote it, and let it finish; or restore the store from a backup",
        ) from None
    return Intent(
        id=row.id,
        key=row.key,
        action=Action(kind, fields),
        commit=row.commit_sha,
        created_at=row.created_at,
        attempts=row.attempts,
        not_before=row.not_before,
        last_error=row.last_error,
    )


def open_intents(connection: Connection) -> tuple[Intent, ...]:
    """Intents without an outcome, oldest first."""
    return tuple(_intent(row) for row in connection.execute(select(intents).where(_is_open()).order_by(intents.c.id)))


def finish(connection: Connection, intent: Intent, outcome: str, detail: str, at: datetime) -> None:
    """Write an outcome, and with a finished propose-revert its proposal. The same outcome twice is fine, another is
    not."""
    if outcome not in OUTCOMES:
        raise TerminalError(f"{outcome!r} is not an outcome; it is one of {', '.join(OUTCOMES)}")
    row = connection.execute(select(intents).where(intents.c.id == intent.id).with_for_update()).one_or_none()
    if row is None or row.key != intent.key:
        raise TerminalError(f"the journal holds no intent {intent.id} ({intent.key})", needed_for="writing an outcome")
    if row.outcome is not None:
        if row.outcome != outcome:
            raise TerminalError(f"intent {intent.id} ({intent.key}) is {row.outcome} already, not {outcome}")
        return
    changes: dict[str, Any] = {"outcome": outcome, "finished_at": at, "attempts": row.attempts + 1}
    changes["detail" if outcome == "done" else "last_error"] = detail or None
    connection.execute(update(intents).where(intents.c.id == intent.id).values(changes))
    if outcome == "done" and intent.action.kind is ActionKind.PROPOSE_REVERT:
        fields = intent.action.fields
        release = fields.get("image") or f"{fields.get('app')}@{fields.get('release')}"
        upsert(connection, proposals, [{"release": release, "at": at}], keep=True)


def retry(connection: Connection, intent: Intent, error: str, not_before: datetime) -> None:
    """Count a try that failed for now. TerminalError: the intent is not open."""
    changes = {"attempts": intents.c.attempts + 1, "last_error": error, "not_before": not_before}
    found = connection.execute(update(intents).where(intents.c.id == intent.id, _is_open()).values(changes))
    if found.rowcount != 1:
        raise TerminalError(f"intent {intent.id} ({intent.key}) is not open", needed_for="trying it again later")


def newest(connection: Connection, limit: int) -> list[Mapping[str, str | None]]:
    """The newest rows, for people."""
    rows = connection.execute(select(intents).order_by(intents.c.id.desc()).limit(limit))
    return [
        {
            "id": str(row.id),
            "kind": row.key.split(" ", 1)[0],
            "key": row.key,
            "commit": row.commit_sha,
            "outcome": row.outcome,
            "createdAt": format_instant(row.created_at),
            "finishedAt": format_instant(row.finished_at) if row.finished_at else None,
            "notBefore": format_instant(row.not_before) if row.not_before else None,
            "attempts": str(row.attempts),
            "detail": row.detail,
            "error": row.last_error,
        }
        for row in rows
    ]


def prune(connection: Connection, before: datetime) -> int:
    """Drop intents finished before `before`; returns how many. Open intents always stay."""
    old = and_(intents.c.outcome.is_not(None), intents.c.finished_at < before)
    return int(connection.execute(delete(intents).where(old)).rowcount)
