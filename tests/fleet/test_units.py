"""The units of the golden image as systemd reads them: the sandbox of the agent, what starts when, and who ends a trial."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.system import need

RECIPE = Path(__file__).parents[2] / "fleet" / "images" / "edge-golden"
UNITS = RECIPE / "rootfs/etc/systemd/system"
AGENT = UNITS / "edge-agent.service"


def unit(path: Path) -> configparser.ConfigParser:
    """A unit file; of a key that is there several times, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


@pytest.mark.system
def test_the_agents_sandbox_is_as_strict_as_its_work_allows() -> None:
    argv = [need("systemd-analyze", "systemd"), "security", "--offline=true", "--no-pager", "--json=short", str(AGENT)]
    # It fails above 2.5 of 10; without a sandbox it would be 9.6.
    done = subprocess.run([*argv, "--threshold=25"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    open_still = {row["json_field"] for row in json.loads(done.stdout) if row["set"] is False}
    # Root, with block devices and the network; two capabilities. Modules are hidden from nobody who checks
    # that they are there, but to load one takes a capability and system calls that are closed.
    assert open_still == {
        "RootDirectoryOrRootImage",
        "UserOrDynamicUser",
        "PrivateDevices",
        "CapabilityBoundingSet_CAP_DAC_FOWNER_IPC_OWNER",
        "CapabilityBoundingSet_CAP_NET_ADMIN",
        "PrivateMounts",
        "RestrictAddressFamilies_AF_NETLINK",
        "RestrictAddressFamilies_AF_UNIX",
        "RestrictAddressFamilies_AF_INET_INET6",
        "ProcSubset",
        "ProtectKernelModules",
        "PrivateNetwork",
        "PrivateUsers",
        "DeviceAllow",
        "IPAddressDeny",
    }


def test_the_agent_leaves_the_machine_to_the_app() -> None:
    service = unit(AGENT)["Service"]
    app = unit(UNITS / "video-ingest.service")["Service"]
    assert int(service["CPUWeight"]) <= 20 and int(service["IOWeight"]) <= 10 and int(service["Nice"]) >= 10
    assert not {"CPUWeight", "IOWeight", "Nice"} & set(app)
    # zstd's widest window, the agent at its largest, and room for pages on their way to the disk.
    assert (128 + 64) << 20 < int(service["MemoryMax"].removesuffix("M")) << 20 <= 256 << 20


def test_the_healthcheck_knows_after_what_silence_systemd_ends_the_agent() -> None:
    (said,) = re.findall(r"^readonly AGENT_SILENCE_S=(\d+)", (RECIPE / "healthcheck.sh").read_text(), re.MULTILINE)
    assert unit(AGENT)["Service"]["Type"] == "notify"
    assert unit(AGENT)["Service"]["WatchdogSec"] == f"{int(said) // 60}min"


def test_a_trial_is_ended_whatever_else_runs_or_fails() -> None:
    for name in ("edge-trial.timer", "edge-trial.service"):
        section = unit(UNITS / name)["Unit"]
        assert section["ConditionKernelCommandLine"] == "edge.trial=1"
        assert (section["DefaultDependencies"], section["IgnoreOnIsolate"]) == ("no", "yes")
    assert unit(UNITS / "edge-trial.service")["Unit"]["FailureAction"] == "reboot"
    assert "edge-trial.timer" in (RECIPE / "rootfs/etc/systemd/system-preset/10-edge.preset").read_text()


def test_the_initrd_starts_only_watchdogs_that_the_image_keeps() -> None:
    kept = (RECIPE / "modules.txt").read_text() + (RECIPE / "debian-12.yaml").read_text()
    lines = (RECIPE / "rootfs/etc/initramfs-tools/edge-watchdogs").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert [row[0] for row in rows][-1] == "softdog", "what the kernel alone can do comes last"
    for driver, parameter, *_ in rows:
        assert parameter in ("heartbeat", "timeout", "soft_margin")
        family = {"ipmi_watchdog": "drivers/char/ipmi/*", "iTCO_wdt": "drivers/watchdog/iTCO*"}
        assert family.get(driver, f"drivers/watchdog/{driver}") in kept
