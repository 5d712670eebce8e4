"""The builder on the example recipe and on recipes that fail: same bytes, named stages, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from reconciler.image.builder import ImageBuilder
from reconciler.image.inputs import inputs_digest, read_recipe
from reconciler.image.progress import Hear
from reconciler.model.desired import ImageSpec
from reconciler.ports import Built, TerminalError, TransientError
from reconciler.protocol.manifest import Manifest
from reconciler.protocol.sums import parse_sums
from tests.support.gpg import make_home
from tests.support.processes import runs, wait_until
from tests.support.system import need

pytestmark = pytest.mark.system
TOP = Path(__file__).parents[2]
EXAMPLE = TOP / "fleet" / "images" / "edge-golden"
# What every image needs: its release, and the keys that it trusts.
SETUP = """#!/bin/sh
set -e
mkdir -p $ROOT/etc/edge
echo RELEASE=$RELEASE > $ROOT/etc/edge-release
cp -r "${0%/*}/keys" $ROOT/etc/edge/keys
"""
HEALTH = """#!/bin/sh\necho '{"checks":[{"name":"a","status":"ok","message":"m"}],"status":"ok"}'\n"""


@cache
def keys() -> dict[str, bytes]:
    """Release keys as an image holds them."""
    with make_home() as home:
        made = home.generate("Release <release@example.org>")
        return {"release.gpg": home.export([made]), "release.fpr": f"{made}\n".encode()}


def with_keys(folder: Path) -> Path:
    """Put release keys into a folder of a recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in keys().items():
        (folder / name).write_bytes(data)
    return folder


def example(folder: Path) -> Path:
    """A copy of the example's recipe, with keys."""
    shutil.copytree(EXAMPLE, folder)
    with_keys(folder / "rootfs/etc/edge/keys")
    return folder


def builder(
    folder: Path, day: int = 15, timeout_s: float = 250, progress: Hear | None = None, slot_bytes: int = 64 << 20
) -> ImageBuilder:
    need("mke2fs", "e2fsprogs")
    at = datetime(2025, 11, day, 12, tzinfo=UTC)
    return ImageBuilder(
        folder / "work",
        folder / "out",
        committed_at=lambda _: at,
        timeout_s=timeout_s,
        slot_bytes=slot_bytes,
        progress=progress,
    )


def recipe(folder: Path, setup: str = SETUP, health: str = HEALTH) -> Path:
    folder.mkdir(parents=True)
    for name, text in (("setup.sh", setup), ("healthcheck.sh", health)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    with_keys(folder / "keys")
    return folder


def build(made: ImageBuilder, source: Path, commit: str = "a" * 40, **spec: object) -> Built:
    return made.build("v1.4.2", ImageSpec.model_validate({"recipe": "r/", **spec}), source, commit)


def debugfs(command: str, image: Path) -> str:
    return subprocess.run(
        [need("debugfs", "e2fsprogs"), "-R", command, str(image)], capture_output=True, text=True, check=True
    ).stdout


def raw(built: Built, to: Path) -> Path:
    manifest = Manifest.from_bytes((built.folder / "manifest.json").read_bytes())
    packed = built.folder / manifest.file
    if manifest.compression == "none":
        shutil.copyfile(packed, to)
    else:
        subprocess.run([need("zstd"), "-q", "-d", "-o", str(to), str(packed)], check=True)
    return to


def test_two_builds_elsewhere_and_later_are_bit_identical(tmp_path: Path) -> None:
    source = example(tmp_path / "recipe")
    copy = Path(shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copyfile))
    for path in source.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(source)).chmod(path.stat().st_mode & 0o755)
    one = build(builder(tmp_path / "one"), source, packages={"docker-ce": "5:27"})
    time.sleep(1.1)
    two = build(builder(tmp_path / "a" / "longer" / "two"), copy, packages={"docker-ce": "5:27"})
    assert one.name == two.name == "edge-golden-v1.4.2-20251115" and one.digest == two.digest
    names = sorted(path.name for path in one.folder.iterdir())
    assert len(names) == 4
    for name in names:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_the_artifact_is_what_its_papers_say(tmp_path: Path) -> None:
    source = example(tmp_path / "recipe")
    built = build(builder(tmp_path), source)
    sums = parse_sums((built.folder / "SHA256SUMS").read_bytes())
    manifest = Manifest.from_bytes((built.folder / "manifest.json").read_bytes())
    assert set(sums) == {manifest.file, f"{built.name}.chunks", "manifest.json"} and manifest.release == "v1.4.2"
    image = raw(built, tmp_path / "raw.img")
    assert image.stat().st_size == manifest.image_size == manifest.extra["minSlotSize"]
    assert manifest.digest == built.digest and manifest.extra["commit"] == "a" * 40
    assert manifest.extra["healthcheck"]["status"] == "ok"
    assert manifest.extra["inputs"] == inputs_digest("v1.4.2", ImageSpec(recipe="r/"), read_recipe(source))
    assert "RELEASE=v1.4.2" in debugfs("cat /etc/edge-release", image)
    assert debugfs("cat /usr/local/bin/healthcheck.sh", image).startswith("#!/bin/bash")
    stat = debugfs("stat /usr/local/bin/healthcheck.sh", image)
    assert "User:     0   Group:     0" in stat and "Mode:  0755" in stat
    epoch = f"0x{int(datetime(2025, 11, 15, 12, tzinfo=UTC).timestamp()):08x}:00000000"
    assert stat.count(epoch) == 4


