"""The apps of a device as containers: which release is deployed, which one runs, and how it changes.

Python 3.10, standard library only: runs as root on a device. What an app runs with is its unit's (`NAME.service`, with
`pull-app` and `run-app` of the image); here is which release. Two records, each durable: the file `NAME.env`, which says
what the unit shall run, and the runtime's own images, named `edge/NAME:current`, `previous` (what ran before), and `next`
(pulled, not yet started). What runs is asked of the runtime and never remembered. Called by `supply` and by the hardware.
Source: design, sections 4.8 and 5.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reconciler.agent.child import at_once, play
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.agent.runtime import Container, Image, Runtime
from reconciler.agent.transport import NotFound, TransportError
from reconciler.protocol.assignment import AppTarget
from reconciler.protocol.canonical import is_digest, is_name

RECIPE = Path("/usr/lib/edge/recipe.env")
PRIVATE = Path("/run/edge-agent")
MAX_FILE = 4096
_HEAD = "# What this app shall run. Written by the agent from its assignment; changes here are lost.\n"


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds."""

    answer_s: float = 10
    """A question to the runtime or to systemd."""
    pull_s: float = 4 * 3600
    """A pull: 9 GB at 5 Mbit/s."""
    restart_s: float = 120
    """Stopping the app, which has 20 s to end, and starting it. Nothing is pulled in it."""
    come_up_s: float = 60
    """How long a started app may take until it runs steadily."""
    steady_s: float = 10
    """The same container has to run for so long: one that ends at once is started again by systemd every 5 s."""
    fresh_s: float = 5
    """For how long the answer to what runs is good for another reader."""


def runtime_of(recipe: Path = RECIPE) -> str:
    """The runtime's command, as the image's recipe names it: `CONTAINER_RUNTIME`, else `docker`."""
    return _values(recipe).get("CONTAINER_RUNTIME") or "docker"


