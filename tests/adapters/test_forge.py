"""`ports.Forge` over GitHub's API, against a server on loopback that speaks it: nothing is made twice, every refusal is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.adapters.forge_github import GithubForge, token_from
from reconciler.adapters.github_api import GithubApi
from reconciler.adapters.github_text import MAX_BODY, fit, one_line
from reconciler.ports import Forge, TerminalError, TransientError
from tests.support.github import MAX_DESCRIPTION, GithubServer, Token

SECRET = "ghp_secret"
MARKER = "<!-- reconciler:diff -->"
SHA = "a" * 40


@pytest.fixture
def hub() -> Iterator[GithubServer]:
    tokens = {
        SECRET: Token(),
        "ghs_app": Token("github-actions", app=True),
        "ghp_reader": Token("reader", may=frozenset()),
    }
    with GithubServer(tokens=tokens) as server:
        server.push("revert/v1.4.2", "c" * 40)
        yield server


OPEN: list[GithubForge] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


class Waits:
    """A sleep that only remembers."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


def forge(hub: GithubServer, token: str = SECRET, waits: Waits | None = None, **more: object) -> GithubForge:
    given = {"url": hub.url, "sleep": waits or Waits(), "patience_s": 120, "read_timeout_s": 60} | more
    name = str(given.pop("repository", hub.repository))
    made = GithubForge(name, lambda: token, api=GithubApi(name, lambda: token, **given))  # type: ignore[arg-type]
    OPEN.append(made)
    return made


# ---------------------------------------------------------------- pull requests


def test_one_pull_request_a_branch_for_ever(hub: GithubServer) -> None:
    ours: Forge = forge(hub)
    assert ours.pull_request("revert/v1.4.2") is None
    made = ours.open_pull_request("revert/v1.4.2", "main", "Revert v1.4.2", "It failed.")
    assert (made.branch, made.base, made.head, made.state) == ("revert/v1.4.2", "main", "c" * 40, "open")
    assert ours.open_pull_request("revert/v1.4.2", "main", "Again", "Again") == made
    # A person closed it: that was an answer.
    hub.pulls[0]["state"] = "closed"
    again = forge(hub).open_pull_request("revert/v1.4.2", "main", "Again", "Again")
    assert (again.number, again.state) == (made.number, "closed")
    hub.pulls[0]["merged_at"] = "2026-01-15T01:30:00Z"
    found = ours.pull_request("revert/v1.4.2")
    assert found is not None and found.state == "merged"
    assert len(hub.pulls) == 1 and [method for method, _ in hub.writes()] == ["POST"]


def test_a_pull_request_whose_answer_was_lost_is_found(hub: GithubServer) -> None:
    hub.fail(do="lost", method="POST", path="/pulls")
    made = forge(hub).open_pull_request("revert/v1.4.2", "main", "Revert", "")
    assert [made.number] == [pull["number"] for pull in hub.pulls]


def test_a_pull_request_that_somebody_else_opened_meanwhile_is_taken(hub: GithubServer) -> None:
    ours = forge(hub)
    hub.fail(200, method="GET", path="/pulls", body=[])
    there = hub.add_pull("revert/v1.4.2")
    assert ours.open_pull_request("revert/v1.4.2", "main", "Revert", "").number == there["number"]


def test_the_newest_of_a_branch_counts_and_a_fork_of_the_same_name_does_not(hub: GithubServer) -> None:
    old = hub.add_pull("promote/v2", state="closed")
    new = hub.add_pull("promote/v2")
    hub.add_pull("promote/v2", fork="stranger")
    found = forge(hub).pull_request("promote/v2")
    assert found is not None and found.number == new["number"] != old["number"]


def test_an_answer_that_was_not_filtered_is(hub: GithubServer) -> None:
    others = [hub.add_pull("promote/v3"), hub.add_pull("revert/v1.4.2", fork="stranger")]
    hub.fail(200, method="GET", path="/pulls", body=others)
    assert forge(hub).pull_request("revert/v1.4.2") is None


def test_open_pull_requests_over_pages_with_those_of_forks_named_apart(hub: GithubServer) -> None:
    for number in range(103):
        hub.add_pull(f"promote/v{number}")
    hub.add_pull("main", fork="stranger")
    hub.add_pull("promote/x", fork="gone")
    hub.add_pull("closed", state="closed")
    found = forge(hub).pull_requests()
    assert [each.branch for each in found[:2]] == ["promote/v0", "promote/v1"]
    assert [each.branch for each in found[-2:]] == ["stranger:main", "gone:promote/x"]
    assert len(found) == 105 and [each.number for each in found] == sorted(each.number for each in found)


