"""`reconciler image bump`: the document of the next release of the golden image, on a branch.

With `--refresh` the pins are brought to what the mirrors offer at the new snapshot: the variant's sources are read from the recipe
of the very commit that the proposal starts from, and apt is asked. What to propose is decided by `propose.image`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.proposal import Options, carry_out, proposing

if TYPE_CHECKING:
    from reconciler.model.desired import ImageSpec
    from reconciler.propose.base import Base, Change

_MOST = 3


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was asked for. `found` remembers what the mirrors said: a proposal is made more than once in a run."""

    release: str | None
    source: str | None
    pins: Mapping[str, str]
    snapshot: str | None
    refresh: bool
    downgrade: bool
    mirrors: Mapping[str, str]
    found: dict[tuple[object, ...], dict[str, str]] = field(default_factory=dict)


@click.command(short_help="Propose a new release, from an earlier one with other pins.")
@click.argument("release", required=False)
@click.option("--from", "source", metavar="RELEASE", help="Release to start from. [the highest that is not withdrawn]")
@click.option("--refresh", is_flag=True, help="Bring every pin to the newest version that the mirrors offer.")
@click.option("--package", "packages", metavar="NAME=VERSION", multiple=True, help="A pin to set; may be given again.")
@click.option(
    "--snapshot",
    metavar="DATE",
    help="Snapshot of the base, as 20251215T000000Z. [with --refresh: today's, where there is one]",
)
@click.option("--downgrade", is_flag=True, help="With --refresh: take lower versions too, where a pin is gone.")
@click.option(
    "--mirror", "mirrors", metavar="NAME=PLACE", multiple=True,
    help="With --refresh: where a mirror of the recipe is, an address, in which {snapshot} stands for the snapshot, or an apt "
    "sources file. May be given again. [this machine's own apt sources, if it runs the same distribution]",
)  # fmt: skip
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="With --refresh: the controller's settings, for their builder.mirrors.",
)  # fmt: skip
@proposing
def bump(
    options: Options,
    release: str | None,
    source: str | None,
    refresh: bool,
    packages: tuple[str, ...],
    snapshot: str | None,
    downgrade: bool,
    mirrors: tuple[str, ...],
    config: Path | None,
) -> None:
    """Propose images/RELEASE.yaml: the document of an earlier release, comments too, with other pins.

    RELEASE is the next patch number after the highest unless said. Where --refresh finds nothing newer, nothing is proposed.
    """
    from reconciler.propose.image import Unchanged

    if not refresh and (downgrade or mirrors or config is not None):
        raise click.UsageError("--downgrade, --mirror and --config go with --refresh")
    places = {**_configured(config), **_pairs(mirrors, "--mirror", "NAME=PLACE")} if refresh else {}
    pins = _pairs(packages, "--package", "NAME=VERSION")
    wish = _Wish(release, source, pins, snapshot, refresh, downgrade, places)
    try:
        carry_out(options, lambda base, _sha, _clone: _made(base, wish))
    except Unchanged as nothing:
        if options.output == "json":
            click.echo(
                json.dumps({"title": None, "says": [nothing.wrong], "moves": [], "files": [], "next": [nothing.remedy]})
            )
        else:
            click.echo(f"{nothing.wrong}\n{nothing.remedy}")


def _pairs(texts: tuple[str, ...], option: str, form: str) -> dict[str, str]:
    """NAME=VALUE texts as a mapping."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            what = "pin" if option == "--package" else "mirror"
            raise click.BadParameter(f"{text!r} is no {what}; write {form}", param_hint=option)
        if name in found:
            raise click.BadParameter(
                f"{name!r} is {'pinned' if option == '--package' else 'given'} twice", param_hint=option
            )
        found[name] = value
    return found


def _configured(config: Path | None) -> Mapping[str, str]:
    if config is None:
        return {}
    from reconciler.controller.settings import load_settings

    return load_settings(config).builder.mirrors


def _made(base: Base, wish: _Wish) -> Change:
    """The change from a fleet repo as it is in a commit."""
    from reconciler.propose.image import bump as make
    from reconciler.propose.image import next_release, source_release

    release = wish.release if wish.release is not None else next_release(base)
    if not wish.refresh:
        return make(base, release, wish.source, wish.pins, wish.snapshot)
    spec = base.images()[source_release(base, wish.source)]
    snapshot = wish.snapshot
    if snapshot is None and spec.base is not None and spec.base.snapshot is not None:
        snapshot = f"{datetime.now(UTC):%Y%m%d}T000000Z"
    pins = {**_refreshed(base, spec, snapshot, wish), **wish.pins}
    return make(base, release, wish.source, pins, snapshot, refreshed=True)


def _refreshed(base: Base, spec: ImageSpec, snapshot: str | None, wish: _Wish) -> dict[str, str]:
    """The release's pins, but for those that were named, in the newest versions that the recipe's sources offer."""
    from reconciler.ports import TerminalError

    pins = {name: version for name, version in spec.packages.items() if name not in wish.pins}
    if not pins:
        return {}
    if spec.recipe is None or spec.base is None:
        raise TerminalError(
            f"the release that this one is made from names no {'recipe' if spec.recipe is None else 'base'}",
            needed_for="finding the sources of its pins",
            remedy="write it there, or name the pins with --package",
        )
    prefix = f"images/{spec.recipe.rstrip('/')}/"
    files = {
        path: entry for path, entry in base.entries.items() if path.startswith(prefix) and entry.mode.startswith("100")
    }
    key = (*sorted((path, entry.blob) for path, entry in files.items()), snapshot, *sorted(pins.items()))
    if key not in wish.found:
        wish.found[key] = _asked(base, spec, prefix, sorted(files), snapshot, pins, wish)
    return wish.found[key]


def _asked(
    base: Base,
    spec: ImageSpec,
    prefix: str,
    files: list[str],
    snapshot: str | None,
    pins: Mapping[str, str],
    wish: _Wish,
) -> dict[str, str]:
    """Ask apt, over the sources that the recipe has in this commit. InvalidInput: its file and line."""
    from reconciler.image.mirrors import resolve
    from reconciler.image.newest import newest
    from reconciler.image.recipe import read
    from reconciler.ports import TerminalError
    from reconciler.repo.problem import InvalidInput

    with tempfile.TemporaryDirectory(prefix="reconciler-recipe-") as place:
        folder = Path(place)
        for path in files:
            target = folder / path.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(base.read(path))
        try:
            recipe = read(folder, spec)
            entries = resolve(recipe, snapshot, wish.mirrors)
        except InvalidInput as invalid:
            known = f"{base.where}{prefix.rstrip('/')}"
            shown = [str(replace(problem, path=problem.path.replace(place, known))) for problem in invalid.problems]
            more = f"; and {len(shown) - _MOST} more" if len(shown) > _MOST else ""
            needed_for = "finding the newest versions of the pins"
            raise TerminalError("; ".join(shown[:_MOST]) + more, needed_for=needed_for) from None
        architecture = recipe.variant.architecture
        click.echo(f"asking apt for the newest versions of {', '.join(pins)}", err=True)
        return newest(pins, [entry.line(architecture) for entry in entries], architecture, downgrade=wish.downgrade)
