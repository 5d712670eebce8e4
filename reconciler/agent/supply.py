"""What takes long on a device, as jobs: fetching and writing an image, pulling and starting an app, configuring.

Python 3.10, standard library only: runs as root on a device. When a job is begun is decided by `machine` and `work`; a
job knows how it is done. `DiskSupply` does it with files, HTTP and signatures; the simulator plays it in virtual time.
Called by `work` alone. Source: design, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from reconciler.agent import artifact
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import Hardware
from reconciler.agent.judge import Verify
from reconciler.agent.transport import Transport
from reconciler.protocol.assignment import AppTarget, ImageTarget
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.signature import Refused

# An agent that has nothing to do holds nothing in memory that is for work: what writes slots and pulls apps is imported
# when it is needed.
if TYPE_CHECKING:
    from reconciler.agent.containers import Containers

Job = Iterator[float]
"""Work in pieces. What is yielded is how many seconds to let pass before it is gone on with (0.0: at once). Gone on with
sooner, it does what it can and says again. It may be dropped between any two pieces."""


class Supply(Protocol):
    """Releases: what of them is on the device, and how they get there.

    A job may raise Refused (not what was assigned), TransportError (later, perhaps), hardware.Spoiled (the disk does not
    give back what was written), HardwareError or OSError.
    """

    def has_image(self, image: ImageTarget) -> bool:
        """Whether the artifact is here, proven, and can be written."""

    def fetch_image(self, image: ImageTarget, sources: Sequence[str], now: datetime) -> Job:
        """Fetch and prove the artifact. What was fetched of it is kept where the connection breaks."""

    def check_slot(self, slot: str, image: ImageTarget) -> Job:
        """Compare what stands in a slot with the image that it should hold."""

    def write_image(self, image: ImageTarget, slot: str) -> Job:
        """Write the artifact, which is here, to an inactive slot, read it back and record it."""

    def drop_image(self) -> None:
        """Remove whatever artifact is here."""

    def has_app(self, name: str, app: AppTarget) -> bool:
        """Whether the app's release is on the device."""

    def pull_app(self, name: str, app: AppTarget, sources: Sequence[str], token: str | None) -> Job:
        """Pull the app's release."""

    def start_app(self, name: str, digest: str) -> Job:
        """Switch the app to a release that is on the device, and restart it. It runs when the job ends."""

    def apply_config(self, config: SiteConfig) -> Job:
        """Put a configuration in force. It is in force when the job ends, not before."""


class DiskSupply:
    """`Supply` with files below the hardware's folders, over a transport, under signatures."""

    def __init__(self, hardware: Hardware, transport: Transport, disk: Disk, verify: Verify) -> None:
        self._hardware, self._transport, self._disk, self._verify = hardware, transport, disk, verify
        self._cache = artifact.Cache(hardware.state_folder() / "cache", disk)

    def has_image(self, image: ImageTarget) -> bool:
        return self._cache.find(image) is not None

    def fetch_image(self, image: ImageTarget, sources: Sequence[str], now: datetime) -> Job:
        hardware = self._hardware
        keyring = hardware.keyring("release")
        proven = yield from artifact.proving(
            image, sources, self._transport, keyring, self._verify, hardware.slot_bytes(), now
        )
        yield from artifact.download(proven, image, sources, self._transport, self._cache, self._disk)

    def check_slot(self, slot: str, image: ImageTarget) -> Job:
        from reconciler.agent import writer

        return writer.read_back(slot, image.digest, self._hardware.slot_size(slot), self._hardware)

    def write_image(self, image: ImageTarget, slot: str) -> Job:
        from reconciler.agent import writer

        found = self._cache.find(image)
        # It was here a step ago. Gone meanwhile, it is fetched again; nothing was written.
        if found is None:
            raise Refused("artifact-incomplete", f"the artifact of {image.release} is no longer on the device")
        yield from writer.write_image(*found, slot, self._hardware)

    def drop_image(self) -> None:
        self._cache.clear()

    def has_app(self, name: str, app: AppTarget) -> bool:
        return (self._hardware.app_folder(name) / app.digest.replace("sha256:", "")).is_dir()

    def pull_app(self, name: str, app: AppTarget, sources: Sequence[str], token: str | None) -> Job:
        from reconciler.agent import oci

        return oci.pull(app, sources, self._transport, token, self._hardware.app_folder(name), self._disk)

    def start_app(self, name: str, digest: str) -> Job:
        self._hardware.run_app(name, digest)
        yield 0.0

    def apply_config(self, config: SiteConfig) -> Job:
        self._hardware.apply_config(config)
        yield 0.0
        yield from self._hardware.activate_config()


class ContainerSupply(DiskSupply):
    """`DiskSupply` whose apps are containers of the image's runtime."""

    def __init__(
        self, hardware: Hardware, transport: Transport, disk: Disk, verify: Verify, containers: Containers
    ) -> None:
        """`containers` is the hardware's own: the two see the same apps."""
        super().__init__(hardware, transport, disk, verify)
        self._containers = containers

    def has_app(self, name: str, app: AppTarget) -> bool:
        return self._containers.has(name, app)

    def pull_app(self, name: str, app: AppTarget, sources: Sequence[str], token: str | None) -> Job:
        return self._containers.pull(name, app, sources, token)

    def start_app(self, name: str, digest: str) -> Job:
        return self._containers.start(name, digest)
