"""A small fleet repo in a real git repository: a lab, a canary, and a wave of the rest; five sites in four zones."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from reconciler.adapters.git_trees import GitTrees
from reconciler.model.observed import Snapshot
from reconciler.review.make import Outside, Review, make, observed_of
from reconciler.review.sides import Sides, from_revisions
from tests.support.gitrepo import Repo

AT = datetime(2026, 1, 15, 9, 0, tzinfo=UTC)
DIGESTS = {version: "sha256:" + number * 64 for version, number in (("2.7.0", "1"), ("2.8.0", "2"))}


def document(kind: str, name: str, spec: str) -> str:
    """A fleet document."""
    body = "".join(f"  {line}\n" for line in spec.splitlines())
    return f"apiVersion: fleet/v1\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n{body}"


def waves(*images: str, app: str = "2.7.0", more: str = "") -> str:
    """The rollout, with the release that each of its three waves asks for."""
    lab, canary, rest = images if len(images) == 3 else images * 3
    lines = ["order: x", "waves:"]
    for name, members, image, soak in (
        ("lab", "sites: [LAB-1]", lab, "1h"),
        ("canary", "sites: [SITE-1]", canary, "24h"),
        ("all", 'percent: 100\n    maxOffline: "50%"', rest, "1h"),
    ):
        lines += [
            f"  - name: {name}",
            f"    {members}",
            f"    image: {image}",
            f"    apps: {{video: {app}}}",
            f"    soak: {soak}",
        ]
    return document("Waves", "waves", "\n".join(lines) + more)


def site(name: str, zone: str, devices: int = 1, more: str = "") -> str:
    """A site."""
    names = ", ".join(f"{name}-{number + 1}" for number in range(devices))
    spec = f"timezone: {zone}\ndevices: [{names}]\nntp: [ntp.example]\ncameras: [192.0.2.1]\n{more}"
    return document("Site", name, spec)


def fleet_files() -> dict[str, str | bytes | None]:
    """The fleet, everybody on v1.4.1; v1.4.2 is known."""
    releases = "".join(f"\n  {version}: {digest}" for version, digest in DIGESTS.items())
    return {
        "fleet/fleet.yaml": document("Fleet", "f", "registry: registry.example\nimages: s3://edge/"),
        "fleet/waves.yaml": waves("v1.4.1"),
        "fleet/images/v1.4.1.yaml": document("Image", "v1.4.1", "family: edge\nrecipe: golden/"),
        "fleet/images/v1.4.2.yaml": document("Image", "v1.4.2", "family: edge\nrecipe: golden/"),
        "fleet/images/golden/setup.sh": "#!/bin/sh\n",
        "fleet/apps/video.yaml": document("App", "video", f"repository: video\nreleases:{releases}"),
        "fleet/sites/LAB-1.yaml": site(
            "LAB-1", "Europe/Berlin", more='lab: true\nwindow: {start: "00:00", end: "24:00"}'
        ),
        "fleet/sites/SITE-1.yaml": site("SITE-1", "Europe/Berlin", 2),
        "fleet/sites/SITE-2.yaml": site("SITE-2", "America/New_York"),
        "fleet/sites/SITE-3.yaml": site("SITE-3", "Asia/Kathmandu", 3),
        "fleet/sites/SITE-4.yaml": site("SITE-4", "Europe/Berlin"),
    }


_made: list[Path] = []


def repo(tmp: Path) -> Repo:
    """A repository whose first commit is the fleet: a copy of the first that was made, which is cheaper than git."""
    if not _made:
        pattern = Path(tempfile.mkdtemp(prefix="fleet-"))
        atexit.register(shutil.rmtree, pattern, ignore_errors=True)
        Repo(pattern / "r").commit("The fleet", fleet_files())
        _made.append(pattern / "r")
    return Copy(tmp / "r", _made[0])


class Copy(Repo):
    """A copy of a repository, whose commits go on from it."""

    def __init__(self, path: Path, of: Path) -> None:
        shutil.copytree(of, path)
        self.path = path
        self._minute = 10


def sides(of: Repo, base: str = "HEAD", head: str | None = None) -> Sides:
    """Both sides as the command loads them."""
    folder = of.path / "fleet"
    return from_revisions(GitTrees(folder), base, head, folder)


def review(
    of: Repo,
    base: str = "HEAD",
    head: str | None = None,
    *,
    files: Mapping[str, str | bytes | None] | None = None,
    observed: Snapshot | None = None,
    at: datetime = AT,
    outside: Outside | None = None,
) -> Review:
    """The review of what a work tree (with `files` written first), or a commit, changes."""
    of.write(files or {})
    known = observed_of(observed, "observed.json") if observed is not None else None
    return make(sides(of, base, head), known, at, outside or Outside())
