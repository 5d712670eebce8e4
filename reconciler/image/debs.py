"""The packages of an image: which ones in which versions, and their files, fetched and verified by apt.

An apt with a state of its own, below the cache folder, that knows nothing of the packages installed here. It resolves
what the recipe lists from an empty system, so the whole list, with the sha256 of every file, is known before anything is
installed; the files are kept between builds. Everything after this stage needs no network. From the machine's apt
configuration `Acquire::*` alone is taken over (proxies, certificates), and its credentials for mirrors (auth.conf); neither
reaches a recipe. Called by `image.rootfs`, which holds the cache's lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from reconciler.image.mirrors import Entry
from reconciler.image.process import PATH, Ended, Surroundings, bound, failed, no_room, run
from reconciler.ports import TerminalError, TransientError

STAGE = "packages"
# What every system has: mmdebstrap's variant `apt` begins with the same.
_BASE = ("?essential", "apt")
_KEPT_S = 90 * 86400
_URI = re.compile(r"^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$")
_ACQUIRE = re.compile(r'^Acquire::[A-Za-z0-9:_./-]+ ".*";$')
# What apt says of a source that asking again does not mend: who signed it, then whether it is there.
_UNTRUSTED = re.compile(
    r"NO_PUBKEY|(?:EXP|REV)KEYSIG|EXPSIG|BADSIG|is not valid yet|expired|[Cc]ertificate verification failed"
)
_ABSENT = re.compile(
    r"\b40[0-79] |does not have a Release file|is not signed|Malformed (?:line|entry|stanza)|Unable to find expected entry"
    r"|File not found|The method driver \S+ could not be found"
)
# What comes and goes with a mirror or its line. apt may add that nothing is signed, where it had no file to read.
_PASSING = re.compile(
    r"Could not (?:resolve|connect)|Temporary failure|Connection (?:failed|refused|reset|timed out)|Cannot initiate"
    r"|Network is unreachable|\b(?:408|429|50[0-9]) |Hash Sum mismatch|unexpected size|No space left"
)


@dataclass(frozen=True, slots=True)
class Deb:
    """One package file: where it is in the cache, its sha256, and what it holds."""

    file: str
    size: int
    sha256: str
    package: str
    version: str


class Apt:
    """An apt with a state of its own below `folder` (one a variant), whose package files are kept in `debs`."""

    def __init__(self, where: Surroundings, folder: Path, debs: Path, architecture: str) -> None:
        self._where, self._folder, self._debs, self._architecture = where, folder, debs, architecture
        self.lists, self.sources = folder / "lists", folder / "sources.list"

    def update(self, entries: Sequence[Entry], pins: Mapping[str, str]) -> None:
        """Read the indexes of the sources. TransientError: a mirror does not answer. TerminalError: it is not to be had."""
        for folder in (self._folder / "none/partial", self.lists / "partial", self._debs / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "status").write_bytes(b"")
        self.sources.write_text("".join(f"{entry.line(self._architecture)}\n" for entry in entries))
        (self._folder / "preferences").write_text(preferences(pins))
        config = self._folder / "apt.conf"
        # A proxy's address may hold a password.
        config.touch(mode=0o600)
        config.chmod(0o600)
        config.write_text(self._configuration(), encoding="utf-8")
        done = self._apt(["apt-get", "update", "--error-on=any"])
        if done.status == 0:
            return
        told = _complaint(self._where.log).decode("utf-8", "replace")[:400]
        if lasting(told):
            raise self._failed(f"a package source is not to be had ({told})")
        raise no_room(STAGE, told, self._where.log, self._debs.parent) or TransientError(
            f"stage 'packages' of the build failed: a mirror does not answer ({told})",
            needed_for="reading the package indexes",
            remedy=f"it is tried again; see {self._where.log}",
        )

    def state(self) -> str:
        """sha256 over the signed indexes as they were read: the state of the mirrors."""
        digest = hashlib.sha256()
        for file in sorted(self.lists.glob("*Release")):
            digest.update(f"{hashlib.sha256(file.read_bytes()).hexdigest()} {file.name}\n".encode())
        return digest.hexdigest()

    def resolve(self, packages: Iterable[str], pins: Mapping[str, str]) -> list[Deb]:
        """Every package file of a system with these packages, sorted by name. TerminalError: names what is not to be had."""
        self._check_pins(pins)
        wanted = [f"{name}={pins[name]}" if name in pins else name for name in packages]
        argv = [
            "apt-get",
            "install",
            "-qq",
            "--yes",
            "--print-uris",
            "-o",
            f"Dir::Cache::Archives={self._folder / 'none'}",
        ]
        done = self._apt([*argv, *_BASE, *wanted])
        if done.status != 0:
            said = _complaint(self._where.log).decode("utf-8", "replace")
            raise self._failed(f"the packages cannot be installed together ({said[:600]})")
        found = [match for line in done.out.decode("utf-8", "replace").splitlines() if (match := _URI.match(line))]
        debs = sorted((_deb(match) for match in found), key=lambda deb: deb.package)
        versions = {deb.package: deb.version for deb in debs}
        for name, version in sorted(pins.items()):
            if versions.get(name) != version:
                there = (
                    f"has {versions[name]}"
                    if name in versions
                    else "does not have that package: list it in packages.txt"
                )
                raise self._failed(f"the pin {name}={version} has no effect, the image {there}")
        return debs

    def fetch(self, debs: Sequence[Deb]) -> None:
        """Have every file in the cache, whole. TransientError: a mirror does not answer."""
        bad = [deb for deb in debs if not self._whole(deb)]
        for deb in bad:
            (self._debs / deb.file).unlink(missing_ok=True)
        if bad:
            argv = ["apt-get", "install", "-qq", "--yes", "--download-only", "-o", f"Dir::Cache::Archives={self._debs}"]
            self._apt([*argv, *(f"{deb.package}={deb.version}" for deb in debs)])
        missing = [deb.file for deb in bad if not self._whole(deb)]
        if missing:
            said = _complaint(self._where.log).decode("utf-8", "replace")[:400]
            why = f"{len(missing)} package files could not be fetched, {missing[0]} first ({said})"
            raise no_room(STAGE, why, self._where.log, self._debs.parent) or TransientError(
                f"stage 'packages' of the build failed: {why}",
                needed_for="installing the packages",
                remedy=f"it is tried again, with those that are there already; see {self._where.log}",
            )
        self._forget({deb.file for deb in debs})

    def file(self, deb: Deb) -> Path:
        """Where a package's file is."""
        return self._debs / deb.file

    # ------------------------------------------------

    def _check_pins(self, pins: Mapping[str, str]) -> None:
        """Name the pin that no source has, with what there is; apt's own words come without it."""
        if not pins:
            return
        done = self._apt(["apt-cache", "madison", *sorted(pins)])
        offered: dict[str, list[str]] = {}
        for line in done.out.decode("utf-8", "replace").splitlines():
            name, _, rest = line.partition("|")
            offered.setdefault(name.strip(), []).append(rest.partition("|")[0].strip())
        bad = [
            f"{name}={version} (there is {', '.join(dict.fromkeys(offered.get(name, []))) or 'no such package'})"
            for name, version in sorted(pins.items())
            if version not in offered.get(name, [])
        ]
        if bad:
            raise self._failed(f"no package source has the pin {', nor '.join(bad)}")

    def _whole(self, deb: Deb) -> bool:
        path = self._debs / deb.file
        try:
            if path.stat().st_size != deb.size:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == deb.sha256
        except OSError:
            return False

    def _forget(self, used: set[str]) -> None:
        """Drop package files that no build has used for three months."""
        now = time.time()
        for path in self._debs.glob("*.deb"):
            if path.name in used:
                os.utime(path)
            elif now - path.stat().st_mtime > _KEPT_S:
                path.unlink(missing_ok=True)

    def _apt(self, argv: list[str]) -> Ended:
        return run(self._where, STAGE, bound(argv), {"APT_CONFIG": str(self._folder / "apt.conf")}, most=16 << 20)

    def _failed(self, why: str) -> TerminalError | TransientError:
        return failed(STAGE, why, self._where.log, self._debs.parent)

    def _configuration(self) -> str:
        """apt's whole configuration: the machine's own is not read beside it."""
        folder = self._folder
        own = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::sourcelist": str(self.sources),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": str(folder / "preferences"),
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": "/dev/null",
            "Dir::State": str(folder),
            "Dir::State::lists": str(self.lists),
            "Dir::State::status": str(folder / "status"),
            "Dir::Cache": str(folder),
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Log": str(folder),
            "APT::Architecture": self._architecture,
            "APT::Install-Recommends": "false",
            # Methods run as us: as `_apt` they could not reach a folder that is closed to others.
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Acquire::Languages": "none",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Retries": "3",
        }
        lines = [*acquire(), *(f'{name} "{value}";' for name, value in own.items())]
        return "\n".join([*lines, f'APT::Architectures {{ "{self._architecture}"; }};', ""])


