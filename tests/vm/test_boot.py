"""It boots: the golden image on an install disk, with the seed of a site, under real firmware; what a site would look for.

One machine goes through a device's first days: installation on a disk larger than its image, a power-off, a trial of
slot b, and the way back. A second one, of another site, has a tunnel and cameras. Both are emulated: minutes, not
seconds. The image has no shell for the test; the test's seed asks cloud-init for one (see `machine.with_shell`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reconciler.image.disk import MIB, Disk, make_disk
from reconciler.image.disk_data import read_seed
from reconciler.image.disk_slot import open_source
from tests.support import golden
from tests.vm import disks
from tests.vm.machine import Machine, with_shell

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
# Emulation on a machine that others use too; a quiet one needs a third of it.
BOOT_S = 600
SLOT_BYTES = 2048 * MIB
GROWN_BYTES = 3 << 30
LACKING = frozenset({"vpn", "cameras"})
# A site without a tunnel and without cameras: nothing of it is missing in a virtual machine.
PLAIN_SITE = """\
apiVersion: fleet/v1
kind: Site
metadata:
  name: SITE-9001
spec:
  timezone: Europe/Berlin
  devices: [SITE-9001-1]
  ntp: [ntp1.site-9001.example, ntp2.site-9001.example]
"""
TUNNEL = """\
[Interface]
PrivateKey = iLSHGmmmSqeKq+ZVvZ4kAYZNAU4PGnZIcVqBJ1KVbXE=
Address = 198.51.100.2/32

