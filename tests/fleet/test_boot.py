"""The built image of variant debian-12, started under systemd-nspawn with a site's seed: what a site would look for.

From systemd on everything is real: units, cloud-init, sshd, firewall, agent. A second network namespace plays the
neighbour on the wire. What lies before systemd (boot loader, initrd, data partition) is tested on virtual machines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.model.desired import SiteSpec
from reconciler.repo.load import load_folder
from reconciler.repo.render import render_site
from tests.fleet.container import Container
from tests.support import golden
from tests.support.processes import wait_until
from tests.support.system import need

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(900)]
FLEET = Path(__file__).parents[2] / "fleet"
# The lab has no VPN, so its seed holds no secret. The same seed for two devices: what differs is then their own.
SITE = "LAB-0001"
KEYS = ("/data/ssh/ssh_host_ed25519_key.pub", "/data/ssh/ssh_host_ecdsa_key.pub")


NEIGHBOUR, DEVICE = "198.51.100.1", "198.51.100.2"


@dataclass(frozen=True)
class Lab:
    """Two devices of one seed: `one` after its second slot's first boot, `two` after its first."""

    site: SiteSpec
    keys_before: str
    one: Container
    two: Container


def data(folder: Path) -> Path:
    """What the initrd finds on a data partition at the first boot: the seed, and the image's own folders."""
    desired = load_folder(FLEET).desired
    assert desired is not None
    for name in ("cidata", "log", "docker", "edge", "ssh", "video-ingest"):
        (folder / name).mkdir(parents=True)
    spec = desired.sites[SITE]
    for name, text in render_site(SITE, spec, desired.fleet, spec.devices[0]).files().items():
        (folder / "cidata" / name).write_text(text)
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: systemd-nspawn")
    root, folder = golden.root(), tmp_path_factory.mktemp("devices")
    desired = load_folder(FLEET).desired
    assert desired is not None
    first, second = data(folder / "first"), data(folder / "second")
    started: list[Container] = []

    def start(slot: str, where: Path) -> Container:
        started.append(Container(root, folder / slot, where, slot))
        return started[-1]

    try:
        one, two = start("one-a", first), start("two-a", second)
        one.wait()
        two.wait()
        keys = one.says("cat", *KEYS)
        one.stop()
        one = start("one-b", first)
        one.wait()
        yield Lab(desired.sites[SITE], keys, one, two)
    finally:
        for container in started:
            container.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def neighbour(lab: Lab) -> Iterator[list[str]]:
    """A command's beginning that runs it in a network namespace of its own, with a cable to `one`."""
    holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--net", "sleep", "600"])
    try:
        beside = ["nsenter", "-t", str(holder.pid), "--net", "--"]
        end = time.monotonic() + 60
        ours = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == ours:
            assert time.monotonic() < end
            time.sleep(0.05)
        # Not named as a wired port is, so that the device's own configuration leaves it alone.
        for line in (
            f"ip link add cable type veth peer name test0 netns {lab.one.first()}",
            f"ip addr add {NEIGHBOUR}/30 dev cable",
            "ip link set cable up",
        ):
            subprocess.run([*beside, *line.split()], check=True)
        lab.one.says("ip", "addr", "add", f"{DEVICE}/30", "dev", "test0")
        lab.one.says("ip", "link", "set", "test0", "up")
        forget_connections(lab.one)
        yield beside
    finally:
        holder.kill()
        holder.wait()


