"""A controller that people look at: a report that turns critical is on the stream at once, and every part of the API is wired."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from reconciler.demo.ground import Ground
from reconciler.protocol.report import Check, Report
from tests.support.system import need

FLEET = Path(__file__).resolve().parents[2] / "fleet"
PROGRAM = [sys.executable, "-c", "from reconciler.cli.main import main; main()"]
DEVICE, SITE = "LAB-0001-1", "LAB-0001"

pytestmark = [pytest.mark.slow, pytest.mark.system]


def reconciler(*arguments: str) -> str:
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def ground() -> Iterator[Ground]:
    for program, package in (("gpgv", "gpgv"), ("mke2fs", "e2fsprogs"), ("zstd", "zstd")):
        need(program, package)
    root = Path(tempfile.mkdtemp(prefix="seen-"))
    made = Ground(root, FLEET, datetime.now(UTC) - timedelta(days=1))
    made.make()
    made.on_system_clock()
    # The loop does nothing by itself: what is on the page in time is there because of the report.
    text = made.config.read_text()
    made.config.write_text(text.replace("loop: {}", "loop: {interval: 12h, storesPoll: 12h}"))
    assert made.config.read_text() != text
    yield made
    made.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def daemon(ground: Ground) -> Iterator[subprocess.Popen[bytes]]:
    # What is to be built has been built: the loop is at rest.
    reconciler("run", "--once", "--config", str(ground.config))
    with open(ground.log, "wb") as log:
        process = subprocess.Popen([*PROGRAM, "run", "--config", str(ground.config), "--log", "json"], stderr=log)
    give_up = time.monotonic() + 120
    while b'"serving"' not in ground.log.read_bytes():
        assert process.poll() is None and time.monotonic() < give_up, ground.log.read_text()
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


class Page:
    """An open page: it listens, without a login, since it is on this machine."""

    def __init__(self, address: str) -> None:
        self.boards: list[dict[str, Any]] = []
        self.ended, self.whole = threading.Event(), False
        self._address, self._news = address, threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            with httpx.stream("GET", f"{self._address}/events/stream", timeout=250, trust_env=False) as answer:
                kind = ""
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    kind = value if name == "event" else kind
                    if name == "data" and kind == "board":
                        with self._news:
                            self.boards.append(json.loads(value))
                            self._news.notify_all()
            self.whole = True
        finally:
            self.ended.set()

    def wait(self, state: str, count: int) -> None:
        """Until so many devices are in a state."""
        with self._news:
            assert self._news.wait_for(lambda: any(said["states"][state] == count for said in self.boards), 60), (
                self.boards
            )


def test_a_critical_report_is_on_an_open_page_by_itself(ground: Ground, daemon: subprocess.Popen[bytes]) -> None:
    address = f"http://127.0.0.1:{ground.port}"
    config = str(ground.config)
    # No device of the demo is running: this one is played by hand.
    token = reconciler("token", "add", DEVICE, "--config", config).split()[1]
    reader = reconciler("token", "operator", "reader", "--scope", "read", "--config", config).strip()
    page = Page(address)
    page.wait("critical", 0)
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:

        def report(sequence: int, health: str) -> None:
            check = Check("camera", health, "no frames" if health == "critical" else "")
            said = Report(
                device=DEVICE, site=SITE, boot_id="b", sequence=sequence, image="v1.4.1", health=health, checks=(check,)
            )
            headers = {"Authorization": f"Bearer {token}"}
            answer = client.post("/v1/exchange", content=said.to_bytes(), headers=headers)
            assert answer.status_code == 200, answer.text

        report(1, "ok")
        page.wait("never-seen", page.boards[0]["states"]["never-seen"] - 1)
        report(2, "critical")
        page.wait("critical", 1)

        client.headers["Authorization"] = f"Bearer {reader}"
        device = client.get(f"/v1/devices/{DEVICE}").json()
        assert device["device"]["state"] == "critical" and device["observation"]["health"] == "critical"
        assert [row["health"] for row in device["health"]] == ["critical", "ok"]
        assert device["health"][0]["checks"] == [{"name": "camera", "status": "critical", "message": "no frames"}]
        release = client.get("/v1/releases/v1.4.1").json()
        assert release["signature"]["state"] == "accepted" and release["artifact"]["builderType"] == "files"
        assert release["running"] == {"lab": 1} and release["trouble"] is None
        (commit,) = client.get("/v1/commits").json()["commits"]
        assert commit["inForce"] and commit["author"] and commit["events"]["commit-accepted"] == 1
        for path in ("waves", "holds", "sites", "devices", "releases", "events"):
            assert client.get(f"/v1/{path}").status_code == 200, path
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(120) == 0 and page.ended.wait(60)
    assert page.whole, "the stream ends in good order: an open page does not hold the controller up until it is cut off"
