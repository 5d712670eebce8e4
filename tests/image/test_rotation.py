"""Release keys come and go: rotation in the order of docs/how-to/rotate-keys.md, a revoked key, an expired one, a card.

Images are built, signed and published with real keys, and judged by a device as its agent does: with the keyring out of
the image that it runs, or out of the older one that it fell back to.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.adapters.git_source import GitMirror
from reconciler.adapters.gpg_signer import GpgKey, ReleaseSigner
from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.agent import artifact
from reconciler.agent.judge import Keyring
from reconciler.controller.bootstrap import make_local_builder
from reconciler.controller.gatekeeper import ReleaseKeys
from reconciler.controller.settings import BuilderSettings
from reconciler.image.unpack import unpacked
from reconciler.model.desired import ImageSpec
from reconciler.ports import TerminalError, TransientError
from reconciler.protocol.assignment import ImageTarget
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.signature import Refused, verify_detached
from tests.support.gitrepo import Repo
from tests.support.gpg import Home, days_ago, make_home
from tests.support.recipes import commit, recipe
from tests.support.system import need

pytestmark = [pytest.mark.system, pytest.mark.slow]


def document(kind: str, name: str, spec: object) -> str:
    return json.dumps({"apiVersion": "fleet/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})


@dataclass
class Place:
    home: Path
    fingerprint: str
    passphrase_file: Path | None = None


class Files:
    """The agent's `Transport`, as far as it fetches: `file:` addresses."""

    def read(self, url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
        return Path(url.removeprefix("file://")).read_bytes()[:limit]


class Releases:
    """A fleet repo, its store, and releases made one after the other."""

    def __init__(self, root: Path, home: Home) -> None:
        self.root, self.home = root, home
        self.repo = Repo(root / "fleet")
        self.mirror = GitMirror(root / "mirror", str(self.repo.path), "main")
        self.store = DirectoryImageStore(root / "store")
        options = BuilderSettings(type="files")
        self.builder = make_local_builder(options, root / "work", root / "out", self._date)

    def _date(self, sha: str) -> datetime:
        return self.mirror.commit(sha).committed_at

    def build(self, release: str, trusted: list[str]) -> str:
        """Merge a release whose image trusts these keys, build it and put it into the store; the commit."""
        waves = {"waves": [{"name": "all", "sites": ["SITE-1"], "image": release, "soak": "1h"}]}
        sha = commit(
            self.repo,
            release,
            {
                "fleet.yaml": document("Fleet", "fleet", {}),
                "waves.yaml": document("Waves", "waves", waves),
                "sites/SITE-1.yaml": document("Site", "SITE-1", {"timezone": "UTC", "devices": ["SITE-1-1"]}),
                f"images/{release}.yaml": document("Image", release, {"recipe": f"{release}-recipe/"}),
                **recipe(self.home, trusted, f"images/{release}-recipe"),
            },
        )
        self.mirror.refresh()
        folder = self.root / f"recipe-{release}"
        self.mirror.export(sha, f"images/{release}-recipe", folder)
        built = self.builder.build(release, ImageSpec(recipe=f"{release}-recipe/"), folder, sha)
        self.store.stage(release, built.name, sorted(built.folder.iterdir()))
        return sha

    def sign(self, release: str, sha: str, key: str, allowed: list[str]) -> None:
        """Sign by the signer's rules, and publish by the loop's."""
        place = Place(self.home.path, key)
        signer = ReleaseSigner(place, self.mirror, self.store, builder_type="files", keys=allowed)
        signature = signer.sign_release(release, sha)
        (self.root / "ring").write_bytes(self.home.export(allowed))
        judge = ReleaseKeys(self.root / "ring", allowed, lambda: datetime.now(UTC)).judge
        judge(release, self.store.read(release, "SHA256SUMS"), signature, ())
        self.store.attach_signature(release, signature)
        self.store.publish(release)

    def make(self, release: str, *, trusts: list[str], signed_by: str, allowed: list[str]) -> None:
        """All of it."""
        self.sign(release, self.build(release, trusts), signed_by, allowed)

    def keyring(self, release: str) -> Keyring:
        """The keys in the image of a release, as its agent reads them."""
        manifest = Manifest.from_bytes(self.store.read(release, "manifest.json"))
        packed, raw = self.root / "packed", self.root / "raw.img"
        self.store.download(release, manifest.file, packed)
        unpacked(packed, raw, manifest, needed_for="a test")
        argv = [need("debugfs", "e2fsprogs"), "-R"]
        ring, names = (
            subprocess.run(
                [*argv, f"cat /etc/edge/keys/release.{kind}", str(raw)], capture_output=True, check=True
            ).stdout
            for kind in ("gpg", "fpr")
        )
        return Keyring(ring, tuple(names.decode().split()))

    def takes(self, running: str, offered: str) -> str:
        """What a device that runs one release says of another: `yes`, or its refusal's code."""
        manifest = Manifest.from_bytes(self.store.read(offered, "manifest.json"))
        folder = self.store.folder(offered)
        assert folder is not None
        target = ImageTarget(offered, manifest.digest, folder)
        source = f"file://{self.store.root}/{folder}/"
        keys = self.keyring(running)
        try:
            artifact.prove(
                target, [source], Files(), keys, verify_detached, manifest.image_size, datetime.now(UTC)  # type: ignore[arg-type]
            )  # fmt: skip
        except Refused as error:
            return error.code
        return "yes"


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    need("mke2fs", "e2fsprogs")
    with make_home() as made:
        yield made


@pytest.fixture
def releases(tmp_path: Path, home: Home) -> Iterator[Releases]:
    made = Releases(tmp_path, home)
    yield made
    made.mirror.close()


def test_a_rotation_in_the_order_of_the_guide_leaves_no_device_behind(releases: Releases, home: Home) -> None:
    old, new = home.generate("Old <old@example.org>"), home.generate("New <new@example.org>")
    both = [old, new]
    releases.make("v1", trusts=[old], signed_by=old, allowed=[old])
    # 1. Two releases that trust both are signed by the old key: after them every slot knows the new one.
    releases.make("v2", trusts=both, signed_by=old, allowed=both)
    releases.make("v3", trusts=both, signed_by=old, allowed=both)
    # 2. Only then the new key signs; the old one stays trusted as long as one may go back to what it signed.
    releases.make("v4", trusts=both, signed_by=new, allowed=both)
    releases.make("v5", trusts=both, signed_by=new, allowed=both)
    # 3. The old key goes.
    releases.make("v6", trusts=[new], signed_by=new, allowed=[new])
    for number in range(2, 7):
        offered = f"v{number}"
        assert releases.takes(f"v{number - 1}", offered) == "yes", offered
        if number > 2:  # a device that fell back runs the release before the last one
            assert releases.takes(f"v{number - 2}", offered) == "yes", f"fallen back, offered {offered}"
        if number > 2:  # and going back by a download works as well
            assert releases.takes(offered, f"v{number - 1}") == "yes", f"back from {offered}"
    # What the order is for: the new key one release too early leaves the devices behind that fell back.
    assert releases.takes("v1", "v4") == releases.takes("v6", "v3") == "signature-foreign"


def test_an_image_that_trusts_no_key_of_the_fleet_is_not_signed(releases: Releases, home: Home) -> None:
    ours, theirs = home.generate("Ours <ours@example.org>"), home.generate("Theirs <theirs@example.org>")
    sha = releases.build("v1", [theirs])
    with pytest.raises(TerminalError, match="none of its keys is one that the fleet allows"):
        releases.sign("v1", sha, ours, [ours])
    assert releases.store.artifacts()["v1"].state == "built"


def test_a_fleets_own_choice_of_keys_narrows_what_the_image_may_trust(releases: Releases, home: Home) -> None:
    one, two = home.generate("One <one@example.org>"), home.generate("Two <two@example.org>")
    releases.build("v1", [one])
    sha = releases.repo.commit("Narrow", {"fleet.yaml": document("Fleet", "fleet", {"releaseKeys": [two]})})
    with pytest.raises(TerminalError, match="none of its keys is one that the fleet allows"):
        releases.sign("v1", sha, one, [one, two])


def test_a_revoked_key_signs_nothing_more_and_a_spare_key_takes_over(releases: Releases, home: Home) -> None:
    stolen, spare = home.generate("Stolen <stolen@example.org>"), home.generate("Spare <spare@example.org>")
    both = [stolen, spare]
    releases.make("v1", trusts=both, signed_by=stolen, allowed=both)
    sha = releases.build("v2", both)
    early = home.sign_detached(releases.store.read("v2", "SHA256SUMS"), stolen)
    home.revoke(stolen)
    with pytest.raises(TransientError, match="did not sign"):
        GpgKey(home.path, stolen, needed_for="signing").sign(b"x")
    # What the thief had signed before is refused by the controller, whose keyring knows of the revocation.
    (releases.root / "ring").write_bytes(home.export(both))
    judge = ReleaseKeys(releases.root / "ring", both, lambda: datetime.now(UTC)).judge
    with pytest.raises(TerminalError, match="revoked"):
        judge("v2", releases.store.read("v2", "SHA256SUMS"), early, ())
    # Devices run v1, whose keyring knows of no revocation: the spare key signs, and they take it.
    releases.sign("v2", sha, spare, [spare])
    assert releases.takes("v1", "v2") == "yes"
    # From the next image on devices refuse the stolen key too, also over what it signed long ago.
    releases.make("v3", trusts=both, signed_by=spare, allowed=[spare])
    assert releases.takes("v2", "v3") == releases.takes("v1", "v3") == "yes"
    assert releases.takes("v3", "v1") == "key-revoked"


def test_an_image_whose_only_keys_are_revoked_or_expired_is_not_even_built(releases: Releases, home: Home) -> None:
    gone, late = (
        home.generate("Gone <gone@example.org>"),
        home.generate("Late <late@example.org>", expires="1d", at=days_ago(3)),
    )
    home.revoke(gone)
    with pytest.raises(TerminalError, match="is revoked, and no other key here may sign the next release"):
        releases.build("v1", [gone])
    with pytest.raises(TerminalError, match="has expired, and no other key here may sign the next release"):
        releases.build("v2", [late])


def test_an_expired_key_signs_nothing_and_an_extension_reaches_devices_with_an_image(
    releases: Releases, home: Home
) -> None:
    key = home.generate("Ageing <ageing@example.org>", expires="3d", at=days_ago(2))
    before = home.export([key])
    data = b"sums"
    signature = GpgKey(home.path, key, needed_for="signing").sign(data)
    assert verify_detached(data, signature, before, {key}, datetime.now(UTC))
    # Later than the key was made: gpg makes no second signature of its own in one second.
    home.run("--quick-set-expire", key, "1d", at=days_ago(2) + timedelta(hours=1))
    with pytest.raises(TransientError, match="did not sign"):
        GpgKey(home.path, key, needed_for="signing").sign(data)
    with pytest.raises(Refused, match="expired"):
        verify_detached(data, signature, home.export([key]), {key}, datetime.now(UTC))
    home.run("--quick-set-expire", key, "2y")
    assert verify_detached(data, signature, home.export([key]), {key}, datetime.now(UTC))


def test_a_key_that_only_the_agent_of_another_home_holds_signs(tmp_path: Path, home: Home) -> None:
    """As a smart card does: this home has the public half, and asks over a socket for every signature."""
    key = home.generate("Elsewhere <elsewhere@example.org>")
    with make_home() as here:
        here.run("--import", data=home.export([key]))
        with pytest.raises(TerminalError, match="has no secret key"):
            GpgKey(here.path, key, needed_for="signing")
        here.end_agent()
        (here.path / "S.gpg-agent").write_text(f"%Assuan%\nsocket={home.path}/S.gpg-agent\n")
        assert not list((here.path / "private-keys-v1.d").glob("*.key"))
        made = GpgKey(here.path, key, needed_for="signing").sign(b"x")
        assert verify_detached(b"x", made, home.export([key]), {key}, datetime.now(UTC)).primary == key
        # Nobody there to be asked: a key that wants a passphrase fails at once, and does not wait for a prompt.
    locked = home.run(
        "--passphrase", "pw", "--quick-generate-key", "--", "L <l@example.org>", "ed25519", "sign", "never"
    )
    assert locked == b""
    (fingerprint,) = [name for name in home.fingerprints() if b"l@example.org" in home.run("--list-keys", name)]
    home.end_agent()
    with pytest.raises(TransientError, match="did not sign"):
        GpgKey(home.path, fingerprint, needed_for="signing").sign(b"x")
