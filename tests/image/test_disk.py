"""Install disks of a small slot image: what lies where, the same bytes twice, and what is refused before it is made."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.main import cli
from reconciler.image.disk import MIB, Disk, make_disk, plan_layout
from reconciler.image.disk_boot import GRUB, SHIM
from reconciler.image.disk_data import read_seed
from reconciler.image.disk_slot import check_signature, open_source
from reconciler.image.enrolment import settings_text
from reconciler.model.desired import FleetSpec, SiteSpec
from reconciler.ports import TerminalError, TransientError
from reconciler.protocol import grubenv
from reconciler.protocol.manifest import NAME, SUMS, SUMS_SIGNATURE, Manifest
from reconciler.protocol.sums import format_sums
from reconciler.repo.render import render_site, resolve
from tests.support.gpg import Home, make_home
from tests.support.system import need

pytestmark = pytest.mark.system
SIZES = {"slot_size": 32 * MIB, "data_size": 64 * MIB}
SEED = {"user-data": b"#cloud-config\nkey: secret\n", "meta-data": b"instance-id: x\n"}
PAPERS = {"agent.json": b"{}\n", "token": b"edge_token\n"}
FLEET = FleetSpec(registry="registry.example")
VPN = {"type": "wireguard", "secretRef": "edge/SITE-1/vpn"}
SPEC = SiteSpec.model_validate({"timezone": "Europe/Berlin", "devices": ["SITE-1-1", "SITE-1-2"], "vpn": VPN})
MASKED = render_site("SITE-1", SPEC, FLEET)
BOOT = {"/boot/vmlinuz-6": b"kernel", "/boot/initrd.img-6": b"initrd", SHIM: b"MZ shim"}
LINKS = {"/boot/vmlinuz": "vmlinuz-6", "/boot/initrd.img": "initrd.img-6"}
GRUB_BYTES = {GRUB: b"MZ grub \0/EFI/debian\0"}


def slot_image(folder: Path, files: Mapping[str, bytes], links: Mapping[str, str], name: str = "slot.img") -> Path:
    """An ext4 image of 16 MiB with these files."""
    root, image = folder / f"root-of-{name}", folder / name
    root.mkdir(parents=True)
    for path, data in files.items():
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_bytes(data)
    for path, target in links.items():
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).symlink_to(target)
    mke2fs = need("mke2fs", "e2fsprogs")
    subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(root), str(image), "16m"], check=True)
    return image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for program, package in (("mkfs.vfat", "dosfstools"), ("mcopy", "mtools"), ("sfdisk", "fdisk"), ("zstd", "zstd")):
        need(program, package)
    return slot_image(tmp_path_factory.mktemp("slot"), {**BOOT, **GRUB_BYTES}, LINKS)


@pytest.fixture(scope="module")
def made(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Disk:
    out = tmp_path_factory.mktemp("disk") / "disk.img"
    return make_disk(open_source(image), out, seed=SEED, enrolment=PAPERS, **SIZES)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def esp(disk: Disk, path: str) -> bytes:
    """A file of the disk's ESP."""
    at = f"{disk.path}@@{disk.layout.esp.start}"
    return subprocess.run([need("mtype", "mtools"), "-i", at, f"::/{path}"], capture_output=True, check=True).stdout


def data_file(disk: Disk, path: str) -> str:
    at = f"{disk.path}?offset={disk.layout.data.start}"
    argv = [need("debugfs", "e2fsprogs"), "-R", f"stat {path}", at]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def artifact(image: Path, folder: Path, **changed: object) -> Path:
    """The folder of a release around an image, with fitting papers."""
    folder.mkdir()
    packed = folder / "edge-golden-v1.4.2-20251115.img.zst"
    subprocess.run([need("zstd"), "-q", "-o", str(packed), str(image)], check=True)
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    told = {
        "release": "v1.4.2",
        "file": packed.name,
        "size": packed.stat().st_size,
        "compression": "zstd",
        "image_size": image.stat().st_size,
        "digest": "sha256:" + hashlib.sha256(image.read_bytes()).hexdigest(),
        **changed,
    }
    data = Manifest(**told).to_bytes()
    (folder / NAME).write_bytes(data)
    (folder / SUMS).write_bytes(format_sums({packed.name: sha256, NAME: hashlib.sha256(data).hexdigest()}))
    return folder


