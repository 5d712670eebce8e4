"""The files that every project has, and that people and programs look for: licence, changelog, how to report, how to contribute."""

from __future__ import annotations

import hashlib
import re
import tomllib

from reconciler import __version__
from tests.house.tree import ROOT

CHANGES = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_the_licence_is_apache_2_0_to_the_letter() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] in ("Apache-2.0", {"text": "Apache-2.0"})
    assert project["version"] == __version__


def test_the_changelog_has_the_form_that_it_names() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    for title in versions[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", title), title
    for section in text.split("\n## ")[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert kinds == [kind for kind in CHANGES if kind in kinds], "unknown kinds of change, or in another order"


def test_who_finds_a_weakness_or_has_a_change_is_told_what_to_do() -> None:
    security = (ROOT / "docs/SECURITY.md").read_text(encoding="utf-8")
    for title in ("Report a weakness", "Supported versions", "What is in scope", "What is not"):
        assert f"## {title}\n" in security
    contributing = (ROOT / "docs/CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "SECURITY.md" in contributing
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "docs/SECURITY.md" in readme
    assert "docs/CONTRIBUTING.md" in readme
