"""A refusal changes nothing on disk, has a code, and is told in the next report. Every step of the order of trust."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from reconciler.protocol import merkle
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.bundle import Bundle, Root
from reconciler.protocol.canonical import dump
from reconciler.protocol.manifest import Manifest
from tests.agent.conftest import Releases
from tests.agent.world import SIGNED, START, Artifact, Office, Site, build_image, pack, seal_folder

pytestmark = pytest.mark.system


def _refused(site: Site, office: Office, code: str) -> None:
    """Two exchanges: one that refuses, one that tells. The tree below the root is the same before and after."""
    before = site.tree()
    for _ in range(2):
        office.now += timedelta(seconds=60)
        site.settle()
    assert [item.code for item in office.last().refusals] == [code]
    assert office.last().refusals[0].reason
    assert site.tree() == before
    assert office.last().image == "v1"


@pytest.fixture
def ready(site: Site, office: Office) -> Site:
    """A device with an accepted assignment (serial 1.5) that asks for nothing."""
    office.n = 4
    office.assign()
    site.settle()
    assert office.last().serial is None
    office.now += timedelta(seconds=60)
    site.settle()
    assert office.last().serial == (1, 5)
    return site


def _document(office: Office, **fields: object) -> bytes:
    return Assignment(
        **{  # type: ignore[arg-type]
            "device": "SITE-2847-1",
            "serial": (1, 6),
            "issued_at": office.now,
            "expires_at": office.now + timedelta(days=1),
            "window_waived": True,
            **fields,
        }
    ).to_bytes()


def test_signed_by_a_foreign_key(ready: Site, office: Office, releases: Releases) -> None:
    office.bundle = office.sealed(_document(office, image=releases.v2.target), key=office.keys.foreign)
    _refused(ready, office, "signature-foreign")


def test_signed_by_the_release_key_which_is_not_for_assignments(
    ready: Site, office: Office, releases: Releases
) -> None:
    office.bundle = office.sealed(_document(office, image=releases.v2.target), key=office.keys.release)
    _refused(ready, office, "signature-foreign")


def test_another_document_under_a_genuine_root(ready: Site, office: Office, releases: Releases) -> None:
    genuine = office.sealed(_document(office))
    office.bundle = replace(genuine, document=_document(office, image=releases.v2.target))
    _refused(ready, office, "proof-invalid")


def test_a_genuine_leaf_at_another_place(ready: Site, office: Office) -> None:
    genuine = office.sealed(_document(office))
    office.bundle = replace(genuine, index=genuine.index - 1)
    _refused(ready, office, "proof-invalid")


def test_a_count_that_is_not_the_roots(ready: Site, office: Office) -> None:
    genuine = office.sealed(_document(office))
    office.bundle = replace(genuine, count=genuine.count + 1)
    _refused(ready, office, "proof-invalid")


def test_a_signed_document_that_is_no_root(ready: Site, office: Office) -> None:
    data = dump({"type": "something-else", "protocol": 1})
    genuine = office.sealed(_document(office))
    signature = office.keys.home.sign_detached(data, office.keys.assignment, at=SIGNED)
    office.bundle = replace(genuine, root_document=data, signature=signature)
    _refused(ready, office, "root-malformed")


def test_a_root_changed_after_signing(ready: Site, office: Office, releases: Releases) -> None:
    document = _document(office, image=releases.v2.target)
    genuine, tree = office.sealed(_document(office)), merkle.build([document])
    root = Root(tree.root, 1, 1, office.now).to_bytes()
    office.bundle = Bundle(document, 0, 1, (), root, genuine.signature)
    _refused(ready, office, "signature-bad")


def test_for_another_device(ready: Site, office: Office, releases: Releases) -> None:
    office.bundle = office.sealed(_document(office, device="SITE-2847-2", image=releases.v2.target))
    _refused(ready, office, "wrong-device")


@pytest.mark.parametrize("serial", [(1, 4), (0, 99)])
def test_an_older_serial(ready: Site, office: Office, releases: Releases, serial: tuple[int, int]) -> None:
    document = _document(office, serial=serial, image=releases.v2.target)
    office.bundle = office.sealed(document, epoch=serial[0])
    _refused(ready, office, "serial-old")


def test_the_same_serial_with_other_content(ready: Site, office: Office, releases: Releases) -> None:
    office.bundle = office.sealed(_document(office, serial=(1, 5), image=releases.v2.target))
    _refused(ready, office, "serial-reused")


def test_a_serial_of_another_epoch_than_the_root(ready: Site, office: Office) -> None:
    office.bundle = office.sealed(_document(office, serial=(7, 1)))
    _refused(ready, office, "wrong-epoch")


def test_expired(ready: Site, office: Office, releases: Releases) -> None:
    start, end = office.now - timedelta(days=2), office.now + timedelta(seconds=60)
    office.bundle = office.sealed(_document(office, issued_at=start, expires_at=end, image=releases.v2.target))
    _refused(ready, office, "assignment-expired")


def test_from_the_future(ready: Site, office: Office, releases: Releases) -> None:
    later = office.now + timedelta(hours=1)
    document = _document(office, issued_at=later, expires_at=later + timedelta(days=1), image=releases.v2.target)
    office.bundle = office.sealed(document)
    _refused(ready, office, "assignment-from-the-future")


@pytest.mark.parametrize(
    "document",
    [
        b"{}",
        b"[]",
        b"\xff",
        b'{"protocol":1, "type":"assignment"}',
        dump({**json.loads(Assignment("D", (1, 6), START, START + timedelta(days=1)).to_bytes()), "critical": ["new"]}),
    ],
)
def test_signed_but_no_assignment_that_this_agent_understands(ready: Site, office: Office, document: bytes) -> None:
    office.bundle = office.sealed(document)
    _refused(ready, office, "assignment-malformed")


def test_after_a_restored_backup_a_higher_epoch_is_accepted(ready: Site, office: Office) -> None:
    office.epoch, office.n = 2, 0
    office.assign()
    office.now += timedelta(seconds=60)
    ready.settle()
    ready.device.power_cycle()
    ready.settle()
    assert office.last().serial == (2, 1)


def test_a_device_without_keys_accepts_nothing(ready: Site, office: Office) -> None:
    (ready.root / "keys" / "assignment.gpg").unlink()
    office.assign()
    before = ready.tree()
    office.now += timedelta(seconds=60)
    ready.step()
    office.now += timedelta(seconds=90)
    ready.step()
    assert [item.code for item in office.last().refusals] == ["device-fault"]
    assert "assignment.gpg" in office.last().refusals[0].reason
    assert ready.tree() == before


# ---------------------------------------------------------------- the artifact


def _own(office: Office, releases: Releases, tmp_path: Path, *, key: str | None = None) -> Artifact:
    """A copy of v2's artifact that a test may spoil."""
    folder = office.root / "artifacts" / "edge-golden-v2-20300102"
    return pack(releases.v2.image, folder, "v2", office.keys, key=key)


