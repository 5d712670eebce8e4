"""What `reconciler simulate` plays: the fleet in force, what is merged into it, and what goes wrong.

Reads commits, folders and a snapshot, as `diff` does; edits documents in memory, as `promote` would. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.model.desired import Desired
from reconciler.model.scalars import parse_duration, parse_instant

if TYPE_CHECKING:
    from reconciler.propose.base import Base
    from reconciler.repo.folder import Files
    from reconciler.review.sides import Side
    from reconciler.simulate.course import Course
    from reconciler.simulate.faults import Faults

CHAOS = {"fail": 0.02, "offline": 0.03, "late": 0.05, "doubled": 0.05, "replayed": 0.05, "power": 0.1, "crashes": 1.0}
"""What `--chaos` stands for, where an option does not say otherwise; with it comes a herd."""
FAULTS_FOR = timedelta(days=28)
"""How long faults happen unless it is said."""
_NIGHT = (20, timedelta(hours=12))
"""A night in which the controller is down: from this hour, UTC, so long."""


@dataclass(frozen=True, slots=True)
class Played:
    """What is played. `files` are the documents in force at first, `changes` what a merge makes of them; `title` says it."""

    files: Mapping[str, bytes]
    changes: Mapping[str, bytes | None]
    title: str
    base: Desired
    head: Desired

    @property
    def new_releases(self) -> tuple[str, ...]:
        """What some wave asks for after the merge, and did not before."""
        asked = [
            dict.fromkeys(key for wave in side.waves.waves for key in _asked(wave)) for side in (self.base, self.head)
        ]
        before = {wave.name: set(_asked(wave)) for wave in self.base.waves.waves}
        new = {key for wave in self.head.waves.waves for key in _asked(wave) if key not in before.get(wave.name, set())}
        return tuple(key for key in asked[1] if key in new)


def _asked(wave: Any) -> list[str]:
    return [
        *([wave.image] if wave.image is not None else []),
        *(f"{app}@{wave.apps[app]}" for app in sorted(wave.apps)),
    ]


# ---------------------------------------------------------------- what is in force, and what is merged


def from_git(base: str, head: str | None, fleet: Path | None, nearest: Path) -> Played:
    """Two commits, a commit and the work tree, or two folders: what `diff` compares.

    InvalidInput: documents do not load. TerminalError: no such commit, or none with a fleet.
    """
    from reconciler.cli.diff import sides_of
    from reconciler.ports import TerminalError
    from reconciler.review.sides import changed_files

    if head is None and Path(base).is_dir():
        raise click.UsageError(f"{base} is a folder; name the fleet in force with --fleet, or two folders to compare")
    sides, _ = sides_of(base, head, fleet if fleet is not None else nearest, fleet)
    if sides.base is None:
        raise TerminalError(
            f"there is no fleet at {base}",
            needed_for="something that is in force when time begins",
            remedy="simulate HEAD alone, with --fleet",
        )
    files = {path: data for path, data in _documents(sides.base).items() if data is not None}
    changes: dict[str, bytes | None] = {}
    for path, entry in changed_files(sides.base.files, sides.head.files).items():
        changes[path] = None if entry is None else sides.head.read(entry.blob)
    title = f"{sides.base.label} → {sides.head.label}"
    return Played(files, changes, title, sides.base.desired, sides.head.desired)


def _documents(side: Side) -> Mapping[str, bytes | None]:
    from reconciler.repo.reader import MAX_BYTES
    from reconciler.review.sides import changed_files

    return {
        path: side.read(entry.blob) if (entry.size or 0) <= MAX_BYTES else b""
        for path, entry in changed_files({}, side.files).items()
        if entry is not None
    }


def from_folder(folder: Path, releases: Sequence[str], waves: Sequence[str]) -> Played:
    """A folder, and the promotion of releases in it, in memory: in `waves`, or in every wave.

    InvalidInput: the fleet does not load, or would not any more. Declined: a promotion would do nothing, or be held.
    """
    from reconciler.propose.base import Base
    from reconciler.propose.promote import promote
    from reconciler.repo.folder import folder_entries
    from reconciler.repo.problem import InvalidInput

    found = folder_entries(folder, scenarios=False)
    if found.problems:
        raise InvalidInput(found.problems)
    where = "" if str(folder) == "." else f"{folder}/"
    start = base = Base(found.entries, found.read, where)
    if start.loaded.desired is None:
        raise InvalidInput(start.shown(start.loaded.errors))
    for problem in start.shown(start.loaded.problems):
        click.echo(str(problem), err=True)
    changes: dict[str, bytes | None] = {}
    titles = []
    names = [wave.name for wave in base.waves.waves]
    ordered = sorted(waves, key=lambda wave: names.index(wave) if wave in names else len(names))
    for release in releases:
        for wave in ordered or (None,):
            change = promote(base, release, wave, every=wave is None)
            base.warnings_after(change)
            changes.update(change.files)
            titles.append(change.title)
            base = _after(found, changes, where)
    assert base.loaded.desired is not None
    files = {entry.path: found.read(entry.blob) for entry in found.entries}
    return Played(files, changes, ", then ".join(titles), start.loaded.desired, base.loaded.desired)


def _after(found: Files, changes: Mapping[str, bytes | None], where: str) -> Base:
    """The fleet repo with documents that have other bytes."""
    from reconciler.propose.base import Base
    from reconciler.repo.folder import File

    new = {f"changed {path}": data for path, data in changes.items() if data is not None}
    entries = [
        File(entry.path, f"changed {entry.path}", entry.mode, len(changes[entry.path] or b""))
        if entry.path in changes
        else entry
        for entry in found.entries
    ]
    return Base(entries, lambda blob: new[blob] if blob in new else found.read(blob), where)


# ---------------------------------------------------------------- what goes wrong


@dataclass(frozen=True, slots=True)
class Wrong:
    """The options about faults, as they were given. None: not given."""

    shares: Mapping[str, float | None] = field(default_factory=dict)
    bad_from: str | None = None
    bad: Sequence[str] = ()
    herd: bool = False
    down: Sequence[str] = ()
    chaos: bool = False
    faults_for: str | None = None

    def faults(self, played: Played, at: datetime, first_night: Callable[[], datetime | None]) -> Faults:
        """UsageError: options that do not fit each other, or name what is not there. `first_night` says when `night` begins."""
        from reconciler.simulate.faults import Faults

        shares = {
            name: value if value is not None else (CHAOS[name] if self.chaos else 0.0)
            for name, value in self.shares.items()
        }
        made = Faults(
            **shares,  # type: ignore[arg-type]  # the options are named as the fields
            bad_from_s=None if self.bad_from is None else seconds(self.bad_from, "--bad-from"),
            bad=frozenset(self._bad(played)) if self.bad_from is not None else frozenset(),
            herd=self.herd or self.chaos,
            down=tuple(sorted(self._down(one, first_night) for one in self.down)),
        )
        lasting = bool(any(shares.values()) or made.herd)
        if self.faults_for is None:
            return replace(made, until=at + FAULTS_FOR) if lasting else made
        if not lasting:
            raise click.UsageError(
                "--faults-for says how long faults happen that have no end of their own; none is asked for"
            )
        return replace(made, until=at + timedelta(seconds=seconds(self.faults_for, "--faults-for")))

    def _bad(self, played: Played) -> Sequence[str]:
        if not self.bad:
            if not played.new_releases:
                raise click.UsageError("--bad-from needs --bad RELEASE: nothing newly asked for could be bad")
            return played.new_releases
        known = {*played.head.images, *played.base.images}
        for side in (played.base, played.head):
            known |= {f"{app}@{version}" for app, spec in side.apps.items() for version in spec.releases}
        for release in self.bad:
            if release not in known:
                from reconciler.repo.near import did_you_mean

                hint = did_you_mean(release, known)
                raise click.BadParameter(f"there is no release {release!r}{hint}", param_hint="--bad")
        return self.bad

    @staticmethod
    def _down(text: str, first_night: Callable[[], datetime | None]) -> tuple[datetime, datetime]:
        if text == "night":
            at = first_night()
            if at is None:
                raise click.UsageError("--down night: no wave starts anything at night; write --down INSTANT/DURATION")
            return at, at + _NIGHT[1]
        since, slash, length = text.partition("/")
        try:
            if not slash:
                raise ValueError("no / in it")
            start = parse_instant(since)
            return start, start + timedelta(seconds=parse_duration(length))
        except ValueError as error:
            raise click.BadParameter(
                f"{text!r} is no INSTANT/DURATION as 2026-03-10T20:00:00Z/12h, nor `night` ({error})",
                param_hint="--down",
            ) from None


def seconds(text: str, option: str) -> int:
    """A duration as people write it. BadParameter: it is none."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def share(_context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """`2%`, or a number a day: a click callback. Shares are in [0, 1]."""
    if text is None:
        return None
    try:
        if option.name in ("power", "crashes"):
            value = float(text)
            if not 0 <= value <= 1000:
                raise ValueError
            return value
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if not 0 <= value <= 1:
            raise ValueError
    except ValueError:
        wanted = "a number a day, as 0.5" if option.name in ("power", "crashes") else "a share, as 2% or 0.02"
        raise click.BadParameter(f"{text!r} is no number for it; write {wanted}") from None
    return value


def night_of_first_start(course: Course) -> datetime | None:
    """20:00 UTC of the night in which a wave other than the first starts something, all being well (of one wave: its own)."""
    from reconciler.simulate.faults import Faults
    from reconciler.simulate.run import Simulation
    from reconciler.simulate.trace import Kind

    run = Simulation(replace(course, faults=Faults(), states=False)).run()
    waves = [wave.name for wave in run.desired.waves.waves]
    later = waves[1:] or waves
    started = [event.at for event in run.trace.events if event.kind is Kind.TOLD and event.wave in later]
    if not started:
        return None
    hour, length = _NIGHT
    night = started[0].astimezone(UTC).replace(hour=hour, minute=0, second=0, microsecond=0)
    return night - timedelta(days=1) if started[0] < night - timedelta(days=1) + length else night
