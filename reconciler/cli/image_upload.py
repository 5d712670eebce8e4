"""`reconciler image upload`: an artifact that was built elsewhere, into the image store as `built`.

For builds that run on another machine than the reconciler, as a workflow's runner. It signs nothing and publishes nothing: the
loop sees the release as built, has the signer recheck and sign it, and publishes it then.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.image_store import place_of

if TYPE_CHECKING:
    from reconciler.ports import ImageStore, UploadProgress

NEEDED_FOR = "uploading an artifact"
_EVERY_S = 5.0


@click.command(short_help="Put an artifact that was built elsewhere into the image store.")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--store", "place", metavar="PLACE", help="The image store: s3://BUCKET/PREFIX/, or its folder.")
@click.option("--region", help="The bucket's region. [the machine's own]")
@click.option("--endpoint", help="Another endpoint than AWS's, as http://127.0.0.1:5000.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="The controller's settings, for the store's place.")  # fmt: skip
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def upload(
    folder: Path, place: str | None, region: str | None, endpoint: str | None, config: Path | None, output: str
) -> None:
    """Put FOLDER (FAMILY-RELEASE-YYYYMMDD, as a build leaves it) into the image store, in state `built`.

    May be repeated: what is there already with the same bytes is left, and an upload that was cut off goes on. Other bytes under a
    name that is taken are refused.
    """
    from reconciler.ports import TerminalError
    from reconciler.protocol.manifest import SUMS_SIGNATURE

    if (place is None) == (config is None):
        raise click.UsageError("say where the image store is: --store PLACE, or --config FILE")
    store = _opened(place, region, endpoint, config)
    release, digest = _artifact(folder)
    there = store.artifacts().get(release)
    if there is not None and there.state.value in ("signed", "published") and _same(store, release, folder):
        state, done = there.state.value, False
    else:
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS_SIGNATURE)
        store.stage(release, folder.name, files, _progress())
        after = store.artifacts().get(release)
        if after is None or not _same(store, release, folder):
            raise TerminalError(
                f"the store holds another artifact of {release} than {folder.name}, {after.state.value if after else 'absent'}",
                needed_for=NEEDED_FOR,
                remedy="see what it holds with `reconciler image list`: an artifact of a later day comes first",
            )
        state, done = after.state.value, True
    if output == "json":
        click.echo(
            json.dumps({"release": release, "name": folder.name, "digest": digest, "state": state, "uploaded": done})
        )
    elif done:
        click.echo(f"{folder.name} is in the image store, {state}: the reconciler has it signed and publishes it")
    else:
        click.echo(f"{folder.name} is in the image store already, {state}: nothing was uploaded")


def _same(store: ImageStore, release: str, folder: Path) -> bool:
    """Whether the store's artifact of a release is this one: SHA256SUMS binds every other byte."""
    from reconciler.protocol.manifest import SUMS

    return store.folder(release) == folder.name and store.read(release, SUMS) == (folder / SUMS).read_bytes()


def _artifact(folder: Path) -> tuple[str, str]:
    """Release and digest that the folder's manifest names. TerminalError: it holds no artifact, or one that is not whole."""
    from reconciler.ports import TerminalError
    from reconciler.protocol.canonical import Malformed
    from reconciler.protocol.manifest import NAME, Manifest

    try:
        manifest = Manifest.from_bytes((folder / NAME).read_bytes())
    except (OSError, Malformed) as error:
        raise TerminalError(
            f"{folder / NAME}: {getattr(error, 'strerror', None) or error}",
            needed_for=NEEDED_FOR,
            remedy="name the artifact's folder, FAMILY-RELEASE-YYYYMMDD, as `reconciler image build` leaves it",
        ) from None
    return manifest.release, manifest.digest


def _opened(place: str | None, region: str | None, endpoint: str | None, config: Path | None) -> ImageStore:
    from reconciler.controller.bootstrap import open_images
    from reconciler.controller.settings import load_settings

    at = load_settings(config).images if config is not None else place_of(place or "", region, endpoint)
    return open_images(at, lambda: datetime.now(UTC))


def _progress() -> UploadProgress:
    """A line on stderr every few seconds, and one a file."""
    from time import monotonic

    told = [monotonic()]
    ended: set[str] = set()

    def tell(name: str, done: int, size: int) -> None:
        if name in ended or (done < size and monotonic() - told[0] < _EVERY_S):
            return
        if done >= size:
            ended.add(name)
        told[0] = monotonic()
        click.echo(f"{name}: {done} of {size} bytes", err=True)

    return tell
