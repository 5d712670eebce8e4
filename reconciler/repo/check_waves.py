"""What the rollout must satisfy by itself: order, lists, percentages, gates, tags. Needs no other file.

Called by `repo.check_document` for a valid Waves document. Whether the names in it exist is `repo.check`'s to say. Source:
design §3 and §4, contract fine print 2, 8, 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reconciler.model.desired import WaveSpec, WavesSpec
from reconciler.model.scalars import release_key, version_key
from reconciler.repo.finding import Finding
from reconciler.repo.reader import Where


def check_waves(spec: WavesSpec) -> Iterator[Finding]:
    """All findings over the waves, in their order."""
    yield from _names_and_tags(spec)
    yield from _lists(spec.waves)
    yield from _percentages(spec.waves)
    for number, wave in enumerate(spec.waves):
        yield from _gate(wave, ("spec", "waves", number), last=number == len(spec.waves) - 1)
    yield from _order("image", [wave.image for wave in spec.waves], ("image",), spec.waves, release_key)
    for app in sorted({app for wave in spec.waves for app in wave.apps}):
        asked = [wave.apps.get(app) for wave in spec.waves]
        yield from _order(app, asked, ("apps", app), spec.waves, version_key)


def tag_of(spec: WavesSpec, number: int) -> str:
    """The tag of a wave: its own word, its name, or `stable` for the last."""
    wave = spec.waves[number]
    return wave.tag or ("stable" if number == len(spec.waves) - 1 else wave.name)


def _names_and_tags(spec: WavesSpec) -> Iterator[Finding]:
    names: dict[str, int] = {}
    tags: dict[str, int] = {}
    for number, wave in enumerate(spec.waves):
        where: Where = ("spec", "waves", number)
        if wave.name in names:
            message = f"wave {wave.name!r} is there twice (spec.waves[{names[wave.name]}]); give each its own name"
            yield Finding((*where, "name"), message, "duplicate-wave")
            continue
        names[wave.name] = number
        tag = tag_of(spec, number)
        if tag in tags:
            other = spec.waves[tags[tag]].name
            message = (
                f"waves {other!r} and {wave.name!r} both have the tag {tag!r}: one would pull the other's release; "
                "set `tag` of one of them"
            )
            yield Finding((*where, "tag" if wave.tag else "name"), message, "duplicate-tag")
        tags.setdefault(tag, number)


def _lists(waves: Sequence[WaveSpec]) -> Iterator[Finding]:
    listed: dict[str, str] = {}
    for number, wave in enumerate(waves):
        where: Where = ("spec", "waves", number, "sites")
        if wave.sites is not None and not wave.sites:
            message = f"wave {wave.name!r} lists no site, so it lets every release pass; list one, or remove the wave"
            yield Finding(where, message, "empty-wave")
        for at, site in enumerate(wave.sites or ()):
            if site in listed:
                other = "the same wave" if listed[site] == wave.name else f"wave {listed[site]!r}"
                message = f"site {site!r} is listed in wave {wave.name!r} and already in {other}; a site is in one wave, keep one"
                yield Finding((*where, at), message, "listed-twice")
            listed.setdefault(site, wave.name)


def _percentages(waves: Sequence[WaveSpec]) -> Iterator[Finding]:
    reached = 0
    for number, wave in enumerate(waves):
        if wave.percent is None:
            continue
        where: Where = ("spec", "waves", number, "percent")
        if wave.percent <= reached:
            message = (
                f"percent {wave.percent} of wave {wave.name!r} does not rise above the {reached} of an earlier wave; "
                "percentages are cumulative, write a higher one"
            )
            yield Finding(where, message, "percent-order")
        reached = max(reached, wave.percent)


def _gate(wave: WaveSpec, where: Where, *, last: bool) -> Iterator[Finding]:
    """Budgets and soaks with which the gate cannot do its work."""
    if wave.max_in_flight.count == 0:
        message = f"maxInFlight 0 of wave {wave.name!r}: no device could ever start, and its gate never pass; allow at least 1"
        yield Finding((*where, "maxInFlight"), message, "never-passes")
    if wave.max_failed.percent == 100:
        message = f"maxFailed 100% of wave {wave.name!r}: however many devices fail, its gate stays open; lower it"
        yield Finding((*where, "maxFailed"), message, "never-fails", "warning")
    if wave.percent is not None and (wave.max_offline.count == 0 or wave.max_offline.percent == 0):
        message = (
            f"maxOffline 0 in the percentage wave {wave.name!r}: a single silent device leaves its gate unresolved; "
            'allow some, as maxOffline: "10%"'
        )
        at_wave = "max_offline" not in wave.model_fields_set
        yield Finding((*where, "percent" if at_wave else "maxOffline"), message, "no-offline", "warning", at_wave)
    if last:
        return
    if wave.soak == 0:
        message = (
            f"soak 0s of wave {wave.name!r}: the next wave follows at once, nothing is watched; write a length, as 24h"
        )
        yield Finding((*where, "soak"), message, "no-soak", "warning")
    if wave.app_soak == 0:
        message = f"appSoak 0s of wave {wave.name!r}: the next wave follows at once, nothing is watched; write a length, as 1h"
        yield Finding((*where, "appSoak"), message, "no-soak", "warning")


def _order(
    what: str, asked: Sequence[str | None], key: Where, waves: Sequence[WaveSpec], order: Callable[[str], Any]
) -> Iterator[Finding]:
    """A later wave that asks for more than an earlier one is held until the earlier one has run it."""
    lowest: tuple[str, str] | None = None
    for number, release in enumerate(asked):
        if release is None:
            continue
        if lowest is not None and order(release) > order(lowest[0]):
            message = (
                f"wave {waves[number].name!r} asks for {what} {release}, which the earlier wave {lowest[1]!r} does not "
                f"({lowest[0]}): it is held unless that wave has passed {release} before; raise the earlier wave first"
            )
            yield Finding(("spec", "waves", number, *key), message, "release-order", "warning")
        if lowest is None or order(release) < order(lowest[0]):
            lowest = (release, waves[number].name)
