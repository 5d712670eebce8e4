"""What a document must satisfy beyond its schema, by itself: checks that need no other file.

Decides over one valid spec at a time; `repo.check` holds what needs the whole fleet. Each check says what is wrong, why it
matters and what to write. Called by `repo.parse`. Source: design §3, contract "Fleet documents" and fine print 1, 10, 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reconciler.model.desired import AppSpec, FleetSpec, ImageSpec, SiteSpec, WavesSpec, Window
from reconciler.model.scalars import format_duration
from reconciler.repo.check_waves import check_waves
from reconciler.repo.finding import Finding, Severity
from reconciler.repo.near import did_you_mean
from reconciler.repo.reader import Where, clip
from reconciler.repo.zones import zone_names

_YEAR_S = 366 * 86400


def check_document(spec: Any) -> Iterator[Finding]:
    """Findings over one spec of any kind; none for kinds that have no checks of their own."""
    check = _CHECKS.get(type(spec))
    return check(spec) if check is not None else iter(())


def _repeated(where: Where, names: Sequence[str], what: str, severity: Severity) -> Iterator[Finding]:
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            yield Finding((*where, number), f"{what} {clip(name)} is listed twice; keep one", "listed-twice", severity)
        seen.add(name)


def _site(spec: SiteSpec) -> Iterator[Finding]:
    if spec.timezone not in zone_names():
        near = did_you_mean(spec.timezone, zone_names()) or "; write one as Europe/Berlin"
        yield Finding(
            ("spec", "timezone"), f"spec.timezone: {clip(spec.timezone)} is no IANA time zone{near}", "unknown-timezone"
        )
    if len(set(spec.devices)) != len(spec.devices):
        yield from _repeated(("spec", "devices"), spec.devices, "device", "error")
    if len(set(spec.ntp)) != len(spec.ntp):
        yield from _repeated(("spec", "ntp"), spec.ntp, "time server", "warning")
    if len(set(spec.cameras)) != len(spec.cameras):
        yield from _repeated(("spec", "cameras"), spec.cameras, "camera", "warning")
    if spec.pin is not None and spec.pin.devices is not None:
        where: Where = ("spec", "pin", "devices")
        if not spec.pin.devices:
            message = "spec.pin.devices: an empty list pins nothing; name devices, leave the key out for all, or remove the pin"
            yield Finding(where, message, "empty-pin")
        for number, device in enumerate(spec.pin.devices):
            if device not in spec.devices:
                near = did_you_mean(device, spec.devices) or f"; the site has {', '.join(spec.devices[:5])}"
                yield Finding(
                    (*where, number), f"pinned device {clip(device)} is none of this site{near}", "unknown-device"
                )
        yield from _repeated(where, spec.pin.devices, "pinned device", "warning")


def window_minutes(window: Window) -> int:
    """Length of a daily window; `end` before `start` crosses midnight."""
    return (window.end - window.start) % 1440 or 1440


def _fleet(spec: FleetSpec) -> Iterator[Finding]:
    for key, value in (
        ("reportEvery", spec.report_every),
        ("updateTimeout", spec.update_timeout),
        ("bootTimeout", spec.boot_timeout),
    ):
        if value == 0:
            yield Finding(("spec", key), f"spec.{key}: 0s is no time at all; write a length, as 15m", "zero-duration")
    if spec.report_every >= spec.stale_after:
        message = (
            f"reportEvery ({format_duration(spec.report_every)}) is not shorter than staleAfter "
            f"({format_duration(spec.stale_after)}): every device would be stale between two reports, and no gate could "
            "pass; raise staleAfter to several times reportEvery"
        )
        where = "reportEvery" if "report_every" in spec.model_fields_set else "staleAfter"
        yield Finding(("spec", where), message, "never-fresh")
    if spec.update_timeout and spec.update_timeout <= spec.flash_duration:
        message = (
            f"updateTimeout ({format_duration(spec.update_timeout)}) is not longer than flashDuration "
            f"({format_duration(spec.flash_duration)}): every update would time out; raise updateTimeout"
        )
        where = "updateTimeout" if "update_timeout" in spec.model_fields_set else "flashDuration"
        yield Finding(("spec", where), message, "never-in-time")
    if window_minutes(spec.window) * 60 < spec.flash_duration:
        where = "window" if "window" in spec.model_fields_set else "flashDuration"
        yield Finding(("spec", where), too_short(spec.window, spec.flash_duration), "window-too-short")
    yield from _repeated(("spec", "releaseKeys"), [key.upper() for key in spec.release_keys], "key", "warning")
    for number, freeze in enumerate(spec.freezes):
        if (freeze.to - freeze.from_).total_seconds() > _YEAR_S:
            message = "the freeze is longer than a year: nothing moves forward in all that time; check the years"
            yield Finding(("spec", "freezes", number), message, "long-freeze", "warning")


def too_short(window: Window, flash_duration_s: int) -> str:
    """The message for a window in which no flash can end."""
    return (
        f"the window is {format_duration(window_minutes(window) * 60)} long, shorter than flashDuration "
        f"({format_duration(flash_duration_s)}): no flash could ever start; widen it, or lower flashDuration"
    )


def _image(spec: ImageSpec) -> Iterator[Finding]:
    if spec.recipe is not None and ".." in spec.recipe.split("/"):
        message = f"spec.recipe: {clip(spec.recipe)} leads out of its folder; name a folder beside this file"
        yield Finding(("spec", "recipe"), message, "out-of-tree")
    for package, version in spec.packages.items():
        if not version.strip():
            message = f"package {clip(package)} is pinned to nothing; write its version"
            yield Finding(("spec", "packages", package), message, "empty-pin")


def _app(spec: AppSpec) -> Iterator[Finding]:
    if not spec.releases:
        yield Finding(
            ("spec", "releases"),
            "spec.releases: the app has no release; add one, version: digest",
            "no-release",
            "warning",
        )
    first: dict[str, str] = {}
    for version, digest in spec.releases.items():
        if digest in first:
            message = f"release {version} has the digest of {first[digest]}: moving between them does nothing; check the digest"
            yield Finding(("spec", "releases", version), message, "same-digest", "warning")
        first.setdefault(digest, version)


def _waves(spec: WavesSpec) -> Iterator[Finding]:
    return check_waves(spec)


_CHECKS: Mapping[type, Callable[[Any], Iterator[Finding]]] = {
    SiteSpec: _site,
    FleetSpec: _fleet,
    ImageSpec: _image,
    AppSpec: _app,
    WavesSpec: _waves,
}
