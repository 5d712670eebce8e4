"""`reconciler image bump`: the document of the next release of the golden image, on a branch."""

from __future__ import annotations

import click

from reconciler.cli.proposal import Options, carry_out, proposing


@click.command(short_help="Propose a new release, from an earlier one with other pins.")
@click.argument("release")
@click.option("--from", "source", metavar="RELEASE", help="Release to start from. [the highest that is not withdrawn]")
@click.option("--package", "packages", metavar="NAME=VERSION", multiple=True, help="A pin to set; may be given again.")
@click.option("--snapshot", metavar="DATE", help="Snapshot of the base, as 20251215T000000Z.")
@proposing
def bump(options: Options, release: str, source: str | None, packages: tuple[str, ...], snapshot: str | None) -> None:
    """Propose images/RELEASE.yaml: the document of an earlier release, comments too, with the pins that you name changed."""
    from reconciler.propose.image import bump as make

    pins: dict[str, str] = {}
    for text in packages:
        name, equals, version = text.partition("=")
        if not equals or not name.strip() or not version.strip():
            raise click.BadParameter(f"{text!r} is no pin; write NAME=VERSION", param_hint="--package")
        if name.strip() in pins:
            raise click.BadParameter(f"{name.strip()!r} is pinned twice", param_hint="--package")
        pins[name.strip()] = version.strip()
    carry_out(options, lambda base, _sha, _clone: make(base, release, source, pins, snapshot))
