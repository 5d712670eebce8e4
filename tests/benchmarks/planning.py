"""What planning costs at a million devices: as a ratio to a stable argsort of the site column, and in memory.

The fleet is mid-rollout: 30 % of the devices are done, 40 % are held by an earlier wave, 20 % may start, 10 % are stale. Columns
are filled directly, as a running controller has them; compiling the roster is done once a commit and reported beside.
Run by `python -m tests.benchmarks`, or alone: `python -m tests.benchmarks.planning`. No test depends on a time.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from reconciler.model.desired import Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.observed import ArtifactState, Verdict
from reconciler.planner import Columns, Roster, decide
from reconciler.planner.ground import place_rows
from reconciler.planner.judge import Seen
from reconciler.planner.roster import membership
from reconciler.planner.want import MAY_START
from reconciler.planner.windows import SECOND, micros

ZONES = (
    "Europe/Berlin",
    "Europe/London",
    "Africa/Lagos",
    "Europe/Madrid",
    "UTC",
    "Europe/Lisbon",
    "Europe/Paris",
    "Africa/Algiers",
    "Europe/Rome",
    "Europe/Dublin",
)
NOW = micros(datetime(2026, 1, 15, 2, 30, tzinfo=UTC))
DAY = 86_400 * SECOND
ROUNDS = 7


def fleet(devices: int) -> Roster:
    """Half as many sites as devices; canaries, 30 %, 60 %, 100 %, all asked to run the new release."""
    spec = {"image": "v1.4.2", "soak": "24h", "maxFailed": "2%", "maxOffline": "20%"}
    waves = [
        {"name": "canary", "sites": ["S0", "S1"], **spec},
        {"name": "early", "percent": 33, **spec},
        {"name": "half", "percent": 56, **spec},
        {"name": "all", "percent": 100, **spec},
    ]
    blank = SiteSpec.model_validate({"timezone": "UTC", "devices": ["x"]})
    sites = {
        f"S{number}": blank.model_copy(
            update={"timezone": ZONES[number % 10], "devices": (f"S{number}-1", f"S{number}-2")}
        )
        for number in range(devices // 2)
    }
    images = {"v1.4.1": ImageSpec(), "v1.4.2": ImageSpec()}
    return Roster(Desired(FleetSpec(), WavesSpec.model_validate({"waves": waves}), images, {}, sites))


def observe(roster: Roster) -> Columns:
    """The first two waves are through, the third may start, the fourth waits; a tenth of all is stale."""
    obs, random = Columns(roster), np.random.default_rng(1)
    wave_of = place_rows(roster, membership(roster, {})).wave_of
    done = wave_of <= 1
    obs.image[:] = np.where(done, 1, 0)
    obs.previous[done] = 0
    obs.health[:] = 1
    obs.health_before[:] = 1
    since = np.where(done, NOW - 3 * DAY, NOW - 30 * DAY)
    obs.image_since[:] = obs.health_since[:] = since
    obs.last_seen[:] = NOW - random.integers(0, 600, roster.size) * SECOND
    obs.last_seen[random.random(roster.size) < 0.1] = NOW - DAY
    obs.artifacts = {"v1.4.1": ArtifactState.PUBLISHED, "v1.4.2": ArtifactState.PUBLISHED}
    at = datetime(2026, 1, 10, tzinfo=UTC)
    obs.proofs = tuple(Verdict(wave=name, image="v1.4.2", at=at) for name in ("canary", "early"))
    return obs


def measure(devices: int = 1_000_000) -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours in s, yardstick, its s, bar): the plan over an argsort, and over the 1.5 s that it may take."""
    started = time.perf_counter()
    roster = fleet(devices)
    compiled = time.perf_counter() - started
    obs = observe(roster)
    state = decide(roster, obs, NOW)
    reason = state.tracks[0].reason
    shares = (
        (obs.image == 1).mean(),
        (reason == MAY_START).mean(),
        (state.tracks[0].seen == Seen.SILENT).mean() + (state.tracks[0].seen == Seen.SILENT_AFTER).mean(),
    )
    column = np.random.default_rng(2).permutation(roster.site_of)
    ours = min(_timed(lambda: decide(roster, obs, NOW)) for _ in range(ROUNDS))
    yardstick = min(_timed(lambda: np.argsort(column, kind="stable")) for _ in range(ROUNDS))
    print(
        f"# {devices:,} devices: {shares[0]:.0%} done, {shares[1]:.0%} may start, {shares[2]:.0%} stale, the rest held;"
        f" roster compiled once a commit in {compiled:.1f} s"
    )
    yield f"plan, {devices:,} devices mid-rollout", ours, "stable argsort of the site column", yardstick, 6.0
    yield f"plan, {devices:,} devices mid-rollout", ours, "1.5 s", 1.5, 1.0


def memory(devices: int = 1_000_000) -> float:
    """Peak of the process in GiB, when it holds the roster, the columns and a plan. Run in a process of its own."""
    roster = fleet(devices)
    decide(roster, observe(roster), NOW)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def _timed(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in measure():
        print(row)
    print("peak GiB", memory())
