"""`reconciler image build`: one release from a fleet folder, by hand; the same builder as the loop's.

An entry point: it names git, for the commit that the artifact is dated and named by, and hands the rest to the builder.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.names import releases

if TYPE_CHECKING:
    from reconciler.model.desired import ImageSpec

_NO_COMMIT = "0" * 40


def _size(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Bytes of a size as `8GiB`."""
    from reconciler.model.scalars import parse_size

    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Build a release from its recipe.")
@click.argument("release", shell_complete=releases)
@click.option("--fleet", type=click.Path(path_type=Path), help="The fleet repo's folder. [the one you are in]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/images"),
    show_default=True,
    help="Folder for the artifact, the build's log, and its scratch files.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for downloaded packages, kept between builds. [OUT/cache]",
)
@click.option(
    "--mirror",
    "mirrors",
    metavar="NAME=PLACE",
    multiple=True,
    help="Where a mirror of the recipe is: an address, in which {snapshot} stands for the base's snapshot, or an apt "
    "sources file. May be given again. [this machine's own apt sources, if it runs the same distribution]",
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(["distribution", "files"]),
    default="distribution",
    show_default=True,
    help="What the recipe is put on: its distribution, or nothing (no image that boots).",
)
@click.option(
    "--slot-size",
    metavar="SIZE",
    callback=_size,
    default="8GiB",
    show_default=True,
    help="Size of a device's slots: an image that does not fit fails the build.",
)
@click.option(
    "--timeout", type=click.IntRange(1), default=3600, show_default=True, help="Seconds that a step may take."
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def build(
    release: str,
    fleet: Path | None,
    out: Path,
    cache: Path | None,
    mirrors: tuple[str, ...],
    kind: str,
    slot_size: int,
    timeout: int,
    output: str,
) -> None:
    """Build RELEASE as images/RELEASE.yaml of the fleet names it, check it, and pack it; print the artifact's folder.

    What was built from the same inputs is not built again. The artifact is not signed: see `reconciler image sign`.
    """
    from reconciler.cli.diff import nearest_fleet
    from reconciler.controller.bootstrap import make_local_builder
    from reconciler.controller.settings import BuilderSettings

    folder = _fleet(fleet if fleet is not None else nearest_fleet())
    spec, recipe = _release(folder, release)
    commit, at = _commit(folder)
    place = out.absolute()
    options = BuilderSettings.model_validate(
        {
            "type": kind,
            "cache": cache.absolute() if cache else None,
            "mirrors": _mirrors(mirrors),
            "slotSize": slot_size,
            "timeout": f"{timeout}s",
        }
    )
    try:
        place.mkdir(parents=True, exist_ok=True)
        built = make_local_builder(options, place, place / "artifacts", lambda _: at, _told).build(
            release, spec, recipe, commit
        )
    except OSError as error:
        from reconciler.ports import TransientError

        raise TransientError(
            f"{error.strerror or type(error).__name__} ({error.filename or 'a file'})",
            needed_for=f"building {release}",
            remedy="make room, or name another folder with --out",
        ) from None
    if output == "json":
        told = {"release": built.release, "name": built.name, "folder": str(built.folder), "digest": built.digest}
        click.echo(json.dumps({**told, "commit": commit}, indent=2))
    else:
        click.echo(str(built.folder))


def _fleet(folder: Path) -> Path:
    """The folder, if it looks like a fleet repo. TerminalError: it has neither of the two files that every one has."""
    from reconciler.ports import TerminalError

    if not any((folder / name).exists() for name in ("fleet.yaml", "waves.yaml")):
        raise TerminalError(
            f"{folder.absolute()} is no fleet repo: it has no fleet.yaml and no waves.yaml",
            needed_for="the release's document and its recipe",
            remedy="go to the fleet repo's folder, or name it with --fleet",
        )
    return folder


def _release(folder: Path, release: str) -> tuple[ImageSpec, Path]:
    """The release's document and its recipe's folder. InvalidInput: the fleet does not load, or has no such release."""
    from reconciler.repo.load import load_folder
    from reconciler.repo.problem import InvalidInput, Problem

    loaded = load_folder(folder, scenarios=False)
    if loaded.desired is None:
        raise InvalidInput(loaded.errors)
    spec = loaded.desired.images.get(release)
    document = folder / "images" / f"{release}.yaml"
    if spec is None:
        there = ", ".join(sorted(loaded.desired.images)) or "none"
        message = f"there is no image release {release}; the fleet has {there}"
        raise InvalidInput([Problem(str(document), 1, 1, message, code="release")])
    if spec.recipe is None:
        raise InvalidInput(
            [Problem(str(document), 1, 1, f"{release} names no `recipe`; add its folder", code="recipe")]
        )
    return spec, folder / "images" / spec.recipe


def _mirrors(given: tuple[str, ...]) -> dict[str, str]:
    places: dict[str, str] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            raise click.BadParameter(f"{text!r} is no mirror; write NAME=ADDRESS or NAME=FILE", param_hint="--mirror")
        places[name] = place if "://" in place or place.startswith("/") else str(Path(place).absolute())
    return places


def _commit(folder: Path) -> tuple[str, datetime]:
    """The commit that the folder is at, and its date; outside a clone no commit, and SOURCE_DATE_EPOCH or now."""
    from reconciler.adapters.git_argv import call
    from reconciler.adapters.git_blame import work_tree_of

    if work_tree_of(folder) is not None:
        env = {"PATH": os.environ.get("PATH", ""), "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
        git = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*"]

        def ask(*arguments: str) -> str:
            told = call(git, arguments, env=env, needed_for="dating the artifact", timeout_s=60, folder=folder)
            return told.out.decode("utf-8", "replace").rstrip() if told.status == 0 else ""

        sha, _, seconds = ask("log", "-1", "--format=%H %ct").partition(" ")
        if seconds.isdigit():
            changed = ask("status", "--porcelain", "--untracked-files=all", "--", "images").splitlines()
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                click.echo(
                    f"note: images/ differs from commit {sha[:12]} in {changed[0][3:]}{more}; "
                    "the artifact names that commit, and no signer will sign it",
                    err=True,
                )
            return sha, datetime.fromtimestamp(int(seconds), UTC)
    click.echo(
        f"note: {folder} is in no clone with a commit; the artifact names none, and no signer will sign it", err=True
    )
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return _NO_COMMIT, datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)


def _told(stage: str, elapsed_s: float) -> None:
    """One line of progress a stage."""
    click.echo(f"{int(elapsed_s) // 60:3d}:{int(elapsed_s) % 60:02d} {stage}", err=True)
