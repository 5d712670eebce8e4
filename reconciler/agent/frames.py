"""Has the frames of a packed image unpacked into a slot, and proven there, by programs beside the agent.

Python 3.10, standard library only: runs as root on a device. Knows which frames there are, what each must be, and up to where
the slot stands without a gap; `unpack` is the program that does the work. An image that has no frames (`protocol.seekable`) is
taken as one. Called by `writer`.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from reconciler.agent.hardware import HardwareError, SlotWriter
from reconciler.agent.orders import DIFFERS, DONE, MISSING, ORDER
from reconciler.protocol import scratch, seekable
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.seekable import Frame

MOST_PROGRAMS = 4
"""Two a processor: while one waits for the disk, the other computes. Each holds 32 MiB."""
STALL_S = 120.0
_POLL_S = 0.005
_END_S = 10.0
_TOP = Path(__file__).parents[2]
"""What Python imports the agent from: a folder, or the application's one file."""
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from reconciler.agent.unpack import main; sys.exit(main(sys.argv[2:]))"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class UnpackError(Exception):
    """The image was not unpacked into the slot: the artifact's fault, or the slot's. One clause for a person."""


class Differs(Exception):
    """A stretch of the slot is not what was written to it. One clause for a person."""


def of(file: BinaryIO, manifest: Manifest) -> tuple[Frame, ...]:
    """The frames of a packed image, each with its sha256 where the manifest names those of all of them. One without, of all of
    it, where the file has no table of such that make up the image. HardwareError: it cannot be read."""
    try:
        found, end = seekable.read(file.fileno()), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise HardwareError(f"the downloaded artifact cannot be read: {error}") from None
    if found is None or sum(frame.length for frame in found) != manifest.image_size:
        return (Frame(0, end, 0, manifest.image_size),)
    if not all(frame.length and frame.place % seekable.BLOCK == 0 for frame in found):
        return (Frame(0, end, 0, manifest.image_size),)
    length, hashes = manifest.frames or (0, ())
    cut = [min(length, manifest.image_size - at) for at in range(0, manifest.image_size, length)] if length else []
    if cut != [frame.length for frame in found] or length > seekable.FRAME_BYTES:
        return found
    return tuple(frame._replace(sha256=bytes.fromhex(sha256)) for frame, sha256 in zip(found, hashes, strict=True))


def fill(file: BinaryIO, writer: SlotWriter, orders: tuple[Frame, ...]) -> Generator[None, None, None]:
    """Fill a slot with what `file` unpacks to; moves the slot's place on as far as it stands without a gap. A frame with a sha256
    is read back from the disk before it stands. Yields often.

    Dropped between two pieces, the programs are killed. Raises UnpackError, Differs, or HardwareError: a program cannot be run,
    or nothing comes of it for `STALL_S`.
    """
    with _Programs(file, writer.descriptor(), orders) as programs:
        done, place, moved_at = dict[int, int](), 0, time.monotonic()
        while (said := programs.said()) is not None:
            done.update(said)
            while place in done:
                place += done.pop(place)
                writer.advance(place)
            if said:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > STALL_S:
                raise HardwareError(f"nothing of the image was unpacked for {STALL_S:.0f} s")
            yield


class _Programs:
    """The programs, with what they are to do in a file from which each takes its next order."""

    def __init__(self, file: BinaryIO, slot: int, orders: tuple[Frame, ...]) -> None:
        self._all: list[subprocess.Popen[bytes]] = []
        self._results, told = os.pipe()
        files = (str(file.fileno()), str(slot))
        try:
            with scratch.nameless_file() as waiting:
                waiting.write(b"".join(ORDER.pack(*frame[:4], bool(frame.sha256), frame.sha256) for frame in orders))
                waiting.seek(0)
                for _ in range(min(MOST_PROGRAMS, 2 * (os.cpu_count() or 1), len(orders))):
                    self._all.append(
                        subprocess.Popen(
                            [sys.executable or "python3", "-ISB", "-c", _PROGRAM, str(_TOP), *files],
                            # One open file for all, so that each order is read once.
                            stdin=waiting,
                            stdout=told,
                            stderr=subprocess.PIPE,
                            pass_fds=(file.fileno(), slot),
                            env=_ENVIRONMENT,
                        )
                    )
        except OSError as error:
            self.__exit__()
            raise HardwareError(f"python3 cannot be run to unpack the image: {error}") from None
        finally:
            os.close(told)

    def said(self) -> dict[int, int] | None:
        """What stands of the slot since it was asked last, place → length, after a short wait; None: it was all."""
        if not select.select([self._results], [], [], _POLL_S)[0]:
            for program in self._all:
                if program.poll():
                    raise self._failure(program)
            return {}
        # Each writes its words whole, and they are shorter than what a pipe takes at once.
        if data := os.read(self._results, 256 * DONE.size):
            return dict(DONE.iter_unpack(data))
        for program in self._all:
            with suppress(subprocess.TimeoutExpired):
                if program.wait(_END_S) == 0:
                    continue
            raise self._failure(program)
        return None

    def _failure(self, program: subprocess.Popen[bytes]) -> Exception:
        """What a program that ended, or does not end, says of it."""
        status = program.poll()
        assert program.stderr is not None
        said = "" if status is None else program.stderr.read(4096).decode("utf-8", "replace").strip()
        words = said.splitlines()[-1][:200] if said else f"the program that unpacks it ended with status {status}"
        kind = {MISSING: HardwareError, DIFFERS: Differs}.get(status or 0, UnpackError)
        return kind(words)

    def __enter__(self) -> _Programs:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._all:
            program.kill()
        for program in self._all:
            with suppress(subprocess.TimeoutExpired):
                program.wait(STALL_S)
            assert program.stderr is not None
            program.stderr.close()
        os.close(self._results)
