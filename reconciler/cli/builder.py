"""`reconciler builder`: builds one release, as a user that holds no key and no credential.

Reads one line of JSON from standard input (release, spec, commit, committedAt, recipeBytes, builder), then the recipe as
a tar, and takes nothing else from who asks. Writes one line of JSON: name, folder and digest of the artifact. The end of
standard input means that nobody waits: the build stops. Called by `adapters.builder_process`, which has the protocol.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tarfile
import tempfile
import threading
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from reconciler.controller.settings import BuilderSettings
    from reconciler.model.desired import ImageSpec
    from reconciler.ports import TerminalError

_LINE = 1 << 20
_KEYS = {"release", "spec", "commit", "committedAt", "recipeBytes", "builder"}


@click.command(short_help="Build one release for the reconciler, as a user without keys.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Folder for scratch, logs and finished artifacts; the controller's user must be able to read it. [~/builds]",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder for downloaded packages. [WORK/cache]")
def builder(work: Path | None, cache: Path | None) -> None:
    """Build the release described on standard input, and print where its artifact lies.

    The reconciler runs this where its settings have `builder.command`. To build by hand, use `reconciler image build`.
    """
    try:
        _serve(sys.stdin.buffer, work, cache)
    except OSError as error:
        from reconciler.ports import TransientError

        # A full disk is no fault of the recipe, and passes.
        raise TransientError(
            f"{error.strerror or type(error).__name__} ({error.filename or 'a file'})",
            needed_for="building an image",
            remedy="see that the builder's machine has room, and that its --work folder is writable for it",
        ) from None


def _serve(source: IO[bytes], work: Path | None, cache: Path | None) -> None:
    """Read the request, build, and answer."""
    from reconciler.controller.bootstrap import make_folder, make_local_builder

    request, spec, options, at = _request(source.readline(_LINE))
    size = request["recipeBytes"]
    packed = source.read(size)
    if len(packed) != size:
        raise _unfit("the recipe's tar is cut off")
    _stop_with(source)
    place = make_folder((work or Path.home() / "builds").absolute(), "building images")
    # What lies here is for the controller's user to read, and says nothing secret.
    place.chmod(0o755)
    chosen = options.model_copy(update={"work": place, "cache": (cache or place / "cache").absolute()})
    made = make_local_builder(chosen, place, place / "artifacts", lambda _sha: at, _told)
    with tempfile.TemporaryDirectory(prefix="recipe-", dir=place) as folder:
        recipe = Path(folder)
        _unpack(packed, recipe)
        built = made.build(request["release"], spec, recipe, request["commit"])
    _open_to_all(built.folder, place)
    answer = {"release": built.release, "name": built.name, "folder": str(built.folder), "digest": built.digest}
    click.echo(json.dumps(answer))


def _told(stage: str, elapsed_s: float) -> None:
    """One line of progress; nobody hearing it is no reason to stop (the end of standard input is)."""
    try:
        sys.stderr.write(f"progress: {stage} {elapsed_s:.1f}\n")
        sys.stderr.flush()
    except OSError:
        pass


def _request(line: bytes) -> tuple[dict[str, Any], ImageSpec, BuilderSettings, datetime]:
    """The request, every part of it checked. TerminalError: anything else."""
    from pydantic import ValidationError

    from reconciler.adapters.builder_process import RECIPE_LIMIT
    from reconciler.controller.settings import BuilderSettings
    from reconciler.model.desired import ImageSpec
    from reconciler.model.scalars import parse_instant

    try:
        found = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(found, dict) or set(found) != _KEYS:
            raise ValueError("other keys")
        release, commit, size = found["release"], found["commit"], found["recipeBytes"]
        if not re.fullmatch(r"v\d{1,9}(\.\d{1,9}){0,2}", release, re.ASCII) or not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError("no release, or no commit")
        if type(size) is not int or not 0 < size <= 2 * RECIPE_LIMIT:
            raise ValueError("no size")
        spec = ImageSpec.model_validate(found["spec"])
        options = BuilderSettings.model_validate({**found["builder"], "command": ()})
        return found, spec, options, parse_instant(found["committedAt"])
    except (ValueError, TypeError, ValidationError):
        raise _unfit("standard input holds no request") from None


def _unfit(wrong: str) -> TerminalError:
    from reconciler.ports import TerminalError

    return TerminalError(
        wrong,
        needed_for="building an image",
        remedy="this command is for the reconciler (builder.command); by hand use `reconciler image build`",
    )


def _stop_with(source: IO[bytes]) -> None:
    """End this build when its standard input ends: who asked is gone, and would only wait for a lock that we hold."""

    def stop(number: int, frame: object) -> NoReturn:
        # Raised in the main thread, so that the stage under way is ended and its scratch folder removed.
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)

    def watch() -> None:
        if not os.read(source.fileno(), 1):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="asker", daemon=True).start()


def _unpack(packed: bytes, to: Path) -> None:
    """The recipe's files, with their modes. The tar is not trusted: plain files and folders below `to` alone."""
    try:
        with tarfile.open(fileobj=BytesIO(packed)) as tar:
            for entry in tar:
                name = Path(entry.name)
                if name.is_absolute() or ".." in name.parts or not (entry.isreg() or entry.isdir()):
                    raise _unfit(f"the recipe's tar holds {entry.name!r}, which is no plain file")
                target = to / name
                if entry.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(entry)
                assert source is not None
                target.write_bytes(source.read())
                target.chmod(0o755 if entry.mode & 0o100 else 0o644)
    except tarfile.TarError:
        raise _unfit("the recipe's tar cannot be read") from None


def _open_to_all(folder: Path, below: Path) -> None:
    """Let the controller's user read the finished artifact: its bytes are about to be published."""
    for path in folder.iterdir():
        path.chmod(0o644)
    for path in (folder, *folder.parents):
        if path == below or below not in path.parents:
            break
        path.chmod(0o755)
