"""What the documents of a fleet must satisfy together. Pure: works on parsed documents and the site index, opens nothing.

Decides over names that must exist, places that every site must have, devices that must be one, and windows in which a flash
must fit. Every check costs the number of waves or of problems, not of sites, so that a reload after one change stays cheap.
Called by `repo.load`. Source: design §3 and §4, contract "Fleet documents" and fine print 2, 8, 10, 11.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from reconciler.model.desired import FleetSpec, WaveSpec
from reconciler.model.scalars import format_duration, format_time_of_day, release_key
from reconciler.repo.check_document import too_short, window_minutes
from reconciler.repo.documents import NEEDED
from reconciler.repo.finding import Finding, Severity
from reconciler.repo.near import did_you_mean
from reconciler.repo.parse import Parsed
from reconciler.repo.reader import Where
from reconciler.repo.site_index import Shape, SiteIndex, shape_of
from reconciler.repo.zones import least_left, zone_names

Found = tuple[str, Finding]
"""A finding, and the path of the document it is in."""

_MOST_HINTS = 20
_MOST_SITES = 10


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything loaded: documents by kind and path, and the index over sites."""

    documents: Mapping[str, Mapping[str, Parsed]]
    sites: SiteIndex

    def by_name(self, kind: str) -> dict[str, Parsed]:
        """Documents of a kind by name; of two that claim one name, the first by path."""
        found: dict[str, Parsed] = {}
        for _, document in sorted(self.documents[kind].items()):
            found.setdefault(document.name, document)
        return found

    def single(self, kind: str) -> Parsed | None:
        """The one document of a kind that a fleet has once."""
        return next((document for _, document in sorted(self.documents[kind].items())), None)


def check_fleet(fleet: Fleet) -> Iterator[Found]:
    """Every finding across files, in no particular order."""
    yield from _singles(fleet)
    yield from _same_names(fleet)
    yield from _same_devices(fleet)
    yield from _apps(fleet)
    yield from _images(fleet)
    waves = fleet.single("Waves")
    if waves is not None:
        checked = list(_waves_of(waves))
        yield from _Rollout(fleet, waves, checked).findings()
    yield from _pins(fleet)
    settings = fleet.single("Fleet")
    if settings is None or settings.spec is not None:
        yield from _nights(fleet, settings.spec if settings is not None else FleetSpec())


def _singles(fleet: Fleet) -> Iterator[Found]:
    """Fleet and Waves: exactly one each."""
    for kind, path in NEEDED.items():
        documents = sorted(fleet.documents[kind])
        if not documents:
            what = "the fleet's settings" if kind == "Fleet" else "the rollout"
            message = (
                f"there is no {path}, the document of {what} (kind: {kind}); write it at the top of the fleet repo"
            )
            yield path, Finding((), message, "missing-document")
        for extra in documents[1:]:
            message = f"a second {kind} document, beside {documents[0]}; keep one"
            yield extra, Finding(("kind",), message, "second-document")


def _same_names(fleet: Fleet) -> Iterator[Found]:
    for name, paths in fleet.sites.names.several.items():
        yield from _claimed_twice("Site", name, paths)
    for kind in ("Image", "App", "Scenario"):
        claims: dict[str, list[str]] = {}
        for path, document in sorted(fleet.documents[kind].items()):
            claims.setdefault(document.name, []).append(path)
        for name, files in claims.items():
            if len(files) > 1:
                yield from _claimed_twice(kind, name, tuple(files))


def _claimed_twice(kind: str, name: str, paths: tuple[str, ...]) -> Iterator[Found]:
    for path in paths[1:]:
        message = f"{kind} {name!r} is already in {paths[0]}; give each its own name, or remove one"
        yield path, Finding(("metadata", "name"), message, "duplicate-name")


def _same_devices(fleet: Fleet) -> Iterator[Found]:
    for device, paths in fleet.sites.devices.several.items():
        for path in paths[1:]:
            spec = fleet.documents["Site"][path].spec
            number = spec.devices.index(device)
            message = f"device {device!r} is already in {paths[0]}; a device is in one site, give it its own name"
            yield path, Finding(("spec", "devices", number), message, "duplicate-device")


def _apps(fleet: Fleet) -> Iterator[Found]:
    repositories: dict[str, str] = {}
    for path, document in sorted(fleet.documents["App"].items()):
        if document.spec is None:
            continue
        other = repositories.setdefault(document.spec.repository, document.name)
        if other != document.name:
            message = (
                f"repository {document.spec.repository!r} is already that of app {other!r}: both would move the same tags; "
                "give each app its own repository"
            )
            yield path, Finding(("spec", "repository"), message, "duplicate-repository")


