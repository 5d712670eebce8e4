"""The scripts of the golden image, run as the builder and the agent run them: unprivileged, on a staging root."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from reconciler.image.gate_secrets import SETTINGS, Scanner
from tests.support.system import need

RECIPE = Path(__file__).parents[2] / "fleet" / "images" / "edge-golden"
SCRIPTS = [RECIPE / name for name in ("setup.sh", "healthcheck.sh", "sysprep.sh")]


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run([str(RECIPE / script), *arguments], env=env, capture_output=True, text=True, check=False)


def setup(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {"ROOT": str(root), "RELEASE": "v1.4.2", "SITE_ID": "golden", "SOURCE_DATE_EPOCH": "1763164800"}
    return run("setup.sh", **{**base, **environment})


def contents(root: Path) -> dict[str, tuple[int, int, str]]:
    """Path → mode, time, and hash or link target of everything below a root."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            what = os.readlink(path)
        else:
            what = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(root))] = (status.st_mode, int(status.st_mtime), what)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    done = setup(root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def judge(root: Path, code: int, **environment: str) -> dict[str, tuple[str, str]]:
    """Run the healthcheck on a root; check name → status, message."""
    done = run("healthcheck.sh", "--json", "--root", str(root), **environment)
    assert done.returncode == code, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"checks", "status"}
    assert document["status"] == ("ok", "warning", "critical")[code]
    assert all(set(check) == {"name", "status", "message"} for check in document["checks"])
    return {check["name"]: (check["status"], check["message"]) for check in document["checks"]}


# ---------------------------------------------------------------- setup.sh


def test_setup_lays_down_the_files_of_the_device(root: Path) -> None:
    for source in (RECIPE / "rootfs").rglob("*"):
        if source.is_file():
            assert (root / source.relative_to(RECIPE / "rootfs")).read_bytes() == source.read_bytes()
    assert (root / "etc/edge-release").read_text().splitlines() == [
        "FAMILY=edge-golden",
        "RELEASE=v1.4.2",
        "BUILT_AT=2025-11-15T00:00:00Z",
    ]
    assert (root / "etc/edge-image-version").read_text() == "current=v1.4.2\nprevious=\n"
    assert os.access(root / "usr/local/bin/healthcheck.sh", os.X_OK)
    assert os.access(root / "usr/local/lib/edge/pull-app", os.X_OK)
    for unit in ("edge-agent.service", "video-ingest.service"):
        link = root / "etc/systemd/system/multi-user.target.wants" / unit
        assert os.readlink(link) == f"/etc/systemd/system/{unit}"


def test_setup_run_twice_changes_nothing(root: Path) -> None:
    before = contents(root)
    assert setup(root).returncode == 0
    assert contents(root) == before


def test_setup_gives_the_same_bytes_in_another_place(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert setup(other).returncode == 0
    assert contents(other) == contents(root)


def test_a_golden_image_belongs_to_no_site(root: Path) -> None:
    assert not (root / "etc/environment").exists()
    text = "".join(path.read_text() for path in root.rglob("*") if path.is_file())
    assert "SITE_ID=" not in text.replace("SITE_ID=golden", "").replace("SITE_ID=$SITE", "").replace("SITE_ID=%s", "")
    assert not list((root / "etc/chrony").glob("sources.d/*"))


def test_a_device_set_up_by_hand_gets_its_site_once(root: Path) -> None:
    (root / "etc/environment").write_text('PATH="/usr/bin"\nSITE_ID="OLD"\n')
    for _ in range(2):
        assert setup(root, SITE_ID="SITE-2847").returncode == 0
        assert (root / "etc/environment").read_text() == 'PATH="/usr/bin"\nSITE_ID="SITE-2847"\n'


def test_pins_become_preferences_of_apt(root: Path, tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.write_text("docker-ce 5:27.1.2-1\n# a comment\n\nzstd 1.4.8+dfsg-3build1")
    for _ in range(2):
        assert setup(root, PINS=str(pins)).returncode == 0
        stanzas = (root / "etc/apt/preferences.d/50-edge-pins").read_text().split("\n\n")
        assert stanzas[:2] == [
            "Package: docker-ce\nPin: version 5:27.1.2-1\nPin-Priority: 1001",
            "Package: zstd\nPin: version 1.4.8+dfsg-3build1\nPin-Priority: 1001",
        ]


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RELEASE": ""}, "RELEASE="),
        ({"RELEASE": "1.4.2"}, "write it as v1.4.2"),
        ({"RELEASE": "v1.4.2\nx"}, "RELEASE="),
        ({"SITE_ID": "$(reboot)"}, "SITE_ID="),
        ({"SOURCE_DATE_EPOCH": "today"}, "SOURCE_DATE_EPOCH="),
        ({"PINS": "/nowhere"}, "PINS="),
        ({"ROOT": "/nowhere"}, "ROOT="),
    ],
)
def test_setup_refuses_what_it_cannot_use(tmp_path: Path, environment: dict[str, str], says: str) -> None:
    done = setup(tmp_path, **environment)
    assert done.returncode == 2
    assert says in done.stderr
    assert not list(tmp_path.iterdir())


