"""Which paths of a fleet repo are looked at, which are refused, and how a path is shown. Pure.

A fleet repo may hold anything beside its documents; but a link or an odd name where a document is expected is refused, and a
document where none is read is named, since it would silently count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from reconciler.repo.documents import FOLDERS, KINDS, SUFFIXES

_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\\\]")
_FLEET = re.compile(rb"""^[\s{,]*["']?apiVersion["']?\s*:\s*["']?fleet/v""", re.MULTILINE)
_KIND = re.compile(rf"""^[\s{{,]*["']?kind["']?\s*:\s*["']?({"|".join(KINDS)})\b""".encode(), re.MULTILINE)
# What nearly every path is: nothing below can be wrong with it.
_ORDINARY = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DEEPEST = 3


def looked_at(path: str) -> bool:
    """Whether a path that holds no document is looked at all: a place for documents itself, or a file near the top."""
    if path in FOLDERS or path.startswith("/") or ".." in path.split("/"):
        return True
    if path.startswith(".") or "/." in path:
        return False
    return path.count("/") < _DEEPEST and (path.endswith(SUFFIXES) or path.rpartition("/")[0] in FOLDERS)


def path_fault(path: str, mode: str, kind: str | None) -> str | None:
    """Why a path cannot be loaded, or None. `mode` is git's."""
    if mode == "100644" and kind is not None and _ORDINARY.fullmatch(path):
        return None
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "." in parts or "" in parts:
        return "the path leads out of the fleet repo; name files below its top only"
    if kind is None and path not in FOLDERS:
        return None
    if mode == "120000":
        return "is a symbolic link, and links are not followed; put the file itself here"
    if mode == "160000":
        return "is a submodule, and submodules are not read; put the files themselves here"
    if path in FOLDERS:
        return f"is a file, where a folder of {FOLDERS[path]} documents is expected; rename it"
    if not mode.startswith("100"):
        return "is not a regular file; put a file here"
    if _ODD.search(path):
        return "the file's name has a control character, a backslash or bytes that are not UTF-8; rename it"
    return None


def peek(path: str, data: Callable[[], bytes]) -> str | None:
    """A warning for a file that looks like a fleet document and is in no place where one is read."""
    head = data()[:4096]
    if not _FLEET.search(head):
        return None
    kind = _KIND.search(head)
    if kind is None:
        return None
    name = kind.group(1).decode()
    home = next((f"{folder}/" for folder, of in FOLDERS.items() if of == name), f"{name.lower()}.yaml at the top")
    if path.rpartition("/")[0] + "/" == home:
        return (
            f"looks like {_a(name)} document, and is not read: its name does not end in .yaml; rename it, or remove it"
        )
    return f"looks like {_a(name)} document, and is not read here; move it to {home}, or remove it"


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "AI" else f"a {kind}"


def shown(path: str) -> str:
    """A path as it can be printed on one line."""
    return _ODD.sub(lambda found: found.group().encode("unicode_escape").decode(), path)
