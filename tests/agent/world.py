"""A small world for agents: real keys, real ext4 images, real artifacts, a real HTTP server. Only the controller is
played.

`Office` stands for the controller: it issues assignments with rising serials, signs them, and keeps the reports.
`Site` makes a device below a folder, with release v1 installed, that talks to the office's server. Time is a value
that tests move.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from reconciler.agent.agent import Identity
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.disk import Disk
from reconciler.agent.factory import install
from reconciler.agent.hardware import ImageVersion
from reconciler.agent.timing import Timing
from reconciler.agent.transport import HttpTransport, Server
from reconciler.protocol.assignment import AppTarget, Assignment, ImageTarget
from reconciler.protocol.bundle import Bundle, seal
from reconciler.protocol.exchange import Answer, SiteConfig
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.report import Report
from reconciler.protocol.signature import Verifier
from reconciler.protocol.sums import format_sums
from tests.agent.bench import BenchHardware
from tests.support.gpg import Home
from tests.support.system import need

DEVICE, SITE, TOKEN = "SITE-2847-1", "SITE-2847", "token-0123456789"
START = datetime(2030, 1, 15, 1, 0, tzinfo=UTC)
SIGNED = START - timedelta(days=1)
QUICK = Timing(settle_s=20, recheck_s=10, spread_s=0, least_window_s=0, slice_s=60, report_jitter=0)
GOOD = {"checks": [{"name": "disk", "status": "ok", "message": ""}], "status": "ok"}
BAD = {"checks": [{"name": "disk", "status": "critical", "message": "full"}], "status": "critical"}
_SCRIPT = '#!/bin/sh\ncat "$ROOT/etc/health.json"\ncase $(cat "$ROOT/etc/health.json") in *critical*) exit 2;; esac\n'


@dataclass(frozen=True)
class Keys:
    """Two keys of one home: assignments and releases."""

    home: Home
    assignment: str
    release: str
    foreign: str
    verifier: Verifier = field(default_factory=Verifier)

    def ring(self, *fingerprints: str) -> bytes:
        return self.home.export(fingerprints)


def make_keys(home: Home) -> Keys:
    # Older than the system's clock too: gpgv knows no other, and takes no key that was made after it.
    at = datetime(2020, 1, 1, tzinfo=UTC)
    return Keys(home, *(home.generate(f"{name} <{name}@example>", at=at) for name in ("assign", "release", "foreign")))


@dataclass
class Artifact:
    """One image release as files in a folder of the server."""

    release: str
    folder: Path
    digest: str
    image: bytes

    @property
    def target(self) -> ImageTarget:
        return ImageTarget(self.release, self.digest, self.folder.name)


def build_image(
    at: Path,
    release: str,
    health: Mapping[str, Any] | None = None,
    keys: Keys | None = None,
    *,
    payload: bytes = b"",
    size: str = "256k",
) -> bytes:
    """A tiny ext4 image with a healthcheck of its own; `health` None leaves the script out. `payload` is one more file."""
    mke2fs = need("mke2fs", "e2fsprogs")
    tree, image = at / f"tree-{release}", at / f"{release}.img"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "etc" / "edge" / "keys").mkdir(parents=True)
    (tree / "etc" / "edge-release").write_text(f"RELEASE={release}\n")
    (tree / "etc" / "health.json").write_text(json.dumps(health))
    if health is not None:
        (tree / "usr" / "local" / "bin").mkdir(parents=True)
        (tree / "usr" / "local" / "bin" / "healthcheck.sh").write_text(_SCRIPT)
        (tree / "usr" / "local" / "bin" / "healthcheck.sh").chmod(0o755)
    if keys is not None:
        for kind, fingerprint in (("assignment", keys.assignment), ("release", keys.release)):
            (tree / "etc" / "edge" / "keys" / f"{kind}.gpg").write_bytes(keys.ring(fingerprint))
            (tree / "etc" / "edge" / "keys" / f"{kind}.fpr").write_text(fingerprint + "\n")
    if payload:
        (tree / "payload").write_bytes(payload)
    command = [mke2fs, "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(image), size]
    subprocess.run(command, check=True, capture_output=True)
    return image.read_bytes()


def pack(
    image: bytes, folder: Path, release: str, keys: Keys, *, zstd: bool = True, key: str | None = None
) -> Artifact:
    """An artifact's folder: image, manifest.json, SHA256SUMS, SHA256SUMS.gpg."""
    folder.mkdir(parents=True)
    digest = "sha256:" + hashlib.sha256(image).hexdigest()
    name = f"{folder.name}.img" + (".zst" if zstd else "")
    packed = image
    if zstd:
        packed = subprocess.run([need("zstd"), "-q", "-c"], input=image, capture_output=True, check=True).stdout
    (folder / name).write_bytes(packed)
    manifest = Manifest(release, name, len(packed), "zstd" if zstd else "none", len(image), digest)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    seal_folder(folder, keys, key=key)
    return Artifact(release, folder, digest, image)


