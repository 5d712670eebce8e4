"""Faults on the way from a merged commit to a published release: a clear condition, nothing half published, and the next
ticks go on by themselves once the fault is gone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.image.progress import STAGES
from reconciler.model.observed import DeviceObservation
from reconciler.model.scalars import format_instant
from tests.controller.harness import document
from tests.controller.pipeline import RECONCILER, Keys, Pipeline, run_command
from tests.support.gpg import make_home
from tests.support.processes import runs, wait_until
from tests.support.recipes import CRITICAL, HEALTH, SETUP
from tests.support.system import need

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    for program, package in (("mke2fs", "e2fsprogs"), ("zstd", "zstd")):
        need(program, package)
    with make_home() as release, make_home() as assignment:
        yield Keys(release, assignment)


def published(line: Pipeline) -> bool:
    """Published, and nothing is stalled or waits."""
    assert line.state == "published", line.conditions()
    assert line.condition("Stalled")[:2] == ("False", "NothingStalled")
    assert line.condition("SigningReady")[:2] == ("True", "CanSign")
    return True


def failing(line: Pipeline, *words: str) -> None:
    """The build is stalled with these words in its message, and the store holds nothing at all."""
    line.later(120)
    status, reason, message = line.condition("Stalled")
    assert (status, reason) == ("True", "NeedsAttention")
    for word in ("build image=v1", *words):
        assert word in message, message
    assert line.stored() == [] and line.state == "absent"
    # It is not built again and again meanwhile.
    tried = len(builds(line))
    line.later()
    assert len(builds(line)) == tried


def builds(line: Pipeline) -> list[str]:
    return [
        str(fields["action"]) for event, fields in line.lines if event == "action" and "build" in str(fields["action"])
    ]


def test_a_merged_commit_is_built_signed_and_published_by_three_processes(tmp_path: Path, keys: Keys) -> None:
    line = Pipeline(tmp_path, keys)
    line.settle()
    assert published(line)
    # A single pass, which nobody can ask how far it is, says so itself.
    said = [str(fields["work"]).partition(",")[0] for event, fields in line.lines if event == "under way"]
    stages = [f"building v1: stage {name}" for name in STAGES]
    assert said[0] == "building v1" and [text for text in said if text in stages] == stages
    assert said.index("signing v1") < said.index("publishing v1")
    folder = next(path for path in (tmp_path / "images").iterdir() if path.is_dir())
    ring = tmp_path / "ring.gpg"
    argv = ["gpgv", "--keyring", str(ring), str(folder / "SHA256SUMS.gpg"), str(folder / "SHA256SUMS")]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    assert (
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, check=False).returncode == 0
    )
    line.close()


PINS = SETUP + 'if grep -qs "docker-ce 9" "$PINS"; then echo "docker-ce: no version 9 can be had" >&2; exit 100; fi\n'


def test_a_pin_that_cannot_be_had_is_named_and_a_new_pin_builds(tmp_path: Path, keys: Keys) -> None:
    pinned = document("Image", "v1", recipe="golden/", packages={"docker-ce": "9"})
    line = Pipeline(tmp_path, keys, changes={"images/golden/setup.sh": PINS, "images/v1.yaml": pinned})
    failing(line, "docker-ce: no version 9 can be had")
    line.commit("Pin", {"images/v1.yaml": document("Image", "v1", recipe="golden/", packages={"docker-ce": "8"})})
    line.later()
    assert published(line)
    line.close()


def test_a_setup_that_fails_is_named_with_its_stage_and_log(tmp_path: Path, keys: Keys) -> None:
    broken = "#!/bin/sh\necho cannot configure chrony >&2\nexit 7\n"
    line = Pipeline(tmp_path, keys, changes={"images/golden/setup.sh": broken})
    failing(line, "stage 'setup' of the build failed", "setup.sh ended with 7 (cannot configure chrony)", ".log")
    log = re.search(r"see (\S+\.log)", line.condition("Stalled")[2])
    assert log is not None and "cannot configure chrony" in Path(log[1]).read_text()
    # A commit that mends nothing is tried once, and found to fail in the same way.
    line.commit("Beside", {"sites/SITE-1.yaml": document("Site", "SITE-1", timezone="UTC", devices=["SITE-1-1"])})
    failing(line, "cannot configure chrony")
    line.commit("Mend", {"images/golden/setup.sh": SETUP})
    line.later()
    assert published(line)
    line.close()


def test_a_critical_healthcheck_names_the_check(tmp_path: Path, keys: Keys) -> None:
    line = Pipeline(tmp_path, keys, changes={"images/golden/healthcheck.sh": CRITICAL})
    failing(line, "stage 'check' of the build failed: healthcheck.sh is critical: nvidia (no driver)")
    line.commit("Mend", {"images/golden/healthcheck.sh": HEALTH})
    line.later()
    assert published(line)
    line.close()


# ---------------------------------------------------------------- what passes by itself


SMALL = """#!/bin/sh
# The builder on a disk of its own that is full soon, as long as the file {flag} is there.
[ -e {flag} ] || exec {builder} --work {work}
exec unshare {user} -m sh -c 'mount -t tmpfs -o size=400k none {work} && exec {builder} --work {work}'
"""


def test_a_full_disk_is_waited_out(tmp_path: Path, keys: Keys) -> None:
    user = "" if os.geteuid() == 0 else "-r"
    if subprocess.run([need("unshare", "util-linux"), *user.split(), "-m", "true"], check=False).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("this machine gives no mount namespace")
        pytest.skip("needs a mount namespace")
    flag, work, script = tmp_path / "full", tmp_path / "builder", tmp_path / "small"
    work.mkdir()
    flag.touch()
    script.write_text(SMALL.format(flag=flag, work=work, builder=f'"{RECONCILER}" builder', user=user))
    script.chmod(0o755)
    line = Pipeline(tmp_path, keys, builder=[str(script)], changes={"images/golden/setup.sh": SETUP + FILL})
    line.settle()
    assert line.condition("Stalled")[:2] == ("False", "NothingStalled"), line.condition("Stalled")
    status, reason, message = line.condition("Progressing")
    assert (status, reason) == ("False", "Retrying")
    assert "No space left on device" in message or "no space left on the disk" in message
    assert "room" in message and "again at" in message
    assert line.stored() == []
    line.later()
    assert line.condition("Progressing")[1] == "Retrying"
    flag.unlink()
    line.later()
    assert published(line)
    line.close()


FILL = 'head -c 2000000 /dev/urandom > "$ROOT/etc/large"\n'


def children(of: int, word: str) -> list[int]:
    """Processes below one whose command line holds a word."""
    out = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if int(stat[1]) == of and word in line and stat[0] != "Z":
                out.append(int(entry.name))
    return out


def slow(root: Path) -> str:
    """A setup that says that it has begun, and goes on until it may end."""
    return SETUP + f"touch {root}/begun\nuntil [ -e {root}/go ]; do sleep 0.1; done\n"


def test_a_killed_builder_is_started_again(tmp_path: Path, keys: Keys) -> None:
    line = Pipeline(tmp_path, keys, changes={"images/golden/setup.sh": slow(tmp_path)})
    line.start(inline=False)
    line.tick_until(lambda: bool(children(os.getpid(), "builder --work")))
    (builder,) = children(os.getpid(), "builder --work")
    line.tick_until(lambda: "building v1" in line.condition("Progressing")[2])
    assert line.condition("Progressing")[:2] == ("True", "AtWork")
    wait_until((tmp_path / "begun").exists)
    os.kill(builder, signal.SIGKILL)
    (tmp_path / "go").touch()
    line.tick_until(lambda: line.condition("Progressing")[1] == "Retrying")
    message = line.condition("Progressing")[2]
    assert "the builder was killed by signal 9" in message and "enough memory" in message
    assert line.stored() == [] and line.condition("Stalled")[0] == "False"
    line.clock.step(2000)
    line.tick_until(lambda: line.state == "published")
    assert published(line)
    line.close()


def run_controller(line: Pipeline, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [RECONCILER, "run", "--log", "json", "--config", str(line.config), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_a_killed_controller_takes_its_build_with_it_and_the_next_one_publishes(tmp_path: Path, keys: Keys) -> None:
    line = Pipeline(tmp_path, keys, changes={"images/golden/setup.sh": slow(tmp_path)})
    controller = run_controller(line, "--once")
    wait_until(lambda: children(controller.pid, "builder --work"))
    (builder,) = children(controller.pid, "builder --work")
    wait_until((tmp_path / "begun").exists)
    controller.kill()
    controller.communicate()
    wait_until(lambda: not runs(builder))
    (tmp_path / "go").touch()
    assert line.stored() == []
    assert list((tmp_path / "builder").glob("scratch/v1-*")) == [], "the build has cleared up behind itself"
    again = run_controller(line, "--once")
    _, said = again.communicate(timeout=240)
    assert again.returncode == 0, said
    line.start()
    assert published(line)
    assert len([row for row in line.program.store.journal(100) if row["kind"] == "build"]) == 1  # type: ignore[union-attr]
    line.close()


# ---------------------------------------------------------------- signatures


def waits(line: Pipeline) -> str:
    """The release is built and waits; the command that is shown."""
    status, reason, message = line.condition("SigningReady")
    assert (status, reason) == ("False", "AwaitingSignature") and line.state == "built", line.conditions()
    assert "index.json" not in line.stored()
    assert line.condition("Stalled")[0] == "False" and line.condition("Progressing")[:2] == ("False", "Held")
    head, _, command = message.partition("; run: ")
    assert head == "v1 is built and waits for its signature"
    return command


def test_a_missing_signature_is_waited_for_and_the_command_that_is_shown_makes_it(tmp_path: Path, keys: Keys) -> None:
    line = Pipeline(tmp_path, keys, signer={"type": "offline"})
    line.settle()
    command = waits(line)
    assert f"--key {keys.key}" in command and f"--commit {line.repo.head()}" in command
    line.later()
    assert waits(line) == command
    assert line.program is not None
    seen = DeviceObservation(name="SITE-1-1", site="SITE-1", last_seen=line.clock.now())
    line.program.store.observe([seen], sequences={"SITE-1-1": ("boot", 1)})
    for question in (["status"], ["explain", "SITE-1", "--at", format_instant(line.clock.now())]):
        said = subprocess.run(
            [RECONCILER, *question, "--config", str(line.config)], capture_output=True, text=True, check=False
        )
        assert command in said.stdout, said.stdout + said.stderr
    done = run_command(command, keys.release, "--yes")
    assert done.returncode == 0, done.stderr
    for word in ("release   v1 (edge-golden-v1-", "image     sha256:", "by Ada", ": First", keys.key, "packages"):
        assert word in done.stderr, done.stderr
    assert "NOT CHECKED" not in done.stderr
    line.later(61)
    assert published(line)
    # And once more: it is published, and says so by itself.
    assert run_command(command, keys.release, "--yes").returncode in (0, 1)
    line.close()


def test_a_foreign_signature_is_named_never_published_and_replaced(tmp_path: Path, keys: Keys) -> None:
    line = Pipeline(tmp_path, keys, signer={"type": "offline", "fingerprint": keys.key})
    line.settle()
    command = waits(line)
    assert line.program is not None
    sums = line.program.images.read("v1", "SHA256SUMS")
    line.program.images.attach_signature("v1", keys.release.sign_detached(sums, keys.other))
    line.later(61)
    status, reason, message = line.condition("Stalled")
    assert (status, reason) == ("True", "NeedsAttention")
    assert "publish image=v1: SHA256SUMS.gpg of v1 is refused" in message and "replace it: " + command in message
    assert line.state == "signed" and "index.json" not in line.stored()
    line.later(61)
    assert line.condition("Stalled")[0] == "True"
    assert run_command(command, keys.release, "--yes").returncode == 0
    line.later(61)
    assert published(line)
    line.close()


def test_a_signature_is_carried_on_a_stick_both_ways(tmp_path: Path, keys: Keys) -> None:
    line = Pipeline(tmp_path, keys, signer={"type": "offline"})
    line.settle()
    waits(line)
    stick = tmp_path / "stick"
    shutil.copytree(next(path for path in (tmp_path / "images").iterdir() if path.is_dir()), stick)
    done = run_command(f"reconciler image sign v1 --from {stick} --key {keys.key} --yes", keys.release)
    assert done.returncode == 0, done.stderr
    assert "NOT CHECKED: that an accepted commit names this release" in done.stderr
    assert done.stdout == f"{stick}/SHA256SUMS.gpg\n"
    config = f"--config {line.config}"
    bad = stick / "bad.gpg"
    bad.write_bytes(keys.release.sign_detached(b"other bytes", keys.key))
    refused = run_command(f"reconciler image sign v1 {config} --attach {bad}", keys.assignment)
    assert refused.returncode == 1 and "is refused" in refused.stderr and line.state == "built"
    taken = run_command(f"reconciler image sign v1 {config} --attach {stick}/SHA256SUMS.gpg", keys.assignment)
    assert taken.returncode == 0, taken.stderr
    line.later(61)
    assert published(line)
    line.close()


def test_a_signer_that_does_not_answer_is_asked_again(tmp_path: Path, keys: Keys) -> None:
    line = Pipeline(tmp_path, keys)
    signer = tmp_path / "signer.yaml"
    kept = signer.read_text()
    signer.write_text(kept.replace(str(tmp_path / "fleet"), str(tmp_path / "nowhere")))
    line.settle()
    assert line.condition("SigningReady")[:2] == ("False", "CannotSign")
    assert line.state == "built" and "index.json" not in line.stored()
    signer.write_text(kept)
    line.later(3700)
    assert published(line)
    line.close()
