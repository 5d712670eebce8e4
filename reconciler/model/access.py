"""Who may use the HTTP service, as values: operators' tokens, browser sessions, acknowledgements, the audit log. Frozen.

Holds no token and no session's id, only what is known of them; whether one is good at an instant is decided here, everything
else by the service (`server.access`). Kept by `adapters.sql_access`. Source: design §5, §6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from reconciler.model.scalars import format_instant


class Scope(StrEnum):
    """What an operator's token may be used for."""

    READ = "read"
    """Everything that a page or the API shows: plan, status, the observed snapshot. It changes nothing."""
    METRICS = "metrics"
    """`/metrics` alone, for a Prometheus."""
    ACKNOWLEDGE = "acknowledge"
    """Acknowledge flags, and take that back."""
    ALL = "all"
    """All of these, and the audit log."""


def parse_scopes(text: str) -> frozenset[Scope]:
    """`read,acknowledge` → scopes. ValueError: one is unknown, or there is none.

    A scope that is not understood is no scope: a narrow token must not become a wide one by a mistake in writing.
    """
    return frozenset(Scope(word) for word in text.split(","))


def covers(scopes: Iterable[Scope], wanted: Scope) -> bool:
    """Whether these scopes allow what `wanted` stands for."""
    held = frozenset(scopes)
    return wanted in held or Scope.ALL in held


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """What is known of an operator's token. `expires_at` None: never. `last_used_at` is coarse, an hour behind at most."""

    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    def valid(self, now: datetime) -> bool:
        """Whether it is good now. It expires at the very instant."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session. It speaks for the token that it was opened with, as long as that is good."""

    token_hash: str
    created_at: datetime
    seen_at: datetime
    address: str = ""

    def valid(self, now: datetime, *, idle_s: float, longest_s: float) -> bool:
        """Whether it goes on: used within `idle_s`, and not older than `longest_s`."""
        idle = now - self.seen_at < timedelta(seconds=idle_s)
        return idle and now - self.created_at < timedelta(seconds=longest_s)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A person has seen that a device failed on a release. It covers the flag that stood then, and no later one."""

    device: str
    release: str
    by: str
    at: datetime
    note: str = ""


class Deed(StrEnum):
    """What a person did, in the audit log."""

    LOGIN = "login"
    LOGOUT = "logout"
    ACKNOWLEDGE = "acknowledge"
    TAKE_BACK = "take-back"
    """An acknowledgement was taken back."""
    MAKE_TOKEN = "make-token"  # noqa: S105  the name of a deed
    REVOKE_TOKEN = "revoke-token"  # noqa: S105


class Outcome(StrEnum):
    """What came of it."""

    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One deed. `who` is a token's name, or a user of the controller's machine; empty where nobody was recognised.

    `address` is where it came from: an IP address, or `local` for a command. `id` rises with time; None before it is stored.
    """

    at: datetime
    who: str
    address: str
    what: Deed
    about: str
    outcome: Outcome
    id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For the API and for `reconciler audit`."""
        return {
            "id": self.id,
            "at": format_instant(self.at.replace(microsecond=0)),
            "who": self.who,
            "address": self.address,
            "what": self.what.value,
            "about": self.about,
            "outcome": self.outcome.value,
        }
