"""Where everything stands, for people: the last plan, conditions, and open actions, from the store alone. Reads only.

Used by `reconciler status` and by the HTTP API, which show the same document. It says what the loop saw at its last
tick; how old that is stands in `plan_at`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reconciler.model.plan import Action, ActionKind
from reconciler.model.scalars import format_instant, parse_instant
from reconciler.ports import ConditionRow, Intent, Store, TerminalError


@dataclass(frozen=True, slots=True)
class Status:
    """One reading of the store. `plan` is the last plan as the contract prints it, None before the first tick."""

    at: datetime
    commit: str | None
    plan: Mapping[str, Any] | None
    conditions: tuple[ConditionRow, ...]
    open_actions: tuple[Intent, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--output json` and `/v1/status`."""
        plan = self.plan or {}
        return {
            "apiVersion": "fleet/v1",
            "kind": "Status",
            "at": format_instant(self.at),
            "commit": self.commit,
            "planAt": plan.get("at"),
            "waves": plan.get("waves", []),
            "holds": plan.get("holds", []),
            "flagged": plan.get("flagged", []),
            "nextChangeAt": plan.get("nextChangeAt"),
            "conditions": [
                {
                    "type": row.type,
                    "status": row.status,
                    "reason": row.reason,
                    "message": row.message,
                    "since": format_instant(row.since),
                }
                for row in self.conditions
            ],
            "openActions": [
                {
                    **intent.action.to_dict(),
                    "id": intent.id,
                    "commit": intent.commit,
                    "createdAt": format_instant(intent.created_at),
                    "attempts": intent.attempts,
                    "notBefore": format_instant(intent.not_before) if intent.not_before else None,
                    "lastError": intent.last_error,
                }
                for intent in self.open_actions
            ],
        }


def status_from(document: Mapping[str, Any]) -> Status:
    """A status from its own `to_dict`, as a service gives it. ValueError: it is none."""
    try:
        plan = {key: document[key] for key in ("waves", "holds", "flagged", "nextChangeAt")} | {
            "at": document["planAt"]
        }
        return Status(
            parse_instant(document["at"]),
            document["commit"],
            plan if document["planAt"] is not None else None,
            tuple(
                ConditionRow(row["type"], row["status"], row["reason"], row["message"], parse_instant(row["since"]))
                for row in document["conditions"]
            ),
            tuple(_intent(row) for row in document["openActions"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no status: {error!r}") from None


def _intent(row: Mapping[str, Any]) -> Intent:
    own = ("kind", "id", "commit", "createdAt", "attempts", "notBefore", "lastError")
    action = Action(ActionKind(row["kind"]), {key: value for key, value in row.items() if key not in own})
    later = row["notBefore"]
    return Intent(
        int(row["id"]),
        action.key,
        action,
        row["commit"],
        parse_instant(row["createdAt"]),
        int(row["attempts"]),
        parse_instant(later) if later is not None else None,
        row["lastError"],
    )


def status_of(store: Store, now: datetime) -> Status:
    """Read the store once. TransientError: busy. TerminalError: the plan on record is damaged."""
    document = store.last_plan()
    try:
        plan = json.loads(document) if document is not None else None
    except ValueError:
        raise TerminalError(
            "the last plan on record is not JSON", needed_for="the status", remedy="wait for the next tick"
        ) from None
    return Status(now, store.last_good_commit(), plan, store.conditions(), store.open_intents())
