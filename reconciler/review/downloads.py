"""What the devices of a merge download: bytes a site and in all, and how long a site's line takes for them. Pure.

A device whose inactive slot holds the release already downloads nothing. Devices prefetch around the clock, so a site is ready
for its window in the night of the number given: 1 where less than a day is needed. Called by `review.make`. Source: design
§4.5; `simulate.timings` for what is assumed, which the forecast goes by too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.model.desired import Desired
from reconciler.model.observed import Artifact
from reconciler.review.moves import IMAGE, Move, Standing
from reconciler.simulate.timings import IMAGE_BYTES, UPLINK_BPS

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class SiteDownload:
    """One site: devices that download, bytes over its line, seconds they take, nights until the last is ready."""

    site: str
    devices: int
    bytes: int
    seconds: int
    uplink_bps: int

    @property
    def nights(self) -> int:
        """1: ready for the first window that comes a day or less after the download began."""
        return max(1, -(-self.seconds // DAY_S))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "site": self.site,
            "devices": self.devices,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "nights": self.nights,
            "uplinkBitsPerSecond": self.uplink_bps,
        }


@dataclass(frozen=True, slots=True)
class Downloads:
    """All of them. `assumed_sizes` are releases whose size no store has said; `assumed_uplinks` counts sites whose line git does
    not name."""

    sites: tuple[SiteDownload, ...]
    switching: int
    """Devices that need no download: the release is in their inactive slot."""
    assumed_sizes: tuple[str, ...]
    assumed_uplinks: int

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(site.bytes for site in self.sites)

    @property
    def devices(self) -> int:
        """How many devices download."""
        return sum(site.devices for site in self.sites)

    @property
    def slowest(self) -> SiteDownload | None:
        """The site whose line takes longest."""
        return max(self.sites, key=lambda site: (site.seconds, site.site), default=None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "devices": self.devices,
            "bytes": self.bytes,
            "switching": self.switching,
            "assumed": {
                "sizes": dict.fromkeys(self.assumed_sizes, IMAGE_BYTES),
                "uplinks": {"sites": self.assumed_uplinks, "bitsPerSecond": UPLINK_BPS},
            },
            "sites": [site.to_dict() for site in self.sites],
        }


def downloads(moves: Sequence[Move], after: Standing, desired: Desired, artifacts: Mapping[str, Artifact]) -> Downloads:
    """The image downloads of what moves. Apps are layers of a registry, whose sizes nobody here knows."""
    row_of = after.roster.row_of
    site_of = after.roster.site_of.tolist()
    inactive = after.other_slot()
    counts: dict[str, dict[str, int]] = {}
    switching = 0
    for move in moves:
        if move.of != IMAGE:
            continue
        code = after.roster.release_code[move.after]
        for device in move.goes:
            row = row_of[device]
            if inactive[row] == code:
                switching += 1
                continue
            of_site = counts.setdefault(after.roster.site_names[site_of[row]], {})
            of_site[move.after] = of_site.get(move.after, 0) + 1
    sizes = {move.after: _size(artifacts, move.after) for move in moves if move.of == IMAGE}
    needed = {release for of_site in counts.values() for release in of_site}
    fleet = desired.fleet.uplink
    return Downloads(
        tuple(_site(desired, name, counts[name], sizes) for name in sorted(counts)),
        switching,
        tuple(sorted(release for release in needed if sizes[release] is None)),
        0 if fleet is not None else sum(desired.sites[name].uplink is None for name in counts),
    )


def _size(artifacts: Mapping[str, Artifact], release: str) -> int | None:
    artifact = artifacts.get(release)
    return artifact.size if artifact is not None else None


def _site(desired: Desired, name: str, devices: Mapping[str, int], sizes: Mapping[str, int | None]) -> SiteDownload:
    spec = desired.sites[name]
    total = sum((sizes[release] or IMAGE_BYTES) * count for release, count in devices.items())
    rate = spec.uplink or desired.fleet.uplink or UPLINK_BPS
    return SiteDownload(
        name,
        sum(devices.values()),
        total,
        -(-total * 8 // rate),
        rate,
    )
