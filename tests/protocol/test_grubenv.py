"""A GRUB environment is read as GRUB reads it, whole, torn or foreign. Held against `grub-editenv` where it is installed."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from reconciler.protocol import grubenv
from tests.support.system import need

WHOLE = {"edge_default": "b", "edge_trial": "a", "edge_tries": "1"}


def test_what_is_written_is_1024_bytes_and_reads_back() -> None:
    data = grubenv.encode(WHOLE)
    assert len(data) == 1024
    assert data.startswith(b"# GRUB Environment Block\nedge_default=b\nedge_trial=a\nedge_tries=1\n###")
    assert grubenv.decode(data) == WHOLE
    assert grubenv.decode(grubenv.encode({"edge_trial": ""})) == {"edge_trial": ""}


@pytest.mark.parametrize("variables", [{"a b": "x"}, {"a": "x\ny"}, {"a": "x\\"}, {"a": "é"}, {"a": "x" * 1000}])
def test_what_a_line_cannot_hold_is_not_written(variables: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="GRUB environment"):
        grubenv.encode(variables)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", {}),
        (bytes(1024), {}),
        (b"# GRUB Environment Block\n", {}),
        (b"# GRUB Environment Blocc\nedge_default=a\n", {}),
        (b"edge_default=a\n", {}),
        # Any length will do, and a line must end.
        (grubenv.SIGNATURE + b"edge_default=a\n", {"edge_default": "a"}),
        (grubenv.SIGNATURE + b"edge_default=a", {}),
        (grubenv.SIGNATURE + b"edge_default=a\nedge_trial=b", {"edge_default": "a"}),
        # The last of two counts.
        (grubenv.SIGNATURE + b"edge_default=a\nedge_default=b\n#", {"edge_default": "b"}),
        # A name reaches to the next equals sign, over lines too; what is commented out is none.
        (grubenv.SIGNATURE + b"torn\nedge_default=a\n", {"torn\nedge_default": "a"}),
        (grubenv.SIGNATURE + b"##\nedge_default=a\n", {"edge_default": "a"}),
        (grubenv.SIGNATURE + b"a=1\\\n2\nb=\\\\x\n", {"a": "1\n2", "b": "\\x"}),
        (grubenv.SIGNATURE + b"a=b\0c\n", {"a": "b"}),
        (grubenv.SIGNATURE + b"a=\xff\n", {"a": "?"}),
        (grubenv.SIGNATURE + b"a=\\", {}),
    ],
)
def test_a_foreign_or_torn_file_says_what_it_says_to_grub(data: bytes, found: dict[str, str]) -> None:
    assert grubenv.decode(data) == found


def test_no_flipped_or_missing_byte_raises() -> None:
    data, chance = grubenv.encode(WHOLE), random.Random(5)
    for at in range(100):
        assert isinstance(grubenv.decode(data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]), dict)
        assert isinstance(grubenv.decode(data[:at]), dict)


@pytest.mark.system
def test_grub_itself_reads_the_same(tmp_path: Path) -> None:
    program, chance, file = need("grub-editenv", "grub-common"), random.Random(6), tmp_path / "grubenv"
    for _ in range(60):
        data = bytearray(grubenv.encode(WHOLE))
        for _ in range(chance.randrange(6)):
            data[chance.randrange(25, 80)] = chance.choice(b"#\n\\=ab1_ ")
        file.write_bytes(data)
        said = subprocess.run([program, str(file), "list"], capture_output=True, text=True, check=False)
        if said.returncode == 0:
            # Texts may hold newlines, so the whole is compared.
            shown = "".join(f"{name}={value}\n" for name, value in grubenv.decode(bytes(data)).items())
            assert sorted(said.stdout.splitlines()) == sorted(shown.splitlines()), bytes(data[25:90])