def _refuses_artifact(site: Site, office: Office, artifact: Artifact, code: str) -> None:
    """The assignment itself is accepted (that is written down); the artifact is refused and nothing else changes."""
    opens = office.now + timedelta(minutes=1)
    office.assign(artifact, window=((opens, opens + timedelta(hours=1)),))
    site.settle()
    # What the accepted assignment wrote is there now; from here on nothing may change.
    state, rest = (site.root / "agent" / "state.json").read_bytes(), _without_state(site)
    for _ in range(3):
        office.now += timedelta(seconds=60)
        site.settle()
    assert [item.code for item in office.last().refusals] == [code], office.last().refusals
    assert (site.root / "agent" / "state.json").read_bytes() == state
    assert _without_state(site) == rest
    assert site.hardware.slots()["a"].digest is None
    assert not list(site.root.rglob("*.zst")) + list(site.root.rglob("part"))
    assert office.last().attempts == {}


def _without_state(site: Site) -> dict[str, str]:
    """The tree, but for an empty cache folder, which says nothing."""
    tree = site.tree()
    return {name: value for name, value in tree.items() if not name.startswith("agent/")}


def test_sums_signed_by_a_foreign_key(site: Site, office: Office, releases: Releases, tmp_path: Path) -> None:
    artifact = _own(office, releases, tmp_path, key=office.keys.foreign)
    _refuses_artifact(site, office, artifact, "signature-foreign")


