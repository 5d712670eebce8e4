"""The container runtime of the image, by the command line that Docker and podman share: what is here, what runs, and pulling.

Python 3.10, standard library only: runs as root on a device. Translates what the runtime says into the agent's own errors.
What shall run, and under which name an image is kept, is decided in `containers`. Measured against docker 20.10 and podman
4.3, Debian 12's. Source: OCI distribution-spec (a digest names one manifest), docker and podman manual pages.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconciler.agent.child import Ended, play
from reconciler.agent.hardware import HardwareError
from reconciler.agent.transport import NotFound, TransportError, split
from reconciler.protocol import scratch
from reconciler.protocol.canonical import clip, is_digest
from reconciler.protocol.signature import Refused

LABEL = "edge.app"
"""`run-app` marks an app's container with it; its value is the app's name."""
REGISTRY_USER = "AWS"
"""Whose password a registry token is, where the token names no user: what Amazon ECR expects of every client."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_QUERY = re.compile(r"\?[^\s\"']+")
_MISSING = re.compile(r"no such image|no such object|image not known", re.IGNORECASE)
_AWAY = re.compile(r"docker daemon|unable to connect to podman|docker\.sock", re.IGNORECASE)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}

# What the two runtimes say, and what it means to the agent. The first that is found counts.
_REFUSALS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("no-room", re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)),
    (
        "app-platform",
        re.compile(r"no matching manifest for|no image found in (?:image index|manifest list)", re.IGNORECASE),
    ),
    (
        "app-digest",
        re.compile(
            r"manifest verification failed|does not match provided manifest digest|layer verification failed"
            r"|digest did not match|digest .* does not match expected",
            re.IGNORECASE,
        ),
    ),
    (
        "registry-denied",
        re.compile(
            r"unauthorized|authentication required|no basic auth|access .*denied|denied:|forbidden|token .*expired",
            re.IGNORECASE,
        ),
    ),
    (
        "app-malformed",
        re.compile(r"unsupported manifest|invalid manifest|unknown layer|invalid tar|invalid character", re.IGNORECASE),
    ),
)
_SENTENCES = {
    "no-room": "there is no room for it",
    "app-platform": "it has no part for this machine",
    "app-digest": "the registry sent something else",
    "registry-denied": "the registry does not give it to this device",
    "app-malformed": "it is no image that can be used",
}
_NOT_FOUND = re.compile(r"manifest unknown|name unknown|not found", re.IGNORECASE)
_FOREIGN_CA = re.compile(r"x509|certificate", re.IGNORECASE)


@dataclass(frozen=True)
class Image:
    """An image on the device: its id (64 hexadecimal digits), platform, and names by digest."""

    id: str
    platform: str
    names: tuple[str, ...]

    def by_digest(self, digest: str) -> str | None:
        """The name under which the registry gave it `digest`, or None."""
        found = [name for name in self.names if name.endswith(f"@{digest}")]
        # podman lists our own names beside the registry's.
        return next((name for name in found if not name.startswith("localhost/edge/")), found[0] if found else None)


@dataclass(frozen=True)
class Container:
    """An app's container that runs: its id, and the digest that it was started by (None: by a name without one)."""

    id: str
    digest: str | None


