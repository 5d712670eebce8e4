"""prune-modules.sh on a small kernel of its own: what stays, what goes, and what stays because another needs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.system import need

SCRIPT = Path(__file__).parents[2] / "fleet" / "images" / "edge-golden" / "prune-modules.sh"
# Module → what it depends on, all of it, as depmod writes it.
MODULES = {
    "fs/ext4/ext4": ["fs/jbd2/jbd2", "lib/crc16"],
    "fs/jbd2/jbd2": [],
    "fs/xfs/xfs": ["lib/libcrc32c"],
    "lib/crc16": [],
    "lib/libcrc32c": [],
    "crypto/crc32c_generic": [],
    "drivers/net/ethernet/intel/ice/ice": ["drivers/net/mdio"],
    "drivers/net/ethernet/intel/igb/igb": [],
    "drivers/net/ethernet/mellanox/mlx5": ["drivers/net/mdio"],
    "drivers/net/mdio": [],
    "drivers/net/wireless/iwlwifi": [],
    "drivers/media/video-dev": [],
}


class Root:
    """A root with a kernel's modules, and stand-ins for depmod and modinfo, which want real ones."""

    def __init__(self, folder: Path, suffix: str = ".ko") -> None:
        self.folder, self.suffix = folder, suffix
        self.modules = folder / "usr/lib/modules/6.1.0-1"
        lines = []
        for name, depends in MODULES.items():
            path = self.modules / f"kernel/{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 1024 * 1024)
            lines.append(f"kernel/{name}{suffix}: " + " ".join(f"kernel/{other}{suffix}" for other in depends))
        (self.modules / "modules.dep").write_text("\n".join(lines) + "\n")
        (self.modules / "modules.softdep").write_text("# soft\nsoftdep ext4 pre: crc32c-generic post: nothing_there\n")
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.program("depmod", f'echo "$*" >>{folder}/depmod')
        self.program("modinfo", "echo intel/ice/ice.pkg; echo intel/ice/opt-*.bin; echo not/there.bin")

    def program(self, name: str, line: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def prune(self, patterns: str) -> subprocess.CompletedProcess[str]:
        need("awk", "mawk")
        env = {"PATH": f"{self.programs}:{os.environ['PATH']}", "ROOT": str(self.folder)}
        return subprocess.run([SCRIPT, "-"], input=patterns, env=env, capture_output=True, text=True, check=False)

    def left(self) -> set[str]:
        found = self.modules.rglob(f"*{self.suffix}")
        return {str(path.relative_to(self.modules / "kernel")).removesuffix(self.suffix) for path in found}


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.zst"])
def test_a_pattern_keeps_its_modules_and_what_they_need(tmp_path: Path, suffix: str) -> None:
    root = Root(tmp_path, suffix)
    done = root.prune("# why\nfs/ext4/*   the slots\ndrivers/net/ethernet/intel/*  # ports\n")
    assert done.returncode == 0, done.stderr
    assert root.left() == {
        "fs/ext4/ext4",
        "fs/jbd2/jbd2",
        "lib/crc16",
        "crypto/crc32c_generic",
        "drivers/net/ethernet/intel/ice/ice",
        "drivers/net/ethernet/intel/igb/igb",
        "drivers/net/mdio",
    }
    assert "7 of 12 stay; 5 MB of 12 MB went" in done.stdout
    assert not (root.modules / "kernel/drivers/media").exists(), "folders that became empty go too"
    assert (tmp_path / "depmod").read_text() == f"-b {tmp_path} 6.1.0-1\n"


def test_twice_changes_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert root.prune("fs/xfs/xfs\n").returncode == 0
    left = root.left()
    assert left == {"fs/xfs/xfs", "lib/libcrc32c"}
    done = root.prune("fs/xfs/xfs\n")
    assert root.left() == left and "2 of 2 stay; 0 MB" in done.stdout


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("fs/ext", set()),
        ("fs/ext?/ext4", {"fs/ext4/ext4", "fs/jbd2/jbd2", "lib/crc16", "crypto/crc32c_generic"}),
        ("lib/crc1.", set()),
        ("lib/crc[0-9]*", {"lib/crc16"}),
        ("drivers/media/video-dev", {"drivers/media/video-dev"}),
    ],
)
def test_a_pattern_is_a_shell_pattern_over_the_whole_path(tmp_path: Path, pattern: str, kept: set[str]) -> None:
    root = Root(tmp_path)
    assert root.prune(f"{pattern}\n").returncode == 0
    assert root.left() == kept


def test_no_pattern_is_a_mistake_and_removes_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    done = root.prune("# nothing here\n\n")
    assert done.returncode == 2 and "no pattern" in done.stderr
    assert len(root.left()) == len(MODULES)


def test_without_a_kernel_there_is_nothing_to_do(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "ROOT": str(tmp_path)}
    done = subprocess.run([SCRIPT, "-"], input="fs/*", env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"modules: no kernel below {tmp_path}\n")


def test_firmware_stays_that_a_module_names_with_what_its_links_lead_to(tmp_path: Path) -> None:
    root = Root(tmp_path)
    firmware = tmp_path / "usr/lib/firmware"
    for name in ("intel/ice/ddp/ice-1.3.pkg", "intel/ice/opt-1.bin", "nvidia/gsp.bin", "intel-ucode/06-6c-01"):
        (firmware / name).parent.mkdir(parents=True, exist_ok=True)
        (firmware / name).write_bytes(b"x")
    (firmware / "intel/ice/ice.pkg.zst").symlink_to("ddp/ice-1.3.pkg")
    assert root.prune("fs/*\n").returncode == 0
    left = {str(path.relative_to(firmware)) for path in firmware.rglob("*") if not path.is_dir()}
    assert left == {"intel/ice/ice.pkg.zst", "intel/ice/ddp/ice-1.3.pkg", "intel/ice/opt-1.bin", "intel-ucode/06-6c-01"}
    assert not (firmware / "nvidia").exists()
