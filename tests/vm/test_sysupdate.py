"""The golden image, published, in the hands of others: coreutils, gpgv, zstd, and systemd-sysupdate of trixie over plain HTTP.

None of them is told anything but the folder's address, the pattern of the image's name and the release key.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.image import pack
from reconciler.protocol.manifest import MAX_MANIFEST_BYTES, Manifest
from tests.support import golden
from tests.support.gpg import make_home
from tests.support.system import need
from tests.support.trixie import client, trixie_root

pytestmark = [pytest.mark.vm]

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
    """An image store with one published release, served over HTTP: `name` is its folder's, `keys` a keyring of its key."""

    folder: Path
    url: str
    name: str
    keys: bytes

    @property
    def image(self) -> str:
        """Name of the packed image."""
        return f"{self.name}.img.zst"

    @property
    def version(self) -> str:
        """What the pattern makes of that: `1.4.2-20260115`."""
        return self.name.removeprefix("edge-golden-v")

    @property
    def artifact(self) -> Path:
        """The published folder."""
        return self.folder / self.name

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return Manifest.from_bytes((self.artifact / "manifest.json").read_bytes())

    def spoilt(self, folder: str) -> Path:
        """A copy of the artifact's folder, to be changed."""
        copy = self.folder / folder
        copy.mkdir()
        for path in self.artifact.iterdir():
            os.link(path, copy / path.name)
        return copy

    def transfers(self, folder: str = "") -> dict[str, str]:
        """What a machine is told."""
        return {"10-edge": TRANSFER.format(address=f"{self.url}/{folder or self.name}/")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The golden image as the builder packed it, signed, staged and published."""
    trixie_root()
    built, key = golden.artifact(), golden.key()
    place = tmp_path_factory.mktemp("sysupdate")
    images = DirectoryImageStore(place)
    images.stage(golden.RELEASE, built.name, sorted(built.iterdir()))
    with key.home() as home:
        images.attach_signature(
            golden.RELEASE, home.sign_detached(images.read(golden.RELEASE, "SHA256SUMS"), key.fingerprint)
        )
        keys = home.export([key.fingerprint])
    images.publish(golden.RELEASE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Store(place, f"http://127.0.0.1:{server.server_address[1]}", built.name, keys)
    finally:
        server.shutdown()
        server.server_close()
        shutil.rmtree(place, ignore_errors=True)


def test_sha256sum_gpgv_and_zstd_accept_the_published_folder(store: Store, tmp_path: Path) -> None:
    (tmp_path / "keys.gpg").write_bytes(store.keys)
    gpgv = [need("gpgv"), "--homedir", str(tmp_path), "--keyring", str(tmp_path / "keys.gpg")]
    for command in (
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        [*gpgv, "SHA256SUMS.gpg", "SHA256SUMS"],
        ["zstd", "--test", store.image],
    ):
        done = subprocess.run(command, cwd=store.artifact, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    files = {path.name for path in store.artifact.iterdir()}
    assert files == {*store.manifest.files, "SHA256SUMS", "SHA256SUMS.gpg"}


def test_the_golden_images_list_of_software_is_cyclonedx_of_what_is_installed(store: Store) -> None:
    said = store.manifest.extra
    text = (store.artifact / said["sbom"]["file"]).read_text()
    document = json.loads(text)
    assert JsonStrictValidator(SchemaVersion.from_version(document["specVersion"])).validate_str(text) is None
    purls = {each["purl"] for each in document["components"]}
    assert len(said["packages"]) > 100
    for name in said["packages"]:
        assert any(purl.startswith(f"pkg:deb/debian/{quote(name.partition(':')[0])}@") for purl in purls), name
    assert (store.artifact / "manifest.json").stat().st_size < MAX_MANIFEST_BYTES / 8


def test_sysupdate_finds_fetches_and_proves_the_release(store: Store, tmp_path: Path) -> None:
    machine = client(tmp_path, store.transfers(), store.keys)
    found = machine.run("--json=short", "check-new")
    assert found.returncode == 0 and f'"{store.version}"' in found.stdout, found.stderr
    done = machine.run("update")
    assert done.returncode == 0, done.stderr
    (installed,) = machine.target.iterdir()
    assert (installed.name, pack.hashed(installed)[1]) == (store.image, store.manifest.extra["sha256"])
    # systemd 257 keeps zstd as it is; what a slot is to hold comes out of it by the program.
    raw = tmp_path / "raw.img"
    subprocess.run(["zstd", "-q", "-d", "--sparse", installed, "-o", raw], check=True)
    assert pack.hashed(raw) == (store.manifest.image_size, store.manifest.digest.removeprefix("sha256:"))
    raw.unlink()
    again = machine.run("check-new")
    assert again.returncode != 0 and store.version not in again.stdout


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
def test_sysupdate_refuses_what_was_not_signed(store: Store, tmp_path: Path, what: str, says: str) -> None:
    name = what.replace(" ", "-")
    folder, keys = store.spoilt(name), store.keys
    if what == "foreign signature":
        with make_home() as home:
            keys = home.export([home.generate("stranger <stranger@example.org>")])
    elif what == "no signature":
        (folder / "SHA256SUMS.gpg").unlink()
    elif what == "changed sums":
        data = (folder / "SHA256SUMS").read_bytes()
        _put(folder / "SHA256SUMS", data.replace(b"manifest.json", b"manifest.jsom"))
    else:
        good = (folder / store.image).read_bytes()
        middle = len(good) // 2
        damaged = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        other = subprocess.run(["zstd", "-c"], input=b"another" * 999, capture_output=True, check=True).stdout
        _put(folder / store.image, damaged if what == "damaged image" else other)
    machine = client(tmp_path, store.transfers(name), keys)
    done = machine.run("update")
    assert done.returncode != 0 and says in done.stderr, done.stdout + done.stderr
    assert list(machine.target.iterdir()) == [], done.stderr
    shutil.rmtree(folder)


def _put(path: Path, data: bytes) -> None:
    """Other bytes under a name that another folder shares."""
    path.unlink()
    path.write_bytes(data)