[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = 198.51.100.0/24
Endpoint = 203.0.113.1:51820
"""
# Everything that is asked of the running system, in one go: emulated round trips are slow.
LOOK = r"""
say() { printf '\n--- %s\n' "$1"; }
say environment; cat /etc/environment
say hostname; hostname
say version; cat /etc/edge-image-version
say chrony; grep -v '^#' /etc/chrony/sources.d/site.sources; chronyc -n activity
say cameras; cat /etc/edge/cameras
say ufw; ufw status
say sshd; sshd -T | grep -E '^(passwordauthentication|permitrootlogin|kbdinteractiveauthentication|authenticationmethods) '
say login
ssh -v -o BatchMode=no -o NumberOfPasswordPrompts=1 -o PubkeyAuthentication=no -o StrictHostKeyChecking=no \
  -o UserKnownHostsFile=/dev/null -o ConnectTimeout=30 -o PreferredAuthentications=password,keyboard-interactive \
  edge@127.0.0.1 true </dev/null 2>&1 | grep -E 'Permission denied|Authentications that can continue|Authenticated'
say fail2ban; fail2ban-client ping; fail2ban-client status sshd | head -n 1
say exporter; curl -sS --max-time 20 http://127.0.0.1:9100/metrics | grep -E '^node_(boot_time_seconds|uname_info)'
say hostkeys; cat /data/ssh/*.pub
say machineid; cat /etc/machine-id
say mounts; cat /proc/mounts
say cmdline; cat /proc/cmdline
say storage; cat /run/edge/storage
say data; lsblk -b -n -o PARTLABEL,SIZE,FSTYPE; df -B1 --output=size /data
say table; sfdisk --verify /dev/"$(lsblk -n -o PKNAME "$(findmnt -n -o SOURCE --mountpoint /data)" | head -n 1)"
say readonly; touch /run/edge/slot/x
say esp; findmnt -n -o SOURCE,FSTYPE,OPTIONS --mountpoint /run/edge/esp; stat -c '%a %U' /run/edge/esp; ls /run/edge/esp/EFI/edge
say watchdog; cd /sys/class/watchdog/watchdog0 && cat identity state timeout; cd /
say units; systemctl is-active edge-esp.service edge-trial.timer
say command; readlink /usr/local/bin/edge-agent; edge-agent --version
say seed; stat -c '%a %U %n' /data/cidata/*
say failed; systemctl --failed --plain --no-legend
say status; cloud-init status --long
true
"""

# A container of next to nothing: the links of a merged /usr, over this machine's own.
CONTAINER = r"""
tar -C / -c bin lib lib64 | docker import - edge-test >/dev/null
docker run --rm --network none --mount type=bind,source=/usr,target=/usr,readonly edge-test /usr/bin/echo started 2>&1
docker rmi edge-test >/dev/null
"""

# What the agent may open, asked from within its sandbox: every disk, whole and in parts, to read and to write.
SANDBOX = r"""
cat >/run/ask <<'ASK'
cd /dev
for device in nvme0n1*; do
  for way in '<' '>'; do
    if eval "exec 9$way/dev/$device" 2>/dev/null; then echo "$device $way yes"; else echo "$device $way no"; fi
    exec 9>&-
  done
done
for path in /run/edge/esp/EFI/edge /var/lib/edge-agent /data/cidata /etc /data/ssh /usr/local/bin /run/edge/slot; do
  if touch $path/.asked 2>/dev/null; then echo "$path yes" && rm $path/.asked; else echo "$path no"; fi
done
systemctl is-active chrony.service
ASK
mkdir -p /run/systemd/system/edge-agent.service.d
cat >/run/systemd/system/edge-agent.service.d/99-ask.conf <<'UNIT'
[Unit]
ConditionPathExists=
[Service]
Type=oneshot
WatchdogSec=0
Restart=no
ExecStart=
ExecStart=/bin/bash /run/ask
StandardOutput=truncate:/run/asked
UNIT
systemctl daemon-reload
systemctl start edge-agent.service; cat /run/asked
rm /run/systemd/system/edge-agent.service.d/99-ask.conf; systemctl daemon-reload
"""
# The time of a trial, shortened, when it has been found good and when it has not. The last line restarts the machine.
JUDGE = r"""
set -e
cd /run/edge/esp/EFI/edge
cp grubenv /run/grubenv
sed 's/^edge_default=a/edge_default=b/' /run/grubenv >grubenv
systemctl start edge-trial.service && echo "found good: goes on"
cat /run/grubenv >grubenv
mkdir -p /etc/systemd/system/edge-trial.timer.d
printf '[Timer]\nOnBootSec=\nOnBootSec=1s\n' >/etc/systemd/system/edge-trial.timer.d/soon.conf
# The timer's end, which reading its new time may bring about, takes this shell with it: not before it has answered.
setsid sh -c 'sleep 3; systemctl daemon-reload; systemctl restart edge-trial.timer' </dev/null >/dev/null 2>&1 &
"""


@dataclass
class Look:
    """What was found on a running device, by part."""

    text: str
    parts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in self.text.split("\n--- ")[1:]:
            name, _, rest = part.partition("\n")
            self.parts[name] = rest.strip("\n")

    def __getitem__(self, name: str) -> str:
        return self.parts[name]


def seed(folder: Path, site: str, device: str) -> Path:
    """A site's seed as `reconciler site render` writes it, with the test's shell added to its user-data."""
    fleet, vault, out = folder / "fleet", folder / "secrets", folder / "seed"
    shutil.copytree(ROOT / "fleet", fleet)
    (fleet / "sites" / "SITE-9001.yaml").write_text(PLAIN_SITE)
    (vault / "edge" / "SITE-2847").mkdir(parents=True, mode=0o700)
    vault.chmod(0o700)
    secret = vault / "edge" / "SITE-2847" / "vpn"
    secret.write_text(TUNNEL)
    secret.chmod(0o600)
    argv = [sys.executable, "-c", "from reconciler.cli.main import main; main()", "site", "render", site]
    argv += ["--device", device, "--fleet", str(fleet), "--secrets", str(vault), "--output", str(out)]
    subprocess.run(argv, check=True, capture_output=True, cwd=ROOT)
    user_data = out / "user-data"
    user_data.write_text(with_shell(user_data.read_text()))
    return out


def install(image: Path, folder: Path, site: str, device: str) -> Disk:
    """An install disk of the image, for a device of a site."""
    files = read_seed(seed(folder, site, device))
    return make_disk(open_source(image), folder / "disk.img", slot_size=SLOT_BYTES, data_size=256 * MIB, seed=files)


def look(machine: Machine, timeout_s: float = BOOT_S) -> Look:
    """Wait until cloud-init has finished and say what the device is like."""
    machine.wait_for(r"Cloud-init v\. \S+ finished at", timeout_s, never=r"Kernel panic|emergency mode")
    machine.wait_shell(120)
    return Look(machine.out(LOOK, 240))


def health(machine: Machine, lacking: frozenset[str] = frozenset()) -> tuple[int, dict[str, dict[str, Any]]]:
    """healthcheck.sh's exit status and checks by name; services get two minutes to settle, as the agent gives them.
    `lacking` names what the site has and a virtual machine cannot reach."""
    for _ in range(12):
        done = machine.run("healthcheck.sh --json", 120)
        checks = {check["name"]: check for check in json.loads(done.text)["checks"]}
        if {name for name, check in checks.items() if check["status"] == "critical"} <= lacking:
            break
        machine.run("sleep 10")
    return done.status, checks


@dataclass
class Days:
    """What the first machine showed, boot by boot, and its disk, switched off."""

    disk: Disk
    raw_digest: str
    raw_size: int
    first: Look
    checks: dict[str, dict[str, Any]]
    status: int
    container: str
    after_power_off: str
    allowed: dict[str, str]
    trial: Look
    environment: dict[str, str]
    judged: str
    console: str


@pytest.fixture(scope="module")
def days(golden_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Days]:
    folder = tmp_path_factory.mktemp("days")
    disk = install(golden_image, folder, "SITE-9001", "SITE-9001-1")
    with disk.path.open("r+b") as file:
        file.truncate(disk.layout.size + GROWN_BYTES)
    with Machine(
        disk.path, folder / "vm", more=("-device", "i6300esb", "-action", "watchdog=reset")
    ).start() as machine:
        first = look(machine)
        status, checks = health(machine)
        container = machine.out(CONTAINER, 300)
        asked = machine.out(SANDBOX, 240)
        allowed = {what: answer for what, _, answer in (line.rpartition(" ") for line in asked.splitlines())}
        machine.power_off()
        after = disks.digest_of(disk, disk.layout.root_a, disk.slot.size)
        # The next release arrives in slot b, and is tried once.
        disks.write_slot(disk, disk.layout.root_b, golden_image)
        disks.set_environment(disk, edge_default="a", edge_trial="b", edge_tries="1")
        machine.start()
        trial = look(machine)
        environment = disks.environment(disk)
        # Nobody marks it good: no agent is enrolled here. The machine restarts by itself.
        judged = machine.out(JUDGE, 120)
        machine.wait_for(r"Command line: .* edge\.slot=a ", BOOT_S)
        machine.cut()
        console = machine.log.read_text("utf-8", "replace")
    yield Days(
        disk,
        disk.slot.digest,
        disk.slot.size,
        first,
        checks,
        status,
        container,
        after,
        allowed,
        trial,
        environment,
        judged,
        console,
    )
    disk.path.unlink()


@pytest.fixture(scope="module")
def other(golden_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Look, dict[str, Any], str]]:
    folder = tmp_path_factory.mktemp("other")
    disk = install(golden_image, folder, "SITE-2847", "SITE-2847-1")
    with Machine(disk.path, folder / "vm", bus="virtio").start() as machine:
        found = look(machine)
        checks = health(machine, LACKING)[1]
        tunnel = machine.out("stat -c '%a %U' /etc/wireguard/wg0.conf; cat /etc/wireguard/wg0.conf; wg show wg0 peers")
        yield found, checks, tunnel
    disk.path.unlink()


def test_the_device_is_its_sites(days: Days) -> None:
    assert 'SITE_ID="SITE-9001"' in days.first["environment"].splitlines()
    assert days.first["hostname"] == "site-9001-1"
    assert "server ntp1.site-9001.example iburst" in days.first["chrony"]
    # It knows both, and can't find them in a network that leads nowhere.
    assert re.search(r"^2 sources with unknown address", days.first["chrony"], re.MULTILINE), days.first["chrony"]
    assert "status: done" in days.first["status"]
    assert [line.split()[:2] for line in days.first["seed"].splitlines()] == [["600", "root"]] * 4


def test_its_image_says_what_it_is(days: Days) -> None:
    assert days.first["version"].splitlines()[0] == f"current={golden.RELEASE}"


def test_it_is_closed_to_strangers(days: Days) -> None:
    assert "Status: active" in days.first["ufw"]
    assert set(days.first["sshd"].splitlines()) == {
        "passwordauthentication no",
        "permitrootlogin no",
        "kbdinteractiveauthentication no",
        "authenticationmethods publickey",
    }
    # A real attempt: the server answers, and offers nothing that a password could be typed into.
    assert "Authentications that can continue: publickey" in days.first["login"]
    assert "Permission denied (publickey)" in days.first["login"] and "Authenticated" not in days.first["login"]
    assert "pong" in days.first["fail2ban"] and "Status for the jail: sshd" in days.first["fail2ban"]


def test_a_container_starts(days: Days) -> None:
    assert days.container.strip() == "started"


def test_it_can_be_watched(days: Days) -> None:
    assert "node_boot_time_seconds" in days.first["exporter"]


def test_its_health_is_good(days: Days) -> None:
    assert days.status in (0, 1), days.checks
    bad = {name: check["message"] for name, check in days.checks.items() if check["status"] == "critical"}
    assert not bad
    for name in ("docker", "firewall", "ssh", "fail2ban", "metrics", "data", "vpn", "cameras"):
        assert days.checks[name]["status"] == "ok", days.checks[name]
    assert days.first["failed"] == ""


def test_the_slot_runs_read_only_and_keeps_its_bytes(days: Days) -> None:
    assert " edge.slot=a " in days.first["cmdline"]
    parts = {"data": 4, "esp": 1, "root-a": 2, "root-b": 3}
    assert days.first["storage"].splitlines() == ["slot=a", *(f"{name}=/dev/nvme0n1p{n}" for name, n in parts.items())]
    mounts = {line.split()[1]: line.split() for line in days.first["mounts"].splitlines()}
    assert mounts["/"][2] == "overlay" and "lowerdir=/run/edge/slot" in mounts["/"][3]
    assert mounts["/run/edge/slot"][3].split(",")[0] == "ro"
    assert "Read-only file system" in days.first["readonly"]
    assert days.after_power_off == days.raw_digest
    for slot in (days.disk.layout.root_a, days.disk.layout.root_b):
        assert disks.digest_of(days.disk, slot, days.raw_size) == days.raw_digest


def test_the_data_partition_reaches_the_end_of_a_larger_disk(days: Days) -> None:
    sizes = dict(line.split()[:2] for line in days.first["data"].splitlines() if line.startswith("edge-data"))
    assert int(sizes["edge-data"]) > GROWN_BYTES
    assert int(days.first["data"].splitlines()[-1]) > GROWN_BYTES * 9 // 10
    assert "No errors detected" in days.first["table"]


def test_a_trial_of_slot_b_boots_once_and_is_spent(days: Days) -> None:
    assert " edge.slot=b " in days.trial["cmdline"] and days.trial["storage"].startswith("slot=b")
    assert days.environment == {"edge_default": "a", "edge_trial": "b", "edge_tries": "0"}
    assert re.findall(r"Command line: .* edge\.slot=(\w)", days.console) == ["a", "b", "a"]


def test_a_trial_that_nobody_found_good_goes_back_by_itself_and_one_that_was_goes_on(days: Days) -> None:
    assert "edge.trial=1" not in days.first["cmdline"] and " edge.trial=1" in days.trial["cmdline"]
    assert days.first["units"].split() == ["active", "inactive"]
    assert days.trial["units"].split() == ["active", "active"]
    # The initrd has started the watchdog on trial alone; systemd feeds it on any boot.
    said = re.findall(r"edge: on trial: (\S+) resets the machine after (\d+) s", days.console)
    assert said == [("i6300esb", "180")]
    for boot in (days.first, days.trial):
        assert boot["watchdog"].splitlines() == ["i6300ESB timer", "active", "120"]
    assert days.judged == "found good: goes on"


def test_the_esp_is_there_for_the_agent_alone(days: Days) -> None:
    mounted, mode, *names = days.first["esp"].splitlines()
    source, kind, options = mounted.split()
    assert (source, kind) == ("/dev/nvme0n1p1", "vfat") and mode == "700 root"
    assert {"rw", "sync", "dirsync", "nodev", "noexec", "nosuid", "fmask=0077", "dmask=0077"} <= set(options.split(","))
    assert names == ["grubenv", "grubenv.bak"]
    assert days.first["command"].splitlines()[0] == "/usr/lib/edge-agent/edge-agent.pyz"
    assert days.first["command"].splitlines()[1].startswith("edge-agent ")


def test_the_agent_may_write_the_other_slot_read_its_own_and_open_no_other_disk(days: Days) -> None:
    devices = {what: answer for what, answer in days.allowed.items() if what.startswith("nvme")}
    assert len(devices) == 10
    assert {what for what, answer in devices.items() if answer == "yes"} == {
        "nvme0n1p2 <",
        "nvme0n1p3 <",
        "nvme0n1p3 >",
    }
    folders = {what: answer for what, answer in days.allowed.items() if what.startswith("/")}
    may = {"/run/edge/esp/EFI/edge", "/var/lib/edge-agent", "/data/cidata", "/etc"}
    assert {what for what, answer in folders.items() if answer == "yes"} == may
    # systemd answers from within.
    assert days.allowed[""] == "active"


def test_who_it_is_outlives_boots_and_slots(days: Days) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", days.first["machineid"])
    for part in ("machineid", "hostkeys", "hostname", "environment"):
        assert days.first[part] == days.trial[part]
    assert days.first["hostkeys"].count("ssh-") >= 2 or "ecdsa" in days.first["hostkeys"]


def test_another_device_is_another(days: Days, other: tuple[Look, dict[str, Any], str]) -> None:
    found, checks, tunnel = other
    assert found["machineid"] != days.first["machineid"]
    assert not set(found["hostkeys"].splitlines()) & set(days.first["hostkeys"].splitlines())
    assert 'SITE_ID="SITE-2847"' in found["environment"].splitlines() and found["hostname"] == "site-2847-1"
    cameras = [line for line in found["cameras"].splitlines() if not line.startswith("#")]
    assert cameras == [f"203.0.113.{number}" for number in range(41, 47)]
    mode, *config = tunnel.splitlines()
    assert mode == "600 root" and textwrap.dedent(TUNNEL).strip() in "\n".join(config)
    assert config[-1] == "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
    # What a virtual machine cannot have, and nothing else.
    assert {name for name, check in checks.items() if check["status"] == "critical"} == LACKING
