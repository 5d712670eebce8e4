"""`reconciler site render`: the files of a site of a real folder, and what it says to wrong names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from reconciler.cli.main import cli
from reconciler.image.enrolment import settings_text
from reconciler.ports import TerminalError
from tests.support.system import need

FLEET = Path(__file__).parents[2] / "fleet"


def render(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["site", "render", *map(str, arguments)])


def test_it_prints_the_three_files() -> None:
    result = render("SITE-2847", "--fleet", FLEET, "--device", "SITE-2847-2")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    parts = dict(part.split(" <==\n", 1) for part in result.stdout.split("==> ")[1:])
    assert list(parts) == ["user-data", "meta-data", "network-config"]
    assert parts["user-data"].startswith("#cloud-config\n")
    assert yaml.safe_load(parts["meta-data"])["local-hostname"] == "site-2847-2"
    assert "the secret edge/SITE-2847/vpn, filled in" in parts["user-data"]


def test_it_says_which_device_it_took() -> None:
    result = render("SITE-2847", "--fleet", FLEET)
    assert "this is for SITE-2847-1, another with --device" in result.stderr
    assert "site-2847-1" in result.stdout
    assert render("SITE-1033", "--fleet", FLEET).stderr == ""


def test_it_writes_the_files_and_names_them(tmp_path: Path) -> None:
    output = tmp_path / "new" / "seed"
    result = render("SITE-1033", "--fleet", FLEET, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in output.iterdir()) == ["meta-data", "network-config", "user-data"]
    assert result.stdout.splitlines() == [str(output / name) for name in ("user-data", "meta-data", "network-config")]
    assert (output / "user-data").read_text().startswith("#cloud-config\n")


def test_an_unknown_site_is_wrong_usage_and_names_the_nearest() -> None:
    result = render("site-2847", "--fleet", FLEET)
    assert result.exit_code == 2
    assert "has no site 'site-2847'; did you mean 'SITE-2847'?" in result.stderr
    assert "its sites are in" in render("nowhere", "--fleet", FLEET).stderr


def test_an_unknown_device_is_wrong_usage_and_names_the_nearest() -> None:
    result = render("SITE-2847", "--fleet", FLEET, "--device", "SITE-2847-3")
    assert result.exit_code == 2
    assert "has no device 'SITE-2847-3'; did you mean 'SITE-2847-" in result.stderr


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = render("SITE-1033", "--fleet", FLEET, "--output", tmp_path / "file" / "seed")
    assert result.exit_code == 1
    assert f"cannot write {tmp_path / 'file'}" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Europe/Berlin", "Europe/Berln", "Europe/Berln"),
        ("203.0.113.41", "rtsp://u:p@203.0.113.41", "no password"),
        ("ntp1.site-2847.example", '"a b"', "'a b' is not a host"),
    ],
)
def test_a_fleet_that_does_not_load_is_reported_by_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    shutil.copytree(FLEET, tmp_path / "fleet", ignore=shutil.ignore_patterns("edge-golden", "tests"))
    path = tmp_path / "fleet" / "sites" / "SITE-2847.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    line = next(number for number, row in enumerate(path.read_text().splitlines(), 1) if new in row)
    code = "from reconciler.cli.main import main; main()"
    command = [sys.executable, "-c", code, "site", "render", "SITE-1033", "--fleet", str(tmp_path / "fleet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{path}:{line}:")
    assert says in done.stderr
    assert "u:p" not in done.stderr, "a password written into a camera's URL must not be repeated"


def test_a_seed_for_a_first_installation_holds_the_secrets_and_is_nobody_elses(tmp_path: Path) -> None:
    vault, seed = tmp_path / "secrets", tmp_path / "seed"
    secret = vault / "edge" / "SITE-2847" / "vpn"
    secret.parent.mkdir(parents=True, mode=0o700)
    vault.chmod(0o700)
    secret.write_text('{"SITE-2847-2": "[Interface]\\nPrivateKey = of-the-second\\n"}')
    secret.chmod(0o600)
    seed.mkdir()
    (seed / "user-data").write_text("open to all")
    arguments = ("SITE-2847", "--fleet", FLEET, "--device", "SITE-2847-2", "--secrets", vault)
    result = render(*arguments, "--output", seed)
    assert result.exit_code == 0, result.output
    assert "of-the-second" in (seed / "user-data").read_text() and "of-the-second" not in result.output
    digest = (seed / "digest").read_text().strip()
    assert digest.startswith("sha256:")
    assert yaml.safe_load((seed / "meta-data").read_text())["instance-id"] == f"SITE-2847-2-{digest[7:23]}"
    assert {path.stat().st_mode & 0o777 for path in seed.iterdir()} == {0o600}
    assert "secrets are not printed" in render(*arguments).stderr
    other = render("SITE-2847", "--fleet", FLEET, "--device", "SITE-2847-1", "--secrets", vault, "--output", seed)
    assert isinstance(other.exception, TerminalError) and "has no text for device SITE-2847-1" in str(other.exception)
    secret.unlink()
    gone = render(*arguments, "--output", seed)
    assert isinstance(gone.exception, TerminalError) and "no secret edge/SITE-2847/vpn" in str(gone.exception)


def test_a_site_without_a_secret_gets_its_whole_seed_without_one(tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    result = render("LAB-0001", "--fleet", FLEET, "--output", seed)
    assert result.exit_code == 0, result.stderr
    digest = (seed / "digest").read_text().strip()
    assert yaml.safe_load((seed / "meta-data").read_text())["instance-id"] == f"LAB-0001-1-{digest[7:23]}"
    assert {path.stat().st_mode & 0o777 for path in seed.iterdir()} == {0o600}


def test_files_to_look_at_are_not_taken_for_a_seed(tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "digest").write_text("sha256:of-an-earlier-one")
    result = render("SITE-1033", "--fleet", FLEET, "--output", seed)
    assert result.exit_code == 0 and "to look at, and no seed" in result.stderr
    assert not (seed / "digest").exists(), "it would vouch for files that are masked"


def _vault(folder: Path) -> Path:
    secret = folder / "secrets" / "edge" / "SITE-1033" / "vpn"
    secret.parent.mkdir(parents=True, mode=0o700)
    (folder / "secrets").chmod(0o700)
    secret.write_text("[Interface]\nPrivateKey = sentinel\n")
    secret.chmod(0o600)
    return folder / "secrets"


def _enrolment(folder: Path, device: str) -> Path:
    made = folder / f"enrol-{device}"
    made.mkdir(mode=0o700)
    (made / "agent.json").write_bytes(settings_text(device, "SITE-1033", "https://h.example", authority=False))
    (made / "token").write_text("edge_" + "t" * 43 + "\n")
    (made / "token").chmod(0o600)
    return made


@pytest.mark.system
def test_a_seed_medium_carries_the_seed_and_the_devices_enrolment(tmp_path: Path) -> None:
    xorriso = need("xorriso")
    iso, vault = tmp_path / "seed.iso", _vault(tmp_path)
    arguments = ("SITE-1033", "--fleet", FLEET, "--secrets", vault, "--iso", iso)
    result = render(*arguments, "--enrol", _enrolment(tmp_path, "SITE-1033-1"), "--output", tmp_path / "seed")
    assert result.exit_code == 0, result.output
    assert "sentinel" not in result.output and "edge_t" not in result.output
    assert iso.stat().st_mode & 0o777 == 0o600
    out = tmp_path / "out"
    subprocess.run([xorriso, "-osirrox", "on", "-indev", iso, "-extract", "/", out], capture_output=True, check=True)
    assert {path.name for path in (out / "enrol").iterdir()} == {"agent.json", "token"}
    for path in (tmp_path / "seed").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert b"sentinel" in (out / "user-data").read_bytes()
    foreign = render(*arguments, "--enrol", _enrolment(tmp_path, "SITE-1033-2"))
    assert isinstance(foreign.exception, TerminalError) and "for host site-1033-1" in str(foreign.exception)


def test_a_medium_needs_its_secrets_and_an_enrolment_a_medium(tmp_path: Path) -> None:
    iso = tmp_path / "seed.iso"
    result = render("SITE-1033", "--fleet", FLEET, "--iso", iso)
    assert result.exit_code == 2 and "holds the secret edge/SITE-1033/vpn: say where its value is" in result.stderr
    result = render("LAB-0001", "--fleet", FLEET, "--enrol", tmp_path)
    assert result.exit_code == 2 and "--enrol goes onto the medium of --iso" in result.stderr
    assert not iso.exists()
