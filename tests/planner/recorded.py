"""Made-up fleets in made-up states, from a seed, for the plans on record (`recorded_plans.jsonl`).

`python -m tests.planner.recorded` writes the record anew. Do that only after you have looked at what differs: a plan that
changes is a rule that changed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from reconciler.model.desired import AppSpec, Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.model.observed import Snapshot
from reconciler.planner import plan

RECORD = Path(__file__).with_name("recorded_plans.jsonl")
CASES = 220
DIGESTS = {"1.0": "sha256:" + "1" * 64, "1.1": "sha256:" + "2" * 64, "2.0": "sha256:" + "3" * 64}
STRANGE = "sha256:" + "f" * 64
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia")
INSTANTS = (
    datetime(2026, 1, 15, 2, 30, tzinfo=UTC),
    datetime(2026, 1, 15, 12, 0, tzinfo=UTC),
    datetime(2026, 3, 8, 7, 10, tzinfo=UTC),
    datetime(2026, 10, 25, 1, 20, tzinfo=UTC),
    datetime(2026, 10, 3, 15, 45, tzinfo=UTC),
)
WINDOWS = ({"start": "02:00", "end": "04:00"}, {"start": "23:30", "end": "01:00"}, {"start": "00:00", "end": "24:00"})


class World:
    """One case, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = self.random.choice(INSTANTS)
        self.sites = [f"S{number}" for number in range(self.random.randint(2, 16))]
        self.shape = self.random.choice(("short", "short", "long"))
        self.listed = self.sites[: self.random.randint(1, 2)]

    def maybe(self, chance: float, value: Any, other: Any = None) -> Any:
        return value if self.random.random() < chance else other

    def ago(self, *minutes: float) -> str:
        return (self.now - timedelta(minutes=self.random.choice(minutes))).isoformat()

    def desired(self) -> Desired:
        pick = self.random.choice
        fleet = {
            "onFailure": pick(["hold", "hold", "rollback"]),
            "tagDrift": pick(["restore", "report"]),
            "rollback": {"ignoreWindow": pick(["true", "all", "false"])},
            "paused": self.maybe(0.05, True, False),
            "window": pick(WINDOWS),
            "attempts": pick([1, 2, 3]),
            "freezes": [{"from": self.ago(0, 60), "to": self.ago(-60, 0.0001 - 1)}] if self.maybe(0.07, True) else [],
        }
        images = {name: ImageSpec(withdrawn=self.maybe(0.06, "leaks")) for name in ("v1", "v1.1", "v2")}
        window = pick(["any", "site"])
        apps = {"app": AppSpec.model_validate({"repository": "app", "releases": DIGESTS, "window": window})}
        sites = {name: self.site(name) for name in self.sites}
        config = {name: "sha256:" + pick("ab") * 64 for name in self.sites if self.maybe(0.8, True)}
        return Desired(FleetSpec.model_validate(fleet), self.waves(), images, apps, sites, config=config)

    def site(self, name: str) -> SiteSpec:
        devices = [f"{name}-{number}" for number in range(self.random.randint(1, 3))]
        spec: dict[str, Any] = {"timezone": self.random.choice(ZONES), "devices": devices}
        spec["lab"] = self.maybe(0.1, True, False)
        spec["suspended"] = self.maybe(0.06, True, False)
        if self.maybe(0.08, True):
            spec["pin"] = {
                "image": self.random.choice(["v1", "v2"]),
                "why": "x",
                "devices": self.maybe(0.5, devices[:1], devices),
            }
        if self.maybe(0.2, True):
            spec["window"] = self.random.choice(WINDOWS)
        return SiteSpec.model_validate(spec)

    def waves(self) -> WavesSpec:
        names: list[dict[str, Any]] = [{"name": "canary", "sites": self.listed}]
        names += [{"name": f"p{percent}", "percent": percent} for percent in self.percents()]
        if self.shape == "long" and len(self.sites) > 6:
            names.insert(-1, {"name": "late", "sites": self.sites[-2:]})
        pick, new, app = self.random.choice, self.random.choice(["v1.1", "v2"]), self.random.choice(list(DIGESTS))
        reach, app_reach = self.random.randint(0, len(names)), self.random.randint(0, len(names))
        for number, wave in enumerate(names):
            wave |= {
                "image": new if number < reach else "v1",
                "apps": {"app": app if number < app_reach else "1.0"},
                "soak": pick(["1h", "24h", "48h"]),
                "maxFailed": pick([0, 0, 1, "25%"]),
                "maxOffline": pick([0, 0, 1, "34%"]),
                "maxInFlight": pick([1, 2, "50%", "100%"]),
                "paused": self.maybe(0.04, True, False),
            }
            if self.maybe(0.1, True):
                wave["appSoak"] = "30m"
            if self.maybe(0.03, True):
                del wave["image"]
        return WavesSpec.model_validate({"order": pick(["", "spring"]), "waves": names})

    def percents(self) -> list[int]:
        return [10, 50, 100] if self.shape == "long" else [self.random.choice([20, 40, 60]), 100]

    def device(self, name: str, site: str) -> dict[str, Any]:
        pick = self.random.choice
        out: dict[str, Any] = {
            "name": name,
            "site": site,
            "image": pick(["v1", "v1", "v1.1", "v2", "v2", None, self.maybe(0.15, "strange", "v1")]),
            "imageSince": self.maybe(0.95, self.ago(5, 70, 1441, 3000, 9000)),
            "health": pick(["ok", "ok", "ok", "ok", "warning", "critical", "unknown"]),
            "healthSince": self.maybe(0.95, self.ago(1, 9.99, 10, 11, 60, 1440, 2880, 2879, 9500)),
            "lastSeen": self.maybe(0.97, self.ago(0, 0, 0, 1, 14, 15, 15.001, 300)),
            "previousImage": pick([None, "v1", "v1.1", "v2"]),
            "inactiveSlot": pick([None, "v1", "v1.1", "v2"]),
            "healthBeforeUpdate": pick([None, "ok", "ok", "critical"]),
            "checksWorse": self.maybe(0.05, ["disk"], []),
        }
        if self.maybe(0.08, True):
            out |= {"image": "v1", "previousImage": "v2", "inactiveSlot": "v2", "health": "ok", "lastSeen": self.ago(0)}
        if self.maybe(0.12, True):
            out |= {"updatingTo": pick(["v1", "v1.1", "v2"]), "updatingSince": self.ago(0, 30, 119, 121, 4000, 9000)}
            if self.maybe(0.4, True):
                out["rebootingSince"] = self.ago(1, 29, 30, 31)
        if self.maybe(0.08, True):
            out |= {"restartingSince": self.ago(1, 119, 121), "restartingApp": self.maybe(0.8, "app")}
        if self.maybe(0.03, True):
            out["configuringSince"] = self.ago(1, 125)
        if self.maybe(0.12, True):
            out["failedAttempts"] = {pick(["v1", "v1.1", "v2", "app@1.1", "app@2.0"]): pick([1, 2, 3])}
            out["attemptFailedAt"] = self.maybe(0.5, self.ago(5, 500))
        if self.maybe(0.05, True):
            out["rescuedFrom"] = {pick(["v1.1", "v2"]): self.ago(5, 500)}
        if self.maybe(0.85, True):
            out["apps"] = {"app": {"digest": pick([*DIGESTS.values(), STRANGE]), "since": self.ago(1, 65, 1500, 8000)}}
        if self.maybe(0.4, True):
            out["config"] = "sha256:" + pick("ab") * 64
        return out

    def snapshot(self, desired: Desired) -> Snapshot:
        pick, names = self.random.choice, [wave.name for wave in desired.waves.waves]
        devices = [
            self.device(name, site)
            for site, spec in desired.sites.items()
            for name in spec.devices
            if self.maybe(0.96, True)
        ]
        devices += [dict(devices[0])] if devices and self.maybe(0.05, True) else []
        states = ["published"] * 6 + ["absent", "built", "signed", "broken"]
        keys = [{"image": "v1"}, {"image": "v1.1"}, {"image": "v2"}]
        keys += [{"app": "app", "release": version} for version in DIGESTS]

        def verdicts(chance: float) -> list[dict[str, Any]]:
            found = [{"wave": wave, **key} for wave in names for key in keys if self.maybe(chance, True)]
            return [{**one, "at": self.ago(600), "closed": self.maybe(0.2, True, False)} for one in found]

        tags = [desired.tag_of(number) for number in range(len(names))]
        return Snapshot.model_validate(
            {
                "devices": devices,
                "artifacts": {name: pick(states) for name in desired.images},
                "tags": {"app": {tag: pick([*DIGESTS.values(), STRANGE]) for tag in tags if self.maybe(0.85, True)}},
                "tagsSet": {"app": {tag: pick(list(DIGESTS.values())) for tag in tags if self.maybe(0.4, True)}},
                "proofs": verdicts(self.random.choice([0, 0.2, 0.6, 0.95])),
                "failures": verdicts(self.random.choice([0, 0, 0, 0.1])),
                "members": {
                    key: {
                        wave: self.random.sample(self.sites, k=min(2, len(self.sites)))
                        for wave in names
                        if self.maybe(0.5, True)
                    }
                    for key in ("v1", "v2", "app@1.1")
                    if self.maybe(0.3, True)
                },
                "proposals": [{"image": "v2", "at": self.ago(5)}] if self.maybe(0.2, True) else [],
            }
        )


def brief(made: dict[str, Any]) -> dict[str, Any]:
    """A plan without its sentences: they may be written better without a rule having changed."""
    for hold in made["holds"]:
        del hold["message"]
    return {key: _without_nothing(value) for key, value in made.items()}


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item not in (None, [], {}, 0)}
    return [_without_nothing(item) for item in value] if isinstance(value, list) else value


def plans() -> Iterator[dict[str, Any]]:
    """Every case's plan, in the order of the seeds."""
    for seed in range(CASES):
        world = World(seed)
        desired = world.desired()
        yield brief(plan(desired, world.snapshot(desired), world.now).to_dict())


def line(made: dict[str, Any]) -> str:
    """One line of the record."""
    return json.dumps(made, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    RECORD.write_text("\n".join(line(made) for made in plans()) + "\n")
