"""The summary of a review in at most a dozen lines: what matters to whoever approves it. Pure; plain text without markup.

Called by `text`, `markdown` and the JSON. Every sentence here is of a figure in the review; nothing is decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from reconciler.model.plan import Why
from reconciler.model.scalars import format_instant
from reconciler.repo.accept import CONFIRM_KEY
from reconciler.review.calendar import Run
from reconciler.review.make import Review
from reconciler.review.moves import IMAGE, Move, total

MOST_NAMES = 4
MOST_LINES = 12


def summary(review: Review) -> list[str]:
    """Twelve lines at most; what does not apply has none, what is missing is said."""
    if review.kind == "nothing":
        return [headline(review)]
    lines = [headline(review), *_removed(review), *_moved(review), observed_line(review)]
    if review.likely is not None:
        lines += [_calendar(review), _exposure(review)]
    lines += _other(review)
    lines += _never(review)
    lines += _download(review)
    lines += _back(review)
    lines += _configuration(review)
    lines += _keys(review)
    lines += _overlaps(review)
    lines += _warnings(review)
    # Rarely does so much apply; then the last line holds the rest, and nothing is lost.
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "; ".join(lines[MOST_LINES - 1 :])]


def names(items: Sequence[str], most: int = MOST_NAMES) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def count(number: int, what: str) -> str:
    """`1 device`, `1,204 devices`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def minute(at: datetime) -> str:
    """An instant to the minute, UTC, with its day of the week: people plan nights by it."""
    return at.strftime("%a %Y-%m-%d %H:%M") + "Z"