def preferences(pins: Mapping[str, str]) -> str:
    """Pins as apt preferences: above 1000, so that apt also goes down to them."""
    return "".join(
        f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n" for name, version in sorted(pins.items())
    )


def newest(files: Iterable[Path]) -> int:
    """The time (seconds) of the newest of some package files, as their first archive member has it: no file in them is
    newer than its package."""
    times = [0]
    for path in files:
        with path.open("rb") as file:
            header = file.read(68)
        if header[:8] == b"!<arch>\n" and header[24:36].strip().isdigit():
            times.append(int(header[24:36]))
    return max(times)


def _deb(match: re.Match[str]) -> Deb:
    """From apt's line: the file is named PACKAGE_VERSION_ARCHITECTURE.deb, with the version's colon escaped."""
    package, version, _ = match[2].split("_", 2)
    return Deb(match[2], int(match[3]), match[4], package, unquote(version))


def lasting(said: str) -> bool:
    """Whether what apt says of its sources stays so until somebody changes something. What nobody has seen before is taken to
    pass: a build that is tried again in vain costs little, one that is given up waits for a person."""
    return bool(_UNTRUSTED.search(said) or (_ABSENT.search(said) and not _PASSING.search(said)))


def acquire() -> list[str]:
    """How this machine reaches mirrors, as lines of apt's configuration: proxies, certificates, time-outs; apt's own settings,
    then the environment's proxies, as apt takes them. TerminalError: no apt."""
    program = shutil.which("apt-config", path=PATH)
    if program is None:
        raise TerminalError(
            "apt is not installed",
            needed_for="building an image",
            remedy="build on Debian or Ubuntu, or in a container of it",
        )
    done = subprocess.run(
        [program, "dump"], capture_output=True, text=True, timeout=60, check=False, env={"PATH": PATH}
    )
    own = [line for line in done.stdout.splitlines() if _ACQUIRE.match(line)]
    # apt-transport-http(1): the environment's proxy counts where none is configured.
    proxies = ((kind, os.environ.get(f"{kind}_proxy", "")) for kind in ("http", "https"))
    told = (f'Acquire::{kind}::Proxy "{url}";' for kind, url in proxies if url and '"' not in url)
    return own + [line for line in told if not any(was.startswith(line.partition('"')[0]) for was in own)]


def _complaint(log: Path) -> bytes:
    """apt's own words at the end of the log: its errors."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        text = file.read().rpartition(b"=== ")[2]
    lines = [line[3:].strip() for line in text.splitlines() if line.startswith((b"E: ", b"W: "))]
    return b"; ".join(dict.fromkeys(lines)) or text.strip()[-400:]