@pytest.mark.parametrize(("branch", "said"), [("nowhere", "PullRequest head invalid"), ("same", "No commits between")])
def test_a_branch_without_commits_of_its_own_is_refused(hub: GithubServer, branch: str, said: str) -> None:
    hub.push("same", hub.branches["main"])
    with pytest.raises(TerminalError, match=said):
        forge(hub).open_pull_request(branch, "main", "Revert", "")


def test_a_long_title_and_body_are_cut_to_what_github_takes(hub: GithubServer) -> None:
    forge(hub).open_pull_request("revert/v1.4.2", "main", "long\nword " * 60, "line\n" * 20_000)
    pull = hub.pulls[0]
    assert len(pull["title"]) <= 256 and "\n" not in pull["title"]
    assert len(pull["body"]) <= MAX_BODY and "left out" in pull["body"]


# ---------------------------------------------------------------- the comment


def test_one_comment_is_made_and_then_kept_up_to_date(hub: GithubServer) -> None:
    number = hub.add_pull("promote/v2")["number"]
    for _ in range(120):
        hub.add_comment(number, "lgtm")
    ours = forge(hub)
    url = ours.comment(number, MARKER, "first")
    assert ours.comment(number, MARKER, "first") == url
    assert [method for method, _ in hub.writes()] == ["POST"]
    assert forge(hub).comment(number, MARKER, "second\r\nline") == url
    assert [method for method, _ in hub.writes()] == ["POST", "PATCH"]
    assert hub.comments[-1]["body"] == f"{MARKER}\nsecond\nline"
    assert ours.comment(number, "<!-- other -->", "x") != url


def test_the_marker_in_a_comment_of_somebody_else_is_not_ours(hub: GithubServer) -> None:
    number = hub.add_pull("promote/v2")["number"]
    theirs = hub.add_comment(number, f"{MARKER}\nmerge me", "stranger")
    quoted = hub.add_comment(number, f"> {MARKER}\nwhy?", "fleet-bot")
    forge(hub).comment(number, MARKER, "truth")
    assert (theirs["body"], quoted["body"]) == (f"{MARKER}\nmerge me", f"> {MARKER}\nwhy?")
    assert hub.comments[-1]["body"] == f"{MARKER}\ntruth"


def test_an_app_that_may_not_ask_who_it_is_knows_its_comment_as_a_bots(hub: GithubServer) -> None:
    number = hub.add_pull("promote/v2")["number"]
    hub.add_comment(number, f"{MARKER}\nmerge me", "stranger")
    for text in ("one", "two"):
        forge(hub, "ghs_app").comment(number, MARKER, text)
    assert [each["body"] for each in hub.comments[1:]] == [f"{MARKER}\ntwo"]


def test_a_comment_that_was_removed_while_we_looked_is_made_again(hub: GithubServer) -> None:
    number = hub.add_pull("promote/v2")["number"]
    forge(hub).comment(number, MARKER, "one")
    hub.fail(404, method="PATCH", body={"message": "Not Found"})
    forge(hub).comment(number, MARKER, "two")
    assert hub.comments[-1]["body"].endswith("two")


def test_a_comment_longer_than_github_takes_is_cut_where_markdown_may_be_cut(hub: GithubServer) -> None:
    number = hub.add_pull("promote/v2")["number"]
    text = "<details>\n\n```\n" + "device SITE-1 goes from v1 to v2 \N{PERSONAL COMPUTER}\n" * 4000
    forge(hub).comment(number, MARKER, text)
    body = hub.comments[0]["body"]
    assert 60_000 < len(body) <= MAX_BODY
    assert body.count("```") == 2 and body.count("</details>") == 1 and "left out" in body


def test_a_comment_on_nothing_is_told(hub: GithubServer) -> None:
    with pytest.raises(TerminalError, match=r"404 .Not Found.*check the repository's name"):
        forge(hub).comment(99, MARKER, "x")


# ---------------------------------------------------------------- statuses and deployments