class Containers:
    """Apps below `folder` (`/var/lib/edge-agent/apps`), run by one runtime under systemd."""

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        *,
        runtime: Sequence[str] = ("docker",),
        systemctl: Sequence[str] = ("systemctl",),
        private: Path = PRIVATE,
        limits: Limits | None = None,
    ) -> None:
        """`runtime` and `systemctl` are commands; `private` holds a registry token while a pull lasts, and should be memory."""
        self._folder, self._disk, self._systemctl = folder, disk, tuple(systemctl)
        self._limits = limits or Limits()
        answer_s, pull_s = self._limits.answer_s, self._limits.pull_s
        self._runtime = Runtime(
            runtime, private=private, own=folder.parent / "docker", answer_s=answer_s, pull_s=pull_s
        )
        self._seen: tuple[float, Mapping[str, Container]] | None = None
        # Tags are for people: the assignment's, where it was heard of in this life.
        self._targets: dict[tuple[str, str], AppTarget] = {}

    # ------------------------------------------------------------ what is here

    def running(self) -> Mapping[str, str]:
        """App → digest that its container was started by. An app that does not run, or runs something that no registry has
        given a digest, is not in it; nor is any where the runtime does not answer: nobody knows then."""
        if self._seen is None or time.monotonic() - self._seen[0] > self._limits.fresh_s:
            try:
                found: Mapping[str, Container] = at_once(self._runtime.containers())
            except HardwareError:
                found = {}
            self._seen = (time.monotonic(), found)
        return {name: held.digest for name, held in sorted(self._seen[1].items()) if held.digest and is_name(name)}

    def folder(self, app: str) -> Path:
        """Where what belongs to an app would be kept; its images are the runtime's, and nothing else is kept here."""
        return self._file(app, "")

    def deployed(self, app: str) -> str | None:
        """The digest that the app's unit is told to run; None: it follows its own default."""
        digest = _values(self._file(app)).get("DIGEST")
        return digest if is_digest(digest) else None

    def has(self, app: str, target: AppTarget) -> bool:
        """Whether a release is on the device and can be started without a registry. HardwareError: the runtime cannot say."""
        self._targets[(app, target.digest)] = target
        return at_once(self._find(app, target.digest)) is not None

    # ------------------------------------------------------------ how it changes

    def pull(self, app: str, target: AppTarget, sources: Sequence[str], token: str | None) -> Iterator[float]:
        """Pull a release by digest and keep it as `edge/APP:next`. Refused, TransportError, HardwareError as `Runtime.pull`."""
        self._file(app)
        self._targets[(app, target.digest)] = target
        if not sources:
            raise NotFound("no registry's address was given", status=404)
        for base in sources:
            try:
                name = yield from self._runtime.pull(base, target.repository, target.digest, token)
            except TransportError:
                if base == sources[-1]:
                    raise
                continue
            yield from self._runtime.tag(name, f"edge/{app}:next")
            return

    def start(self, app: str, digest: str) -> Iterator[float]:
        """Deploy a release that is here, and restart the app. It has run steadily when the job ends.

        HardwareError: it does not, or is not here. Where the release is deployed already the unit is not restarted, only
        seen to: after a boot it may be just coming up.
        """
        try:
            yield from self._start(app, digest)
        except OSError as error:
            raise HardwareError(f"{app} cannot be deployed: {error.strerror}") from None

    def _start(self, app: str, digest: str) -> Iterator[float]:
        before, proven = self._file(app, ".before"), self._file(app, ".was")
        self._disk.remove(proven)
        runs = (yield from self._runtime.containers()).get(app)
        verb = "start"
        if self.deployed(app) != digest or (runs is not None and runs.digest != digest):
            self._deploy(app, digest, (yield from self._find(app, digest)), before)
            verb = "restart"
        self._seen = None
        ended = yield from play([*self._systemctl, verb, f"{app}.service"], self._limits.restart_s)
        if ended.status != 0:
            raise HardwareError(f"{app}.service does not {verb}: {ended.last_words()}{(yield from self._state(app))}")
        yield from self._await(app, digest)
        if before.exists():
            self._disk.rename(before, proven)

    def _await(self, app: str, digest: str) -> Iterator[float]:
        """Until one and the same container has run the release for long enough."""
        ends, since, before = time.monotonic() + self._limits.come_up_s, 0.0, None
        while True:
            found = (yield from self._runtime.containers()).get(app)
            self._seen, now = None, time.monotonic()
            if found is not None and found.digest == digest:
                if before is None or found.id != before.id:
                    since = now
                elif now - since >= self._limits.steady_s:
                    return
                before = found
            if now >= ends:
                what = "nothing runs" if found is None else "it does not keep running"
                if found is not None and found.digest != digest:
                    what = f"{found.digest or 'an image without a digest'} runs instead"
                raise HardwareError(
                    f"{app} was started, and {what} after {self._limits.come_up_s:g} s{(yield from self._state(app))}"
                )
            yield min(1.0, self._limits.steady_s)

    def run(self, app: str, digest: str | None) -> None:
        """Deploy a release that is here, and have the app restarted; does not wait for it. None: what was deployed before the
        last start is deployed again, and where nothing was, the app is stopped. HardwareError: it cannot be."""
        try:
            if digest is None:
                verb = self._take_back(app)
            else:
                if self.deployed(app) != digest:
                    self._deploy(app, digest, at_once(self._find(app, digest)))
                self._forget_before(app)
                self._seen = None
                verb = None if self.running().get(app) == digest else "restart"
        except OSError as error:
            raise HardwareError(f"{app} cannot be switched: {error.strerror}") from None
        self._seen = None
        if verb is not None:
            ended = at_once(play([*self._systemctl, verb, "--no-block", f"{app}.service"], self._limits.answer_s))
            if ended.status != 0:
                raise HardwareError(f"{app}.service does not {verb}: {ended.last_words()}")

    # ------------------------------------------------------------

    def _file(self, app: str, ending: str = ".env") -> Path:
        if not is_name(app):
            raise HardwareError(f"{app!r} is not an app's name")
        return self._folder / f"{app}{ending}"

    def _find(self, app: str, digest: str) -> Generator[float, None, Image | None]:
        names = (f"edge/{app}:{tag}" for tag in ("current", "previous", "next"))
        images = yield from self._runtime.images(*names)
        return next((image for image in images if image.by_digest(digest)), None)

    def _deploy(self, app: str, digest: str, image: Image | None, before: Path | None = None) -> None:
        """Write down what the unit shall run; what was written there is kept as `before`.

        One that is kept already stands: it was deployed before a start that never came to its end, and it is what ran.
        """
        name = image.by_digest(digest) if image is not None else None
        if name is None:
            raise HardwareError(f"release {digest} of {app} is not on the device")
        file, target = self._file(app), self._targets.get((app, digest))
        self._disk.folder(self._folder)
        if before is not None and not before.exists():
            self._disk.replace(before, file.read_bytes() if file.exists() else b"")
        repository = target.repository if target else name.rpartition("@")[0].partition("/")[2]
        text = f"{_HEAD}REPOSITORY={repository}\n" + (f"TAG={target.tag}\n" if target else "") + f"DIGEST={digest}\n"
        self._disk.replace(file, text.encode("ascii"))

    def _take_back(self, app: str) -> str | None:
        """Deploy again what was deployed before the last start; what systemd is to be asked for then."""
        file = self._file(app)
        for before in (self._file(app, ".before"), self._file(app, ".was")):
            if before.exists():
                if before.stat().st_size:
                    self._disk.rename(before, file)
                    return "restart"
                self._disk.remove(file)
                self._disk.remove(before)
                return "stop"
        # The last start changed nothing, so there is nothing to take back; what never was deployed has no right to run.
        return None if file.exists() else "stop"

    def _forget_before(self, app: str) -> None:
        for ending in (".before", ".was"):
            self._disk.remove(self._file(app, ending))

    def _state(self, app: str) -> Generator[float, None, str]:
        """What systemd knows of the unit, for a sentence's end. Never raises: it only says more."""
        words = [*self._systemctl, "show", "--property=ActiveState,SubState,Result,ConditionResult", f"{app}.service"]
        with suppress(HardwareError):
            ended = yield from play(words, self._limits.answer_s)
            said = dict(line.partition("=")[::2] for line in ended.output.splitlines())
            if said.get("ConditionResult") == "no":
                return f"; a condition of {app}.service is not met: this device may have no site yet"
            if said.get("ActiveState"):
                return f"; {app}.service is {said['ActiveState']} ({said.get('SubState')}, result {said.get('Result')})"
        return ""


def _values(file: Path) -> dict[str, str]:
    """`KEY=value` lines of a small file; none where there is no such file. What is torn or foreign says nothing."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as opened:
            text = opened.read(MAX_FILE).decode("utf-8", "replace")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {key.strip(): value.strip().strip('"') for key, equals, value in pairs if equals}
