"""`ports.Builder`, in this process and in another: one contract for both. Then what is the other process's alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.adapters import builder_process
from reconciler.adapters.builder_process import ProcessBuilder
from reconciler.controller.bootstrap import make_local_builder
from reconciler.controller.settings import BuilderSettings
from reconciler.model.desired import ImageSpec
from reconciler.ports import Builder, Built, TerminalError, TransientError
from reconciler.protocol.manifest import NAME, SUMS, Manifest
from reconciler.protocol.sums import parse_sums
from tests.support.recipes import CRITICAL, HEALTH, SETUP
from tests.support.system import need

pytestmark = [pytest.mark.system, pytest.mark.slow]
AT = datetime(2025, 11, 15, 12, tzinfo=UTC)
SPEC = ImageSpec(recipe="golden/")
COMMAND = [str(Path(sys.executable).parent / "reconciler"), "builder"]
Told = list[tuple[str, float]]


def write_recipe(folder: Path, **files: str) -> Path:
    """A recipe whose image passes the gate, but for what `files` says otherwise."""
    from tests.support.gpg import make_home

    (folder / "rootfs/etc/edge/keys").mkdir(parents=True)
    with make_home() as home:
        key = home.generate("R <r@example.org>")
        (folder / "rootfs/etc/edge/keys/release.gpg").write_bytes(home.export([key]))
    (folder / "rootfs/etc/edge/keys/release.fpr").write_text(f"{key}\n")
    for name, text in {"setup.sh": SETUP, "healthcheck.sh": HEALTH, **files}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


Make = Callable[..., Builder]


@pytest.fixture(params=["in this process", "in another"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes the builder in question, with a progress callback."""
    need("mke2fs", "e2fsprogs")

    def made(told: Told | None = None, work: str = "work") -> Builder:
        def hear(stage: str, elapsed_s: float) -> None:
            (told if told is not None else []).append((stage, elapsed_s))

        if request.param == "in another":
            return process([*COMMAND, "--work", str(tmp_path / work)], hear)
        place = tmp_path / work
        return make_local_builder(BuilderSettings(type="files"), place, place / "artifacts", lambda _: AT, hear)

    return made


def process(
    command: list[str], hear: Callable[[str, float], None] | None = None, timeout_s: float = 250
) -> ProcessBuilder:
    return ProcessBuilder(
        command, committed_at=lambda _: AT, options={"type": "files"}, timeout_s=timeout_s, progress=hear
    )


def build(made: Builder, recipe: Path, release: str = "v1.4.2") -> Built:
    return made.build(release, SPEC, recipe, "a" * 40)


# ---------------------------------------------------------------- the contract


def test_an_artifact_is_whole_and_named_by_release_and_day(make: Make, tmp_path: Path) -> None:
    built = build(make(), write_recipe(tmp_path / "recipe"))
    assert (built.release, built.name) == ("v1.4.2", "edge-golden-v1.4.2-20251115")
    assert built.folder.name == built.name
    sums = parse_sums((built.folder / SUMS).read_bytes())
    assert {path.name for path in built.folder.iterdir()} == {*sums, SUMS}
    for name, digest in sums.items():
        assert hashlib.sha256((built.folder / name).read_bytes()).hexdigest() == digest
    manifest = Manifest.from_bytes((built.folder / NAME).read_bytes())
    assert (manifest.release, manifest.digest, manifest.extra["commit"]) == ("v1.4.2", built.digest, "a" * 40)


def test_the_same_inputs_give_the_same_bytes_and_are_not_built_again(make: Make, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    one, again, elsewhere = build(make(), recipe), build(make(), recipe), build(make(work="other"), recipe)
    assert again == one and elsewhere.digest == one.digest and elsewhere.folder != one.folder
    for path in one.folder.iterdir():
        assert path.read_bytes() == (elsewhere.folder / path.name).read_bytes()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("setup.sh", "#!/bin/sh\necho no chrony >&2\nexit 3\n", r"stage 'setup' .*setup.sh ended with 3 \(no chrony\)"),
        ("healthcheck.sh", CRITICAL, r"stage 'check' .*critical: nvidia \(no driver\)"),
    ],
)
def test_a_stage_that_fails_is_named_and_leaves_no_artifact(
    make: Make, tmp_path: Path, file: str, text: str, said: str
) -> None:
    with pytest.raises(TerminalError, match=said) as caught:
        build(make(), write_recipe(tmp_path / "recipe", **{file: text}))
    assert ".log" in caught.value.remedy and caught.value.needed_for
    assert not list((tmp_path / "work").rglob(SUMS)) and not list((tmp_path / "work").glob("scratch/v1*"))


