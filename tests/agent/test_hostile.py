"""Whoever stands between a release key and a slot: signatures of every wrong kind, flipped bits, bytes that never end or come
too slowly, bombs, and files that change under the agent's hands. Real keys and bytes; a refusal writes nothing to a slot."""

from __future__ import annotations

import hashlib
import random
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from reconciler.agent.disk import Disk
from reconciler.agent.supply import DiskSupply
from reconciler.agent.transport import HttpTransport, Server
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.report import Slot
from reconciler.protocol.signature import Refused
from tests.agent.conftest import Releases
from tests.agent.world import SIGNED, START, TOKEN, Artifact, Keys, Office, Site, office_at, pack, seal_folder, send
from tests.support.gpg import Home, days_ago, make_home
from tests.support.system import need

pytestmark = pytest.mark.system


# ---------------------------------------------------------------- signatures of every wrong kind


@dataclass(frozen=True)
class Signers:
    """Keys that have ended, in one home, and the keyring that shows them as they are now."""

    keys: Keys
    home: Home
    expired: str
    revoked: str
    ring: bytes

    def sign(self, kind: str, data: bytes) -> bytes:
        """A signature over `data` that is wrong in one way."""
        home, good = self.keys.home, self.keys.assignment
        if kind == "foreign":
            return home.sign_detached(data, self.keys.foreign, at=SIGNED)
        if kind == "not-allowed":
            return home.sign_detached(data, self.keys.release, at=SIGNED)
        if kind == "expired-key":
            return self.home.sign_detached(data, self.expired, at=days_ago(59))
        if kind == "revoked-key":
            return self.home.sign_detached(data, self.revoked)
        if kind == "expired":
            return home.sign_detached(data, good, at=days_ago(9), expires="1d")
        if kind == "future":
            return home.sign_detached(data, good, at=START + timedelta(days=30))
        if kind == "sha1":
            return home.sign_detached(data, good, at=SIGNED, digest="SHA1")
        one = home.sign_detached(data, good, at=SIGNED)
        return {"doubled": one + one, "truncated": one[:-3], "empty": b""}[kind]


@pytest.fixture(scope="session")
def signers(keys: Keys) -> Iterator[Signers]:
    with make_home() as home, make_home() as public:
        expired = home.generate("Expired <expired@example>", at=days_ago(60), expires="2d")
        revoked = home.generate("Revoked <revoked@example>", at=datetime(2020, 1, 1, tzinfo=UTC))
        public.generate("Whoever gathers the keyring <keys@example>")
        # Revoked where the keyring comes from; whoever has stolen the key goes on signing.
        public.run("--import", data=home.export([expired, revoked]))
        text = (home.path / "openpgp-revocs.d" / f"{revoked}.rev").read_text()
        public.run("--import", data=text.replace(":-----BEGIN", "-----BEGIN").encode())
        ring = public.export([expired, revoked]) + keys.ring(keys.assignment, keys.release)
        yield Signers(keys, home, expired, revoked, ring)


WRONG = {
    "foreign": "signature-foreign",
    "not-allowed": "signature-foreign",
    "expired-key": "key-expired",
    "revoked-key": "key-revoked",
    "expired": "signature-expired",
    "future": "signature-future",
    "sha1": "signature-unusable",
    "doubled": "signature-several",
    "truncated": "signature-malformed",
    "empty": "signature-missing",
}


def _trust(site: Site, signers: Signers) -> None:
    """The device's keyring holds the ended keys too, and allows them: what refuses is what became of them."""
    allowed = [signers.keys.assignment, signers.expired, signers.revoked]
    for kind in ("assignment", "release"):
        (site.root / "keys" / f"{kind}.gpg").write_bytes(signers.ring)
        (site.root / "keys" / f"{kind}.fpr").write_text("".join(f"{item}\n" for item in allowed))


def _reports(site: Site, office: Office, code: str) -> None:
    for _ in range(2):
        office.now += timedelta(seconds=60)
        site.settle()
    assert [item.code for item in office.last().refusals] == [code], office.last().refusals
    assert len(office.last().refusals[0].reason) > 10
    assert (office.last().image, office.last().attempts) == ("v1", {})


@pytest.mark.parametrize("wrong", WRONG)
def test_an_assignment_under_a_wrong_signature(
    site: Site, office: Office, releases: Releases, signers: Signers, wrong: str
) -> None:
    _trust(site, signers)
    site.settle()
    before = site.tree()
    office.assign(releases.v2)
    assert office.bundle is not None
    office.bundle = replace(office.bundle, signature=signers.sign(wrong, office.bundle.root_document))
    _reports(site, office, WRONG[wrong])
    assert site.tree() == before