def test_the_partitions_are_what_the_boot_loader_and_the_image_look_for(made: Disk, image: Path) -> None:
    table = json.loads(
        subprocess.run([need("sfdisk", "fdisk"), "-J", str(made.path)], capture_output=True, check=True).stdout
    )["partitiontable"]
    assert [part["name"] for part in table["partitions"]] == ["esp", "root-a", "root-b", "edge-data"]
    assert all(part["start"] * 512 % MIB == 0 for part in table["partitions"])
    assert [part["size"] * 512 // MIB for part in table["partitions"]] == [256, 32, 32, 64]
    verified = subprocess.run(["sfdisk", "--verify", str(made.path)], capture_output=True, text=True, check=True)
    assert "No errors" in verified.stdout
    with made.path.open("rb") as file:
        file.seek(made.layout.root_a.start)
        assert file.read(image.stat().st_size) == image.read_bytes()
        assert not any(file.read(made.layout.data.start - file.tell()))  # the rest of slot a, and all of slot b


def test_the_boot_loader_comes_out_of_the_image(made: Disk) -> None:
    assert esp(made, "EFI/BOOT/BOOTX64.EFI") == BOOT[SHIM]
    assert esp(made, "EFI/BOOT/grubx64.efi") == GRUB_BYTES[GRUB]
    assert b"edge.slot=$1" in esp(made, "EFI/debian/grub.cfg")
    environment = esp(made, "EFI/edge/grubenv")
    assert len(environment) == 1024 and environment.startswith(b"# GRUB Environment Block\nedge_default=a\n")
    assert esp(made, "EFI/edge/grubenv.bak") == grubenv.encode({"edge_default": "a"})


@pytest.mark.parametrize(("where", "files"), [("/cidata", SEED), ("/edge", PAPERS)])
def test_what_is_the_devices_lies_where_the_image_looks_and_is_read_by_root_alone(
    where: str, files: Mapping[str, bytes], made: Disk
) -> None:
    assert "User:     0   Group:     0" in (folder := data_file(made, where)) and "Mode:  0700" in folder
    for name, content in files.items():
        said = data_file(made, f"{where}/{name}")
        assert "Mode:  0600" in said and "User:     0   Group:     0" in said and f"Size: {len(content)}" in said
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600


def test_a_disk_of_nobody_has_neither_and_may_be_read_by_all(image: Path, tmp_path: Path) -> None:
    plain = make_disk(open_source(image), tmp_path / "plain.img", **SIZES)
    said = subprocess.run(
        [need("debugfs", "e2fsprogs"), "-R", "ls -p /", f"{plain.path}?offset={plain.layout.data.start}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "lost+found" in said and "cidata" not in said and "/edge/" not in said
    assert stat.S_IMODE(plain.path.stat().st_mode) & 0o044
    enrolled = make_disk(open_source(image), tmp_path / "enrolled.img", enrolment=PAPERS, **SIZES)
    assert stat.S_IMODE(enrolled.path.stat().st_mode) == 0o600
    assert enrolled.digest != plain.digest


def test_the_same_inputs_give_the_same_disk_elsewhere_and_later(made: Disk, image: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another name.img"
    shutil.copyfile(image, copy)
    again = make_disk(
        open_source(copy), tmp_path / "d?offset=1.img", seed=dict(reversed(SEED.items())), enrolment=PAPERS, **SIZES
    )
    assert again.digest == made.digest == sha256(again.path)
    other = make_disk(open_source(copy), tmp_path / "other.img", seed={**SEED, "digest": b"d"}, **SIZES)
    with other.path.open("rb") as one, made.path.open("rb") as two:
        assert one.read(MIB) != two.read(MIB)  # its identifiers too


def test_a_packed_disk_unpacks_to_the_same_bytes(made: Disk, image: Path, tmp_path: Path) -> None:
    packed = make_disk(open_source(image), tmp_path / "disk.img.zst", seed=SEED, enrolment=PAPERS, **SIZES)
    raw = tmp_path / "raw"
    subprocess.run(["zstd", "-q", "-d", "-o", str(raw), str(packed.path)], check=True)
    assert packed.digest == made.digest == sha256(raw)
    assert packed.file_digest == hashlib.sha256(packed.path.read_bytes()).hexdigest()
    assert packed.file_size == packed.path.stat().st_size < 2 * MIB
    twice = make_disk(open_source(image), tmp_path / "twice.img.zst", seed=SEED, enrolment=PAPERS, **SIZES)
    assert twice.file_digest == packed.file_digest


def test_an_artifact_is_checked_against_its_papers(made: Disk, image: Path, tmp_path: Path) -> None:
    folder = artifact(image, tmp_path / "whole")
    disk = make_disk(open_source(folder), tmp_path / "disk.img", seed=SEED, enrolment=PAPERS, **SIZES)
    assert disk.digest == made.digest
    packed = next(folder.glob("*.zst"))
    packed.write_bytes(packed.read_bytes()[:-1] + b"x")
    with pytest.raises(TerminalError, match="has another sha256 than SHA256SUMS says"):
        open_source(folder)
    (folder / NAME).write_bytes((folder / NAME).read_bytes().replace(b"v1.4.2", b"v1.4.3"))
    with pytest.raises(TerminalError, match=r"manifest\.json is not the one that SHA256SUMS names"):
        open_source(folder)
    (folder / SUMS).unlink()
    with pytest.raises(TerminalError, match="is no artifact: SHA256SUMS: No such file"):
        open_source(folder)
    lying = artifact(image, tmp_path / "lying", digest="sha256:" + "0" * 64)
    with pytest.raises(TerminalError, match="and the manifest says otherwise"):
        make_disk(open_source(lying), tmp_path / "lying.img", **SIZES)
    wide = artifact(image, tmp_path / "wide", extra={"minSlotSize": 33 * MIB})
    with pytest.raises(TerminalError, match="needs a slot of 33 MiB, and --slot-size is 32 MiB"):
        make_disk(open_source(wide), tmp_path / "wide.img", **SIZES)
    assert not (tmp_path / "wide.img").exists() and not (tmp_path / "lying.img").exists()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with make_home() as made:
        yield made


def test_only_an_allowed_key_makes_an_artifact_acceptable(image: Path, tmp_path: Path, home: Home) -> None:
    folder, keys = artifact(image, tmp_path / "artifact"), tmp_path / "keys"
    keys.mkdir()
    with pytest.raises(TerminalError, match=r"is not signed: it has no SHA256SUMS\.gpg"):
        check_signature(folder, keys)
    good, other = home.generate("release"), home.generate("other")
    (keys / "release.gpg").write_bytes(home.export([good, other]))
    (keys / "release.fpr").write_text(f"{good}\n")
    for signer, fine in ((good, True), (other, False)):
        (folder / SUMS_SIGNATURE).write_bytes(home.sign_detached((folder / SUMS).read_bytes(), signer))
        if fine:
            check_signature(folder, keys)
        else:
            with pytest.raises(TerminalError, match=f"is refused: signed by {other}, which is not an allowed key"):
                check_signature(folder, keys)
    (keys / "release.fpr").write_text("nonsense\n")
    with pytest.raises(TerminalError, match="write one fingerprint of 40 digits a line"):
        check_signature(folder, keys)


UBUNTU = {
    "/boot/vmlinuz-6": b"kernel",
    "/boot/initrd.img-6": b"initrd",
    "/usr/lib/shim/shimx64.efi.signed.latest": b"MZ latest",
    GRUB: b"MZ grub \0/EFI/ubuntu\0",
}
UBUNTU_LINKS = {
    **LINKS,
    SHIM: "/etc/alternatives/shimx64.efi.signed",
    "/etc/alternatives/shimx64.efi.signed": "../../usr/lib/shim/shimx64.efi.signed.latest",
}


def test_ubuntus_shim_is_found_behind_its_alternatives(tmp_path: Path) -> None:
    slot = slot_image(tmp_path, UBUNTU, UBUNTU_LINKS)
    disk = make_disk(open_source(slot), tmp_path / "disk.img", **SIZES)
    assert disk.vendor == "ubuntu"
    assert esp(disk, "EFI/BOOT/BOOTX64.EFI") == b"MZ latest" and b"edge_trial" in esp(disk, "EFI/ubuntu/grub.cfg")


@pytest.mark.parametrize(
    ("files", "links", "said"),
    [
        (BOOT, LINKS, "holds no /usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed.*grub-efi-amd64-signed"),
        ({**BOOT, **GRUB_BYTES}, {"/boot/vmlinuz": "vmlinuz-6"}, "holds no /boot/initrd.img"),
        ({**BOOT, **GRUB_BYTES}, {**LINKS, "/boot/vmlinuz": "gone"}, "holds no /boot/vmlinuz"),
        ({**BOOT, **GRUB_BYTES, SHIM: b"#!/bin/sh"}, LINKS, "is no EFI program.*build the image with shim-signed"),
        ({**BOOT, GRUB: b"MZ \0/EFI/suse\0"}, LINKS, "names no folder that is known"),
        ({**GRUB_BYTES, **BOOT}, {**LINKS, "/boot/vmlinuz": "vmlinuz"}, "holds no /boot/vmlinuz"),
    ],
)
def test_an_image_that_could_not_boot_makes_no_disk(
    tmp_path: Path, files: dict[str, bytes], links: dict[str, str], said: str
) -> None:
    slot = slot_image(tmp_path, files, links)
    with pytest.raises(TerminalError, match=said):
        make_disk(open_source(slot), tmp_path / "disk.img", **SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root-of-slot.img", "slot.img"]


def test_what_is_no_slot_image_makes_no_disk(image: Path, made: Disk, tmp_path: Path) -> None:
    out = tmp_path / "out" / "disk.img"
    out.parent.mkdir()
    out.write_bytes(b"before")
    bad = tmp_path / "bad.img"
    cases = (
        (image.read_bytes()[: 8 * MIB], "has 8388608 bytes, and its file system 16777216"),
        (image.read_bytes() + bytes(MIB), "its file system 16777216"),
        (made.path.read_bytes()[: 20 * MIB], "is no ext4 file system that a slot can hold"),
        (b"", "is no ext4 file system"),
        (b"\x28\xb5\x2f\xfd nonsense", "cannot be unpacked"),
        (bytes(33 * MIB), "needs a slot of 33 MiB"),
    )
    for data, said in cases:
        bad.write_bytes(data)
        with pytest.raises(TerminalError, match=said):
            make_disk(open_source(bad), out, **SIZES)
    wide = tmp_path / "wide.img.zst"
    subprocess.run(["zstd", "-q", "-o", str(wide)], input=bytes(33 * MIB), check=True)
    with pytest.raises(TerminalError, match="unpacks to more than a slot of 32 MiB"):
        make_disk(open_source(wide), out, **SIZES)
    with pytest.raises(TerminalError, match="does not exist"):
        open_source(tmp_path / "absent")
    assert out.read_bytes() == b"before" and list(out.parent.iterdir()) == [out]


def test_the_image_is_never_written_over_by_its_own_disk(image: Path, tmp_path: Path) -> None:
    copy, link = tmp_path / "slot.img", tmp_path / "link.img"
    shutil.copyfile(image, copy)
    link.symlink_to(copy)
    for given, out in ((copy, copy), (link, copy), (artifact(image, tmp_path / "a"), None)):
        source = open_source(given)
        with pytest.raises(TerminalError, match="is the image itself"):
            make_disk(source, out or source.path, **SIZES)
    assert sha256(copy) == sha256(image)


def test_a_full_disk_is_said_and_leaves_nothing(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TransientError, match=r"disk\.img cannot be written: No space left on device.*make room"):
        make_disk(open_source(image), tmp_path / "disk.img", **SIZES)
    assert os.listdir(tmp_path) == []
    with pytest.raises(TerminalError, match="name a file in a folder that you may write to"):
        make_disk(open_source(image), tmp_path / "absent" / "disk.img", **SIZES)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"meta-data": "instance-id: x\n"}, "holds no user-data"),
        ({"user-data": "#cloud-config\n", "meta-data": "local-hostname: x\n"}, "has no instance-id"),
        ({"user-data": "hello", "meta-data": "instance-id: x\n"}, "does not begin with #cloud-config"),
        ({"user-data": "#cloud-config\n", "meta-data": "instance-id: x\n", "user-data~": ""}, "'user-data~'"),
        ({**MASKED.files()}, "names a secret where its value should stand.*--secrets or --config"),
    ],
)
def test_a_seed_that_cloud_init_would_not_take_is_refused(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TerminalError, match=said):
        read_seed(tmp_path)


def test_sizes_that_make_no_sense_are_refused() -> None:
    for sizes, said in (
        ((MIB + 512, 64 * MIB), "--slot-size is 1049088 bytes, no whole MiB"),
        ((0, 64 * MIB), "--slot-size is 0 MiB"),
        ((MIB, 32 * MIB), "--data-size is 32 MiB.*between 64 MiB and"),
        ((MIB, 1 << 50), "--data-size is"),
    ):
        with pytest.raises(TerminalError, match=said):
            plan_layout(*sizes)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["image", "disk", *map(str, arguments)])


