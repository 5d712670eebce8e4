"""The software of a finished image: its Debian packages with versions, and a CycloneDX document of them by debsbom.

Read from the image itself, not from the folder that it was made of: what is listed is what a device gets. debsbom runs as
a process of its own on the image's package database alone (dpkg's status, apt's marks), asks no network, and is told the
serial number and the time, so that the same image gives the same document. Not in it: what did not come as a Debian
package (the agent, a program unpacked by setup.sh). Called by `image.pack` and, for `require` and `tools`, by the builder.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from reconciler.image import ext4
from reconciler.image.process import Surroundings, bound, failed, run
from reconciler.ports import TerminalError

STATUS = "var/lib/dpkg/status"
_MARKS = "var/lib/apt/extended_states"
_TIMEOUT_S = 600.0
# debsbom warns of each package without a maintainer, hundreds of lines in the build's log; errors stay.
_PROGRAM = "import logging, sys; logging.disable(logging.WARNING); from debsbom.cli import main; sys.exit(main())"
_VENDORS = ("debian", "ubuntu")
_FIELD = re.compile(r"^(Package|Status|Version|Architecture|Essential): (.*)$", re.MULTILINE)


def require() -> None:
    """TerminalError: debsbom is not installed. Called before a build begins, not after minutes of it."""
    missing = [name for name in ("debsbom", "cyclonedx") if importlib.util.find_spec(name) is None]
    if missing:
        raise TerminalError(
            f"the Python module {missing[0]} is not installed",
            needed_for="the list of software (SBOM) of the image",
            remedy="pip install 'reconciler[image]', which brings debsbom with CycloneDX",
        )


def tools() -> dict[str, str]:
    """What decides the document's bytes beside the image: program → version."""
    require()
    return {name: metadata.version(name) for name in ("debsbom", "cyclonedx-python-lib")}


def installed(status: bytes) -> dict[str, str]:
    """Name → version of each installed package in dpkg's status file, sorted by name.

    A package that is there for a second architecture too is named `NAME:ARCHITECTURE` but for the first one listed.
    """
    found: dict[str, str] = {}
    for name, architecture, version in _stanzas(status):
        found[name if name not in found else f"{name}:{architecture}"] = version
    return dict(sorted(found.items()))


def _stanzas(status: bytes) -> Iterator[tuple[str, str, str]]:
    for stanza in status.decode("utf-8", "replace").split("\n\n"):
        fields = dict(_FIELD.findall(stanza))
        # `install ok installed`, `hold ok installed`: the third word says whether its files are there.
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= set(fields):
            yield fields["Package"], fields.get("Architecture", ""), fields["Version"]


def read_status(where: Surroundings, raw: Path) -> bytes:
    """dpkg's status file out of a raw ext4 image, by debugfs. TerminalError: there is none in it."""
    data = _read(where, raw, STATUS)
    if not data:
        raise failed("artifact", f"the image holds no /{STATUS}, so its packages are not known", where.log)
    return data


def write(
    where: Surroundings, raw: Path, out: Path, *, name: str, version: str, vendor: str, digest: str, epoch: int
) -> bytes:
    """Write the CycloneDX document of the packages in `raw` to `out`, and return dpkg's status file as it was read.

    `name` and `version` are those of the image (family, release), `vendor` the distribution's (`debian`, `ubuntu`), `digest`
    the raw image's (`sha256:…`), `epoch` the document's time in seconds. TerminalError: debsbom is missing or fails.
    """
    require()
    if vendor not in _VENDORS:
        raise TerminalError(
            f"debsbom does not know the distribution {vendor!r}",
            needed_for="the list of software (SBOM) of the image",
            remedy=f"build an image of {' or '.join(_VENDORS)}",
        )
    status = read_status(where, raw)
    root = where.scratch / "sbom-root"
    shutil.rmtree(root, ignore_errors=True)
    for file, data in ((STATUS, status), (_MARKS, _read(where, raw, _MARKS))):
        if data:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(data)
    part = where.scratch / "sbom.cdx.json"
    part.unlink(missing_ok=True)
    generate = {
        "--sbom-type": "cdx",
        "--root": str(root),
        "--distro-name": name,
        "--distro-version": version,
        "--base-distro-vendor": vendor,
        "--cdx-serialnumber": str(uuid.uuid5(uuid.NAMESPACE_OID, digest)),
        "--timestamp": datetime.fromtimestamp(epoch, UTC).isoformat(),
        "--add-meta-data": f"imageDigest={digest}",
        "--out": str(part),
    }
    argv = [sys.executable, "-I", "-c", _PROGRAM, "generate", *(word for pair in generate.items() for word in pair)]
    bounded = Surroundings(where.scratch, where.log, min(where.timeout_s, _TIMEOUT_S))
    done = run(bounded, "sbom", bound(argv))
    shutil.rmtree(root, ignore_errors=True)
    if done.status != 0 or not part.is_file():
        raise failed("artifact", f"debsbom ended with {done.status} ({done.last})", where.log)
    # Across file systems too: scratch and folder need not be one.
    shutil.move(part, out)
    return status


def _read(where: Surroundings, raw: Path, file: str) -> bytes:
    """A file out of the image; nothing where it is absent. debugfs opens the image read-only, without mounting it."""
    copy = where.scratch / "sbom.file"
    copy.unlink(missing_ok=True)
    # Named without a folder: debugfs takes its request apart at spaces.
    done = run(where, "sbom", bound([ext4.tool("debugfs"), "-R", f"dump /{file} {copy.name}", str(raw)]))
    if done.status != 0:
        raise failed("artifact", f"debugfs cannot read the image ({done.last})", where.log)
    data = copy.read_bytes() if copy.is_file() else b""
    copy.unlink(missing_ok=True)
    return data
