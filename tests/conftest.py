"""For all tests: in continuous integration the same examples every time, elsewhere new ones at each run; and what keeps a run
of thousands of tests in one process short."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No deadline for an example: on a busy machine it fails tests of code that is right.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")

TESTS = Path(__file__).parent
COUNTED = frozenset({"repo", "planner", "protocol", "contract"})
"""Tests that prove the pure parts by themselves: `make test` counts the branches of those in these alone. Elsewhere the counting
would cost a quarter of the time, for branches that have been counted already."""

TOGETHER = {
    "tests/browser/": "browser",
    "tests/e2e/test_demo.py": "demo",
    "tests/fleet/test_boot.py": "golden",
    "tests/fleet/test_configure.py": "golden",
    "tests/fleet/test_setup_again.py": "golden",
    "tests/house/test_imports.py": "parsed",
    "tests/house/test_sizes.py": "parsed",
}
"""Files, and a folder, whose tests go on where the one before ended, or share what takes long to make: by one worker, in order."""

LONGEST = ("e2e", "fleet", "browser", "agent/containers", "controller", "simulate", "adapters")
"""Folders whose tests take longest, the first first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs longest begins first, so that no worker waits for the other at the end."""
    items.sort(key=_turn)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Nothing is counted but in `COUNTED`, in a test's fixtures neither: the mark `no_cover` would leave them counted, and whole
    demos are played in some."""
    plugin = item.config.pluginmanager.getplugin("_cov")
    counter = plugin.cov_controller if plugin is not None and _part(item) not in COUNTED else None
    if counter is None:
        return (yield)
    counter.pause()
    try:
        return (yield)
    finally:
        counter.resume()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests go to whichever worker is free, but for those of `TOGETHER`. The mark `xdist_group` would say the same, and is not
    heard by the version of xdist that is pinned: it renames tests, which pytest no longer lets it."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return TOGETHER.get(path) or TOGETHER.get(path.rpartition("/")[0] + "/", nodeid)

    return Together(config, log)


def _turn(item: pytest.Item) -> int:
    """How early a test begins: the place in `LONGEST` of the folder that it is in."""
    below = item.path.relative_to(TESTS).as_posix()
    return next((turn for turn, folder in enumerate(LONGEST) if below.startswith(f"{folder}/")), len(LONGEST))


def _part(item: pytest.Item) -> str:
    """The folder below tests/ that a test is in."""
    return item.path.relative_to(TESTS).parts[0]


def pytest_collection_finish() -> None:
    """What collecting has made lives until the end: the garbage collector need not walk it at every turn. Nor need the loop
    have it walked at every commit, as it does in a process of its own: half a second each time among thousands of tests."""
    gc.collect()
    gc.freeze()
    loop = sys.modules.get("reconciler.controller.loop")
    if loop is not None:
        loop._keep_from_collector = lambda: None  # type: ignore[attr-defined]
