"""What an artifact consists of: chunk index, list of software, manifest, sums; the same bytes every time, and agents take it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from reconciler.agent import artifact
from reconciler.agent.judge import Keyring
from reconciler.agent.transport import Transport
from reconciler.image import pack, sbom
from reconciler.image.process import Surroundings
from reconciler.ports import TerminalError
from reconciler.protocol import chunks
from reconciler.protocol.assignment import ImageTarget
from reconciler.protocol.manifest import MAX_MANIFEST_BYTES, Manifest
from reconciler.protocol.sums import parse_sums
from tests.support.system import need

NAME = "edge-golden-v1.4.2-20251115"
EPOCH = 1763164800
STANZA = """Package: {name}
Status: {status}
Architecture: {arch}
Version: {version}
Maintainer: Somebody <somebody@example.org>
Section: admin
Description: {name}
 of the tests, naïvely
"""
EXTRA = {
    "inputs": "sha256:" + "a" * 64,
    "commit": "c" * 40,
    "builder": "2",
    "healthcheck": {"status": "ok", "checks": []},
}


def stanza(name: str, version: str = "1.0-1", arch: str = "amd64", status: str = "install ok installed") -> str:
    return STANZA.format(name=name, version=version, arch=arch, status=status)


STATUS = "\n".join(
    [
        stanza("dpkg", "1.21.22"),
        stanza("chrony", "4.3-2+deb12u1"),
        stanza("libc6", "2.36-9"),
        stanza("libc6", "2.36-9", "i386"),
        stanza("held", "5", status="hold ok installed"),
        stanza("gone", "6", status="deinstall ok config-files"),
        stanza("half", "7", status="install ok half-configured"),
    ]
)


@pytest.fixture
def where(tmp_path: Path) -> Surroundings:
    (tmp_path / "scratch").mkdir()
    return Surroundings(tmp_path / "scratch", tmp_path / "log", 60)


def image(where: Surroundings, status: str | None = STATUS) -> Path:
    """A small ext4 image, made as the builder's are: from a folder, without a loop device."""
    root, raw = where.scratch / "root", where.scratch / "raw.img"
    database = root / sbom.STATUS
    database.parent.mkdir(parents=True)
    if status is not None:
        database.write_text(status)
    subprocess.run([need("mke2fs", "e2fsprogs"), "-q", "-t", "ext4", "-d", root, raw, "8M"], check=True)
    return raw


def packed(where: Surroundings, raw: Path, folder: str, software: bool = True, **extra: Any) -> Path:
    """The artifact's folder."""
    need("zstd")
    place = where.log.parent / folder
    place.mkdir()
    file = pack.compress(where, raw, place, NAME, "zstd")
    told = pack.Software(where, "debian", "edge-golden", EPOCH) if software else None
    pack.write_artifact(place, file, raw, "v1.4.2", "zstd", {**EXTRA, **extra}, software=told)
    return place


# ---------------------------------------------------------------- without any program


def test_installed_packages_are_those_whose_files_are_there() -> None:
    found = sbom.installed(STATUS.encode())
    assert found == {
        "chrony": "4.3-2+deb12u1", "dpkg": "1.21.22", "held": "5", "libc6": "2.36-9", "libc6:i386": "2.36-9",
    }  # fmt: skip
    assert list(found) == sorted(found)
    assert sbom.installed(b"") == {}


@pytest.mark.parametrize("missing", ["debsbom", "cyclonedx"])
def test_without_debsbom_the_error_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else plain(name))
    with pytest.raises(TerminalError, match=f"{missing} is not installed") as caught:
        sbom.require()
    assert "pip install 'reconciler[image]'" in caught.value.remedy and "SBOM" in caught.value.needed_for


def write_plain(folder: Path, raw: bytes, **extra: Any) -> Manifest:
    """An artifact without packages, packed as it is."""
    folder.mkdir()
    file = folder / f"{NAME}.img"
    file.write_bytes(raw)
    pack.write_artifact(folder, file, file, "v1.4.2", "none", {**EXTRA, **extra})
    return Manifest.from_bytes((folder / "manifest.json").read_bytes())


