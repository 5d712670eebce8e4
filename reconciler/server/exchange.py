"""One exchange with a device: a report in, the assignment and its sources out. Called by `server.app` for each request.

Decides whether a report is the caller's to send, and whether its answer carries a bundle. What a report means is the
fold's to decide, what a device shall do is the loop's; neither is touched here.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

import structlog
from starlette.concurrency import run_in_threadpool

from reconciler.ports import AssignmentRow, PortError
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.bundle import Bundle, Root
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.exchange import Answer
from reconciler.protocol.report import Report, ReportError
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.batch import Batcher, Received, Recorded
from reconciler.server.metrics import Metrics
from reconciler.server.options import Options, Sources

_log = structlog.get_logger("reconciler.server")


@lru_cache(maxsize=64)
def _leaves(root_document: bytes) -> int:
    """How many assignments a root covers. A tick's devices share the root, so it is parsed once."""
    return Root.from_bytes(root_document).count


def bundle_of(row: AssignmentRow) -> Bundle:
    """A stored assignment as the device receives it."""
    return Bundle(row.document, row.index, _leaves(row.root), row.proof, row.root, row.signature)


def parse_report(body: bytes, device: str) -> Report:
    """The report in a body. Refusal: it is none (400), or another device's (403)."""
    try:
        report = Report.from_bytes(body)
    except ReportError as error:
        raise Refusal(400, error.reason, "send a report as the agent of this release makes it") from None
    if report.device != device:
        raise Refusal(403, "this token is not that device's", "report under the name that the token was made for")
    return report


def wants_sources(report: Report, assignment: Assignment) -> bool:
    """Whether the device still has something to fetch: an image that no good slot holds, or an app that it does not
    run."""
    image = assignment.image
    held = {slot.digest for slot in report.slots.values() if slot.good}
    if image is not None and image.digest not in held:
        return True
    return any(report.apps.get(name) != app.digest for name, app in assignment.apps.items())


async def exchange(
    options: Options, batcher: Batcher[Received, Recorded], metrics: Metrics, device: str, body: bytes
) -> Answer:
    """Record a report and answer it. Refusal: not a report, not the device's, or not to be recorded now."""
    received_at = options.now()
    try:
        report = parse_report(body, device)
        recorded = await batcher.submit(Received(report, received_at))
    except Refusal:
        metrics.report("refused")
        raise
    except ValueError:
        metrics.report("refused")
        _log.warning("report refused", device=device, cause="a value does not fit the model")
        raise Refusal(400, "report: a value is out of bounds", "send a report as the agent makes it") from None
    except PortError as error:
        raise refusal_of(error) from None
    metrics.report("taken" if recorded.taken else "late")
    if recorded.taken:
        options.reported()
    if recorded.assignment is None:
        return _answer(options, report, None, received_at)
    # Sources may have to be signed or asked for.
    return await run_in_threadpool(_answer, options, report, recorded.assignment, received_at)


def _answer(options: Options, report: Report, row: AssignmentRow | None, now: datetime) -> Answer:
    every = options.policy().report_every_s
    plain = Answer(report_every_s=max(1, every), server_time=now)
    # An expired assignment would be refused by the device: the loop issues the next one.
    if row is None or row.expires_at <= now:
        return plain
    try:
        newer = report.serial is None or (row.epoch, row.n) > report.serial
        assignment = Assignment.from_bytes(row.document)
        sources = options.sources(assignment) if wants_sources(report, assignment) else Sources()
        bundle = bundle_of(row) if newer else None
    except Malformed as error:
        _log.error("assignment unreadable", device=report.device, cause=error.reason)
        return plain
    except PortError as error:
        # The device keeps what it has and asks again: a report was taken, and that is not undone by a store that is
        # down.
        _log.warning("no sources", device=report.device, cause=str(error))
        return plain
    return Answer(
        bundle=bundle,
        sources={kind: tuple(addresses) for kind, addresses in sources.addresses.items()},
        report_every_s=plain.report_every_s,
        server_time=now,
        registry_token=sources.registry_token,
    )
