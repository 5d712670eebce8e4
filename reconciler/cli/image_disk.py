"""`reconciler image disk`: an install disk for a first installation, from an artifact or a slot image."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from reconciler.image.disk import Disk
    from reconciler.image.disk_slot import SlotSource

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_STEP_S = 1.0


def _bytes(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Bytes of a size as `8GiB`, `512MiB` or a plain number."""
    match = re.fullmatch(r"(\d{1,15}) ?([A-Za-z]{0,3})", value.strip())
    unit = match[2].upper() if match else ""
    # 8G and 8GB mean 10^9 to some tools: nobody shall have to guess.
    if match is None or unit not in _UNITS:
        raise click.BadParameter(f"{value!r} is no size; write it as 8GiB or 512MiB")
    return int(match[1]) * _UNITS[unit]


class Progress:
    """A line on stderr: one that is rewritten on a terminal, one a stage elsewhere."""

    def __init__(self) -> None:
        self._stage, self._said_at = "", 0.0
        self._live = sys.stderr.isatty()

    def __call__(self, stage: str, done: int) -> None:
        """Say where it stands; at most once a second within a stage."""
        now = time.monotonic()
        if stage == self._stage and (not self._live or now - self._said_at < _STEP_S):
            return
        line = f"{stage}: {done >> 20} MiB" if stage == self._stage and done else f"{stage} …"
        click.echo(f"\r\x1b[K{line}" if self._live else line, err=True, nl=not self._live)
        self._stage, self._said_at = stage, now

    def end(self) -> None:
        """Leave the terminal's line free."""
        if self._live:
            click.echo("\r\x1b[K", err=True, nl=False)


@click.command(short_help="Make an install disk from an artifact or a slot image.")
@click.argument("image", metavar="ARTIFACT|FILE.img[.zst]", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The disk to write: FILE.img, or FILE.img.zst to have it packed.",
)
@click.option(
    "--slot-size",
    metavar="SIZE",
    callback=_bytes,
    default="8GiB",
    show_default=True,
    help="Size of each of the two slots.",
)
@click.option(
    "--data-size",
    metavar="SIZE",
    callback=_bytes,
    default="1GiB",
    show_default=True,
    help="Size of the data partition; it grows to the disk's end at the first boot.",
)
@click.option(
    "--seed",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A site's user-data, meta-data and network-config, from `reconciler site render`. The disk is that device's then.",
)
@click.option(
    "--enrol",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A device's enrolment, from `reconciler device enrol`: it reports from its first boot on.",
)
@click.option(
    "--keys",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder with release.gpg and release.fpr: refuse an artifact that none of these keys has signed.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def disk(
    image: Path,
    out: Path,
    slot_size: int,
    data_size: int,
    seed: Path | None,
    enrol: Path | None,
    keys: Path | None,
    output: str,
) -> None:
    """Make an install disk: a boot loader, slot a with the image, an empty slot b, and a data partition.

    ARTIFACT is the folder of a release, checked against its SHA256SUMS; a single FILE.img or FILE.img.zst is taken as it
    is. The boot loader (shim and GRUB, both signed) comes out of the image. The same inputs give the same bytes. How to
    write it to a device: docs/how-to/install-xr4000.md.
    """
    from reconciler.image.disk import make_disk
    from reconciler.image.disk_data import read_seed
    from reconciler.image.disk_slot import open_source
    from reconciler.image.enrolment import check_fit, read_enrolment

    if not out.name.endswith((".img", ".img.zst", ".raw", ".raw.zst")):
        raise click.BadParameter(f"{out.name!r} says no format; end it in .img or .img.zst", param_hint="--out")
    files = read_seed(seed) if seed is not None else None
    enrolment = read_enrolment(enrol) if enrol is not None else None
    if files is not None and enrolment is not None:
        check_fit(enrolment, files)
    _check_signature(image, keys)
    progress = Progress()
    progress("check", 0)
    source = open_source(image)
    try:
        papers = enrolment.files if enrolment is not None else None
        made = make_disk(
            source,
            out,
            slot_size=slot_size,
            data_size=data_size,
            seed=files,
            enrolment=papers,
            managed=papers is not None,
            progress=progress,
        )
    finally:
        progress.end()
    _say(made, source, output)
    held = ["the site's configuration, secrets included"] if files is not None else []
    if enrolment is not None:
        held.append(f"the enrolment of {enrolment.device}, its token included")
    if held:
        click.echo(f"{out} holds {', and '.join(held)}: only you may read it", err=True)


def _check_signature(image: Path, keys: Path | None) -> None:
    """Refuse what none of the keys has signed; say so where nobody asked."""
    if keys is None:
        if image.is_dir():
            click.echo("the artifact's signature is not checked: name the release keys with --keys", err=True)
        return
    from reconciler.image.disk_slot import check_signature

    if not image.is_dir():
        raise click.UsageError("--keys checks an artifact's signature: name its folder, not the image in it")
    check_signature(image, keys)


def _say(made: Disk, source: SlotSource, output: str) -> None:
    """The result, on stdout."""
    facts = {
        "disk": str(made.path),
        "release": source.release,
        "imageDigest": f"sha256:{made.slot.digest}",
        "size": made.layout.size,
        "sha256": made.digest,
        "fileSize": made.file_size,
        "fileSha256": made.file_digest,
        "bootLoader": made.vendor,
        "partitions": [
            {"number": number, "name": part.name, "start": part.start, "size": part.size}
            for number, part in enumerate(made.layout.partitions(), 1)
        ],
    }
    if output == "json":
        click.echo(json.dumps(facts, indent=2))
        return
    from reconciler.image.disk_slot import mib

    click.echo(f"{made.path}: {mib(made.file_size)}, sha256 {made.file_digest}")
    if made.file_digest != made.digest:
        click.echo(f"unpacked: {made.layout.size} bytes, sha256 {made.digest}")
    click.echo(f"slot a: {source.release or source.path.name}, {mib(made.slot.size)}, sha256 {made.slot.digest}")
    parts = ", ".join(f"{part.name} {mib(part.size)}" for part in made.layout.partitions())
    click.echo(f"partitions: {parts}; boots by the {made.vendor} shim")
