"""`edge-agent`: run the agent, run it until nothing is left to do, or show what it knows.

Python 3.10, standard library only: runs as root on a device. Entry point: it names the hardware and the transport,
holds the lock that keeps a second agent away, and is the only place that reads the clock and sleeps.
Exit status: 0 fine, 1 settings or state are wrong, 2 wrong usage, 3 the server could not be reached (`once`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import FrameType

from reconciler.agent import VERSION
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.agent.settings import DEFAULT_FILE, Settings, SettingsError, read_settings
from reconciler.agent.state import StateError, StateFile
from reconciler.agent.transport import HttpTransport

LONGEST_SLEEP_S = 60.0
ONCE_STEPS = 1000


class Busy(Exception):
    """Another agent works on this root."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    options = _parser().parse_args(arguments)
    given = {
        "device": options.device,
        "site": options.site,
        "server": options.server,
        "tokenFile": options.token_file,
        "root": options.root,
    }
    try:
        if options.command == "status":
            return _status(options.root, options.config, given)
        settings = read_settings(options.config, given)
        with _lock(settings.root), closing(HttpTransport(settings.server)) as transport:
            device = _device(settings, transport)
            try:
                return _once(device) if options.command == "once" else _run(device)
            finally:
                device.end()
    except (SettingsError, StateError, HardwareError, Busy) as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-agent", description="Brings this device to what it is assigned.")
    parser.add_argument("--version", action="version", version=f"edge-agent {VERSION}")
    parser.add_argument(
        "command",
        nargs="?",
        default="run",
        choices=("run", "once", "status"),
        help="run (default): report and work until stopped; once: until nothing is left to do now; status: show the state",
    )
    parser.add_argument("--config", type=Path, help=f"settings, JSON (default: {DEFAULT_FILE}, if it is there)")
    parser.add_argument("--root", metavar="DIR", help="the device as a folder: slots, boot flags, state")
    parser.add_argument("--server", metavar="URL", help="address of the reconciler")
    parser.add_argument("--token-file", metavar="FILE", help="file with this device's token")
    parser.add_argument("--device", metavar="NAME", help="name of this device")
    parser.add_argument("--site", metavar="NAME", help="name of its site")
    return parser


def _device(settings: Settings, transport: HttpTransport) -> Device:
    hardware = DirectoryHardware(settings.root, site=settings.identity.site, slot_bytes=settings.slot_bytes)
    device = Device(settings.identity, hardware, transport, timing=settings.timing)
    # A damaged state file ends the program here, not at the first report.
    _ = device.agent
    return device


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(
            f"root {root} cannot be used: {error.strerror}; give --root a folder of this device"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Busy(f"another agent works on {root}; stop it first") from None
    finally:
        os.close(descriptor)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _run(device: Device) -> int:
    """Until SIGTERM or SIGINT. A step is never cut short by them; the state would survive it, but nothing is gained."""
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while not stop.is_set():
        due = device.step(_now())
        # Never long at a time: the clock may be set back while the agent sleeps.
        stop.wait(min(max((due - _now()).total_seconds(), 0.0), LONGEST_SLEEP_S))
    return 0


def _once(device: Device) -> int:
    """Steps that are due now, until the next one lies in the future and the server was reached."""
    for _ in range(ONCE_STEPS):
        now = _now()
        due = device.step(now)
        if due > now + timedelta(seconds=1):
            break
    _print(device)
    if not device.agent.reached:
        print(f"edge-agent: {device.agent.unreached_because}", file=sys.stderr)
        return 3
    return 0


def _status(root: str | None, config: Path | None, given: dict[str, str | None]) -> int:
    """What is on record, without a report and without a lock. Needs no token and no server."""
    if root is None:
        root = str(read_settings(config, given).root)
    if not (Path(root) / "agent").is_dir():
        raise SettingsError(f"{root} is no device's folder; give --root the folder that `run` was given")
    hardware = DirectoryHardware(Path(root))
    print(json.dumps(_summary(hardware), indent=2))
    return 0


def _print(device: Device) -> None:
    print(json.dumps(_summary(device.hardware), indent=2))


def _summary(hardware: DirectoryHardware) -> dict[str, object]:
    memory = StateFile(hardware.state_folder() / "state.json", Disk()).load()
    flags, version, intent = hardware.flags(), hardware.version(), memory.intent
    return {
        "booted": hardware.booted(),
        "default": flags.default,
        "trial": flags.trial,
        "slots": {
            name: {"release": slot.release, "digest": slot.digest, "good": slot.good}
            for name, slot in hardware.slots().items()
        },
        "current": version.current,
        "previous": version.previous,
        "serial": list(memory.last_serial) if memory.last_serial else None,
        "intent": {"kind": intent.kind, "key": intent.key} if intent else None,
        "attempts": dict(memory.attempts),
        "config": hardware.config_digest(),
        "apps": dict(hardware.apps()),
    }


if __name__ == "__main__":
    sys.exit(main())
