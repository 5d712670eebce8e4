"""Releases for tests that update machines: the golden image with a few files changed, packed and described as a build does.

A derived release costs seconds where a build takes minutes: a copy of the slot image, changed by debugfs as if another
recipe had made it, then the project's own packing, manifest and sums. Each also holds what the test needs in the machine
(`TEST_FILES`): a shell on the second serial port, and the way to servers on this machine's loopback, a time server among
them. That is part of the image and not of a seed, because a site's configuration is replaced while such a test runs.

They are kept beside the golden image that they are made of, and made once. Read-only for tests.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.image import pack
from reconciler.image.inputs import BUILDER_VERSION, inputs_digest, read_recipe
from reconciler.image.rootfs import DistributionRoot
from reconciler.model.desired import ImageSpec
from reconciler.protocol.manifest import NAME, SUMS, Manifest
from reconciler.protocol.sums import format_sums
from tests.support.system import need
from tests.vm.machine import GATEWAY, SHELL, SHELL_UNIT

FAMILY, DAY = "edge-golden", "20260115"
SPEC = ImageSpec.model_validate(
    {"family": FAMILY, "recipe": "edge-golden/", "base": {"distribution": "debian", "suite": "bookworm"}}
)


@dataclass(frozen=True, slots=True)
class File:
    """A file of an image: its bytes and mode, owned by root."""

    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Change:
    """What differs from the golden image: files written (path → file), links made (path → target), paths removed."""

    files: Mapping[str, File] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    removed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """A derived release: its artifact's folder (unsigned), and what it is."""

    name: str
    folder: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """`sha256:…` of the raw image."""
        return self.manifest.digest

    @property
    def packed(self) -> Path:
        """The packed image."""
        return self.folder / self.manifest.file


_WANTS = "/etc/systemd/system/sysinit.target.wants"
_MULTI_USER = "/etc/systemd/system/multi-user.target.wants"
# What goes to the host's ports on the machine's own loopback is sent to where QEMU forwards it, by the kernel: a program
# that carried the bytes would take longer than all else that is done with them. The ports stand in the machine's serial
# number, so the images do not depend on where this run's servers listen.
_PORTS = b"""\
#!/bin/bash
set -euo pipefail
ports=$(tr . , </sys/class/dmi/id/product_serial)
sysctl -q net.ipv4.conf.all.route_localnet=1
nft -f - <<NFT
table ip edge_test {
  chain out { type nat hook output priority -110; ip daddr 127.0.0.1 tcp dport { $ports } dnat to %s; }
  chain leave { type nat hook postrouting priority 90; ip daddr %s masquerade; }
}
NFT
"""
_PORTS_UNIT = b"""\
[Unit]
Description=The way of a test's machine to servers on the loopback of its host
After=ufw.service network-online.target
Before=edge-agent.service edge-test-time.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/edge-test-ports
"""
# The image's time servers are the site's, by UDP; the way out of the machine is TCP.
_TIME = b"""\
#!/usr/bin/python3 -I
import socket
port = int(open("/sys/class/dmi/id/product_serial").read().split(".")[-1])
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.bind(("127.0.0.1", 123))
while True:
    packet, who = asked.recvfrom(512)
    try:
        with socket.create_connection(("%s", port), timeout=2) as server:
            server.sendall(packet[:48])
            answer = server.recv(48, socket.MSG_WAITALL)
        asked.sendto(answer, who)
    except OSError:
        pass
"""
_TIME_UNIT = b"""\
[Unit]
Description=A time server of the host's, brought to this machine
Before=chrony.service
[Service]
ExecStart=/usr/local/sbin/edge-test-time
Restart=always
RestartSec=1
"""
TEST_FILES = Change(
    {
        "/usr/local/sbin/edge-test-shell": File(SHELL.encode(), 0o755),
        "/etc/systemd/system/edge-test-shell.service": File(SHELL_UNIT.encode()),
        "/usr/local/sbin/edge-test-time": File(_TIME % GATEWAY.encode(), 0o755),
        "/etc/systemd/system/edge-test-time.service": File(_TIME_UNIT),
        "/usr/local/sbin/edge-test-ports": File(_PORTS.replace(b"%s", GATEWAY.encode()), 0o755),
        "/etc/systemd/system/edge-test-ports.service": File(_PORTS_UNIT),
    },
    {
        f"{_WANTS}/edge-test-shell.service": "/etc/systemd/system/edge-test-shell.service",
        f"{_MULTI_USER}/edge-test-ports.service": "/etc/systemd/system/edge-test-ports.service",
        f"{_MULTI_USER}/edge-test-time.service": "/etc/systemd/system/edge-test-time.service",
    },
)


