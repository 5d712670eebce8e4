"""A recipe's files: which variant is taken, and what is said of a file that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.image import recipe
from reconciler.model.desired import ImageSpec
from reconciler.repo.problem import InvalidInput

EXAMPLE = Path(__file__).parents[2] / "fleet" / "images" / "edge-golden"
VARIANT = """\
distribution: debian
suite: bookworm
sources:
  - {mirror: debian, suites: [bookworm], key: keys/a.asc}
packages:
  linux-image-amd64: the kernel
variables: {GPU: none}
"""
SHARED = "a\n\nchrony  time\n  chrony  again\nufw\n"


def spec(distribution: str = "debian", suite: str = "bookworm") -> ImageSpec:
    return ImageSpec.model_validate({"base": {"distribution": distribution, "suite": suite}})


def folder(at: Path, text: str = VARIANT, packages: str = "chrony  time\n", name: str = "debian-12.yaml") -> Path:
    (at / name).write_text(text)
    (at / "packages.txt").write_text(packages)
    return at


def said(at: Path, wanted: ImageSpec | None = None) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        recipe.read(at, wanted or spec())
    return [str(problem).removeprefix(f"{at}/") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("distribution", "suite", "kernel"),
    [("debian", "bookworm", "linux-image-amd64"), ("ubuntu", "jammy", "linux-image-generic")],
)
def test_the_example_has_a_variant_for_each_base(distribution: str, suite: str, kernel: str) -> None:
    made = recipe.read(EXAMPLE, spec(distribution, suite))
    assert made.variant.distribution == distribution
    assert {kernel, "openssh-server"} <= set(made.packages)


def test_shared_packages_and_those_of_the_variant_are_one_list(tmp_path: Path) -> None:
    made = recipe.read(folder(tmp_path, packages="# time\nchrony  time\n\n"), spec())
    assert made.packages == ("chrony", "linux-image-amd64") and made.variant.variables == {"GPU": "none"}


@pytest.mark.parametrize(
    ("text", "packages", "expected"),
    [
        (VARIANT.replace("suite:", "suit:"), "", [":1:1: `suite` is missing", ":2:1: unknown key `suit`"]),
        (VARIANT.replace("mirror: debian, ", ""), "", [":4:5: `sources.0.mirror` is missing"]),
        (VARIANT.replace("[bookworm]", "[]"), "", [":4:22: `sources.0.suites` is empty"]),
        (VARIANT.replace("linux-image-amd64", "Linux"), "", [":6:3: `packages.Linux` is 'Linux'"]),
        ("distribution: [\n", "", [":1:15: not valid YAML"]),
        ("- a\n", "", [":1:1: is no mapping"]),
        (VARIANT, "Chrony time\n", [":1:1: 'Chrony' is no package's name"]),
        (VARIANT, SHARED, [":1:1: 'a' is no", ":4:3: chrony is listed twice", ":5:1: ufw has no reason"]),
    ],
)  # fmt: skip
def test_every_problem_has_its_place(tmp_path: Path, text: str, packages: str, expected: list[str]) -> None:
    found = said(folder(tmp_path, text, packages))
    assert [start in line for line, start in zip(found, expected, strict=True)] == [True] * len(expected), found


def test_a_base_without_a_variant_is_told_what_there_is(tmp_path: Path) -> None:
    folder(tmp_path)
    assert "no variant is of ubuntu/noble" in said(tmp_path, spec("ubuntu", "noble"))[0]
    assert "debian/bookworm (debian-12.yaml)" in said(tmp_path, spec("ubuntu", "noble"))[0]
    assert "names no `base`" in said(tmp_path, ImageSpec())[0]


def test_two_variants_of_one_base_are_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    folder(tmp_path, name="second.yaml")
    assert said(tmp_path) == [
        "second.yaml:1:1: debian-12.yaml is of the same distribution and suite; keep one of the two"
    ]