def test_a_status_is_not_repeated_and_contexts_do_not_meet(hub: GithubServer) -> None:
    for _ in range(2):
        forge(hub).set_status(SHA, "reconciler/rollout", "pending", "canary soaks")
        forge(hub).set_status(SHA, "reconciler/diff", "success", "one wave", "https://ci.example/1")
    assert len(hub.statuses) == 2
    forge(hub).set_status(SHA, "reconciler/rollout", "success", "done")
    # What was said before another word is said again: only the present state counts.
    forge(hub).set_status(SHA, "reconciler/rollout", "pending", "canary soaks")
    assert [each["state"] for each in hub.statuses if each["context"] == "reconciler/rollout"] == [
        "pending", "success", "pending",
    ]  # fmt: skip


def test_a_status_is_found_behind_a_hundred_others(hub: GithubServer) -> None:
    for number in range(120):
        hub.statuses.append({"sha": SHA, "context": f"ci/{number}", "state": "success"})
    for _ in range(2):
        forge(hub).set_status(SHA, "reconciler/rollout", "pending", "canary soaks")
    assert len(hub.statuses) == 121


def test_a_description_is_cut_and_its_repeat_known(hub: GithubServer) -> None:
    for _ in range(2):
        forge(hub).set_status(SHA, "reconciler/rollout", "failure", "gate failed\n" * 40)
    assert len(hub.statuses) == 1 and len(hub.statuses[0]["description"]) <= MAX_DESCRIPTION


def test_a_status_at_a_commit_that_the_forge_does_not_know_is_refused(hub: GithubServer) -> None:
    with pytest.raises(TerminalError, match="No commit found"):
        forge(hub).set_status("9" * 40, "reconciler/rollout", "pending", "")
    with pytest.raises(ValueError, match="no commit"):
        forge(hub).set_status("main", "reconciler/rollout", "pending", "")


def test_one_deployment_a_commit_and_environment_and_no_state_twice(hub: GithubServer) -> None:
    ids = {forge(hub).deploy(SHA, "fleet/canary", "v1.4.2 to canary") for _ in range(3)}
    other = forge(hub).deploy(SHA, "fleet/tenth", "v1.4.2 to tenth")
    (canary,) = ids
    assert other != canary and len(hub.deployments) == 2
    for state in ("in_progress", "in_progress", "success", "success", "in_progress"):
        forge(hub).set_deployment(canary, state, "3 of 4 devices")
    assert [each["state"] for each in hub.deployment_statuses] == ["in_progress", "success", "in_progress"]
    hub.fail(do="lost", method="POST", path="/deployments")
    forge(hub).deploy("b" * 40, "fleet/canary", "back")
    assert len(hub.deployments) == 3


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("status", "headers", "body", "wait"),
    [
        (403, {"Retry-After": "7"}, {"message": "You have exceeded a secondary rate limit."}, 7),
        (429, {"Retry-After": "7"}, {"message": "slow down"}, 7),
        (403, {}, {"message": "You have exceeded a secondary rate limit. Please wait a few minutes."}, 60),
        (503, {"Retry-After": "3"}, b"<html>unicorn</html>", 3),
        (502, {}, b"", 0.25),
    ],
)
def test_what_passes_is_waited_for(
    hub: GithubServer, status: int, headers: dict[str, str], body: object, wait: float
) -> None:
    waits = Waits()
    hub.fail(status, headers=headers, body=body)
    forge(hub, waits=waits).set_status(SHA, "reconciler/rollout", "pending", "")
    assert waits.slept == [wait] and len(hub.statuses) == 1


def test_a_long_limit_is_told_with_its_end_and_not_slept_through(hub: GithubServer) -> None:
    waits = Waits()
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 1800)}
    hub.fail(403, headers=headers, body={"message": "API rate limit exceeded for installation."})
    with pytest.raises(TransientError) as error:
        forge(hub, waits=waits).pull_requests()
    assert 1500 < (error.value.retry_after_s or 0) < 1810
    assert waits.slept == []


def test_a_forge_that_stays_down_is_given_up_for_now(hub: GithubServer) -> None:
    hub.fail(500, times=9, body={"message": "Server Error"})
    with pytest.raises(TransientError, match=r"500 \(Server Error\)"):
        forge(hub).pull_requests()
    assert len(hub.seen) == 4


def test_a_forge_that_does_not_answer_is_not_waited_for_long(hub: GithubServer) -> None:
    hub.fail(do="hang")
    with pytest.raises(TransientError, match=r"did not answer .ReadTimeout"):
        forge(hub, read_timeout_s=0.2, patience_s=0).pull_requests()


