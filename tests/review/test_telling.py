"""Text and Markdown: short first, whole in JSON, never too long, and nothing that a stranger wrote does anything."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.observed import Snapshot
from reconciler.ports import PublicKey
from reconciler.review.changes import Change
from reconciler.review.keys import Keyring
from reconciler.review.make import Outside, Review
from reconciler.review.markdown import MOST_CHARACTERS, as_markdown, code, prose
from reconciler.review.overlap import Overlap, Overlaps, Touched
from reconciler.review.sections import sections
from reconciler.review.summary import summary
from reconciler.review.text import as_text
from tests.house.tree import ROOT
from tests.review.repos import AT, document, repo, review, site, waves

EVIL = "@everyone | <img src=x onerror=alert(1)> #1 GH-2 https://evil.example `x` [a](b) **b**\n| c | \x1b[31m\u202e"


@pytest.fixture(scope="module")
def promotion(tmp_path_factory: pytest.TempPathFactory) -> Review:
    """A promotion with a key that expires and a branch beside it, both named by a stranger."""
    key = PublicKey("A" * 40, EVIL, datetime(2026, 1, 16, tzinfo=UTC))
    beside = Overlap("promote/" + EVIL, "b" * 40, EVIL, Touched(frozenset({"lab"})))
    outside = Outside([Keyring(EVIL, (key,))], "", Overlaps((beside,), 1))
    found = review(repo(tmp_path_factory.mktemp("t")), files={"fleet/waves.yaml": waves("v1.4.2")}, outside=outside)
    change = replace(found.changes[0], before=EVIL, after=EVIL, subject=EVIL, path=EVIL)
    return replace(found, changes=(change, *found.changes))


def test_the_summary_is_short_and_comes_first(promotion: Review) -> None:
    lines = summary(promotion)
    assert len(lines) <= 12
    assert as_text(promotion).splitlines()[1].strip() == lines[1]
    assert lines[1].startswith("moves 8 devices at 5 sites in waves lab, canary, all (v1.4.1 → v1.4.2: 8)")
    for word in ("observed:", "calendar:", "blast radius:", "download:", "rollback:", "keys:", "overlap:"):
        assert any(line.startswith(word) for line in lines), word


def test_a_key_that_expires_before_the_end_is_told(promotion: Review) -> None:
    assert [note.state for note in promotion.keys.notes] == ["expires"]
    (line,) = [line for line in summary(promotion) if line.startswith("keys:")]
    assert "EXPIRES BEFORE THE END, 2026-01-16T00:00:00Z" in line


def test_text_cannot_steer_a_terminal(promotion: Review) -> None:
    text = as_text(promotion)
    assert all(line.isprintable() for line in text.splitlines())
    assert "\\x1b[31m" in text


def test_a_comment_holds_nothing_that_acts(promotion: Review) -> None:
    text = as_markdown(promotion)
    assert all(line.replace("\u200b", "").isprintable() for line in text.splitlines())
    for line in text.splitlines():
        bare = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", line)  # what is not code
        assert not re.search(r"@\w", bare), line
        assert not re.search(r"(?<!\w)#\d", bare), line
        assert "://" not in bare and not re.search(r"\bGH-\d", bare), line
        tags = re.findall(r"<[^>]*>", bare)
        assert set(tags) <= {"<details>", "<summary>", "</summary>", "</details>"}, line


def test_every_row_of_a_table_has_as_many_cells_as_its_header(promotion: Review) -> None:
    width = 0
    for line in as_markdown(promotion).splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
        width = width or cells
        assert cells == width, line


def test_details_are_folded_and_closed(promotion: Review) -> None:
    text = as_markdown(promotion)
    assert text.count("<details>") == text.count("</details>") > 5
    assert text.index("<details>") > text.index("blast radius")


@given(st.text(max_size=200))
def test_prose_and_code_stay_on_their_line(text: str) -> None:
    assert "\n" not in prose(text) and "\n" not in code(text)
    assert "|" not in code(text)
    assert "<" not in prose(text)


@given(st.text(alphabet="`a ", max_size=40))
def test_code_ends_where_it_should(text: str) -> None:
    out = code(text)
    if out:
        fence = re.match("`+", out)
        assert fence is not None
        inner = out[len(fence.group()) : -len(fence.group())]
        assert fence.group() not in inner


def test_a_comment_is_never_too_long(promotion: Review) -> None:
    long = "x" * 290
    many = tuple(
        Change("Site", f"SITE-{number}", "changed", "labels", long, long, f"sites/{number}.yaml", 1)
        for number in range(10_000)
    )
    text = as_markdown(replace(promotion, changes=many))
    assert len(text) <= MOST_CHARACTERS
    shown = len(re.findall(r"sites/\d+\.yaml", text))
    assert f"{10_000 - shown:,} more rows are left out" in text
    assert len(replace(promotion, changes=many).to_dict()["changes"]) == 10_000


def test_a_diff_cannot_leave_its_fence(tmp_path: Path) -> None:
    made = repo(tmp_path)
    text = site("SITE-2", "America/New_York", more="vpn: {type: wireguard, secretRef: edge/SITE-2/vpn}")
    found = review(made, files={"fleet/sites/SITE-2.yaml": text})
    group = replace(found.configurations.groups[0], diff="+a\n```\n</details>@everyone\n````")
    text = as_markdown(replace(found, configurations=replace(found.configurations, groups=(group,))))
    assert "`````diff\n+a\n```\n</details>@everyone\n````\n`````" in text


def test_no_value_of_a_secret_can_appear() -> None:
    """A rendering holds references. What fills them in (`render.resolve`) and what reads them (`Secrets`) is not imported here."""
    harmless = {"render_site", "Rendering", "USER_DATA", "config_digests", "secret_refs"}
    for path in [*(ROOT / "reconciler/review").glob("*.py"), ROOT / "reconciler/cli/diff.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                assert node.module != "reconciler.repo.render" or names <= harmless, path
                assert not names & {"Secrets", "render", "secrets_aws", "secrets_dir"}, path


def test_a_reference_stands_where_a_secret_would(tmp_path: Path) -> None:
    made = repo(tmp_path)
    before = site("SITE-2", "America/New_York", more="vpn: {type: wireguard, secretRef: edge/old}")
    made.commit("A tunnel", {"fleet/sites/SITE-2.yaml": before})
    found = review(made, files={"fleet/sites/SITE-2.yaml": before.replace("edge/old", "edge/new")})
    text = as_text(found)
    assert "(the secret edge/old, filled in when the device fetches this file)" in text
    assert "(the secret edge/new, filled in when the device fetches this file)" in text


def test_nothing_is_one_line(tmp_path: Path) -> None:
    made = repo(tmp_path)
    assert len(as_text(review(made, "HEAD", "HEAD")).splitlines()) == 1
    assert "nothing changes" in as_markdown(review(made, "HEAD", "HEAD"))


def test_a_gate_that_never_passes_shouts(tmp_path: Path) -> None:
    made = repo(tmp_path)
    text = document("Image", "v1.4.2", "family: edge\nwithdrawn: it leaks")
    made.commit("Withdrawn", {"fleet/images/v1.4.2.yaml": text})
    found = review(made, files={"fleet/waves.yaml": waves("v1.4.2")})
    assert any(line.startswith("NEVER PASSES: lab on v1.4.2") and "withdrawn" in line for line in summary(found))
    assert any(line.startswith("warnings:") for line in summary(found))


def test_the_page_names_every_key_of_the_json(promotion: Review, tmp_path: Path) -> None:
    page = (ROOT / "docs/reference/diff.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Za-z]+)`", page)) | {"apiVersion", "kind"}
    free = {"alreadyThere", "underWay", "sizes"}  # their keys are names: of apps, of releases

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for name, one in value.items() if name not in free for key in keys(one)}
        return {key for one in value for key in keys(one)} if isinstance(value, list) else set()

    made = repo(tmp_path)
    made.write({"fleet/sites/SITE-2.yaml": site("SITE-2", "Asia/Kathmandu").replace("ntp.", "time.")})
    late = review(made, files={"fleet/waves.yaml": waves("v1.4.2", app="2.8.0").replace("[SITE-1]", "[SITE-1, SITE-2]")},
                  at=datetime(2026, 3, 27, tzinfo=UTC))  # fmt: skip
    held = {"held": {"reason": 1, "message": 1, "until": 1}, "code": 1, "column": 1}
    missing = (keys(late.to_dict()) | keys(promotion.to_dict()) | keys(held)) - named - {"offline"}
    assert not missing


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# x", "\\# x"),
        ("- x", "\\- x"),
        ("1. x", "1\\. x"),
        ("---", "\\---"),
        ("v1.4.2 (a-b)", "v1.4.2 (a-b)"),
        ("a*b", "a\\*b"),
    ],
)
def test_prose_begins_no_list_and_no_heading(text: str, shown: str) -> None:
    assert prose(text) == shown


def test_sites_that_download_alike_are_one_row(promotion: Review) -> None:
    (section,) = (section for section in sections(promotion) if section.title == "Downloads")
    assert [(row[0], row[1], row[-1]) for row in section.rows] == [
        ("1", "3", "SITE-3"),
        ("1", "2", "SITE-1"),
        ("3", "1", "LAB-1, SITE-2, SITE-4"),
    ]


def test_a_snapshot_from_after_the_merge_is_said_to_be(tmp_path: Path) -> None:
    late = Snapshot(at=AT + timedelta(hours=2), devices=())
    found = review(repo(tmp_path), files={"fleet/waves.yaml": waves("v1.4.2")}, observed=late)
    assert "taken 2 h AFTER the merge" in summary(found)[2]
