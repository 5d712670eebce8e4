"""Small random fleets for property tests: a handful of sites, three releases, every state that a rule looks at.

The nights are January's, without a change of the clocks: those are cases of their own (tests/scenarios).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from reconciler.model.desired import AppSpec, Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.observed import Snapshot

MIDNIGHT = datetime(2026, 1, 15, tzinfo=UTC)
DIGESTS = {"1.0.0": "sha256:" + "1" * 64, "1.1.0": "sha256:" + "2" * 64}
STRANGE = "sha256:" + "3" * 64
CONFIGS = ("sha256:" + "a" * 64, "sha256:" + "b" * 64)
RELEASES = ("v1", "v2", "v3")
ZONES = ("UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia")
WINDOWS = ({"start": "02:00", "end": "04:00"}, {"start": "23:00", "end": "01:00"}, {"start": "00:00", "end": "24:00"})


@dataclass(frozen=True)
class Case:
    """One input of the planner."""

    desired: Desired
    snapshot: Snapshot
    now: datetime


def _maybe(chance: int, value: Any, other: Any = None) -> st.SearchStrategy[Any]:
    """`value` once in `chance`, else `other`. Shrinks to `other`."""
    return st.integers(0, chance - 1).map(lambda n: value if n == chance - 1 else other)


SITE = st.fixed_dictionaries(
    {
        "timezone": st.sampled_from(ZONES),
        "count": st.integers(1, 2),
        "lab": _maybe(3, True, False),
        "suspended": _maybe(8, True, False),
        "window": st.sampled_from([None] * 9 + list(WINDOWS)),
        "pin": st.sampled_from([None] * 21 + list(RELEASES)),
        "pinOne": st.booleans(),
    }
)
SITES = st.lists(SITE, min_size=2, max_size=7)
BUDGET = st.sampled_from(["0", "1", "34%", "50%"])
WAVE = st.fixed_dictionaries(
    {
        "soak": st.sampled_from(["1h", "48h"]),
        "maxFailed": BUDGET,
        "maxOffline": BUDGET,
        "maxInFlight": st.sampled_from(["100%", "1", "50%", "10%"]),
        "paused": _maybe(8, True, False),
        "apps": st.sampled_from([{}, {}, *({"video-ingest": version} for version in sorted(DIGESTS))]),
        "image": st.sampled_from([None, None, *RELEASES]),
    }
)


def site_specs(drawn: list[dict[str, Any]], *, one_device: bool, calm: bool = False) -> dict[str, SiteSpec]:
    """Two to seven sites; the first may be a lab."""
    specs = {}
    for number, site in enumerate(drawn, 1):
        name = f"SITE-{number:04d}"
        devices = [f"{name}-{n}" for n in range(1, 2 if one_device else site["count"] + 1)]
        zone, window = ("UTC", None) if calm else (site["timezone"], site["window"])
        spec: dict[str, Any] = {"timezone": zone, "devices": devices, "suspended": site["suspended"]}
        spec |= {"lab": number == 1 and site["lab"], "window": window}
        if site["pin"] is not None:
            spec["pin"] = {"image": site["pin"], "devices": devices[:1] if site["pinOne"] else None, "why": "trial"}
        specs[name] = SiteSpec.model_validate(spec)
    return specs


TOP = st.sampled_from(RELEASES)
ORDER = st.sampled_from(["", "spring"])
SHAPE = st.sampled_from(["canary", "percent", "both", "list"])
LISTED = st.integers(1, 2)
PERCENT = st.sampled_from([10, 50, 90])


@st.composite
def rollouts(draw: st.DrawFn, sites: dict[str, SiteSpec], *, full_budget: bool, calm: bool = False) -> WavesSpec:
    """A listed canary (labs in it), then perhaps a percentage, perhaps another list, then everybody."""
    names = sorted(sites)
    shape = draw(SHAPE)
    waves: list[dict[str, Any]] = [{"name": "canary", "sites": names[: draw(LISTED)]}]
    if shape in ("percent", "both"):
        waves.append({"name": "part", "percent": draw(PERCENT)})
    if shape in ("list", "both") and len(names) > 3:
        waves.append({"name": "named", "sites": names[-1:]})
    waves.append({"name": "all", "percent": 100})
    top = draw(TOP)
    for wave in waves:
        wave |= draw(WAVE)
        wave["image"] = wave["image"] or top
        if full_budget:
            wave["maxInFlight"] = "100%"
        wave["paused"] = wave["paused"] and not calm
    return WavesSpec.model_validate({"waves": waves, "order": draw(ORDER)})


FREEZE = {"from": MIDNIGHT - timedelta(days=2), "to": MIDNIGHT + timedelta(hours=3)}
FLEET = st.fixed_dictionaries(
    {
        "onFailure": st.sampled_from(["hold", "rollback"]),
        "rollback": st.sampled_from([{"ignoreWindow": word} for word in ("true", "all", "false")]),
        "freezes": _maybe(6, [FREEZE], []),
        "paused": _maybe(8, True, False),
        "tagDrift": st.sampled_from(["restore", "report"]),
        "attempts": st.sampled_from([1, 3]),
    }
).map(FleetSpec.model_validate)
"""Settings, most of them the defaults."""

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
DEVICE = st.fixed_dictionaries(
    {
        "listed": _maybe(10, False, True),
        "image": st.sampled_from(["v1", "v2", "v2", "v3", "v9", None, "v1"]),
        "imageSince": st.sampled_from([20 * DAY, 3 * DAY, 30 * MINUTE]),
        "previousImage": st.sampled_from([None, *RELEASES]),
        "inactiveSlot": st.sampled_from([None, *RELEASES]),
        "health": st.sampled_from(["ok", "ok", "ok", "warning", "critical", "unknown"]),
        "healthSince": st.sampled_from([15 * DAY, 2 * DAY, 5 * MINUTE, 20 * MINUTE]),
        "healthBeforeUpdate": st.sampled_from([None, "ok", "critical"]),
        "lastSeen": st.sampled_from([0 * DAY] * 5 + [15 * MINUTE, 15 * MINUTE + timedelta(seconds=1), 3 * DAY]),
        "updatingTo": st.sampled_from([None] * 12 + [*RELEASES]),
        "updatingSince": st.sampled_from([10 * MINUTE, DAY, 5 * DAY]),
        "rebootingSince": st.sampled_from([None, 5 * MINUTE, 40 * MINUTE]),
        "failedAttempts": st.sampled_from([{}, {}, {}, {"v2": 1}, {"v2": 3}, {"video-ingest@1.1.0": 3}]),
        "app": st.sampled_from([None, None, *DIGESTS.values(), STRANGE]),
        "appSince": st.sampled_from([10 * DAY, 30 * MINUTE]),
        "restartingSince": st.sampled_from([None] * 6 + [MINUTE, DAY]),
        "config": st.sampled_from([None, *CONFIGS]),
        "conflict": _maybe(20, True, False),
    }
)
"""One observation: mostly sound, now and then anything. Instants are ages."""


def observation(drawn: dict[str, Any], name: str, site: str, now: datetime, *, calm: bool = False) -> dict[str, Any]:
    """A drawn device as the snapshot has it, at `now`."""
    out: dict[str, Any] = {"name": name, "site": site}
    for key, value in drawn.items():
        if key not in ("app", "appSince", "listed"):
            out[key] = now - value if isinstance(value, timedelta) else value
    if calm and out["image"] in ("v9", "v3"):
        out["image"] = "v1"  # a fleet that moves upward, and has no strangers
    if calm:
        out["conflict"] = False
        out["failedAttempts"] = dict.fromkeys(out["failedAttempts"], 1)
    if out["image"] is None:
        out["imageSince"] = None
    if out["updatingTo"] is None:
        out["updatingSince"] = out["rebootingSince"] = None
    if drawn["app"] is None:
        out["restartingSince"] = None
    else:
        out["apps"] = {"video-ingest": {"digest": drawn["app"], "since": now - drawn["appSince"]}}
        out["restartingApp"] = "video-ingest" if out["restartingSince"] else None
    return out


KEYS: list[dict[str, str]] = [{"image": release} for release in RELEASES]
KEYS += [{"app": "video-ingest", "release": version} for version in sorted(DIGESTS)]
VERDICT = st.tuples(st.sampled_from([None] * 6 + ["proofs", "proofs", "closed", "failures"]), st.integers(0, 9))
VERDICTS = st.lists(VERDICT, min_size=4 * len(KEYS), max_size=4 * len(KEYS))
PROPOSED = st.lists(_maybe(6, True, False), min_size=len(KEYS), max_size=len(KEYS))
TAKEN = st.tuples(
    st.sampled_from([None, None, None, *RELEASES]), st.integers(0, 3), st.sets(st.integers(1, 7), max_size=3)
)


@st.composite
def records(
    draw: st.DrawFn, waves: WavesSpec, sites: dict[str, SiteSpec], now: datetime, *, calm: bool = False
) -> dict[str, Any]:
    """Proofs, failures, members and proposals: of the image releases and of the app's."""
    out: dict[str, Any] = {"proofs": [], "failures": [], "members": {}, "proposals": []}
    verdicts = iter(draw(VERDICTS))
    for wave in waves.waves:
        for key, (what, days) in zip(KEYS, verdicts, strict=False):
            verdict = {"wave": wave.name, **key, "at": now - days * DAY}
            if what == "closed":
                out["proofs"].append({**verdict, "closed": True})
            elif what is not None and not (calm and what == "failures"):
                out[what].append(verdict)
    out["proposals"] = [{**key, "at": now} for key, made in zip(KEYS, draw(PROPOSED), strict=True) if made]
    release, number, taken = draw(TAKEN)
    known = sorted(f"SITE-{n:04d}" for n in taken if f"SITE-{n:04d}" in sites)
    if release is not None and known:
        out["members"] = {release: {waves.waves[number % len(waves.waves)].name: known}}
    return out


