"""A device with two partitions for benchmarks: the agent as an image holds it, in a process of its own, over files.

The zip application is run by the system's own Python with the flags of its unit, and with the parts that `opening` puts together
for `hardware: partitions`: partitions, boot loader, seed, containers. Only places differ: slots are files, the ESP, what the
initrd tells and the data partition are folders, the container runtime is a program that names one container, and a reboot is a
file. The server is the real service, over TLS if asked for; assignments are signed by a real key, and judged by gpgv.

ROOT/agent.pyz agent.json launch.py token     what runs
ROOT/slot-a.img slot-b.img esp/ run/ agent/    as in tests.agent.bench
ROOT/rebooted                                  a reboot was asked for
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.agent import slotroot
from reconciler.agent.disk import Disk
from reconciler.agent.records import Records
from reconciler.image.agent_app import application
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import Facts
from reconciler.ports import AssignmentRow, Decision
from reconciler.protocol import merkle
from reconciler.protocol.assignment import Assignment, ImageTarget
from reconciler.protocol.bundle import Root
from reconciler.protocol.report import Slot
from reconciler.server.app import create_app
from reconciler.server.options import Limits, Options, Policy
from reconciler.server.run import HttpServer, Tls
from reconciler.server.tokens import hash_token, make_token
from tests.agent.firmware import choose, new_esp
from tests.agent.world import Keys
from tests.support.system import need

DEVICE, SITE = "SITE-2847-1", "SITE-2847"
SLOT_BYTES = 4 << 30
_APP = "0" * 64
_RUNTIME = f"#!/bin/sh\n[ \"$1\" = ps ] && printf 'video-ingest\\t{_APP}\\tregistry/video@sha256:{_APP}\\n'\nexit 0\n"
_LAUNCH = """
import sys
from pathlib import Path
root = Path(__file__).parent
sys.path[0] = str(root / "agent.pyz")
from reconciler.agent import lean
lean.defer()
from reconciler.agent import opening, settings
settings.STATE = root / "agent"

def partitions(disk):
    from reconciler.agent import clock, grub
    from reconciler.agent.activation import UnitActivation
    from reconciler.agent.containers import Containers
    from reconciler.agent.partitioned import PartitionedHardware, Places
    from reconciler.agent.partitions import FileSlots, PartitionSlots
    from reconciler.agent.seed import Seed
    run = root / "run"
    return PartitionedHardware(
        Places(run / "cmdline", run / "boot_id", run / "slot", run / "storage", run / "slot", root / "agent"),
        FileSlots(root / "slot-a.img", root / "slot-b.img", SLOT_BYTES),
        grub.GrubLoader(root / "esp", disk, check=lambda _esp: None),
        Seed(root / "cidata", disk, UnitActivation()),
        Containers(root / "agent" / "apps", disk, runtime=(str(root / "runtime"),)),
        clock=clock.ask, disk=disk, restart=(root / "rebooted").touch,
    )

