"""A device's site configuration changes while it runs: the image's own cloud-init and systemd, the agent's own seed.

The built image under systemd-nspawn; kernel and boot loader are for virtual machines. The tests go through the life of one
device, in order: each begins where the one before it left it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reconciler.agent.activation import UnitActivation
from reconciler.agent.disk import Disk
from reconciler.agent.seed import NotInForce, Seed
from reconciler.model.desired import FleetSpec, SiteSpec
from reconciler.protocol.exchange import SiteConfig
from reconciler.repo.render import config_digest, render_site, resolve
from tests.fleet.container import Container
from tests.support import golden
from tests.support.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(900)]
SITE, DEVICE = "SITE-2855", "SITE-2855-1"
FLEET = FleetSpec(registry="registry.example:5000")
WIREGUARD, IPSEC = ({"type": kind, "secretRef": f"edge/{SITE}/vpn"} for kind in ("wireguard", "ipsec"))
KEY, PSK = "sentinel-key-4711", "sentinel-psk-0815"
SECRETS = {
    "wireguard": f"[Interface]\nPrivateKey = {KEY}\nAddress = 10.9.0.2/24\n",
    "ipsec": "connections {\n  site {\n    remote_addrs = 192.0.2.1\n    local {\n      auth = psk\n    }\n"
    "    remote {\n      auth = psk\n    }\n    children {\n      net {\n        remote_ts = 10.0.0.0/8\n      }\n"
    f'    }}\n  }}\n}}\nsecrets {{\n  ike-site {{\n    secret = "{PSK}"\n  }}\n}}\n',
}
TUNNELS = ("/etc/wireguard/wg0.conf", "/etc/swanctl/conf.d/site.conf")
# What starts once the site is known, without the container's image that it would pull.
APP = "[Service]\nExecStartPre=\nExecStart=\nExecStart=sleep infinity\nExecStop=\nTimeoutStartSec=30\n"


def config(**changes: Any) -> SiteConfig:
    """What the server would send the device, for a spec with these changes."""
    raw = {"timezone": "Europe/Berlin", "devices": [DEVICE], "ntp": ["ntp.one.example"], "cameras": ["192.0.2.21"]}
    spec = SiteSpec.model_validate({**raw, **changes})
    rendering = render_site(SITE, spec, FLEET, DEVICE)
    digest = config_digest(SITE, spec, FLEET, dict.fromkeys(rendering.secret_refs, "1"))
    assert digest is not None
    kind = spec.vpn.type if spec.vpn is not None else ""
    return SiteConfig(digest, resolve(rendering, lambda _: SECRETS[kind], digest))


@dataclass
class Site:
    """The device, and its data partition as the host sees it."""

    root: Path
    folder: Path
    booted: list[Container] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def device(self) -> Container:
        return self.booted[-1]

    def boot(self) -> None:
        for container in self.booted:
            container.stop()
        self.booted.append(Container(self.root, self.folder / "slot", self.data, "configured"))

    def seed(self) -> Seed:
        """The agent's seed, with the device's own systemd."""
        enter = ["nsenter", "-t", str(self.device.first()), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        return Seed(self.data / "cidata", Disk(), UnitActivation(systemctl=[*enter, "systemctl"]))

    def put_in_force(self, seed: Seed) -> None:
        for wait_s in seed.activate():
            time.sleep(wait_s)

    def text(self, path: str) -> str:
        return self.device.says("cat", path)

    def is_there(self, path: str) -> bool:
        return self.device.run("test", "-e", path).returncode == 0

    def state(self, unit: str) -> str:
        return self.device.run("systemctl", "is-active", unit).stdout.strip()

    def app(self) -> str:
        """Process id of video-ingest."""
        return self.device.says("systemctl", "show", "--property=MainPID", "--value", "video-ingest.service").strip()

    def holders(self, text: str) -> dict[str, int]:
        """Files of the device that hold a text, and who may read them beside their owner."""
        done = self.device.run("grep", "-rlsF", "-e", text, "/etc", "/var", "/run", "/data", "/tmp")
        return {
            path: int(self.device.says("stat", "--format=%a", path), 8) & 0o077 for path in done.stdout.splitlines()
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.skip("needs root: systemd-nspawn")
    made = Site(golden.root(), tmp_path_factory.mktemp("configure"))
    for name in ("cidata", "log", "docker", "edge", "ssh", "video-ingest"):
        (made.data / name).mkdir(parents=True)
    made.data.chmod(0o755)
    override = made.folder / "slot" / "upper" / "etc" / "systemd" / "system" / "video-ingest.service.d" / "test.conf"
    override.parent.mkdir(parents=True)
    override.write_text(APP)
    for folder in override.parents:
        if folder == made.folder:
            break
        folder.chmod(0o755)
    first = config(vpn=IPSEC)
    for name, data in {**first.files, "digest": first.digest.encode()}.items():
        (made.data / "cidata" / name).write_bytes(data)
        (made.data / "cidata" / name).chmod(0o600)
    try:
        made.boot()
        made.device.wait()
        yield made
    finally:
        for container in made.booted:
            container.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def test_a_first_boot_puts_the_installed_seed_in_force(site: Site) -> None:
    assert site.seed().digest() == config(vpn=IPSEC).digest
    assert f'SITE_ID="{SITE}"' in site.text("/etc/environment")
    assert "ike-site" in site.text(TUNNELS[1]) and site.state("strongswan.service") == "active"
    assert site.state("video-ingest.service") == "active"
    stages = site.text("/run/cloud-init/status.json")
    site.put_in_force(site.seed())
    assert site.text("/run/cloud-init/status.json") == stages, "what is in force was put in force again"


def test_a_secret_is_in_files_of_root_alone_and_in_no_log(site: Site) -> None:
    found = site.holders(PSK)
    assert TUNNELS[1] in found and "/data/cidata/user-data" in found
    assert not any(found.values()), found
    assert not any(path.startswith("/var/log") for path in found)
    assert PSK not in site.device.says("journalctl", "--no-pager", "--boot")


def test_what_changed_is_put_in_force_without_a_reboot_and_the_app_goes_on(site: Site) -> None:
    app, seed = site.app(), site.seed()
    boot = site.text("/proc/sys/kernel/random/boot_id")
    changed = config(vpn=IPSEC, cameras=["192.0.2.22", "192.0.2.23"], ntp=["ntp.two.example"])
    seed.store(changed)
    site.put_in_force(seed)
    assert seed.digest() == changed.digest
    assert site.text("/etc/edge/cameras").split()[-2:] == ["192.0.2.22", "192.0.2.23"]
    assert "ntp.two.example" in site.text("/etc/chrony/sources.d/site.sources")
    assert site.state("strongswan.service") == "active"
    assert site.app() == app != "0", "video-ingest was restarted, and its environment is what it was"
    assert site.text("/proc/sys/kernel/random/boot_id") == boot


def test_a_tunnel_that_the_site_no_longer_has_goes(site: Site) -> None:
    app, seed = site.app(), site.seed()
    seed.store(config())
    site.put_in_force(seed)
    assert not any(site.is_there(path) for path in TUNNELS)
    assert site.state("strongswan.service") == "inactive"
    assert site.device.run("systemctl", "is-enabled", "strongswan.service").stdout.strip() == "disabled"
    assert "VPN_TYPE=none" in site.text("/etc/edge/site.env")
    # Its environment changed. It is only told to restart: what puts a configuration in force does not wait for it.
    wait_until(lambda: site.app() not in (app, "0"))


def test_a_file_that_only_the_configuration_before_had_goes(site: Site) -> None:
    seed, plain = site.seed(), config()
    text = plain.files["user-data"].decode()
    extra = '- path: "{}"\n  owner: "root:root"\n  permissions: "0600"\n  content: "hello"\n'
    more = extra.format("/etc/edge/extra") + extra.format("/etc/edge/second")
    files = {**plain.files, "user-data": text.replace("write_files:\n", f"write_files:\n{more}").encode()}
    seed.store(SiteConfig("sha256:" + "e" * 64, files))
    site.put_in_force(seed)
    assert site.text("/etc/edge/extra") == "hello"
    seed.put_back(plain.digest)
    site.put_in_force(seed)
    assert not site.is_there("/etc/edge/extra") and not site.is_there("/etc/edge/second")
    assert site.is_there("/etc/edge/cameras")


def test_a_service_that_does_not_run_with_it_is_told_and_the_one_before_comes_back(site: Site) -> None:
    seed, before = site.seed(), config()
    seed.store(config(vpn=WIREGUARD))  # Its key is none, so wg-quick fails.
    with pytest.raises(NotInForce, match="a service does not run with it") as caught:
        site.put_in_force(seed)
    assert caught.value.status == 13
    assert "wg-quick@wg0.service does not run" in site.device.says("journalctl", "-u", "edge-configure.service")
    seed.put_back(before.digest)
    site.put_in_force(seed)
    assert seed.digest() == before.digest
    assert not any(site.is_there(path) for path in TUNNELS)
    assert site.holders(KEY) == {}, "what was put back lies around with its secret"
    assert "VPN_TYPE=none" in site.text("/etc/edge/site.env")


@pytest.mark.parametrize("text", ["write_files: 5\n", "#cloud-config\nwrite_files: 5\n", "#cloud-config\n[\n"])
def test_what_cloud_init_would_not_understand_changes_nothing(text: str, site: Site) -> None:
    seed, before = site.seed(), config()
    seed.store(SiteConfig("sha256:" + "f" * 64, {**before.files, "user-data": text.encode()}))
    environment = site.text("/etc/environment")
    with pytest.raises(NotInForce, match="not one that cloud-init can read") as caught:
        site.put_in_force(seed)
    assert caught.value.status == 10
    assert site.text("/etc/environment") == environment
    seed.put_back(before.digest)
    site.put_in_force(seed)


def await_half(site: Site, wanted: SiteConfig) -> None:
    """Until cloud-init has begun to write files: it marks a step as done before it does it, and would skip it from here on."""
    cloud = site.folder / "slot" / "upper" / "var" / "lib" / "cloud"
    marker = cloud / "instances" / f"{DEVICE}-{wanted.digest[7:23]}" / "sem" / "config_write_files"
    wait_until(marker.exists, 240)


def test_one_that_was_killed_halfway_is_put_in_force_by_the_next(site: Site) -> None:
    # On a busy machine cloud-init may be done before the kill arrives: with another configuration it is tried again.
    for number in range(30, 50):
        if killed_halfway(site, config(vpn=IPSEC, cameras=[f"192.0.2.{number}"])):
            break
    else:
        pytest.fail("cloud-init was always done before it was killed")
    site.put_in_force(site.seed())
    assert f"192.0.2.{number}" in site.text("/etc/edge/cameras") and site.state("strongswan.service") == "active"


def killed_halfway(site: Site, wanted: SiteConfig) -> bool:
    """Have a configuration put in force, and kill what does it; whether that came in time."""
    seed = site.seed()
    seed.store(wanted)
    job = seed.activate()
    next(job)
    await_half(site, wanted)
    site.device.run("systemctl", "kill", "--signal=KILL", "edge-configure.service")
    try:
        for wait_s in job:
            time.sleep(wait_s)
    except NotInForce:
        return True
    return False


def test_power_cut_while_cloud_init_works_at_boot(site: Site) -> None:
    seed, wanted = site.seed(), config(cameras=["192.0.2.40"])
    seed.store(wanted)
    site.boot()
    await_half(site, wanted)
    site.boot()
    site.device.wait()
    assert "192.0.2.40" in site.text("/etc/edge/cameras")
    assert not any(site.is_there(path) for path in TUNNELS)
    stages = site.text("/run/cloud-init/status.json")
    site.put_in_force(site.seed())
    assert site.text("/run/cloud-init/status.json") == stages, "the boot had put it in force"


# The host's kernel need not know a medium's file system: finding and mounting it are played.
FAKES = {
    "blkid": "case $* in *LABEL=CIDATA*) [ ! -e /data/medium ] || echo /dev/medium ;; esac",
    "mount": 'for place; do :; done; cp -r /data/medium/. "$place"; : >/data/mounted',
    "umount": 'rm -rf "$1"',
}


def test_a_first_seed_and_an_enrolment_are_taken_from_a_medium_once(site: Site) -> None:
    bin_folder, medium, first, second = (
        site.data / "bin",
        site.data / "medium",
        config(),
        config(cameras=["192.0.2.50"]),
    )
    bin_folder.mkdir()
    for name, script in FAKES.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / name).chmod(0o755)
    (medium / "enrol").mkdir(parents=True)
    (medium / "enrol" / "agent.json").write_text("{}")
    (medium / "enrol" / "token").write_text("edge_sentinel")
    for name, data in {**first.files, "digest": first.digest.encode(), "README": b"not ours"}.items():
        (medium / name).write_bytes(data)
    shutil.rmtree(site.data / "cidata")
    (site.data / "cidata").mkdir(mode=0o700)
    prepare = ["env", "PATH=/data/bin:/usr/sbin:/usr/bin:/sbin:/bin", "/usr/local/lib/edge/configure", "prepare"]
    assert "the seed was taken from the medium /dev/medium" in site.device.says(*prepare)
    taken = {path.name: path for path in (site.data / "cidata").iterdir()}
    assert {name: path.read_bytes() for name, path in taken.items()} == {**first.files, "digest": first.digest.encode()}
    enrolled = [site.data / "edge" / name for name in ("agent.json", "token")]
    assert [path.read_text() for path in enrolled] == ["{}", "edge_sentinel"]
    assert {path.stat().st_mode & 0o777 for path in (*taken.values(), *enrolled)} == {0o600}
    for name, data in second.files.items():
        (medium / name).write_bytes(data)
    (site.data / "mounted").unlink()
    site.device.says(*prepare)
    assert not (site.data / "mounted").exists(), "a device that has its seed looks at no medium"
    assert site.seed().digest() == first.digest


def test_going_back_to_no_configuration_at_all(site: Site) -> None:
    seed = site.seed()
    shutil.rmtree(site.data / "cidata")
    (site.data / "cidata").mkdir(mode=0o700)
    site.put_in_force(seed)
    for path in ("/etc/edge/site.env", "/etc/edge/cameras", "/etc/chrony/sources.d/site.sources"):
        assert not site.is_there(path)
    assert SITE not in site.device.run("cat", "/etc/environment").stdout
    seed.store(config(vpn=IPSEC))
    site.put_in_force(seed)
    assert site.state("strongswan.service") == "active"
