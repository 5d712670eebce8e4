"""The root file system of a distribution, with the recipe's packages installed: by mmdebstrap, from files fetched before.

Stage `packages` in four steps: apt resolves and fetches (`image.debs`, the only step that has a network); mmdebstrap
installs into a tar, in namespaces of its own; the tar is kept in the cache under the digest of what decides its bytes, so
that a build that was killed later, or whose scripts alone changed, goes on from it; the tar is unpacked, and every pin
looked up in what dpkg says is installed. Scripts of packages and of the recipe have no network. The mirrors' addresses,
this machine's name and its resolv.conf do not stay in the root. Called by `image.builder`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from reconciler.image import agent_app, mirrors, recipe, sandbox, sbom
from reconciler.image.debs import Apt, Deb, newest, preferences
from reconciler.image.inputs import BUILDER_VERSION
from reconciler.image.job import PINS, Job, plain_modes
from reconciler.image.pack import hashed, sync
from reconciler.image.process import PATH, Ended, failed, run
from reconciler.image.progress import note
from reconciler.repo.problem import InvalidInput

STAGE = "packages"
_KEPT_ROOTS = 2
_IDENTITY, _VARIABLES = "usr/lib/edge/image-id", "usr/lib/edge/recipe.env"


class DistributionRoot:
    """The maker of builder type `distribution`. `cache` keeps package files and roots between builds; `note` writes a line
    into the build's log."""

    kind = "distribution"
    keeps_owners = True

    def __init__(self, cache: Path, mirrors_by_name: Mapping[str, str]) -> None:
        self._cache, self._mirrors = cache.absolute(), mirrors_by_name
        self.folders: tuple[Path, ...] = (self._cache,)
        self._ground = sandbox.ground()
        self._recipe: recipe.Recipe | None = None
        self.vendor: str | None = None

    def tools(self) -> Mapping[str, str]:
        """mmdebstrap's version: it decides the order in which packages are configured."""
        sbom.require()
        done = subprocess.run(
            ["mmdebstrap", "--version"], capture_output=True, text=True, timeout=60, check=False, env={"PATH": PATH}
        )
        found = re.search(r"\d+(?:\.\d+)+", done.stdout)
        return {"mmdebstrap": found.group() if found else "unknown", **sbom.tools()}

    # ------------------------------------------------ the root

    def packages(self, job: Job) -> int:
        """The distribution with the recipe's packages, unpacked, and what the builder adds by itself."""
        try:
            made = recipe.read(job.recipe, job.spec)
            snapshot = job.spec.base.snapshot if job.spec.base is not None else None
            entries = mirrors.resolve(made, snapshot, self._mirrors)
        except InvalidInput as error:
            told = [str(problem).replace(f"{job.recipe}/", "") for problem in error.problems]
            more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
            raise failed(STAGE, "; ".join(told[:3]) + more, job.where.log) from None
        self._recipe, self.vendor = made, made.variant.distribution
        pins = dict(job.spec.packages)
        with self._locked():
            apt = Apt(job.where, self._cache / "apt" / made.file.stem, self._cache / "debs", made.variant.architecture)
            apt.update(entries, pins)
            debs = apt.resolve(made.packages, pins)
            apt.fetch(debs)
            time = newest(apt.file(deb) for deb in debs)
            tar = self._tar(job, made, apt, debs, time)
            self._unpack(job, tar)
        self._check(job, debs, pins)
        self._add(job, made)
        return max(job.epoch, time)

    def _tar(self, job: Job, made: recipe.Recipe, apt: Apt, debs: Sequence[Deb], time: int) -> Path:
        """The root as a tar, from the cache or made now. Its name ends with its sha256: one that a disk or a person has
        damaged is made anew."""
        roots = self._cache / "roots"
        roots.mkdir(parents=True, exist_ok=True)
        for left in roots.glob("*.part"):
            left.unlink()
        told = [
            BUILDER_VERSION,
            sorted(self.tools().items()),
            made.variant.distribution,
            made.variant.suite,
            made.packages,
            time,
        ]
        key = hashlib.sha256(json.dumps([*told, [[deb.file, deb.sha256] for deb in debs]]).encode()).hexdigest()[:32]
        stem = f"{made.file.stem}-{key}"
        for tar in roots.glob(f"{stem}*.tar"):
            if tar.name == f"{stem}-{_digest(tar)}.tar":
                os.utime(tar)
                return tar
            note(job.where.log, f"the cached root {tar.name} is damaged, and is made anew")
            tar.unlink()
        part = roots / f"{stem}.part"
        self._install(job, made, apt, debs, time, part)
        tar = roots / f"{stem}-{_digest(part)}.tar"
        sync(part)
        part.rename(tar)
        sync(roots)
        for old in sorted(roots.glob("*.tar"), key=lambda path: path.stat().st_mtime)[:-_KEPT_ROOTS]:
            old.unlink()
        return tar

    def _install(self, job: Job, made: recipe.Recipe, apt: Apt, debs: Sequence[Deb], time: int, tar: Path) -> None:
        """Have mmdebstrap install the packages. Everything that it needs is laid into its chroot before."""
        seed = job.where.scratch / "seed"
        lists, archives, prefer = (
            seed / "var/lib/apt/lists",
            seed / "var/cache/apt/archives",
            seed / "etc/apt/preferences.d",
        )
        for folder in (lists, archives, prefer):
            folder.mkdir(parents=True)
        for path in apt.lists.glob("*_*"):
            shutil.copyfile(path, lists / path.name)
        for deb in debs:
            _link(apt.file(deb), archives / deb.file)
        (prefer / "edge-pins").write_text(preferences(job.spec.packages))
        plain_modes(seed)
        pinned = [f"{name}={version}" for name, version in sorted(job.spec.packages.items()) if name in made.packages]
        plain = [name for name in made.packages if name not in job.spec.packages]
        # fmt: off
        argv = [
            "mmdebstrap", "--mode=root", "--format=tar", "--variant=apt", f"--architectures={made.variant.architecture}",
            "--skip=update,check/empty,output/dev", f"--include={','.join((*plain, *pinned))}",
            f"--setup-hook=cp -r {shlex.quote(str(seed))}/. \"$1\"/",
            # What is this machine's or this build's.
            '--customize-hook=rm -rf "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*'
            ' "$1"/etc/apt/preferences.d/edge-pins',
            "", str(tar), str(apt.sources),
        ]
        # fmt: on
        done = run(job.where, STAGE, self._ground.inside(argv), {"SOURCE_DATE_EPOCH": str(time)}, logged=False)
        if done.status != 0:
            # Asked before anything is cleared away, which makes room.
            error = failed(STAGE, f"mmdebstrap ended with {done.status} ({done.last})", job.where.log, self._cache)
            tar.unlink(missing_ok=True)
            raise error
        shutil.rmtree(seed, ignore_errors=True)

    def _unpack(self, job: Job, tar: Path) -> None:
        job.root.mkdir(mode=0o755)
        argv = [
            "tar",
            "--extract",
            "--numeric-owner",
            "--same-owner",
            "--preserve-permissions",
            "--xattrs",
            "--xattrs-include=*",
        ]
        done = run(job.where, STAGE, self.inside([*argv, "--exclude=./dev/*", "-C", str(job.root), "-f", str(tar)]))
        if done.status != 0:
            raise failed(STAGE, f"the root could not be unpacked ({done.last})", job.where.log)

    def _check(self, job: Job, debs: Sequence[Deb], pins: Mapping[str, str]) -> None:
        """What is installed is what was resolved, and what is pinned."""
        there = sbom.installed((job.root / sbom.STATUS).read_bytes())
        for name, version in sorted(pins.items()):
            if there.get(name) != version:
                raise failed(
                    STAGE,
                    f"the pin {name}={version} was not kept: installed is {there.get(name, 'nothing')}",
                    job.where.log,
                )
        wanted = {deb.package: deb.version for deb in debs}
        odd = sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))
        if odd:
            what = ", ".join(f"{name} ({wanted.get(name, 'none')} → {there.get(name, 'none')})" for name in odd[:5])
            raise failed(STAGE, f"another set of packages was installed than resolved: {what}", job.where.log)

    def _add(self, job: Job, made: recipe.Recipe) -> None:
        """The agent, the image's identity, the recipe's variables."""
        added = job.where.scratch / "added"
        files = {
            agent_app.PLACE: agent_app.application(),
            _IDENTITY: f"{job.identity}\n".encode(),
            _VARIABLES: "".join(
                f"{name}={shlex.quote(value)}\n" for name, value in sorted(made.variant.variables.items())
            ).encode(),
        }
        for name, data in files.items():
            path = added / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        plain_modes(added)
        (added / agent_app.PLACE).chmod(0o755)
        argv = ["cp", "-r", "--preserve=mode", "--no-preserve=ownership", f"{added}/.", str(job.root)]
        done = run(job.where, STAGE, self.inside(argv))
        if done.status != 0:
            raise failed(STAGE, f"the agent could not be put into the root ({done.last})", job.where.log)

    # ------------------------------------------------ working in it

    def script(self, job: Job, stage: str, name: str, arguments: Sequence[str] = (), *, change: bool = True) -> Ended:
        """Run a script of the recipe in the root, shut off from this machine."""
        assert self._recipe is not None
        place = sandbox.PLACE
        told = {**self._recipe.variant.variables, **job.variables(), "ROOT": "/", "IMAGE_ID": job.identity}
        if job.spec.packages:
            told["PINS"] = f"{place}/{PINS}"
        handed = {"recipe": job.recipe, PINS: job.pins}
        argv = [f"{place}/recipe/{name}", *arguments]
        boxed = self._ground.boxed(job.root, argv, told, handed, change=change, largest=job.slot_bytes)
        return run(job.where, stage, boxed)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """A tool of ours as the root's root."""
        return self._ground.inside(argv)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One build at a time works with the cache."""
        self._cache.mkdir(parents=True, exist_ok=True)
        with (self._cache / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _digest(file: Path) -> str:
    """The first half of a file's sha256: it is to tell damage."""
    return hashed(file)[1][:32]


def _link(source: Path, to: Path) -> None:
    """A hard link, or a copy where the two are on different file systems."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