def _images(fleet: Fleet) -> Iterator[Found]:
    """Releases order by their numbers, so two of the same numbers have no order."""
    first: dict[tuple[int, int, int], str] = {}
    for path, document in sorted(fleet.documents["Image"].items()):
        if document.spec is None:
            continue
        other = first.setdefault(release_key(document.name), document.name)
        if other != document.name:
            message = f"release {document.name} has the numbers of {other}: neither would be the higher; renumber one"
            yield path, Finding(("metadata", "name"), message, "same-release")


def _waves_of(document: Parsed) -> Iterator[tuple[int, WaveSpec]]:
    """The waves that can be understood, with their numbers: references are checked even if another wave is broken."""
    if document.spec is not None:
        yield from enumerate(document.spec.waves)
        return
    spec = document.data.get("spec") if isinstance(document.data, dict) else None
    waves = spec.get("waves") if isinstance(spec, dict) else None
    for number, wave in enumerate(waves if isinstance(waves, list) else ()):
        try:
            yield number, WaveSpec.model_validate(wave, by_alias=True, by_name=False)
        except ValidationError:
            continue


class _Rollout:
    """Waves against sites, images and apps."""

    def __init__(self, fleet: Fleet, document: Parsed, waves: list[tuple[int, WaveSpec]]) -> None:
        self.fleet, self.document, self.waves = fleet, document, waves
        self.images, self.apps = fleet.by_name("Image"), fleet.by_name("App")
        self.hints = 0

    def findings(self) -> Iterator[Found]:
        """All of them, in the Waves document unless a site is in no wave."""
        path = self.document.path
        for number, wave in self.waves:
            where: Where = ("spec", "waves", number)
            for finding in (*self._sites(wave, where), *self._image(wave, where), *self._apps(wave, where)):
                yield path, finding
            if not wave.image and not wave.apps:
                message = f"wave {wave.name!r} asks for no release; write image, or apps"
                yield path, Finding(where, message, "no-release", "warning")
        if self.document.spec is not None:
            yield from self._membership()

    def _sites(self, wave: WaveSpec, where: Where) -> Iterator[Finding]:
        names = self.fleet.sites.names.one
        for at, site in enumerate(wave.sites or ()):
            if site not in names:
                self.hints += 1
                near = did_you_mean(site, names) if self.hints <= _MOST_HINTS else ""
                near = near or f"; add sites/{site}.yaml, or remove it"
                message = f"wave {wave.name!r} lists site {site!r}, which has no document{near}"
                yield Finding((*where, "sites", at), message, "unknown-site")
        idle = self.fleet.sites.idle
        if wave.sites and all(site in idle for site in wave.sites):
            last = wave is self.waves[-1][1]
            how = " or ".join(sorted({idle[site] for site in wave.sites}))
            message = (
                f"all sites of wave {wave.name!r} are {how}, so there is nothing to judge and its gate can never pass; "
                "list a site that takes part"
            )
            yield Finding((*where, "sites"), message, "never-passes", "warning" if last else "error", at_key=True)

    def _image(self, wave: WaveSpec, where: Where) -> Iterator[Finding]:
        if wave.image is None:
            return
        yield from release_findings(wave.image, self.images, (*where, "image"), f"wave {wave.name!r} asks for")

    def _apps(self, wave: WaveSpec, where: Where) -> Iterator[Finding]:
        for app, version in wave.apps.items():
            document = self.apps.get(app)
            here: Where = (*where, "apps", app)
            if document is None:
                near = did_you_mean(app, self.apps) or f"; add apps/{app}.yaml, or remove it"
                message = f"wave {wave.name!r} asks for app {app!r}, which has no document{near}"
                yield Finding(here, message, "unknown-app", at_key=True)
            elif document.spec is not None and version not in document.spec.releases:
                releases = document.spec.releases
                near = did_you_mean(version, releases) or f"; add it to {document.path} with its digest"
                message = f"wave {wave.name!r} asks for {app} {version}, which {document.path} does not list{near}"
                yield Finding(here, message, "unknown-release")

    def _membership(self) -> Iterator[Found]:
        """Every site has its wave, and a percentage adds someone."""
        sites = self.fleet.sites
        listed = {site for _, wave in self.waves for site in wave.sites or ()}
        total = len(sites.names.one.keys() - sites.lab)
        before: set[str] = set()
        highest: tuple[int, int] | None = None
        for number, wave in self.waves:
            before |= (set(wave.sites or ()) & sites.names.one.keys()) - sites.lab
            if wave.percent is None:
                continue
            wanted = -(-wave.percent * total // 100)
            where: Where = ("spec", "waves", number, "percent")
            if wanted < len(before):
                message = (
                    f"percent {wave.percent} of wave {wave.name!r} is {wanted} of {total} sites, and the waves up to it "
                    f"list {len(before)}: it adds nobody; raise it, or remove the wave"
                )
                yield self.document.path, Finding(where, message, "adds-nobody", "warning")
            highest = max(highest or (0, 0), (wave.percent, number))
        outside = sites.names.one.keys() - listed
        drawn = outside - sites.lab if sites.idle and highest is not None else set()
        if drawn and drawn <= sites.idle.keys():
            first = next(number for number, wave in self.waves if wave.percent is not None)
            message = (
                f"every site that wave {self.waves[first][1].name!r} can draw is suspended or pinned, so there is nothing to "
                "judge and its gate can never pass; bring a site back, or remove the wave"
            )
            yield self.document.path, Finding(("spec", "waves", first, "percent"), message, "never-passes", "warning")
        if highest is None or highest[0] < 100:
            yield from self._left_out(sorted(outside - sites.lab), highest)
        for site in sorted(outside & sites.lab)[:_MOST_SITES]:
            message = f"lab site {site!r} is in no wave, and percentages leave lab sites out; list it in a wave"
            yield sites.names.one[site], Finding(("spec", "lab"), message, "no-wave", "warning")

    def _left_out(self, outside: list[str], highest: tuple[int, int] | None) -> Iterator[Found]:
        """Sites that no list and no percentage will ever take."""
        if not outside:
            return
        if highest is not None:
            message = (
                f"percent {highest[0]} is the highest, so some of the {len(outside)} sites that are not listed are in no wave "
                "and are never updated; end with a wave of percent: 100, or list every site"
            )
            yield self.document.path, Finding(("spec", "waves", highest[1], "percent"), message, "no-wave")
        elif len(outside) > _MOST_SITES:
            message = (
                f"{len(outside)} sites are in no wave ({', '.join(outside[:3])}, …): nothing would ever update them; "
                "end with a wave of percent: 100, or list them"
            )
            yield self.document.path, Finding(("spec", "waves"), message, "no-wave", at_key=True)
        else:
            for site in outside:
                message = (
                    f"site {site!r} is in no wave, so nothing would ever update it; list it in {self.document.path}, "
                    "or end with a wave of percent: 100"
                )
                yield self.fleet.sites.names.one[site], Finding(("metadata", "name"), message, "no-wave")


def release_findings(release: str, images: Mapping[str, Parsed], where: Where, who: str) -> Iterator[Finding]:
    """A release that somebody asks for: known to git, and not withdrawn."""
    document = images.get(release)
    if document is None:
        near = did_you_mean(release, images) or f"; add images/{release}.yaml, or correct it"
        yield Finding(where, f"{who} image {release}, which has no document{near}", "unknown-release")
    elif document.spec is not None and document.spec.withdrawn is not None:
        why = " ".join(document.spec.withdrawn.split())
        message = f"{who} image {release}, which is withdrawn ({why}): nothing moves to it"
        yield Finding(where, message + "; ask for another", "withdrawn", "warning")


def _pins(fleet: Fleet) -> Iterator[Found]:
    images = fleet.by_name("Image")
    for path, release in fleet.sites.pins.items():
        for finding in release_findings(release, images, ("spec", "pin", "image"), "the pin asks for"):
            yield path, finding


def _nights(fleet: Fleet, settings: FleetSpec) -> Iterator[Found]:
    """Windows that are too short, or that a change of the clocks takes away. Judged once a zone and window, not a site."""
    bad: dict[Shape, tuple[str, str, Severity]] = {}
    for shape in fleet.sites.shapes:
        told = _night(shape, settings)
        if told is not None:
            bad[shape] = told
    if not bad:
        return
    told_fleet: set[Shape] = set()
    for path, document in sorted(fleet.documents["Site"].items()):
        if document.spec is None:
            continue
        shape = shape_of(document.spec)
        if shape not in bad:
            continue
        message, code, severity = bad[shape]
        if shape[1] is not None:
            yield path, Finding(("spec", "window"), message, code, severity, at_key=True)
        elif shape not in told_fleet:
            told_fleet.add(shape)
            yield path, Finding(("spec", "timezone"), message + " (the fleet's window)", code, severity)


def _night(shape: Shape, settings: FleetSpec) -> tuple[str, str, Severity] | None:
    zone, start, end = shape
    window = settings.window
    if start is not None and end is not None:
        window = type(window).model_construct(start=start, end=end)
        if window_minutes(window) * 60 < settings.flash_duration:
            return too_short(window, settings.flash_duration), "window-too-short", "error"
    if zone not in zone_names():
        return None
    left = least_left(zone, window.start, window.end)
    if left is None or (left[0] > 0 and left[0] * 60 >= settings.flash_duration):
        return None
    span = f"{format_time_of_day(window.start)}–{format_time_of_day(window.end)}"
    what = "does not exist" if left[0] <= 0 else f"is only {format_duration(left[0] * 60)} long, too short for a flash,"
    message = (
        f"the window {span} {what} in {zone} in the night of a clock change (as on {left[1]}): that night is skipped; "
        "move the window if it matters"
    )
    return message, "lost-night", "warning"