def test_nobody_there_is_transient() -> None:
    with GithubServer() as server:
        pass
    with pytest.raises(TransientError, match=r"did not answer .ConnectError"):
        forge(server).pull_requests()


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("ghp_wrong", "401 .Bad credentials.*make a new one"),
        ("ghp_reader", "403 .Resource not accessible.*give the token the permission"),
    ],
)
def test_a_token_that_may_not_is_told_and_not_tried_again(hub: GithubServer, token: str, said: str) -> None:
    with pytest.raises(TerminalError, match=said) as error:
        forge(hub, token).set_status(SHA, "reconciler/rollout", "pending", "")
    assert token not in str(error.value)
    assert len(hub.seen) <= 2


def test_a_token_that_the_forge_repeats_is_not_shown(hub: GithubServer) -> None:
    hub.fail(400, body={"message": f"bad header: {SECRET}"})
    with pytest.raises(TerminalError) as error:
        forge(hub).pull_requests()
    assert SECRET not in str(error.value) and "***" in str(error.value)


@pytest.mark.parametrize("token", ["", "two words", "a\nb: c", "ghp_ä"])
def test_what_is_no_token_is_not_sent(hub: GithubServer, token: str) -> None:
    with pytest.raises(TerminalError, match="is no token") as error:
        forge(hub, token).pull_requests()
    assert hub.seen == [] and (not token or token not in str(error.value))


def test_a_renamed_repository_is_followed_for_reading_and_writing(hub: GithubServer) -> None:
    hub.renamed_from = "video-edge/old"
    ours = forge(hub, repository="video-edge/old")
    made = ours.open_pull_request("revert/v1.4.2", "main", "Revert", "")
    assert ours.pull_request("revert/v1.4.2") == made


def test_the_token_goes_to_no_other_host(hub: GithubServer) -> None:
    with GithubServer(hub.repository) as elsewhere:
        place = f"{elsewhere.url}/repos/{hub.repository}/pulls"
        hub.fail(301, headers={"Location": place}, body={})
        with pytest.raises(TerminalError, match="which is not itself"):
            forge(hub).pull_requests()
        hub.fail(200, headers={"Link": f'<{place}?page=2>; rel="next"'}, body=[])
        with pytest.raises(TerminalError, match="which is not itself"):
            forge(hub).pull_requests()
        assert elsewhere.seen == []


@pytest.mark.parametrize("body", [b"<html>", {"message": "hello"}, [1], [{"number": "x"}]])
def test_what_is_not_github_is_told(hub: GithubServer, body: object) -> None:
    hub.fail(200, body=body)
    with pytest.raises(TerminalError, match="not what GitHub's REST API gives"):
        forge(hub).pull_requests()


@pytest.mark.parametrize("url", ["http://github.example", "ftp://x", "https://", "https://me:pw@github.example"])
def test_an_address_to_which_no_token_may_go_is_refused(url: str) -> None:
    with pytest.raises(TerminalError) as error:
        GithubForge("a/b", lambda: SECRET, api_url=url)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize("name", ["fleet", "a/b/c", "../x", "a/..", "a b/c", "a/b?x"])
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(TerminalError, match="OWNER/NAME"):
        GithubForge(name, lambda: SECRET)


def test_a_token_file_is_read_each_time_and_its_absence_told(tmp_path: Path, hub: GithubServer) -> None:
    path = tmp_path / "token"
    ours = GithubForge(hub.repository, token_from(path), api_url=hub.url)
    with pytest.raises(TerminalError, match=r"cannot read the forge's token .*No such file"):
        ours.pull_requests()
    path.write_text(f"{SECRET}\n")
    assert ours.pull_requests() == []
    ours.close()


# ---------------------------------------------------------------- texts


def test_a_text_is_cut_only_where_it_must() -> None:
    assert fit("short") == "short"
    assert fit("x" * MAX_BODY) == "x" * MAX_BODY
    assert len(fit("x" * (MAX_BODY + 1))) <= MAX_BODY
    # Characters beyond the first plane may count twice.
    assert len(fit("\N{PERSONAL COMPUTER}" * 40_000)) <= MAX_BODY // 2
    assert one_line("a\nb\x07c") == "a b c"
    assert one_line("x" * 141).endswith("…") and len(one_line("x" * 141)) <= MAX_DESCRIPTION