def span(length: timedelta) -> str:
    """A length of time in its two largest units."""
    seconds = int(length.total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            smaller = {"d": (3_600, "h"), "h": (60, "min"), "min": (1, "s")}[unit]
            more = f" {rest // smaller[0]} {smaller[1]}" if rest >= smaller[0] else ""
            return f"{whole} {unit}{more}"
    return f"{seconds} s"


def size(number: int) -> str:
    """Bytes in decimal units, as lines are sold in them."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def way(move: Move) -> str:
    """`v1.4.1 → v1.4.2`, or `video-ingest 2.7.0 → 2.8.0`."""
    app = "" if move.of == IMAGE else f"{move.of} "
    return f"{app}{move.before or 'nothing'} → {move.after}"


_KINDS = {
    "promotion": "a promotion",
    "rollback": "a rollback (fast lane: no gates, no freezes, all waves at once)",
    "promotion and rollback": "a promotion and a rollback (the rollback takes the fast lane)",
    "configuration": "a change of configuration; no release moves",
    "policy": "a change of policy or documents; no device moves because of it",
    "nothing": "nothing changes for the fleet",
}


def headline(review: Review) -> str:
    """What is compared, and what kind of change it is."""
    base = review.base.label if review.base is not None else "nothing (a first commit)"
    how = {
        "back": ", going back to an older commit",
        "merged": ", as the merge of the two",
        "unrelated": ", compared as they are: no common commit is known here",
    }.get(review.relation, "")
    new = bool(review.moves.moves) and all(move.why == Why.PROVISION for move in review.moves.moves)
    kind = "new devices get their first release" if new else _KINDS[review.kind]
    return f"{base} → {review.head.label}{how}: {kind}"


def _removed(review: Review) -> Iterable[str]:
    gone = review.removed_sites
    if gone:
        line = f"{CONFIRM_KEY}: {len(gone)}"
        need = f"; REFUSED unless the merge's message has the line `{line}`" if review.must_confirm else ""
        yield f"removes {count(len(gone), 'site')} ({names(gone)}): held as they are, never wiped{need}"


def _moved(review: Review) -> Iterable[str]:
    moves = review.moves.moves
    if not moves:
        return
    ways: dict[str, set[str]] = {}
    for move in moves:
        ways.setdefault(way(move), set()).update(move.devices)
    devices, sites = total(moves)
    waves = [name for name in review.waves if any(move.wave == name for move in moves)]
    told = "; ".join(
        f"{text}: {len(found):,}" for text, found in sorted(ways.items(), key=lambda one: -len(one[1]))[:4]
    )
    more = f"; and {len(ways) - 4} more ways" if len(ways) > 4 else ""
    within = f" in {'wave' if len(waves) == 1 else 'waves'} {names(waves, 6)}" if waves else ""
    stuck = {device for move in moves for device in move.stuck}
    who = f"{count(devices, 'device')} at {count(sites, 'site')}{within}"
    held = _held(moves)
    if len(stuck) == devices:
        verb = "is" if devices == 1 else "are"
        yield f"moves NO device, as things are: {who} {verb} held, {held} ({told}{more})"
    else:
        yield f"moves {who} ({told}{more}{f'; held now: {held}' if held else ''})"
    slow = [move for move in moves if move.why == Why.PROMOTE and _lowers(move)]
    if slow:
        found, _ = total(slow)
        yield f"{count(found, 'device')} of them go to a lower release by the gates: nothing says that they ran it before"


def _held(moves: Iterable[Move]) -> str:
    """What stands still at the merge, by reason."""
    held = Counter[str]()
    for move in moves:
        held.update(move.held)
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(held.items()))


def _lowers(move: Move) -> bool:
    from reconciler.model.scalars import release_key, version_key

    if move.before is None:
        return False
    try:
        if move.of == IMAGE:
            return release_key(move.after) < release_key(move.before)
        return version_key(move.after) < version_key(move.before)
    except ValueError:
        return False


def observed_line(review: Review) -> str:
    """What the rest stands on."""
    quiet = f"; {count(review.silent, 'device')} silent" if review.silent else ""
    if review.observed.source is None:
        what = (
            "a settled fleet at BASE is" if review.base is not None else "new devices that all call in at the merge are"
        )
        return f"observed: nothing was given; {what} assumed{quiet}"
    age = review.observed.age(review.at)
    if age is None or review.observed.taken_at is None:
        return f"observed: {review.observed.source}, of no known age{quiet}"
    if review.observed.taken_at > review.at:
        late = span(review.observed.taken_at - review.at)
        return f"observed: {review.observed.source}, taken {late} AFTER the merge ({minute(review.observed.taken_at)}){quiet}"
    return (
        f"observed: {review.observed.source}, {span(age)} old at the merge ({minute(review.observed.taken_at)}){quiet}"
    )


def _calendar(review: Review) -> str:
    assert review.earliest is not None and review.likely is not None
    ends = [_end(run) for run in (review.earliest, review.likely)]
    merge = f"calendar: merged {minute(review.at)}"
    if ends[0] == ends[1]:
        return f"{merge}; {ends[0]}"
    return f"{merge}; earliest: {ends[0]}; if the silent stay silent: {ends[1]}"


def _end(run: Run) -> str:
    """When all is done; where no gate has to pass for it, when the last device is there."""
    there = f"last device there {minute(run.arrived_at)}" if run.arrived_at is not None else ""
    if not run.gated:
        return f"{there}; no gate has to pass for it" if there else "no device gets there, as things are"
    if run.finished_at is None:
        return f"{there}{', ' if there else ''}proven everywhere NEVER, as things are"
    return f"{there}{', ' if there else ''}proven everywhere {minute(run.finished_at)}"


def _exposure(review: Review) -> str:
    assert review.likely is not None and review.earliest is not None
    most = max((review.earliest.exposure, review.likely.exposure), key=lambda one: one.devices)
    if not most.devices:
        return "blast radius: none; no device is ever on a release that its wave has not proven, or ran before"
    at = f" ({minute(most.at)})" if most.at is not None else ""
    return (
        f"blast radius: at most {count(most.devices, 'device')} at once on a release that their wave has not proven{at}"
    )


def _other(review: Review) -> Iterable[str]:
    passed = [key for key in review.known.other if any(place[1] == key for place in review.known.proven)]
    if passed:
        yield (
            f"OTHER BYTES under an old name: {names(passed, 2)}; gates that it passed stand, so these waves take them at once;"
            " give new bytes a new version"
        )


def _never(review: Review) -> Iterable[str]:
    if not review.never:
        return
    lost = [found for found in review.never if review.fails_either_way(found[0])]
    (wave, key), held = (lost or list(review.never))[0]
    why = held[0].message if held else "the forecast ended before it"
    more = f" (and {len(review.never) - 1} more)" if len(review.never) > 1 else ""
    yield f"{'NEVER PASSES' if lost else 'does not pass while the silent stay silent'}: {wave} on {key}: {why}{more}"


def _download(review: Review) -> Iterable[str]:
    found = review.downloads
    if not found.sites and not found.switching:
        return
    slowest = found.slowest
    if slowest is None:
        have = "has" if found.switching == 1 else "have"
        yield f"download: none, {count(found.switching, 'device')} {have} the release in the inactive slot"
        return
    assumed = []
    if found.assumed_sizes:
        assumed.append(f"size of {names(found.assumed_sizes, 2)}")
    if found.assumed_uplinks:
        assumed.append(f"line of {count(found.assumed_uplinks, 'site')}")
    note = f"; assumed: {', '.join(assumed)}" if assumed else ""
    yield (
        f"download: {size(found.bytes)} in all, {size(slowest.bytes)} at {slowest.site} in"
        f" {span(timedelta(seconds=slowest.seconds))} ({count(slowest.nights, 'night')}), the slowest{note}"
    )


def _back(review: Review) -> Iterable[str]:
    if not review.returns:
        return
    parts = []
    for found in review.returns[:2]:
        lead = f"to {found.release} by this merge" if found.by_merge else f"back to {found.release}"
        if found.stuck:
            parts.append(
                f"{lead}: {count(len(found.stuck), 'device')} COULD NOT ({names(found.stuck, 2)}): {found.why_not}"
            )
            continue
        parts.append(
            f"{lead}: {len(found.switch):,} by a slot switch, {len(found.download):,} by a download, all could"
        )
    more = f"; and {len(review.returns) - 2} more releases" if len(review.returns) > 2 else ""
    yield f"rollback: {'; '.join(parts)}{more}"


def _configuration(review: Review) -> Iterable[str]:
    found = review.configurations
    if found.sites:
        groups = f", in {len(found.groups)} ways" if len(found.groups) > 1 else ""
        yield (
            f"configuration: {count(found.sites, 'site')} ({count(found.devices, 'device')}) configured anew{groups};"
            " at once, no wave, gate or window holds it"
        )


def _keys(review: Review) -> Iterable[str]:
    keys = review.keys
    if keys.unread:
        yield f"keys: not looked at ({keys.unread})"
        return
    told = []
    for note in keys.bad:
        when = f" {format_instant(note.expires_at)}" if note.expires_at is not None else ""
        word = {"expires": "EXPIRES BEFORE THE END,", "expired": "HAS EXPIRED", "revoked": "IS REVOKED"}[note.state]
        told.append(f"{note.fingerprint[-16:]} {word}{when if note.state != 'revoked' else ''} ({note.place})")
    if keys.missing:
        told.append(f"release key {keys.missing[0]} is in no keyring")
    yield f"keys: {'; '.join(told[:2])}" if told else f"keys: {count(len(keys.notes), 'key')} outlive the calendar"


def _overlaps(review: Review) -> Iterable[str]:
    found = review.overlaps.found
    if found:
        touched = found[0].touched
        what = names([*sorted(touched.waves), *sorted(touched.releases), *sorted(touched.sites)], 5)
        more = f" (and {len(found) - 1} more branches)" if len(found) > 1 else ""
        yield f"overlap: branch {found[0].branch} touches {what} too{more}"


def _warnings(review: Review) -> Iterable[str]:
    if review.warnings:
        yield f"warnings: {count(len(review.warnings), 'new one')}, first {review.warnings[0]}"