def test_the_manifest_says_all_that_a_device_and_a_person_ask(tmp_path: Path) -> None:
    raw = b"\1" * 4096 + bytes(8192) + b"\2" * 100
    manifest = write_plain(tmp_path / "artifact", raw, packages={"chrony": "4.3-2"})
    assert (manifest.release, manifest.size, manifest.image_size) == ("v1.4.2", len(raw), len(raw))
    assert manifest.digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    index = (tmp_path / "artifact" / f"{NAME}.chunks").read_bytes()
    assert {**manifest.extra} == {
        **EXTRA,
        "packages": {"chrony": "4.3-2"},
        "serial": 20251115,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "parts": {"size": 16 << 20, "sha256": [hashlib.sha256(raw).hexdigest()]},
        "minSlotSize": len(raw),
        "chunks": {
            "file": f"{NAME}.chunks",
            "sha256": hashlib.sha256(index).hexdigest(),
            "blockSize": 4096,
            "mappedBytes": 4196,
        },
    }
    read = chunks.ChunkIndex.from_bytes(index)
    assert (read.digest, read.image_size, read.mapped_bytes) == (manifest.digest, len(raw), 4196)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, 35 << 20])
def test_the_parts_are_all_of_the_file(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "packed").write_bytes(data)
    for most in (4096, 1):
        monkeypatch.setattr(pack, "MAX_PARTS", most)
        parts = pack.hashed_parts(tmp_path / "packed")
        part = parts["size"]
        hashes = [hashlib.sha256(data[at : at + part]).hexdigest() for at in range(0, size, part)]
        assert parts["sha256"] == hashes
        assert len(hashes) <= most
        assert Manifest("v1", "f", size, "zstd", size, "d", {"parts": parts}).parts == (part, tuple(hashes))


def test_the_sums_list_what_the_manifest_names_and_every_byte_agrees(tmp_path: Path) -> None:
    manifest = write_plain(tmp_path / "artifact", b"raw" * 5000)
    files = {path.name: path.read_bytes() for path in (tmp_path / "artifact").iterdir()}
    listed = parse_sums(files.pop("SHA256SUMS"))
    assert set(listed) == manifest.files == {f"{NAME}.img", f"{NAME}.chunks", "manifest.json"}
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_a_manifest_of_600_packages_and_200_checks_is_far_below_what_devices_read(tmp_path: Path) -> None:
    packages = {f"some-rather-long-package-name-{n}": f"1:2.{n}.3+really4~deb12u{n}" for n in range(600)}
    checks = [{"name": f"check-{n}", "status": "ok", "message": "m" * 200} for n in range(200)]
    write_plain(tmp_path / "artifact", b"raw", packages=packages, healthcheck={"status": "ok", "checks": checks})
    assert (tmp_path / "artifact" / "manifest.json").stat().st_size < MAX_MANIFEST_BYTES / 4


def test_a_manifest_that_no_device_would_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="devices read"):
        write_plain(tmp_path / "artifact", b"raw", packages={f"p{n}": "1" * 100 for n in range(12_000)})
    assert not (tmp_path / "artifact" / "SHA256SUMS").exists()