@pytest.mark.parametrize("wrong", WRONG)
def test_sums_under_a_wrong_signature(
    site: Site, office: Office, releases: Releases, signers: Signers, wrong: str
) -> None:
    _trust(site, signers)
    artifact = pack(releases.v2.image, office.root / "artifacts" / "edge-golden-v2-20300105", "v2", office.keys)
    data = (artifact.folder / "SHA256SUMS").read_bytes()
    (artifact.folder / "SHA256SUMS.gpg").write_bytes(signers.sign(wrong, data))
    office.assign(artifact)
    site.settle()
    _reports(site, office, WRONG[wrong])
    _untouched(site)


def _untouched(site: Site) -> None:
    """Nothing was written to the other slot, and nothing was kept."""
    assert not (site.root / "slot-a.img").exists()
    assert site.hardware.slots()["a"] == Slot()
    assert site.slot_digest("b", site.hardware.slot_size("b")) == site.hardware.slots()["b"].digest
    cache = site.root / "agent" / "cache"
    assert not [path for path in cache.rglob("*") if path.is_file()]


# ---------------------------------------------------------------- flipped bits, cut and grown files


@pytest.fixture
def own(office: Office, releases: Releases) -> Artifact:
    """A copy of v2's artifact that a test may spoil."""
    return pack(releases.v2.image, office.root / "artifacts" / "edge-golden-v2-20300106", "v2", office.keys)


@pytest.fixture
def supply(site: Site, office: Office) -> Iterator[DiskSupply]:
    """What the agent has its artifacts from, with folders for sources."""
    transport = HttpTransport(Server(office.url, TOKEN, timeout_s=60, allow_file_urls=True))
    yield DiskSupply(site.hardware, transport, Disk(), office.keys.verifier)
    transport.close()


@pytest.fixture
def fetch(own: Artifact, supply: DiskSupply) -> Callable[[], None]:
    """Fetches and writes the artifact as the agent does, from its folder."""

    def run() -> None:
        for _ in supply.fetch_image(own.target, [own.folder.as_uri() + "/"], START):
            pass
        for _ in supply.write_image(own.target, "a"):
            pass

    return run


def _fetched(site: Site) -> Path:
    """The packed image that waits on the device, named by its digest."""
    cache = site.root / "agent" / "cache"
    (packed,) = (path for path in cache.rglob("*") if len(path.name) == 64 and path.is_file())
    return packed


FILES = ("SHA256SUMS", "SHA256SUMS.gpg", "manifest.json", "edge-golden-v2-20300106.img.zst")


def _refuses(site: Site, fetch: Callable[[], None], where: str) -> str:
    with pytest.raises(Refused) as caught:
        fetch()
    assert caught.value.reason, where
    _untouched(site)
    return caught.value.code


