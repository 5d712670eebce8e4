"""The seed's folder shows one whole configuration at every instant, and the one before it comes back."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from reconciler.agent.activation import MEANINGS, UnitActivation
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.agent.seed import NotInForce, Seed
from reconciler.protocol.exchange import SiteConfig
from tests.support.processes import wait_until

NAMES = ("user-data", "meta-data", "network-config", "vendor-data", "digest")


class PowerCut(Exception):
    pass


def _config(digit: str, **files: bytes) -> SiteConfig:
    named = {name.replace("_", "-"): data for name, data in files.items()}
    text = f"secret {digit}\n".encode()
    return SiteConfig("sha256:" + digit * 64, {"user-data": text, "meta-data": text, **named})


ONE, TWO, THREE = _config("1", network_config=b"secret 1\n"), _config("2"), _config("3", network_config=b"secret 3\n")


def _whole(config: SiteConfig) -> dict[str, bytes]:
    return {**config.files, "digest": config.digest.encode() + b"\n"}


def _shown(folder: Path) -> dict[str, bytes]:
    """What cloud-init would find."""
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).exists()}


def _bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cidata"


@pytest.fixture
def seed(folder: Path) -> Seed:
    return Seed(folder, Disk())


def _plain(folder: Path, files: Mapping[str, bytes]) -> None:
    """A seed as an install disk brings it, or a person."""
    folder.mkdir(mode=0o700)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)


def test_without_a_seed_there_is_no_digest(seed: Seed, folder: Path) -> None:
    assert seed.digest() is None
    assert not folder.exists()


def test_a_configuration_is_shown_whole_and_to_its_owner_alone(seed: Seed, folder: Path) -> None:
    seed.store(ONE)
    assert seed.digest() == ONE.digest
    assert _shown(folder) == _whole(ONE)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*")) if path.is_dir()}
    assert (modes, folders) == ({0o600}, {0o700})


def test_the_one_before_comes_back(seed: Seed, folder: Path) -> None:
    seed.store(ONE)
    seed.store(TWO)
    assert _shown(folder) == _whole(TWO)
    assert "network-config" not in os.listdir(folder), "a link that leads nowhere was left"
    seed.put_back(ONE.digest)
    assert _shown(folder) == _whole(ONE)
    seed.put_back(ONE.digest)
    assert _shown(folder) == _whole(ONE)


def test_of_what_went_before_only_the_last_is_kept(seed: Seed, folder: Path) -> None:
    for config in (ONE, TWO, THREE):
        seed.store(config)
    assert b"secret 1" not in _bytes_below(folder)
    assert b"secret 2" in _bytes_below(folder)
    seed.put_back(TWO.digest)
    assert b"secret 3" not in _bytes_below(folder), "what was put back lies around with its secrets"


def test_what_is_no_longer_here_cannot_be_put_back(seed: Seed, folder: Path) -> None:
    for config in (ONE, TWO, THREE):
        seed.store(config)
    for digest in (ONE.digest, None):
        with pytest.raises(HardwareError, match="not on the device any more"):
            seed.put_back(digest)
    assert _shown(folder) == _whole(THREE)


def test_going_back_to_the_state_without_a_configuration(seed: Seed, folder: Path) -> None:
    seed.store(ONE)
    seed.put_back(None)
    assert seed.digest() is None
    assert _shown(folder) == {}


def test_an_installed_seed_with_its_digest_is_not_stored_again(folder: Path) -> None:
    _plain(folder, _whole(ONE))
    steps: list[str] = []
    seed = Seed(folder, Disk(steps.append))
    assert seed.digest() == ONE.digest
    seed.store(ONE)
    assert steps == []


def test_an_installed_seed_without_a_digest_comes_back_as_it_was(seed: Seed, folder: Path) -> None:
    files = {"user-data": b"#cloud-config\n", "meta-data": b"instance-id: x\n", "vendor-data": b"by hand\n"}
    _plain(folder, files)
    assert seed.digest() is None
    seed.store(ONE)
    assert _shown(folder) == _whole(ONE)
    seed.put_back(None)
    assert _shown(folder) == files


def test_files_that_a_person_put_there_meanwhile_are_what_comes_back(seed: Seed, folder: Path) -> None:
    seed.store(ONE)
    (folder / "user-data").unlink()
    (folder / "user-data").write_bytes(b"by hand\n")
    seed.store(TWO)
    assert _shown(folder) == _whole(TWO)
    seed.put_back(ONE.digest)
    assert _shown(folder) == {**_whole(ONE), "user-data": b"by hand\n"}


def test_a_digest_that_is_none_is_not_reported(seed: Seed, folder: Path) -> None:
    _plain(folder, {"digest": b"\xff sha256:nonsense\n"})
    assert seed.digest() is None


def _store_two(seed: Seed) -> None:
    seed.store(TWO)


def _store_and_put_back(seed: Seed) -> None:
    before = seed.digest()
    seed.store(TWO)
    seed.put_back(before)


def _begin_with(first: str, folder: Path) -> dict[str, bytes]:
    """A folder before the cut: what it shows."""
    plain = {"user-data": b"secret 0\n", "meta-data": b"secret 0\n", "network-config": b"secret 0\n"}
    if first == "nothing":
        return {}
    if first == "plain":
        _plain(folder, plain)
        return plain
    seed = Seed(folder, Disk())
    seed.store(THREE)
    seed.store(ONE)
    return _whole(ONE)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["nothing", "plain", "stored"])
@pytest.mark.parametrize("what", [_store_two, _store_and_put_back])
def test_power_cut_before_every_step(
    what: Callable[[Seed], None], first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cut is one of the program: what was written is there, synced or not, and hundreds of syncs would take long.
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    steps = 0
    while True:
        folder = tmp_path / f"{steps}" / "cidata"
        folder.parent.mkdir()
        before = _begin_with(first, folder)
        shown: list[dict[str, bytes]] = []

        def meter(step: str, left: list[int], folder: Path = folder, shown: list[dict[str, bytes]] = shown) -> None:
            shown.append(_shown(folder))
            if left[0] == 0:
                raise PowerCut(step)
            left[0] -= 1

        left = [steps]
        try:
            what(Seed(folder, Disk(lambda step, left=left, meter=meter: meter(step, left))))  # type: ignore[misc]
        except PowerCut as cut:
            allowed = (before, _whole(TWO))
            assert all(item in allowed for item in shown), f"cut before {cut}"
            again = Seed(folder, Disk())
            again.store(TWO)
            assert _shown(folder) == _whole(TWO), f"cut before {cut}"
            again.put_back(_digest(before))
            assert _shown(folder) == before, f"cut before {cut}"
            steps += 1
            continue
        break
    assert steps > 8


def _digest(files: Mapping[str, bytes]) -> str | None:
    return files["digest"].decode().strip() if "digest" in files else None


def test_a_full_disk_is_an_error_of_the_machine(folder: Path) -> None:
    def full(_step: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(HardwareError, match=r"cannot be stored: .*No space left"):
        Seed(folder, Disk(full)).store(ONE)


# ---------------------------------------------------------------- putting it in force


SLOW = 'start) while [ ! -e "$0.go" ]; do sleep 0.02; done ;;'
"""A unit that takes as long as a test lets it."""


def _go(tmp_path: Path) -> None:
    (tmp_path / "systemctl.go").touch()


def _systemctl(tmp_path: Path, script: str) -> UnitActivation:
    """systemctl, played by a script that notes what it was asked."""
    path = tmp_path / "systemctl"
    path.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/asked"\ncase $1 in {script} esac\n')
    path.chmod(0o755)
    return UnitActivation(systemctl=("/bin/sh", str(path)))


def _drain(seed: Seed, meanwhile: Callable[[], None] = lambda: None) -> int:
    """How often somebody else could have worked meanwhile, and did."""
    pauses = 0
    for wait_s in seed.activate():
        pauses += 1
        meanwhile()
        time.sleep(min(wait_s, 0.05))
    return pauses


def test_without_an_activation_it_is_in_force_at_once(seed: Seed) -> None:
    seed.store(ONE)
    assert list(seed.activate()) == []


def test_the_unit_is_waited_for_in_pieces(folder: Path, tmp_path: Path) -> None:
    seed = Seed(folder, Disk(), _systemctl(tmp_path, SLOW))
    assert _drain(seed, lambda: _go(tmp_path)) >= 1
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "start edge-configure.service"


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [("11", 11, "cloud-init failed"), ("13", 13, "a service"), ("0", -1, "could not be started"), ("77", 77, "ended")],
)
def test_a_unit_that_fails_is_told_by_its_status(
    answer: str, status: int, words: str, folder: Path, tmp_path: Path
) -> None:
    seed = Seed(folder, Disk(), _systemctl(tmp_path, f"start) exit 1 ;; show) echo {answer} ;;"))
    with pytest.raises(NotInForce, match=f"exit status {status}, .*{words}.*journalctl -u edge-configure") as caught:
        _drain(seed)
    assert caught.value.status == status


def test_one_that_runs_is_joined(folder: Path, tmp_path: Path) -> None:
    seed = Seed(folder, Disk(), _systemctl(tmp_path, SLOW))
    next(seed.activate())
    assert _drain(seed, lambda: _go(tmp_path)) >= 1
    assert (tmp_path / "asked").read_text().count("start ") == 1


def test_one_that_never_ends_is_given_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.agent.seed.LONGEST_S", 0.0)
    activation = _systemctl(tmp_path, SLOW)
    with pytest.raises(NotInForce, match="not in force after"):
        _drain(Seed(folder, Disk(), activation))
    _go(tmp_path)
    wait_until(lambda: activation.ended() is not None)


def test_without_systemd_the_machine_is_at_fault(folder: Path) -> None:
    seed = Seed(folder, Disk(), UnitActivation(systemctl=("/nonexistent/systemctl",)))
    with pytest.raises(HardwareError, match="cannot be started"):
        _drain(seed)


def test_the_image_the_agent_and_the_page_know_the_same_exit_statuses() -> None:
    root = Path(__file__).parents[2]
    script = (root / "fleet/images/edge-golden/rootfs/usr/local/lib/edge/configure").read_text()
    page = (root / "docs/reference/device.md").read_text().split("## The site's configuration")[1].split("\n## ")[0]
    ends = {int(number) for number in re.findall(r"\bfail (\d+) ", script)}
    told = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert ends == told - {0} == set(MEANINGS)
