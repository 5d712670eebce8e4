"""Signing with real keys, after the recheck: what is signed, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.adapters.git_source import GitMirror
from reconciler.adapters.gpg_signer import GpgKey, ReleaseSigner, RootSigner
from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.adapters.signer_process import ProcessSigner
from reconciler.image.builder import ImageBuilder
from reconciler.model.desired import ImageSpec
from reconciler.ports import TerminalError, TransientError
from reconciler.protocol.signature import verify_detached
from reconciler.protocol.sums import format_sums, parse_sums
from tests.support.gitrepo import Repo
from tests.support.gpg import Home, make_home
from tests.support.recipes import SETUP, recipe
from tests.support.recipes import commit as committed
from tests.support.system import need

pytestmark = pytest.mark.system
DIGEST = "sha256:" + "a" * 64


def document(kind: str, name: str, spec: object) -> str:
    return json.dumps({"apiVersion": "fleet/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})


@dataclass
class Place:
    """Where a key is."""

    home: Path
    fingerprint: str
    passphrase_file: Path | None = None


@pytest.fixture(scope="module")
def keys() -> Iterator[Home]:
    with make_home() as home:
        yield home


@pytest.fixture(scope="module")
def key(keys: Home) -> str:
    return keys.generate("Release <release@example.org>")


@dataclass
class World:
    """A fleet repo with one image, its mirror, and a store with that image built."""

    repo: Repo
    mirror: GitMirror
    store: DirectoryImageStore
    folder: Path
    commit: str


@pytest.fixture
def world(tmp_path: Path, keys: Home, key: str) -> Iterator[World]:
    yield from make_world(tmp_path, keys, [key])


def make_world(tmp_path: Path, keys: Home, trusted: list[str]) -> Iterator[World]:
    """A world whose image trusts these keys."""
    need("mke2fs", "e2fsprogs")
    repo = Repo(tmp_path / "fleet")
    waves = {"waves": [{"name": "all", "sites": ["SITE-1"], "image": "v1", "soak": "1h"}]}
    commit = committed(
        repo,
        "First",
        {
            "fleet.yaml": document("Fleet", "fleet", {}),
            "waves.yaml": document("Waves", "waves", waves),
            "sites/SITE-1.yaml": document("Site", "SITE-1", {"timezone": "Europe/Berlin", "devices": ["SITE-1-1"]}),
            "images/v1.yaml": document("Image", "v1", {"recipe": "golden/"}),
            **recipe(keys, trusted),
        },
    )
    mirror = GitMirror(tmp_path / "mirror", str(repo.path), "main")
    mirror.refresh()
    mirror.export(commit, "images/golden", tmp_path / "recipe")
    builder = ImageBuilder(
        tmp_path / "work", tmp_path / "out", committed_at=lambda sha: mirror.commit(sha).committed_at, timeout_s=250
    )
    built = builder.build("v1", ImageSpec(recipe="golden/"), tmp_path / "recipe", commit)
    store = DirectoryImageStore(tmp_path / "store")
    store.stage("v1", built.name, sorted(built.folder.iterdir()))
    yield World(repo, mirror, store, tmp_path / "store" / built.name, commit)
    mirror.close()


def signer(world: World, keys: Home, key: str, *, required: bool = False) -> ReleaseSigner:
    return ReleaseSigner(Place(keys.path, key), world.mirror, world.store, builder_type="files", required=required)


def test_a_release_is_signed_and_can_be_published(world: World, keys: Home, key: str) -> None:
    signature = signer(world, keys, key).sign_release("v1", world.commit)
    sums = (world.folder / "SHA256SUMS").read_bytes()
    found = verify_detached(sums, signature, keys.export([key]), {key}, datetime.now(UTC))
    assert found.primary == key and found.hash == "SHA512"
    world.store.attach_signature("v1", signature)
    world.store.publish("v1")
    assert world.store.artifacts()["v1"].state == "published"


def test_a_later_commit_that_names_the_same_inputs_is_fine(world: World, keys: Home, key: str) -> None:
    later = world.repo.commit("Beside", {"sites/SITE-1.yaml": document(
        "Site", "SITE-1", {"timezone": "Asia/Kathmandu", "devices": ["SITE-1-1"]})})  # fmt: skip
    assert signer(world, keys, key).sign_release("v1", later)


def refuse(world: World, keys: Home, key: str, said: str, *, commit: str = "", required: bool = False) -> None:
    with pytest.raises(TerminalError, match=said) as caught:
        signer(world, keys, key, required=required).sign_release("v1", commit or world.commit)
    assert caught.value.needed_for == "signing v1"


def test_another_recipe_in_git_is_refused(world: World, keys: Home, key: str) -> None:
    commit = world.repo.commit("Recipe", {"images/golden/setup.sh": SETUP + "# changed\n"})
    refuse(world, keys, key, "it was built from sha256:", commit=commit)


def test_a_withdrawn_or_unknown_release_is_refused(world: World, keys: Home, key: str) -> None:
    spec = {"recipe": "golden/", "withdrawn": "eats disks"}
    waves = {"waves": [{"name": "all", "sites": ["SITE-1"], "soak": "1h"}]}
    both = {"images/v1.yaml": document("Image", "v1", spec), "waves.yaml": document("Waves", "waves", waves)}
    refuse(world, keys, key, "withdrawn: eats disks", commit=world.repo.commit("Withdraw", both))
    refuse(world, keys, key, "names no image v1", commit=world.repo.commit("Drop", {"images/v1.yaml": None}))


def test_a_commit_off_the_branch_is_refused(world: World, keys: Home, key: str) -> None:
    world.repo.git("commit", "-q", "--amend", "-m", "Rewritten")
    refuse(world, keys, key, "is not on the branch")


def test_a_commit_that_does_not_load_is_refused(world: World, keys: Home, key: str) -> None:
    commit = world.repo.commit("Broken", {"fleet.yaml": "kind: [\n"})
    refuse(world, keys, key, "does not load: fleet.yaml", commit=commit)


def test_an_unsigned_commit_is_refused_where_required(world: World, keys: Home, key: str) -> None:
    refuse(world, keys, key, "signed by no allowed signer", required=True)


def test_other_bytes_in_the_store_are_refused(world: World, keys: Home, key: str) -> None:
    packed = next(path for path in world.folder.iterdir() if ".img" in path.name)
    packed.chmod(0o644)
    packed.write_bytes(packed.read_bytes()[:-1] + b"\0")
    with pytest.raises(TerminalError):
        signer(world, keys, key).sign_release("v1", world.commit)


def test_a_forged_manifest_is_refused(world: World, keys: Home, key: str) -> None:
    manifest = world.folder / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(world.commit.encode(), b"f" * 40))
    with pytest.raises(TerminalError):
        signer(world, keys, key).sign_release("v1", world.commit)


def forge(world: World, **changes: object) -> None:
    """Change the manifest, and SHA256SUMS with it, as a builder could that somebody else has taken over."""
    manifest = json.loads((world.folder / "manifest.json").read_bytes())
    for key, value in changes.items():
        manifest[key] = value
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    sums = parse_sums((world.folder / "SHA256SUMS").read_bytes())
    for name, content in (
        ("manifest.json", data),
        ("SHA256SUMS", format_sums({**sums, "manifest.json": hashlib.sha256(data).hexdigest()})),
    ):
        (world.folder / name).chmod(0o644)
        (world.folder / name).write_bytes(content)


CRITICAL_CHECK = {"name": "nvidia", "status": "critical", "message": "no driver"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"healthcheck": None}, "no healthcheck report"),
        ({"healthcheck": {"status": "ok"}}, "no healthcheck report"),
        ({"healthcheck": {"status": "critical", "checks": []}}, "its healthcheck is critical"),
        ({"healthcheck": {"status": "ok", "checks": [CRITICAL_CHECK]}}, "its healthcheck is ok: nvidia"),
        ({"release": "v2"}, "its manifest is of v2"),
        ({"digest": DIGEST}, "the unpacked image has digest sha256:"),
        ({"imageSize": 4096}, "unpacks to more 4096 bytes|unpacks to more"),
        ({"inputs": DIGEST}, "it was built from sha256:a"),
        ({"inputs": 7}, "it was built from unknown inputs"),
        ({"commit": "f" * 40}, "does not follow from"),
        ({"commit": None}, "does not follow from"),
        ({"builder": "0"}, "it was built by builder '0'"),
        ({"builderType": "distribution"}, "it was built by builderType 'distribution'"),
        (
            {"parts": {"size": 16 << 20, "sha256": ["0" * 64]}},
            "part 1 of 1 of .* another sha256 .* devices would refuse",
        ),
        ({"parts": {"size": 16 << 20, "sha256": []}}, "its list of parts is not one of all of"),
        ({"chunks": {"file": "x.chunks", "sha256": "0" * 64}}, "SHA256SUMS: it lists .*, not .*x.chunks"),
        ({"sha256": "0" * 64}, "manifest.json: its sha256 of .* is not the one in SHA256SUMS"),
    ],
)
def test_papers_that_do_not_bear_out_the_build_are_refused(
    world: World, keys: Home, key: str, changes: dict[str, object], said: str
) -> None:
    forge(world, **changes)
    refuse(world, keys, key, said)


def test_an_image_in_which_the_gate_finds_something_is_refused(world: World, keys: Home, key: str) -> None:
    """A builder that somebody has taken over: its papers agree with each other, and the image holds a private key."""
    planted = world.folder.parent.parent / "planted"
    (planted / "etc/edge").mkdir(parents=True)
    (planted / "etc/ssh").mkdir()
    (planted / "etc/edge-release").write_text("RELEASE=v1\n")
    (planted / "etc/ssh/ssh_host_ed25519_key").write_text(
        "-----BEGIN OPENSSH PRIVATE " + "KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE " + "KEY-----\n"
    )
    raw, packed = world.folder.parent.parent / "raw", next(p for p in world.folder.iterdir() if p.name.endswith(".zst"))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(planted), str(raw), "8M"], check=True, capture_output=True)
    packed.unlink()
    subprocess.run(["zstd", "-q", "-o", str(packed), str(raw)], check=True)
    size, digest = packed.stat().st_size, hashlib.sha256(packed.read_bytes()).hexdigest()
    sums = parse_sums((world.folder / "SHA256SUMS").read_bytes())
    (world.folder / "SHA256SUMS").chmod(0o644)
    (world.folder / "SHA256SUMS").write_bytes(format_sums({**sums, packed.name: digest}))
    raw_digest = "sha256:" + hashlib.sha256(raw.read_bytes()).hexdigest()
    forge(world, size=size, sha256=digest, digest=raw_digest, imageSize=raw.stat().st_size, parts=None)
    refuse(world, keys, key, r"the sysprep gate finds \d+ faults in the image: /etc/")


# ---------------------------------------------------------------- keys


def test_roots_are_signed_by_the_key_asked_for(keys: Home, key: str) -> None:
    other = keys.generate("Assignments <a@example.org>")
    made = RootSigner(Place(keys.path, other))
    for number in range(5):
        root = f"root {number}".encode()
        verified = verify_detached(root, made.sign_root(root), keys.export([key, other]), {other}, datetime.now(UTC))
        assert verified.primary == other


@pytest.mark.slow
def test_a_passphrase_comes_from_its_file(tmp_path: Path) -> None:
    with make_home() as home:
        home.run(
            "--passphrase", "hunter2", "--quick-generate-key", "--", "P <p@example.org>", "ed25519", "sign", "never"
        )
        (fingerprint,) = home.fingerprints()
        home.end_agent()  # which forgets the passphrase
        secret = tmp_path / "secret"
        secret.write_text("hunter2\n")
        secret.chmod(0o644)
        with pytest.raises(TerminalError, match="read by others"):
            RootSigner(Place(home.path, fingerprint, secret))
        secret.chmod(0o600)
        made = RootSigner(Place(home.path, fingerprint, secret)).sign_root(b"x")
        assert verify_detached(b"x", made, home.export([fingerprint]), {fingerprint}, datetime.now(UTC))
        home.end_agent()
        secret.write_text("wrong")
        with pytest.raises(TransientError, match="did not sign") as caught:
            RootSigner(Place(home.path, fingerprint, secret)).sign_root(b"x")
        assert "wrong" not in str(caught.value)


def test_homes_and_keys_that_cannot_sign_are_said_at_the_start(keys: Home, key: str, tmp_path: Path) -> None:
    for home, fingerprint, said in (
        (keys.path, "ABCD", "not a fingerprint"),
        (keys.path, "1" * 40, "no secret key"),
        (tmp_path / "none", key, "no GnuPG home"),
    ):
        with pytest.raises(TerminalError, match=said):
            GpgKey(home, fingerprint, needed_for="signing")
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with pytest.raises(TerminalError, match="too long"):
        GpgKey(long, key, needed_for="signing")


# ---------------------------------------------------------------- another process


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_signers_process_gets_the_request_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sentinel")
    code = "import os,sys; sys.stdout.write(sys.stdin.read() + ' '.join(sorted(os.environ)))"
    out = ProcessSigner(script(code)).sign_release("v1", "a" * 40).decode()
    request, _, environment = out.partition("\n")
    assert json.loads(request) == {"release": "v1", "commit": "a" * 40}
    assert set(environment.split()) <= {"PATH", "LANG", "LC_CTYPE"}


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("import sys; sys.exit('error: it is withdrawn')", TerminalError, "the signer refused: it is withdrawn"),
        ("import sys; print('no answer', file=sys.stderr); sys.exit(3)", TransientError, "failed with 3 .no answer"),
        ("pass", TransientError, "failed with 0"),
        ("import sys; sys.stdout.write('x' * 20000)", TransientError, "failed with 0"),
        ("import time; time.sleep(60)", TransientError, "did not end within"),
    ],
)
def test_the_signers_answers_are_told_apart(code: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ProcessSigner(script(code), timeout_s=0.5 if "sleep" in code else 60).sign_release("v1", "a" * 40)


def test_the_command_signs_with_a_settings_file_of_its_own(world: World, keys: Home, key: str, tmp_path: Path) -> None:
    place = {"home": str(keys.path), "fingerprint": key}
    (tmp_path / "ring.gpg").write_bytes(keys.export([key]))
    settings = {
        "state": str(tmp_path / "signer"),
        "git": {"url": str(world.repo.path)},
        "images": {"type": "directory", "path": str(world.store.root)},
        "registry": {"type": "layout", "path": str(tmp_path / "registry")},
        "secrets": {"type": "directory", "path": str(tmp_path / "secrets")},
        "keys": {
            "assignment": place,
            "releases": [key],
            "releaseKeyring": str(tmp_path / "ring.gpg"),
            "signer": {**place, "type": "key"},
        },
        "allowed": {"images": ["file:///"], "registries": ["registry.invalid"]},
        "builder": {"type": "files"},
    }
    (tmp_path / "signer.yaml").write_text(json.dumps(settings))
    command = [str(Path(sys.executable).parent / "reconciler"), "signer", "--config", str(tmp_path / "signer.yaml")]
    signature = ProcessSigner(command, timeout_s=250).sign_release("v1", world.commit)
    sums = (world.folder / "SHA256SUMS").read_bytes()
    assert verify_detached(sums, signature, keys.export([key]), {key}, datetime.now(UTC)).primary == key
    with pytest.raises(TerminalError, match=r"the signer refused: commit f{12} is not on the branch"):
        ProcessSigner(command, timeout_s=250).sign_release("v1", "f" * 40)
    for request in (
        b"",
        b"[]",
        b'{"release": "v1"}',
        b'{"release": "../x", "commit": "' + b"a" * 40 + b'"}',
        b"x" * 9000,
    ):
        done = subprocess.run(command, input=request, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (1, b"") and b"holds no request" in done.stderr


def test_a_command_that_is_not_there_is_terminal() -> None:
    with pytest.raises(TerminalError, match="cannot be run"):
        ProcessSigner(["/nonexistent"]).sign_release("v1", "a" * 40)
