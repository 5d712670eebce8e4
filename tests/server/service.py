"""A running service for tests: a real store, a real uvicorn on loopback, a clock in the hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.model.plan import Facts
from reconciler.ports import AssignmentRow, Decision
from reconciler.protocol import merkle
from reconciler.protocol.assignment import AppTarget, Assignment, ImageTarget
from reconciler.protocol.bundle import Root
from reconciler.protocol.report import Check, Report
from reconciler.server.app import create_app
from reconciler.server.options import Options
from reconciler.server.run import HttpServer, Tls
from reconciler.server.tokens import hash_token, make_token

NOW = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64


class Service:
    """The service, its store, and a client without a token."""

    def __init__(self, store: SqlStore, server: HttpServer, client: httpx.Client) -> None:
        self.store, self.server, self.client = store, server, client

    def enrol(self, device: str) -> dict[str, str]:
        """Enrol a device; returns the headers with its token."""
        token = make_token()
        self.store.add_token(device, hash_token(token), NOW)
        return {"Authorization": f"Bearer {token}"}

    def send(self, report: Report, headers: dict[str, str]) -> httpx.Response:
        return self.client.post("/v1/exchange", content=report.to_bytes(), headers=headers)


@contextmanager
def running(folder: Path, serving: Tls | None = None, **options: Any) -> Iterator[Service]:
    """Start a service over a new store in `folder`; `serving`: the certificate that it shows, which the client does not know."""
    store = open_store(folder / "store.db")
    given = replace(Options(store=store, now=lambda: NOW, access=store.access, wall=lambda: NOW), **options)
    with (
        HttpServer(create_app(given), "127.0.0.1", 0, serving) as server,
        httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client,
    ):
        yield Service(store, server, client)
    store.close()


def report(device: str = "SITE-2847-1", sequence: int = 1, **more: Any) -> Report:
    """A report of a healthy device."""
    values: dict[str, Any] = {
        "site": device.rpartition("-")[0],
        "boot_id": f"boot-{device}",
        "image": "v1.4.1",
        "health": "ok",
        "checks": (Check("docker", "ok", "active"),),
        "apps": {"video-ingest": DIGEST},
    }
    return Report(device=device, sequence=sequence, **(values | more))


def assign(
    store: SqlStore, device: str, *, image: ImageTarget | None = None, app: str = DIGEST, valid_s: int = 3600
) -> Assignment:
    """Record an assignment for a device as a tick would (its signature is not looked at here)."""
    epoch = store.begin_epoch()
    assignment = Assignment(
        device=device,
        serial=(epoch, store.next_serial(epoch, 1)),
        issued_at=NOW,
        expires_at=NOW + timedelta(seconds=valid_s),
        image=image,
        apps={"video-ingest": AppTarget("edge/video-ingest", "stable", app, "2.8.0")},
    )
    document = assignment.to_bytes()
    tree = merkle.build([document])
    root = Root(tree.root, 1, epoch, NOW).to_bytes()
    row = AssignmentRow(
        device, epoch, assignment.serial[1], document, tuple(tree.proof(0)), 0, root, b"sig", assignment.expires_at
    )
    store.record(epoch, Decision(NOW, "c0ffee", Facts(), assignments=(row,)))
    return assignment
