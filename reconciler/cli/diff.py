"""`reconciler diff`: everything that a merge will do, before it. Reads commits, folders, a snapshot, keyrings; changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.inputs import write
from reconciler.model.scalars import parse_instant

if TYPE_CHECKING:
    from reconciler.review.keys import Keyring
    from reconciler.review.make import Observed, Outside, Review
    from reconciler.review.overlap import Overlaps
    from reconciler.review.ports import Revisions
    from reconciler.review.sides import Sides


@click.command()
@click.argument("base")
@click.argument("head", required=False)
@click.option(
    "--fleet", type=click.Path(path_type=Path), help="The fleet repo's folder, in a git repository. [. or fleet]"
)
@click.option("--observed", type=click.Path(path_type=Path), help="Observed snapshot (JSON), as `snapshot` writes it.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings of the controller: its store is the snapshot."
)
@click.option("--server", metavar="URL", help="The controller's service: what it has observed is the snapshot.")
@click.option("--token-file", type=click.Path(path_type=Path), help="An operator's token, for --server.")
@click.option("--at", metavar="INSTANT", help="The instant of the merge, as 2026-01-15T01:30:00Z. [now]")
@click.option(
    "--keyring",
    "keyrings",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A public keyring to look at, beside those in the recipes; may be given several times.",
)
@click.option(
    "--branches", default="*", show_default=True, metavar="GLOB", help="Other branches to look for overlap in."
)
@click.option(
    "--output",
    type=click.Choice(["text", "markdown", "json"]),
    default="text",
    show_default=True,
    help="How to print it; markdown is the comment of a pull request.",
)
def diff(
    base: str,
    head: str | None,
    fleet: Path | None,
    observed: Path | None,
    config: Path | None,
    server: str | None,
    token_file: Path | None,
    at: str | None,
    keyrings: tuple[Path, ...],
    branches: str,
    output: str,
) -> None:
    """Show what merging HEAD into BASE will do: devices, calendar, blast radius, downloads, the way back.

    BASE and HEAD are git revisions of the repository around the fleet folder; without HEAD it is the work tree as it is. Two
    folders are compared as they are. What devices run is taken from --observed, --config or --server; without any of them, a
    settled fleet at BASE is assumed, and said so. Nothing is changed, and nothing but --server and --config is contacted.

    Exit codes: 0 fine, 1 an input is invalid, 2 wrong usage, 3 a system that was needed did not answer.
    """
    if sum(given is not None for given in (observed, config, server)) > 1:
        raise click.UsageError("--observed, --config and --server each say what is observed; give one of them")
    if (server is None) != (token_file is None):
        raise click.UsageError("--server and --token-file go together")
    now = _instant(at)
    folder = fleet if fleet is not None else nearest_fleet()
    sides, trees = sides_of(base, head, folder, fleet)
    known = _observed(observed, config, server, token_file)
    from reconciler.cli.side_by_side import side_by_side
    from reconciler.review.make import make

    review = make(sides, known, now, _outside(sides, trees, keyrings, branches), side_by_side)
    write(_PRINT[output](review))


def _instant(at: str | None) -> datetime:
    if at is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        return parse_instant(at)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from None


def nearest_fleet() -> Path:
    """This folder if it is a fleet repo, or `fleet` in it, as for `validate`."""
    elsewhere = not Path("fleet.yaml").exists() and Path("fleet").is_dir()
    return Path("fleet") if elsewhere else Path()


def sides_of(base: str, head: str | None, folder: Path, fleet: Path | None) -> tuple[Sides, Revisions | None]:
    """Both sides, and the repository that they are from (None: two folders)."""
    from reconciler.review.sides import from_folders, from_revisions

    if head is not None and Path(base).is_dir() and Path(head).is_dir():
        if fleet is not None:
            raise click.UsageError("two folders are compared as they are; leave --fleet out")
        return from_folders(Path(base), Path(head)), None
    from reconciler.adapters.git_trees import GitTrees

    trees = GitTrees(folder)
    return from_revisions(trees, base, head, folder), trees


def _observed(
    observed: Path | None, config: Path | None, server: str | None, token_file: Path | None
) -> Observed | None:
    from reconciler.review.make import observed_of

    if observed is not None:
        from reconciler.repo.snapshot import load_snapshot

        return observed_of(load_snapshot(observed), observed.name)
    if config is not None:
        from reconciler.controller.bootstrap import open_snapshot
        from reconciler.controller.settings import load_settings

        if not config.exists():
            raise click.UsageError(f"there is no settings file {config}; name the controller's with --config")
        stored = open_snapshot(load_settings(config))[1].model_copy(update={"at": datetime.now(UTC)})
        return observed_of(stored, "the controller's store")
    if server is not None and token_file is not None:
        from reconciler.cli.snapshot import fetch_snapshot

        return observed_of(fetch_snapshot(server, token_file), server)
    return None


def _outside(sides: Sides, trees: Revisions | None, keyrings: Sequence[Path], branches: str) -> Outside:
    """Keyrings and branches. What cannot be read of them is said in the review, and ends nothing."""
    from reconciler.review.make import Outside

    found, unread = _keyrings(sides, keyrings)
    plain = Outside()
    return Outside(found, unread, _overlaps(sides, trees, branches) if trees is not None else plain.overlaps)


def _keyrings(sides: Sides, named: Sequence[Path]) -> tuple[list[Keyring], str]:
    """Those that were named, and those that the recipes of the releases asked for put into their images."""
    from reconciler.ports import TerminalError
    from reconciler.review.keys import Keyring
    from reconciler.review.recipes import keyrings_of

    places = [(str(path), path.read_bytes()) for path in named] + keyrings_of(sides)
    if not places:
        return [], "no keyring was named with --keyring, and no recipe holds one"
    from reconciler.adapters.gpg_keys import GpgKeys

    gpg, found, unread = GpgKeys(), [], ""
    for place, data in places:
        try:
            found.append(Keyring(place, tuple(gpg.keys(data))))
        except TerminalError as error:
            unread = unread or f"{place}: {error}"
    return found, unread


def _overlaps(sides: Sides, trees: Revisions, pattern: str) -> Overlaps:
    from reconciler.ports import PortError
    from reconciler.review.changes import changes_of
    from reconciler.review.overlap import Overlaps, overlaps, touched_by

    base = sides.base.commit if sides.base is not None else None
    if base is None:
        return Overlaps((), 0, unread="a first commit has nothing that branches could have left")
    try:
        head = sides.head.commit or trees.resolve("HEAD")
        return overlaps(trees, base.sha, [head.sha], pattern, touched_by(changes_of(sides)))
    except PortError as error:
        return Overlaps((), 0, unread=str(error))


def _text(review: Review) -> str:
    from reconciler.review.text import as_text

    return as_text(review)


def _markdown(review: Review) -> str:
    from reconciler.review.markdown import as_markdown

    return as_markdown(review)


def _json(review: Review) -> str:
    return json.dumps(review.to_dict(), indent=2, ensure_ascii=False) + "\n"


_PRINT: dict[str, Callable[[Review], str]] = {"text": _text, "markdown": _markdown, "json": _json}
