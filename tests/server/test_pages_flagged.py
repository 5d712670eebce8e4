"""The page of flagged devices, through the real app: checks side by side, what to do, and its forms."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from reconciler.cli.main import cli
from reconciler.controller.board import Board
from reconciler.model.access import Scope
from reconciler.model.events import Event, EventKind
from reconciler.model.scalars import Budget
from reconciler.ports import TransientError
from tests.controller.staging import desired, observed
from tests.server.inside import HERE, PAGE, own, shown
from tests.server.pages import Node, Reader, reading
from tests.server.service import NOW
from tests.server.test_api import filled
from tests.support.gitrepo import Repo

FLEET = Path(__file__).resolve().parents[2] / "fleet"
KEY = "flag-S0-1-v1.4.2"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A fleet with a device that failed; the plan on record says the same as the board."""
    with reading(tmp_path) as made:
        filled(made.api)
        keep(made)
        yield made


def keep(reader: Reader) -> None:
    """Save the flags of the board, as the loop saves its plan."""
    board = reader.api.stage.boards.latest()
    assert isinstance(board, Board)
    for fact in board.flagged:
        reader.app.flag((fact.device, fact.key), at=fact.at)


def form(reader: Reader, path: str = "/flagged") -> tuple[str, dict[str, str]]:
    """Where the form of the flag leads, and its fields as the page has them."""
    found: Node = next(node for node in reader.get(path).ids[KEY].walk() if node.tag == "form")
    fields = [node.attributes for node in found.walk() if node.tag == "input"]
    return found.attributes["action"], {field["name"]: field.get("value", "") for field in fields}


def send(reader: Reader, action: str, fields: dict[str, str]) -> httpx.Response:
    return reader.browser.post(action, data=fields, headers=own(reader.browser))


def test_checks_stand_side_by_side(reader: Reader) -> None:
    page = reader.get("/flagged")
    assert page.heading == "Flagged devices"
    assert "1 flag stands, 1 not acknowledged." in page.text
    text = page.of(KEY)
    assert text.startswith(
        "S0-1 ◆ failed on v1.4.2 site S0, wave lab, runs v1.4.2, health critical; failed 2026-01-15 00:40 UTC"
    )
    assert "Check Before Now It says Since camera ● ok ▲ critical no frames" in text
    assert "1" in page.of("tally")


def test_what_to_do_is_said(reader: Reader) -> None:
    page = reader.get("/flagged")
    assert "It is stopped in every wave: the gate of wave lab failed." in page.text
    assert "reconciler rollback v1.4.2" in page.text and "git revert" not in page.text
    assert "paused" not in page.text
    reader.api.stage.store.add_events(
        reader.api.stage.store.begin_epoch(),
        [
            Event(
                None, NOW, EventKind.REVERT_PROPOSED, "r", release="v1.4.2", message="revert (branch revert/v1.4.2-c1)"
            )
        ],
    )
    page = reader.get("/flagged")
    assert "Its revert is proposed: revert (branch revert/v1.4.2-c1). Review it" in page.text
    assert "reconciler rollback" not in page.text