def test_sums_signed_by_the_assignment_key(site: Site, office: Office, releases: Releases, tmp_path: Path) -> None:
    artifact = _own(office, releases, tmp_path, key=office.keys.assignment)
    _refuses_artifact(site, office, artifact, "signature-foreign")


@pytest.mark.parametrize(
    ("name", "spoil", "code"),
    [
        ("SHA256SUMS", lambda data: data.replace(b"0", b"1", 1), "signature-bad"),
        ("SHA256SUMS.gpg", lambda data: data + data, "signature-several"),
        ("SHA256SUMS.gpg", lambda data: b"", "signature-missing"),
        ("manifest.json", lambda data: data + b"\n", "manifest-digest"),
        ("edge-golden-v2-20300102.img.zst", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "artifact-digest"),
    ],
)
def test_files_changed_after_signing(
    site: Site,
    office: Office,
    releases: Releases,
    tmp_path: Path,
    name: str,
    spoil: Callable[[bytes], bytes],
    code: str,
) -> None:
    artifact = _own(office, releases, tmp_path)
    (artifact.folder / name).write_bytes(spoil((artifact.folder / name).read_bytes()))
    _refuses_artifact(site, office, artifact, code)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"release": "v1"}, "artifact-mismatch"),
        ({"digest": "sha256:" + "0" * 64}, "artifact-mismatch"),
        ({"image_size": 1024 * 1024 + 1}, "artifact-too-large"),
        ({"file": "elsewhere.img"}, "artifact-incomplete"),
        ({"file": "../../etc/passwd"}, "artifact-malformed"),
        ({"compression": "xz"}, "artifact-malformed"),
        ({"compression": "none"}, "artifact-malformed"),
    ],
)
def test_signed_manifests_that_do_not_fit(
    site: Site, office: Office, releases: Releases, tmp_path: Path, change: dict[str, object], code: str
) -> None:
    artifact = _own(office, releases, tmp_path)
    manifest = Manifest.from_bytes((artifact.folder / "manifest.json").read_bytes())
    (artifact.folder / "manifest.json").write_bytes(replace(manifest, **change).to_bytes())  # type: ignore[arg-type]
    seal_folder(artifact.folder, office.keys)
    _refuses_artifact(site, office, artifact, code)


def test_another_release_in_the_folder(site: Site, office: Office, releases: Releases, tmp_path: Path) -> None:
    """Genuinely signed, but not what was assigned: an old release cannot be slipped in."""
    artifact = _own(office, releases, tmp_path)
    wanted = replace(artifact.target, release="v3", digest=releases.bad.digest)
    opens = office.now
    office.assign(wanted, window=((opens, opens + timedelta(hours=1)),))
    site.settle()
    assert [item.code for item in site.device.agent.notes.refusals()] == ["artifact-mismatch"]
    assert site.hardware.slots()["a"].digest is None


def _lying(office: Office, image: bytes, name: str, **change: object) -> Artifact:
    """A signed artifact whose manifest does not tell the truth about its image."""
    artifact = pack(image, office.root / "artifacts" / name, "v2", office.keys)
    manifest = Manifest.from_bytes((artifact.folder / "manifest.json").read_bytes())
    manifest = replace(manifest, **change)  # type: ignore[arg-type]
    (artifact.folder / "manifest.json").write_bytes(manifest.to_bytes())
    seal_folder(artifact.folder, office.keys)
    artifact.digest = manifest.digest
    return artifact


