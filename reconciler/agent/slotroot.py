"""The files of an image whose slot is a file: unpacked by `debugfs` of e2fsprogs, without mounting and without root.

Python 3.10, standard library only: runs as root on a device. Serves the directory hardware; a machine that runs from
its slot just looks below `/`. Unpacked trees are kept by the image's digest and may be shared by many devices in one
process.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

TIMEOUT_S = 600
_MAGIC_AT = 0x438


def is_bootable(image: Path) -> bool:
    """Whether the image holds an ext4 superblock: what a boot loader finds before it gives up."""
    try:
        with open(image, "rb") as file:
            file.seek(_MAGIC_AT)
            return file.read(2) == b"\x53\xef"
    except OSError:
        return False


def unpack(image: Path, digest: str, cache: Path) -> Path:
    """Folder with the image's files, unpacked below `cache` once a digest. OSError: debugfs is missing or failed."""
    folder = cache / digest.replace("sha256:", "")
    if folder.is_dir():
        return folder
    # Imported once in a slot's life: an agent at rest has to be small.
    import shutil
    import tempfile

    program = shutil.which("debugfs", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise OSError("debugfs is not installed (apt-get install e2fsprogs)")
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="unpack-", dir=cache))
    try:
        # A fixed name in a working folder of its own: no text from outside enters debugfs's command language.
        (temporary / "out").mkdir()
        subprocess.run(
            [program, "-R", "rdump / out", os.path.abspath(image)],
            cwd=temporary,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            timeout=TIMEOUT_S,
            check=True,
        )
        # Another device with the same image may have been faster.
        with suppress(OSError):
            os.rename(temporary / "out", folder)
    except subprocess.SubprocessError as error:
        raise OSError(f"debugfs could not read {image}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not folder.is_dir():
        raise OSError(f"{image} could not be unpacked below {cache}")
    return folder
