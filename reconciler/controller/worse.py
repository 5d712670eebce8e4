"""What is kept of checks that are worse than before the last update: each as it was, as it is, what it says, since when. Pure.

Nothing is kept of a check that is not worse, so that a healthy fleet costs nothing; of a device that is ill, a bounded few. Nothing
here is judged by: it is shown to people, as evidence of a failure and as an explanation. What a trial boot says would be lost
with its fall-back, so that the last failed attempt keeps its own. Called by the fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from reconciler.model.observed import (
    MOST_CHECKS,
    MOST_MESSAGE,
    Attempt,
    CheckChange,
    DeviceObservation,
    Health,
)
from reconciler.protocol.report import Report, worse_checks

_WORST_FIRST = (Health.CRITICAL, Health.UNKNOWN)


def changes(
    report: Report, called: Sequence[str], at: datetime, known: Sequence[CheckChange]
) -> tuple[CheckChange, ...]:
    """The checks `called` so, which are worse: the worst first, `MOST_CHECKS` at most.

    `known` are those on record of the same image without a gap: one that says the same status runs on from there. Else it begins
    at `at`, the recorder's instant.
    """
    if not called:
        return ()
    names = frozenset(called)
    was = {check.name: Health(check.status) for check in report.checks_before}
    since = {(each.name, each.now): each.since for each in known}
    found = []
    for check in report.checks:
        if check.name in names:
            now = Health(check.status)
            begun = since.get((check.name, now), at)
            found.append(
                CheckChange(
                    name=check.name, before=was.get(check.name), now=now, message=_clipped(check.message), since=begun
                )
            )
    # The worst first, so that what does not fit is the least: more may follow from one cause than a person reads.
    found.sort(key=lambda each: (_WORST_FIRST.index(each.now), each.name))
    return tuple(found[:MOST_CHECKS])


def attempted(
    before: DeviceObservation,
    report: Report,
    at: datetime,
    checks: tuple[CheckChange, ...],
    failed: Mapping[str, int],
    *,
    on_trial: bool,
) -> Attempt | None:
    """What is on record of the last attempt after the report.

    `checks` are those of the image that is marked good after the report; `failed` counts the failed attempts on record, this
    report's included; `on_trial`: what is booted is not marked good, and may be on its way back. While something is tried,
    what is worse then is kept; afterwards it stays only if an attempt at that release failed.
    """
    known, target = before.attempt, (report.target or report.image) if on_trial else report.target
    counted = target is not None and report.attempts.get(target, 0) > before.reported_attempts.get(target, (0, 0))[0]
    if known is not None and known.release == target and (counted or report.phase == "rebooting"):
        # It is over: what is worse by now is worse without it.
        return known
    trying = (on_trial or report.phase == "restarting") and target is not None
    if on_trial:
        # Runs of the image that is to be replaced say nothing of the one on trial.
        same = known is not None and known.release == target and before.phase == "trial"
        checks = changes(report, worse(report), at, known.checks if known is not None and same else ())
    if trying and target is not None and checks:
        return Attempt(release=target, checks=checks)
    if known is None or (trying and known.release == target):
        return known
    return known if failed.get(known.release) and report.image != known.release else None


def worse(report: Report) -> tuple[str, ...]:
    """Names of the checks that are worse than before the last update; none where the device does not say how they were."""
    return worse_checks(report.checks_before, report.checks) if report.checks_before else ()


def _clipped(message: str) -> str:
    """On one line."""
    line = " ".join(message.split())
    return line if len(line) <= MOST_MESSAGE else f"{line[: MOST_MESSAGE - 1]}…"
