"""The details of a review as tables, notes and diffs, without markup: what `text` and `markdown` both lay out. Pure.

Cells and notes may hold text that a stranger wrote (branch names, reasons, keys' names); nothing is escaped here, that is the
renderer's. Lists of names are cut here, rows by the renderer. Source: `review.make`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from reconciler.model.scalars import format_bandwidth, format_instant
from reconciler.planner.windows import zone
from reconciler.review.calendar import ClockChange, Local, Place, Run
from reconciler.review.make import Review
from reconciler.review.moves import IMAGE
from reconciler.review.summary import count, minute, names, size, span
from reconciler.simulate.trace import Entry

MOST_ZONES = 3
NONE = "–"


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the details. `total` is how many rows there are in all; `diffs` are (title, unified diff)."""

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    diffs: Sequence[tuple[str, str]] = ()


def sections(review: Review) -> list[Section]:
    """What there is to tell, in the order in which a reviewer asks."""
    parts = (_changes, _moves, _calendar, _never, _downloads, _returns, _keys, _overlaps, _configurations, _warnings)
    return [section for part in parts for section in part(review)]


def _changes(review: Review) -> Iterator[Section]:
    if not review.changes:
        return
    rows = [
        (
            f"{change.path}:{change.line}" if change.line else change.path,
            change.subject_field,
            change.before or NONE,
            change.after or NONE,
        )
        for change in review.changes
    ]
    notes = [
        f"{move.site} moves from wave {move.before or 'none'} to {move.after or 'none'}"
        for move in review.moves.sites[:10]
    ]
    if len(review.moves.sites) > 10:
        notes.append(f"and {len(review.moves.sites) - 10:,} more sites change their wave")
    if review.moves.removed:
        notes.append(
            f"git names {count(len(review.moves.removed), 'device')} no more ({names(review.moves.removed)}): held, never wiped"
        )
    yield Section("Desired state", ("where", "what", "from", "to"), rows, notes)


def _moves(review: Review) -> Iterator[Section]:
    moves = review.moves
    if not moves.moves:
        return
    rows = []
    for move in moves.moves:
        held = ", ".join(f"{number} {reason}" for reason, number in move.held.items()) or NONE
        rows.append(
            (
                move.wave or "no wave",
                "image" if move.of == IMAGE else move.of,
                move.before or "nothing",
                move.after,
                move.why,
                f"{len(move.devices):,}",
                f"{len(move.sites):,}",
                held,
                names(move.devices),
            )
        )
    notes = [
        f"{count(number, 'device')} {'runs' if number == 1 else 'run'} it already ({of})"
        for of, number in moves.there.items()
        if number
    ]
    notes += [
        f"{count(number, 'device')} on the way before, and still ({of})"
        for of, number in moves.pending.items()
        if number
    ]
    header = ("wave", "of", "from", "to", "why", "devices", "sites", "held now", "names")
    yield Section("Devices", header, rows, notes)


def _calendar(review: Review) -> Iterator[Section]:
    earliest, likely = review.earliest, review.likely
    if earliest is None or likely is None:
        return
    rows = []
    for place in review.places:
        wave, key = place
        entry, late = earliest.entries.get(place), likely.entries.get(place)
        if entry is None or late is None:
            continue
        shown = "" if place in review.by_merge else " (under way)"
        proven = _gate(review, place) or _ends(entry, late)
        rows.append(
            (
                f"{wave}{shown}",
                key,
                f"{entry.devices:,}",
                _both(entry, late, "first_told_at"),
                _both(entry, late, "last_arrived_at"),
                proven,
                _nights(likely if likely.local.get(place) else earliest, place),
            )
        )
    notes = _clocks(review)
    if review.silent:
        notes.append(
            "where two instants are given: the earliest, if silent devices answered at once; and if they stay silent"
        )
    header = ("wave", "release", "devices", "starts", "last arrives", "proven", "local nights")
    yield Section("Calendar", header, rows, notes)


def _clocks(review: Review) -> list[str]:
    """One line a zone and night of a clock change: which windows are longer or shorter for it."""
    nights: dict[tuple[str, str], list[ClockChange]] = {}
    for change in review.clock_changes:
        nights.setdefault((change.zone, change.night.isoformat()), []).append(change)
    notes = []
    for (name, night), several in nights.items():
        other = [
            f"{one.window} has {one.minutes} min instead of {one.usual}" for one in several if one.minutes != one.usual
        ]
        windows = f"the window {', '.join(other)}" if other else "no window is longer or shorter for it"
        notes.append(f"{name}: clocks change on {night} ({several[0].before} to {several[0].after}); {windows}")
    return notes


def _both(entry: Entry, late: Entry, field: str) -> str:
    one, other = getattr(entry, field), getattr(late, field)
    first = minute(one) if one is not None else NONE
    second = minute(other) if other is not None else NONE
    return first if first == second else f"{first} / {second}"


def _gate(review: Review, place: Place) -> str:
    """What there is to say of a gate that does not have to pass any more, or that there is none."""
    if place in review.known.apart:
        return "no gate: apart from the wave"
    at = review.known.proven.get(place)
    assert review.likely is not None
    return f"before, {minute(at)}" if at is not None and review.likely.entries[place].proven_at == at else ""


