"""Builds an image release from its recipe: a `ports.Builder` for a small root file system, without root.

Six stages, in this order, each a method: `stage` copies the recipe, `setup` runs setup.sh on an empty root, `check`
runs healthcheck.sh on the result, `sysprep` runs sysprep.sh where the recipe has one, `pack` makes the file system
image, `manifest` packs the artifact and moves it to the output, which is the only durable effect. A stage that fails is
named; what it made is removed, its log stays.

The root holds what the recipe adds, on no distribution underneath: packages of the Image document are handed to
setup.sh as pins and named in the manifest, not installed. Holds no key and no credential. Interface of the scripts:
README.md of the recipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reconciler.image import ext4, pack
from reconciler.image.inputs import BUILDER_VERSION, inputs_digest, read_recipe
from reconciler.image.process import PATH, Ended, Surroundings, failed, run
from reconciler.model.desired import ImageSpec
from reconciler.model.scalars import format_instant, release_key
from reconciler.ports import Built, TerminalError
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, SUMS, Manifest
from reconciler.protocol.sums import parse_sums

_SCRIPTS = ("setup.sh", "healthcheck.sh")


@dataclass(frozen=True, slots=True)
class Job:
    """One build on its way: what is built from what, and the folders it may write to."""

    release: str
    spec: ImageSpec
    name: str
    commit: str
    inputs: str
    epoch: int
    tools: Mapping[str, str]
    where: Surroundings

    @property
    def recipe(self) -> Path:
        """The copy of the recipe that the scripts run from."""
        return self.where.scratch / "recipe"

    @property
    def root(self) -> Path:
        """The root file system."""
        return self.where.scratch / "root"

    def variables(self) -> dict[str, str]:
        """What the recipe's scripts are told, as its README says."""
        told = {
            "ROOT": str(self.root),
            "SITE_ID": "golden",
            "RELEASE": self.release,
            "SOURCE_DATE_EPOCH": str(self.epoch),
        }
        return {**told, "PINS": str(self.where.scratch / "pins")} if self.spec.packages else told


