"""What a hostile setup.sh can see and do: nothing of this machine. A small root of this machine's own programs is its image."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reconciler.image import sandbox
from reconciler.image.process import Surroundings, run
from tests.support.system import need

pytestmark = pytest.mark.system
LOOK = """
echo "user $(id -u)"
echo "environment $(env | cut -d= -f1 | sort | tr '\\n' ' ')"
echo "processes $(ls -d /proc/[0-9]* | wc -l)"
echo "interfaces $(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' | tr '\\n' ' ')"
for file in /etc/shadow /etc/passwd /root/.aws /root/.gnupg "$SECRET" /srv /var/lib/dpkg; do
  [ -e "$file" ] && echo "seen $file"
done
echo "devices $(ls /dev | tr '\\n' ' ')"
(echo core > /proc/sys/kernel/core_pattern) 2>/dev/null && echo "wrote core_pattern"
(echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null && echo "wrote ip_forward"
(echo x > /run/build/recipe/new) 2>/dev/null && echo "wrote recipe"
mknod /tmp/disk b 253 0 2>/dev/null && echo "made a device"
unshare --mount true 2>/dev/null && echo "unshared"
mount -t tmpfs none /tmp 2>/dev/null && echo "mounted"
chroot / true 2>/dev/null && echo "chrooted"
kill -0 "$BUILDER" 2>/dev/null && echo "reached the builder"
(exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null && echo "reached the network"
(echo x > /dev/new) 2>/dev/null && echo "wrote dev"
(echo x > /dev/shm/x) 2>/dev/null && echo "memory"
echo "room $(df --output=size -B1 /tmp /var/tmp /run /dev/shm | tail -n +2 | sort -n | tail -1)"
grep CapEff /proc/self/status
chmod 0600 /dev/null 2>/dev/null
echo > /dev/null && head -c 4 /dev/urandom | wc -c | sed 's/^/random /'
touch /made && echo "wrote root"
exit 0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root that shares this machine's programs: links and copies enough for a shell."""
    for program, package in (("bwrap", "bubblewrap"), ("mmdebstrap", None), ("unshare", "util-linux")):
        need(program, package)
    made = tmp_path / "root"
    for name in ("usr", "dev", "proc", "run", "tmp", "var/tmp", "etc", "root", "home"):
        (made / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (made / name).symlink_to(f"usr/{name}")
    return made


def boxed(root: Path, script: str, told: dict[str, str] | None = None, *, change: bool = True) -> list[str]:
    recipe = root.parent / "recipe"
    recipe.mkdir(exist_ok=True)
    argv = sandbox.ground().boxed(root, ["/bin/bash", "-c", script], told or {}, {"recipe": recipe}, change=change)
    # The machine's own /usr stands in for a distribution's.
    at = argv.index("--dev")
    return [*argv[:at], "--ro-bind", "/usr", "/usr", *argv[at:]]


def seen(root: Path, monkeypatch: pytest.MonkeyPatch, *, change: bool) -> dict[str, str]:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sentinel")
    monkeypatch.setenv("GNUPGHOME", "/sentinel")
    secret = root.parent / "secret"
    secret.write_text("sentinel")
    (root.parent / "log").write_bytes(b"")
    where = Surroundings(root.parent, root.parent / "log", 250)
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = {"SECRET": str(secret), "BUILDER": str(os.getpid()), "PORT": str(server.getsockname()[1])}
        ended = run(where, "setup", boxed(root, LOOK, told, change=change))
    text = ended.out.decode()
    assert ended.status == 0 and "sentinel" not in text, text + (root.parent / "log").read_text()[-2000:]
    return {line.partition(" ")[0].rstrip(":\t"): line for line in text.splitlines()}


def test_a_script_sees_and_reaches_nothing_of_this_machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(root, monkeypatch, change=True)
    assert found.pop("memory") == "memory"
    assert found.pop("wrote") == "wrote root" and (root / "made").exists()
    assert found.pop("user") == "user 0" and found.pop("random") == "random 4"
    assert os.stat("/dev/null").st_mode & 0o777 == 0o666
    # Not half of this machine's memory. An older bubblewrap has no limit to give.
    assert int(found.pop("room").split()[1]) == sandbox._MEMORY_BYTES or not sandbox._limit()
    names = set(found.pop("environment").split()[1:]) - {"PWD", "SHLVL", "_", "OLDPWD"}
    assert names == {"BUILDER", "HOME", "LC_ALL", "PATH", "PORT", "SECRET", "TMPDIR"}
    assert int(found.pop("processes").split()[1]) < 8
    assert found.pop("interfaces").split()[1:] == ["lo"]
    assert not {"kmsg", "mem", "sda", "vda", "disk"} & set(found.pop("devices").split())
    (capabilities,) = [line for name, line in found.items() if name.startswith("CapEff")]
    # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETFCAP; not SYS_ADMIN and the rest.
    assert int(capabilities.split()[-1], 16) == 0x800000FB
    assert [line for name, line in found.items() if not name.startswith("CapEff")] == []


def test_no_file_gets_larger_than_a_slot(root: Path) -> None:
    (root.parent / "recipe").mkdir()
    argv = ["/bin/bash", "-c", "head -c 3000000 /dev/zero > /made; head -c 2000000 /dev/zero > /other"]
    argv = sandbox.ground().boxed(root, argv, {}, {}, change=True, largest=2 << 20)
    at = argv.index("--dev")
    done = subprocess.run(
        [*argv[:at], "--ro-bind", "/usr", "/usr", *argv[at:]], capture_output=True, timeout=250, check=False
    )
    assert (root / "made").stat().st_size == 2 << 20 and (root / "other").stat().st_size == 2000000, done.stderr


def test_a_check_may_not_change_the_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "wrote" not in seen(root, monkeypatch, change=False) and not (root / "made").exists()


def alive(mark: str) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def gone(mark: str) -> bool:
    deadline = time.monotonic() + 60
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(mark)


@pytest.mark.parametrize("how", ["boxed", "inside"])
def test_everything_dies_with_a_builder_that_is_killed(root: Path, tmp_path: Path, how: str) -> None:
    mark = f"98{os.getpid()}{int(time.time()) % 10000}.25"
    script = f"setsid sleep {mark} & sleep {mark}"
    argv = boxed(root, script) if how == "boxed" else sandbox.ground().inside(["/bin/bash", "-c", script])
    code = f"import subprocess; subprocess.Popen({argv!r}, start_new_session=True).wait()"
    builder = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while len(alive(f"sleep\0{mark}")) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(alive(f"sleep\0{mark}")) == 2
        builder.send_signal(signal.SIGKILL)
        assert gone(f"sleep\0{mark}")
    finally:
        builder.kill()
        builder.wait()
        for pid in alive(f"sleep\0{mark}"):
            os.kill(pid, signal.SIGKILL)


def test_a_machine_without_user_namespaces_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "subuid").write_text("other:100000:65536\nme:1:10\nme:100000:65536\nbad\n")
    assert sandbox._subordinates(tmp_path / "subuid", "me") == 65536
    assert sandbox._subordinates(tmp_path / "subuid", "nobody-else") == 0
    assert sandbox._subordinates(tmp_path / "absent", "me") == 0
