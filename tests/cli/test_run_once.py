"""`reconciler run --once`: its status and last line say whether the branch's head is acted on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.controller.gatekeeper import StateLock
from tests.support.github import GithubServer
from tests.support.gitrepo import Repo
from tests.support.gpg import make_home
from tests.support.settings import write_settings
from tests.support.system import need
from tests.support.webhooks import Receiver

pytestmark = pytest.mark.system


@pytest.fixture
def key(tmp_path: Path) -> Iterator[dict[str, str]]:
    need("gpg")
    need("git")
    (tmp_path / "secrets").mkdir(mode=0o700)
    with make_home() as home:
        yield {"home": str(home.path), "fingerprint": home.generate("assign <assign@example>")}


def once(folder: Path, key: dict[str, str], **changes: Any) -> tuple[int, str]:
    """The exit status, and the last line on stderr."""
    keys = {"assignment": key, "releases": ["B" * 40], "releaseKeyring": "keys.gpg"}
    config = write_settings(folder, keys=keys, **changes)
    command = [
        sys.executable,
        "-c",
        "from reconciler.cli.main import main; main()",
        "run",
        "--once",
        "--config",
        str(config),
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_a_repository_that_is_not_there(tmp_path: Path, key: dict[str, str]) -> None:
    status, last = once(tmp_path, key)
    assert status == 1 and last.startswith("error: there is no repository at")


def test_a_head_that_is_not_valid(tmp_path: Path, key: dict[str, str]) -> None:
    Repo(tmp_path / "fleet").commit("First", {"fleet.yaml": "kind: Flet\n"})
    status, last = once(tmp_path, key)
    assert status == 1 and "fleet.yaml:1:" in last and "nothing is in force" in last


def test_a_head_that_is_not_valid_is_marked_at_the_forge_before_it_ends(tmp_path: Path, key: dict[str, str]) -> None:
    sha = Repo(tmp_path / "fleet").commit("First", {"fleet.yaml": "kind: Flet\n"})
    (tmp_path / "token").write_text("ghp_secret\n")
    with GithubServer() as hub:
        hub.commits.add(sha)
        forge = {"type": "github", "repository": hub.repository, "apiUrl": hub.url, "tokenFile": "token"}
        assert once(tmp_path, key, forge=forge)[0] == 1
        assert [(each["sha"], each["state"]) for each in hub.statuses] == [(sha, "failure")]
        # Another run sends nothing that is there.
        once(tmp_path, key, forge=forge)
        assert len(hub.statuses) == 1


def test_a_head_that_is_not_valid_is_told_to_a_chat_once_before_it_ends(tmp_path: Path, key: dict[str, str]) -> None:
    sha = Repo(tmp_path / "fleet").commit("First", {"fleet.yaml": "kind: Flet\n"})
    with Receiver() as chat:
        targets = [{"name": "chat", "type": "slack", "url": chat.url}]
        assert [once(tmp_path, key, notifications=targets)[0] for _ in range(2)] == [1, 1]
        (told,) = [request.json["text"] for request in chat.received]
    assert told.startswith(f"*The branch's head is not acted on*\n{sha[:12]}: ") and "fleet.yaml:1:" in told
    assert f"`git show {sha}`" in told and "reason `Invalid`" in told


def test_a_remote_that_does_not_answer(tmp_path: Path, key: dict[str, str]) -> None:
    status, last = once(tmp_path, key, git={"url": "https://127.0.0.1:1/fleet.git", "timeout": "5s"})
    assert status == 3 and last.startswith("error: ")


def test_beside_a_running_controller(tmp_path: Path, key: dict[str, str]) -> None:
    (tmp_path / "state").mkdir()
    lock = StateLock(tmp_path / "state")
    status, last = once(tmp_path, key)
    lock.release()
    assert status == 1 and "another controller" in last and "stop it first" in last