class Runtime:
    """One runtime. Questions and orders are jobs: generators of seconds to wait that return what was found.

    HardwareError: the runtime cannot be run, does not answer within `answer_s`, or is not there.
    """

    def __init__(self, command: Sequence[str], *, private: Path, own: Path, answer_s: float, pull_s: float) -> None:
        """`command` is the program, by name or path, with options of its own before every other. Tokens lie below `private`
        for as long as a pull lasts; `own` holds the device's own `config.json`, if it has access to the registry by itself."""
        self._command, self._private, self._own = tuple(command), private, own
        self._answer_s, self._pull_s = answer_s, pull_s
        self.name = os.path.basename(command[0])

    def containers(self) -> Generator[float, None, dict[str, Container]]:
        """App → its container, of those that run."""
        # The image is named as it was when the container was started, if that name still means the same image.
        words = "{{.Names}}\t{{.ID}}\t{{.Image}}"
        ended = yield from self._ask("ps", "--no-trunc", "--filter", f"label={LABEL}", "--format", words)
        self._expect(ended, "list containers")
        found = {}
        for line in ended.output.splitlines():
            name, _, rest = line.partition("\t")
            identity, _, image = rest.partition("\t")
            digest = image.rpartition("@")[2]
            found[name.strip()] = Container(identity, digest if "@" in image and is_digest(digest) else None)
        return found

    def images(self, *names: str) -> Generator[float, None, list[Image]]:
        """Those images that are here, of those named."""
        words = "{{.Id}} {{.Os}}/{{.Architecture}}{{range .RepoDigests}} {{.}}{{end}}"
        ended = yield from self._ask("image", "inspect", "--format", words, *names)
        if ended.status != 0 and not _MISSING.search(ended.errors):
            self._expect(ended, "list images")
        found = []
        for line in ended.output.splitlines():
            identity, *rest = line.split()[:1] or [""], *line.split()[1:]
            if rest:
                found.append(Image(identity[0].replace("sha256:", ""), rest[0], tuple(rest[1:])))
        return found

    def tag(self, image: str, name: str) -> Generator[float, None, None]:
        """Give an image one more name; it is moved where another image has it."""
        self._expect((yield from self._ask("tag", image, name)), f"name {image} {name}")

    def pull(self, base: str, repository: str, digest: str, token: str | None) -> Generator[float, None, str]:
        """Pull a release by digest from a registry's address (`https://host[:port]`, `http` on loopback), and return its name.

        Refused: not what was assigned, not for this machine, not given to us, or no room for it. TransportError: not now.
        """
        host, plain = _address(base)
        name = f"{host}/{repository}@{digest}"
        # Docker takes loopback for a place that may speak plain http; podman has to be told.
        told = ["--tls-verify=false"] if plain and self.name.startswith("podman") else []
        # A runtime that does not answer must not be waited for as for a long download.
        yield from self.containers()
        with self._credentials(host, token) as environment:
            ended = yield from play([*self._command, "pull", "--quiet", *told, name], self._pull_s, environment)
        if ended.status != 0:
            raise self._why_not(ended, f"{host}/{repository}", token)
        found = yield from self.images(name)
        if not found or found[0].by_digest(digest) is None:
            raise Refused("app-digest", f"{self.name} holds something else than {digest} after it was pulled")
        if found[0].platform != _here():
            yield from self._ask("rmi", name)
            raise Refused("app-platform", f"the release is for {found[0].platform}, this machine is {_here()}")
        return name

    # ------------------------------------------------------------

    def _ask(self, *words: str) -> Generator[float, None, Ended]:
        return (yield from play([*self._command, *words], self._answer_s))

    def _expect(self, ended: Ended, purpose: str) -> None:
        if ended.status != 0:
            raise HardwareError(f"{self.name} does not {purpose}: {clip(ended.last_words(), 300)}")

    @contextmanager
    def _credentials(self, host: str, token: str | None) -> Iterator[Mapping[str, str]]:
        """A folder that only we can read, with the token in the form that both runtimes read; gone with the pull.

        Never in an argument: those are everybody's to read, and are logged.
        """
        # Where the agent was killed in a pull. There is one agent, and it pulls one release at a time.
        for left in self._private.glob("auth-*"):
            scratch.remove(left)
        if token is None:
            yield _reading(self._own) if (self._own / "config.json").is_file() else {}
            return
        user, colon, password = token.partition(":")
        pair = token if colon and user and password else f"{REGISTRY_USER}:{token}"
        entry = {"auths": {host: {"auth": base64.b64encode(pair.encode()).decode("ascii")}}}
        try:
            self._private.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = Path(scratch.new_folder(self._private / "auth-"))
        except OSError as error:
            raise HardwareError(f"{self._private} cannot hold the registry's token: {error.strerror}") from None
        try:
            descriptor = os.open(folder / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(entry, file)
            yield _reading(folder)
        finally:
            scratch.remove(folder)

    def _why_not(self, ended: Ended, place: str, token: str | None) -> Exception:
        """What a failed pull means. Neither the token nor a presigned address gets into the sentence."""
        words = _QUERY.sub("?…", ended.last_words())
        for secret in (token, token.partition(":")[2] if token else None):
            words = words.replace(secret, "…") if secret else words
        if _AWAY.search(words):
            return HardwareError(f"{self.name} does not answer: {clip(words, 300)}")
        for code, pattern in _REFUSALS:
            if pattern.search(words):
                machine = f" ({_here()})" if code == "app-platform" else ""
                return Refused(code, f"{place}: {_SENTENCES[code]}{machine}: {clip(words, 300)}")
        reason = f"{place}: it cannot be pulled: {clip(words, 300)}"
        if _FOREIGN_CA.search(words):
            host = place.partition("/")[0]
            return TransportError(f"{reason}; an authority of one's own belongs into /etc/docker/certs.d/{host}/ca.crt")
        return NotFound(reason, status=404) if _NOT_FOUND.search(words) else TransportError(reason)


def _reading(folder: Path) -> Mapping[str, str]:
    """What makes Docker, and podman, read their access to registries from a folder."""
    return {"DOCKER_CONFIG": str(folder), "REGISTRY_AUTH_FILE": str(folder / "config.json")}


def _here() -> str:
    machine = os.uname().machine
    return f"linux/{_MACHINES.get(machine, machine)}"


def _address(base: str) -> tuple[str, bool]:
    """A registry's address as images are named by it, and whether it speaks plain http. TransportError: it cannot be used."""
    parts = split(base)
    host = parts.netloc
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or parts.path.strip("/"):
        raise TransportError(
            f"{clip(base, 200)} is no registry for a container runtime; it must be https://host or https://host:port"
        )
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise TransportError(f"{host} would be spoken to in clear text; a registry that is not on loopback needs https")
    return host, parts.scheme == "http"
