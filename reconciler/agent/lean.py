"""Keeps out of memory what the standard library imports for others: the agent has to be small while it does nothing.

Python 3.10, standard library only: runs as root on a device. A deferred module is there as for anybody, and is read when
something of it is first used. (`importlib.util.LazyLoader` reads it at the next `import` of it already.) Decides nothing else.
Called by the application's `__main__`, before any other import. What it saves is measured by tests/benchmarks/idling.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any

SELDOM_USED = ("inspect", "ipaddress", "random", "locale", "calendar", "fnmatch", "ntpath", "bz2", "lzma")
"""What is used of them here, while all is well: nothing. They are imported by dataclasses (for classes without a docstring),
urllib.parse (for an address with an IPv6 host), email, subprocess (for text), pathlib, and shutil."""
_LOCK = RLock()


class Deferred(ModuleType):
    """A module that was not read yet. It is asked for an attribute that it does not have: it is read, and is like any other."""

    def __getattr__(self, name: str) -> Any:
        # The import system looks for such names, of which a module has all that it ever gets.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _LOCK:
            spec = self.__spec__
            if type(self) is Deferred and spec is not None and spec.loader is not None and not _is_read(self):
                self.__dict__["__deferred__"] = False
                spec.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]
        return object.__getattribute__(self, name)


def _is_read(module: ModuleType) -> bool:
    """Whether it is being read: what it imports may import it too."""
    return "__deferred__" in module.__dict__


def defer(names: Iterable[str] = SELDOM_USED) -> None:
    """Have these modules read when they are first used. One that is there already, or nowhere, is left as it is."""
    for name in names:
        spec = None if name in sys.modules else find_spec(name)
        if spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            module.__class__ = Deferred
            sys.modules[name] = module
