"""Modules that an agent at rest does not read: there for whoever uses them, and not before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from reconciler.image import agent_app

PARTS = "loop control notify device opening transport clock grub activation containers partitioned partitions seed look judge"


def _python(code: str, *paths: str) -> str:
    """What a Python of its own prints."""
    words = [sys.executable, "-ISB", "-c", f"import sys; sys.path[:0] = {list(paths)!r}\n{code}"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def test_what_a_device_with_partitions_imports_reads_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_app.application())
    code = f"""
from reconciler.agent import lean
lean.defer()
import reconciler.agent.main
from reconciler.agent import {", ".join(PARTS.split())}
read = [name for name in lean.SELDOM_USED if not isinstance(sys.modules.get(name, ""), (str, lean.Deferred))]
print(read, [name for name in ("ast", "tempfile", "shutil", "argparse", "logging") if name in sys.modules])
"""
    assert _python(code, str(tmp_path / "agent.pyz")) == "[] []"


def test_the_application_defers_them_before_anything_else() -> None:
    assert agent_app._MAIN.index("lean.defer()") < agent_app._MAIN.index("agent.main")


def test_a_deferred_module_is_read_when_it_is_used_and_is_an_ordinary_one_then() -> None:
    code = """
from reconciler.agent import lean
lean.defer(["calendar", "sys", "no_such_module"])
import calendar, types
assert type(calendar) is lean.Deferred and "no_such_module" not in sys.modules
assert not hasattr(calendar, "__path__") and type(calendar) is lean.Deferred
from calendar import monthrange
assert type(calendar) is types.ModuleType
try:
    calendar.nothing
except AttributeError:
    print(monthrange(2028, 2)[1])
"""
    assert _python(code, str(Path(__file__).parents[2])) == "29"


def test_two_threads_that_use_one_first_both_get_it_whole() -> None:
    code = """
from reconciler.agent import lean
lean.defer(["inspect"])
import inspect, threading
found, at_once = [], threading.Barrier(8)
def use():
    at_once.wait()
    found.append(inspect.signature(use))
threads = [threading.Thread(target=use) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(len(found))
"""
    assert _python(code, str(Path(__file__).parents[2])) == "8"
