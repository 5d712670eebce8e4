"""`reconciler image check` over what it may be given: an image, raw or packed, an artifact with its papers, an install disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click.testing
import pytest

from reconciler.cli.main import cli
from reconciler.image import pack
from reconciler.image.gate_file import check, partitions
from reconciler.image.process import Surroundings
from reconciler.ports import TerminalError
from tests.support.gate_images import RSA_KEY, Planted, clean_root, make_image
from tests.support.gpg import make_home
from tests.support.system import need

pytestmark = pytest.mark.system
NAME = "edge-golden-v1-20260115"
MIB = 1 << 20


@pytest.fixture(scope="module")
def release() -> Iterator[tuple[bytes, str]]:
    """A keyring and its fingerprint."""
    with make_home() as home:
        fingerprint = home.generate("release")
        yield home.export([fingerprint]), fingerprint


def image(folder: Path, release: tuple[bytes, str], **planted: Planted) -> Path:
    return make_image(
        folder, {**clean_root(release[0], release[1] + "\n"), **{k.replace("__", "/"): v for k, v in planted.items()}}
    )


def artifact(folder: Path, raw: Path) -> Path:
    """As the builder packs it."""
    made = folder / NAME
    made.mkdir()
    where = Surroundings(folder, folder / "log", 60)
    method = pack.compression()
    pack.write_artifact(made, pack.compress(where, raw, made, NAME, method), raw, "v1", method, {"name": NAME})
    return made


def disk(folder: Path, slot_a: Path | None, slot_b: Path | None = None, data: Path | None = None) -> Path:
    """A GPT with two slots of 8 MiB and data of 8 MiB."""
    made = folder / "disk"
    with made.open("wb") as file:
        file.truncate(27 * MIB)
    script = "label: gpt\n" + "".join(
        f"start={1 + 8 * index}MiB, size=8MiB, name={name}\n"
        for index, name in enumerate(("root-a", "root-b", "edge-data"))
    )
    subprocess.run([need("sfdisk", "fdisk"), "-q", str(made)], input=script.encode(), check=True, capture_output=True)
    with made.open("r+b") as file:
        for index, part in enumerate((slot_a, slot_b, data)):
            if part is not None:
                file.seek((1 + 8 * index) * MIB)
                file.write(part.read_bytes())
    return made


def run(*words: str | Path) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, ["image", "check", *map(str, words)])


def test_a_clean_image_raw_and_packed(tmp_path: Path, release: tuple[bytes, str]) -> None:
    raw = image(tmp_path, release)
    packed = tmp_path / "image.zst"
    subprocess.run([need("zstd"), "-q", "-o", str(packed), str(raw)], check=True)
    for file in (raw, packed):
        done = run(file, "--allowed", release[1])
        assert done.exit_code == 0 and "nothing found" in done.stdout and done.stderr == ""
    assert "it is not asked whose signature" in run(raw).stderr
    subprocess.run(["truncate", "-s", "-10", str(packed)], check=True)
    with pytest.raises(TerminalError, match="cannot be unpacked"):
        check(packed)


def test_a_fault_is_a_line_with_its_rule_and_its_remedy(tmp_path: Path, release: tuple[bytes, str]) -> None:
    raw = image(tmp_path, release, srv__key=RSA_KEY, var__log__syslog="hello")
    done = run(raw, "--allowed", release[1])
    assert done.exit_code == 1 and "refused: 2 faults by 2 rules" in done.stderr
    one, other = done.stdout.splitlines()
    assert one.startswith("/srv/key: private-key: a private key (byte 0); remove it")
    assert other.startswith("/var/log/syslog: log: a log (5 bytes); delete")
    document = json.loads(run(raw, "--allowed", release[1], "--output", "json").stdout)
    assert document["kind"] == "slot image" and not document["clean"]
    assert [fault["rule"] for fault in document["faults"]] == ["private-key", "log"]


def test_the_fleets_keys_are_those_that_must_overlap(tmp_path: Path, release: tuple[bytes, str]) -> None:
    raw, fleet = image(tmp_path, release), tmp_path / "fleet"
    shutil.copytree(Path(__file__).parents[2] / "fleet", fleet)
    done = run(raw, "--fleet", fleet)
    assert done.exit_code == 1 and "release-keys: none of its keys is one that the fleet allows" in done.stdout
    text = (fleet / "fleet.yaml").read_text()
    (fleet / "fleet.yaml").write_text(text.replace("0123456789ABCDEF0123456789ABCDEF01234567", release[1]))
    assert run(raw, "--fleet", fleet).exit_code == 0
    assert run(raw, "--fleet", fleet, "--allowed", release[1]).exit_code == 0
    assert run(raw, "--fleet", fleet, "--allowed", "F" * 40).exit_code == 1


@pytest.mark.parametrize("words", [("--allowed", "ABC"), ("--output", "yaml"), ("--fleet", "/nowhere")])
def test_wrong_usage(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert run(tmp_path / "x", *words).exit_code == 2
    assert run(tmp_path / "nothing").exit_code == 2


def test_an_artifact_is_held_to_its_papers(tmp_path: Path, release: tuple[bytes, str]) -> None:
    folder = artifact(tmp_path, image(tmp_path, release))
    assert check(folder, allowed=[release[1]]).faults == ()
    assert check(folder).kind == "artifact"
    (folder / "SHA256SUMS.gpg").write_bytes(b"a signature is no concern of this check")
    (folder / "notes.txt").write_bytes(b"x")
    assert [fault.what for fault in check(folder).faults] == ["it does not list notes.txt"]


def test_an_artifact_with_an_image_of_faults(tmp_path: Path, release: tuple[bytes, str]) -> None:
    folder = artifact(tmp_path, image(tmp_path, release, srv__key=RSA_KEY))
    assert [(fault.path, fault.rule) for fault in check(folder).faults] == [("/srv/key", "private-key")]


def test_sums_that_list_what_no_manifest_names_are_no_artifacts(tmp_path: Path, release: tuple[bytes, str]) -> None:
    folder = artifact(tmp_path, image(tmp_path, release))
    (folder / "notes.txt").write_bytes(b"x")
    sums = (folder / "SHA256SUMS").read_bytes()
    (folder / "SHA256SUMS").write_bytes(sums + hashlib.sha256(b"x").hexdigest().encode() + b"  notes.txt\n")
    (one,) = check(folder).faults
    assert (one.path, one.rule) == ("<SHA256SUMS>", "artifact") and "notes.txt, not" in one.what


def test_spoilt_papers_are_each_named(tmp_path: Path, release: tuple[bytes, str]) -> None:
    folder = artifact(tmp_path, image(tmp_path, release))
    chunks = folder / f"{NAME}.chunks"
    chunks.write_bytes(chunks.read_bytes()[:-1] + b"\0")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["digest"] = "sha256:" + "0" * 64
    manifest["parts"]["sha256"][-1] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    said = {(fault.path, fault.what.split(",")[0]) for fault in check(folder).faults}
    assert {fault.rule for fault in check(folder).faults} == {"artifact"}
    assert ("<SHA256SUMS>", f"the bytes of {NAME}.chunks are not those that it lists") in said
    assert ("<SHA256SUMS>", "the bytes of manifest.json are not those that it lists") in said
    assert (f"<{NAME}.chunks>", "it is not the index of this image") in said
    assert any(path == "<manifest.json>" and what.startswith("part 1 of 1 of") for path, what in said)
    assert any(path == "<manifest.json>" and what.startswith("it says sha256:0000") for path, what in said)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="no artifact: it has no SHA256SUMS"):
        check(tmp_path)


def test_both_slots_of_a_disk_are_inspected(tmp_path: Path, release: tuple[bytes, str]) -> None:
    good = image(tmp_path / "good", release)
    bad = image(tmp_path / "bad", release, root__key=RSA_KEY)
    assert check(disk(tmp_path, good)).faults == ()
    checked = check(disk(tmp_path, good, bad))
    assert checked.kind == "install disk"
    packed = tmp_path / "disk.zst"
    subprocess.run([need("zstd"), "-q", "-o", str(packed), str(tmp_path / "disk")], check=True)
    unpacked = check(packed)
    assert (unpacked.kind, unpacked.faults) == ("packed install disk", checked.faults)
    assert [(fault.path, fault.rule) for fault in checked.faults] == [("root-b:/root/key", "private-key")]
    with pytest.raises(TerminalError, match="nothing in its slots"):
        check(disk(tmp_path, None))


def test_a_disk_with_a_sites_seed_is_for_that_site_alone(tmp_path: Path, release: tuple[bytes, str]) -> None:
    good = image(tmp_path / "good", release)
    data = make_image(tmp_path / "data", {"cidata/user-data": "#cloud-config\n", "docker": ""})
    (one,) = check(disk(tmp_path, good, None, data)).faults
    assert (one.path, one.rule) == ("edge-data:/cidata/user-data", "site-data")
    assert check(disk(tmp_path, good, None, make_image(tmp_path / "data", {"log/x": ""}))).faults == ()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "SHA256SUMS")
    for file in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "folder"):
        with pytest.raises(TerminalError, match=r"no SHA256SUMS|neither a file nor a disk"):
            check(file)


def test_a_damaged_partition_table(tmp_path: Path, release: tuple[bytes, str]) -> None:
    made = disk(tmp_path, None)
    assert [(part.name, part.start, part.size) for part in partitions(made)][:2] == [
        ("root-a", MIB, 8 * MIB),
        ("root-b", 9 * MIB, 8 * MIB),
    ]
    os.truncate(made, 2 * MIB)
    with pytest.raises(TerminalError, match="lies outside"):
        check(made)
    os.truncate(made, 540)
    with pytest.raises(TerminalError, match="ends in its partition table"):
        check(made)
