"""A seed on a medium: an ISO 9660 file labelled CIDATA, for a first boot from an install disk that has no seed.

Decides what lies on it; an enrolment goes into its folder `enrol`. The image copies both to the data partition once
(`/usr/local/lib/edge/configure prepare`), and never looks at such a medium again. The same inputs give the same bytes.
Called by `reconciler site render --iso`. Needs xorriso; no root, no loop device.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from reconciler.image import process
from reconciler.image.disk_boot import must
from reconciler.image.enrolment import Enrolment
from reconciler.ports import TerminalError

LABEL = "CIDATA"
ENROLMENT = "enrol"
# Nobody reads it; a day that is the same for all makes the bytes so. What tells seeds apart is their instance id.
_DATE = "2020010100000000"
_PURPOSE = "making a seed medium"


def make_medium(out: Path, seed: Mapping[str, bytes], enrolment: Enrolment | None = None) -> None:
    """Write the medium to `out`, readable by its owner alone: it may hold secrets.

    TerminalError: xorriso is missing or failed, or `out` cannot be written. What stood there is replaced whole or not at all.
    """
    xorriso = process.program("xorriso", "xorriso", _PURPOSE)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise _unwritable(out, error) from None
    try:
        tree, made = scratch / "tree", scratch / "medium.iso"
        folders = {tree: seed, **({tree / ENROLMENT: enrolment.files} if enrolment is not None else {})}
        for folder, files in folders.items():
            folder.mkdir(mode=0o700)
            for name, data in files.items():
                with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(data)
        # fmt: off
        argv = [
            xorriso, "-no_rc", "-as", "mkisofs", "-quiet", "-volid", LABEL, "-joliet", "-rock", "-uid", "0", "-gid", "0",
            "--set_all_file_dates", _DATE, f"--modification-date={_DATE}", "-o", made.name, tree.name,
        ]
        # fmt: on
        made.touch(mode=0o600)
        must(argv, {"PATH": process.PATH, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "1577836800"}, scratch)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(out)
    except OSError as error:
        raise _unwritable(out, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> TerminalError:
    return TerminalError(
        f"{out} cannot be written: {error.strerror}",
        needed_for=_PURPOSE,
        remedy="name another file, in a folder that exists",
    )
