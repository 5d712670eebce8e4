"""One exchange with a device: a report in, the assignment and its sources out. Called by `server.app` for each request.

Decides whether a report is the caller's to send, and whether its answer carries a bundle. What a report means is the
fold's to decide, what a device shall do is the loop's; neither is touched here.
"""

from __future__ import annotations

from datetime import datetime

import structlog
from starlette.concurrency import run_in_threadpool

from reconciler.controller.reports import Received, Recorded, answer_to, plain_answer
from reconciler.controller.told import ahead_s
from reconciler.ports import AssignmentRow, PortError
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.exchange import Answer
from reconciler.protocol.report import Report, ReportError
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.batch import Batcher
from reconciler.server.metrics import Metrics
from reconciler.server.options import Options

_log = structlog.get_logger("reconciler.server")


def parse_report(body: bytes, device: str) -> Report:
    """The report in a body. Refusal: it is none (400), or another device's (403)."""
    try:
        report = Report.from_bytes(body)
    except ReportError as error:
        raise Refusal(400, error.reason, "send a report as the agent of this release makes it") from None
    if report.device != device:
        raise Refusal(403, "this token is not that device's", "report under the name that the token was made for")
    return report


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
    ahead = ahead_s(report, received_at)
    if ahead is not None and report.clock is not None:
        metrics.clock(ahead, synchronised=report.clock.synchronised)
    if recorded.taken:
        options.reported()
    if recorded.assignment is None:
        return _answer(options, report, None, received_at)
    # Sources may have to be signed or asked for.
    return await run_in_threadpool(_answer, options, report, recorded.assignment, received_at)


def _answer(options: Options, report: Report, row: AssignmentRow | None, now: datetime) -> Answer:
    every = options.policy().report_every_s
    try:
        return answer_to(report, row, now, every, options.sources)
    except Malformed as error:
        _log.error("assignment unreadable", device=report.device, cause=error.reason)
    except PortError as error:
        # The device keeps what it has and asks again: a report was taken, and that is not undone by a store that is
        # down.
        _log.warning("no sources", device=report.device, cause=str(error))
    return plain_answer(every, now)