def ssh(
    neighbour: list[str], home: Path, *options: str, user: str = "edge", within_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Log in as the image's account, and become root."""
    argv = [need("ssh", "openssh-client"), "-F", "none", "-o", "StrictHostKeyChecking=no"]
    argv += ["-o", f"UserKnownHostsFile={home}/known", "-o", "ConnectTimeout=60", "-o", "BatchMode=yes"]
    return subprocess.run(
        [*neighbour, *argv, *options, f"{user}@{DEVICE}", "sudo -n id -u"],
        capture_output=True, text=True, timeout=within_s, check=False,
    )  # fmt: skip


def answers(neighbour: list[str], port: int) -> bool:
    """Does the device take a connection?"""
    argv = ["bash", "-c", f"exec 3<>/dev/tcp/{DEVICE}/{port}"]
    return subprocess.run(["timeout", "3", *neighbour, *argv], capture_output=True, check=False).returncode == 0


def soon(device: Container, neighbour: list[str], port: int) -> None:
    """Wait until the device takes a connection: a busy machine may need longer for one than `answers` waits."""

    def taken() -> bool:
        forget_connections(device)
        return answers(neighbour, port)

    wait_until(taken, 120)


def forget_connections(device: Container) -> None:
    """ufw lets a neighbour connect six times in thirty seconds; the tests are more impatient."""
    device.run("sh", "-c", "echo / >/proc/net/xt_recent/DEFAULT")


# ---------------------------------------------------------------- the site

WELL = ("image", "files", "boot", "packages", "disk", "memory", "docker", "firewall", "ssh", "fail2ban", "metrics")


def test_the_device_is_its_sites(lab: Lab) -> None:
    for device in (lab.one, lab.two):
        assert f'SITE_ID="{SITE}"' in device.says("cat", "/etc/environment").splitlines()
        assert device.says("hostname").strip() == f"{lab.site.devices[0].lower()}"
        servers = re.findall(r"^server (\S+) ", device.says("cat", "/etc/chrony/sources.d/site.sources"), re.MULTILINE)
        assert tuple(servers) == lab.site.ntp
        assert "sourcedir /etc/chrony/sources.d" in device.says("cat", "/etc/chrony/chrony.conf").splitlines()
        cameras = [line for line in device.says("cat", "/etc/edge/cameras").splitlines() if not line.startswith("#")]
        assert tuple(cameras) == lab.site.cameras
        assert "REGISTRY=" in device.says("cat", "/etc/edge/site.env")


def test_it_runs_the_release_that_was_built(lab: Lab) -> None:
    release = dict(line.split("=") for line in lab.one.says("cat", "/etc/edge-release").splitlines())
    assert release["FAMILY"] == "edge-golden"
    assert lab.one.says("cat", "/etc/edge-image-version") == f"current={release['RELEASE']}\nprevious=\n"
    assert lab.one.health()["image"] == ("ok", release["RELEASE"])


def test_what_is_one_devices_own_differs_and_outlives_an_update(lab: Lab) -> None:
    assert lab.one.says("cat", *KEYS) == lab.keys_before
    assert len({line.split()[1] for line in (lab.keys_before + lab.two.says("cat", *KEYS)).splitlines()}) == 4
    ids = {device.says("cat", "/etc/machine-id").strip() for device in (lab.one, lab.two)}
    assert len(ids) == 2 and all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert lab.one.run("ls", "/etc/ssh/ssh_host_ed25519_key").returncode != 0


def test_nothing_has_failed_and_the_checks_say_so(lab: Lab) -> None:
    for device in (lab.one, lab.two):
        failed = device.says("systemctl", "list-units", "--failed", "--no-legend", "--plain").splitlines()
        # A container's root is systemd-nspawn's to mount: on a busy machine this unit comes too early.
        # Booted from a disk, none may fail.
        failed = [line for line in failed if not line.startswith("systemd-remount-fs.service ")]
        assert failed == []
        # It gives each program five seconds to answer, which is not much where several devices share a busy machine.
        with suppress(AssertionError):
            wait_until(lambda device=device: {device.health()[name][0] for name in WELL} == {"ok"})  # type: ignore[misc]
        checks = device.health()
        for name in WELL:
            assert checks[name][0] == "ok", (name, checks[name])
        assert checks["metrics"] == ("ok", "the node exporter answers")
        assert checks["vpn"] == ("ok", "this site has none")
        assert checks["gpu"][0] == checks["data"][0] == "skipped"
        assert checks["agent"][0] == "skipped" and checks["agent"][1].startswith("not enrolled")
        # Nothing is there to be reached: no camera, no registry, no time server. That is told, and is not the image's.
        assert checks["cameras"] == ("critical", f"none of {len(lab.site.cameras)} answers")
        assert checks["video-ingest"][0] == checks["time"][0] == "warning"


def test_what_must_outlive_an_update_lies_in_data(lab: Lab) -> None:
    for place, folder in (
        ("/var/log", "/data/log"),
        ("/var/lib/docker", "/data/docker"),
        ("/var/lib/edge-agent", "/data/edge"),
        ("/var/lib/video-ingest", "/data/video-ingest"),
    ):
        lab.one.says("test", place, "-ef", folder)
    # The journal of the boot before the update can be read after it.
    boots = lab.one.says("sh", "-c", "ls /data/log/journal | wc -l").strip()
    assert boots == "2", "nspawn names each boot's machine anew, the initrd of a device does not"


# ---------------------------------------------------------------- the way in


def test_sshd_refuses_every_password_and_takes_the_fleets_keys(lab: Lab, neighbour: list[str], tmp_path: Path) -> None:
    refused = ssh(neighbour, tmp_path, "-o", "PreferredAuthentications=password,keyboard-interactive,none")
    assert refused.returncode == 255
    assert "Permission denied (publickey)." in refused.stderr
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    own = ("-i", str(key), "-o", "IdentitiesOnly=yes")
    assert ssh(neighbour, tmp_path, *own).returncode == 255
    lab.one.says("mkdir", "-p", "/etc/ssh/authorized_keys.d")
    lab.one.run("tee", "/etc/ssh/authorized_keys.d/edge", stdin=key.with_suffix(".pub").read_text())
    taken = ssh(neighbour, tmp_path, *own)
    assert (taken.returncode, taken.stdout.strip()) == (0, "0"), taken.stderr
    # The key that the neighbour saw is the device's, from the data partition.
    seen = (tmp_path / "known").read_text().split()[2]
    assert seen in lab.keys_before


def test_the_firewall_lets_in_ssh_alone(lab: Lab, neighbour: list[str]) -> None:
    assert "Default: deny (incoming), allow (outgoing)" in lab.one.says("ufw", "status", "verbose")
    lab.one.says(
        "curl", "-fsS", "--retry", "60", "--retry-connrefused", "-o", "/dev/null", "http://127.0.0.1:9100/metrics"
    )
    soon(lab.one, neighbour, 22)
    assert not answers(neighbour, 9100)
    # Without the firewall it would answer: the rule is what keeps it away.
    lab.one.says("ufw", "allow", "9100/tcp")
    try:
        soon(lab.one, neighbour, 9100)
    finally:
        lab.one.says("ufw", "delete", "allow", "9100/tcp")


def test_fail2ban_shuts_out_who_guesses(lab: Lab, neighbour: list[str], tmp_path: Path) -> None:
    soon(lab.one, neighbour, 22)
    try:
        # Five failures in ten minutes are too many; on a busy machine an attempt may end before sshd has seen it.
        end = time.monotonic() + 300
        while NEIGHBOUR not in lab.one.says("fail2ban-client", "status", "sshd") and time.monotonic() < end:
            forget_connections(lab.one)
            # A ban that falls in the middle of an attempt leaves it without an answer.
            with suppress(subprocess.TimeoutExpired):
                ssh(neighbour, tmp_path, user="admin", within_s=40)
        assert NEIGHBOUR in lab.one.says("fail2ban-client", "status", "sshd")
        # It is told before it is done.
        wait_until(lambda: NEIGHBOUR in lab.one.says("nft", "list", "ruleset"))
        forget_connections(lab.one)
        assert not answers(neighbour, 22)
    finally:
        lab.one.run("fail2ban-client", "set", "sshd", "unbanip", NEIGHBOUR)


# ---------------------------------------------------------------- the agent, and trials

IN_THE_AGENTS_PLACE = """\
[Unit]
ConditionPathExists=
[Service]
Type=oneshot
WatchdogSec=0
Restart=no
ExecStart=
ExecStart=-/usr/local/bin/healthcheck.sh --json
StandardOutput=truncate:/run/health.json
"""


def test_systemd_finds_no_fault_with_our_units(lab: Lab) -> None:
    ours = sorted(
        path.name for path in (FLEET / "images/edge-golden/rootfs/etc/systemd/system").glob("*.*") if path.is_file()
    )
    assert "edge-agent.service" in ours and "edge-trial.timer" in ours
    done = lab.one.run("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", *ours)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_healthcheck_says_the_same_within_the_agents_sandbox(lab: Lab) -> None:
    folder = "/run/systemd/system/edge-agent.service.d"
    lab.one.says("mkdir", "-p", folder)
    lab.one.run("tee", f"{folder}/99-health.conf", stdin=IN_THE_AGENTS_PLACE)
    try:
        lab.one.says("systemctl", "daemon-reload")
        # On a busy machine a program may not answer in its seconds, in the one place or in the other.
        for _ in range(5):
            lab.one.says("systemctl", "start", "edge-agent.service")
            checks = json.loads(lab.one.says("cat", "/run/health.json"))["checks"]
            within, outside = {check["name"]: check for check in checks}, lab.one.health()
            assert set(within) == set(outside)
            # The app is being pulled, over and over: what it is just now may differ.
            names = set(outside) - {"video-ingest"}
            differ = [(within[name], outside[name]) for name in names if within[name]["status"] != outside[name][0]]
            if not differ:
                break
    finally:
        lab.one.says("rm", "-r", folder)
        lab.one.says("systemctl", "daemon-reload")
    assert differ == []


@pytest.mark.parametrize(
    ("environment", "copy", "judged", "says"),
    [
        ("edge_default=b\\nedge_trial=\\nedge_tries=0\\n###", "edge_default=b\\n", True, "slot b was found good"),
        ("edge_default=a\\nedge_trial=b\\nedge_tries=0\\n###", "edge_default=a\\n", False, "going back to slot a"),
        # Torn: it is the copy that the boot loader goes by.
        ("", "edge_default=b\\n", True, "slot b was found good"),
        ("edge_default=\\n", "", False, "going back to slot unknown"),
    ],
)
def test_a_trial_is_judged_by_what_the_boot_loader_will_take(
    lab: Lab, environment: str, copy: str, judged: bool, says: str
) -> None:
    folder = "/run/edge/esp/EFI/edge"
    try:
        lab.one.says("sh", "-c", f"mkdir -p {folder} && printf 'slot=b\ndata=memory\n' >/run/edge/storage")
        lab.one.says("sh", "-c", f"printf '{environment}' >{folder}/grubenv; printf '{copy}' >{folder}/grubenv.bak")
        done = lab.one.run("/usr/local/lib/edge/trial-judged")
    finally:
        lab.one.says("rm", "-r", "/run/edge/storage", "/run/edge/esp")
    assert (done.returncode == 0) is judged and says in done.stdout + done.stderr


def test_without_its_slots_nothing_is_judged_and_nothing_mounted(lab: Lab) -> None:
    assert lab.one.run("/usr/local/lib/edge/trial-judged").returncode == 1
    assert lab.one.run("/usr/local/lib/edge/mount-esp").returncode != 0
    assert (
        lab.one.run("systemctl", "is-active", "edge-esp.service", "edge-trial.timer").stdout.split() == ["inactive"] * 2
    )


def test_an_enrolled_device_runs_the_agent(lab: Lab) -> None:
    assert lab.two.run("systemctl", "is-active", "edge-agent.service").stdout.strip() == "inactive"
    settings = (
        f'{{"device": "{SITE}-1", "site": "{SITE}", "server": "http://127.0.0.1:9", "root": "/var/lib/edge-agent/device",'
        ' "tokenFile": "/var/lib/edge-agent/token"}'
    )
    lab.two.run("tee", "/var/lib/edge-agent/token", stdin="not-a-token-of-anybody\n")
    lab.two.run("tee", "/var/lib/edge-agent/agent.json", stdin=settings)
    lab.two.says("systemctl", "start", "edge-agent.service")
    time.sleep(3)  # Where it fails, it does so in this time, and is started again.
    wait_until(lambda: lab.two.health()["agent"] == ("ok", "edge-agent.service is active"))
    assert lab.two.says("systemctl", "show", "-P", "NRestarts", "edge-agent.service").strip() == "0"
