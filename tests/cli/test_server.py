"""`status` and `explain` of a running service: as from the store, and an error that says what to do where there is none."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
from click.testing import CliRunner

from reconciler.adapters.sql import open_store
from reconciler.cli.main import _report, cli
from reconciler.controller.status import status_from, status_of
from reconciler.model.access import OperatorToken, Scope
from reconciler.model.plan import Action, ActionKind, Facts
from reconciler.ports import ConditionRow, Decision, PortError
from reconciler.server.options import Limits
from reconciler.server.tokens import hash_token, make_token
from tests.controller.staging import Stage, observed
from tests.server.service import NOW, running


class Place:
    """A service that has something to say, and the file of a reader's token."""

    def __init__(self, folder: Path, address: str) -> None:
        self.address, self.token = address, folder / "token"


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def run(*arguments: str, env: dict[str, str] | None = None) -> Said:
    """A command, as the program's entry point runs it."""
    done = CliRunner().invoke(cli, list(arguments), env=env)
    if isinstance(done.exception, PortError):
        with redirect_stderr(io.StringIO()) as told:
            code = _report(done.exception)
        return Said(code, done.stdout, done.stderr + told.getvalue())
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service runs in this process: its log would be among what the command prints."""
    monkeypatch.setattr("reconciler.server.answers._log", structlog.wrap_logger(None, processors=[_dropped]))


def _dropped(*_: object) -> NoReturn:
    raise structlog.DropEvent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("server")
    other = open_store(folder / "store.db")
    stage = Stage(store=other)
    ill = observed("S0-1", "v1.4.2", health="critical", health_since=NOW, checks_worse=["camera"])
    stage.store.observe([ill], sequences={})
    board = stage.tick(*stage.everybody()[1:], ill)
    assert board.rows is not None
    epoch = other.begin_epoch()
    row = ConditionRow("GitReady", "False", "Unreachable", "no route", NOW)
    action = Action(ActionKind.BUILD, {"image": "v1.4.2"})
    (intent,) = other.record(epoch, Decision(NOW, "c1", Facts(), (action,), conditions=(row,)))
    other.retry(epoch, intent, "no room", NOW)
    from reconciler.planner.live import as_plan

    assert stage.live.state is not None
    other.save_plan(epoch, as_plan(stage.live.state).to_json())
    easy = replace(Limits(), per_device=(1e6, 10**6), refused_per_address=(1e6, 10**6))
    with running(folder, boards=stage.boards, limits=easy) as service:
        made = Place(folder, service.server.address)
        token = make_token()
        made.token.write_text(token + "\n")
        other.access.add_operator(hash_token(token), OperatorToken("r", frozenset({Scope.READ}), NOW, None))
        assert status_from(status_of(other, NOW).to_dict()).to_dict() == status_of(other, NOW).to_dict()
        yield made
    other.close()


def test_status_is_the_services(place: Place) -> None:
    said = run("status", "--server", place.address, "--token-file", str(place.token))
    assert said.exit_code == 0, said.output
    for words in ("lab", "canary", "GitReady", "no route", "build image=v1.4.2", "no room"):
        assert words in said.stdout
    made = run("status", "--server", place.address, "--token-file", str(place.token), "--output", "json")
    assert json.loads(made.stdout)["kind"] == "Status" and json.loads(made.stdout)["openActions"][0]["attempts"] == 1


def test_explain_says_what_the_service_knows(place: Place) -> None:
    asked = ("--server", place.address, "--token-file", str(place.token))
    said = run("explain", "S0-1", *asked)
    assert said.exit_code == 0 and said.stdout.startswith("S0-1 at S0, wave lab")
    made = run("explain", "canary", "--kind", "wave", *asked, "--output", "json")
    document = json.loads(made.stdout)
    assert (document["of"], document["wave"]) == ("wave", "canary") and "text" not in document
    nothing = run("explain", "S9-1", *asked)
    assert nothing.exit_code == 1 and "'S9-1' is no device, site or wave of this fleet" in nothing.stderr
    odd = run("explain", "a/../b?c#d", *asked)
    assert odd.exit_code == 3 or "is no device" in odd.stderr


def test_the_token_may_stand_in_a_variable(place: Place) -> None:
    env = {"RECONCILER_TOKEN": place.token.read_text()}
    assert run("status", "--server", place.address, env=env).exit_code == 0
    none = run("status", "--server", place.address, env={"RECONCILER_TOKEN": ""})
    assert none.exit_code == 2 and "name its file with --token-file, or set RECONCILER_TOKEN" in " ".join(
        none.stderr.split()
    )
    assert "on the controller's own machine leave --server out" in " ".join(none.stderr.split())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--server", "http://reconciler.example"), "is not encrypted"),
        (("--server", "ftp://127.0.0.1"), "write https://HOST"),
        (("--server", "http://127.0.0.1:1", "--config", "reconciler.yaml"), "give one of them"),
        (("--token-file", "t"), "--token-file goes with --server"),
    ],
)
@pytest.mark.parametrize("command", [("status",), ("explain", "S0-1")])
def test_what_contradicts_itself_is_wrong_usage(
    command: tuple[str, ...], arguments: tuple[str, ...], words: str
) -> None:
    said = run(*command, *arguments, env={"RECONCILER_TOKEN": make_token()})
    assert said.exit_code == 2
    assert words in " ".join(said.stderr.split()) or "give one" in said.stderr


@pytest.mark.parametrize("command", [("status",), ("explain", "S0-1")])
def test_a_service_that_does_not_answer_is_an_exit_of_its_own(place: Place, command: tuple[str, ...]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = run(*command, "--server", f"http://127.0.0.1:{port}", "--token-file", str(place.token))
    assert said.exit_code == 3 and "did not answer" in said.stderr and "see that the service runs" in said.stderr
    assert place.token.read_text().strip() not in said.output


def test_a_wrong_token_is_said_and_not_repeated(place: Place) -> None:
    wrong = make_token()
    said = run("explain", "S0-1", "--server", place.address, env={"RECONCILER_TOKEN": wrong})
    assert said.exit_code == 3 and "401" in said.stderr and "make a token" in said.stderr and wrong not in said.output


def test_a_service_that_knows_nothing_yet_says_so(tmp_path: Path, place: Place) -> None:
    with running(tmp_path) as service:
        token = place.token.read_text().strip()
        service.store.access.add_operator(hash_token(token), OperatorToken("r", frozenset({Scope.READ}), NOW, None))
        said = run("explain", "S0-1", "--server", service.server.address, "--token-file", str(place.token))
    assert said.exit_code == 3 and "nothing is known of the rollout yet; " in said.stderr.replace(", ", "; ")
    assert "wait for the first tick" in said.stderr


@contextmanager
def stranger(status: int, body: bytes) -> Iterator[str]:
    """Another program that answers everything with one thing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "status, body, words",
    [
        (200, b"<html>", "no JSON object"),
        (200, b"[]", "no JSON object"),
        (200, b'{"kind": "Other"}', "its answer is another one"),
        (302, b"", "redirects are not followed"),
        (404, b"nothing", "an older version has no /v1/status"),
        (500, b"x", "it answered 500"),
        (503, b'{"error": "\\u001b[31m", "remedy": "x"}', "it answered 503"),
    ],
)
def test_another_program_is_not_believed(place: Place, status: int, body: bytes, words: str) -> None:
    with stranger(status, body) as address:
        said = run("status", "--server", address, "--token-file", str(place.token))
    assert said.exit_code == 3 and words in said.stderr and "\x1b" not in said.output


def test_what_a_service_says_does_not_steer_the_terminal(place: Place) -> None:
    body = json.dumps({"text": ["fine", "\x1b[2Jgone"]}).encode()
    with stranger(200, body) as address:
        said = run("explain", "S0-1", "--server", address, "--token-file", str(place.token))
    assert said.exit_code == 0 and said.stdout == "fine\n'\\x1b[2Jgone'\n"
