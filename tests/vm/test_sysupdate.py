"""A published artifact in the hands of others: coreutils, gpgv, zstd, and systemd-sysupdate of trixie over plain HTTP.

None of them is told anything but the folder's address, the pattern of the image's name and the release key.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.image import pack
from reconciler.image.process import Surroundings
from reconciler.protocol.manifest import Manifest
from tests.support.gpg import Home, make_home
from tests.support.system import need
from tests.support.trixie import client, trixie_root

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("sysupdate")]

RELEASE, DAY = "v1.4.2", "20251115"
NAME = f"edge-golden-{RELEASE}-{DAY}"
IMAGE = f"{NAME}.img.zst"
TRANSFER = """\
[Transfer]
Verify=yes

[Source]
Type=url-file
Path={address}
MatchPattern=edge-golden-v@v.img.zst

[Target]
Type=regular-file
Path=/srv/edge
MatchPattern=edge-golden-v@v.img.zst
InstancesMax=2
"""


class Quiet(SimpleHTTPRequestHandler):
    """Sends files of a folder, and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Store:
    """An image store with one published release, served over HTTP."""

    folder: Path
    url: str
    keys: bytes

    def address(self, folder: str = NAME) -> str:
        return f"{self.url}/{folder}/"

    def spoilt(self, folder: str) -> Path:
        """A copy of the artifact's folder, to be changed."""
        copy = self.folder / folder
        copy.mkdir()
        for path in (self.folder / NAME).iterdir():
            os.link(path, copy / path.name)
        return copy


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with make_home() as home:
        yield home


@pytest.fixture(scope="module")
def store(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A file system of a real distribution, packed as the builder packs it, signed, staged and published."""
    place = tmp_path_factory.mktemp("sysupdate")
    for name in ("scratch", "artifact"):
        (place / name).mkdir()
    where = Surroundings(place / "scratch", place / "log", 300)
    raw = place / "raw.img"
    subprocess.run([need("mke2fs", "e2fsprogs"), "-q", "-t", "ext4", "-d", trixie_root(), raw, "256M"], check=True)
    need("zstd")
    packed = pack.compress(where, raw, place / "artifact", NAME, "zstd")
    software = pack.Software(where, "debian", "edge-golden", 1763164800)
    pack.write_artifact(place / "artifact", packed, raw, RELEASE, "zstd", {"family": "edge-golden"}, software=software)
    raw.unlink()
    images = DirectoryImageStore(place / "images")
    images.stage(RELEASE, NAME, sorted((place / "artifact").iterdir()))
    fingerprint = home.generate("release <release@example.org>")
    images.attach_signature(RELEASE, home.sign_detached(images.read(RELEASE, "SHA256SUMS"), fingerprint))
    images.publish(RELEASE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place / "images")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield Store(place / "images", url, home.export([fingerprint]))
    finally:
        server.shutdown()
        server.server_close()
        shutil.rmtree(place, ignore_errors=True)


def test_sha256sum_gpgv_and_zstd_accept_the_published_folder(store: Store, tmp_path: Path) -> None:
    folder = store.folder / NAME
    (tmp_path / "keys.gpg").write_bytes(store.keys)
    gpgv = [need("gpgv"), "--homedir", str(tmp_path), "--keyring", str(tmp_path / "keys.gpg")]
    for command in (
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        [*gpgv, "SHA256SUMS.gpg", "SHA256SUMS"],
        ["zstd", "--test", IMAGE],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    assert {path.name for path in folder.iterdir()} == {*manifest.files, "SHA256SUMS", "SHA256SUMS.gpg"}
    assert {"systemd-container", "gpg"} <= set(manifest.extra["packages"])


def test_sysupdate_finds_fetches_and_proves_the_release(store: Store, tmp_path: Path) -> None:
    machine = client(tmp_path, {"10-edge": TRANSFER.format(address=store.address())}, store.keys)
    found = machine.run("--json=short", "check-new")
    assert found.returncode == 0 and f'"{RELEASE[1:]}-{DAY}"' in found.stdout, found.stderr
    done = machine.run("update")
    assert done.returncode == 0, done.stderr
    (installed,) = machine.target.iterdir()
    manifest = Manifest.from_bytes((store.folder / NAME / "manifest.json").read_bytes())
    assert installed.name == IMAGE
    assert hashlib.sha256(installed.read_bytes()).hexdigest() == manifest.extra["sha256"]
    # systemd 257 keeps zstd as it is; what a slot is to hold comes out of it by the program.
    raw = subprocess.run(["zstd", "-dc", str(installed)], capture_output=True, check=True).stdout
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == manifest.digest
    again = machine.run("check-new")
    assert again.returncode != 0 and RELEASE[1:] not in again.stdout


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("foreign signature", "No public key"),
        ("no signature", "Failed to retrieve signature file"),
        ("damaged image", "did not check out"),
        ("another image", "did not check out"),
        ("changed sums", "BAD signature"),
    ],
)
def test_sysupdate_refuses_what_was_not_signed(store: Store, home: Home, tmp_path: Path, what: str, says: str) -> None:
    name = what.replace(" ", "-")
    folder, keys = store.spoilt(name), store.keys
    if what == "foreign signature":
        keys = home.export([home.generate("stranger <stranger@example.org>")])
    elif what == "no signature":
        (folder / "SHA256SUMS.gpg").unlink()
    elif what == "changed sums":
        data = (folder / "SHA256SUMS").read_bytes()
        _put(folder / "SHA256SUMS", data.replace(b"manifest.json", b"manifest.jsom"))
    else:
        good = (folder / IMAGE).read_bytes()
        middle = len(good) // 2
        damaged = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        other = subprocess.run(["zstd", "-c"], input=b"another" * 999, capture_output=True, check=True).stdout
        _put(folder / IMAGE, damaged if what == "damaged image" else other)
    machine = client(tmp_path, {"10-edge": TRANSFER.format(address=store.address(name))}, keys)
    done = machine.run("update")
    assert done.returncode != 0 and says in done.stderr, done.stdout + done.stderr
    assert list(machine.target.iterdir()) == [], done.stderr
    shutil.rmtree(folder)


def _put(path: Path, data: bytes) -> None:
    """Other bytes under a name that another folder shares."""
    path.unlink()
    path.write_bytes(data)
