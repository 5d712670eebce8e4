"""Where a build's programs run: as root of their own, and, for the recipe's scripts, shut into the image.

Decides the isolation; starts nothing itself (`image.process` does). Two grounds: `user`, a user namespace in which the
builder's own user is root and its subordinate ids are everybody else, so that a build needs no privilege; `root`, for a
builder that is root. On either the same bytes come out.

`inside` is for tools that we chose (mmdebstrap, tar, mke2fs): own mounts, processes and network, of which there is none.
`boxed` is for the recipe's scripts (bubblewrap): the image's root is their root, and nothing of the host is in it but the
recipe, read-only; no network, no other process, no environment but what is told, few capabilities. Both die with the
builder, however it ends: everything in a process namespace goes with its first process. Called by `image.rootfs`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from reconciler.image.process import PATH
from reconciler.ports import TerminalError

PLACE = "/run/build"
"""Where the scripts find the recipe (`recipe/`), and the files that the builder hands them."""
_IDS = 65536
_TMP = "/tmp"  # noqa: S108 - the image's
# What installing and configuring files takes. Not SYS_ADMIN, MKNOD, SYS_PTRACE, NET_ADMIN, SYS_MODULE, SYS_CHROOT …
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID")
_SETTINGS = ("/proc/sys", "/proc/fs", "/proc/scsi", "/proc/acpi")
_DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
_MEMORY_BYTES = 2 << 30
"""What a script may lay into each of its temporary folders, which are in memory: half the machine's each, otherwise."""
_NAMESPACES = ("--mount", "--pid", "--net", "--ipc", "--uts")
_NEEDED = {"bwrap": "bubblewrap", "mmdebstrap": "mmdebstrap", "setpriv": "util-linux", "unshare": "util-linux"}


@dataclass(frozen=True, slots=True)
class Ground:
    """How root is had: `root` is the machine's own, `user` that of a user namespace."""

    kind: Literal["root", "user"]

    def inside(self, argv: Sequence[str]) -> list[str]:
        """A command as root, in namespaces of its own and without network, that dies with whoever started it."""
        return [
            *("setpriv", "--pdeathsig", "KILL", "--", "unshare", *self._user(), *_NAMESPACES),
            *("--fork", "--kill-child=KILL", "--mount-proc", "--", *argv),
        ]

    def boxed(
        self,
        root: Path,
        argv: Sequence[str],
        told: Mapping[str, str],
        handed: Mapping[str, Path],
        *,
        change: bool,
        largest: int | None = None,
    ) -> list[str]:
        """A command in the image whose root file system is the folder `root`; may it change it (`change`)?

        `told` is its environment; `handed` are files and folders of ours that it may read, by their names below `PLACE`.
        No file that it writes gets more than `largest` bytes.
        """
        box = ["bwrap", "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
        box += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "golden", "--cap-drop", "ALL"]
        for name in _CAPABILITIES:
            box += ["--cap-add", f"CAP_{name}"]
        box += ["--bind" if change else "--ro-bind", str(root), "/", "--dev", "/dev", "--proc", "/proc"]
        if self.kind == "root":
            # Nodes of its own: root in the box could change the mode of this machine's /dev/null.
            for node in _own_nodes(root.parent / "dev"):
                box += ["--dev-bind", str(node), f"/dev/{node.name}"]
        # Root may write kernel settings without any capability: core_pattern alone would be a way out of the box.
        for name in _SETTINGS:
            box += ["--ro-bind-try", name, name]
        # What a script leaves in these is gone with it.
        for name in ("/run", _TMP, f"/var{_TMP}"):
            box += ["--perms", "1777" if "tmp" in name else "0755", *_limit(), "--tmpfs", name]
        # /dev is in memory too: nothing more is made in it but in /dev/shm.
        box += ["--perms", "1777", *_limit(), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
        for name, place in sorted(handed.items()):
            box += ["--ro-bind", str(place), f"{PLACE}/{name}"]
        box.append("--clearenv")
        for name, value in sorted({"HOME": _TMP, "TMPDIR": _TMP, "PATH": PATH, "LC_ALL": "C.UTF-8", **told}.items()):
            box += ["--setenv", name, value]
        outer = ["unshare", *self._user(), "--"] if self.kind == "user" else []
        bound = ["prlimit", f"--fsize={largest}", "--"] if largest is not None else []
        return [*bound, *outer, *box, "--chdir", "/", "--", *argv]

    def _user(self) -> tuple[str, ...]:
        return ("--user", "--map-root-user", "--map-auto") if self.kind == "user" else ()


@cache
def _limit() -> tuple[str, ...]:
    """The option that bounds the next temporary folder: bubblewrap has it since 0.7."""
    argv = ["bwrap", "--help"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env={"PATH": PATH})
    return ("--size", str(_MEMORY_BYTES)) if "--size BYTES" in told.stdout + told.stderr else ()


def _own_nodes(folder: Path) -> list[Path]:
    """The character devices that every program expects, made in a folder. Needs root."""
    folder.mkdir(exist_ok=True)
    for name, minor in _DEVICES.items():
        node = folder / name
        if not node.exists():
            os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            node.chmod(0o666)
    return [folder / name for name in _DEVICES]


@cache
def ground() -> Ground:
    """The ground that this machine offers: `root` to root, `user` to everybody else. TerminalError: neither, and why."""
    for program, package in _NEEDED.items():
        if shutil.which(program, path=PATH) is None:
            raise _refused(f"{program} is not installed", f"apt-get install {package}")
    if os.geteuid() == 0:
        return Ground("root")
    user = pwd.getpwuid(os.geteuid()).pw_name
    if shutil.which("newuidmap", path=PATH) is None:
        raise _refused("newuidmap is not installed", "apt-get install uidmap, or build as root")
    for file in ("/etc/subuid", "/etc/subgid"):
        if _subordinates(Path(file), user) < _IDS - 1:
            raise _refused(
                f"{file} gives {user} no {_IDS} ids",
                f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}, or build as root",
            )
    made = Ground("user")
    argv = ["unshare", *made._user(), "--", "true"]
    tried = subprocess.run(
        argv, capture_output=True, text=True, timeout=30, check=False, env={"PATH": PATH, "LC_ALL": "C"}
    )
    if tried.returncode != 0:
        raise _refused(
            f"this machine lets {user} make no user namespace ({tried.stderr.strip()[:200]})",
            "allow it (kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; util-linux 2.38 "
            "or newer), or build as root",
        )
    return made


def _subordinates(file: Path, user: str) -> int:
    """The largest number of ids that a line of the file gives the user."""
    try:
        lines = [line.split(":") for line in file.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return 0
    return max(
        (
            int(line[2])
            for line in lines
            if len(line) == 3 and line[0] in (user, str(os.geteuid())) and line[2].isdigit()
        ),
        default=0,
    )


def _refused(wrong: str, remedy: str) -> TerminalError:
    return TerminalError(wrong, needed_for="building an image", remedy=remedy)