def health_check(name: str, status: int, says: str) -> Change:
    """A check that the release brings along, and its verdict: 0 ok, 1 warning, 2 critical."""
    script = f"#!/bin/sh\necho '{says}'\nexit {status}\n"
    return Change({f"/usr/local/lib/edge/health.d/{name}": File(script.encode(), 0o755)})


# By its real folder: debugfs takes no name out of a folder that is a link.
NO_INIT = Change(removed=("/usr/sbin/init", "/usr/lib/systemd/systemd"))
"""A release whose kernel finds nothing to start."""


def derive(golden: Path, release: str, change: Change, kept: Path) -> Release:
    """The release that `change` makes of the raw slot image `golden`; made below `kept`, where it is not there yet.

    Its manifest names no commit and no inputs yet: see `at_commit`.
    """
    whole = _joined(TEST_FILES, change)
    identity = _identity(golden, release, whole)
    folder = kept / identity / f"{FAMILY}-{release}-{DAY}"
    if not (folder / SUMS).exists():
        with tempfile.TemporaryDirectory(dir=_made(folder.parent), prefix="making-") as scratch:
            _make(golden, release, whole, identity, Path(scratch)).rename(folder)
    return Release(release, folder, Manifest.from_bytes((folder / NAME).read_bytes()))


def _make(golden: Path, release: str, change: Change, identity: str, scratch: Path) -> Path:
    raw = scratch / "raw.img"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(golden), str(raw)], check=True)
    edit(raw, _joined(_named(release, identity), change))
    # Two releases never share one: what is stacked over a slot belongs to the file system with that name.
    name = str(uuid.uuid5(uuid.NAMESPACE_OID, identity))
    _must([need("tune2fs", "e2fsprogs"), "-f", "-U", name, str(raw)], answer=b"y\n")
    _must([need("e2fsck", "e2fsprogs"), "-fn", str(raw)])
    _empty(raw)
    folder = scratch / f"{FAMILY}-{release}-{DAY}"
    folder.mkdir()
    packed = folder / f"{folder.name}.img.zst"
    # The fastest level: what is tried is what a device does with it, not how small it is.
    _must([need("zstd"), "-q", "-1", "--long=27", "--check", "-T1", "-o", str(packed), str(raw)])
    extra = {
        "name": folder.name,
        "family": FAMILY,
        "committedAt": "2026-01-15T12:00:00Z",
        "builder": BUILDER_VERSION,
        "builderType": DistributionRoot.kind,
        "packages": {},
        "healthcheck": {"status": "ok", "checks": [{"name": "files", "status": "ok", "message": "derived"}]},
    }
    pack.write_artifact(folder, packed, raw, release, "zstd", extra)
    raw.unlink()
    return folder


def at_commit(release: Release, fleet: Path, commit: str, folder: Path) -> Path:
    """The artifact as a build from the fleet folder at `commit` leaves it, below `folder`; large files are links. The signer
    holds commit and inputs against the repo."""
    inputs = inputs_digest(release.name, SPEC, read_recipe(fleet / "images/edge-golden"), DistributionRoot.kind)
    out = folder / release.folder.name
    out.mkdir(parents=True)
    sums: dict[str, str] = {}
    for line in (release.folder / SUMS).read_text().splitlines():
        digest, name = line[:64], line[66:]
        if name == NAME:
            document: dict[str, Any] = json.loads((release.folder / NAME).read_bytes())
            manifest = Manifest.from_bytes(json.dumps({**document, "commit": commit, "inputs": inputs}).encode())
            data = manifest.to_bytes()
            (out / NAME).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
        else:
            (out / name).symlink_to(release.folder / name)
        sums[name] = digest
    (out / SUMS).write_bytes(format_sums(sums))
    return out


def unpack(release: Release, to: Path) -> Path:
    """The raw image as a file of its own."""
    argv = [need("zstd"), "-q", "-d", "-f", "--long=27", "--sparse", "-o", str(to), str(release.packed)]
    subprocess.run(argv, check=True, timeout=600)
    return to


