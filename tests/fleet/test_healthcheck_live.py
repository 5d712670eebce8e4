"""healthcheck.sh on a running device: the real script, with stand-ins for the programs it asks and real sockets as cameras.

No systemd runs where the tests run, so the copy under test believes that one does, and looks for etc/ below a folder.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "fleet" / "images" / "edge-golden"

GOOD = {
    "systemctl": "echo active",
    "df": "echo Use%; echo ' 41%'",
    "chronyc": "exit 0",
    "nvidia-smi": "echo 'NVIDIA L4, 535.216.01'",
    "ufw": "echo 'Status: active'",
    "sshd": "echo 'port 22'; echo 'passwordauthentication no'; echo 'kbdinteractiveauthentication no'",
    "wg": "echo \"peer1 0\"; echo \"peer2 $(($(date +%s) - 30))\"",
    "swanctl": "echo 'home: #1, ESTABLISHED, IKEv2'",
    "fail2ban-client": "echo 'Status for the jail: sshd'",
    "curl": "exit 0",
    "dpkg": "exit 0",
}  # fmt: skip


class Device:
    """A folder with etc/ and the stand-ins' programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.etc, self.programs, self.script = (
            folder,
            folder / "etc",
            folder / "bin",
            folder / "healthcheck.sh",
        )
        self.programs.mkdir()
        (self.etc / "edge").mkdir(parents=True)
        for name, line in GOOD.items():
            self.program(name, line)
        text = (RECIPE / "healthcheck.sh").read_text()
        (folder / "enrolment").touch()
        (folder / "storage").write_text("slot=a\ndata=/dev/vda4\n")
        (folder / "mounts").write_text(
            "1 0 0:20 / / rw - overlay overlay rw\n2 1 8:4 / /data ro - ext4 /dev/vda4 rw,errors=remount-ro\n"
        )
        (folder / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\n")
        for old, new in (
            ("[ -d /run/systemd/system ]", "true"),
            ("/etc/edge", f"{self.etc}/edge"),
            ("/var/lib/edge-agent/agent.json", str(folder / "enrolment")),
            ("/run/edge/storage", str(folder / "storage")),
            ("/proc/self/mountinfo", str(folder / "mounts")),
            ("/proc/meminfo", str(folder / "meminfo")),
            # A machine that runs tests may have much to do: nothing here is late.
            ("PATIENCE_S=10", "PATIENCE_S=100"),
            ("timeout 5 ", "timeout 100 "),
            ("timeout 2 ", "timeout 100 "),
        ):
            assert old in text
            text = text.replace(old, new)
        text = text.replace('"$ROOT/etc/environment"', f'"{self.etc}/environment"')
        self.script.write_text(text)
        self.site()

    def program(self, name: str, line: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def site(self, vpn: str = "wireguard", cameras: tuple[str, ...] = ()) -> None:
        (self.etc / "environment").write_text('SITE_ID="SITE-2847"\n')
        (self.etc / "edge/site.env").write_text(f"# a comment\nREGISTRY=r.example\nVPN_TYPE={vpn}\n")
        (self.etc / "edge/cameras").write_text("# a comment\n" + "".join(f"{camera}\n" for camera in cameras))

    def checks(self) -> dict[str, tuple[str, str]]:
        env = {"PATH": f"{self.programs}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", str(self.script), "--json"], env=env, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        return {check["name"]: (check["status"], check["message"]) for check in json.loads(done.stdout)["checks"]}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_a_device_in_order_is_ok_in_every_live_check(device: Device) -> None:
    checks = device.checks()
    for name in (
        "disk",
        "memory",
        "time",
        "docker",
        "agent",
        "gpu",
        "firewall",
        "ssh",
        "video-ingest",
        "vpn",
        "cameras",
        "packages",
        "data",
        "fail2ban",
        "metrics",
    ):
        assert checks[name][0] == "ok", checks[name]
    assert checks["data"][1] == "slot a, /data on /dev/vda4"
    assert checks["gpu"][1] == "NVIDIA L4, 535.216.01"
    assert checks["cameras"][1] == "this site lists none"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "line", "check", "status"),
    [
        ("df", "echo ' 85%'", "disk", "warning"),
        ("df", "echo ' 84%'", "disk", "ok"),
        ("df", "echo ' 95%'", "disk", "critical"),
        ("chronyc", "echo 'try: 1, refid: 0'; exit 1", "time", "warning"),
        ("systemctl", "echo activating; exit 3", "video-ingest", "warning"),
        ("systemctl", "echo failed; exit 3", "docker", "critical"),
        ("systemctl", "exit 4", "agent", "critical"),
        ("nvidia-smi", "echo 'No devices were found'; exit 6", "gpu", "critical"),
        ("ufw", "echo 'Status: inactive'", "firewall", "critical"),
        ("ufw", "echo 'ERROR: problem running'; exit 1", "firewall", "critical"),
        ("ufw", "exit 124", "firewall", "warning"),
        ("sshd", "echo 'passwordauthentication yes'", "ssh", "critical"),
        ("sshd", "echo 'passwordauthentication no'; echo 'kbdinteractiveauthentication yes'", "ssh", "critical"),
        ("fail2ban-client", "echo 'Sorry but the jail does not exist'; exit 255", "fail2ban", "critical"),
        ("curl", "echo 'Failed to connect'; exit 7", "metrics", "critical"),
        ("dpkg", "echo 'half configured: ufw'", "packages", "critical"),
        ("sshd", "echo 'passwordauthentication no'; exit 255", "ssh", "critical"),
        ("wg", "exit 1", "vpn", "critical"),
        ("wg", "echo \"peer $(($(date +%s) - 600))\"", "vpn", "critical"),
    ],
)  # fmt: skip
def test_what_is_wrong_shows_in_its_check(device: Device, program: str, line: str, check: str, status: str) -> None:
    device.program(program, line)
    assert device.checks()[check][0] == status