def _ends(entry: Entry, late: Entry) -> str:
    """When it is proven; why not, where it is not."""
    if not entry.devices:
        return "no device"
    told = [
        minute(one.proven_at)
        if one.proven_at
        else f"never ({one.held[0].reason if one.held else 'stopped' if one.stopped_at else 'not in time'})"
        for one in (entry, late)
    ]
    return told[0] if told[0] == told[1] else " / ".join(told)


def _nights(run: Run, place: Place) -> str:
    several = run.local.get(place, ())
    text = "; ".join(_night(local) for local in several[:MOST_ZONES])
    more = f"; and {len(several) - MOST_ZONES} more zones" if len(several) > MOST_ZONES else ""
    return (text + more) or NONE


def _night(local: Local) -> str:
    tz = zone(local.zone)
    first, last = (at.astimezone(tz).strftime("%m-%d %H:%M") for at in (local.first_at, local.last_at))
    end = "" if first == last else f"–{last[6:] if first[:5] == last[:5] else last}"
    return f"{first}{end} {local.zone} ({count(local.devices, 'device')})"


def _never(review: Review) -> Iterator[Section]:
    if review.never:
        rows = [
            (wave, key, held.reason, minute(held.until) if held.until else NONE, held.message)
            for (wave, key), several in review.never
            for held in several
        ]
        rows += [
            (wave, key, NONE, NONE, "the forecast ended before it")
            for (wave, key), several in review.never
            if not several
        ]
        heard = [wave for (wave, key), _ in review.never if not review.fails_either_way((wave, key))]
        notes = [f"would pass if the silent devices answered: {', '.join(heard)}"] if heard else []
        yield Section("Gates that never pass", ("wave", "release", "reason", "until", "why"), rows, notes)


def _downloads(review: Review) -> Iterator[Section]:
    found = review.downloads
    if not found.sites:
        return
    alike: dict[tuple[int, int, int, int, int], list[str]] = {}
    for site in sorted(found.sites, key=lambda site: (-site.seconds, site.site)):
        figures = (site.devices, site.bytes, site.uplink_bps, site.seconds, site.nights)
        alike.setdefault(figures, []).append(site.site)
    rows = [
        (
            f"{len(sites):,}",
            f"{devices}",
            size(number),
            format_bandwidth(line),
            span(timedelta(seconds=seconds)),
            f"{nights}",
            names(sites),
        )
        for (devices, number, line, seconds, nights), sites in alike.items()
    ]
    notes = [f"{size(found.bytes)} in all, for {count(found.devices, 'device')} at {count(len(found.sites), 'site')}"]
    if found.switching:
        notes.append(f"no download for {count(found.switching, 'device')}: the release is in the inactive slot")
    if found.assumed_sizes:
        notes.append(f"the store does not say how large {names(found.assumed_sizes)} is: 1.8 GB is assumed")
    if found.assumed_uplinks:
        notes.append(
            f"git names no line for {count(found.assumed_uplinks, 'site')} (Site or Fleet `uplink`): 50Mbit is assumed"
        )
    yield Section("Downloads", ("sites", "devices each", "bytes", "line", "takes", "nights", "names"), rows, notes)


def _returns(review: Review) -> Iterator[Section]:
    if review.returns:
        rows = [
            (
                found.release,
                "this merge" if found.by_merge else "a revert of it",
                f"{len(found.switch):,}",
                f"{len(found.download):,}",
                f"{len(found.stuck):,}",
                found.why_not or names(found.download) or NONE,
            )
            for found in review.returns
        ]
        notes = [
            f"could not go back to {found.release}: {names(found.stuck, 20)}" for found in review.returns if found.stuck
        ]
        header = ("back to", "by", "slot switch", "download", "cannot", "who, or why not")
        yield Section("Rollback", header, rows, notes)


def _keys(review: Review) -> Iterator[Section]:
    keys = review.keys
    if not keys.notes:
        return
    rows = [
        (
            note.fingerprint,
            note.user,
            note.place,
            format_instant(note.expires_at) if note.expires_at else "never",
            note.state,
        )
        for note in keys.notes
    ]
    notes = [f"Fleet.releaseKeys names {key}, which is in no keyring that was read" for key in keys.missing]
    yield Section("Signing keys", ("fingerprint", "user", "keyring", "expires", "state"), rows, notes)


def _overlaps(review: Review) -> Iterator[Section]:
    found = review.overlaps
    notes = [f"{found.left_out} older branches were not looked at"] if found.left_out else []
    if found.found:
        rows = [
            (
                overlap.branch,
                overlap.author,
                names(sorted(overlap.touched.waves)) or NONE,
                names(sorted(overlap.touched.releases)) or NONE,
                names(sorted(overlap.touched.sites)) or NONE,
            )
            for overlap in found.found
        ]
        yield Section("Other open branches", ("branch", "author of its tip", "waves", "releases", "sites"), rows, notes)


def _configurations(review: Review) -> Iterator[Section]:
    groups = review.configurations.groups
    if groups:
        diffs = [
            (f"{count(len(group.sites), 'site')}, {count(group.devices, 'device')}: {names(group.sites)}", group.diff)
            for group in groups
        ]
        notes = ["secrets are shown by reference; a review never reads one"]
        yield Section("Configuration (cloud-init)", notes=notes, diffs=diffs)


def _warnings(review: Review) -> Iterator[Section]:
    if review.warnings:
        yield Section("New warnings", notes=[str(problem) for problem in review.warnings])
