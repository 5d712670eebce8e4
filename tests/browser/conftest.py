"""One Chromium and one service for the whole folder. A test that fails leaves a picture and a trace in `build/screenshots`.

Playwright's own event loop stands in the thread that begins it, where other tests want to run theirs: the browser is closed when
the folder's tests are through, and they all run in one worker (`tests/conftest.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.system import need

pytest.importorskip("playwright", reason="needs the extra `dev`")

from playwright.sync_api import Browser, sync_playwright

from tests.browser.fleet import Fleet, serving
from tests.browser.window import KEPT, PROGRAM, Window, told, windows

Opener = Callable[..., Window]
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """Remember that a test failed."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    program = need("chromium", "chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=list(PROGRAM))
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet in its rollout, for tests that only read."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    yield fleet
    fleet.close()


@pytest.fixture(scope="package")
def address(shared: Fleet) -> Iterator[str]:
    """Its service, where everybody on this machine may read."""
    with serving(shared.options()) as found:
        yield found


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """What a test holds open until its windows are closed: services, stores."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def moved(held: ExitStack, tmp_path: Path) -> Fleet:
    """A fleet of the test's own, to let things happen to."""
    fleet = Fleet(tmp_path)
    held.callback(fleet.close)
    return fleet


@pytest.fixture
def opened(held: ExitStack, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens windows. At the end none of them may have complained."""
    with ExitStack() as closing:
        seen: list[Window] = []

        def open_window(address: str, **options: Any) -> Window:
            context = windows(browser, **options)
            closing.callback(context.close)
            context.tracing.start(snapshots=True)
            seen.append(Window(context.new_page(), address))
            return seen[-1]

        yield open_window
        for number, window in enumerate(seen):
            trace = None
            if request.node.stash.get(_FAILED, False) or window.complaints:
                name = re.sub(r"[^\w.-]+", "-", f"failed-{request.node.name}-{number}")
                window.keep(name)
                trace = KEPT / f"{name}.zip"
            # Without a path it is thrown away.
            window.page.context.tracing.stop(path=trace)
        complaints = [one for window in seen for one in window.complaints]
        assert not complaints, told(complaints)
