"""Which hardware the settings name, and what a machine that is none of that kind says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.agent.opening import open_hardware, open_supply
from reconciler.agent.settings import STATE, Settings, SettingsError, read_settings
from reconciler.agent.supply import ContainerSupply, DiskSupply
from reconciler.agent.transport import HttpTransport
from reconciler.protocol.signature import verify_detached


def settings(folder: Path, **values: object) -> Settings:
    (folder / "token").write_text("token-0123456789\n")
    base = {"device": "SITE-1-1", "site": "SITE-1", "server": "https://h/", "tokenFile": str(folder / "token")}
    (folder / "agent.json").write_text(json.dumps({**base, **values}))
    return read_settings(folder / "agent.json", {})


def test_a_root_alone_is_a_device_as_a_folder(tmp_path: Path) -> None:
    sets: tuple[Mapping[str, object], ...] = ({}, {"hardware": None}, {"hardware": "directory"})
    for values in sets:
        made = settings(tmp_path, root=str(tmp_path / "device"), slotBytes=5, **values)
        assert (made.hardware, made.root, made.slot_bytes) == ("directory", tmp_path / "device", 5)
    hardware = open_hardware(made)
    assert isinstance(hardware, DirectoryHardware)
    assert hardware.slot_bytes() == 5
    transport = HttpTransport(made.server)
    supply = open_supply(made, hardware, transport, Disk(), verify_detached)
    assert isinstance(supply, DiskSupply)
    assert not isinstance(supply, ContainerSupply)
    transport.close()


def test_partitions_have_the_agents_own_folder(tmp_path: Path) -> None:
    made = settings(tmp_path, hardware="partitions")
    assert (made.hardware, made.root) == ("partitions", STATE)
    # The machine of a test was not booted from a slot, and says so.
    with pytest.raises(HardwareError, match=r"edge\.slot.*'hardware' to 'directory'"):
        open_hardware(made)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, r"neither root nor hardware.*'partitions'.*--root DIR"),
        ({"hardware": "raid"}, "'raid'; it is one of directory, partitions"),
        ({"hardware": 5, "root": "/x"}, "5; it is one of"),
        ({"hardware": None}, "neither"),
        ({"hardware": "directory"}, "there is no root.*--root DIR"),
        ({"hardware": "partitions", "root": "/x"}, "root is for hardware 'directory' alone.*leave root out"),
        ({"hardware": "partitions", "slotBytes": 5}, "slotBytes is for hardware 'directory' alone"),
        ({"root": ""}, "root is ''"),
        ({"root": 5}, "root is 5"),
    ],
)
def test_hardware_that_is_wrong_names_the_remedy(tmp_path: Path, values: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        settings(tmp_path, **values)