class RootfsBuilder:
    """Builds below `work` (scratch and logs) and keeps finished artifacts below `output`, by what they were made from.

    `committed_at` gives a commit's date, which dates the artifact. `timeout_s` bounds each script. A build whose inputs
    and tools were built before is not built again: the artifact of that earlier commit is returned, checked against its
    sums.
    """

    def __init__(
        self, work: Path, output: Path, *, committed_at: Callable[[str], datetime], timeout_s: float = 3600.0
    ) -> None:
        self._work, self._output = work.absolute(), output.absolute()
        self._scratch = self._work / "scratch"
        self._committed_at, self._timeout_s = committed_at, timeout_s

    def build(self, release: str, spec: ImageSpec, recipe: Path, commit: str) -> Built:
        """Build, check and pack (port). TerminalError names the stage that failed, and the log."""
        files = read_recipe(recipe)
        missing = [name for name in _SCRIPTS if not any(file.path == name and file.executable for file in files)]
        if missing:
            raise TerminalError(
                f"the recipe has no executable {missing[0]}",
                needed_for=f"building {release}",
                remedy=f"add {missing[0]} to the recipe, with git update-index --chmod=+x",
            )
        inputs, tools = inputs_digest(release, spec, files), _tools()
        kept = self._output / _key(inputs, tools)
        release_key(release)
        with self._alone(release):
            found = self._kept(release, kept)
            return found if found is not None else self._build(release, spec, recipe, commit, inputs, tools, kept)

    @contextlib.contextmanager
    def _alone(self, release: str) -> Iterator[None]:
        """Hold the release's lock, so that one build of it runs at a time, and clear away what a killed one left."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with (self._scratch / f".{release}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A folder of its own: the caller may keep what it exported beside it, under names like these.
            for left in self._scratch.glob(f"{release}-*"):
                _remove(left)
            yield

    def _build(
        self,
        release: str,
        spec: ImageSpec,
        recipe: Path,
        commit: str,
        inputs: str,
        tools: Mapping[str, str],
        kept: Path,
    ) -> Built:
        """All stages in a scratch folder that is gone afterwards."""
        at = self._committed_at(commit).astimezone(UTC)
        name = f"{spec.family}-{release}-{at:%Y%m%d}"
        logs = self._work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{release}-", dir=self._scratch))
        try:
            log = logs / f"{release}-{inputs.removeprefix('sha256:')[:12]}.log"
            log.write_text(f"{name} from {inputs} at commit {commit}\n", encoding="utf-8")
            where = Surroundings(scratch, log, self._timeout_s)
            job = Job(release, spec, name, commit, inputs, int(at.timestamp()), tools, where)
            self._stage(job, recipe)
            self._setup(job)
            health = self._check(job)
            self._sysprep(job)
            raw = self._pack(job)
            return self._manifest(job, raw, health, kept)
        finally:
            _remove(scratch)

    # ------------------------------------------------ stages

    def _stage(self, job: Job, recipe: Path) -> None:
        """A copy of the recipe with plain modes, an empty root, and the pins."""
        shutil.copytree(recipe, job.recipe)
        for path in (job.recipe, *job.recipe.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        job.root.mkdir(mode=0o755)
        job.root.chmod(0o755)
        pins = "".join(f"{name} {version}\n" for name, version in sorted(job.spec.packages.items()))
        (job.where.scratch / "pins").write_text(pins, encoding="utf-8")

    def _setup(self, job: Job) -> None:
        ended = run(job.where, "setup", [str(job.recipe / "setup.sh")], job.variables())
        if ended.status != 0:
            raise failed("setup", _how("setup.sh", ended), job.where.log)
        release = job.root / "etc" / "edge-release"
        lines = (
            release.read_text("utf-8", "replace").splitlines() if release.is_file() and not release.is_symlink() else []
        )
        if f"RELEASE={job.release}" not in lines:
            raise failed("setup", f"setup.sh left no line RELEASE={job.release} in etc/edge-release", job.where.log)

    def _check(self, job: Job) -> dict[str, Any]:
        """healthcheck.sh's report. It fails the build at critical; a warning is recorded in the manifest."""
        argv = [str(job.recipe / "healthcheck.sh"), "--root", str(job.root), "--json"]
        ended = run(job.where, "check", argv, {"SITE_ID": "golden"})
        report = _report(ended.out)
        if ended.status not in (0, 1, 2) or report is None:
            raise failed("check", f"{_how('healthcheck.sh', ended)} and gave no report", job.where.log)
        bad = [f"{check['name']} ({check['message']})" for check in report["checks"] if check["status"] == "critical"]
        if ended.status == 2 or bad or report["status"] == "critical":
            raise failed("check", f"healthcheck.sh is critical: {', '.join(bad) or 'no check named'}", job.where.log)
        return report

    def _sysprep(self, job: Job) -> None:
        if (job.recipe / "sysprep.sh").is_file():
            ended = run(job.where, "sysprep", [str(job.recipe / "sysprep.sh")], job.variables())
            if ended.status != 0:
                raise failed("sysprep", _how("sysprep.sh", ended), job.where.log)

    def _pack(self, job: Job) -> Path:
        raw = job.where.scratch / "raw.img"
        # From the inputs: two releases never share a UUID, two builds of one always do.
        name = str(uuid.uuid5(uuid.NAMESPACE_OID, job.inputs))
        size = ext4.image_size(job.root)
        ext4.make_image(job.where, job.root, raw, size=size, uuid=name, epoch=job.epoch)
        return raw

    def _manifest(self, job: Job, raw: Path, health: dict[str, Any], kept: Path) -> Built:
        """The artifact, moved into the output in one step."""
        part = job.where.scratch / "artifact"
        folder = part / job.name
        folder.mkdir(parents=True)
        method = job.tools["compression"]
        packed = pack.compress(job.where, raw, folder, job.name, method)
        extra = {
            "name": job.name,
            "family": job.spec.family,
            "commit": job.commit,
            "committedAt": format_instant(datetime.fromtimestamp(job.epoch, UTC)),
            "inputs": job.inputs,
            "builder": BUILDER_VERSION,
            "tools": dict(job.tools),
            "packages": dict(job.spec.packages),
            "healthcheck": health,
        }
        digest = pack.write_artifact(folder, packed, raw, job.release, method, extra)
        self._output.mkdir(parents=True, exist_ok=True)
        if kept.exists():  # damaged, or another builder was faster
            shutil.rmtree(kept)
        # Work and output may lie on two file systems: copy first, so that the last step is a rename.
        staged = self._output / f".{kept.name}"  # one at a time: the release is locked
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(part, staged)
        for path in (*sorted((staged / job.name).iterdir()), staged / job.name, staged):
            pack.sync(path)
        staged.rename(kept)
        pack.sync(self._output)
        return Built(job.release, job.name, kept / job.name, digest)

    # ------------------------------------------------ what was built before

    def _kept(self, release: str, kept: Path) -> Built | None:
        """An earlier artifact from the same inputs, if all its bytes are as its sums say."""
        folders = [path for path in kept.iterdir() if path.is_dir()] if kept.is_dir() else []
        if len(folders) != 1:
            return None
        folder = folders[0]
        try:
            sums = parse_sums((folder / SUMS).read_bytes())
            manifest = Manifest.from_bytes((folder / NAME).read_bytes())
            whole = all(pack.hashed(folder / name)[1] == digest for name, digest in sums.items())
        except (OSError, Malformed):
            return None
        if not whole or manifest.release != release or {path.name for path in folder.iterdir()} != {*sums, SUMS}:
            return None
        return Built(release, folder.name, folder, manifest.digest)


def _key(inputs: str, tools: Mapping[str, str]) -> str:
    """Name of an artifact's folder in the output: what it was made from, and with."""
    import hashlib

    text = inputs + json.dumps(dict(sorted(tools.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _tools() -> dict[str, str]:
    """What else decides the bytes: the versions of e2fsprogs and of the compressor."""
    method = pack.compression()
    tools = {"compression": method, "mke2fs": _version([ext4.tool("mke2fs"), "-V"])}
    return {**tools, "zstd": _version(["zstd", "--version"])} if method == "zstd" else tools


def _version(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False, env={"PATH": PATH, "LC_ALL": "C"})
    found = re.search(r"\d+(?:\.\d+)+", (done.stdout + done.stderr).decode("utf-8", "replace"))
    return found.group() if found else "unknown"


def _report(out: bytes) -> dict[str, Any] | None:
    """healthcheck.sh's JSON, its known parts only; None where it is not what the recipe's README says."""
    try:
        report = json.loads(out)
        checks = [{key: str(check[key])[:200] for key in ("name", "status", "message")} for check in report["checks"]]
        return {"status": str(report["status"]), "checks": checks[:200]}
    except (ValueError, KeyError, TypeError):
        return None


def _how(script: str, ended: Ended) -> str:
    return f"{script} ended with {ended.status} ({ended.last})"


def _remove(scratch: Path) -> None:
    """Remove a scratch folder, folders without write permission in it too."""
    for folder, _, _ in os.walk(scratch):
        if not os.access(folder, os.W_OK | os.X_OK):
            os.chmod(folder, 0o700)
    shutil.rmtree(scratch, ignore_errors=True)
