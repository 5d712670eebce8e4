"""A virtual machine under QEMU, for tests that need a device: UEFI, one disk, a serial console, and no network.

Emulated throughout (TCG), in the fastest configuration that was measured; works where no hardware virtualisation is.
The machine's disk is a file that the test made for it. The console is read by states ("this line has been seen since"),
never by echoes. QMP is for what hands do: power, reset. Nothing that it starts outlives `close`.

The golden image has no shell on any console, and none is added: a *test's seed* may ask cloud-init for one on the
second serial port (`with_shell`), which a `Machine` then speaks to with `run`.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.system import need

FIRMWARE = Path("/usr/share/OVMF")
FORWARD = Path(__file__).with_name("forward.py")
GATEWAY = "10.0.2.100"
"""Where a machine finds the ports of this machine's loopback that it was given."""
# Measured: two threads and a large translation cache; a plain CPU model, whose features are cheap to emulate.
TCG = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq")
SHELL_UNIT = """\
[Unit]
Description=Commands of the test that runs this machine
DefaultDependencies=no
After=systemd-remount-fs.service
[Service]
Type=simple
ExecStart=/usr/local/sbin/edge-test-shell
Restart=always
[Install]
WantedBy=sysinit.target
"""
SHELL = """\
#!/bin/bash
# One command a line: a number and a script in base64. The answer: the number, the exit status, the output in base64.
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
while IFS=' ' read -r -u 3 id text; do
  out=$(base64 -d <<<"$text" | timeout 280 bash 2>&1 3>&- | base64 -w 0; exit "${PIPESTATUS[1]}")
  printf 'edge %s %s %s\\n' "$id" "$?" "$out" >&3
done
"""


class MachineError(AssertionError):
    """The machine did not do what the test waited for; ends with the last lines of its console."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command's exit status and what it printed, errors included."""

    status: int
    text: str


def with_shell(user_data: str) -> str:
    """A site's user-data with a shell for the test on the second serial port, and nothing else changed."""
    import yaml

    tree: dict[str, Any] = yaml.safe_load(user_data)
    tree.setdefault("write_files", []).extend(
        [
            {"path": "/usr/local/sbin/edge-test-shell", "permissions": "0755", "content": SHELL},
            {"path": "/etc/systemd/system/edge-test-shell.service", "content": SHELL_UNIT},
        ]
    )
    tree.setdefault("bootcmd", [])
    tree.setdefault("runcmd", []).append(["systemctl", "enable", "--now", "edge-test-shell.service"])
    return "#cloud-config\n" + yaml.safe_dump(tree, sort_keys=False)


def _ahead() -> list[str]:
    """What starts a machine ahead of what else runs here, where that is allowed.

    The firmware's clock ticks in real time. Emulated by a processor that others keep busy, a tick takes longer than the time to the
    next one, and the loader, which runs beneath these ticks, never gets on: a machine was seen to stand in GRUB for twenty minutes.
    """
    return ["nice", "-n", "-10"] if os.geteuid() == 0 else []