@pytest.mark.parametrize(("size", "code"), [(1000, "image-size"), (300_000, "image-size"), (262_144, "image-digest")])
def test_unpacking_is_bounded_by_the_manifest_and_checked(
    site: Site, office: Office, releases: Releases, size: int, code: str
) -> None:
    """Size and digest are only known after unpacking: the inactive slot is given up, the booted one never."""
    digest = "sha256:" + hashlib.sha256(b"other").hexdigest()
    artifact = _lying(office, releases.v2.image, "edge-golden-v2-20300103", image_size=size, digest=digest)
    office.assign(artifact)
    site.settle()
    assert [item.code for item in site.device.agent.notes.refusals()] == [code]
    assert (site.root / "slot-a.img").stat().st_size <= size
    assert site.hardware.slots()["a"].digest is None
    assert site.hardware.slots()["b"].good
    assert not (site.root / "agent" / "cache").exists()


def test_a_cached_file_that_has_changed_costs_no_slot(site: Site, office: Office, releases: Releases) -> None:
    office.assign(releases.bad, window_waived=True)
    site.settle(START + timedelta(minutes=3))
    held = site.hardware.slots()["a"]
    assert held.digest == releases.bad.digest
    office.assign(releases.v2, window=())
    site.settle(START + timedelta(minutes=5))
    (packed,) = (path for path in (site.root / "agent" / "cache").rglob("*") if len(path.name) == 64 and path.is_file())
    data = bytearray(packed.read_bytes())
    data[50] ^= 1
    packed.write_bytes(bytes(data))
    office.assign(releases.v2, window_waived=True)
    site.settle(START + timedelta(minutes=6))
    codes = {item.code for report in office.reports for item in report.refusals}
    assert "artifact-digest" in codes
    site.settle(START + timedelta(minutes=12))
    assert office.last().image == "v2", "it is fetched again and then written"


def test_zstd_that_is_none(site: Site, office: Office, releases: Releases) -> None:
    folder = office.root / "artifacts" / "edge-golden-v2-20300104"
    artifact = pack(releases.v2.image, folder, "v2", office.keys)
    name = f"{folder.name}.img.zst"
    (folder / name).write_bytes(b"not zstd")
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(replace(manifest, size=8).to_bytes())
    seal_folder(folder, office.keys)
    office.assign(artifact)
    site.settle()
    assert [item.code for item in site.device.agent.notes.refusals()] == ["image-packing"]


def test_an_uncompressed_artifact_is_written_as_it_is(
    site: Site, office: Office, releases: Releases, tmp_path: Path
) -> None:
    artifact = pack(
        build_image(tmp_path, "v5", {"checks": [], "status": "ok"}),
        office.root / "artifacts" / "edge-golden-v5-20300101",
        "v5",
        office.keys,
        zstd=False,
    )
    office.assign(artifact)
    site.settle(START + timedelta(minutes=3))
    assert office.last().image == "v5"


def test_a_disk_that_does_not_give_back_what_was_written_costs_an_attempt(
    site: Site, office: Office, releases: Releases
) -> None:
    read = site.hardware.read_slot
    site.hardware.read_slot = lambda slot, end, start=0: iter([b"\0", *list(read(slot, end, start))[1:]])  # type: ignore[method-assign]
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=3))
    assert office.last().attempts == {"v2": 1}
    assert office.last().image == "v1"
    assert site.hardware.slots()["a"].digest is None
    assert "slot-spoiled" in {item.code for report in office.reports for item in report.refusals}


def test_keys_in_the_booted_image_come_before_those_of_enrolment(
    new_site: Callable[..., Site], office: Office, releases: Releases, tmp_path: Path
) -> None:
    image = build_image(tmp_path, "v1", {"checks": [], "status": "ok"}, keys=office.keys)
    carrying = Artifact("v1", tmp_path, "sha256:" + hashlib.sha256(image).hexdigest(), image)
    site = new_site(carrying)
    for path in (site.root / "keys").iterdir():
        path.unlink()
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=3))
    # v2 carries none, and enrolment left none: the update itself worked by the keys of v1.
    assert office.last().image == "v2"
