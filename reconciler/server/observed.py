"""`GET /v1/observed`: everything observed, as the contract's JSON, for whoever reviews a change to the fleet.

Devices go from the store to a file without ever being held together: a fleet of a million is some hundred megabytes on disk
and a thousand rows in memory. It is written whole before the first byte is sent, so that a slow caller holds no view of the
store open, and that a failure is an answer and not a body cut short. Facts, devices and cursor are of one instant; artifacts,
tags and secret versions are what the loop last saw (never a secret's value). Called by `server.app`.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import IO

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from reconciler.model.observed import Snapshot
from reconciler.model.scalars import format_instant
from reconciler.server.answers import Refusal
from reconciler.server.options import Options

_IN_MEMORY = 1 << 20
_CHUNK = 1 << 18
_AT_ONCE = 2
"""Snapshots being written: more would only share the disk."""


class Exporter:
    """Answers for the snapshot of one service. Safe from any thread."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._turns = threading.BoundedSemaphore(_AT_ONCE)

    def answer(self, known: str) -> Response:
        """The snapshot; 304 where the caller's `If-None-Match` names the present one. Refusal 503: not now."""
        stores = self._options.stores()
        if self._options.export is None or stores is None:
            raise Refusal(503, "nothing is known of the stores yet", "wait for the first tick", retry_after_s=5)
        if not self._turns.acquire(blocking=False):
            raise Refusal(503, "other snapshots are being written", "try again", retry_after_s=5)
        try:
            with self._options.export() as export:
                facts = _facts(export.facts, stores)
                tag = f'W/"{hashlib.sha256(f"{export.cursor} {facts}".encode()).hexdigest()[:32]}"'
                headers = {"etag": tag, "cache-control": "private, no-cache"}
                if _matches(known, tag):
                    return Response(status_code=304, headers=headers)
                at = format_instant(self._options.now().replace(microsecond=0))
                file = _spool(at, facts, export.devices)
        except OSError:
            raise Refusal(
                503, "there is no room to write the snapshot", "make room in the temporary folder", retry_after_s=60
            ) from None
        finally:
            self._turns.release()
        headers["content-length"] = str(file.tell())
        file.seek(0)
        return Spooled(file, headers)


class Spooled(StreamingResponse):
    """Sends a file to its end and closes it, also where the caller has gone before the first byte."""

    def __init__(self, file: IO[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(iter(lambda: file.read(_CHUNK), b""), media_type="application/json", headers=headers)
        self.file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One answer."""
        with self.file:
            await super().__call__(scope, receive, send)


def _facts(recorded: Snapshot, stores: Snapshot) -> str:
    """All but the devices and the instant, as the members of a JSON object."""
    update = {"artifacts": stores.artifacts, "tags": stores.tags, "secret_versions": stores.secret_versions}
    whole = recorded.model_copy(update=update)
    text = whole.model_dump_json(by_alias=True, exclude={"devices", "at", "api_version", "kind"}, exclude_none=True)
    return text[1:-1]


def _spool(at: str, facts: str, devices: Iterator[str]) -> IO[bytes]:
    """The document in a file without a name, at its end. OSError: no room."""
    file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  closed when it has been sent
    try:
        file.write(f'{{"apiVersion":"fleet/v1","kind":"Observed","at":"{at}",{facts},"devices":['.encode())
        before = b"\n"
        for document in devices:
            file.write(before + document.encode())
            before = b",\n"
        file.write(b"\n]}\n")
    except BaseException:
        file.close()
        raise
    return file


def _matches(known: str, tag: str) -> bool:
    """Whether an If-None-Match header names the tag; compared weakly, as RFC 9110 asks for it."""
    words = [word.strip().removeprefix("W/") for word in known.split(",")]
    return tag.removeprefix("W/") in words or known.strip() == "*"
