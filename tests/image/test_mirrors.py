"""Which address a mirror's name stands for: settings, an apt sources file, this machine's own sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.image import mirrors, recipe
from reconciler.model.desired import ImageSpec
from reconciler.repo.problem import InvalidInput

VARIANT = """\
distribution: debian
suite: bookworm
sources:
  - {mirror: debian, suites: [bookworm, bookworm-updates], key: keys/a.asc}
  - {mirror: security, suites: [bookworm-security], components: [main], key: /usr/share/keyrings/d.gpg}
"""
DEB822 = """\
# the archive
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/d.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
Enabled: yes

Types: deb
Enabled: no
URIs: http://mirror.example/off
Suites: bookworm-off
Components: main
"""


@pytest.fixture
def made(tmp_path: Path) -> recipe.Recipe:
    (tmp_path / "recipe/keys").mkdir(parents=True)
    (tmp_path / "recipe/keys/a.asc").write_text("key")
    (tmp_path / "recipe/debian-12.yaml").write_text(VARIANT)
    (tmp_path / "machine/usr/share/keyrings").mkdir(parents=True)
    (tmp_path / "machine/usr/share/keyrings/d.gpg").write_text("key")
    spec = ImageSpec.model_validate({"base": {"distribution": "debian", "suite": "bookworm"}})
    return recipe.read(tmp_path / "recipe", spec)


def machine(at: Path, codename: str = "bookworm", file: str = "debian.sources", text: str = DEB822) -> Path:
    (at / "machine/etc/apt/sources.list.d").mkdir(parents=True)
    (at / "machine/etc/os-release").write_text(f'ID=debian\nVERSION_CODENAME="{codename}"\n')
    (at / "machine/etc/apt/sources.list.d" / file).write_text(text)
    return at / "machine"


def refusal(made: recipe.Recipe, snapshot: str | None, places: dict[str, str], at: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        mirrors.resolve(made, snapshot, places, at)
    return str(caught.value)


def test_an_address_may_hold_the_snapshot(tmp_path: Path, made: recipe.Recipe) -> None:
    places = {"debian": "https://mirror.example/{snapshot}/debian", "security": "https://mirror.example/security"}
    lines = [entry.line("amd64") for entry in mirrors.resolve(made, "20260101T000000Z", places, tmp_path / "machine")]
    key = tmp_path / "recipe/keys/a.asc"
    assert lines[:2] == [
        f"deb [arch=amd64 signed-by={key} check-valid-until=no] https://mirror.example/20260101T000000Z/debian {suite} main"
        for suite in ("bookworm", "bookworm-updates")
    ]
    # An archive that is not dated still expires.
    assert "check-valid-until" not in lines[2]
    assert "names none; add `snapshot`" in refusal(made, None, places, tmp_path / "machine")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("debian.sources", DEB822),
        (
            "debian.list",
            "# a comment\ndeb [signed-by=/k] http://mirror.example/debian bookworm main contrib\n"
            "deb http://mirror.example/debian bookworm-updates main\ndeb-src http://mirror.example/x bookworm main\n"
            "deb http://mirror.example/security bookworm-security main # why\n",
        ),
    ],
)
def test_a_machine_of_the_same_distribution_lends_its_sources(
    tmp_path: Path, made: recipe.Recipe, file: str, text: str
) -> None:
    found = mirrors.resolve(made, None, {}, machine(tmp_path, file=file, text=text))
    assert [(entry.address, entry.suite) for entry in found] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://mirror.example/security", "bookworm-security"),
    ]


def test_what_is_missing_is_named_with_its_place(tmp_path: Path, made: recipe.Recipe) -> None:
    at = machine(tmp_path, codename="trixie")
    assert "debian-12.yaml:4:14: mirror 'debian' is not configured" in refusal(made, None, {}, at)
    places = {"debian": "https://mirror.example/debian", "security": str(at / "etc/apt/sources.list.d/debian.sources")}
    assert len(mirrors.resolve(made, None, places, at)) == 3
    Path(places["security"]).write_text(DEB822.replace("bookworm-security", "trixie-security"))
    assert "debian-12.yaml:5:14: no entry of" in refusal(made, None, places, at)
    assert "which is no file" in refusal(made, None, {**places, "security": "/nonexistent"}, at)
    assert "no address and no path" in refusal(made, None, {**places, "debian": "--option"}, at)
    (at / "usr/share/keyrings/d.gpg").unlink()
    assert "debian-12.yaml:5:" in refusal(made, None, places, at) and "there is no key file /usr" in refusal(
        made, None, places, at
    )