def test_a_device_that_is_not_enrolled_is_not_broken(device: Device) -> None:
    (device.folder / "enrolment").unlink()
    device.program("systemctl", "echo inactive; exit 3")
    status, message = device.checks()["agent"]
    assert status == "skipped" and message.startswith("not enrolled")


def test_a_variant_without_a_gpu_driver_is_not_asked_for_one(device: Device) -> None:
    (device.programs / "nvidia-smi").unlink()
    (device.folder / "recipe.env").write_text("GPU=none\n")
    text = device.script.read_text()
    assert "$ROOT/usr/lib/edge/recipe.env" in text
    device.script.write_text(text.replace("$ROOT/usr/lib/edge/recipe.env", str(device.folder / "recipe.env")))
    assert device.checks()["gpu"] == ("skipped", "this variant has no GPU driver")
    (device.folder / "recipe.env").write_text("GPU=nvidia\n")
    assert device.checks()["gpu"][0] == "critical"


@pytest.mark.parametrize(
    ("storage", "mounts", "status"),
    [
        ("slot=b\ndata=memory\n", "2 1 0:9 / /data rw - tmpfs edge-data rw\n", "critical"),
        ("slot=b\ndata=/dev/vda4\n", "2 1 8:4 / /data ro - ext4 /dev/vda4 ro,errors=remount-ro\n", "critical"),
        ("slot=b\ndata=/dev/vda4\n", "1 0 0:20 / / rw - overlay overlay rw\n", "critical"),
        (None, "/dev/sda1 / ext4 rw 0 0\n", "skipped"),
    ],
)
def test_data_that_would_be_lost_is_critical(device: Device, storage: str | None, mounts: str, status: str) -> None:
    (device.folder / "storage").unlink()
    if storage is not None:
        (device.folder / "storage").write_text(storage)
    (device.folder / "mounts").write_text(mounts)
    assert device.checks()["data"][0] == status


def test_the_tunnel_that_the_site_has_is_the_one_that_is_tried(device: Device) -> None:
    device.program("wg", "exit 1")
    device.site(vpn="ipsec")
    assert device.checks()["vpn"] == ("ok", "IPsec established")
    device.program("swanctl", "exit 0")
    assert device.checks()["vpn"][0] == "critical"
    device.site(vpn="none")
    assert device.checks()["vpn"] == ("ok", "this site has none")


def test_a_device_that_cloud_init_did_not_configure_is_critical(device: Device) -> None:
    (device.etc / "environment").unlink()
    checks = device.checks()
    assert {checks[name][0] for name in ("video-ingest", "vpn", "cameras")} == {"critical"}
    assert "no SITE_ID" in checks["vpn"][1]


def test_cameras_are_tried_for_real(device: Device) -> None:
    with socket.create_server(("127.0.0.1", 0)) as camera, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
        there, gone = (f"127.0.0.1:{one.getsockname()[1]}" for one in (camera, closed))
        device.site(cameras=(there,))
        assert device.checks()["cameras"] == ("ok", "all 1 answer")
        device.site(cameras=(there, gone))
        assert device.checks()["cameras"] == ("warning", f"1 of 2 do not answer: {gone}")
        device.site(cameras=(gone,))
        assert device.checks()["cameras"] == ("critical", "none of 1 answers")


def test_a_camera_may_have_an_ipv6_address(device: Device) -> None:
    try:
        camera = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    with camera:
        device.site(cameras=(f"[::1]:{camera.getsockname()[1]}",))
        assert device.checks()["cameras"] == ("ok", "all 1 answer")