def test_the_command_says_what_it_made(made: Disk, image: Path, tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.mkdir()
    for name, data in SEED.items():
        (seed / name).write_bytes(data)
    out = tmp_path / "disk.img"
    arguments = (image, "--out", out, "--slot-size", "32MiB", "--data-size", "64 mib", "--seed", seed)
    result = invoke(*arguments, "--output", "json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["sha256"] == sha256(out) != made.digest and said["size"] == out.stat().st_size
    assert [part["number"] for part in said["partitions"]] == [1, 2, 3, 4]
    assert "only you may read it" in result.stderr and "boot loader" in result.stderr
    text = invoke(*arguments).stdout
    assert f"sha256 {said['sha256']}" in text and "edge-data 64 MiB; boots by the debian shim" in text


RING, NAMED = "/etc/edge/keys/assignment.gpg", "/etc/edge/keys/assignment.fpr"


def test_a_managed_device_must_hold_a_key_that_signs_assignments(tmp_path: Path, home: Home) -> None:
    key = home.generate("assignments")
    ring, named = home.export([key]), f"{key}\n".encode()
    kept = {"/usr/lib/keys/ring": ring, NAMED: named}
    cases: list[tuple[dict[str, bytes], dict[str, str], str | None]] = [
        ({RING: ring, NAMED: named}, {}, None),
        (kept, {RING: "../../../usr/lib/keys/ring"}, None),
        ({}, {}, f"it has no {RING}"),
        ({RING: ring}, {}, f"{NAMED}: there is none"),
        ({RING: ring, NAMED: b"0" * 40}, {}, "is not in assignment.gpg"),
        (kept, {RING: "nowhere"}, f"{RING}: there is none"),
    ]
    for number, (files, links, said) in enumerate(cases):
        folder = tmp_path / str(number)
        slot = slot_image(folder, {**BOOT, **GRUB_BYTES, **files}, {**LINKS, **links})
        out = folder / "disk.img"
        if said is None:
            assert make_disk(open_source(slot), out, enrolment=PAPERS, managed=True, **SIZES).path == out
            continue
        with pytest.raises(TerminalError, match=said) as caught:
            make_disk(open_source(slot), out, enrolment=PAPERS, managed=True, **SIZES)
        assert "would report, and obey nobody" in str(caught.value) and "rootfs/etc/edge/keys" in caught.value.remedy
        assert sorted(path.name for path in folder.iterdir()) == ["root-of-slot.img", "slot.img"]


def test_an_enrolment_goes_onto_the_disk_of_its_own_device_alone(image: Path, tmp_path: Path, home: Home) -> None:
    enrol, seed, out = tmp_path / "enrol", tmp_path / "seed", tmp_path / "disk.img"
    for folder in (enrol, seed):
        folder.mkdir(mode=0o700)
    (enrol / "agent.json").write_bytes(settings_text("SITE-1-2", "SITE-1", "https://h.example", authority=False))
    (enrol / "token").write_text("edge_" + "t" * 43 + "\n")
    (enrol / "token").chmod(0o600)
    key = home.generate("assignments")
    trusted = {RING: home.export([key]), NAMED: f"{key}\n".encode()}
    slot = slot_image(tmp_path / "slot", {**BOOT, **GRUB_BYTES, **trusted}, LINKS)
    rest = ("--out", out, "--slot-size", "32MiB", "--data-size", "64MiB", "--seed", seed, "--enrol", enrol)
    arguments = (slot, *rest)
    for device in ("SITE-1-1", "SITE-1-2"):
        for name, data in resolve(render_site("SITE-1", SPEC, FLEET, device), lambda _: "[Interface]\n").items():
            (seed / name).write_bytes(data)
        result = invoke(*arguments)
        if device == "SITE-1-1":
            assert isinstance(result.exception, TerminalError) and not out.exists()
            assert "for host site-1-1, and the enrolment for device SITE-1-2" in str(result.exception)
    assert result.exit_code == 0, result.output
    assert "and the enrolment of SITE-1-2, its token included: only you may read it" in result.stderr
    assert "edge_t" not in result.output
    out.unlink()
    result = invoke(image, *rest)
    assert isinstance(result.exception, TerminalError) and not out.exists()
    assert "obey nobody" in str(result.exception)


def test_the_command_refuses_wrong_usage(image: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((image, "--out", tmp_path / "disk.img", "--slot-size", "8GB"), "is no size; write it as 8GiB"),
        ((image, "--out", tmp_path / "disk"), "end it in .img or .img.zst"),
        ((image, "--out", tmp_path / "disk.img", "--keys", tmp_path), "name its folder, not the image"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2 and said in result.stderr, result.output
    assert os.listdir(tmp_path) == []
