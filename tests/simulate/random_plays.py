"""Random small fleets, commits and faults of every kind, drawn from a number: what the code as it is must come through clean."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from reconciler.simulate.course import Course, Merge
from reconciler.simulate.faults import Faults
from tests.simulate.courses import APP_NEW, APP_OLD, AT, NEW, NEXT, OLD, SOON, ZONES, Play, SmallFleet, later

DAYS_AFTER = 16
"""So long after the last fault everything must have come to rest."""


def random_play(number: int) -> Play:
    """The play of a number."""
    draw = random.Random(f"play {number}")
    fleet = _fleet(draw)
    merges = _merges(draw, fleet)
    until = AT + timedelta(days=draw.choice((2, 4)))
    faults = _faults(draw, until) if draw.random() < 0.85 else Faults()
    limit = until - AT + timedelta(days=DAYS_AFTER)
    at = AT + timedelta(days=draw.choice((0, 17, 220)))
    course = Course(fleet.files(), AT, merges, faults=faults, seed=number, limit=limit)
    return Play(_moved(course, at - AT))


def _fleet(draw: random.Random) -> SmallFleet:
    sites = draw.randint(3, 8)
    spec: dict[str, Any] = {
        "onFailure": draw.choice(("hold", "rollback")),
        "rollback": {"ignoreWindow": draw.choice(("true", "all", "false"))},
        "attempts": draw.choice((1, 3)),
        "reportEvery": draw.choice(("60s", "5m")),
        "flashDuration": draw.choice(("20m", "40m")),
    }
    if draw.random() < 0.3:
        spec["window"] = draw.choice(({"start": "00:00", "end": "24:00"}, {"start": "23:00", "end": "01:30"}))
    waves: list[dict[str, Any]] = [{"name": "canary", "sites": ["SITE-01", "SITE-02"][: draw.randint(1, 2)]}]
    if draw.random() < 0.6:
        waves.append({"name": "some", "percent": draw.choice((34, 50, 67))})
    waves.append({"name": "all", "percent": 100})
    for wave in waves:
        wave["soak"] = draw.choice(("0s", "30m", "2h", "26h"))
        wave["maxInFlight"] = draw.choice(("100%", "50%", 1))
        wave["maxFailed"] = draw.choice((0, 0, 1))
        wave["maxOffline"] = draw.choice((0, 1, "50%"))
    special: dict[int, dict[str, Any]] = {}
    if draw.random() < 0.2:
        special[3] = {"suspended": True}
    if draw.random() < 0.2:
        special[sites] = {"pin": {"image": draw.choice((OLD, NEW)), "why": "a trial"}}
    two = draw.sample(range(1, sites + 1), draw.randint(0, 2))
    zones = draw.sample(ZONES, draw.randint(1, 3))
    order = draw.choice(("heron", "crane"))
    return SmallFleet(sites, two, zones, spec, waves, special, app_window=draw.choice(("any", "site")), order=order)


def _merges(draw: random.Random, fleet: SmallFleet) -> list[Merge]:
    count, out, hours = len(fleet.waves), [], 0.1
    raised = draw.randint(1, count)
    out.append(_asks(fleet, hours, [NEW] * raised + [OLD] * (count - raised)))
    for _ in range(draw.randint(0, 2)):
        hours += draw.choice((3, 20, 45))
        kind = draw.choice(("all", "next", "revert", "app", "pause", "freeze", "rewrite", "broken", "raise"))
        if kind in ("all", "next", "revert", "raise"):
            wanted = {"all": NEW, "next": NEXT, "revert": OLD, "raise": NEW}[kind]
            out.append(_asks(fleet, hours, [wanted] * count))
        elif kind == "app":
            out.append(Merge(later(hours), {"waves.yaml": fleet.asking(NEW, APP_NEW)}))
        elif kind == "rewrite":
            out.append(replace(_asks(fleet, hours, [NEXT] * count), rewrites=True))
        elif kind == "broken":
            out.append(Merge(later(hours), {"waves.yaml": b"spec: ["}))
        else:
            frozen = {"from": "2026-01-01T00:00:00Z", "to": "2026-12-01T00:00:00Z", "why": "fair"}
            more = {"paused": True} if kind == "pause" else {"freezes": [frozen]}
            files = replace(fleet, spec={**fleet.spec, **more}).files()
            out.append(Merge(later(hours), {"fleet.yaml": files["fleet.yaml"]}))
            out.append(Merge(later(hours + 30), {"fleet.yaml": fleet.files()["fleet.yaml"]}))
            hours += 30
    return out


def _asks(fleet: SmallFleet, hours: float, images: list[str]) -> Merge:
    at = SOON if hours < 1 else later(hours)
    return Merge(at, {"waves.yaml": fleet.asking(images, APP_OLD)}, f"Ask for {', '.join(images)}")


def _faults(draw: random.Random, until: datetime) -> Faults:
    def share(most: float) -> float:
        return round(draw.uniform(0, most), 3) if draw.random() < 0.4 else 0.0

    down: tuple[tuple[datetime, datetime], ...] = ()
    if draw.random() < 0.25:
        begin = later(draw.randint(2, 40))
        down = ((begin, begin + timedelta(hours=draw.randint(1, 14))),)
    bad = draw.random() < 0.3
    return Faults(
        fail=share(0.3),
        offline=share(0.15),
        power=share(2.0),
        late=share(0.2),
        doubled=share(0.2),
        replayed=share(0.2),
        bad_from_s=draw.choice((60, 900, 4 * 3600)) if bad else None,
        bad=frozenset({draw.choice((NEW, f"video-ingest@{APP_NEW}"))}) if bad else frozenset(),
        herd=draw.random() < 0.2,
        down=down,
        crashes=share(6.0),
        until=until,
    )


def _moved(course: Course, by: timedelta) -> Course:
    """The same course at another time of the year."""
    faults = course.faults
    return replace(
        course,
        at=course.at + by,
        merges=[replace(merge, at=merge.at + by) for merge in course.merges],
        faults=replace(
            faults,
            down=tuple((begin + by, end + by) for begin, end in faults.down),
            until=faults.until + by if faults.until is not None else None,
        ),
    )
