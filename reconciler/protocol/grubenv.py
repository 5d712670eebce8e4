"""A GRUB environment block, bytes ↔ variables, read as GRUB reads it.

Python 3.10, standard library only: runs as root on a device. Pure. Written by `image.disk_boot` when a disk is made and
by `agent.grub` afterwards; read by the agent, which must never find another value in a torn file than GRUB does. What
the variables mean: docs/reference/boot.md. Source: GRUB 2.06, `grub-core/lib/envblk.c`.
"""

from __future__ import annotations

from collections.abc import Mapping

SIZE = 1024
"""Bytes of a block."""
SIGNATURE = b"# GRUB Environment Block\n"
_BACKSLASH, _NEWLINE, _HASH = b"\\\n#"


def encode(variables: Mapping[str, str]) -> bytes:
    """A block of 1024 bytes, one `name=value` a line in the order given, filled up with `#`.

    ValueError: it does not fit, or a name or value holds what a line cannot.
    """
    for name, value in variables.items():
        if not name.isidentifier() or not (name + value).isascii() or not (value.isprintable() and "\\" not in value):
            raise ValueError(f"{name}={value!r} cannot stand in a GRUB environment")
    data = SIGNATURE + "".join(f"{name}={value}\n" for name, value in variables.items()).encode("ascii")
    if len(data) > SIZE:
        raise ValueError(f"{len(data)} bytes do not fit into a GRUB environment of {SIZE}")
    return data + b"#" * (SIZE - len(data))


def decode(data: bytes) -> dict[str, str]:
    """The variables that GRUB takes from a file with this content; none where it refuses the file.

    A block of any length is read, and up to the first thing that is broken, as GRUB does it. Bytes that are no ASCII
    become `?`.
    """
    found: dict[str, str] = {}
    # GRUB compares the length with the signature and the NUL behind it.
    if len(data) <= len(SIGNATURE) or not data.startswith(SIGNATURE):
        return found
    at, end = len(SIGNATURE), len(data)
    while at < end:
        if data[at] != _HASH:
            equals = data.find(b"=", at)
            stop = _line_end(data, equals + 1)
            if equals < 0 or stop >= end:
                break
            # The last line of a name counts: GRUB sets one after the other. Its texts end at a NUL.
            found[_text(data[at:equals])] = _text(_plain(data[equals + 1 : stop]))
            at = stop
        at = _line_end(data, at) + 1
    return found


def _line_end(data: bytes, at: int) -> int:
    """Where the line ends that `at` is in; a newline behind a backslash does not end it. Beyond the data: it does not end."""
    while at < len(data) and data[at] != _NEWLINE:
        at += 2 if data[at] == _BACKSLASH else 1
    return at


def _plain(value: bytes) -> bytes:
    """A value without the backslashes that protect what follows them."""
    plain, protected = bytearray(), False
    for byte in value:
        protected = byte == _BACKSLASH and not protected
        if not protected:
            plain.append(byte)
    return bytes(plain)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("ascii", "replace").replace("\ufffd", "?")
