"""Builds the hardware and the supply that the settings name: the one place that names implementations.

Python 3.10, standard library only: runs as root on a device. Opens and reads; writes nothing, so that `status` may open
what another process works on. Called by `main`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.agent.disk import Disk
from reconciler.agent.hardware import Hardware, HardwareError
from reconciler.agent.judge import Verify
from reconciler.agent.settings import PARTITIONS, Settings
from reconciler.agent.supply import ContainerSupply, DiskSupply, Supply
from reconciler.agent.transport import Transport

# Of two machines a device is one: the parts of the other are not held in memory.
if TYPE_CHECKING:
    from reconciler.agent.partitioned import PartitionedHardware

ESP = Path("/run/edge/esp")
SEED = Path("/data/cidata")


def open_hardware(settings: Settings, disk: Disk | None = None) -> Hardware:
    """The machine. HardwareError: this is not one of that kind."""
    disk = disk or Disk()
    if settings.hardware == PARTITIONS:
        return _partitions(disk)
    from reconciler.agent.directory import DirectoryHardware

    return DirectoryHardware(settings.root, site=settings.identity.site, slot_bytes=settings.slot_bytes, disk=disk)


def open_supply(settings: Settings, hardware: Hardware, transport: Transport, disk: Disk, verify: Verify) -> Supply:
    """How releases get to the machine."""
    if settings.hardware == PARTITIONS:
        from reconciler.agent.containers import Containers
        from reconciler.agent.partitioned import PartitionedHardware

        if isinstance(hardware, PartitionedHardware) and isinstance(hardware.apps_here, Containers):
            return ContainerSupply(hardware, transport, disk, verify, hardware.apps_here)
    return DiskSupply(hardware, transport, disk, verify)


def _partitions(disk: Disk) -> PartitionedHardware:
    from reconciler.agent import clock, grub
    from reconciler.agent.activation import UnitActivation
    from reconciler.agent.containers import Containers, runtime_of
    from reconciler.agent.partitioned import PartitionedHardware, Places, booted_slot
    from reconciler.agent.partitions import PartitionSlots
    from reconciler.agent.seed import Seed

    places = Places()
    slots = PartitionSlots(places.slot, booted_slot(places.command_line))

    def check(esp: Path) -> None:
        """The ESP is there, and it is the one that this disk boots from."""
        grub.mounted(esp)
        if not slots.is_esp(esp):
            raise HardwareError(f"what is mounted at {esp} is not the ESP of the disk that this device runs from")

    return PartitionedHardware(
        places,
        slots,
        grub.GrubLoader(ESP, disk, check=check),
        Seed(SEED, disk, UnitActivation()),
        Containers(places.state / "apps", disk, runtime=(runtime_of(),)),
        clock=clock.ask,
        disk=disk,
    )