opening._partitions = partitions
from reconciler.agent.main import main
sys.exit(main(["run", "--config", str(root / "agent.json")]))
"""


class Bench:
    """The service and one device: what is assigned, what was reported, when it boots."""

    def __init__(self, root: Path, keys: Keys, store: SqlStore) -> None:
        self.root, self._keys, self.store = root, keys, store

    def observed(self) -> DeviceObservation | None:
        found = self.store.observation(DEVICE)
        return found[0] if found else None

    def exchanges(self) -> int:
        """How many reports were sent, by the number of the last one."""
        found = self.store.observation(DEVICE)
        return found[2] if found else 0

    def assign(self, release: str, digest: str) -> None:
        """An assignment as a tick records it: under a root of its own, signed, its window waived."""
        now, epoch = datetime.now(UTC), self.store.begin_epoch()
        document = Assignment(
            device=DEVICE,
            serial=(epoch, self.store.next_serial(epoch, 1)),
            issued_at=now,
            expires_at=now + timedelta(hours=1),
            image=ImageTarget(release, digest, f"edge-golden-{release}-20300101"),
            window_waived=True,
        )
        data, expires_at = document.to_bytes(), document.expires_at
        tree = merkle.build([data])
        head = Root(tree.root, 1, epoch, now).to_bytes()
        signed = self._keys.home.sign_detached(head, self._keys.assignment)
        n, proof = document.serial[1], tuple(tree.proof(0))
        row = AssignmentRow(DEVICE, epoch, n, data, proof, 0, head, signed, expires_at)
        self.store.record(epoch, Decision(now, "c0ffee", Facts(), assignments=(row,)))

    def boot(self) -> str:
        """What firmware, GRUB and initrd do. The slot that runs."""
        slot = choose(self.root / "esp", lambda name: slotroot.is_bootable(self.root / f"slot-{name}.img"))
        assert slot is not None
        run = self.root / "run"
        (run / "slot").unlink(missing_ok=True)
        (run / "slot").symlink_to(self.root / f"tree-{slot}")
        (run / "cmdline").write_text(f"root=PARTLABEL=root-{slot} ro edge.slot={slot}\n")
        (run / "boot_id").write_text(f"{uuid.uuid4()}\n")
        (run / "storage").write_text(f"slot={slot}\ndata=/dev/sda4\n")
        (self.root / "rebooted").unlink(missing_ok=True)
        return slot

    @contextmanager
    def agent(self) -> Iterator[int]:
        """The agent's process, from its start to SIGTERM; its id."""
        python = next(path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists())
        command = [python, "-IB", "-X", "faulthandler", str(self.root / "launch.py")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait(30)

    def await_exchanges(self, count: int) -> None:
        """Until so many reports were sent. RuntimeError: they do not come."""
        ends = time.monotonic() + 30 + 3 * count
        while self.exchanges() < count:
            if time.monotonic() > ends:
                raise RuntimeError(f"the agent has made {self.exchanges()} exchanges, and {count} were waited for")
            time.sleep(0.2)


@contextmanager
def bench(root: Path, keys: Keys, tls: Tls | None = None) -> Iterator[Bench]:
    """A service that asks for a report every second, and a device that nothing was put into yet."""
    for name in ("run", "agent/keys"):
        (root / name).mkdir(parents=True)
    new_esp(root / "esp", "a")
    for purpose, fingerprint in (("assignment", keys.assignment), ("release", keys.release)):
        (root / "agent" / "keys" / f"{purpose}.gpg").write_bytes(keys.ring(fingerprint))
        (root / "agent" / "keys" / f"{purpose}.fpr").write_text(f"{fingerprint}\n")
    store, token = open_store(root / "store.db"), make_token()
    store.add_token(DEVICE, hash_token(token), datetime.now(UTC))
    options = replace(
        Options(store=store, now=lambda: datetime.now(UTC), access=store.access),
        policy=lambda: replace(Policy(), report_every_s=1),
        limits=replace(Limits(), per_device=(1000.0, 1000)),
        tls=tls is not None,
    )
    with HttpServer(create_app(options), "127.0.0.1", 0, tls) as server:
        (root / "token").write_text(token)
        (root / "agent.pyz").write_bytes(application())
        (root / "launch.py").write_text(_LAUNCH.replace("SLOT_BYTES", str(SLOT_BYTES)))
        (root / "runtime").write_text(_RUNTIME)
        (root / "runtime").chmod(0o755)
        said = {"device": DEVICE, "site": SITE, "server": server.address, "tokenFile": str(root / "token")}
        said |= {"hardware": "partitions", **({"caFile": str(tls.certificate)} if tls else {})}
        (root / "agent.json").write_text(json.dumps(said))
        yield Bench(root, keys, store)
    store.close()


def fill(root: Path, slot: str, release: str, *, mapped: int = 0, check_s: float = 0) -> str:
    """Put an image into a slot, as one that was good: so many bytes of it hold something, and its healthcheck takes `check_s`.
    Its digest."""
    tree, file = root / f"tree-{slot}", root / f"slot-{slot}.img"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "edge-release").write_text(f"RELEASE={release}\n")
    script = tree / "usr" / "local" / "bin" / "healthcheck.sh"
    script.parent.mkdir(parents=True)
    answer = json.dumps({"checks": [{"name": "disk", "status": "ok", "message": ""}], "status": "ok"})
    script.write_text(f"#!/bin/sh\nsleep {check_s:g}\necho '{answer}'\n")
    script.chmod(0o755)
    with open(tree / "payload", "wb") as payload:
        for _ in range(mapped >> 20):
            payload.write(os.urandom(1 << 20))
    size = (mapped >> 20) * 9 // 8 + 16
    command = [
        need("mke2fs", "e2fsprogs"),
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-d",
        str(tree),
        str(file),
        f"{size}M",
    ]
    subprocess.run(command, check=True, capture_output=True)
    (tree / "payload").unlink()
    digest, image = hashlib.sha256(), file.stat().st_size
    with open(file, "rb") as opened:
        while data := opened.read(1 << 20):
            digest.update(data)
    os.truncate(file, SLOT_BYTES)
    held = Slot(release, f"sha256:{digest.hexdigest()}", True)
    Records(root / "agent" / "slots.json", Disk()).put(slot, held, image)
    return f"sha256:{digest.hexdigest()}"