def test_a_wave_that_tolerates_failures_says_how_many_are_left(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        fleet = desired()
        lab = fleet.waves.waves[0].model_copy(update={"max_failed": Budget(count=1)})
        waves = fleet.waves.model_copy(update={"waves": (lab, *fleet.waves.waves[1:])})
        reader.api.stage.desired = replace(fleet, waves=waves)
        filled(reader.api)
        page = reader.get("/flagged")
        said = (
            "Wave lab: 1 of 2 devices failed, and its maxFailed is 1: one more failure stops the release in every wave."
        )
        assert "No gate has failed on it" in page.text and said in page.text
        assert "reconciler pause there (with --wave lab: that wave alone)" in page.text
        assert 'reconciler pin S0 v1.4.1 --device S0-1 --why "…"' in page.text
        used = ", 1 failed, maxFailed is 1: 1 more would fail it"
        soaks = reader.get("/waves/lab")
        assert used in soaks.text and "/devices/S0-1" in soaks.links
        reader.api.stage.tick(observed("S0-2"))
        waits = reader.get("/waves/lab")
        assert f"is not complete: 0 of 2 healthy on v1.4.2{used}" in waits.text and "/devices/S0-1" in waits.links


@pytest.mark.parametrize(
    "budget, failed, of, more",
    [
        (Budget(count=0), 0, 3, 1), (Budget(count=1), 1, 30, 1), (Budget(count=3), 1, 30, 3), (Budget(count=2), 1, 2, 0),
        (Budget(percent=10), 2, 30, 2), (Budget(percent=10), 2, 19, 1), (Budget(percent=100), 1, 5, 0), (Budget(count=1), 4, 9, 1),
    ],
)  # fmt: skip
def test_how_many_more_failures_a_budget_takes(budget: Budget, failed: int, of: int, more: int) -> None:
    assert budget.still(failed, of) == more
    if more:
        assert budget.exceeded_by(failed + more, of)
        assert failed + more == 1 or not budget.exceeded_by(failed + more - 1, of) or budget.exceeded_by(failed, of)
    else:
        assert not budget.exceeded_by(of, of)


@pytest.mark.slow
def test_the_printed_command_takes_a_release_back_where_a_revert_conflicts(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two merges of an operator: an image to all waves, then an app whose line is the next one."""
    codes = [node.words() for node in reader.get("/flagged").nodes if node.tag == "code"]
    words = next(code.split() for code in codes if code.startswith("reconciler "))
    assert words == ["reconciler", "rollback", "v1.4.2"]
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    repo, before = Repo(tmp_path / "clone"), (FLEET / "waves.yaml").read_text(encoding="utf-8")
    for item in ("fleet.yaml", "apps", "images/v1.4.1.yaml", "images/v1.4.2.yaml", "sites"):
        source, target = FLEET / item, repo.path / item
        target.parent.mkdir(parents=True, exist_ok=True)
        _ = shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    repo.commit("Start", {"waves.yaml": before})
    promoted = before.replace("image: v1.4.1", "image: v1.4.2")
    merge = repo.commit("Promote v1.4.2 to all waves", {"waves.yaml": promoted})
    app = ("{video-ingest: 2.7.0}", "{video-ingest: 2.8.0}", 2)
    repo.commit("Promote video-ingest 2.8.0 to lab and canary", {"waves.yaml": promoted.replace(*app)})
    with pytest.raises(subprocess.CalledProcessError):
        repo.git("revert", "--no-edit", merge)
    repo.git("revert", "--abort")
    repo.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"))
    repo.git("remote", "add", "origin", str(tmp_path / "remote.git"))
    repo.git("push", "-q", "origin", "main")
    repo.git("config", "user.name", "Ada")
    repo.git("config", "user.email", "ada@example.org")
    monkeypatch.chdir(repo.path)
    result = CliRunner().invoke(cli, words[1:])
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    assert (
        repo.git("show", "refs/remotes/origin/rollback/v1.4.2-all:waves.yaml").strip() == before.replace(*app).strip()
    )


def test_a_flag_is_acknowledged_and_taken_back(reader: Reader) -> None:
    action, fields = form(reader)
    answer = send(reader, action, fields | {"note": "I <b>look</b>"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/flagged")
    page = reader.get("/flagged")
    assert "anna has acknowledged it, now: I <b>look</b>" in page.of(KEY)
    assert "all acknowledged" in page.text and "its release; somebody has acknowledged it." in reader.get("/").of(
        "lead"
    )
    assert "anna has acknowledged it: I <b>look</b>." in reader.get("/devices/S0-1").text
    assert "every flag is acknowledged" in reader.get("/flagged?show=open").text
    action, fields = form(reader)
    assert action == "/flags/S0-1/take-back" and send(reader, action, fields).status_code == 303
    assert "1 not acknowledged" in reader.get("/flagged").text


def test_a_form_leads_back_to_where_it_was(reader: Reader) -> None:
    action, fields = form(reader, "/flagged?show=open")
    assert send(reader, action, fields).headers["location"] == "/flagged?show=open"


@pytest.mark.slow
@pytest.mark.parametrize("scopes", [(Scope.READ,), None])
def test_who_may_not_acknowledge_sees_no_form(reader: Reader, scopes: tuple[Scope, ...] | None) -> None:
    reader.browser = reader.app.browser()
    if scopes is not None:
        reader.app.log_in(reader.app.token("bert", *scopes), reader.browser)
    else:
        object.__setattr__(reader.app.options, "local", True)
    page = reader.get("/flagged")
    assert "log in with a token that has the scope acknowledge" in page.text
    assert not [node for node in page.ids[KEY].walk() if node.tag == "form"]
    assert "camera" in page.of(KEY)


def test_flags_are_given_in_pages(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.server.dashboard.pages_flagged.ROWS", 1)
    devices = [
        observed(f"S0-{number}", "v1.4.2", health="critical", health_since=NOW, checks_worse=["a"]) for number in (1, 2)
    ]
    reader.api.stage.now = NOW.replace(hour=3)
    reader.api.stage.tick(*[one.model_copy(update={"last_seen": reader.api.stage.now}) for one in devices])
    first = reader.get("/flagged")
    assert [name for name in first.ids if name.startswith("flag-")] == [KEY]
    following = next(node.attributes["href"] for node in first.nodes if node.attributes.get("rel") == "next")
    second = reader.get(following)
    assert [name for name in second.ids if name.startswith("flag-")] == ["flag-S0-2-v1.4.2"]
    assert "rel" not in [name for node in second.nodes for name in node.attributes if name == "rel" and node.tag == "a"]


def test_without_flags_all_is_well(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        reader.api.stage.desired = desired(canary="v1.4.1")
        reader.api.stage.tick(*reader.api.stage.everybody())
        assert "No device is flagged" in reader.get("/flagged").text
        assert reader.get("/flagged?show=strange", status=400).heading == "`show` is open or all"


def test_without_the_store_the_flags_stand_still(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_args: object, **_more: object) -> None:
        raise TransientError("the store does not answer")

    for name in ("observed", "events"):
        monkeypatch.setattr(reader.app.options.store, name, down)
    monkeypatch.setattr(reader.app.options.access, "acknowledgements", down)
    page = reader.get("/flagged")
    assert "The store does not answer now" in page.text and "failed on v1.4.2" in page.of(KEY)
    assert shown(NOW)[:10] in page.text


def test_whoever_is_not_logged_in_is_led_to_the_login(reader: Reader) -> None:
    answer = reader.app.browser(HERE).get("/flagged?show=open", headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fflagged%3Fshow%3Dopen")
