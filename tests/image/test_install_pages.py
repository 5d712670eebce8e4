"""What the pages about a first device say to type on the workstation works, typed in order: a small release, a real store."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.image.disk_data import read_seed
from reconciler.image.enrolment import check_fit, read_enrolment
from reconciler.protocol.manifest import SUMS, SUMS_SIGNATURE
from tests.image.test_disk import BOOT, GRUB_BYTES, LINKS, artifact, slot_image
from tests.support.gpg import Home, make_home
from tests.support.settings import write_settings
from tests.support.system import need

pytestmark = [pytest.mark.slow, pytest.mark.system]
ROOT = Path(__file__).parents[2]
RELEASE = "edge-golden-v1.4.2-20251115"
KEYS = "fleet/images/edge-golden/rootfs/etc/edge/keys"
# What needs a world: a bucket, a downloaded installer, a network, a device, a controller that runs.
ELSEWHERE = (
    r"aws s3 cp",
    r"gpgv --keyring /usr/share/keyrings/ubuntu",
    r"sha256sum --check --ignore-missing",
    r"mkdir offer .* http\.server",
    r"(scp|ssh) ",
    r"reconciler explain",
    r"edge-agent ",
)


@pytest.fixture
def home() -> Iterator[Home]:
    with make_home() as made:
        yield made


def typed(page: str, section: str) -> list[str]:
    """Lines that a person types on the workstation, in order."""
    text = (ROOT / "docs/how-to" / page).read_text()
    part = re.split(r"^## ", text.split(f"\n## {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"```console\n(.*?)```", part, re.DOTALL)
    return [line.strip()[2:] for block in blocks for line in block.splitlines() if line.strip().startswith("$ ")]


def run(lines: list[str], folder: Path) -> str:
    """Type them into one shell; the first that fails ends it. The disks' sizes alone are ours: a slot has 8 GiB."""
    mine = [line for line in lines if not any(re.match(pattern, line) for pattern in ELSEWHERE)]
    script = "\n".join(
        f"{line} --slot-size 32MiB --data-size 64MiB" if line.startswith("reconciler image disk") else line
        for line in mine
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-u", "-o", "pipefail", "-x", "-c", script],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def workstation(tmp_path: Path, home: Home) -> Path:
    """What the pages say that one needs: the release, the fleet repo with its keys, the controller's settings and secrets."""
    folder = tmp_path / "work"
    folder.mkdir()
    key = home.generate("release")
    trusted = {
        "/etc/edge/keys/assignment.gpg": home.export([key]),
        "/etc/edge/keys/assignment.fpr": f"{key}\n".encode(),
    }
    made = artifact(slot_image(tmp_path / "image", {**BOOT, **GRUB_BYTES, **trusted}, LINKS), folder / RELEASE)
    (made / SUMS_SIGNATURE).write_bytes(home.sign_detached((made / SUMS).read_bytes(), key))
    shutil.copytree(ROOT / "fleet", folder / "fleet", ignore=shutil.ignore_patterns("edge-golden", "tests"))
    keys = folder / KEYS
    keys.mkdir(parents=True)
    (keys / "release.gpg").write_bytes(home.export([key]))
    (keys / "release.fpr").write_text(f"{key}\n")
    write_settings(folder)
    secret = folder / "secrets" / "edge" / "SITE-2847" / "vpn"
    secret.parent.mkdir(parents=True)
    (folder / "secrets").chmod(0o700)
    secret.write_text('{"SITE-2847-1": "[Interface]\\nPrivateKey = sentinel\\n"}')
    secret.chmod(0o600)
    return folder


def test_an_install_disk_of_one_device(workstation: Path) -> None:
    for program, package in (("gpgv", "gpgv"), ("zstd", "zstd"), ("mkfs.vfat", "dosfstools"), ("sfdisk", "fdisk")):
        need(program, package)
    lines = typed("install-xr4000.md", "On the workstation")
    assert len(lines) >= 9
    said = run(lines, workstation)
    assert "SITE-2847-1.img.zst" in said and "sentinel" not in said
    seed = read_seed(workstation / "seed-SITE-2847-1")
    enrolment = read_enrolment(workstation / "enrol-SITE-2847-1")
    check_fit(enrolment, seed)
    assert b"sentinel" in seed["user-data"] and seed["digest"].startswith(b"sha256:")
    assert enrolment.files["token"].strip() not in said.encode()
    raw = workstation / "raw.img"
    subprocess.run(["zstd", "-q", "-d", "-o", raw, workstation / "SITE-2847-1.img.zst"], check=True)
    # The bytes of the token, on the data partition and nowhere else.
    assert raw.read_bytes().count(enrolment.files["token"].strip()) == 1


def test_a_disk_for_many_devices_and_a_medium_for_each(workstation: Path) -> None:
    need("xorriso")
    shutil.copytree(workstation / KEYS, workstation / "keys")
    enrol = typed("enrol-a-device.md", "A device with the golden image")
    assert sum(line.startswith("reconciler device enrol") for line in enrol) == 1
    said = run(enrol + typed("enrol-a-device.md", "One disk for many devices"), workstation)
    assert "enrol-SITE-2847-1/token" in said
    assert (workstation / "SITE-2847-1.iso").stat().st_mode & 0o077 == 0
    assert (workstation / "edge-golden-v1.4.2.img.zst").stat().st_mode & 0o004, "it holds nobody's secrets"


def test_a_secret_for_a_new_site_in_a_folder(workstation: Path) -> None:
    text = (ROOT / "docs/how-to/add-a-site.md").read_text()
    (line,) = re.findall(r"\$ (install -D .*)", text)
    (workstation / "vpn.json").write_text('{"SITE-2855-1": "x", "SITE-2855-2": "y"}')
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    site = workstation / "fleet" / "sites" / "SITE-2855.yaml"
    site.write_text(re.sub(r"^   ", "", block[1], flags=re.MULTILINE))
    render = "reconciler site render SITE-2855 --device SITE-2855-2 --config reconciler.yaml --output seed"
    run([line, render], workstation)
    assert b'"y' in (seed := read_seed(workstation / "seed")["user-data"]) or b"y\n" in seed
