"""Small ext4 images for tests of the sysprep gate: a clean root as a dict of files, and what is planted in it."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.system import need

# Not anybody's: made for these tests, and random bytes at that.
BODY = (
    "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZWQy\n"
    "NTUxOQAAACDs1n3p9yqk0m5yN8v2QxJw0aTtq7u3H0iJx1mVgk4n2QAAAJhT1b6kU9W+pAAA\n"
)
OPENSSH_KEY = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BODY}-----END OPENSSH PRIVATE KEY-----\n"
RSA_KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "MIIEpAIBAAKCAQEAx3uJ0cQ7f8V1zZqvHn4cDq0o8b9Vw3kqf5YlS2mXhG1rT6aP\n" * 4
    + "-----END RSA PRIVATE KEY-----\n"
)


@dataclass(frozen=True)
class Link:
    """A symlink."""

    target: str


@dataclass(frozen=True)
class Hard:
    """Another name of a file in the root."""

    to: str


@dataclass(frozen=True)
class File:
    """A file with a mode, or `size` bytes of which the end is a hole."""

    data: bytes = b""
    mode: int = 0o644
    size: int | None = None


_FEATURES = (
    "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_LIKE_THE_BUILDER = ("-b", "4096", "-I", "256", "-N", "256", "-m", "0", "-O", _FEATURES)


class Folder:
    """An empty folder."""

    def __init__(self, mode: int = 0o755) -> None:
        self.mode = mode


Planted = str | bytes | Link | Hard | File | Folder
Tree = Mapping[str | bytes, Planted]


def clean_root(ring: bytes, fingerprints: str) -> dict[str | bytes, Planted]:
    """A root in which the gate finds nothing: what a distribution's root looks like, in small."""
    example = f"An example:\n\n{RSA_KEY}".encode()
    source = f'EXAMPLE = """{OPENSSH_KEY}"""\n'.encode()
    chrony = b"# a package's own\npool 2.pool.example iburst\n"
    config = f"chrony\nConffiles:\n /etc/chrony/conf.d/default.conf {md5(chrony)}\n"
    return {
        "etc/machine-id": "",
        "var/lib/dbus/machine-id": Link("/etc/machine-id"),
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nedge:x:1000:1000::/home/edge:/bin/sh\n",
        "etc/shadow": File(b"root:*:20000:0:99999:7:::\nsshd:!:20000::::::\nedge:!*:20000::::::\n", 0o640),
        "etc/group": "root:x:0:\nedge:x:1000:\n",
        "etc/gshadow": File(b"root:*::\nedge:!::\nstaff:::\n", 0o640),
        "etc/environment": 'PATH="/usr/bin:/bin"\nSITE_ID="golden"\n',
        "etc/hostname": "localhost\n",
        "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\nff02::1 ip6-allnodes\n",
        "etc/resolv.conf": Link("../run/systemd/resolve/stub-resolv.conf"),
        "etc/ssh/sshd_config": "PasswordAuthentication no\n",
        "etc/chrony/chrony.conf": "sourcedir /etc/chrony/sources.d\n",
        "etc/chrony/conf.d/default.conf": chrony,
        "etc/netplan/50-dhcp.yaml": "network:\n  version: 2\n  ethernets:\n    all:\n      match: {name: en*}\n      dhcp4: true\n",
        "etc/docker/daemon.json": '{"log-driver": "journald"}\n',
        "etc/edge/keys/release.gpg": ring,
        "etc/edge/keys/release.fpr": fingerprints,
        "etc/edge-release": "FAMILY=edge-golden\nRELEASE=v1\n",
        "root/.bashrc": "alias ll='ls -l'\n",
        "root/.ssh": Folder(0o700),
        "home/edge/.profile": "umask 022\n",
        "tmp": Folder(0o1777),
        "var/tmp": Folder(0o1777),
        "var/log/lastlog": "",
        "var/log/README": Link("../../usr/share/doc/systemd/README.logs"),
        "var/lib/apt/lists/partial": Folder(),
        "var/lib/cloud/seed/nocloud": Link("/data/cidata"),
        "data": Folder(),
        "dev": Folder(),
        "boot/initrd.img": gzip.compress(b"070701 nothing in here\n", mtime=0),
        "lib": Link("usr/lib"),
        "usr/bin/passwd": File(b"\x7fELF set-uid, as shipped", 0o4755),
        "usr/lib/python3/x.py": source,
        "usr/lib/python3/__pycache__/x.cpython-311.pyc": b"\xa7\r\r\n" + source,
        "usr/share/doc/systemd/README.logs": "Logs are elsewhere.\n",
        "usr/share/doc/x/examples.txt": example,
        "var/lib/dpkg/status": f"Package: {config}",
        "var/lib/dpkg/info/x.md5sums": "".join(
            f"{md5(data)}  {path}\n"
            for path, data in (
                ("usr/bin/passwd", b"\x7fELF set-uid, as shipped"),
                ("usr/lib/python3/x.py", source),
                ("usr/share/doc/x/examples.txt", example),
                ("usr/share/doc/systemd/README.logs", b"Logs are elsewhere.\n"),
            )
        ),
    }


def md5(data: bytes) -> str:
    """As dpkg writes it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def write_tree(root: Path, tree: Tree) -> None:
    """Write a tree below a folder."""
    for name, planted in sorted(tree.items(), key=lambda item: (isinstance(item[1], Hard), os.fsencode(item[0]))):
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(planted, Folder):
            os.makedirs(path, exist_ok=True)
            os.chmod(path, planted.mode)
            continue
        if os.path.lexists(path):
            os.unlink(path)
        if isinstance(planted, Link):
            os.symlink(planted.target, path)
        elif isinstance(planted, Hard):
            os.link(os.path.join(os.fsencode(root), os.fsencode(planted.to)), path)
        else:
            file = (
                planted
                if isinstance(planted, File)
                else File(planted.encode() if isinstance(planted, str) else planted)
            )
            with open(path, "wb") as out:
                out.write(file.data)
                out.truncate(len(file.data) if file.size is None else file.size)
            os.chmod(path, file.mode)


def make_image(folder: Path, tree: Tree, *, options: tuple[str, ...] = (), size: str = "8m") -> Path:
    """An ext4 image with the tree in it, as `folder`/image."""
    root, image = folder / "root", folder / "image"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    root.chmod(0o755)
    write_tree(root, tree)
    image.unlink(missing_ok=True)
    argv = [
        need("mke2fs", "e2fsprogs"),
        "-q",
        "-F",
        "-t",
        "ext4",
        *(options or _LIKE_THE_BUILDER),
        "-d",
        str(root),
        str(image),
        size,
    ]
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "MKE2FS_CONFIG": "/dev/null"})
    return image


def debugfs(image: Path, *commands: str) -> str:
    """Run commands on an image, writing to it."""
    done = subprocess.run(
        [need("debugfs", "e2fsprogs"), "-w", "-f", "-", str(image)],
        input="".join(f"{command}\n" for command in commands), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout
