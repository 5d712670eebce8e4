"""What programs did to files, from strace: every call that may change one, of all processes and threads, in order.

Knows calls and descriptors; what a change means on a disk is `disk`'s to know. A call that may change a file in a way that is
not understood here is an error, never left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "open openat ?openat2 creat close ?close_range dup dup2 dup3 fcntl lseek write pwrite64 writev pwritev ?pwritev2 ftruncate"
    " truncate fallocate rename renameat ?renameat2 unlink unlinkat rmdir link linkat symlink symlinkat mkdir mkdirat mknod"
    " mknodat fsync fdatasync sync syncfs sync_file_range clone ?clone3 fork vfork execve mmap sendfile copy_file_range splice"
    " chdir fchdir"
)
STARTS = frozenset(("clone", "clone3", "fork", "vfork"))
SYNCS = frozenset(("fsync", "fdatasync", "sync", "syncfs"))
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)")
_UNFINISHED = re.compile(r"(\d+) +(\w+)\((.*?),? ?<unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>,? ?(.*)\) += (-?\d+|0x[0-9a-f]+|\?)")


def traced(log: Path, command: Sequence[str], strace: str = "strace") -> list[str]:
    """The command that runs `command` and writes what it does to `log`."""
    names = ",".join(CALLS.split())
    # Whole buffers, in hexadecimal digits; only the calls named stop the program.
    options = ["-f", "--seccomp-bpf", "-qq", "-xx", "-s", str(1 << 26), "-e", f"trace={names}", "-e", "signal=none"]
    return [strace, *options, "-o", str(log), "--", *command]


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `result` is None where it only begins here: it is seen again when it ends."""

    process: int
    name: str
    arguments: tuple[str, ...]
    result: int | None


def read(log: Path) -> Iterator[Call]:
    """The calls of a log. Beginnings are told apart from ends only of what syncs, and of what starts a process."""
    begun: dict[int, str] = {}
    with open(log, encoding="ascii") as lines:
        for line in lines:
            if found := _UNFINISHED.match(line):
                process, name, arguments = int(found[1]), found[2], found[3]
                begun[process] = arguments
                if name in SYNCS | STARTS:
                    yield Call(process, name, _split(arguments), None)
            elif found := _RESUMED.match(line):
                process, arguments = int(found[1]), begun.pop(int(found[1]))
                whole = ", ".join(part for part in (arguments, found[3]) if part)
                yield Call(process, found[2], _split(whole), _number(found[4]))
            elif found := _LINE.match(line):
                yield Call(int(found[1]), found[2], _split(found[3]), _number(found[4]))
            elif "+++" not in line and "--- " not in line:
                raise ValueError(f"strace wrote what is not understood: {line[:200]}")


def _number(text: str) -> int:
    return -1 if text == "?" else int(text, 0)


def _split(arguments: str) -> tuple[str, ...]:
    """Strings are hexadecimal digits alone, so that only brackets hold a comma that divides no arguments."""
    if "{" not in arguments and "[" not in arguments:
        return tuple(arguments.split(", "))
    parts, depth, begin = [], 0, 0
    for at, sign in enumerate(arguments):
        depth += (sign in "{[") - (sign in "}]")
        if sign == "," and depth == 0:
            parts.append(arguments[begin:at])
            begin = at + 2
    return (*parts, arguments[begin:])


def text(argument: str) -> bytes:
    """The bytes of a string argument."""
    if not argument.startswith('"') or not argument.endswith('"'):
        raise ValueError(f"strace shortened a string: {argument[-40:]}")
    return bytes.fromhex(argument[1:-1].replace("\\x", ""))


def path(argument: str) -> str:
    return os.fsdecode(text(argument))


@dataclass(slots=True)
class Open:
    """An open file description: what processes share that inherited it. `node` is what `disk` knows of it; None: nothing."""

    path: str
    flags: frozenset[str]
    node: object | None
    at: int = 0


class Descriptors:
    """Which process has what open by which number."""

    def __init__(self) -> None:
        self._tables: dict[int, dict[int, tuple[Open, bool]]] = {}
        self._starting: dict[int, Call] = {}
        self._folders: dict[int, str] = {}

    def follow(self, call: Call) -> None:
        """Keep step with a call that changes numbers alone. To be told of every call, before it is looked at."""
        if call.process not in self._tables:
            parent = next(iter(self._starting), None)
            self._start(call.process, parent, self._starting[parent] if parent is not None else None)
        if call.name in STARTS:
            if call.result is None:
                self._starting[call.process] = call
            else:
                self._starting.pop(call.process, None)
                if call.result > 0 and call.result not in self._tables:
                    self._start(call.result, call.process, call)
        table, result = self._tables[call.process], call.result if call.result is not None else -1
        if result < 0 or call.name in STARTS:
            return
        match call.name:
            case "close":
                table.pop(int(call.arguments[0]), None)
            case "close_range":
                for number in [n for n in table if int(call.arguments[0]) <= n <= int(call.arguments[1])]:
                    del table[number]
            case "dup" | "dup2" | "dup3":
                self._copy(table, int(call.arguments[0]), result, "O_CLOEXEC" in call.arguments[-1])
            case "fcntl" if call.arguments[1].startswith("F_DUPFD"):
                self._copy(table, int(call.arguments[0]), result, call.arguments[1] == "F_DUPFD_CLOEXEC")
            case "execve":
                self._tables[call.process] = {n: kept for n, kept in table.items() if not kept[1]}
            case _:
                pass

    def _start(self, child: int, parent: int | None, how: Call | None) -> None:
        table = self._tables.get(parent, {}) if parent is not None else {}
        shares = how is not None and "CLONE_FILES" in " ".join(how.arguments)
        self._tables[child] = table if shares else dict(table)

    @staticmethod
    def _copy(table: dict[int, tuple[Open, bool]], old: int, new: int, closes: bool) -> None:
        table.pop(new, None) if old not in table else table.__setitem__(new, (table[old][0], closes))

    def opened(self, call: Call, number: int, found: Open) -> None:
        self._tables[call.process][number] = found, "O_CLOEXEC" in found.flags

    def get(self, process: int, argument: str) -> Open | None:
        """What is open by a number; None: nothing that an open call has opened."""
        found = self._tables[process].get(int(argument)) if argument.lstrip("-").isdigit() else None
        return found[0] if found else None

    def place(self, call: Call, folder: str | None, name: str) -> str:
        """The absolute path of a name that a call gives, `folder` being its descriptor argument."""
        said = path(name)
        if said.startswith("/"):
            return os.path.normpath(said)
        if folder in (None, "AT_FDCWD"):
            return ""
        found = self.get(call.process, str(folder))
        return os.path.normpath(f"{found.path}/{said}") if found and found.path else ""