def test_what_was_built_is_not_built_again(tmp_path: Path) -> None:
    source = recipe(tmp_path / "r")
    made = builder(tmp_path)
    first = build(made, source)
    assert build(builder(tmp_path, day=16), source, "b" * 40) == first
    packed = next(path for path in first.folder.iterdir() if ".img" in path.name)
    packed.write_bytes(packed.read_bytes() + b"x")
    again = build(made, source)
    assert again == first and packed.read_bytes()[-1:] != b"x"
    (source / "new").write_text("x")
    assert build(made, source).folder != first.folder


def test_scripts_see_an_empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sentinel")
    monkeypatch.setenv("GNUPGHOME", "/sentinel")
    built = build(builder(tmp_path), recipe(tmp_path / "r", SETUP + "env > $ROOT/env\n"))
    seen = debugfs("cat /env", raw(built, tmp_path / "raw.img"))
    names = {line.partition("=")[0] for line in seen.splitlines()}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        "PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "ROOT", "SITE_ID", "RELEASE", "SOURCE_DATE_EPOCH"
    }  # fmt: skip
    assert "sentinel" not in seen and "SITE_ID=golden" in seen


CRITICAL = """#!/bin/sh\necho '{"checks":[{"name":"gpu","status":"critical","message":"gone"}],"status":"critical"}'\nexit 2\n"""


@pytest.mark.parametrize(
    ("setup", "health", "said"),
    [
        ("#!/bin/sh\necho no such package >&2\nexit 7\n", HEALTH, "stage 'setup'.*ended with 7 .no such package"),
        ("#!/bin/sh\n", HEALTH, "stage 'setup'.*RELEASE=v1.4.2"),
        ("#!/nonexistent\n", HEALTH, "stage 'setup'.*cannot be run"),
        (SETUP, CRITICAL, r"stage 'check'.*critical: gpu \(gone\)"),
        (SETUP, "#!/bin/sh\necho fine\n", "stage 'check'.*no report"),
        (SETUP, HEALTH + "exit 3\n", "stage 'check'"),
        ("#!/bin/sh\nexit 9\n", HEALTH, r"ended with 9 \(it said nothing\)"),
    ],
)
def test_a_failed_stage_is_named_and_leaves_nothing(tmp_path: Path, setup: str, health: str, said: str) -> None:
    with pytest.raises(TerminalError, match=said) as caught:
        build(builder(tmp_path), recipe(tmp_path / "r", setup, health))
    assert ".log" in caught.value.remedy
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"logs", "scratch"}
    assert [path.name for path in (tmp_path / "work" / "scratch").iterdir()] == [".v1.4.2.lock"]
    assert not (tmp_path / "out").exists()


