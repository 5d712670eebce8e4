"""Parses the documents of a large fleet in several processes, since one processor reads some 30,000 documents a second.

Decides who parses what, and brings it together: the same documents as `parse` would give one after another, for `parse` goes by
nothing but a path and its bytes. A process is a fork that holds the bytes already, hands back what it made, and ends; whatever goes
wrong with one, its share is missing here and the caller parses it by itself. Called by `repo.load.load_folder`.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from reconciler.repo.parse import Parsed, parse

FEWEST = 2_000
"""Documents below which the start of a process costs more than it saves."""

_MOST_PROCESSES = 4
_ONCE = 1 << 20
# A forked process also packs its documents, and the first one unpacks them: together two fifths of parsing them.
_SHARE_OF_FORK, _SHARE_OF_FIRST = 8, 10


class Task(NamedTuple):
    """A document to parse."""

    path: str
    blob: str
    data: bytes


class Parsing(Protocol):
    """`parse.parse`, or a twin of it."""

    def __call__(self, path: str, blob: str, data: bytes) -> Parsed: ...


def processes(tasks: int) -> int:
    """How many processes shall parse so many documents: 1 where a fork is no gain, or not safe."""
    # Other threads, a library's own too, might hold a lock that no one in the fork would ever release.
    if tasks < FEWEST or sys.platform != "linux" or _threads() != 1:
        return 1
    return min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))


def _threads() -> int:
    """Threads of this process as the kernel counts them; 0 where it does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def parse_divided(tasks: Sequence[Task], number: int, parsing: Parsing = parse) -> list[Parsed]:
    """The documents of `tasks`, parsed by `number` processes of which this is one. A share that got lost is left out.

    Raises nothing of its own: where no process can be started, this one parses less, and the rest is left to the caller.
    """
    shares = _shares(len(tasks), number)
    forks: list[tuple[int, int]] = []
    try:
        for first, last in shares[1:]:
            fork = _forked(tasks[first:last], parsing)
            if fork is None:
                break
            forks.append(fork)
        own = [parsing(*task) for task in tasks[: shares[0][1]]]
        for (first, last), (_, pipe) in zip(shares[1:], forks, strict=False):
            own += _unpacked(tasks[first:last], _all_of(pipe))
    finally:
        for process, pipe in forks:
            os.close(pipe)
            _end(process)
    return own


def _shares(tasks: int, number: int) -> list[tuple[int, int]]:
    """Who parses from where to where; the first share is this process's own."""
    parts = _SHARE_OF_FIRST + _SHARE_OF_FORK * (number - 1)
    ends = [tasks * (_SHARE_OF_FIRST + _SHARE_OF_FORK * n) // parts for n in range(number)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _forked(tasks: Sequence[Task], parsing: Parsing) -> tuple[int, int] | None:
    """A process that parses `tasks`: its number, and where to read what it made. None where there can be none."""
    try:
        reading, writing = os.pipe()
    except OSError:
        return None
    try:
        process = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return None
    if process == 0:
        # Nothing of this process's own ends may run here: no exit function, no buffer that is flushed twice.
        try:
            os.close(reading)
            with open(writing, "wb", buffering=0) as pipe:
                _write(pipe, _packed([parsing(*task) for task in tasks]))
        finally:
            os._exit(0)
    os.close(writing)
    return process, reading


def _write(pipe: io.RawIOBase | io.FileIO, packed: bytes) -> None:
    rest = memoryview(packed)
    while rest:
        rest = rest[pipe.write(rest) or 0 :]


def _all_of(pipe: int) -> bytes:
    """Everything until the other side closes."""
    parts = []
    while part := os.read(pipe, _ONCE):
        parts.append(part)
    return b"".join(parts)


def _end(process: int) -> None:
    """A process that is done, or that nobody listens to any more."""
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except OSError:  # somebody else has waited for it
        pass


class _Reductions(dict[type, Any]):
    """How a class is packed: models by what they hold, without a call of their own methods."""

    def __missing__(self, kind: type) -> Any:
        if not issubclass(kind, BaseModel):
            raise KeyError(kind)
        self[kind] = _parts
        return _parts


def _parts(model: BaseModel) -> tuple[Any, ...]:
    return _model, (model.__class__, model.__dict__, model.__pydantic_fields_set__)


def _model(kind: type[BaseModel], held: dict[str, Any], given: set[str]) -> BaseModel:
    """A model as validation left it in the process that parsed it."""
    model = kind.__new__(kind)
    put = object.__setattr__
    put(model, "__dict__", held)
    put(model, "__pydantic_fields_set__", given)
    put(model, "__pydantic_extra__", None)
    put(model, "__pydantic_private__", None)
    return model


def _packed(documents: Sequence[Parsed]) -> bytes:
    """Documents as bytes: only name and spec of those that are in order, for the rest is known where they go."""
    rows = [d if d.spec is None or d.problems else (d.kind, d.name, d.spec) for d in documents]
    buffer = io.BytesIO()
    packer = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    packer.dispatch_table = _Reductions()
    packer.dump(rows)
    return buffer.getvalue()


def _unpacked(tasks: Sequence[Task], packed: bytes) -> list[Parsed]:
    """What `_packed` packed for these tasks; nothing where the process did not finish."""
    try:
        rows = pickle.loads(packed)  # noqa: S301  our own fork wrote it
    except (EOFError, pickle.UnpicklingError):
        return []
    made = []
    for task, row in zip(tasks, rows, strict=True):
        made.append(row if row.__class__ is Parsed else Parsed(task.path, task.blob, *row))
    return made
