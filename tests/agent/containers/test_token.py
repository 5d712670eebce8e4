"""The registry's token: used, seen by nobody, gone with the pull."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.protocol import exchange
from reconciler.protocol.assignment import AppTarget
from tests.agent.containers.world import APP, BCRYPT, REPOSITORY, TOKEN, AppDevice, Apps, refused, runs
from tests.support.faults import FaultProxy
from tests.support.podman import app_image
from tests.support.processes import wait_until
from tests.support.registry import RunningRegistry, running_registry

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[RunningRegistry, AppTarget]]:
    with running_registry(tmp_path / "guarded", htpasswd=("AWS", TOKEN, BCRYPT)) as registry:
        image = app_image("2.8.0")
        registry.push_image(REPOSITORY, image)
        yield registry, AppTarget(REPOSITORY, "lab", image.digest, "2.8.0")


class _Watch:
    def __init__(self) -> None:
        self.token = ""
        """What the office hands out."""
        self.modes: set[tuple[str, int]] = set()
        self.commands: set[str] = set()


@pytest.fixture
def watching(device: AppDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Watch]:
    """Hands out its token, and looks at files and command lines while the test lasts. No pull goes on before it was seen."""
    watching, over, seen = _Watch(), threading.Event(), device.folder / "seen"
    command = device.runtime.rename(device.runtime.with_name("command"))
    device.runtime.write_text(
        f'#!/bin/sh\ncase " $* " in *" pull "*) while [ ! -e {seen} ]; do sleep 0.02; done ;; esac\nexec {command} "$@"\n'
    )
    device.runtime.chmod(0o755)
    to_bytes = exchange.Answer.to_bytes
    monkeypatch.setattr(
        exchange.Answer, "to_bytes", lambda answer: to_bytes(replace(answer, registry_token=watching.token))
    )

    def look() -> None:
        while not over.wait(0.01):
            pulls = {words for words in _commands() if " pull " in words and f"{device.runtime.parent}/" in words}
            for folder in device.private.glob("auth-*"):
                with suppress(OSError):
                    mode, files = folder.stat().st_mode & 0o777, list(folder.iterdir())
                    watching.modes |= {("folder", mode)} | {(file.name, file.stat().st_mode & 0o777) for file in files}
            watching.commands |= pulls
            if pulls:
                seen.touch()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield watching
    over.set()
    thread.join()


@pytest.mark.parametrize("token", [TOKEN, f"AWS:{TOKEN}"])
def test_a_pull_uses_the_token_and_leaves_it_nowhere(
    device: AppDevice, guarded: tuple[RunningRegistry, AppTarget], watching: _Watch, token: str
) -> None:
    registry, app = guarded
    watching.token = token
    device.office.registry = registry.url
    device.assign(app)
    assert watching.modes == {("folder", 0o700), ("config.json", 0o600)}
    assert watching.commands, "no pull was seen"
    assert not any(TOKEN in words for words in watching.commands)
    assert list(device.private.iterdir()) == []
    for file in [*device.folder.rglob("*"), *device.site.root.rglob("*")]:
        if file.is_file() and not file.is_symlink():
            assert TOKEN.encode() not in file.read_bytes(), file


def test_a_token_that_has_expired_is_named_and_a_new_one_is_used_at_the_next_try(
    device: AppDevice, guarded: tuple[RunningRegistry, AppTarget], watching: _Watch
) -> None:
    registry, app = guarded
    watching.token = "expired-token-1234"
    device.office.registry = registry.url
    report = device.assign(app, refused("registry-denied"))
    assert "expired-token-1234" not in json.dumps([item.reason for item in report.refusals])
    assert list(device.private.iterdir()) == []
    watching.token = TOKEN
    device.pass_time(60)
    device.until(lambda report: runs(report, app))


def test_a_job_that_is_dropped_ends_its_pull_and_takes_the_token_along(
    device: AppDevice, proxy: FaultProxy, apps: Apps
) -> None:
    device.until(lambda report: report.apps == {APP: apps.one.digest})
    proxy.seen.clear()
    proxy.next("hang", "GET", "/blobs/", times=4)
    job = device.containers.pull(APP, apps.two, [proxy.url], TOKEN)
    next(job)
    ends = time.monotonic() + 60
    while not any("/blobs/" in path for _, path in proxy.seen):
        time.sleep(min(next(job), 0.1))
        assert time.monotonic() < ends
    assert [path.name for path in device.private.rglob("config.json")] == ["config.json"]
    del job
    assert list(device.private.iterdir()) == []
    wait_until(
        lambda: not [words for words in _commands() if f"{device.runtime.parent}/" in words and " pull " in words]
    )


def _commands() -> list[str]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                found.append(Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
