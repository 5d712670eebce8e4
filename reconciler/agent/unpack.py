"""A program of its own: unpacks frames of a packed image into a slot, past the page cache, and reads them back. `agent.frames`
begins it.

Python 3.10, standard library and zstd's library: runs as root on a device, several at once. It is not the agent, so that what it
takes of memory is given back, and that a fault in the library ends nothing else. It is given open files and decides nothing:
an order names a stretch of the packed file, where it belongs, how long it has to be, and its sha256. A frame that fits into
memory is unpacked there at once, without a window; blocks of zeros are not written. What was written is read back from the disk,
zeros too, and hashed. Of the library it uses what is stable since zstd 1.4.0, but for the wish to leave zstd's own checksum unread,
which may go unheard.

    stdin     orders (`orders.ORDER`): start and end in the packed file, place and length in the image, whether to read it back,
              and its sha256. A file that several share: each takes the next
    stdout    `orders.DONE` for each stretch of the slot that stands: place and length; an order may take several
    stderr    what went wrong, one line
    status    0: no order is left. PACKING: what is packed cannot be unpacked. WRITING: the slot cannot be written or read.
              DIFFERS: what was read back has another sha256. MISSING: zstd's library is not there
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import sys
from collections.abc import Iterator, Sequence

from reconciler.agent.orders import DIFFERS, DONE, MISSING, ORDER, PACKING, WRITING

LIBRARY = "libzstd.so.1"
BLOCK = 4096
MOST_BYTES = 32 * 1024 * 1024
"""Held in memory of what was unpacked: a frame of ours."""
_PIECE = 8 * 1024 * 1024
"""Written at once, so that others' turn comes at the disk."""
_SEEN_BYTES = 512 * 1024
"""Read back at once: it is hashed while it lies in the processor's own cache, and that takes half the time."""
_WORD = 8
_ZEROS = bytes(BLOCK)
# ZSTD_d_forceIgnoreChecksum. The digest of what is read back from the slot proves more, and this is a twelfth of the time.
_CHECKSUM_UNREAD = (1002, 1)
# ZSTD_reset_session_only.
_SESSION = 1


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer of zstd.h."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("place", ctypes.c_size_t))


class PackingError(Exception):
    """What is packed cannot be unpacked; a clause for a person."""


class DiffersError(Exception):
    """The disk does not give back what was ordered; a clause for a person."""