@pytest.mark.parametrize("name", FILES)
def test_a_bit_flipped_anywhere(site: Site, own: Artifact, fetch: Callable[[], None], name: str) -> None:
    path, chance = own.folder / name, random.Random(20300106)
    data = path.read_bytes()
    for number in {0, 8 * len(data) - 1, *(chance.randrange(8 * len(data)) for _ in range(16))}:
        flipped = bytearray(data)
        flipped[number // 8] ^= 1 << number % 8
        path.write_bytes(bytes(flipped))
        code = _refuses(site, fetch, f"bit {number} of {name}")
        if name == "manifest.json":
            assert code == "manifest-digest"
        if name == "SHA256SUMS":
            assert code == "signature-bad"
        if name.endswith(".zst"):
            assert code == "artifact-digest"
    path.write_bytes(data)
    fetch()
    assert site.hardware.slots()["a"].digest == own.digest, "untouched, it is taken"


@pytest.mark.parametrize("name", FILES[:3])
def test_a_file_cut_anywhere(site: Site, own: Artifact, fetch: Callable[[], None], name: str) -> None:
    path = own.folder / name
    data = path.read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        _refuses(site, fetch, f"{name} cut to {length}")


@pytest.mark.parametrize("grow", [-1, -1000, 1, 100_000])
def test_an_image_that_is_shorter_or_longer_than_its_manifest_says(
    site: Site, office: Office, own: Artifact, grow: int
) -> None:
    """Fewer bytes may be a broken line, and more are not even read: it is tried again, and nothing is written."""
    path = own.folder / FILES[3]
    data = path.read_bytes()
    path.write_bytes(data[:grow] if grow < 0 else data + b"x" * grow)
    office.assign(own)
    site.settle()
    _reports(site, office, "not-fetched")
    assert not (site.root / "slot-a.img").exists()
    path.write_bytes(data)
    site.settle(START + timedelta(minutes=30))
    assert office.last().image == "v2"


# ---------------------------------------------------------------- addresses that misbehave


@pytest.mark.parametrize("name", FILES)
def test_bytes_without_an_end(site: Site, office: Office, own: Artifact, name: str) -> None:
    sent = [0]

    def endless(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith("/" + name):
            return False
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        with suppress(OSError):
            while True:
                request.wfile.write(b"x" * 65536)
                sent[0] += 65536
        return True

    office.before = endless
    office.assign(own)
    site.settle()
    _reports(site, office, "not-fetched")
    assert "more than" in office.last().refusals[0].reason
    assert not (site.root / "slot-a.img").exists()
    assert sent[0] < 64 << 20


class Impatient(HttpTransport):
    """Waits for one file for a moment only, and for everything else for as long as it takes."""

    def __init__(self, office: Office, name: str) -> None:
        super().__init__(Server(office.url, TOKEN))
        self._name = name

    def _request(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Any:
        slow = url.endswith(f"/{self._name}")
        self._server = replace(self._server, timeout_s=0.2 if slow else 60)
        if slow:
            self.close()  # a connection that is kept has the time of the request before
        return super()._request(method, url, body, headers)


@pytest.mark.parametrize("name", FILES)
def test_bytes_that_come_too_slowly(site: Site, office: Office, own: Artifact, name: str, tmp_path: Path) -> None:
    """The reports go on, and nothing is written. A file that is small must come as a whole in time."""
    site.transport.close()
    site.transport = Impatient(office, name)
    site.device = site.new_device()
    stop = threading.Event()

    def slow(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith("/" + name):
            return False
        request.send_response(200)
        request.send_header("Content-Length", str((own.folder / name).stat().st_size))
        request.end_headers()
        request.close_connection = True
        stop.wait(60)
        return True

    office.before = slow
    office.assign(own)
    site.settle()
    _reports(site, office, "not-fetched")
    assert not (site.root / "slot-a.img").exists()
    stop.set()


@pytest.mark.parametrize("name", FILES)
def test_a_redirect_to_another_host(site: Site, office: Office, own: Artifact, name: str, tmp_path: Path) -> None:
    with office_at(office.root, office.keys) as elsewhere:

        def redirect(request: BaseHTTPRequestHandler) -> bool:
            if not request.path.endswith("/" + name):
                return False
            send(request, 302, b"", {"Location": f"{elsewhere.url}{request.path}"})
            return True

        office.before = redirect
        office.assign(own)
        site.settle()
        _reports(site, office, "not-fetched")
        assert "another host" in office.last().refusals[0].reason
        assert elsewhere.requests == []
    assert not (site.root / "slot-a.img").exists()


# ---------------------------------------------------------------- bombs, and files that change


def test_a_bomb_fills_nothing(site: Site, office: Office, releases: Releases) -> None:
    """Signed, by whoever got hold of a key: 256 MiB of zeros in a few bytes, said to be an image of 256 KiB."""
    folder = office.root / "artifacts" / "edge-golden-v2-20300107"
    artifact = pack(releases.v2.image, folder, "v2", office.keys)
    name = f"{folder.name}.img.zst"
    bomb = subprocess.run(
        f"head -c {256 << 20} /dev/zero | {need('zstd')} -q -19 -c", shell=True, capture_output=True, check=True
    ).stdout
    assert len(bomb) < 65536
    (folder / name).write_bytes(bomb)
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(replace(manifest, size=len(bomb)).to_bytes())
    seal_folder(folder, office.keys)
    office.assign(artifact)
    site.settle()
    _reports(site, office, "image-size")
    assert (site.root / "slot-a.img").stat().st_size <= manifest.image_size
    assert site.hardware.slots() == {"a": Slot(), "b": Slot("v1", releases.v1.digest, True)}
    assert site.hardware.flags().trial is None


@pytest.mark.parametrize("when", ["before it is hashed", "after it was hashed"])
def test_a_file_swapped_between_the_proof_and_the_write(
    site: Site, office: Office, own: Artifact, releases: Releases, when: str
) -> None:
    """By name, as whoever got into the cache would do it. What was hashed is what is written, or nothing is."""
    opens = START + timedelta(hours=1)
    office.assign(own, window=((opens, opens + timedelta(hours=1)),))
    site.settle(START + timedelta(minutes=5))
    packed = _fetched(site)
    other = next(releases.bad.folder.glob("*.zst")).read_bytes().ljust(packed.stat().st_size, b"\0")

    def swap() -> None:
        packed.unlink()
        packed.write_bytes(other[: (own.folder / FILES[3]).stat().st_size])

    if when == "before it is hashed":
        swap()
    else:
        forget = site.hardware.forget_slot

        def forgetting(slot: str) -> None:
            forget(slot)
            swap()

        site.hardware.forget_slot = forgetting  # type: ignore[method-assign]
    office.now = opens
    if when == "before it is hashed":
        site.settle()
        codes = {item.code for report in office.reports for item in report.refusals}
        codes |= {item.code for item in site.device.agent.notes.refusals()}
        assert codes == {"artifact-digest"}
        assert not (site.root / "slot-a.img").exists()
    site.settle(opens + timedelta(minutes=20))
    assert (office.last().image, office.last().attempts) == ("v2", {})
    assert site.slot_digest("a", len(own.image)) == own.digest


def _passes_for(own: Artifact, other: Artifact) -> tuple[bytes, bytes]:
    """A manifest and a packed file that agree in all but one: the image is another than the digest says."""
    (packed,) = other.folder.glob("*.zst")
    data = packed.read_bytes()
    parts = {"size": len(data), "sha256": [hashlib.sha256(data).hexdigest()]}
    manifest = Manifest("v2", FILES[3], len(data), "zstd", len(other.image), own.digest, {"parts": parts})
    assert manifest.parts is not None
    return manifest.to_bytes(), data


def test_a_release_key_alone_gives_no_other_content_to_a_digest_that_was_assigned(
    site: Site, office: Office, own: Artifact, releases: Releases, fetch: Callable[[], None]
) -> None:
    """Two keys agree on what a slot holds: it is hashed as a whole, also where a signed manifest lists parts."""
    manifest, packed = _passes_for(own, releases.bad)
    (own.folder / "manifest.json").write_bytes(manifest)
    (own.folder / FILES[3]).write_bytes(packed)
    seal_folder(own.folder, office.keys)
    with pytest.raises(Refused) as caught:
        fetch()
    assert caught.value.code == "image-digest"
    assert site.hardware.slots()["a"] == Slot()


def test_whoever_changes_what_was_fetched_gives_no_other_content_to_it(
    site: Site, own: Artifact, releases: Releases, supply: DiskSupply
) -> None:
    """Manifest and packed file together, so that each bears the other out."""
    for _ in supply.fetch_image(own.target, [own.folder.as_uri() + "/"], START):
        pass
    manifest, packed = _passes_for(own, releases.bad)
    before = _fetched(site)
    before.with_name("manifest.json").write_bytes(manifest)
    before.with_name(hashlib.sha256(packed).hexdigest()).write_bytes(packed)
    before.unlink()
    with pytest.raises(Refused) as caught:
        for _ in supply.write_image(own.target, "a"):
            pass
    assert caught.value.code == "image-digest"
    assert site.hardware.slots()["a"] == Slot()


def test_the_assignments_bytes_are_what_was_signed(site: Site, office: Office, releases: Releases) -> None:
    """A bit flipped anywhere in the document, or in its proof, and it is not under the root that was signed."""
    site.settle()
    office.assign(releases.v2)
    genuine, chance, before = office.bundle, random.Random(7), site.tree()
    assert genuine is not None
    for _ in range(12):
        data = bytearray(genuine.document)
        number = chance.randrange(8 * len(data))
        data[number // 8] ^= 1 << number % 8
        office.bundle = replace(genuine, document=bytes(data))
        office.now += timedelta(seconds=60)
        site.settle()
        (refusal,) = site.device.agent.notes.refusals()
        assert refusal.code in ("proof-invalid", "assignment-malformed"), refusal
        assert site.tree() == before
    for index in range(len(genuine.proof)):
        step = bytes([genuine.proof[index][0] ^ 1]) + genuine.proof[index][1:]
        office.bundle = replace(genuine, proof=(*genuine.proof[:index], step, *genuine.proof[index + 1 :]))
        office.now += timedelta(seconds=60)
        site.settle()
        assert [item.code for item in site.device.agent.notes.refusals()] == ["proof-invalid"]
    assert site.tree() == before
    office.bundle = genuine
    office.now += timedelta(seconds=60)
    site.settle()
    assert site.device.agent.notes.assignment == Assignment.from_bytes(genuine.document)