# ------------------------------------------------ the hands


def _empty(raw: Path) -> None:
    """Have free blocks hold nothing, as the gate wants it: what was in a file that was taken out is there still."""
    told = _must([need("dumpe2fs", "e2fsprogs"), str(raw)]).decode()
    size = int(re.search(r"^Block size: +(\d+)$", told, re.MULTILINE)[1])  # type: ignore[index]
    with raw.open("r+b") as file:
        for line in re.findall(r"^  Free blocks: (.*)$", told, re.MULTILINE):
            for first, last in re.findall(r"(\d+)(?:-(\d+))?", line):
                for block in range(int(first), int(last or first) + 1):
                    file.seek(block * size)
                    if any(file.read(size)):
                        file.seek(block * size)
                        file.write(bytes(size))


def edit(image: Path, change: Change, at: int = 0) -> None:
    """Change files of the ext4 file system in `image` at byte `at`, which nobody has mounted. Folders are made where they
    are missing. AssertionError: debugfs did not do what it was asked."""
    place = f"{image}?offset={at}" if at else str(image)
    folders = sorted({str(above) for path in (*change.files, *change.links) for above in Path(path).parents})
    with tempfile.TemporaryDirectory(prefix="edit-") as scratch:
        lines = [f"rm {path}" for path in (*change.removed, *change.files, *change.links)]
        for number, folder in enumerate(folders):
            # An existing folder keeps what it is: only its making is asked for, and refused.
            lines += [f"mkdir {folder}"] if number else []
        for number, (path, file) in enumerate(change.files.items()):
            source = Path(scratch) / str(number)
            source.write_bytes(file.data)
            lines += [f"write {source} {path}", f"sif {path} mode 0{0o100000 | file.mode:o}"]
            lines += [f"sif {path} {key} 0" for key in ("uid", "gid")]
        lines += [f"symlink {path} {target}" for path, target in change.links.items()]
        script = Path(scratch) / "script"
        script.write_text("\n".join(lines) + "\n")
        argv = [need("debugfs", "e2fsprogs"), "-w", "-f", str(script), place]
        subprocess.run(argv, check=True, capture_output=True)
        for path, file in change.files.items():
            assert read(image, path, at) == file.data, f"{path} was not written to {image}"


def read(image: Path, path: str, at: int = 0) -> bytes:
    """A file of an ext4 file system; empty where it is absent."""
    place = f"{image}?offset={at}" if at else str(image)
    done = subprocess.run(
        [need("debugfs", "e2fsprogs"), "-R", f"cat {path}", place], capture_output=True, check=True, timeout=60
    )
    return done.stdout


def _named(release: str, identity: str) -> Change:
    """What setup.sh writes of a release's name."""
    return Change(
        {
            "/etc/edge-release": File(f"FAMILY={FAMILY}\nRELEASE={release}\nBUILT_AT=2026-01-15T12:00:00Z\n".encode()),
            "/usr/lib/edge/image-id": File(f"{release}-{identity}\n".encode()),
            "/etc/edge-image-version": File(f"current={release}\nprevious=\n".encode()),
        }
    )


def _joined(*changes: Change) -> Change:
    files: dict[str, File] = {}
    links: dict[str, str] = {}
    removed: list[str] = []
    for change in changes:
        files |= change.files
        links |= change.links
        removed += change.removed
    return Change(files, links, tuple(removed))


def _identity(golden: Path, release: str, change: Change) -> str:
    """A word for everything that decides a derived release's bytes."""
    status = golden.stat()
    told = [release, str(status.st_size), str(status.st_mtime_ns), repr(change.links), repr(change.removed)]
    told += [f"{path} {file.mode:o} {hashlib.sha256(file.data).hexdigest()}" for path, file in change.files.items()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _must(argv: list[str], answer: bytes | None = None) -> bytes:
    done = subprocess.run(argv, input=answer, capture_output=True, check=False, timeout=900)
    assert done.returncode == 0, f"{argv}: {done.stdout[-500:]!r} {done.stderr[-500:]!r}"
    return done.stdout


__all__ = ["NO_INIT", "Change", "File", "Release", "at_commit", "derive", "edit", "health_check", "read", "unpack"]
