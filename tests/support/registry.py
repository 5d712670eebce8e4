"""A real container registry: Debian's `docker-registry` as a process on a free port of loopback, with small images pushed to it."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.system import need

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

_CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}"""


def digest_of(data: bytes) -> str:
    """`sha256:…` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class SmallImage:
    """A one-layer OCI image in memory. `manifest` are its exact bytes, `digest` their hash."""

    manifest: bytes
    config: bytes
    layer: bytes

    @property
    def digest(self) -> str:
        """The image's identity."""
        return digest_of(self.manifest)


def small_image(content: str, architecture: str = "amd64") -> SmallImage:
    """An image whose digest follows from `content`."""
    layer = f"layer of {content}".encode()
    config = json.dumps(
        {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }
    # Odd spacing on purpose: whoever parses a manifest and prints it again changes its digest.
    return SmallImage(json.dumps(manifest, indent=3).encode() + b"\n", config, layer)


def index_of(*images: SmallImage) -> bytes:
    """The bytes of a multi-platform index over images."""
    rows = [
        _descriptor(OCI_MANIFEST, image.manifest)
        | {"platform": {"os": "linux", "architecture": json.loads(image.config)["architecture"]}}
        for image in images
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows}, indent=1).encode()


def _descriptor(media: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media, "digest": digest_of(data), "size": len(data)}


@dataclass(frozen=True)
class RunningRegistry:
    """A registry that answers at `url`."""

    url: str
    auth: tuple[str, str] | None = None

    def push(self, repository: str, content: str, tag: str | None = None) -> str:
        """Push a small image; returns its digest."""
        image = small_image(content)
        self.push_image(repository, image, tag)
        return image.digest

    def push_image(self, repository: str, image: SmallImage, tag: str | None = None) -> None:
        """Push an image's blobs and manifest, by tag, or by digest alone."""
        with httpx.Client(auth=self.auth, trust_env=False, timeout=60) as client:
            for blob in (image.config, image.layer):
                place = client.post(f"{self.url}/v2/{repository}/blobs/uploads/").headers["Location"]
                client.put(f"{place}&digest={digest_of(blob)}", content=blob).raise_for_status()
        self.push_manifest(repository, image.manifest, tag)

    def push_manifest(self, repository: str, manifest: bytes, tag: str | None = None) -> str:
        """Put a manifest or index whose parts are there; returns its digest."""
        reference = tag or digest_of(manifest)
        headers = {"Content-Type": json.loads(manifest)["mediaType"]}
        with httpx.Client(auth=self.auth, trust_env=False, timeout=60) as client:
            url = f"{self.url}/v2/{repository}/manifests/{reference}"
            client.put(url, content=manifest, headers=headers).raise_for_status()
        return digest_of(manifest)


@contextmanager
def running_registry(folder: Path, *, htpasswd: tuple[str, str, str] | None = None) -> Iterator[RunningRegistry]:
    """Start a registry that keeps its data below `folder`; skips the test where `docker-registry` is missing.

    `htpasswd`: user, password, and the bcrypt line's hash of it, for HTTP Basic.
    """
    program = need("docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    auth = ""
    if htpasswd:
        (folder / "htpasswd").write_text(f"{htpasswd[0]}:{htpasswd[2]}\n")
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    config, process = folder / "config.yml", None
    try:
        # It cannot be told to choose its port, and somebody else may take the one that was free a moment ago.
        for _ in range(5):
            port = _free_port()
            config.write_text(_CONFIG.format(root=folder / "data", port=port, auth=auth))
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log, cwd=folder)
            registry = RunningRegistry(f"http://127.0.0.1:{port}", htpasswd[:2] if htpasswd else None)
            if _answers(registry, process, folder / "log"):
                break
        else:
            raise RuntimeError("docker-registry finds no port")
        yield registry
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(registry: RunningRegistry, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until it does; False: somebody else has its port."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            if "address already in use" in log.read_text():
                return False
            raise RuntimeError(f"docker-registry ended: {log.read_text()[-2000:]}")
        try:
            with httpx.Client(auth=registry.auth, trust_env=False) as client:
                if client.get(f"{registry.url}/v2/").status_code == 200:
                    return True
        except httpx.TransportError:
            time.sleep(0.03)
    raise RuntimeError("docker-registry does not answer")