def test_what_a_killed_build_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "work" / "scratch" / "v1.4.2-abc" / "root"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    left.chmod(0o500)
    build(builder(tmp_path), recipe(tmp_path / "r"))
    assert [path.name for path in (tmp_path / "work" / "scratch").iterdir()] == [".v1.4.2.lock"]


def test_a_warning_is_recorded(tmp_path: Path) -> None:
    health = HEALTH.replace("ok", "warning") + "exit 1\n"
    built = build(builder(tmp_path), recipe(tmp_path / "r", health=health))
    manifest = json.loads((built.folder / "manifest.json").read_bytes())
    assert manifest["healthcheck"]["status"] == "warning"


def test_a_hanging_script_is_killed_with_all_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    source = recipe(tmp_path / "r", f"#!/bin/sh\nsleep 1000 & echo $! > {mark}\nwait\n")
    mark.write_text("")
    # On a machine that has much to do it comes as far as that within a longer time only.
    for timeout_s in (0.3, 5, 100):
        with pytest.raises(TerminalError, match=rf"stage 'setup'.*did not end within {timeout_s:g} s"):
            build(builder(tmp_path, timeout_s=timeout_s), source)
        if child := mark.read_text().strip():
            break
    wait_until(lambda: not runs(child))


def test_recipes_with_links_or_without_scripts_are_refused(tmp_path: Path) -> None:
    source = recipe(tmp_path / "r")
    (source / "setup.sh").chmod(0o644)
    with pytest.raises(TerminalError, match=r"no executable setup\.sh"):
        build(builder(tmp_path), source)
    os.symlink("/etc/passwd", source / "link")
    with pytest.raises(TerminalError, match="link is not a regular file"):
        build(builder(tmp_path), source)
    with pytest.raises(TerminalError, match="no recipe folder"):
        build(builder(tmp_path), tmp_path / "none")


def test_odd_names_links_and_hard_links_survive(tmp_path: Path) -> None:
    odd = 'cd $ROOT; touch "a b" "q\\"x" -- -d; ln -s /etc/x l; ln "a b" h; mkdir -m 0700 deep; touch deep/f; touch "n\nl"\n'
    image = raw(build(builder(tmp_path), recipe(tmp_path / "r", SETUP + odd)), tmp_path / "raw.img")
    listing = debugfs("ls -p /", image)
    assert "/a b/" in listing and "/deep/" in listing and "/l/" in listing


def test_the_digest_follows_what_decides_the_bytes() -> None:
    files = read_recipe(EXAMPLE)
    spec = ImageSpec(recipe="r/")
    base = inputs_digest("v1.4.2", spec, files)
    assert base == inputs_digest("v1.4.2", spec.model_copy(update={"withdrawn": "bad"}), reversed(files))
    assert base != inputs_digest("v1.4.3", spec, files)
    assert base != inputs_digest("v1.4.2", ImageSpec(recipe="r/", packages={"a": "1"}), files)
    assert base != inputs_digest("v1.4.2", spec, files[1:])


STAGES = ("packages", "setup", "check", "sysprep", "pack", "gate", "artifact", "done")


