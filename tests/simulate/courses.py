"""Small fleets and what happens to them, for runs that an oracle watches: each course is over in a fraction of a second.

A *play* is a course and what is done to the world that no fault of `simulate.faults` is: a slot that gets ill and well again, a
depot that gives other bytes, an attacker on the line. `random_play` draws one of every kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from reconciler.simulate.course import Course, Merge
from reconciler.simulate.faults import Faults
from reconciler.simulate.run import Simulation

AT = datetime(2026, 3, 10, 12, tzinfo=UTC)
SOON = AT + timedelta(minutes=7)
LOWEST, LOW, OLD, NEW, NEXT = "v1.3.0", "v1.4.0", "v1.4.1", "v1.4.2", "v1.4.3"
APP, APP_OLD, APP_NEW = "video-ingest", "1.0.0", "1.1.0"
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe")
Document = dict[str, Any]
Prepare = Callable[[Simulation], None]


def nothing(_simulation: Simulation) -> None:
    """The world is as the course says."""


@dataclass(frozen=True)
class Play:
    """A course, and what else is done before it runs."""

    course: Course
    prepare: Prepare = nothing


@dataclass
class SmallFleet:
    """A fleet of a few sites as documents. `waves` say what all of them ask for unless they say it themselves."""

    sites: int = 8
    two: Sequence[int] = ()
    """Numbers of the sites that have two devices."""
    zones: Sequence[str] = ("UTC",)
    spec: Document = field(default_factory=dict)
    """Of the Fleet document, over the defaults here."""
    waves: Sequence[Document] = (
        {"name": "canary", "sites": ["SITE-01"], "soak": "2h"},
        {"name": "half", "percent": 50, "soak": "1h"},
        {"name": "all", "percent": 100, "soak": "1h"},
    )
    site: Mapping[int, Document] = field(default_factory=dict)
    """Number of a site → what its document says beside."""
    image: Mapping[str, Document] = field(default_factory=dict)
    """Release → what its document says."""
    app_window: str = "any"
    order: str = "heron"

    def files(self) -> dict[str, bytes]:
        """Path → document: everybody runs the old releases."""
        fleet = {
            "images": "s3://edge-images/", "registry": "registry.invalid", "releaseKeys": ["0123456789" * 4],
            "window": {"start": "02:00", "end": "04:00"}, "staleAfter": "15m", "criticalFor": "10m",
        } | self.spec  # fmt: skip
        out = {"fleet.yaml": document("Fleet", "small", fleet), "waves.yaml": self.asking()}
        for release in (LOWEST, LOW, OLD, NEW, NEXT):
            spec = dict(self.image.get(release, {}))
            out[f"images/{release}.yaml"] = document("Image", release, spec)
        releases = {APP_OLD: digest(APP_OLD), APP_NEW: digest(APP_NEW)}
        app = {"repository": APP, "window": self.app_window, "releases": releases}
        out[f"apps/{APP}.yaml"] = document("App", APP, app)
        for number in range(1, self.sites + 1):
            name = f"SITE-{number:02d}"
            out[f"sites/{name}.yaml"] = self.site_document(name, number)
        return out

    def site_document(self, name: str, number: int, **more: Any) -> bytes:
        """One site's document."""
        devices = [f"{name}-{n}" for n in (1, 2)[: 2 if number in self.two else 1]]
        spec = {"timezone": self.zones[number % len(self.zones)], "devices": devices}
        return document("Site", name, spec | dict(self.site.get(number, {})) | more)

    def asking(self, image: str | Sequence[str] = OLD, app: str | Sequence[str] = APP_OLD, **more: Any) -> bytes:
        """waves.yaml that asks all waves, or each, for these releases; `more` is said of every wave."""
        count = len(self.waves)
        images = [image] * count if isinstance(image, str) else list(image)
        apps = [app] * count if isinstance(app, str) else list(app)
        waves = [{"image": images[n], "apps": {APP: apps[n]}} | dict(wave) | more for n, wave in enumerate(self.waves)]
        return document("Waves", "waves", {"order": self.order, "waves": waves})

    def play(
        self,
        *merges: Merge,
        prepare: Prepare = nothing,
        faults: Faults | None = None,
        days: float = 12,
        **more: Any,
    ) -> Play:
        """A course from this fleet. Without merges all waves are asked for the new image."""
        merges = merges or (Merge(SOON, {"waves.yaml": self.asking(NEW)}),)
        course = Course(self.files(), AT, merges, faults=faults or Faults(), limit=timedelta(days=days), **more)
        return Play(course, prepare)


def document(kind: str, name: str, spec: Mapping[str, Any]) -> bytes:
    """One document of a fleet repo: JSON, which is YAML."""
    return json.dumps({"apiVersion": "fleet/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}).encode()


def digest(word: str) -> str:
    """The digest of an app's release."""
    return "sha256:" + (word.replace(".", "") * 64)[:64]


def later(hours: float) -> datetime:
    """So long after the beginning."""
    return AT + timedelta(hours=hours)
