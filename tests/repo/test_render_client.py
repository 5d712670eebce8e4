"""The real cloud-init reads every kind of seed that a site's spec can give: one process of its own client for all of them."""

from __future__ import annotations

import json
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.model.desired import FleetSpec, SiteSpec
from reconciler.repo.load import load_folder
from reconciler.repo.render import VPN_FILES, render_site, resolve
from tests.support.system import need

pytestmark = pytest.mark.system
FLEET = FleetSpec(registry="registry.example:5000")
WIREGUARD = (
    "[Interface]\nPrivateKey = k\nAddress = 10.9.0.2/24, fd00::2/64\n# {% raw %}: - 'x' \"y\" ${HOME} ~ !tag &a *b\n"
)
IPSEC = (
    'connections {\n  site { remote_addrs = 192.0.2.1 }\n}\nsecrets {\n  ike-1 { secret = "# : \\" \' \\\\ €" }\n}\n'
)
VPN: dict[str, str] = {"wireguard": WIREGUARD, "ipsec": IPSEC, "none": ""}
NTP: tuple[list[str], ...] = ([], ["ntp.one.example"], ["192.0.2.1", "2001:db8::1", "ntp.two.example"])
CAMERAS: tuple[list[str], ...] = (
    [],
    ["192.0.2.21", "cam.example:8554", "[2001:db8::1]:8554", "2001:db8::2"],
    [f"192.0.2.{n}" for n in range(1, 64)],
)
# Names that YAML could take for something else, and the longest; labels that nothing of it may reach.
NAMES = (("SITE-1", "SITE-1-1"), ("NO", "1e3"), ("0x10", "0755"), ("n" * 63, "d" * 63))
LABELS: tuple[dict[str, str], ...] = (
    {},
    {"region": "eu: [west] # 'x'", "use": "%{ }$(reboot)`id`"},
    {"note": "zażółć — 東京 🎥"},
)

# Reads seeds as a device does at its first boot, with the schema as `cloud-init schema` has it.
CLIENT = r"""
import json, sys, logging
from cloudinit import helpers, distros, settings
from cloudinit.config.schema import get_schema, validate_cloudconfig_file
from cloudinit.sources import DataSourceNoCloud as nocloud
from cloudinit.user_data import UserDataProcessor
schema, found = get_schema(), []
for cloud in sys.argv[1:]:
    validate_cloudconfig_file(cloud + "/seed/nocloud/user-data", schema)
    paths = helpers.Paths({"cloud_dir": cloud, "run_dir": cloud + "/run"})
    source = nocloud.DataSourceNoCloud({"datasource": {"NoCloud": {"fs_label": None}}}, None, paths)
    assert source._get_data(), cloud
    parts = [part.get_content_type() for part in source.get_userdata().walk() if not part.is_multipart()]
    found.append({"id": source.get_instance_id(), "host": source.metadata["local-hostname"], "parts": parts,
                  "network": source.network_config})
print("\n" + json.dumps(found))
"""


def write(cloud: Path, files: dict[str, bytes]) -> Path:
    folder = cloud / "seed" / "nocloud"
    folder.mkdir(parents=True)
    (cloud / "run").mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return cloud


def read_all(clouds: list[Path]) -> list[dict[str, Any]]:
    """What cloud-init makes of each; an error of any ends it."""
    need("cloud-init")
    argv = ["/usr/bin/python3", "-c", CLIENT, *map(str, clouds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found) == len(clouds)
    return found


def written(files: dict[str, bytes]) -> dict[str, str]:
    return {file["path"]: file["content"] for file in yaml.safe_load(files["user-data"])["write_files"]}


def test_every_kind_of_site_is_read_whole(tmp_path: Path) -> None:
    clouds, wanted = [], []
    for number, (kind, (site, device)) in enumerate(product(VPN, NAMES)):
        vpn = {"type": kind, "secretRef": "edge/x/vpn"} if kind != "none" else None
        spec = SiteSpec.model_validate(
            {
                "timezone": "Europe/Berlin",
                "devices": [device],
                "ntp": NTP[number % len(NTP)],
                "cameras": CAMERAS[number // 2 % len(CAMERAS)],
                "labels": LABELS[number % len(LABELS)],
                "vpn": vpn,
            }
        )
        secret = VPN[kind] if number % 2 else json.dumps({device: VPN[kind]})
        files = resolve(
            render_site(site, spec, FLEET, device), {"edge/x/vpn": secret}.__getitem__, "sha256:" + "a" * 64
        )
        clouds.append(write(tmp_path / str(number), files))
        wanted.append({"id": f"{device}-{'a' * 16}", "host": device.lower(), "parts": ["text/cloud-config"]})
        if kind != "none":
            assert written(files)[VPN_FILES[kind]] == VPN[kind]
        assert not any(value.encode() in files["user-data"] for value in spec.labels.values())
    found = read_all(clouds)
    assert [{key: item[key] for key in ("id", "host", "parts")} for item in found] == wanted
    assert all(item["network"]["ethernets"]["wired"]["dhcp4"] is True for item in found)


@pytest.mark.slow
def test_every_site_of_the_example_fleet_is_read(tmp_path: Path) -> None:
    desired = load_folder(Path(__file__).parents[2] / "fleet").desired
    assert desired is not None
    clouds = []
    for name, spec in desired.sites.items():
        for device in spec.devices:
            files = resolve(render_site(name, spec, desired.fleet, device), lambda _: WIREGUARD)
            clouds.append(write(tmp_path / device, files))
    found = read_all(clouds)
    assert len({item["id"] for item in found}) == len(clouds) > 50


def test_what_is_no_cloud_config_would_be_found(tmp_path: Path) -> None:
    bad = {"user-data": b"#cloud-config\nwrite_files: 5\n", "meta-data": b"instance-id: x\nlocal-hostname: x\n"}
    with pytest.raises(AssertionError, match="write_files"):
        read_all([write(tmp_path / "bad", bad)])
