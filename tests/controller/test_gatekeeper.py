"""Who may work on a state folder, and which signatures are good enough to publish on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.controller.bootstrap import make_folder
from reconciler.controller.gatekeeper import ReleaseKeys, StateLock
from reconciler.ports import TerminalError
from tests.controller.harness import Bench
from tests.support.gpg import make_home
from tests.support.system import need


def test_a_second_controller_on_a_state_folder_is_refused_and_named_the_first(tmp_path: Path) -> None:
    first = StateLock(tmp_path)
    with pytest.raises(TerminalError, match=rf"process {os.getpid()}\) works on .*stop it first"):
        StateLock(tmp_path)
    first.release()
    first.release()
    StateLock(tmp_path).release()


def test_a_killed_controller_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from reconciler.controller.gatekeeper import StateLock;"
        "lock = StateLock(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False).returncode == -9
    StateLock(tmp_path).release()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_state_folder_that_cannot_be_made_says_so(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TerminalError, match=r"cannot make the folder .*file"):
        make_folder(tmp_path / place, "what the controller keeps")


@pytest.mark.system
def test_a_release_is_judged_by_the_keys_that_devices_hold(tmp_path: Path) -> None:
    need("gpg")
    with make_home() as home:
        one, two, foreign = (home.generate(f"{name} <{name}@example>") for name in ("one", "two", "foreign"))
        ring, now, sums = tmp_path / "release.gpg", datetime.now(UTC), b"sums"
        keys = ReleaseKeys(ring, [one.lower(), two], lambda: now)
        with pytest.raises(TerminalError, match=r"cannot read .*gpg --export"):
            keys.judge("v1", sums, home.sign_detached(sums, one), ())
        ring.write_bytes(home.export([one, two, foreign]))
        keys.judge("v1", sums, home.sign_detached(sums, one), ())
        keys.judge("v1", sums, home.sign_detached(sums, two), [two.lower()])
        for data, signer, narrowed in ((sums, foreign, ()), (sums, one, [two]), (b"other", one, ())):
            with pytest.raises(TerminalError, match=r"SHA256SUMS.gpg of v1 is refused.*signature-.*sign the release"):
                keys.judge("v1", data, home.sign_detached(sums, signer), narrowed)
        with pytest.raises(TerminalError, match="is refused"):
            keys.judge("v1", sums, b"", ())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_release_with_a_signature_that_devices_refuse_is_not_published(bench: Bench) -> None:
    bench.signer.sign_release = lambda release, commit: b"foreign"  # type: ignore[method-assign]
    bench.settle()
    assert bench.images.artifacts()["v1.4.1"].state.value == "signed"
    assert any("SHA256SUMS.gpg of v1.4.1 is refused" in text for text in bench.loop.stalled.values())
    bench.store.close()


def test_a_disk_that_is_full_stalls_nothing(bench: Bench) -> None:
    bench.builder.fail = OSError(errno.ENOSPC, "No space left on device", "/builds/x")
    bench.settle()
    assert not bench.loop.stalled
    assert any("No space left on device (/builds/x)" in line["error"] for line in bench.events("retry"))
    bench.builder.fail = None
    bench.clock.step(60)
    bench.settle()
    assert bench.images.artifacts()["v1.4.1"].state.value == "published"
    bench.store.close()
