"""From a report that turns a device critical to its flag on a page that somebody has open, in Chromium.

The report is recorded, the loop plans and flags, the stream tells, the page fetches itself again and has drawn the new count. The
fleet is the example's, in its rollout. The middle of several devices; no row where there is no Chromium.
Run by `python -m tests.benchmarks`, or alone: `python -m tests.benchmarks.flagging`. No test depends on a time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from statistics import median

from reconciler.model.observed import Health

Row = tuple[str, float, str, float, float]
DEVICES = ("SITE-2841-1", "SITE-2844-1", "SITE-2849-1")
"""Of the wave that moves, and well until now. One is flagged before them."""
BAR_S = 2.0


def measure() -> Iterator[Row]:
    """(work, ours in s, yardstick, its s, bar)."""
    program = shutil.which("chromium", path=os.environ.get("PATH", "") + ":/usr/bin")
    if program is None:
        print("# no flag on an open page: needs chromium")
        return
    import structlog
    from playwright.sync_api import sync_playwright

    from tests.browser.fleet import Fleet, serving
    from tests.browser.window import PROGRAM, Window, windows

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(PROGRAM))
        fleet, took = Fleet(Path(folder)), list[float]()
        try:
            with serving(fleet.options()) as address:
                window = Window(windows(browser).new_page(), address).open("/").live()
                for number, device in enumerate(DEVICES, 2):
                    begun = time.perf_counter()
                    ill_since = fleet.at - timedelta(minutes=11)
                    fleet.change(device, health=Health.CRITICAL, health_since=ill_since)
                    window.wait(f"document.getElementById('tally').textContent === '{number}'")
                    took.append(time.perf_counter() - begun)
                browser.close()
        finally:
            fleet.close()
    yield "from a critical report to the flag on an open page (s)", median(took), "2 s", BAR_S, 1.0


if __name__ == "__main__":
    for row in measure():
        print(row, f"ratio {row[1] / row[3]:.3f}", flush=True)