def test_setup_names_the_step_that_failed(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file where a folder belongs")
    done = setup(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "setup: failed in step: files"


def test_no_file_of_the_recipe_looks_like_a_secret_to_the_images_gate() -> None:
    for path in (RECIPE / "rootfs").rglob("*"):
        if path.is_file():
            name = str(path.relative_to(RECIPE / "rootfs")).encode()
            scanner = Scanner(name.startswith(b"usr/"), SETTINGS.fullmatch(name) is not None)
            scanner.feed(0, path.read_bytes())
            assert not scanner.found, f"{path}: {scanner.found}; the build would end at its gate, minutes later"


# ---------------------------------------------------------------- healthcheck.sh


def test_a_fresh_golden_root_is_well_and_its_site_checks_are_skipped(root: Path) -> None:
    checks = judge(root, 0, SITE_ID="golden")
    assert checks["image"] == ("ok", "v1.4.2")
    assert checks["files"][0] == "ok"
    for name in ("vpn", "cameras", "video-ingest"):
        assert checks[name] == ("skipped", "golden image: belongs to no site")
    assert checks["disk"] == ("skipped", "not a running system")


def test_the_site_is_read_from_the_root_where_the_environment_names_none(root: Path) -> None:
    (root / "etc/environment").write_text('PATH="/usr/bin"\nSITE_ID="golden"')
    assert "golden" in judge(root, 0)["vpn"][1]
    assert "golden" not in judge(root, 0, SITE_ID="SITE-2847")["vpn"][1]


@pytest.mark.parametrize("missing", ["etc/ufw/user.rules", "etc/systemd/system/video-ingest.service"])
def test_a_missing_file_is_critical_and_named(root: Path, missing: str) -> None:
    (root / missing).unlink()
    assert judge(root, 2)["files"] == ("critical", f"missing or empty: {missing}")


def test_a_root_without_a_release_is_critical(tmp_path: Path) -> None:
    assert judge(tmp_path, 2)["image"][0] == "critical"


@pytest.mark.parametrize(
    ("code", "status", "overall"), [(0, "ok", 0), (1, "warning", 1), (2, "critical", 2), (7, "critical", 2)]
)
def test_a_release_may_add_checks(root: Path, code: int, status: str, overall: int) -> None:
    script = root / "usr/local/lib/edge/health.d/decoder"
    script.write_text(f'#!/bin/sh\necho "a \\"quoted\\" \\\\ path of $SITE_ID"\necho more\nexit {code}\n')
    script.chmod(0o755)
    found = judge(root, overall, SITE_ID="SITE-2847")["decoder"]
    assert found[0] == status
    assert found[1].endswith('a "quoted" \\ path of SITE-2847')


def test_an_added_check_that_cannot_run_is_a_warning(root: Path) -> None:
    (root / "usr/local/lib/edge/health.d/decoder").write_text("#!/bin/sh\n")
    assert judge(root, 1)["decoder"][0] == "warning"


def test_without_json_it_prints_a_line_a_check(root: Path) -> None:
    done = run("healthcheck.sh", "--root", str(root))
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "OK       image: v1.4.2"
    assert len(done.stdout.splitlines()) == len(judge(root, 0))


@pytest.mark.parametrize("arguments", [["--jso"], ["--root"], ["--root", "/nowhere"]])
def test_wrong_usage_is_unknown_and_not_critical(arguments: list[str]) -> None:
    done = run("healthcheck.sh", *arguments)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("healthcheck.sh: ")


def test_a_healthcheck_changes_nothing(root: Path) -> None:
    before = contents(root)
    judge(root, 0)
    assert contents(root) == before


# ---------------------------------------------------------------- sysprep.sh, and all of them


def test_sysprep_removes_what_belongs_to_one_machine(root: Path) -> None:
    gone = [
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_ed25519_key.pub",
        "var/lib/cloud/instance",
        "var/log/syslog",
    ]
    for name in (*gone, "etc/machine-id"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("of one machine")
    for _ in range(2):
        assert run("sysprep.sh", ROOT=str(root)).returncode == 0
        assert not [name for name in gone if (root / name).exists()]
        assert (root / "etc/machine-id").read_text() == ""
    assert judge(root, 0)["files"][0] == "ok"
    assert run("sysprep.sh").returncode != 0


@pytest.mark.system
def test_the_scripts_pass_shellcheck() -> None:
    scripts = [path for path in RECIPE.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!")]
    assert set(SCRIPTS) < set(scripts) and len(scripts) >= 10
    # SC1091: what the initrd's scripts include is not here, but in the image.
    argv = [need("shellcheck"), "--exclude=SC1091", *map(str, scripts)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_readme_lists_every_check(root: Path) -> None:
    readme = (RECIPE / "README.md").read_text()
    missing = [name for name in judge(root, 0) if f"`{name}`" not in readme]
    assert not missing
