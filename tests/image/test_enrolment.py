"""An enrolment fits its device, its seed and the paths of the image; a medium carries both, the same bytes every time."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.image.enrolment import check_fit, read_enrolment, settings_text
from reconciler.image.seed_medium import make_medium
from reconciler.model.desired import FleetSpec, SiteSpec
from reconciler.ports import TerminalError
from reconciler.repo.render import render_site, resolve
from tests.support.system import need

TOKEN = "edge_" + "t" * 43


def seed(site: str = "SITE-1", device: str = "SITE-1-1") -> dict[str, bytes]:
    spec = SiteSpec.model_validate({"timezone": "Europe/Berlin", "devices": [device]})
    return resolve(render_site(site, spec, FleetSpec(registry="registry.example"), device), str, "sha256:" + "a" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "enrol"
    made.mkdir(mode=0o700)
    (made / "agent.json").write_bytes(settings_text("SITE-1-1", "SITE-1", "https://h.example", authority=False))
    (made / "token").write_text(TOKEN + "\n")
    (made / "token").chmod(0o600)
    return made


def change(folder: Path, **values: Any) -> None:
    path = folder / "agent.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_it_is_read_whole_and_never_shown(folder: Path) -> None:
    found = read_enrolment(folder)
    assert (found.device, found.site) == ("SITE-1-1", "SITE-1")
    assert set(found.files) == {"agent.json", "token"}
    assert TOKEN not in repr(found)
    check_fit(found, seed())


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no token": (lambda at: (at / "token").unlink(), "holds no token"),
    "no settings": (lambda at: (at / "agent.json").unlink(), r"holds no agent\.json"),
    "an empty token": (lambda at: (at / "token").write_text("\n"), "token holds no token"),
    "two tokens": (lambda at: (at / "token").write_text(f"{TOKEN}\n{TOKEN}\n"), "token holds no token"),
    "a token for all to read": (lambda at: (at / "token").chmod(0o644), "can be read by others"),
    "a foreign file": (lambda at: (at / "id_rsa").write_text(""), "'id_rsa', which no device needs"),
    "no JSON": (lambda at: (at / "agent.json").write_text("{"), "is no JSON"),
    "a list": (lambda at: (at / "agent.json").write_text("[]"), "no JSON object"),
    "a path of the workstation": (lambda at: change(at, tokenFile="tokens/x"), "tokenFile is 'tokens/x'"),
    "a device as a folder": (lambda at: change(at, hardware="directory"), "hardware is 'directory'"),
    "clear text": (lambda at: change(at, server="http://h.example"), "in clear text"),
    "no name": (lambda at: change(at, device="-x"), "device is '-x', not a name"),
    "an authority that is not there": (lambda at: change(at, caFile="/var/lib/edge-agent/ca.pem"), r"ca\.pem is not"),
    "an authority that is not named": (lambda at: (at / "ca.pem").write_text("x"), "caFile is None"),
    "too large": (lambda at: (at / "agent.json").write_bytes(bytes(70_000)), "larger than 64 KiB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_not_work_on_the_device_is_refused(fault: str, folder: Path) -> None:
    spoil, says = FAULTS[fault]
    spoil(folder)
    with pytest.raises(TerminalError, match=says) as caught:
        read_enrolment(folder)
    assert TOKEN not in str(caught.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="is no folder"):
        read_enrolment(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (seed("SITE-1", "SITE-1-2"), "for host site-1-2, and the enrolment for device SITE-1-1"),
        (seed("SITE-2", "SITE-1-1"), "for site SITE-2, and the enrolment for SITE-1"),
        ({"meta-data": b"instance-id: x\n", "user-data": b"#cloud-config\n"}, "names no device or no site"),
        ({"meta-data": b"[", "user-data": b"#cloud-config\n"}, "names no device or no site"),
    ],
)
def test_a_seed_of_another_device_does_not_go_with_it(files: dict[str, bytes], says: str, folder: Path) -> None:
    with pytest.raises(TerminalError, match=says):
        check_fit(read_enrolment(folder), files)


# ---------------------------------------------------------------- the medium


def extracted(iso: Path, to: Path) -> dict[str, bytes]:
    argv = [need("xorriso"), "-osirrox", "on", "-indev", str(iso), "-extract", "/", str(to)]
    subprocess.run(argv, capture_output=True, check=True)
    return {str(path.relative_to(to)): path.read_bytes() for path in to.rglob("*") if path.is_file()}


@pytest.mark.system
def test_a_medium_is_labelled_for_the_image_and_carries_both(folder: Path, tmp_path: Path) -> None:
    need("xorriso")
    iso = tmp_path / "seed.iso"
    make_medium(iso, seed(), read_enrolment(folder))
    label = [need("blkid", "util-linux"), "--probe", "--match-tag", "LABEL", "--output", "value", str(iso)]
    assert subprocess.run(label, capture_output=True, text=True, check=True).stdout.strip() == "CIDATA"
    found = extracted(iso, tmp_path / "out")
    enrolled = {f"enrol/{name}": (folder / name).read_bytes() for name in ("agent.json", "token")}
    assert found == {**seed(), **enrolled}
    assert stat.S_IMODE(iso.stat().st_mode) == 0o600
    listed = subprocess.run(
        [need("xorriso"), "-indev", str(iso), "-find", "/", "-exec", "lsdl"], capture_output=True, check=True
    )
    rows = [line.split() for line in listed.stdout.decode().splitlines() if line.startswith(("-", "d"))]
    assert {(row[0], row[2], row[3]) for row in rows} == {("drwx------", "0", "0"), ("-rw-------", "0", "0")}


@pytest.mark.system
def test_the_same_seed_is_the_same_medium(tmp_path: Path) -> None:
    need("xorriso")
    one, two = tmp_path / "one.iso", tmp_path / "elsewhere" / "two.iso"
    two.parent.mkdir()
    make_medium(one, seed())
    make_medium(two, dict(reversed(seed().items())))
    assert one.read_bytes() == two.read_bytes()
    assert [path.name for path in two.parent.iterdir()] == ["two.iso"]


@pytest.mark.system
def test_a_medium_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    need("xorriso")
    with pytest.raises(TerminalError, match=r"seed\.iso cannot be written: No such file"):
        make_medium(tmp_path / "nowhere" / "seed.iso", seed())
