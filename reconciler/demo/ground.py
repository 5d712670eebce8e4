"""The ground that the demo stands on: one folder with a fleet repo, keys, stores, secrets and settings, all local.

Decides nothing about the rollout. Everything in the folder is made here, by the same programs that an operator would use (git,
gpg); secrets and tokens are random and stay in files of mode 0600. Called by `demo` alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from reconciler.adapters.registry_layout import LayoutRegistry
from reconciler.model.desired import Desired
from reconciler.model.scalars import format_instant
from reconciler.ports import TerminalError
from reconciler.repo.load import load_folder
from reconciler.repo.problem import InvalidInput
from reconciler.repo.render import secret_refs
from reconciler.server.tokens import hash_token, make_token
from reconciler.simulate.timings import BUILD_S, PUBLISH_S, SIGN_S, TICK_S

REPORT_EVERY, STALE_AFTER = "6h", "13h"
APP = "video-ingest"
_LONGEST_SOCKET = 90


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key of the demo in a home of its own."""

    home: Path
    fingerprint: str
    passphrase_file: Path
    public: bytes


class Ground:
    """The folder and what is in it. `start` is the instant at which virtual time begins."""

    def __init__(self, root: Path, fleet: Path, start: datetime, *, paced: bool = False, debug: bool = False) -> None:
        """`debug` lets the controller check its status after every tick. `paced`: ticks and long work as `timings` has them."""
        self.paced, self.debug = paced, debug
        self.root, self._source, self.start = root.absolute(), fleet, start
        self.remote, self.clone = self.root / "fleet.git", self.root / "fleet"
        self.devices, self.tokens = self.root / "devices", self.root / "tokens"
        self.bells, self.images = self.root / "bells", self.root / "images"
        self.secrets, self.state = self.root / "secrets", self.root / "state"
        self.config, self.log = self.root / "reconciler.yaml", self.root / "controller.log"
        self._short: Path | None = None
        self.port = 0
        self._written = False

    @property
    def socket(self) -> Path:
        """The director's socket."""
        return self._short_place() / "director.sock"

    # ------------------------------------------------ making it

    def make(self) -> Desired:
        """Make everything. TerminalError: the folder is not empty, or a program is missing. Returns the first desired state."""
        if self.root.exists() and any(self.root.iterdir()):
            raise TerminalError(
                f"{self.root} is not empty",
                needed_for="the demo",
                remedy="name another folder with --dir, or remove it",
            )
        for program in ("git", "gpg", "gpgv", "mke2fs", "zstd"):
            if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
                remedy = "apt-get install git gnupg gpgv e2fsprogs zstd"
                raise TerminalError(f"{program} is not installed", needed_for="the demo", remedy=remedy)
        for folder in (self.root, self.devices, self.bells, self.images):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.tokens, self.secrets, self.state):
            folder.mkdir(mode=0o700)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.assignment, self.release = self._key("assignment"), self._key("release")
        digests = self._registry()
        self._fleet(digests)
        loaded = load_folder(self.clone)
        if loaded.desired is None:
            raise InvalidInput(loaded.problems)
        self._secrets(loaded.desired)
        token = make_token()
        _private(self.tokens / "operator", token)
        (self.root / "operators.txt").write_text(f"{hash_token(token)}  # demo, tokens/operator\n")
        self._settings()
        return loaded.desired

    def _short_place(self) -> Path:
        """Where sockets and GnuPG homes lie: below the folder, unless its path is too long for a socket's name."""
        if self._short is None:
            inside = self.root / "keys"
            if len(str(inside / "assignment")) <= _LONGEST_SOCKET - 20:
                inside.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._short = inside
            else:
                self._short = Path(tempfile.mkdtemp(prefix="reconciler-demo-"))
        return self._short

    def _key(self, name: str) -> Key:
        home = self._short_place() / name
        home.mkdir(mode=0o700)
        # Signatures of the demo are dated at its beginning: a device refuses one from its future.
        (home / "gpg.conf").write_text(f"faked-system-time {self.start:%Y%m%dT%H%M%S}\n")
        # Stretching a random passphrase proves nothing, and would cost a third of a second at every signature.
        (home / "gpg-agent.conf").write_text("s2k-count 65536\n")
        passphrase = home / "passphrase"
        _private(passphrase, secrets.token_urlsafe(24))
        uid = f"{name} key of the demo"
        self._gpg(home, "--quick-generate-key", "--", uid, "ed25519", "cert,sign", "never", passphrase=passphrase)
        listed = self._gpg(home, "--with-colons", "--list-secret-keys").decode()
        fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
        public = self._gpg(home, "--export", fingerprint)
        (self.root / f"{name}.gpg").write_bytes(public)
        return Key(home, fingerprint, passphrase, public)

    def _gpg(self, home: Path, *arguments: str, passphrase: Path | None = None) -> bytes:
        options = ["--homedir", str(home), "--batch", "--no-tty", "--quiet", "--pinentry-mode", "loopback"]
        options += ["--passphrase-file", str(passphrase)] if passphrase is not None else []
        done = subprocess.run(["gpg", *options, *arguments], capture_output=True, check=False, timeout=60)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise TerminalError(f"gpg failed: {said[-1] if said else 'no reason given'}", needed_for="the demo's keys")
        return done.stdout

    def _registry(self) -> dict[str, str]:
        """The app's two releases in an OCI layout: a small layer and a configuration each, by their true digests."""
        registry, digests = LayoutRegistry(self.root / "registry"), {}
        for version in ("2.7.0", "2.8.0"):
            layer = f"{APP} {version}: stands for the app's layer\n".encode() * 64
            config = json.dumps(
                {"architecture": "amd64", "os": "linux", "config": {"Labels": {"version": version}}}
            ).encode()
            parts = [registry.put_blob(APP, data) for data in (config, layer)]
            manifest = {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": _descriptor("application/vnd.oci.image.config.v1+json", parts[0], config),
                "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", parts[1], layer)],
            }
            digests[version] = registry.put_manifest(APP, json.dumps(manifest).encode())
        return digests

    def _fleet(self, digests: Mapping[str, str]) -> None:
        """A copy of the example fleet as a repo: a bare remote, and the clone in which the demo's engineer works."""
        self._git(self.root, "init", "-q", "--bare", "-b", "main", str(self.remote))
        self._git(self.root, "clone", "-q", str(self.remote), str(self.clone))
        shutil.copytree(self._source, self.clone, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tests", ".git"))
        self._git(self.clone, "checkout", "-q", "-B", "main")
        fleet = (self.clone / "fleet.yaml").read_text()
        fleet = re.sub(r"(?m)^  images: .*$", f"  images: {self.images.as_uri()}/", fleet)
        fleet = re.sub(r"(?m)^  registry: .*$", "  registry: registry.demo", fleet)
        fleet = re.sub(r"(?m)^    - [0-9A-Fa-f]{40}$", f"    - {self.release.fingerprint}", fleet)
        # What has news is reported at once all the same: a month passes in a minute, and no report is missed.
        every, stale = ("24h", "49h") if self.paced else (REPORT_EVERY, STALE_AFTER)
        fleet = re.sub(r"(?m)^  reportEvery: .*$", f"  reportEvery: {every}", fleet)
        fleet = re.sub(r"(?m)^  staleAfter: .*$", f"  staleAfter: {stale}", fleet)
        fleet = re.sub(r"(?ms)^  # [^\n]*\n  freezes:\n.*\Z|^  freezes:\n.*\Z", "", fleet)
        (self.clone / "fleet.yaml").write_text(fleet)
        waves = (self.clone / "waves.yaml").read_text()
        # The app's soaks are hours here: what it shows is the same, and the demo stays short.
        waves = re.sub(r"(?m)^(      soak: (?:1h|48h|24h).*)$", r"\1\n      appSoak: 2h", waves)
        (self.clone / "waves.yaml").write_text(waves)
        app = (self.clone / "apps" / f"{APP}.yaml").read_text()
        for version, digest in digests.items():
            app = re.sub(rf"(?m)^    {re.escape(version)}: .*$", f"    {version}: {digest}", app)
        (self.clone / "apps" / f"{APP}.yaml").write_text(app)
        keys = self.clone / "images" / "edge-golden" / "rootfs" / "etc" / "edge" / "keys"
        keys.mkdir(parents=True)
        for name, key in (("assignment", self.assignment), ("release", self.release)):
            (keys / f"{name}.gpg").write_bytes(key.public)
            (keys / f"{name}.fpr").write_text(f"{key.fingerprint}\n")
        self.commit("The fleet as it is", self.start)
        self.push()

    def _secrets(self, desired: Desired) -> None:
        for reference in secret_refs(desired.sites.values()):
            path = self.secrets / reference
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = secrets.token_urlsafe(32)
            _private(
                path, f"[Interface]\nPrivateKey = {key}\nAddress = 10.0.0.2/32\n[Peer]\nEndpoint = hub.demo:51820\n"
            )

    def _settings(self) -> None:
        text = f"""\
# Settings of the demo's controller; see docs/reference/settings.md.
state: state
git:
  url: {self.remote}
  poll: 6h                  # a merge rings the watcher; the poll covers the rest
images: {{type: directory, path: images}}
registry: {{type: layout, path: registry}}
secrets: {{type: directory, path: secrets}}
doorbell: {{type: directory, path: bells}}
keys:
  assignment:
    home: {self.assignment.home}
    fingerprint: {self.assignment.fingerprint}
    passphraseFile: {self.assignment.passphrase_file}
  releases: [{self.release.fingerprint}]
  releaseKeyring: release.gpg
  signer:
    type: key
    home: {self.release.home}
    fingerprint: {self.release.fingerprint}
    passphraseFile: {self.release.passphrase_file}
allowed:
  images: ["{self.images.as_uri()}/"]
  registries: [registry.demo]
server: {{bind: "127.0.0.1:{self.port}", operators: operators.txt}}
builder: {{type: files}}    # an image that holds what the recipe adds, on no distribution: made in a second
# Time is stepped: a gap of minutes gathers the reports of a night's wave into ticks, as a second does in real time.
loop: {{interval: 12h, storesPoll: 12h, gap: {f"{TICK_S}s" if self.paced else "5m"}}}
clock: {{type: stepped, socket: {self.socket}{self._pace()}}}
debug: {"true" if self.debug else "false"}
"""
        self.config.write_text(text)
        self._written = True

    def _pace(self) -> str:
        if not self.paced:
            return ""
        return f", every: {TICK_S}s, work: {{build: {BUILD_S}s, sign: {SIGN_S}s, publish: {PUBLISH_S}s}}"

    def on_system_clock(self) -> None:
        """Rewrite the settings for a controller that goes on in real time."""
        # Only what was written here: a folder that was refused may hold settings of somebody else.
        if not self._written:
            return
        text = self.config.read_text()
        text = re.sub(r"(?m)^clock: .*$", "clock: {type: system}", text)
        text = re.sub(r"(?m)^loop: .*$", "loop: {}", text)
        text = re.sub(r"(?m)^  poll: .*$", "  poll: 60s", text)
        self.config.write_text(text)

    def close(self) -> None:
        """End the keys' agents. The folder stays."""
        for name in ("assignment", "release"):
            home = None if self._short is None else self._short / name
            if home is not None and home.is_dir():
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    subprocess.run(
                        ["gpgconf", "--homedir", str(home), "--kill", "all"],
                        capture_output=True,
                        check=False,
                        timeout=10,
                    )

    # ------------------------------------------------ the engineer's git

    def branch(self, name: str) -> None:
        """Start a branch at the remote's main."""
        self._git(self.clone, "fetch", "-q", "origin")
        self._git(self.clone, "checkout", "-q", "-B", name, "origin/main")

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text in a file of the clone, everywhere."""
        text = (self.clone / path).read_text()
        if old not in text:
            raise TerminalError(
                f"{path} has no {old!r}", needed_for="the demo", remedy="start it from the example fleet"
            )
        (self.clone / path).write_text(text.replace(old, new))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the clone."""
        place = self.clone / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def commit(self, message: str, at: datetime) -> None:
        """Commit everything at a virtual instant."""
        self._git(self.clone, "add", "-A")
        self._git(self.clone, "commit", "-q", "-m", message, at=at)

    def merge(self, branch: str, message: str, at: datetime) -> str:
        """Merge a branch into main and push it, as the merge button does. Returns the merge commit."""
        self._git(self.clone, "fetch", "-q", "origin")
        self._git(self.clone, "checkout", "-q", "-B", "main", "origin/main")
        self._git(self.clone, "merge", "-q", "--no-ff", "-m", message, branch, at=at)
        self.push()
        return self._git(self.clone, "rev-parse", "HEAD").strip()

    def push(self) -> None:
        """Push main."""
        self._git(self.clone, "push", "-q", "origin", "main")

    def head(self) -> str:
        """The commit of the remote's main."""
        return self._git(self.remote, "rev-parse", "refs/heads/main").strip()

    def fetch(self, sha: str) -> None:
        """Have a commit of the remote in the clone's work tree."""
        self._git(self.clone, "fetch", "-q", "origin")
        self._git(self.clone, "checkout", "-q", "--detach", sha)

    def subject(self, sha: str) -> str:
        """The first line of a commit's message."""
        return self._git(self.remote, "log", "-1", "--format=%s", sha).strip()

    def branches(self, pattern: str) -> list[str]:
        """Names of the remote's branches that match."""
        listed = self._git(self.remote, "for-each-ref", "--format=%(refname:short)", f"refs/heads/{pattern}")
        return listed.split()

    def _git(self, folder: Path, *arguments: str, at: datetime | None = None) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        for who in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{who}_NAME": "Demo Engineer", f"GIT_{who}_EMAIL": "engineer@demo.example"}
            if at is not None:
                env[f"GIT_{who}_DATE"] = format_instant(at.replace(microsecond=0))
        done = subprocess.run(["git", *arguments], cwd=folder, env=env, capture_output=True, check=False, timeout=120)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise TerminalError(
                f"git {arguments[0]} failed: {said[-1] if said else ''}", needed_for="the demo's fleet repo"
            )
        return done.stdout.decode()


def _descriptor(kind: str, digest: str, data: bytes) -> dict[str, object]:
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def _private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
