"""healthcheck.sh is believed when it answers, and its silence is critical."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from reconciler.agent.healthcheck import read, run
from reconciler.protocol.report import Check
from tests.support.processes import runs, wait_until


def _script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "healthcheck.sh"
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return path


def test_checks_are_taken_in_order_and_skipped_ones_left_out(tmp_path: Path) -> None:
    document = {
        "checks": [
            {"name": "disk", "status": "warning", "message": "86 %"},
            {"name": "gpu", "status": "skipped", "message": "not a running system"},
            {"name": "image", "status": "ok", "message": "v1\u0000"},
        ],
        "status": "warning",
    }
    path = _script(
        tmp_path,
        f"test \"$1 $2 $3\" = '--json --root /x' || exit 9\ncat <<'EOF'\n{json.dumps(document)}\nEOF\nexit 1\n",
    )
    assert run(path, ["--root", "/x"], {}, 60) == (Check("disk", "warning", "86 %"), Check("image", "ok", "v1?"))


def test_it_sees_the_environment_it_is_given_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    line = 'printf \'{"checks":[{"name":"env","status":"ok","message":"%s %s"}]}\' "$SITE_ID" "$TOKEN"\n'
    assert run(_script(tmp_path, line), [], {"SITE_ID": "S"}, 60) == (Check("env", "ok", "S "),)


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"", 0, "not JSON"),
        (b"all is well", 0, "not JSON"),
        (b"{}", 0, "`checks` is missing"),
        (b'{"checks":[{"name":"a","status":"fine"}]}', 0, "`status`"),
        (b'{"checks":[]}', 3, "exit status 3"),
        (b'{"checks":[]}', -9, "exit status -9"),
        (b'{"checks":[]}', 2, "without a critical check"),
    ],
)
def test_what_cannot_be_read_is_critical(data: bytes, status: int, says: str) -> None:
    (check,) = read(data, status)
    assert (check.name, check.status) == ("healthcheck", "critical")
    assert says in check.message


def test_no_name_twice_and_never_more_than_a_report_takes() -> None:
    many = [{"name": f"c{n}", "status": "ok"} for n in range(63)] + [{"name": "healthcheck", "status": "ok"}]
    checks = read(json.dumps({"checks": many}).encode(), 3)
    assert len(checks) == len({check.name for check in checks}) == 64
    assert checks[-1].status == "critical"


def test_a_script_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    mark.write_text("")
    path = _script(tmp_path, f"sleep 1000 & echo $! > {mark}\nwait\n")
    # Where the machine has much to do, the script comes to its child in a longer time only.
    for timeout_s in (0.3, 5, 100):
        (check,) = run(path, [], {}, timeout_s)
        assert f"no answer within {timeout_s:g} s" in check.message
        if child := mark.read_text().strip():
            break
    wait_until(lambda: not runs(child))


def test_a_script_that_is_missing_or_no_program(tmp_path: Path) -> None:
    assert "has no healthcheck.sh" in run(tmp_path / "healthcheck.sh", [], {}, 60)[0].message
    (tmp_path / "healthcheck.sh").write_text("no program")
    assert "cannot be run" in run(tmp_path / "healthcheck.sh", [], {}, 60)[0].message


@pytest.mark.slow
def test_a_script_that_writes_for_ever_is_ended_and_fills_nothing(tmp_path: Path) -> None:
    (check,) = run(_script(tmp_path, "exec yes\n"), [], {}, 0.5)
    assert "no answer within" in check.message


def test_what_a_script_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    """It holds the script's output open."""
    line = 'printf \'{"checks":[{"name":"a","status":"ok","message":""}]}\'\n'
    left = tmp_path / "left"
    assert run(_script(tmp_path, line + f"sleep 1000 &\necho $! > {left}\n"), [], {}, 250) == (Check("a", "ok", ""),)
    os.kill(int(left.read_text()), signal.SIGKILL)
