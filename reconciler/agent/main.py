"""`edge-agent`: run the agent, run it until nothing is left to do, or do what a person on the console asks for.

Python 3.10, standard library only: runs as root on a device. Entry point: it reads the settings, has the hardware and the
supply opened, and holds the lock that keeps a second agent away. The loop is `loop`'s, the commands are `console`'s.
Exit status: 0 fine, 1 settings or state are wrong or what was asked for was refused, 2 wrong usage, 3 the server or the
running agent did not answer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from reconciler.agent import VERSION
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import Hardware, HardwareError
from reconciler.agent.settings import DEFAULT_FILES, DIRECTORY, Settings, SettingsError, read_settings
from reconciler.agent.state import StateError
from reconciler.protocol.signature import verify_detached

if TYPE_CHECKING:
    import argparse

    from reconciler.agent.console import Ended
    from reconciler.agent.device import Life
    from reconciler.agent.directory import DirectoryHardware
    from reconciler.agent.notify import Notifier
    from reconciler.agent.transport import HttpTransport

COMMANDS = {
    "run": "report and work until stopped (what the service runs)",
    "once": "report and work until nothing is left to do at once",
    "status": "show what the device runs, and what the agent is at",
    "apply": "ask the server now and do what is due now; never past a window or a check",
    "rollback": "switch to the other slot, if it was good, on trial (takes --yes)",
    "verify": "prove an artifact's folder, or a packed image in it, against the image's keys; writes nothing",
}
ANY_SIZE = 1 << 62


@dataclass(frozen=True)
class Options:
    """The command line."""

    command: str = "run"
    path: Path | None = None
    config: Path | None = None
    root: str | None = None
    server: str | None = None
    token_file: str | None = None
    device: str | None = None
    site: str | None = None
    json: bool = False
    yes: bool = False
    keys: Path | None = None


class Busy(Exception):
    """Another agent works on this root."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.command in ("run", "once"):
            return _work(options)
        from reconciler.agent.console import Declined

        try:
            status = _for_a_person(options)
            sys.stdout.flush()
            return status
        except Declined as error:
            print(f"edge-agent: {error}", file=sys.stderr)
            return error.status
        except BrokenPipeError:
            # Whoever read has seen enough. What is left must not be written when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
            return 1
        except OSError as error:
            remedy = "; run this as root" if isinstance(error, PermissionError) else ""
            print(
                f"edge-agent: {error.filename or options.command}: {error.strerror or error}{remedy}", file=sys.stderr
            )
            return 1
    except (SettingsError, StateError, HardwareError, Busy) as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _options(words: Sequence[str]) -> Options:
    # What the service says needs no parser: it would stay in memory, a MiB of it, for as long as the agent runs.
    if len(words) == 3 and words[0] == "run" and words[1] == "--config" and not words[2].startswith("-"):
        return Options(config=Path(words[2]))
    parser = _parser()
    options = Options(**vars(parser.parse_args(words)))
    if (options.path is not None) != (options.command == "verify"):
        parser.error("verify takes the path of an artifact, and nothing else does")
    return options


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Brings this device to what it is assigned.",
        epilog="commands: " + "; ".join(f"{name}: {what}" for name, what in COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {VERSION}")
    parser.add_argument("command", nargs="?", default="run", choices=tuple(COMMANDS), help="run, unless said")
    parser.add_argument("path", nargs="?", type=Path, help="verify: the artifact's folder, or the packed image in it")
    files = " or ".join(map(str, DEFAULT_FILES))
    parser.add_argument("--config", type=Path, help=f"settings, JSON (default: {files}, if it is there)")
    parser.add_argument("--root", metavar="DIR", help="the device as a folder: slots, boot flags, state")
    parser.add_argument("--server", metavar="URL", help="address of the reconciler")
    parser.add_argument("--token-file", metavar="FILE", help="file with this device's token")
    parser.add_argument("--device", metavar="NAME", help="name of this device")
    parser.add_argument("--site", metavar="NAME", help="name of its site")
    parser.add_argument("--json", action="store_true", help="status, once, verify: the result as JSON")
    parser.add_argument("--yes", action="store_true", help="rollback: do it")
    parser.add_argument("--keys", metavar="DIR", type=Path, help="verify: folder of release.gpg and release.fpr")
    return parser


def _settings(options: Options) -> Settings:
    given = {
        "device": options.device,
        "site": options.site,
        "server": options.server,
        "tokenFile": options.token_file,
        "root": options.root,
    }
    return read_settings(options.config, given)


# ---------------------------------------------------------------- the agent


def _work(options: Options) -> int:
    """`run` and `once`."""
    from reconciler.agent import loop
    from reconciler.agent.control import NAME, Control
    from reconciler.agent.notify import Notifier

    settings = _settings(options)
    with closing(Notifier()) as notifier, _lock(settings.root), _opened(settings, notifier) as (life, hardware):
        if options.command == "run":
            control = None
            # Without it the agent works all the same; only nobody can talk to it.
            try:
                control = Control(hardware.state_folder())
            except OSError as error:
                reason = f"{hardware.state_folder() / NAME} cannot be made: {error.strerror or error}"
                print(f"edge-agent: nobody on the console can ask this agent: {reason}", file=sys.stderr, flush=True)
            try:
                return loop.run(life, notifier, control)
            finally:
                if control is not None:
                    control.close()
        loop.once(life, notifier)
        from reconciler.agent import console

        shown = console.show(hardware, hardware.state_folder(), as_json=options.json)
        if not life.agent.reached:
            print(f"edge-agent: {life.agent.unreached_because}", file=sys.stderr)
            return 3
        return console.refused(loop.standing(life)) or shown


@contextmanager
def _opened(settings: Settings, notifier: Notifier) -> Iterator[tuple[Life, Hardware]]:
    """The present life of this device."""
    from reconciler.agent.device import Device, Resident
    from reconciler.agent.opening import open_hardware, open_supply
    from reconciler.agent.transport import HttpTransport

    disk = Disk()
    transport: HttpTransport
    with closing(HttpTransport(settings.server)) as transport:
        hardware = open_hardware(settings, disk)
        supply = open_supply(settings, hardware, transport, disk, verify_detached)
        parts = {"timing": settings.timing, "verify": verify_detached, "supply": supply, "pulse": notifier.alive}
        life: Life
        if settings.hardware == DIRECTORY:
            life = Device(settings.identity, cast("DirectoryHardware", hardware), transport, **parts)  # type: ignore[arg-type]
        else:
            life = Resident(settings.identity, hardware, transport, disk=disk, **parts)  # type: ignore[arg-type]
        try:
            _ = life.agent
            yield life, hardware
        finally:
            life.end()


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # A disk that went read-only after an error. The agent goes on there, and says so in its reports.
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(root / ".lock")
    except OSError as error:
        raise SettingsError(
            f"root {root} cannot be used: {error.strerror}; give --root a folder of this device"
        ) from None
    try:
        if not _takes(descriptor):
            raise Busy(f"another agent works on {root}; stop it first")
        yield
    finally:
        os.close(descriptor)


def _takes(descriptor: int) -> bool:
    """Whether the lock could be taken. Who only looks whether it is held (`_is_held`) holds it for an instant."""
    for is_last in (False, True):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_last:
                time.sleep(0.1)
        else:
            return True
    return False


def _is_held(root: Path) -> bool:
    """Whether an agent works on this root."""
    try:
        descriptor = os.open(root / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# ---------------------------------------------------------------- for a person


def _for_a_person(options: Options) -> int:
    from reconciler.agent import console
    from reconciler.agent.directory import DirectoryHardware

    if options.command == "verify":
        return _verify(options)
    if options.command == "status":
        hardware = _hardware(options)
        folder = hardware.state_folder()
        root = folder.parent if isinstance(hardware, DirectoryHardware) else folder
        return console.show(hardware, folder, as_json=options.json, is_held=lambda: _is_held(root))
    settings = _settings(options)
    hardware = _hardware(options)
    if options.command == "apply":
        return _done(options.command, settings, hardware).status
    if not options.yes:
        console.ask_first(hardware)
    wanted, words = console.other_slot(hardware)
    console.say(f"going back to {words}")
    return console.gone_back(hardware, wanted, _done(options.command, settings, hardware))


def _done(command: str, settings: Settings, hardware: Hardware) -> Ended:
    """Have it done by the agent that runs, or else do it here."""
    from reconciler.agent import console
    from reconciler.agent.notify import Notifier

    ended = console.ask_running(hardware.state_folder(), command)
    if ended is not None:
        return ended
    if _is_held(settings.root):
        raise console.Declined(f"the agent {console.deaf(hardware.state_folder())}", console.UNREACHED)
    # Quiet towards the service manager: this is not the service.
    with _lock(settings.root), _opened(settings, Notifier({})) as (life, _):
        return console.apply_here(life) if command == "apply" else console.rollback_here(life)


def _hardware(options: Options) -> Hardware:
    """The machine, to be looked at. A device as a folder needs nothing but its `--root` for that."""
    from reconciler.agent.directory import DirectoryHardware
    from reconciler.agent.opening import open_hardware

    root = Path(options.root) if options.root is not None else None
    if root is None or options.config is not None:
        settings = _settings(options)
        if settings.hardware != DIRECTORY:
            return open_hardware(settings)
        root = settings.root
    if not (root / "agent").is_dir():
        raise SettingsError(f"{root} is no device's folder; give --root the folder that `run` was given")
    return DirectoryHardware(root)


def _verify(options: Options) -> int:
    from reconciler.agent import console
    from reconciler.agent.keys import read_keyring

    path = options.path
    assert path is not None
    if not path.exists():
        raise console.Declined(f"{path} does not exist")
    if options.keys is not None:
        return console.verify(path, read_keyring("release", (options.keys,)), ANY_SIZE, as_json=options.json)
    hardware = _hardware(options)
    return console.verify(path, hardware.keyring("release"), hardware.slot_bytes(), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