def test_what_is_no_recipe_is_refused(make: Make, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    (recipe / "link").symlink_to("/etc/passwd")
    with pytest.raises(TerminalError, match="recipe file link is not a regular file"):
        build(make(), recipe)
    (recipe / "link").unlink()
    (recipe / "setup.sh").chmod(0o644)
    with pytest.raises(TerminalError, match=r"no executable setup\.sh"):
        build(make(), recipe)


def test_stages_are_told_in_their_order_with_rising_seconds(make: Make, tmp_path: Path) -> None:
    told: Told = []
    build(make(told), write_recipe(tmp_path / "recipe"))
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert [stage for stage in stages if stage in ("setup", "check", "pack")] == ["setup", "check", "pack"]
    seconds = [elapsed for _, elapsed in told]
    assert seconds == sorted(seconds) and seconds[0] >= 0


# ---------------------------------------------------------------- the other process alone


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_process_gets_the_request_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "GNUPGHOME", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "sentinel")
    code = (
        "import os,sys,json; line = json.loads(sys.stdin.buffer.readline());"
        "sys.exit('error: ' + ' '.join([*sorted(os.environ), *sorted(line), os.getcwd()]))"
    )
    with pytest.raises(TerminalError) as caught:
        build(process(script(code)), write_recipe(tmp_path / "recipe"))
    words = caught.value.wrong.split()
    assert set(words) <= {
        "PATH", "LANG", "LC_CTYPE", "/", "release", "spec", "commit", "committedAt", "recipeBytes", "builder"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (
            "import sys; sys.exit('error: stage x failed; needed for y; do z')",
            TerminalError,
            "^stage x failed; .*; do z",
        ),
        ("import sys; print('error: no room', file=sys.stderr); sys.exit(3)", TransientError, "^no room"),
        ("import os; os.kill(os.getpid(), 9)", TransientError, "killed by signal 9"),
        ("import sys; sys.exit(137)", TransientError, "killed by signal 9"),
        (
            "import sys; print('progress: pack 3.0', file=sys.stderr); sys.exit(143)",
            TransientError,
            "15 in stage 'pack'",
        ),
        ("raise RuntimeError('x')", TransientError, "failed with 1 .*RuntimeError: x"),
        ("import sys; sys.exit(2)", TransientError, "failed with 2"),
        ("pass", TerminalError, "answer is not an artifact"),
        ("print('x' * 100000)", TerminalError, "answer is not an artifact"),
        ('print(\'{"name": "n", "folder": "/nonexistent/n", "digest": "d"}\')', TerminalError, "cannot read what"),
    ],
)
def test_answers_are_told_apart(tmp_path: Path, code: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        build(process(script(code)), write_recipe(tmp_path / "recipe"))


def test_its_last_words_are_heard_however_long_that_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says whether to try again. What the builder left running keeps nobody waiting for more of them."""
    monkeypatch.setattr(builder_process, "_HEAR_S", 1000)
    left = "subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL)"
    code = f"import subprocess, sys; print('progress: pack 1.0', file=sys.stderr); {left}; sys.exit('error: withdrawn')"
    gone = threading.Event()
    plain = builder_process._kill

    def kill(child: subprocess.Popen[bytes]) -> None:
        plain(child)
        gone.set()

    monkeypatch.setattr(builder_process, "_kill", kill)
    with pytest.raises(TerminalError, match="withdrawn"):
        build(process(script(code), lambda *_: assert_waits(gone)), write_recipe(tmp_path / "recipe"))


def assert_waits(event: threading.Event) -> None:
    assert event.wait(60)


def test_an_answer_for_another_release_is_not_believed(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    built = build(process([*COMMAND, "--work", str(tmp_path / "work")]), recipe)
    answer = json.dumps({"name": built.name, "folder": str(built.folder), "digest": built.digest})
    with pytest.raises(TerminalError, match=r"its manifest names v1\.4\.2"):
        build(process(script(f"print({answer!r})")), recipe, "v1.4.3")


def test_a_build_that_does_not_end_is_ended_by_the_end_of_its_input(tmp_path: Path) -> None:
    flag = tmp_path / "ended"
    code = f"import sys; sys.stdin.buffer.read(); open({str(flag)!r}, 'w').close()"
    with pytest.raises(TransientError, match="did not end within 1 s"):
        build(process(script(code), timeout_s=1), write_recipe(tmp_path / "recipe"))
    assert flag.exists()


def test_the_command_stops_when_nobody_waits_and_clears_up(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", **{"setup.sh": SETUP + "sleep 1000\n"})
    builder = process([*COMMAND, "--work", str(tmp_path / "work")], timeout_s=3)
    with pytest.raises(TransientError, match="did not end within 3 s"):
        build(builder, recipe)
    # Nor was it killed before it had.
    assert not list((tmp_path / "work").glob("scratch/v1*"))


def test_two_builds_of_a_release_wait_for_each_other(tmp_path: Path) -> None:
    recipe, found = write_recipe(tmp_path / "recipe", **{"setup.sh": SETUP + "sleep 1\n"}), []
    builder = process([*COMMAND, "--work", str(tmp_path / "work")])
    threads = [threading.Thread(target=lambda: found.append(build(builder, recipe))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(280)
    assert len(found) == 2 and found[0] == found[1]


@pytest.mark.parametrize("data", [b"", b"{}\n", b"[]\n", b"x" * 5000, b'{"release": "../x"}\n'])
def test_the_command_refuses_what_is_no_request(data: bytes) -> None:
    done = subprocess.run(COMMAND, input=data, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"") and b"holds no request" in done.stderr


def test_as_another_user_the_builder_reaches_no_key_of_the_controller(tmp_path: Path) -> None:
    """What sudo does, without its configuration: another uid, which owns its work folder alone."""
    other = [need("setpriv", "util-linux"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*other, COMMAND[0], "--version"], capture_output=True, check=False).returncode:
        pytest.skip("needs root, and a checkout that others may read, to become another user")
    work, secret = Path("/var/tmp") / f"builder-{os.getpid()}", tmp_path / "key"
    secret.write_text("key")
    secret.chmod(0o600)
    work.mkdir()
    os.chown(work, 65534, 65534)
    peek = f'if cat {secret} > "$ROOT/etc/stolen" 2>/dev/null; then echo stolen >&2; exit 9; fi; rm -f "$ROOT/etc/stolen"\n'
    try:
        argv = [*other, *COMMAND, "--work", str(work)]
        built = build(process(argv), write_recipe(tmp_path / "recipe", **{"setup.sh": SETUP + peek}))
        assert built.folder.stat().st_uid == 65534 and (built.folder / SUMS).is_file()
    finally:
        subprocess.run(["rm", "-rf", str(work)], check=False)
