"""`reconciler publish-review`: one comment and one status, and every wrong word said before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.main import cli
from reconciler.ports import TerminalError
from tests.support.github import GithubServer

SHA = "a" * 40


@pytest.fixture
def hub() -> Iterator[GithubServer]:
    with GithubServer() as server:
        yield server


def run(hub: GithubServer, *arguments: str, text: str = "**One wave.**\n", token: str = "ghp_secret") -> Result:
    env = {"GITHUB_REPOSITORY": hub.repository, "GITHUB_API_URL": hub.url, "GITHUB_TOKEN": token}
    return CliRunner().invoke(cli, ["publish-review", *arguments, "-"], input=text, env=env)


def test_it_posts_once_and_says_where(hub: GithubServer) -> None:
    number = str(hub.add_pull("promote/v2")["number"])
    given = ("--pull-request", number, "--sha", SHA, "--state", "success", "--description", "one wave")
    first, second = run(hub, *given), run(hub, *given)
    assert first.exit_code == 0 and first.output == second.output == hub.comments[0]["html_url"] + "\n"
    assert len(hub.comments) == len(hub.statuses) == 1
    assert hub.comments[0]["body"] == "<!-- reconciler/review -->\n**One wave.**\n"
    run(hub, "--pull-request", number, "--context", "other/review", text="two")
    assert [each["body"].splitlines()[0] for each in hub.comments][1:] == ["<!-- other/review -->"]


def test_a_conversation_that_is_locked_still_gets_its_status(hub: GithubServer) -> None:
    number = str(hub.add_pull("promote/v2")["number"])
    hub.fail(
        403, method="POST", path="/comments", body={"message": "Unable to create comment because issue is locked."}
    )
    failed = run(hub, "--pull-request", number, "--sha", SHA, "--state", "failure")
    assert isinstance(failed.exception, TerminalError) and "locked" in str(failed.exception)
    assert hub.statuses[0]["state"] == "failure"


def test_a_token_file_goes_before_the_variable(hub: GithubServer, tmp_path: Path) -> None:
    number = str(hub.add_pull("promote/v2")["number"])
    (tmp_path / "token").write_text("ghp_secret\n")
    assert run(hub, "--pull-request", number, "--token-file", str(tmp_path / "token"), token="ghp_wrong").exit_code == 0
    refused = run(hub, "--pull-request", number, token="ghp_wrong")
    assert isinstance(refused.exception, TerminalError) and "ghp_wrong" not in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--pull-request"),
        (["--pull-request", "1", "--sha", SHA], "go together"),
        (["--pull-request", "1", "--sha", "main", "--state", "success"], "40 hexadecimal digits"),
        (["--pull-request", "1", "--context", "x --> <b>"], "letters, digits"),
    ],
)
def test_wrong_usage_sends_nothing(hub: GithubServer, arguments: list[str], said: str) -> None:
    done = run(hub, *arguments)
    assert done.exit_code == 2 and said in done.output
    assert run(hub, "--pull-request", "1", token="").exit_code == 2
    assert hub.seen == []
