"""SHA256SUMS, strictly: `<64 hex>  <name>` a line, one line a file, names without folders.

Python 3.10, standard library only: runs as root on a device. Pure. The file is what a release key signs; its lines
bind every other file of an artifact. Written so that `sha256sum -c` and systemd-sysupdate read it too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from reconciler.protocol.canonical import Malformed

MAX_SUMS_BYTES = 64 * 1024
MAX_FILES = 256
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][A-Za-z0-9._+-]{0,199})")


class SumsError(Malformed):
    """Bytes are not a SHA256SUMS file as we write it."""


def format_sums(digests: Mapping[str, str]) -> bytes:
    """Name → 64 hex digits, as the file's bytes, sorted by name. SumsError: a name or digest that could not be read
    back."""
    data = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode("utf-8")
    if parse_sums(data) != dict(digests):
        raise SumsError("a name or digest cannot be written to SHA256SUMS")
    return data


def parse_sums(data: bytes) -> dict[str, str]:
    """The file's bytes → name → 64 hex digits. Raises SumsError, which names the line."""
    if len(data) > MAX_SUMS_BYTES:
        raise SumsError(f"SHA256SUMS has {len(data)} bytes; at most {MAX_SUMS_BYTES} are read")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise SumsError("SHA256SUMS is not ASCII") from None
    if not text.endswith("\n"):
        raise SumsError("SHA256SUMS is empty or its last line is not finished")
    found: dict[str, str] = {}
    for number, line in enumerate(text[:-1].split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise SumsError(f"SHA256SUMS line {number} is {line[:80]!r}, not 64 hexadecimal digits, two spaces, a name")
        digest, name = match.groups()
        if name in found:
            raise SumsError(f"SHA256SUMS line {number} names {name!r} again")
        found[name] = digest
        if len(found) > MAX_FILES:
            raise SumsError(f"SHA256SUMS names more than {MAX_FILES} files")
    return found