class Machine:
    """One machine with the disk image `disk` (raw, written to) and its own firmware variables below `folder`.

    `secure_boot`: firmware with Microsoft's keys enrolled, which starts nothing that they have not signed. `ports`: TCP ports of
    this machine's loopback that it reaches at `GATEWAY`, and nothing else; they stand in its serial number.
    """

    def __init__(
        self,
        disk: Path,
        folder: Path,
        *,
        bus: str = "nvme",
        memory_mib: int = 2048,
        secure_boot: bool = False,
        read_only: bool = False,
        ports: Sequence[int] = (),
        more: Sequence[str] = (),
    ) -> None:
        self._qemu = need("qemu-system-x86_64", "qemu-system-x86")
        self._disk, self._folder, self._bus, self._memory = disk, folder, bus, memory_mib
        self._secure, self._read_only, self._more = secure_boot, read_only, tuple(more)
        self._ports = tuple(ports)
        self._child: subprocess.Popen[bytes] | None = None
        self._qmp: socket.socket | None = None
        self._shell: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._seen = 0
        self._sockets = ""
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "console.log"

    # ------------------------------------------------------------ power

    def start(self) -> Self:
        """Switch it on. The console's log is continued."""
        assert self._child is None, "it is on"
        # Not below the test's folder: a socket's path has 107 characters.
        self._sockets = tempfile.mkdtemp(prefix="vm-")
        errors = (self._folder / "qemu.log").open("ab")
        with errors:
            self._child = subprocess.Popen(
                [*_ahead(), *self._argv()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        self._qmp = self._connect("qmp")
        self._answer()
        self._shell = self._connect("shell")
        self.qmp("qmp_capabilities")
        self.qmp("cont")
        return self

    def _argv(self) -> list[str]:
        code, variables = ("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd") if self._secure else ("OVMF_CODE_4M.fd",) * 2
        if not self._secure:
            variables = "OVMF_VARS_4M.fd"
        kept = self._folder / "firmware.fd"
        if not (FIRMWARE / code).exists():
            need("ovmf-firmware", "ovmf")
        if not kept.exists():
            shutil.copyfile(FIRMWARE / variables, kept)
        drive = f"file={self._disk},format=raw,if=none,id=disk,cache=unsafe,discard=unmap,detect-zeroes=unmap"
        drive += ",readonly=on" if self._read_only else ""
        device = {"nvme": "nvme,drive=disk,serial=edge0", "virtio": "virtio-blk-pci,drive=disk"}[self._bus]
        # fmt: off
        return [
            self._qemu, "-nodefaults", "-no-user-config", "-display", "none", "-S",
            "-machine", f"q35,smm={'on' if self._secure else 'off'}", *TCG, "-smp", "2", "-m", str(self._memory),
            *(("-global", "driver=cfi.pflash01,property=secure,value=on") if self._secure else ()),
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE / code}",
            "-drive", f"if=pflash,format=raw,unit=1,file={kept}",
            "-drive", drive, "-device", f"{device},bootindex=1",
            "-netdev", ",".join(["user,id=net,restrict=on", *self._forwards()]),
            "-device", "virtio-net-pci,netdev=net,romfile=",
            *(("-smbios", f"type=1,serial={'.'.join(map(str, self._ports))}") if self._ports else ()),
            "-device", "virtio-rng-pci",
            "-chardev", f"file,id=console,path={self.log},append=on", "-serial", "chardev:console",
            "-chardev", f"socket,id=shell,path={self._sockets}/shell,server=on,wait=off", "-serial", "chardev:shell",
            "-qmp", f"unix:{self._sockets}/qmp,server=on,wait=off",
            *self._more,
        ]
        # fmt: on

    def _forwards(self) -> list[str]:
        """A program for each connection: what QEMU itself forwards to, it connects to once."""
        program = f"{sys.executable} -ISE {FORWARD}"
        return [f"guestfwd=tcp:{GATEWAY}:{port}-cmd:{program} {port}" for port in self._ports]

    def _connect(self, name: str) -> socket.socket:
        end = time.monotonic() + 20
        while True:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.connect(f"{self._sockets}/{name}")
                return made
            except OSError:
                made.close()
                if time.monotonic() > end or not self.is_on():
                    raise MachineError(f"QEMU did not start: {self._tail(self._folder / 'qemu.log')}") from None
                time.sleep(0.05)

    def is_on(self) -> bool:
        """Does it run?"""
        return self._child is not None and self._child.poll() is None

    def power_off(self, timeout_s: float = 120) -> None:
        """Press the power button and wait until the system has stopped."""
        self.qmp("system_powerdown")
        self.wait_off(timeout_s)

    def wait_off(self, timeout_s: float = 120) -> None:
        """Wait until it has switched itself off."""
        assert self._child is not None
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise MachineError(f"it did not switch off within {timeout_s:g} s\n{self.tail()}") from None
        self.cut()

    def reset(self) -> None:
        """Press the reset button: no system is asked."""
        self.qmp("system_reset")

    def cut(self) -> None:
        """Pull the plug: what was not written stays unwritten. Does nothing where it is off."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for connection in (self._qmp, self._shell):
            if connection is not None:
                connection.close()
        self._qmp = self._shell = None
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = ""

    def close(self) -> None:
        """Switch it off at once and leave nothing running."""
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------ QMP

    def qmp(self, command: str, **arguments: object) -> Any:
        """One QMP command; what it returned. MachineError: refused, or no answer."""
        assert self._qmp is not None, "it is off"
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            said = self._answer()
            if "return" in said:
                return said["return"]
            if "error" in said:
                raise MachineError(f"QMP {command}: {said['error']}")

    def _answer(self) -> Mapping[str, Any]:
        assert self._qmp is not None
        self._qmp.settimeout(30)
        data = b""
        while not data.endswith(b"\n"):
            part = self._qmp.recv(1)
            if not part:
                raise MachineError(f"QEMU ended: {self._tail(self._folder / 'qemu.log')}")
            data += part
        value = json.loads(data)
        assert isinstance(value, dict)
        return value

    # ------------------------------------------------------------ console

    def console(self) -> str:
        """All that was printed since the last `wait_for` that succeeded (since the beginning, before one did)."""
        data = self.log.read_bytes()[self._seen :] if self.log.exists() else b""
        # Colours and cursor movements of firmware and boot loader would cut words in two.
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0-9A-B]?|\r|\0", "", data.decode("utf-8", "replace"))

    def wait_for(self, pattern: str, timeout_s: float, *, never: str | None = None) -> re.Match[str]:
        """Wait until the console has said what `pattern` matches, since the last time; then forget up to here.

        MachineError: not within the time, or the machine is off, or the console said what `never` matches.
        """
        end = time.monotonic() + timeout_s
        while True:
            on = self.is_on()
            length = self.log.stat().st_size if self.log.exists() else 0
            text = self.console()
            found = re.search(pattern, text, re.MULTILINE)
            bad = re.search(never, text, re.MULTILINE) if never is not None else None
            if bad is not None:
                raise MachineError(f"the console said {bad.group()!r}\n{self.tail()}")
            if found is not None:
                self._seen = length
                return found
            if not on or time.monotonic() > end:
                why = f"within {timeout_s:g} s" if on else "before it was off"
                raise MachineError(f"the console did not say {pattern!r} {why}\n{self.tail()}")
            time.sleep(0.2)

    def tail(self) -> str:
        """The last lines of the console, for a message."""
        return self._tail(self.log)

    @staticmethod
    def _tail(path: Path) -> str:
        text = path.read_bytes()[-6000:].decode("utf-8", "replace") if path.exists() else ""
        return "\n".join(line for line in text.replace("\r", "").splitlines() if line.strip())[-4000:]

    # ------------------------------------------------------------ the test's own shell

    def wait_shell(self, timeout_s: float) -> None:
        """Wait until the test's shell answers (see `with_shell`)."""
        end = time.monotonic() + timeout_s
        while True:
            # What nobody reads yet is lost, or answered late: the number tells which answer is whose.
            try:
                self.run("true", timeout_s=5)
                return
            except TimeoutError:
                if not self.is_on() or time.monotonic() > end:
                    raise MachineError(f"no shell within {timeout_s:g} s\n{self.tail()}") from None

    def run(self, script: str, timeout_s: float = 60) -> Done:
        """Run a script (bash, as root) on the machine. TimeoutError: no answer."""
        assert self._shell is not None, "it is off"
        number = next(self._numbers)
        self._shell.sendall(f"{number} {base64.b64encode(script.encode()).decode()}\n".encode())
        end, data = time.monotonic() + timeout_s, b""
        while True:
            self._shell.settimeout(max(0.05, end - time.monotonic()))
            try:
                part = self._shell.recv(65536)
            except TimeoutError:
                raise TimeoutError(f"no answer to {script!r} within {timeout_s:g} s") from None
            if not part:
                raise MachineError(f"the machine went off\n{self.tail()}")
            data += part
            found = re.search(rb"edge %d (\d+) ([A-Za-z0-9+/=]*)\n" % number, data)
            if found is not None:
                return Done(int(found[1]), base64.b64decode(found[2]).decode("utf-8", "replace"))
            if time.monotonic() > end:
                raise TimeoutError(f"no answer to {script!r} within {timeout_s:g} s")

    def out(self, script: str, timeout_s: float = 60) -> str:
        """What a script printed, without the last newline. AssertionError: it failed."""
        done = self.run(script, timeout_s)
        assert done.status == 0, f"{shlex.quote(script)} ended with {done.status}: {done.text}"
        return done.text.rstrip("\n")