def test_stages_are_told_in_their_order_with_the_time_gone_by(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    made = builder(tmp_path, progress=lambda stage, elapsed_s: told.append((stage, elapsed_s)))
    build(made, recipe(tmp_path / "r"))
    assert tuple(stage for stage, _ in told) == STAGES
    assert [elapsed_s for _, elapsed_s in told] == sorted(elapsed_s for _, elapsed_s in told)
    (log,) = (tmp_path / "work/logs").iterdir()
    assert all(f"=== stage {stage}, after" in log.read_text() for stage in STAGES[:-1])
    build(made, tmp_path / "r")
    assert len(told) == len(STAGES)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_build_that_was_killed_in_a_stage_is_made_anew(tmp_path: Path, stage: str) -> None:
    source = recipe(tmp_path / "r", SETUP + f"sleep 97.{os.getpid()} &\n")
    code = f"""
import os, signal
from pathlib import Path
from tests.image.test_builder import build, builder
killed = lambda stage, _: os.kill(os.getpid(), signal.SIGKILL) if stage == {stage!r} else None
build(builder(Path({str(tmp_path)!r}), progress=killed), Path({str(source)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list((tmp_path / "out").glob("[0-9a-f]*"))
    built = build(builder(tmp_path), source)
    assert [path.name for path in (tmp_path / "work" / "scratch").iterdir()] == [".v1.4.2.lock"]
    assert build(builder(tmp_path / "whole"), source).digest == built.digest


def test_what_a_killed_build_left_running_is_ended(tmp_path: Path) -> None:
    scratch = tmp_path / "work" / "scratch" / "v1.4.2-abc"
    scratch.mkdir(parents=True)
    left = subprocess.Popen(["sleep", "100"], env={"HOME": f"{scratch}/home", "PATH": "/usr/bin:/bin"})
    try:
        build(builder(tmp_path), recipe(tmp_path / "r"))
        assert left.wait(60) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


def test_what_cannot_be_written_is_tried_again_and_names_its_stage(tmp_path: Path) -> None:
    # A file where the output's folder must be: as a full disk, it is met by our own code, in the last stage.
    (tmp_path / "out").write_text("")
    with pytest.raises(TransientError, match="stage 'artifact' of the build failed: File exists"):
        build(builder(tmp_path), recipe(tmp_path / "r"))
    assert [path.name for path in (tmp_path / "work" / "scratch").iterdir()] == [".v1.4.2.lock"]


def test_the_gate_ends_a_build_whose_image_holds_a_secret(tmp_path: Path) -> None:
    secret = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
    source = recipe(tmp_path / "r", SETUP + 'cp "${0%/*}/secret" $ROOT/etc/deploy\n')
    (source / "secret").write_text(secret)
    with pytest.raises(TerminalError, match=r"stage 'gate'.*/etc/deploy"):
        build(builder(tmp_path), source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("free", "kind"), [(1 << 30, TransientError), (3 << 30, TerminalError)])
def test_a_script_that_fills_a_folder_in_memory_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kind: type[Exception]
) -> None:
    monkeypatch.setattr("reconciler.image.process.room", lambda _: free)
    full = "#!/bin/sh\necho 'head: No space left on device' >&2\nexit 4\n"
    with pytest.raises(kind, match=r"stage 'setup'.*No space left on device"):
        build(builder(tmp_path), recipe(tmp_path / "r", full))


def test_an_image_that_no_slot_holds_fails_at_pack_and_says_both_sizes(tmp_path: Path) -> None:
    large = recipe(tmp_path / "recipe", SETUP + "head -c 30000000 /dev/zero > $ROOT/large\n")
    with pytest.raises(TerminalError) as caught:
        build(builder(tmp_path, slot_bytes=32 << 20), large)
    said = str(caught.value)
    assert "stage 'pack' of the build failed: the image has 46MiB, and a slot has 32MiB" in said
    assert "builder.slotSize" in said and "--slot-size" in said
    assert not list((tmp_path / "out").rglob("*.img*")) and not list((tmp_path / "work/scratch").glob("v*"))
    built = build(builder(tmp_path, slot_bytes=46 << 20), large)
    # What was built for larger slots is not handed out for smaller ones.
    with pytest.raises(TerminalError, match="the image has 46MiB, and a slot has 45MiB"):
        build(builder(tmp_path, slot_bytes=45 << 20), large)
    assert build(builder(tmp_path, slot_bytes=46 << 20), large) == built