CALM = st.sampled_from([True, True, True, False])
TIME = st.integers(0, 12 * 24)
NIGHT = st.integers(0, 24)
WITHDRAWN = st.lists(_maybe(12, "leaks memory"), min_size=3, max_size=3)
CONFIGURED = st.sets(st.integers(1, 7))
STATES = st.lists(st.sampled_from(["published"] * 6 + ["absent", "built", "signed", "broken"]), min_size=3, max_size=3)
TAG = st.sampled_from([*DIGESTS.values(), STRANGE, None])
TAGS = st.lists(TAG, min_size=4, max_size=4)
SOME_TAGS = st.one_of(st.none(), TAGS)
APP = st.sampled_from(
    [AppSpec(repository="video-ingest", window=window, releases=DIGESTS) for window in ("any", "site")]  # type: ignore[arg-type]
)


@st.composite
def cases(draw: st.DrawFn, *, one_device: bool = False, full_budget: bool = False) -> Case:
    """A whole input. `one_device` a site and `full_budget` take rationing out of the picture.

    Most are calm: at night, nothing paused, nothing failed before. Of the others few would come to flash anything.
    """
    calm = draw(CALM)
    now = MIDNIGHT + 5 * MINUTE * (draw(TIME) if not calm else 24 + draw(NIGHT))
    sites = site_specs(draw(SITES), one_device=one_device, calm=calm)
    waves = draw(rollouts(sites, full_budget=full_budget, calm=calm))
    images = {name: ImageSpec(withdrawn=why) for name, why in zip(RELEASES, draw(WITHDRAWN), strict=True)}
    config = {f"SITE-{n:04d}": CONFIGS[0] for n in draw(CONFIGURED) if f"SITE-{n:04d}" in sites}
    fleet = draw(FLEET)
    if calm:
        fleet = fleet.model_copy(update={"paused": False, "freezes": ()})
    desired = Desired(fleet, waves, images, {"video-ingest": draw(APP)}, sites, config)
    observed: dict[str, Any] = draw(records(waves, sites, now, calm=calm))
    observed["devices"] = [
        observation(drawn, device, site, now, calm=calm)
        for site, spec in sites.items()
        for device in spec.devices
        if (drawn := draw(DEVICE))["listed"]
    ]
    observed["artifacts"] = {
        r: {"state": "published" if calm and r != "v3" else state}
        for r, state in zip(RELEASES, draw(STATES), strict=True)
    }
    names = [desired.tag_of(number) for number in range(len(waves.waves))]
    observed["tags"] = {"video-ingest": dict(zip(names, draw(TAGS), strict=False))}
    set_before = draw(SOME_TAGS)
    observed["tagsSet"] = {} if set_before is None else {"video-ingest": dict(zip(names, set_before, strict=False))}
    return Case(desired, Snapshot.model_validate(observed), now)
