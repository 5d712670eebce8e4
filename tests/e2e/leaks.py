"""Looks for secrets where none may be: files, git objects, the store, HTTP answers, every process's argv and environment."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path


def planted(root: Path) -> dict[str, bytes]:
    """What is secret in a demo's folder: name → value. VPN keys, tokens of devices and operators, passphrases of keys."""
    found: dict[str, bytes] = {}
    for path in sorted((root / "secrets").rglob("vpn")):
        key = re.search(r"PrivateKey = (\S+)", path.read_text())
        assert key is not None
        found[f"secret {path.relative_to(root / 'secrets')}"] = key.group(1).encode()
    for path in sorted((root / "tokens").iterdir()):
        found[f"token {path.name}"] = path.read_bytes().strip()
    for path in sorted((root / "keys").glob("*/passphrase")):
        found[f"passphrase {path.parent.name}"] = path.read_bytes().strip()
    version_key = root / "secrets" / ".version-key"
    if version_key.is_file():
        found["the key of secret versions"] = version_key.read_bytes().strip()
    return found


class Needles:
    """Many secrets searched for at once."""

    def __init__(self, secrets: dict[str, bytes]) -> None:
        self._names = {value: name for name, value in secrets.items()}

    def names_in(self, data: bytes) -> set[str]:
        """Names of the secrets that the bytes hold."""
        # One by one: a search for one of many by a pattern reads 2 MB a second.
        return {name for value, name in self._names.items() if value in data}


def allowed(root: Path, path: Path) -> bool:
    """Where a secret may stand: the secrets' and tokens' own folders, passphrase files, and a device's cloud-init seed, 0600."""
    parts = path.relative_to(root).parts
    if parts[0] in ("secrets", "tokens") or (parts[0] == "keys" and parts[-1] == "passphrase"):
        return True
    in_seed = parts[0] == "devices" and parts[2] == "cidata"
    return in_seed and stat.S_IMODE(path.stat().st_mode) == 0o600


def _written(path: Path) -> bytes:
    """What a file holds but for its holes, which are most of a slot; a zero stands between two parts."""
    parts = []
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # nothing is written from here on
                return b"\0".join(parts)
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            file.seek(begin)
            parts.append(file.read(end - begin))


def in_files(root: Path, needles: Needles) -> tuple[dict[str, set[str]], int]:
    """Files outside the allowed places that hold a secret; and how many inside them do."""
    leaks: dict[str, set[str]] = {}
    inside = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if path.is_symlink() or not path.is_file():
                continue
            found = needles.names_in(_written(path))
            if found and allowed(root, path):
                inside += 1
            elif found:
                leaks[str(path.relative_to(root))] = found
    return leaks, inside


def in_git(repositories: Iterable[Path], needles: Needles) -> set[str]:
    """Secrets in any object of the repositories, packed or loose, reachable or not."""
    found: set[str] = set()
    for repository in repositories:
        listed = subprocess.run(
            ["git", "-C", str(repository), "cat-file", "--batch-all-objects", "--batch"],
            capture_output=True,
            check=True,
        )
        assert len(listed.stdout) > 10_000, "the repository's objects were not read"
        found |= needles.names_in(listed.stdout)
    return found


def in_store(path: Path, needles: Needles) -> set[str]:
    """Secrets in any row of the store."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        text = "\n".join(connection.iterdump())
    connection.close()
    assert "observations" in text
    return needles.names_in(text.encode())


class Watch:
    """Samples argv and environment of every process of this user's, for as long as it is open."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        # A process' argv changes at exec alone, early in its life: it is looked at a few times, and then no more.
        looks: dict[str, int] = {}
        while not self._ended.wait(0.01):
            present = {process.name for process in os.scandir("/proc") if process.name.isdigit()}
            looks = {name: looks.get(name, 0) + 1 for name in present}
            for name in present:
                if looks[name] <= 10:
                    for kind in ("cmdline", "environ"):
                        try:
                            with open(f"/proc/{name}/{kind}", "rb") as file:
                                self.seen.add(file.read(64 * 1024))
                        except OSError:
                            continue

    def leaks(self, needles: Needles) -> set[str]:
        """Secrets that were seen."""
        assert any(b"reconciler" in line for line in self.seen), "no process was seen"
        return set().union(*(needles.names_in(line) for line in self.seen))
