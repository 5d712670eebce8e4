"""What came of a run, in a dozen lines or as JSON. Pure; called by the command line.

The same course and seed give the same JSON, byte for byte: how long the run took is said in the text alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from reconciler.model.scalars import format_duration, format_instant
from reconciler.simulate.course import Run
from reconciler.simulate.faults import Faults
from reconciler.simulate.oracle import Rule
from reconciler.simulate.timeline import lines, table, when
from reconciler.simulate.trace import Entry, Event, Exposure, Kind


def had_something_to_do(entry: Entry) -> bool:
    """Whether anything happened for an entry of the calendar, or stands in its way."""
    return bool(entry.first_told_at or entry.arrived or entry.proven_at or entry.stopped_at or entry.held)


def is_quiet(run: Run) -> bool:
    """Whether the run ended because nothing would happen any more."""
    return any(event.kind is Kind.QUIET for event in run.trace.events)


def judged(run: Run) -> Run:
    """The run as it may be told: of one that was ended on the way, nobody can say that it does not get there."""
    if is_quiet(run):
        return run
    end = run.trace.ended_at
    kept = (one for one in run.violations if one.rule is not Rule.CONVERGES or one.at < end)
    return replace(run, violations=tuple(kept))


def as_text(run: Run, title: str, assumed: str, took_s: float, *, timeline: bool = True) -> str:
    """The summary, and then the timeline. `assumed` says where the beginning is from."""
    out = [*summary(run, title, assumed, took_s)]
    if timeline:
        out += ["", *timeline_lines(run)]
    return "\n".join(out) + "\n"


def timeline_lines(run: Run) -> list[str]:
    """The timeline with its heading."""
    return [f"timeline (UTC, {run.trace.started_at:%Y})", *(f"  {line}" for line in lines(events_of(run)))]


def events_of(run: Run) -> Iterator[Event]:
    """What happened; commits by their messages, since their hashes are of this run alone."""
    names: dict[str, str] = {}
    messages = iter([merge.message for merge in sorted(run.course.merges, key=lambda merge: merge.at)])
    for event in run.trace.events:
        if event.kind is Kind.MERGED:
            if event.detail not in names:
                names[event.detail] = next(messages, event.detail)
            event = replace(event, detail=names[event.detail])
        yield event


def summary(run: Run, title: str, assumed: str, took_s: float) -> Iterator[str]:
    """A dozen lines."""
    trace = run.trace
    began = run.course.merges[0].at if run.course.merges else trace.started_at
    length = trace.ended_at - began
    yield title
    yield f"  begins   {assumed}"
    how = "quiet then: nothing more happens by itself" if is_quiet(run) else "still under way then: the run was ended"
    yield f"  time     {began:%Y-%m-%d %H:%M} to {trace.ended_at:%Y-%m-%d %H:%M} UTC ({spoken(length)}); {how}"
    yield f"  faults   {faults_in_words(run.course.faults)}; seed {run.course.seed}"
    yield ""
    entries = [entry for entry in run.calendar if had_something_to_do(entry)]
    if entries:
        yield from (f"  {line}" for line in table(entries))
    else:
        yield "  nothing to do: every wave runs what is asked for"
    yield ""
    yield f"  most devices at once on an unproven release: {_most(run.unproven)}"
    if run.course.faults.bad:
        yield f"  most devices at once on a bad release ({', '.join(sorted(run.course.faults.bad))}): {_most(run.bad)}"
    yield f"  violations of the rules: {len(run.violations) or 'none'}, in {len(trace.events)} events"
    fast = length.total_seconds() / max(took_s, 0.001)
    devices = f"{run.devices} device{'s' * (run.devices != 1)}"
    yield f"  {spoken(length)} of {devices} played in {took_s:.1f} s, {fast:,.0f} times as fast"


def headline(run: Run) -> str:
    """One line under a picture's title."""
    said = [f"at most {run.unproven.devices} of {run.devices} devices at once on an unproven release"]
    if run.course.faults.bad:
        said.append(f"at most {run.bad.devices} on a bad one")
    return f"{', '.join(said)}; faults: {faults_in_words(run.course.faults)}; seed {run.course.seed}"


def _most(exposure: Exposure) -> str:
    return str(exposure.devices) + (f", at {when(exposure.at)}" if exposure.at is not None else "")


def spoken(length: timedelta) -> str:
    """A length of time to the minute, or to the hour where it is days."""
    minutes = int(length.total_seconds()) // 60
    days, rest = divmod(minutes, 1440)
    hours, minutes = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def faults_in_words(faults: Faults) -> str:
    """What goes wrong, as one line."""
    said = []
    for share, what in (
        (faults.fail, "of updates fail"),
        (faults.offline, "of the time offline"),
        (faults.late, "of reports late"),
        (faults.doubled, "of reports doubled"),
        (faults.replayed, "of answers replayed"),
    ):
        if share:
            said.append(f"{share * 100:g}% {what}")
    if faults.power:
        said.append(f"{faults.power:g} power cut{'s' * (faults.power != 1)} a device and day")
    if faults.crashes:
        said.append(f"{faults.crashes:g} kill{'s' * (faults.crashes != 1)} of the controller a day")
    if faults.bad_from_s is not None:
        said.append(f"{', '.join(sorted(faults.bad))} turns bad {format_duration(faults.bad_from_s)} after it runs")
    if faults.herd:
        said.append("all report in step, and call in at 02:00")
    said += [f"controller down {when(since)} to {when(until)}" for since, until in faults.down]
    if not said:
        return "none"
    return ", ".join(said) + (f", until {when(faults.until)}" if faults.until is not None else "")


def as_json(run: Run, title: str, assumed: str) -> str:
    """Everything, with the same bytes for the same course and seed."""
    return json.dumps(to_dict(run, title, assumed), indent=2, ensure_ascii=False) + "\n"


def to_dict(run: Run, title: str, assumed: str) -> dict[str, Any]:
    """The document `kind: Simulation`."""
    trace, course = run.trace, run.course
    return {
        "apiVersion": "fleet/v1",
        "kind": "Simulation",
        "title": title,
        "begins": assumed,
        "seed": course.seed,
        "startedAt": format_instant(trace.started_at),
        "endedAt": format_instant(trace.ended_at),
        "quiet": is_quiet(run),
        "sites": len(run.desired.sites),
        "devices": run.devices,
        "faults": faults_dict(course.faults),
        "calendar": [entry.to_dict() for entry in run.calendar],
        "exposure": {
            "unproven": _exposure_dict(run.unproven),
            "bad": {**_exposure_dict(run.bad), "releases": sorted(course.faults.bad)},
        },
        "violations": [
            {"at": format_instant(one.at), "rule": one.rule.value, "who": one.who, "text": one.text}
            for one in run.violations
        ],
        "ticks": run.ticks,
        "exchanges": run.exchanges,
        "events": [event.to_dict() for event in events_of(run)],
    }


def faults_dict(faults: Faults) -> dict[str, Any]:
    """For JSON."""
    return {
        "fail": faults.fail,
        "offline": faults.offline,
        "power": faults.power,
        "late": faults.late,
        "doubled": faults.doubled,
        "replayed": faults.replayed,
        "crashes": faults.crashes,
        "badFrom": None if faults.bad_from_s is None else format_duration(faults.bad_from_s),
        "bad": sorted(faults.bad),
        "herd": faults.herd,
        "down": [{"from": format_instant(since), "to": format_instant(to)} for since, to in faults.down],
        "until": _text(faults.until),
    }


def _exposure_dict(exposure: Exposure) -> dict[str, Any]:
    return {"devices": exposure.devices, "at": _text(exposure.at)}


def _text(at: datetime | None) -> str | None:
    return None if at is None else format_instant(at)


def defect(violations: Sequence[Any], command: str) -> str:
    """What a person is told when the rules were broken: this is no fault of theirs."""
    first = [f"  {format_instant(one.at)} {one.rule.value}: {one.who}: {one.text}" for one in violations[:10]]
    more = [f"  … {len(violations) - 10} more"] if len(violations) > 10 else []
    return "\n".join(
        [
            "error: the simulated fleet broke a rule that must always hold: this is a defect of reconciler, not of your fleet",
            *first,
            *more,
            f"to see it again: {command}",
            "please report it with that command, and the fleet folder and the snapshot that it reads",
        ]
    )