class Unpacker:
    """Unpacks what it is ordered to from one open file into another."""

    def __init__(self, zstd: ctypes.CDLL, packed: int, slot: int) -> None:
        """PackingError: there is nothing to unpack. OSError: it cannot be mapped, or the slot not opened."""
        if os.fstat(packed).st_size == 0:
            raise PackingError("the packed image is empty")
        self._zstd, self._context = zstd, zstd.ZSTD_createDCtx()
        zstd.ZSTD_DCtx_setParameter(self._context, *_CHECKSUM_UNREAD)
        # Private and writable: ctypes takes the address of nothing else. No byte of it is ever written.
        self._packed = mmap.mmap(packed, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        self._packed_at = ctypes.addressof(ctypes.c_char.from_buffer(self._packed))
        self._out = mmap.mmap(-1, MOST_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:  # noqa: SIM105 - not for this alone is contextlib read, four times
            self._out.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            pass
        self._out_at = ctypes.addressof(ctypes.c_char.from_buffer(self._out))
        self._bytes = memoryview(self._out)
        self._seen = memoryview(mmap.mmap(-1, _SEEN_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._words = self._bytes.cast("Q")
        # Opened anew: whether it goes past the page cache is each one's own to say.
        self._slot = os.open(f"/proc/self/fd/{slot}", os.O_RDWR | os.O_CLOEXEC)
        self._direct = True
        self._past_the_cache(True)

    def do(
        self, start: int, end: int, place: int, length: int, proves: bool, sha256: bytes
    ) -> Iterator[tuple[int, int]]:
        """Fill `length` bytes of the slot from `place`, a multiple of 4096, with what `start` to `end` of the packed file
        unpack to; yields (place, length) of what stands. With `proves`, all of it is read back once it is written.

        PackingError; DiffersError; OSError: the slot cannot be written or read.
        """
        if proves and length > MOST_BYTES:
            raise PackingError(f"a frame has {length} bytes, and {MOST_BYTES} can be proven at once")
        for at, count in self._unpacked(start, end, place, length):
            self._write(at, count)
            if proves and self._read_back(at, count) != sha256:
                raise DiffersError(f"bytes {at} to {at + count} are not what was written")
            yield at, count

    def _unpacked(self, start: int, end: int, place: int, length: int) -> Iterator[tuple[int, int]]:
        """Unpack into memory; (place, length) of what lies there now."""
        if end > len(self._packed):
            raise PackingError("the packed image is cut short")
        given, filled, left = _Buffer(self._packed_at + start, end - start, 0), 0, True
        self._zstd.ZSTD_DCtx_reset(self._context, _SESSION)
        while left:
            # One byte more than may come, so that what is too long is seen.
            room = min(MOST_BYTES, length - filled + 1)
            count, left = self._fill(given, room)
            if count > length - filled:
                raise PackingError(f"the image unpacks to more than {place + length} bytes")
            if not left and filled + count < length:
                raise PackingError(f"the image unpacks to {place + filled + count} bytes, not to {place + length}")
            if count:
                yield place + filled, count
            filled += count

    def _fill(self, given: _Buffer, room: int) -> tuple[int, bool]:
        """Unpack until `room` bytes are there, or all is unpacked: how many there are, and whether more may come."""
        taken, left = _Buffer(self._out_at, room, 0), 1
        while left or given.place < given.size:
            if taken.place == room:
                return room, True
            before = taken.place, given.place
            left = self._zstd.ZSTD_decompressStream(self._context, ctypes.byref(taken), ctypes.byref(given))
            if self._zstd.ZSTD_isError(left):
                raise PackingError(self._zstd.ZSTD_getErrorName(left).decode())
            if (taken.place, given.place) == before:
                raise PackingError("the packed image is cut short")
        return int(taken.place), False

    def _write(self, place: int, count: int) -> None:
        """Write what was unpacked, but for its blocks of zeros."""
        for at, end in self._stretches(count):
            while at < end:
                length = min((end - at) // BLOCK * BLOCK, _PIECE)
                if length == 0:
                    # The last block of an image may be short, and what goes past the page cache may not.
                    length = end - at
                    self._past_the_cache(False)
                try:
                    at += os.pwrite(self._slot, self._bytes[at : at + length], place + at)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._direct:
                        raise
                    self._past_the_cache(False)

    def _read_back(self, place: int, count: int) -> bytes:
        """The sha256 of what the disk gives back."""
        if not self._direct:
            os.fdatasync(self._slot)
            os.posix_fadvise(self._slot, 0, 0, os.POSIX_FADV_DONTNEED)
        digest, at = hashlib.sha256(), 0
        while at < count:
            # Whole blocks, also where the image ends within one. A file ends there too.
            wanted = min(len(self._seen), -(-(count - at) // BLOCK) * BLOCK)
            got = os.preadv(self._slot, [self._seen[:wanted]], place + at)
            if got <= 0:
                break
            digest.update(self._seen[: min(got, count - at)])
            at += got
        return digest.digest()

    def _past_the_cache(self, wanted: bool) -> None:
        """Ask for writes and reads past the page cache, or for plain ones, from here on."""
        try:
            fcntl.fcntl(self._slot, fcntl.F_SETFL, os.O_DIRECT if wanted else 0)
            self._direct = wanted
        except OSError:
            self._direct = False

    def _stretches(self, count: int) -> Iterator[tuple[int, int]]:
        """(start, end) of the stretches of whole blocks that hold anything. A short last block does: a hole there is no gain."""
        words, data, stride, start = self._words, self._bytes, BLOCK // _WORD, -1
        for at in range(0, count // BLOCK * BLOCK, BLOCK):
            word = at // _WORD
            # Its first and last word tell it of most blocks.
            if words[word] or words[word + stride - 1] or data[at : at + BLOCK].tobytes() != _ZEROS:
                if start < 0:
                    start = at
            elif start >= 0:
                yield start, at
                start = -1
        whole = count // BLOCK * BLOCK
        if start >= 0 or whole < count:
            yield (start if start >= 0 else whole), count


def library() -> ctypes.CDLL:
    """zstd's library. OSError: it is not there."""
    zstd = ctypes.CDLL(LIBRARY)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    for name, result, arguments in (
        ("createDCtx", pointer, ()),
        ("DCtx_setParameter", size, (pointer, ctypes.c_int, ctypes.c_int)),
        ("DCtx_reset", size, (pointer, ctypes.c_int)),
        ("decompressStream", size, (pointer, pointer, pointer)),
        ("isError", ctypes.c_uint, (size,)),
        ("getErrorName", ctypes.c_char_p, (size,)),
    ):
        function = getattr(zstd, f"ZSTD_{name}")
        function.restype, function.argtypes = result, arguments
    return zstd


def main(arguments: Sequence[str]) -> int:
    """`PACKED SLOT`: the numbers of two open files."""
    try:
        zstd = library()
    except OSError:
        return _ended(MISSING, f"{LIBRARY} is not installed, and images are unpacked with it (Debian package libzstd1)")
    try:
        unpacker = Unpacker(zstd, *(int(number) for number in arguments))
        while len(order := os.read(0, ORDER.size)) == ORDER.size:
            for place, length in unpacker.do(*ORDER.unpack(order)):
                os.write(1, DONE.pack(place, length))
    except PackingError as error:
        return _ended(PACKING, str(error))
    except DiffersError as error:
        return _ended(DIFFERS, str(error))
    except OSError as error:
        return _ended(WRITING, error.strerror or str(error))
    return 0


def _ended(status: int, words: str) -> int:
    print(words, file=sys.stderr)
    return status
