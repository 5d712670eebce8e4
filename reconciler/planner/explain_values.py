"""What an explanation is made of: links of a chain, what would change them, and which line of git asked for it. Pure values.

Built by `explain_gate`, `explain_device`, `explain_wave` and `explain_site`; printed by the command line. An `Ask` names a
value of a fleet document by its keys; which line of which file that is, and who set it, is found outside and handed in as
`Asked` when printing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reconciler.model.plan import Reason
from reconciler.model.scalars import format_instant
from reconciler.planner.messages import plain
from reconciler.planner.windows import SECOND

MOST_NAMES = 3
_HOUR, _DAY = 3600, 86400


@dataclass(frozen=True, slots=True)
class Ask:
    """A value of a fleet document: the kind and name of the document, and the keys that lead to the value."""

    kind: str
    name: str
    where: tuple[str | int, ...]

    def home(self) -> str:
        """The file, as far as it is known without looking."""
        folder = {"Site": "sites/", "Image": "images/", "App": "apps/"}.get(self.kind)
        return f"{folder}{self.name}.yaml" if folder else f"{self.kind.lower()}.yaml"


@dataclass(frozen=True, slots=True)
class Asked:
    """Where an `Ask` stands, and who set it. `exact`: the value itself is written there, not only what surrounds it.

    `commit`, `author` and `at` are None where no commit is known; `note` then says why, or what is special about it.
    """

    path: str
    line: int
    text: str
    exact: bool = True
    commit: str | None = None
    author: str | None = None
    at: datetime | None = None
    summary: str | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {
            "path": self.path,
            "line": self.line,
            "text": self.text,
            "commit": self.commit,
            "author": self.author,
            "at": format_instant(self.at) if self.at else None,
            "summary": self.summary,
            "note": self.note,
        }

    def sentence(self) -> str:
        """`asked for by 1a2b3c4 (Ada Lovelace, 2026-01-14): waves.yaml:27 image: v1.4.2`."""
        place = f"{plain(self.path)}:{self.line} {plain(self.text)}"
        if self.commit is None:
            return f"asked for in {place}" + (f" ({self.note})" if self.note else "")
        day = f", {self.at.date().isoformat()}" if self.at else ""
        note = f" ({self.note})" if self.note else ""
        return f"asked for by {self.commit[:7]} ({plain(self.author or 'nobody named')}{day}): {place}{note}"


Places = Mapping[Ask, Asked]
"""What was found of the asks of an explanation."""


@dataclass(frozen=True, slots=True)
class Change:
    """What would change a link: an event that is waited for, or something to do; `at` when it comes by itself."""

    what: str
    at: datetime | None = None
    ask: Ask | None = None
    """The value to edit, where it is an edit."""

    def sentence(self, places: Places) -> str:
        """With the file and line of what is edited."""
        if self.ask is None:
            return self.what
        found = places.get(self.ask)
        where = f"{plain(found.path)}:{found.line}" if found else self.ask.home()
        return f"{self.what} in {where}"

    def to_dict(self, places: Places) -> dict[str, Any]:
        """For `--output json`."""
        return {"what": self.sentence(places), "at": format_instant(self.at) if self.at else None}


@dataclass(frozen=True, slots=True)
class Link:
    """One reason of a chain: the cause of the nearest link before it of a lower `depth`. Equal depth: causes side by side."""

    kind: str
    """`device`, `site`, `wave`, `fleet`, `release`, `artifact` or `tag`."""
    name: str
    code: str
    """A word for programs: a `Reason`, or what a device or a wave is doing."""
    statement: str
    """What is said of the subject; together they are a sentence."""
    depth: int = 0
    since: datetime | None = None
    until: datetime | None = None
    devices: tuple[str, ...] = ()
    """All of those that it speaks of, where it speaks of several."""
    changes: tuple[Change, ...] = ()
    ask: Ask | None = None
    """The value of git that asks for it."""
    why: str | None = None
    """What git says as the reason: of a pin, a freeze, a withdrawal."""

    @property
    def sentence(self) -> str:
        """Subject and statement."""
        return f"{self.subject} {self.statement}"

    @property
    def subject(self) -> str:
        """As a sentence names it."""
        if self.kind == "device" and len(self.devices) > 1:
            return names(self.devices)
        return {"wave": f"wave {self.name}", "site": f"site {self.name}", "fleet": "the fleet"}.get(
            self.kind, self.name if self.kind == "device" else f"{self.kind} {self.name}"
        )

    def instants(self) -> str:
        """` (since …, until …)`, or nothing. What is in flight has a timeout, and may be done at any time."""
        ends = "times out" if self.code == Reason.IN_PROGRESS.value else "until"
        parts = [f"{word} {format_instant(at)}" for word, at in (("since", self.since), (ends, self.until)) if at]
        return f" ({', '.join(parts)})" if parts else ""

    def to_dict(self, places: Places) -> dict[str, Any]:
        """For `--output json`: every name, every instant."""
        found = places.get(self.ask) if self.ask else None
        return {
            "kind": self.kind,
            "name": self.name,
            "reason": self.code,
            "statement": self.statement,
            "depth": self.depth,
            "since": format_instant(self.since) if self.since else None,
            "until": format_instant(self.until) if self.until else None,
            "devices": list(self.devices),
            "why": self.why,
            "changes": [change.to_dict(places) for change in self.changes],
            "askedFor": found.to_dict() if found and found.exact else None,
        }

    def lines(self, places: Places, indent: str) -> list[str]:
        """For people: the sentence, what git says, who asked for it."""
        pad = indent + "  " * max(self.depth - 1, 0)
        out = [f"{pad}← {self.sentence}{self.instants()}"]
        found = _author(self, places)
        if found is not None:
            out.append(f"{pad}    {found.sentence()}")
        return out


def _author(link: Link, places: Places) -> Asked | None:
    """Who asked for a link, and where, if the value is written anywhere."""
    found = places.get(link.ask) if link.ask else None
    return found if found is not None and found.exact else None


def arrows(links: Sequence[Link]) -> str:
    """The chain on one line: the first cause at every depth."""
    out: list[str] = []
    subject = ""
    for number in sorted(_first_path(links)):
        link = links[number]
        out.append(link.statement if link.subject == subject else link.sentence)
        subject = link.subject
    return " ← ".join(out)


def _first_path(links: Sequence[Link]) -> set[int]:
    """Positions of the links from the first one down, as long as each is deeper than the one before."""
    out: set[int] = set()
    depth = -1
    for number, link in enumerate(links):
        if link.depth <= depth:
            break
        out.add(number)
        depth = link.depth
    return out


def chain_lines(links: Sequence[Link], places: Places, indent: str) -> list[str]:
    """The links after the first, where they say more than the line of `arrows`; then what would change it, and when."""
    short = _first_path(links)
    rest = list(enumerate(links))[1:]
    more = any(number not in short or link.instants() or _author(link, places) for number, link in rest)
    out = [line for _, link in rest for line in link.lines(places, indent)] if more else []
    return out + change_lines(links, places, indent)


def change_lines(links: Sequence[Link], places: Places, indent: str) -> list[str]:
    """What would change it: what comes by itself first, by instant; then what somebody must report or do."""
    seen: dict[str, Change] = {}
    for link in links:
        for change in link.changes:
            seen.setdefault(change.sentence(places), change)
    timed = sorted((change for change in seen.values() if change.at), key=lambda change: (change.at, change.what))
    # What is waited for comes before what somebody would have to edit.
    free = sorted((s for s, change in seen.items() if change.at is None), key=lambda s: seen[s].ask is not None)
    out = []
    if timed or free:
        out.append(f"{indent}what would change it")
        out += [f"{indent}  {change.sentence(places)}" for change in timed]
        out += [f"{indent}  {sentence}" for sentence in free]
        if not free:
            out.append(f"{indent}  earlier: nothing")
    return out


# ---------------------------------------------------------------- words


def elapsed(micros: int) -> str:
    """A length of time as people say it: `40 min`, `31 h`, `3 d 4 h`. Rounded down, never below a second."""
    seconds = max(micros // SECOND, 0)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 2 * _HOUR and seconds != _HOUR:
        return f"{seconds // 60} min"
    if seconds < 4 * _DAY:
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    days, hours = divmod(seconds // _HOUR, 24)
    return f"{days} d" + (f" {hours} h" if hours else "")


def names(devices: Sequence[str]) -> str:
    """Some names and how many more: a wave may have 5,000."""
    shown = [plain(name) for name in devices[:MOST_NAMES]]
    more = len(devices) - len(shown)
    if more:
        return f"{len(devices)} devices ({', '.join(shown)} and {more} more)"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def wave_ask(index: int, *keys: str | int) -> Ask:
    """A value of the wave at `index`."""
    return Ask("Waves", "", ("spec", "waves", index, *keys))


def fleet_ask(*keys: str | int) -> Ask:
    """A value of fleet.yaml."""
    return Ask("Fleet", "", ("spec", *keys))


def site_ask(site: str, *keys: str | int) -> Ask:
    """A value of a site's document."""
    return Ask("Site", site, ("spec", *keys))


def image_ask(release: str, *keys: str | int) -> Ask:
    """A value of an image's document."""
    return Ask("Image", release, ("spec", *keys))