def seal_folder(folder: Path, keys: Keys, *, key: str | None = None) -> None:
    """Write SHA256SUMS and its signature over whatever the folder holds."""
    names = [path for path in folder.iterdir() if not path.name.startswith("SHA256SUMS")]
    sums = format_sums({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names})
    (folder / "SHA256SUMS").write_bytes(sums)
    (folder / "SHA256SUMS.gpg").write_bytes(keys.home.sign_detached(sums, key or keys.release, at=SIGNED))


class Office:
    """The controller's part, with its HTTP server."""

    def __init__(self, root: Path, keys: Keys) -> None:
        self.root, self.keys, self.epoch, self.n = root, keys, 1, 0
        self.reports: list[Report] = []
        self.bundle: Bundle | None = None
        self.config: SiteConfig | None = None
        self.now = START
        self.report_every_s = 60
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self.before: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False
        """Called before every answer; True means that it answered itself."""
        self.sources_of_image: list[str] | None = None
        self.registry: str | None = None
        office = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # headers and body in one packet, or each request waits 40 ms for an acknowledgement

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                office._get(self)

            def do_POST(self) -> None:
                office._post(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # Connections that a test breaks on purpose are nothing to print.
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    # ------------------------------------------------------------ assignments

    def assign(self, image: Artifact | ImageTarget | None = None, **fields: Any) -> Assignment:
        """Issue the next assignment; open window and a day's validity unless said."""
        self.n += 1
        values: dict[str, Any] = {
            "device": DEVICE,
            "serial": (self.epoch, self.n),
            "issued_at": self.now,
            "expires_at": self.now + timedelta(days=1),
            "window": ((self.now, self.now + timedelta(hours=2)),),
        }
        target = image.target if isinstance(image, Artifact) else image
        assignment = Assignment(**{**values, "image": target, **fields})
        self.bundle = self.sealed(assignment.to_bytes())
        return assignment

    def sealed(self, document: bytes, *, epoch: int | None = None, key: str | None = None) -> Bundle:
        """A bundle over a document, among others."""
        others = [f"other {number}".encode() for number in range(3)]
        return seal(
            [*others, document, b"last"],
            self.epoch if epoch is None else epoch,
            self.now,
            lambda data: self.keys.home.sign_detached(data, key or self.keys.assignment, at=SIGNED),
        )[3]

    def last(self) -> Report:
        return self.reports[-1]

    # ------------------------------------------------------------ HTTP

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.requests.append(("POST", request.path, dict(request.headers)))
        if self.before(request):
            return
        if request.headers.get("Authorization") != f"Bearer {TOKEN}" or request.path != "/v1/exchange":
            send(request, 401, b"")
            return
        self.reports.append(Report.from_bytes(body))
        image = self.sources_of_image
        if image is None:
            image = [f"{self.url}/v1/artifacts/{path.name}/" for path in sorted((self.root / "artifacts").glob("*"))]
            if self.bundle is not None:
                target = Assignment.from_bytes(self.bundle.document).image if self._parses() else None
                image = [url for url in image if target is None or url.endswith(f"/{target.folder}/")]
        sources = {"image": tuple(image), "registry": (self.registry or f"{self.url}/registry",)}
        answer = Answer(self.bundle, sources, self.report_every_s, self.now, "registry-token")
        send(request, 200, answer.to_bytes())

    def _parses(self) -> bool:
        try:
            Assignment.from_bytes(self.bundle.document if self.bundle else b"")
        except Exception:
            return False
        return True

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(("GET", request.path, dict(request.headers)))
        if self.before(request):
            return
        if request.path == "/v1/config" and self.config is not None:
            send(request, 200, self.config.to_bytes())
            return
        path = request.path.replace("/v1/artifacts/", "artifacts/").replace("/registry/v2/", "registry/").lstrip("/")
        file = self.root / path.split("?")[0].replace("sha256:", "")
        if not file.is_file():
            send(request, 404, b"")
            return
        data, asked = file.read_bytes(), request.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            send(request, 206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        else:
            send(request, 200, data)

    # ------------------------------------------------------------ apps

    def push_app(self, content: bytes, repository: str = "video-ingest", version: str = "2.8.0") -> AppTarget:
        """An image of one config and one layer in the registry."""
        folder = self.root / "registry" / repository
        for kind in ("manifests", "blobs"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        entries = []
        for data in (b"{}", content):
            (folder / "blobs" / hashlib.sha256(data).hexdigest()).write_bytes(data)
            entries.append({"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)})
        manifest = json.dumps({"schemaVersion": 2, "config": entries[0], "layers": entries[1:]}).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        (folder / "manifests" / digest).write_bytes(manifest)
        return AppTarget(repository, "canary", f"sha256:{digest}", version)


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """An answer with a length."""
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


class Site:
    """A device below a folder, with `factory` installed as v1 in slot b: `kind` is `directory`, or `partitions`, which are
    files, with a firmware that is played (`bench`)."""

    hardware: DirectoryHardware | BenchHardware

    def __init__(
        self, root: Path, office: Office, factory: Artifact | None, cache: Path, kind: str = "directory"
    ) -> None:
        self.root, self.office, self.disk = root, office, Disk()
        root.mkdir(parents=True, exist_ok=True)
        (root / "keys").mkdir(exist_ok=True)
        keys = office.keys
        for purpose, fingerprint in (("assignment", keys.assignment), ("release", keys.release)):
            (root / "keys" / f"{purpose}.gpg").write_bytes(keys.ring(fingerprint))
            (root / "keys" / f"{purpose}.fpr").write_text(fingerprint + "\n")
        if kind == "partitions":
            assert factory is not None, "a device with partitions boots from an image"
            self.hardware = _partitions(root, factory, cache, self.disk)
        else:
            self.hardware = _directory(root, factory, cache, self.disk)
        self.transport = HttpTransport(Server(office.url, TOKEN, timeout_s=60))
        self.device = self.new_device()

    def new_device(self, timing: Timing = QUICK) -> Device:
        verifier = self.office.keys.verifier
        # The bench has what a Device needs beside the port: a disk, and a boot that is played.
        hardware = cast("DirectoryHardware", self.hardware)
        return Device(Identity(DEVICE, SITE), hardware, self.transport, timing=timing, verify=verifier)

    @property
    def now(self) -> datetime:
        return self.office.now

    def step(self) -> datetime:
        return self.device.step(self.now)

    def settle(self, until: datetime | None = None, limit: int = 3000) -> None:
        """Step while something is due now, or, with `until`, move the clock from due to due up to that instant."""
        for _ in range(limit):
            due = self.step()
            if until is None and due > self.now:
                return
            if until is not None and due > until:
                self.office.now = until
                return
            self.office.now = max(self.office.now, due)
        raise AssertionError(f"still busy after {limit} steps: {self.device.agent.work.state}")

    def tree(self) -> dict[str, str]:
        """Every file and link below the root and its content's hash."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            elif path.is_file():
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[name] = "folder"
        return found

    def slot_digest(self, slot: str, size: int) -> str:
        """The digest of what really lies in a slot."""
        data = (self.root / f"slot-{slot}.img").read_bytes()[:size]
        return "sha256:" + hashlib.sha256(data).hexdigest()


def _directory(root: Path, factory: Artifact | None, cache: Path, disk: Disk) -> DirectoryHardware:
    made = DirectoryHardware(root, site=SITE, slot_bytes=1024 * 1024, cache=cache, healthcheck_always=False, disk=disk)
    if factory is not None:
        (root / "factory.img").write_bytes(factory.image)
        install(made, root / "factory.img", factory.release)
        (root / "factory.img").unlink()
    return made


def _partitions(root: Path, factory: Artifact, cache: Path, disk: Disk) -> BenchHardware:
    made = BenchHardware(root, default="b", image=factory.image, cache=cache, disk=disk)
    # In its first life it finds out what it runs; these tests are about the lives after it.
    list(made.recognise() or ())
    made.set_version(ImageVersion(factory.release))
    return made


@contextmanager
def office_at(root: Path, keys: Keys) -> Iterator[Office]:
    office = Office(root, keys)
    try:
        yield office
    finally:
        office.close()
