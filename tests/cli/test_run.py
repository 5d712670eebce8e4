"""`reconciler run` and `adopt` as processes: one pass, serving, a clean end, fencing, and settings that cannot be used."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.adapters.sql import open_store
from reconciler.demo.ground import Ground
from reconciler.repo.snapshot import load_snapshot
from tests.support.system import need

FLEET = Path(__file__).resolve().parents[2] / "fleet"
PROGRAM = [sys.executable, "-c", "from reconciler.cli.main import main; main()"]


def reconciler(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def ground() -> Iterator[Ground]:
    for program, package in (("gpgv", "gpgv"), ("mke2fs", "e2fsprogs"), ("zstd", "zstd")):
        need(program, package)
    root = Path(tempfile.mkdtemp(prefix="run-"))
    made = Ground(root, FLEET, datetime.now(UTC) - timedelta(days=1), debug=True)
    made.make()
    made.on_system_clock()
    yield made
    made.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def manager(ground: Ground) -> Iterator[socket.socket]:
    """The service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(ground.root / "notify"))
        made.settimeout(60)
        yield made


@pytest.fixture
def daemon(ground: Ground, manager: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    watched = os.environ | {"NOTIFY_SOCKET": str(ground.root / "notify"), "WATCHDOG_USEC": "3000000"}
    command = [*PROGRAM, "run", "--config", str(ground.config), "--log", "json"]
    with open(ground.log, "wb") as log:
        process = subprocess.Popen(command, stderr=log, env=watched)
    give_up = time.monotonic() + 120
    while b'"serving"' not in ground.log.read_bytes():
        assert process.poll() is None and time.monotonic() < give_up, ground.log.read_text()
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def journal(ground: Ground) -> list[str]:
    store = open_store(ground.state / "store.db", create=False)
    try:
        return sorted(f"{row['kind']} {row['outcome']}" for row in store.journal(1000))
    finally:
        store.close()


@pytest.mark.slow
@pytest.mark.system
def test_one_pass_builds_signs_and_publishes_and_a_second_one_does_nothing(ground: Ground) -> None:
    first = reconciler("run", "--once", "--config", str(ground.config))
    assert first.returncode == 0, first.stderr
    done = ["build done", "publish done", "retag done", "sign done"]
    assert journal(ground) == done
    assert len(list(ground.images.glob("edge-golden-v1.4.1-*/SHA256SUMS.gpg"))) == 1
    second = reconciler("run", "--once", "--config", str(ground.config))
    assert second.returncode == 0 and journal(ground) == done
    plan = reconciler("plan", "--config", str(ground.config), "--output", "json")
    assert plan.returncode == 0 and '"actions": []' in plan.stdout


@pytest.mark.slow
@pytest.mark.system
def test_it_serves_and_ends_cleanly_at_sigterm(
    ground: Ground, daemon: subprocess.Popen[bytes], manager: socket.socket
) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{ground.port}/readyz", timeout=60) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{ground.port}/metrics", timeout=60) as answer:
        scraped = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    assert float(scraped["reconciler_tick_seconds_count"]) >= 1 and scraped["reconciler_head_refused"] == "0.0"
    assert float(scraped['reconciler_wave_devices{wave="canary"}']) > 0
    assert scraped["reconciler_assignments_expiring"] == "0.0", "the chronicle has looked"
    heard = {manager.recv(4096).decode() for _ in range(3)}
    assert heard == {f"READY=1\nSTATUS=serving http://127.0.0.1:{ground.port}", "WATCHDOG=1"}, "and it goes on living"
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(120) == 0
    while (word := manager.recv(4096).decode()) == "WATCHDOG=1":
        pass
    assert word == "STOPPING=1"
    assert '"stopped"' in ground.log.read_text().splitlines()[-1]
    assert {line.split()[1] for line in journal(ground)} <= {"done", "None"}


@pytest.mark.slow
@pytest.mark.system
def test_what_is_observed_is_fetched_by_a_reader_and_is_what_the_store_gives(
    ground: Ground, daemon: subprocess.Popen[bytes]
) -> None:
    config, out = str(ground.config), ground.root / "observed.json"
    # A token that is made while the service runs counts from the next request.
    made = reconciler("token", "operator", "pull-requests", "--scope", "read", "--config", config)
    token = ground.root / "reader.token"
    token.write_text(made.stdout)
    served = f"http://127.0.0.1:{ground.port}"
    fetched = reconciler("snapshot", "--server", served, "--token-file", str(token), "--output", str(out))
    assert fetched.returncode == 0, fetched.stderr
    observed = load_snapshot(out)
    assert observed.at is not None and datetime.now(UTC) - observed.at < timedelta(minutes=2)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(120) == 0
    gone = reconciler("snapshot", "--server", served, "--token-file", str(token), "--output", str(out))
    assert gone.returncode == 3 and "did not answer" in gone.stderr and load_snapshot(out) == observed
    stored = reconciler("snapshot", "--config", config)
    assert stored.returncode == 0, stored.stderr
    found = load_snapshot(stored.stdout.encode())
    assert found.at is not None
    # The job that ran while it was stopped may have gone one step further.
    assert set(found.artifacts) >= set(observed.artifacts) and found.devices == observed.devices
    plan = reconciler("plan", "--fleet", str(FLEET), "--observed", str(out), "--output", "json")
    assert plan.returncode == 0, plan.stderr


@pytest.mark.slow
@pytest.mark.system
def test_a_second_writer_fences_the_first(ground: Ground, daemon: subprocess.Popen[bytes]) -> None:
    adopted = reconciler("adopt", "--config", str(ground.config))
    assert adopted.returncode == 0, adopted.stderr
    assert "lab: v1.4.1 is not adopted: LAB-0001-1 does not report" in adopted.stdout
    # The first notices at its next write: a merge gives it one.
    ground.branch("more")
    ground.write("NOTES", "x")
    ground.commit("More", datetime.now(UTC))
    ground.merge("more", "More", datetime.now(UTC))
    assert daemon.wait(200) == 1
    assert "fenced" in ground.log.read_text().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.system
def test_a_dry_run_of_adopt_records_nothing(ground: Ground) -> None:
    reconciler("run", "--once", "--config", str(ground.config))
    before = (ground.state / "store.db").read_bytes()
    dry = reconciler("adopt", "--dry-run", "--config", str(ground.config))
    assert dry.returncode == 0 and "not adopted" in dry.stdout and "recorded" not in dry.stdout
    assert (ground.state / "store.db").read_bytes() == before


@pytest.mark.slow
def test_settings_that_cannot_be_used_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "reconciler.yaml"
    path.write_text("git: {url: /srv/fleet}\nserver: {bind: 0.0.0.0:80}\nallowd: {}\n")
    for command in ("run", "adopt"):
        done = reconciler(command, "--config", str(path))
        assert done.returncode == 1 and done.stdout == ""
        assert f"{path}:2:9: " in done.stderr and "loopback" in done.stderr
        assert f"{path}:3:1: unknown key `allowd`; did you mean `allowed`?" in done.stderr
        assert "Traceback" not in done.stderr


def test_no_settings_at_all(tmp_path: Path) -> None:
    done = reconciler("run", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 1 and "name the settings file with --config" in done.stderr


@pytest.mark.slow
def test_the_demo_refuses_a_folder_that_is_in_use_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "reconciler.yaml").write_text("mine: true\n")
    done = reconciler("demo", "--dir", str(tmp_path))
    assert done.returncode == 1 and "is not empty" in done.stderr
    assert os.listdir(tmp_path) == ["reconciler.yaml"] and (tmp_path / "reconciler.yaml").read_text() == "mine: true\n"
