"""The audit log of what people do over HTTP: written by the routes that do it, read by `GET /v1/audit`.

Knows no token. Bounded in age by a setting and, for what was refused, in number: a stranger who fails to log in again and again
must not fill the disk, nor push out what was done. The command line writes to the same log (`cli.token`).
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

from fastapi import Depends, FastAPI, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from reconciler.model.access import AuditEntry, Deed, Outcome
from reconciler.model.scalars import parse_instant
from reconciler.ports import PortError
from reconciler.server.access import Callers
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.documents import AuditLog, answers
from reconciler.server.options import Options

REFUSED_KEPT = 10_000
"""Deeds that were refused, kept at most."""

_PRUNE_EVERY = timedelta(hours=1)
_ABOUT = 300


class Audit:
    """Writes deeds down. Called from worker threads."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._pruned_at: datetime | None = None

    def write(self, who: str, address: str, what: Deed, about: str = "", outcome: Outcome = Outcome.DONE) -> None:
        """Write a deed down; joins the store's transaction that is open. PortError: it is not kept, so nothing may be done."""
        now, access = self._options.wall(), self._options.access
        access.add_audit(AuditEntry(now, who, address, what, about[:_ABOUT], outcome))
        with self._lock:
            due = self._pruned_at is None or now - self._pruned_at >= _PRUNE_EVERY
            if due:
                self._pruned_at = now
        if due:
            access.prune_audit(now - timedelta(seconds=self._options.audit_kept_s), refused=REFUSED_KEPT)


def serve_audit(app: FastAPI, options: Options, callers: Callers) -> None:
    """Add `GET /v1/audit`."""

    @app.get("/v1/audit", dependencies=[Depends(callers.operator)], responses=answers(AuditLog, 400))
    async def get_audit(
        since: str | None = Query(
            None, max_length=40, description="Not older than this instant, as 2026-01-15T00:00:00Z"
        ),
        before: int | None = Query(
            None, ge=1, le=2**62, description="Older than the entry with this id: the next page"
        ),
        limit: int = Query(100, ge=1, le=1000, description="Entries at most"),
    ) -> Response:
        try:
            oldest = parse_instant(since) if since is not None else None
        except ValueError:
            raise Refusal(400, "`since` is not an instant", "write it as 2026-01-15T00:00:00Z") from None
        try:
            found = await run_in_threadpool(options.access.audit, since=oldest, before=before, limit=limit)
        except PortError as error:
            raise refusal_of(error) from None
        more = found[-1].id if len(found) == limit else None
        entries = [entry.to_dict() for entry in found]
        return JSONResponse({"apiVersion": "fleet/v1", "kind": "AuditLog", "entries": entries, "next": more})
