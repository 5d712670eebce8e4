"""`reconciler simulate`: months of a rollout in seconds, with the real planner and the real agents. Changes nothing.

Says what is played and what goes wrong, plays it, and tells what came of it; the parts are `simulate`'s. Reads commits, folders
and snapshots, as `diff` does; contacts no system.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.diff import nearest_fleet
from reconciler.cli.inputs import write
from reconciler.cli.simulate_course import Played, Wrong, from_folder, from_git, night_of_first_start, seconds, share
from reconciler.model.scalars import format_instant, parse_instant

if TYPE_CHECKING:
    from reconciler.model.observed import Snapshot
    from reconciler.simulate.course import Course, Run

_SHARES = ("fail", "offline", "power", "late", "doubled", "replayed", "crashes")
_FIRST_WORD_S = 2.0
"""Progress is told of runs that take longer."""
_LIMIT = timedelta(days=120)
_OF_MANY = ("--seeds", "--distribution")
"""Options, each with its value, that one run does not have."""
_LONGEST_S = 5 * 366 * 86400


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def put(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return put


_file = click.Path(path_type=Path, dir_okay=False)
_inputs = _options(
    click.option("--fleet", type=click.Path(path_type=Path), help="The fleet repo's folder. [. or fleet]"),
    click.option(
        "--observed", type=click.Path(path_type=Path), help="Observed snapshot (JSON) to begin with. [a settled fleet]"
    ),
    click.option("--at", metavar="INSTANT", help="The instant of the merge, as 2026-01-15T01:30:00Z. [now]"),
    click.option(
        "--promote",
        "releases",
        multiple=True,
        metavar="RELEASE",
        help="Raise every wave to it, as `promote --all` would: v1.4.2, or video-ingest@2.8.0; repeatable.",
    ),
    click.option("--wave", "waves", multiple=True, metavar="WAVE", help="Raise this wave alone; repeatable."),
    click.option(
        "--silent",
        type=click.Choice(["stay", "return"]),
        default="stay",
        show_default=True,
        help="What devices do that are silent in the snapshot.",
    ),
)
_faults = _options(
    click.option("--fail", metavar="SHARE", callback=share, help="So many update attempts fail, as 2%."),
    click.option("--offline", metavar="SHARE", callback=share, help="So much of the time each device's line is down."),
    click.option(
        "--bad-from", metavar="DURATION", help="The bad release turns critical after it has run so long, as 30h."
    ),
    click.option("--bad", multiple=True, metavar="RELEASE", help="The bad release. [what is newly asked for]"),
    click.option(
        "--herd", is_flag=True, help="All devices report at the same second, and call in together at 02:00 UTC."
    ),
    click.option(
        "--down",
        multiple=True,
        metavar="WHEN",
        help="The controller is away: INSTANT/DURATION, or `night`: 20:00 to 08:00 UTC when a later wave first starts.",
    ),
    click.option("--late", metavar="SHARE", callback=share, help="So many reports come late, behind newer ones."),
    click.option("--doubled", metavar="SHARE", callback=share, help="So many reports come twice."),
    click.option("--replayed", metavar="SHARE", callback=share, help="So many answers are old ones."),
    click.option("--power", metavar="NUMBER", callback=share, help="Power cuts a device and day."),
    click.option("--crashes", metavar="NUMBER", callback=share, help="Crashes of the controller a day."),
    click.option(
        "--chaos",
        is_flag=True,
        help="Of all some: fail 2%, offline 3%, late, doubled and replayed 5%, power 0.1, crashes 1, herd.",
    ),
    click.option("--faults-for", metavar="DURATION", help="Then everything is well again. [28d]"),
)
_playing = _options(
    click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Where chance begins."),
    click.option(
        "--seeds", type=click.IntRange(2, 10_000), help="Play with so many seeds, and tell how results spread."
    ),
    click.option("--for", "length", metavar="DURATION", help="Play so long. [until quiet, 120d at most]"),
    click.option("--replay", type=_file, help="Decide on recorded observations instead, under the policy in --fleet."),
)
_results = _options(
    click.option(
        "--output",
        type=click.Choice(["text", "json", "timeline"]),
        default="text",
        show_default=True,
        help="text is a summary and the timeline.",
    ),
    click.option("--picture", type=_file, metavar="FILE", help="Draw waves over time into FILE.svg or FILE.png."),
    click.option(
        "--distribution", type=_file, metavar="FILE", help="With --seeds: draw the spread into FILE.svg or FILE.png."
    ),
    click.option("--record", type=_file, metavar="FILE", help="Write what was observed, for --replay."),
)


@dataclass(frozen=True, slots=True)
class _Results:
    output: str
    picture: Path | None
    distribution: Path | None
    record: Path | None


@click.command(short_help="Play a merge, and what may go wrong, in virtual time.")
@click.argument("base", required=False)
@click.argument("head", required=False)
@_inputs
@_faults
@_playing
@_results
def simulate(
    base: str | None,
    head: str | None,
    fleet: Path | None,
    observed: Path | None,
    at: str | None,
    releases: tuple[str, ...],
    waves: tuple[str, ...],
    silent: str,
    bad_from: str | None,
    bad: tuple[str, ...],
    herd: bool,
    down: tuple[str, ...],
    chaos: bool,
    faults_for: str | None,
    seed: int,
    seeds: int | None,
    length: str | None,
    replay: Path | None,
    output: str,
    picture: Path | None,
    distribution: Path | None,
    record: Path | None,
    **shares: float | None,
) -> None:
    """Play months of a rollout in seconds: the real planner and agents, simulated machines, network and clock.

    BASE is in force, and HEAD is merged at --at: git revisions or folders, as for `diff`; without HEAD the work tree is merged.
    Without BASE the folder --fleet is in force; --promote raises waves in it. Devices begin as --observed says, or settled on what
    their waves ask for. Nothing goes wrong unless it is asked for. After every event the design's rules are checked.

    Exit codes: 0 fine, 1 an input is invalid or a rule was broken (a defect of ours), 2 wrong usage.
    """
    results = _Results(output, picture, distribution, record)
    wrong = Wrong(shares, bad_from, bad, herd, down, chaos, faults_for)
    if replay is not None:
        from reconciler.cli.simulate_replay import replay_file

        if (
            base is not None
            or releases
            or observed is not None
            or seeds is not None
            or record
            or picture
            or distribution
        ):
            raise click.UsageError(
                "--replay takes the policy in --fleet; it goes with no BASE, --promote, --observed, --seeds, --record or picture"
            )
        if wrong != Wrong(dict.fromkeys(shares)):
            raise click.UsageError("--replay takes what happened as it was recorded; it goes with no faults")
        replay_file(replay, fleet if fleet is not None else nearest_fleet(), output)
        return
    _check(base, releases, waves, bad, bad_from, seeds, results)
    played = from_git(base, head, fleet, nearest_fleet()) if base is not None else _folder(fleet, releases, waves)
    now = _instant(at)
    snapshot, begins = _beginning(observed, now)
    course = _course(played, now, snapshot, silent, length, seed)
    course = replace(course, faults=wrong.faults(played, now, lambda: night_of_first_start(course)))
    if seeds is not None:
        from reconciler.cli.simulate_seeds import many

        many(course, played.title, begins, seeds, results.output, results.distribution)
        return
    _one(course, played.title, begins, results)


def _check(
    base: str | None,
    releases: tuple[str, ...],
    waves: tuple[str, ...],
    bad: tuple[str, ...],
    bad_from: str | None,
    seeds: int | None,
    results: _Results,
) -> None:
    """UsageError: options that exclude each other, before anything is read."""
    if base is not None and releases:
        raise click.UsageError("BASE and --promote each say what is merged; give one of them")
    if waves and not releases:
        raise click.UsageError("--wave says where --promote RELEASE goes; give both")
    if bad and bad_from is None:
        raise click.UsageError("--bad says which release is bad; give --bad-from DURATION too: when it turns critical")
    if results.distribution is not None and seeds is None:
        raise click.UsageError("--distribution draws many seeds; give --seeds N")
    if seeds is not None and (results.picture or results.record or results.output == "timeline"):
        raise click.UsageError(
            "--picture, --record and the timeline are of one run; leave --seeds out, or use --distribution"
        )
    for path in (results.picture, results.distribution):
        if path is not None and path.suffix.lower() not in (".svg", ".png"):
            raise click.UsageError(f"{path} is neither .svg nor .png; name the picture so")
        if path is not None and not path.parent.is_dir():
            raise click.UsageError(f"{path}: there is no folder {path.parent}")


def _folder(fleet: Path | None, releases: tuple[str, ...], waves: tuple[str, ...]) -> Played:
    folder = fleet if fleet is not None else nearest_fleet()
    return from_folder(folder, releases, waves)


def _instant(at: str | None) -> datetime:
    if at is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        return parse_instant(at).replace(microsecond=0)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from None


def _beginning(observed: Path | None, at: datetime) -> tuple[Snapshot | None, str]:
    """What devices are at first, and a sentence that says so."""
    if observed is None:
        return None, "a settled fleet: everybody healthy on what is asked for, its proofs on record"
    from reconciler.repo.snapshot import load_snapshot
    from reconciler.review.make import observed_of
    from reconciler.simulate.summary import spoken

    found = observed_of(load_snapshot(observed), observed.name)
    age = found.age(at)
    old = f", {spoken(age)} old at the merge" if age is not None else ", of an unknown age"
    return found.snapshot, f"as observed in {observed}{old}"


def _course(
    played: Played, at: datetime, snapshot: Snapshot | None, silent: str, length: str | None, seed: int
) -> Course:
    from reconciler.simulate.course import Course, Merge

    limit = _LIMIT
    if length is not None:
        limit = timedelta(seconds=seconds(length, "--for"))
        if not 0 < limit.total_seconds() <= _LONGEST_S:
            raise click.BadParameter("between 1s and five years can be played", param_hint="--for")
    # A second before the merge, the fleet is as it was.
    start = at - timedelta(seconds=1) if played.changes else at
    merges = (Merge(at, played.changes, played.title),) if played.changes else ()
    return Course(
        played.files,
        start,
        merges,
        snapshot,
        seed=seed,
        silent="return" if silent == "return" else "stay",
        limit=limit,
        to_the_end=length is not None,
    )


def _one(course: Course, title: str, begins: str, results: _Results) -> None:
    """Play once, and tell."""
    from reconciler.simulate.summary import as_json, as_text, defect, headline, judged, timeline_lines

    course = replace(course, states=results.picture is not None or results.output == "json")
    began = monotonic()
    run = judged(_play(course, results.record))
    took_s = monotonic() - began
    if results.picture is not None:
        from reconciler.simulate.canvas import save
        from reconciler.simulate.picture import draw

        said = headline(run)
        save(draw(run.trace, run.desired, run.waves, title, said), results.picture, title, said)
    if results.output == "json":
        write(as_json(run, title, begins))
    elif results.output == "timeline":
        write("\n".join(timeline_lines(run)) + "\n")
    else:
        write(as_text(run, title, begins, took_s))
    if run.violations:
        click.echo(defect(run.violations, again(course, course.seed)), err=True)
        raise SystemExit(1)


def _play(course: Course, record: Path | None) -> Run:
    from reconciler.simulate.run import Simulation

    simulation, progress = Simulation(course), Progress()
    watchers: list[Callable[[datetime], object]] = [lambda at: progress.at(f"{at:%a %d %b %Y}")]
    if record is None:
        run = simulation.run(watchers)
        progress.end()
        return run
    from reconciler.adapters import durable
    from reconciler.simulate.recording import Recording

    recording = Recording(simulation)
    run = simulation.run([*watchers, recording.look])
    progress.end()
    with durable.os_errors(f"write {record}", needed_for="the recording"):
        durable.write_atomic(record, recording.lines)
    return run


class Progress:
    """One line on a terminal, of work that takes long; nothing where nobody looks."""

    def __init__(self) -> None:
        self._shown = ""
        self._next_at = monotonic() + _FIRST_WORD_S
        self._watched = sys.stderr.isatty()

    def at(self, text: str) -> None:
        """How far it is."""
        if self._watched and monotonic() >= self._next_at:
            self._next_at = monotonic() + 0.2
            click.echo("\r" + text.ljust(len(self._shown)), err=True, nl=False)
            self._shown = text

    def end(self) -> None:
        """Leave the line as it was before."""
        if self._shown:
            click.echo("\r" + " " * len(self._shown) + "\r", err=True, nl=False)
            self._shown = ""


def again(course: Course, seed: int) -> str:
    """The command that plays the same again: as it was called, with its instant and one seed."""
    import shlex

    words, left_out = [], False
    for word in sys.argv[1:]:
        option = word.partition("=")[0]
        if not left_out and option not in _OF_MANY:
            words.append(word)
        left_out = word in _OF_MANY
    at = course.merges[0].at if course.merges else course.at
    return shlex.join(["reconciler", *words, "--at", format_instant(at), "--seed", str(seed)])
