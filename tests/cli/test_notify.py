"""`reconciler notify test`: what it sends, what it says, and its exit codes. Against a real receiver."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.main import cli
from tests.support.settings import write_settings
from tests.support.webhooks import Receiver, Says, verify

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def run(folder: Path, targets: list[dict[str, Any]], *arguments: str) -> Result:
    config = write_settings(folder, notifications=targets, server={"publicUrl": "https://fleet.example"})
    return CliRunner().invoke(cli, ["notify", "test", *arguments, "--config", str(config)], standalone_mode=False)


def code(result: Result) -> int:
    """The exit code as the program's entry gives it."""
    from reconciler.cli.main import _report

    if result.exception is None or isinstance(result.exception, SystemExit):
        return result.exit_code
    assert isinstance(result.exception, Exception)
    return getattr(result.exception, "exit_code", None) or _report(result.exception)


def test_every_target_is_sent_a_message_and_nothing_is_put_on_record(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "secrets").mkdir(mode=0o700)
    for name, text in (("url", receiver.url), ("key", SECRET)):
        (tmp_path / "secrets" / name).write_text(text + "\n")
        (tmp_path / "secrets" / name).chmod(0o600)
    chat = {"name": "chat", "type": "slack", "urlSecret": "url"}
    hook = {"name": "svc", "type": "webhook", "url": receiver.url, "secret": "key"}
    result = run(tmp_path, [chat, hook])
    assert code(result) == 0, result.output
    assert [line.split(",")[0] for line in result.stdout.splitlines()] == ["chat took it", "svc took it"]
    first, second = receiver.received
    assert "Notifications of reconciler reach this place" in first.json["text"]
    assert verify(SECRET, second, time.time())["data"]["link"] == "https://fleet.example/"
    assert not (tmp_path / "state").exists()


def test_one_target_alone_and_json(tmp_path: Path, receiver: Receiver) -> None:
    targets = [{"name": name, "type": "slack", "url": receiver.url} for name in ("a", "b")]
    (row,) = json.loads(run(tmp_path, targets, "b", "--output", "json").stdout)
    assert (row["target"], row["accepted"], row["message"], len(receiver.received)) == ("b", True, None, 1)


@pytest.mark.parametrize(
    ("status", "exit_code", "says"), [(404, 1, "a: it answered 404"), (503, 3, "a: it answered 503")]
)
def test_what_a_target_answers_is_said(
    tmp_path: Path, receiver: Receiver, status: int, exit_code: int, says: str
) -> None:
    receiver.says = [Says(status)]
    result = run(tmp_path, [{"name": "a", "type": "slack", "url": receiver.url}])
    assert code(result) == exit_code
    assert says in result.stderr and "hush" not in result.output and result.stdout == ""


def test_a_missing_secret_a_missing_target_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o700)
    chat = {"name": "a", "type": "slack", "urlSecret": "url"}
    result = run(tmp_path, [chat])
    assert code(result) == 1 and "there is no secret url" in result.stderr
    assert code(run(tmp_path, [chat], "b")) == 2
    assert code(run(tmp_path, [])) == 1