class FolderTransport(Transport):
    """Reads the artifact's files from where they lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, url: str, limit: int, headers: Any = None) -> bytes:
        data = (self._folder / url.rsplit("/", 1)[-1]).read_bytes()
        assert len(data) <= limit
        return data


def test_an_agent_proves_the_artifact_by_its_sums_and_its_manifest(tmp_path: Path) -> None:
    manifest = write_plain(tmp_path / "artifact", b"raw" * 5000)
    (tmp_path / "artifact" / "SHA256SUMS.gpg").write_bytes(b"judged elsewhere")
    target = ImageTarget("v1.4.2", manifest.digest, NAME)
    proven = artifact.prove(
        target,
        ["https://images.example/folder/"],
        FolderTransport(tmp_path / "artifact"),
        Keyring(b"", frozenset()),
        lambda *_: None,
        1 << 30,
        datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert dataclasses.replace(proven.manifest, extra={}) == dataclasses.replace(manifest, extra={})


# ---------------------------------------------------------------- with the image's own packages


@pytest.mark.system
def test_two_packings_of_one_image_are_the_same_bytes(where: Surroundings) -> None:
    raw = image(where)
    one, two = packed(where, raw, "one"), packed(where, raw, "two")
    files = sorted(path.name for path in one.iterdir())
    assert files == ["SHA256SUMS", f"{NAME}.cdx.json", f"{NAME}.chunks", f"{NAME}.img.zst", "manifest.json"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=one, check=True)
    subprocess.run([need("zstd"), "-t", "-q", f"{NAME}.img.zst"], cwd=one, check=True)


@pytest.mark.system
def test_the_packages_are_those_in_the_image_whatever_was_pinned(where: Surroundings) -> None:
    folder = packed(where, image(where), "artifact", packages={"chrony": "a pin"})
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    assert manifest.extra["packages"] == sbom.installed(STATUS.encode())
    document = (folder / f"{NAME}.cdx.json").read_bytes()
    named = {"file": f"{NAME}.cdx.json", "sha256": hashlib.sha256(document).hexdigest()}
    assert manifest.extra["sbom"] == named and set(parse_sums((folder / "SHA256SUMS").read_bytes())) == manifest.files


@pytest.mark.system
def test_the_list_of_software_is_cyclonedx_and_dated_by_the_commit(where: Surroundings) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    folder = packed(where, image(where), "artifact")
    text = (folder / f"{NAME}.cdx.json").read_text()
    document = json.loads(text)
    version = SchemaVersion.from_version(document["specVersion"])
    assert JsonStrictValidator(version).validate_str(text) is None
    assert JsonStrictValidator(version).validate_str(text.replace('"components"', '"compounds"')) is not None
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    said = document["metadata"]
    assert (said["component"]["name"], said["component"]["version"]) == ("edge-golden", "v1.4.2")
    assert said["timestamp"] == "2025-11-15T00:00:00+00:00"
    assert said["properties"] == [{"name": "imageDigest", "value": manifest.digest}]
    purls = {each["purl"] for each in document["components"]}
    assert "pkg:deb/debian/chrony@4.3-2%2Bdeb12u1?arch=amd64" in purls
    assert not any("/gone@" in purl or "/half@" in purl for purl in purls)
    # Another image, another document: the serial number follows the image.
    assert document["serialNumber"].startswith("urn:uuid:")


@pytest.mark.system
@pytest.mark.parametrize(("status", "says"), [(None, "no /var/lib/dpkg/status"), ("", "no /var/lib/dpkg/status")])
def test_an_image_without_packages_has_no_list_of_them(where: Surroundings, status: str | None, says: str) -> None:
    with pytest.raises(TerminalError, match=says):
        packed(where, image(where, status), "artifact")


@pytest.mark.system
def test_a_distribution_that_debsbom_does_not_know_is_refused(where: Surroundings) -> None:
    raw = image(where)
    with pytest.raises(TerminalError, match="does not know the distribution 'fedora'"):
        sbom.write(
            where,
            raw,
            where.scratch / "x",
            name="x",
            version="v1",
            vendor="fedora",
            digest="sha256:" + "0" * 64,
            epoch=0,
        )


@pytest.mark.system
def test_what_is_no_file_system_is_told_as_such(where: Surroundings) -> None:
    raw = where.scratch / "raw.img"
    raw.write_bytes(b"no file system" * 1000)
    with pytest.raises(TerminalError, match="stage 'artifact'"):
        packed(where, raw, "artifact")
