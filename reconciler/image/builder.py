"""Builds an image release from its recipe: a `ports.Builder`.

Seven stages, in this order, each a method: `packages` makes a root file system with the recipe's packages, `setup` runs
setup.sh on it, `check` runs healthcheck.sh on the result, `sysprep` takes out what belongs to one machine or one build,
`pack` makes the file system image, `gate` opens that image and refuses what must not be in it, `artifact` packs it with
its papers and moves it to the output, which is the only durable effect. A stage that fails is named; what it made is
removed, its log stays.

What the root is made of is a `Maker`'s: a distribution's packages (`image.rootfs`) or nothing (`image.bareroot`). Holds no
key and no credential. Interface of the scripts: README.md of the recipe. Source: design §1, "Creation".
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
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reconciler.image import ext4, pack
from reconciler.image.bareroot import BareRoot
from reconciler.image.disk import SLOT_BYTES
from reconciler.image.gate import inspect
from reconciler.image.inputs import BUILDER_VERSION, inputs_digest, read_recipe
from reconciler.image.job import Job, Maker, plain_modes
from reconciler.image.kept import Kept
from reconciler.image.process import FULL, PATH, Ended, Surroundings, failed, kill_left, no_room
from reconciler.image.progress import Hear, Progress, note
from reconciler.model.desired import ImageSpec
from reconciler.model.scalars import format_instant, release_key
from reconciler.ports import Built, TerminalError, TransientError
from reconciler.protocol.manifest import NAME as MANIFEST
from reconciler.protocol.manifest import Manifest

_SCRIPTS = ("setup.sh", "healthcheck.sh")


class ImageBuilder:
    """Builds below `work` (scratch and logs) and keeps finished artifacts below `output`, by what they were made from.

    `maker` makes the root; `committed_at` gives a commit's date, which dates the artifact; `timeout_s` bounds each program,
    `slot_bytes` the image; `progress` hears stages. A build whose inputs and tools were built before is not built again: the
    artifact of that earlier commit is returned, checked against its sums.
    """

    def __init__(
        self,
        work: Path,
        output: Path,
        *,
        committed_at: Callable[[str], datetime],
        maker: Callable[[], Maker] = BareRoot,
        timeout_s: float = 3600.0,
        slot_bytes: int = SLOT_BYTES,
        progress: Hear | None = None,
    ) -> None:
        self._work, self._output = work.absolute(), output.absolute()
        self._kept = Kept(self._output)
        self._scratch = self._work / "scratch"
        self._committed_at, self._timeout_s, self._slot_bytes = committed_at, timeout_s, slot_bytes
        self._make_maker, self._hear = maker, progress

    def build(self, release: str, spec: ImageSpec, recipe: Path, commit: str) -> Built:
        """Build, check and pack (port). The error names the stage that failed, and the log."""
        files = read_recipe(recipe)
        missing = [name for name in _SCRIPTS if not any(file.path == name and file.executable for file in files)]
        if missing:
            raise TerminalError(
                f"the recipe has no executable {missing[0]}",
                needed_for=f"building {release}",
                remedy=f"add {missing[0]} to the recipe, with git update-index --chmod=+x",
            )
        release_key(release)
        maker = self._make_maker()
        inputs = inputs_digest(release, spec, files, maker.kind)
        tools = {**_tools(), **maker.tools()}
        with self._alone(release, maker):
            found = self._kept.find(release, inputs, tools)
            if found is None:
                return self._build(release, spec, recipe, commit, inputs, tools, maker)
            # Slots may have been larger when it was built.
            image_size = Manifest.from_bytes((found.folder / MANIFEST).read_bytes()).image_size
            ext4.must_fit(image_size, self._slot_bytes, found.folder)
            return found

    @contextlib.contextmanager
    def _alone(self, release: str, maker: Maker) -> Iterator[None]:
        """Hold the release's lock, so that one build of it runs at a time, and clear away what a killed one left."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with (self._scratch / f".{release}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A folder of its own: the caller may keep what it exported beside it, under names like these.
            self._kept.clear(release)
            for left in self._scratch.glob(f"{release}-*"):
                kill_left(left)
                _remove(left, maker)
            yield

    def _build(
        self,
        release: str,
        spec: ImageSpec,
        recipe: Path,
        commit: str,
        inputs: str,
        tools: Mapping[str, str],
        maker: Maker,
    ) -> Built:
        """All stages in a scratch folder that is gone afterwards."""
        at = self._committed_at(commit).astimezone(UTC)
        name = f"{spec.family}-{release}-{at:%Y%m%d}"
        logs = self._work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{release}-", dir=self._scratch))
        log = logs / f"{release}-{inputs.removeprefix('sha256:')[:12]}.log"
        where = Surroundings(scratch, log, self._timeout_s)
        job = Job(release, spec, name, commit, inputs, int(at.timestamp()), tools, where, self._slot_bytes)
        progress = Progress(self._hear, log)
        try:
            log.write_text(f"{name} ({maker.kind}) from {inputs} at commit {commit}\n", encoding="utf-8")
            return self._stages(job, recipe, maker, progress)
        except OSError as error:
            raise _unwritten(progress.now, error, log, self._output, *maker.folders) from None
        finally:
            self._kept.clear(release)
            _remove(scratch, maker)

    def _stages(self, job: Job, recipe: Path, maker: Maker, progress: Progress) -> Built:
        """From the recipe to the artifact."""
        began = int(time.time())
        with progress.stage("packages"):
            self._hand_over(job, recipe)
            newest = maker.packages(job)
        with progress.stage("setup"):
            self._setup(job, maker)
        with progress.stage("check"):
            health = self._check(job, maker)
        with progress.stage("sysprep"):
            self._sysprep(job, maker)
        with progress.stage("pack"):
            raw = self._pack(job, maker, newest, began)
        with progress.stage("gate"):
            self._gate(job, raw)
        with progress.stage("artifact"):
            built = self._artifact(job, maker, raw, health)
        progress.done()
        return built

    # ------------------------------------------------ stages

    def _hand_over(self, job: Job, recipe: Path) -> None:
        """A copy of the recipe with plain modes, and the pins."""
        shutil.copytree(recipe, job.recipe)
        pins = "".join(f"{name} {version}\n" for name, version in sorted(job.spec.packages.items()))
        job.pins.write_text(pins, encoding="utf-8")
        plain_modes(job.recipe)
        job.pins.chmod(0o644)

    def _setup(self, job: Job, maker: Maker) -> None:
        ended = maker.script(job, "setup", "setup.sh")
        if ended.status != 0:
            raise failed("setup", _how("setup.sh", ended), job.where.log)
        release = job.root / "etc" / "edge-release"
        lines = (
            release.read_text("utf-8", "replace").splitlines() if release.is_file() and not release.is_symlink() else []
        )
        if f"RELEASE={job.release}" not in lines:
            raise failed("setup", f"setup.sh left no line RELEASE={job.release} in etc/edge-release", job.where.log)

    def _check(self, job: Job, maker: Maker) -> dict[str, Any]:
        """healthcheck.sh's report. It fails the build at critical; a warning is recorded in the manifest."""
        ended = maker.script(job, "check", "healthcheck.sh", ["--root", "/", "--json"], change=False)
        report = _report(ended.out)
        if ended.status not in (0, 1, 2) or report is None:
            raise failed("check", f"{_how('healthcheck.sh', ended)} and gave no report", job.where.log)
        bad = [f"{check['name']} ({check['message']})" for check in report["checks"] if check["status"] == "critical"]
        if ended.status == 2 or bad or report["status"] == "critical":
            raise failed("check", f"healthcheck.sh is critical: {', '.join(bad) or 'no check named'}", job.where.log)
        return report

    def _sysprep(self, job: Job, maker: Maker) -> None:
        if (job.recipe / "sysprep.sh").is_file():
            ended = maker.script(job, "sysprep", "sysprep.sh")
            if ended.status != 0:
                raise failed("sysprep", _how("sysprep.sh", ended), job.where.log)

    def _pack(self, job: Job, maker: Maker, newest: int, began: int) -> Path:
        raw = job.where.scratch / "raw.img"
        # From the inputs: two releases never share a UUID, two builds of one always do.
        name = str(uuid.uuid5(uuid.NAMESPACE_OID, job.inputs))
        ext4.make_image(
            job.where,
            job.root,
            raw,
            uuid=name,
            epoch=newest,
            began=began,
            most=job.slot_bytes,
            inside=maker.inside,
            keeps_owners=maker.keeps_owners,
        )
        return raw

    def _gate(self, job: Job, raw: Path) -> None:
        """Nothing that belongs to one machine, one site or one person is in the image. The signer looks again, with the
        fleet's keys in hand."""
        faults = inspect(raw)
        for fault in faults:
            note(job.where.log, f"{fault.path}: {fault.rule}: {fault.what}; {fault.remedy}")
        if faults:
            shown = "; ".join(f"{fault.path}: {fault.what}" for fault in faults[:5])
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise failed("gate", f"the image holds what no image may hold: {shown}{more}", job.where.log)

    def _artifact(self, job: Job, maker: Maker, raw: Path, health: dict[str, Any]) -> Built:
        """The packed image with its papers, moved into the output in one step."""
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
            "builderType": maker.kind,
            "tools": dict(job.tools),
            "packages": dict(job.spec.packages),
            "healthcheck": health,
        }
        software = (
            pack.Software(job.where, maker.vendor, job.spec.family, job.epoch) if maker.vendor is not None else None
        )
        digest = pack.write_artifact(folder, packed, raw, job.release, method, extra, software=software)
        kept = self._kept.keep(part, job.release, job.inputs, job.tools)
        return Built(job.release, job.name, kept / job.name, digest)


def _unwritten(stage: str, error: OSError, log: Path, *folders: Path) -> TransientError:
    """The error of what our own code could not write or read: most often a disk is full."""
    what = f"{error.strerror or error} ({error.filename or 'a file'})"
    place = Path(error.filename).parent if isinstance(error.filename, str) else log.parent.parent
    return no_room(stage, what, log, *folders, certain=error.errno in FULL) or TransientError(
        f"stage {stage!r} of the build failed: {what}",
        needed_for="building the image",
        remedy=f"see that this user may write to {place}; it is tried again",
    )


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


def _remove(scratch: Path, maker: Maker) -> None:
    """Remove a scratch folder, folders without write permission in it too, and files that belong to others in the root."""
    for folder, _, _ in os.walk(scratch):
        if not os.access(folder, os.W_OK | os.X_OK):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
    shutil.rmtree(scratch, ignore_errors=True)
    if scratch.exists():
        argv = maker.inside(["rm", "-rf", "--one-file-system", str(scratch)])
        subprocess.run(argv, capture_output=True, timeout=600, check=False, env={"PATH": PATH, "LC_ALL": "C"})
