"""Pictures: the same run is the same file, what happened is in it, and no word lies over another."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from reconciler.ports import TerminalError
from reconciler.simulate import canvas
from reconciler.simulate.course import Run
from reconciler.simulate.distribution import distribution
from reconciler.simulate.faults import Faults
from reconciler.simulate.picture import draw
from reconciler.simulate.run import simulate
from reconciler.simulate.spread_picture import draw_distribution
from tests.review.repos import AT, waves
from tests.simulate.rollouts import course

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rollout() -> Run:
    return simulate(course(states=True))


def drawn(run: Run, path: Path, title: str = "A <title> of $10") -> str:
    canvas.save(draw(run.trace, run.desired, run.waves, title, "beneath"), path, title, "beneath")
    return path.read_text(encoding="utf-8")


def words(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)


def test_the_same_run_is_the_same_file(rollout: Run, tmp_path: Path) -> None:
    assert drawn(rollout, tmp_path / "a.svg") == drawn(rollout, tmp_path / "b.svg")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.svg", "b.svg"]


def test_it_says_what_happened(rollout: Run, tmp_path: Path) -> None:
    svg = drawn(rollout, tmp_path / "a.svg")
    said = words(svg)
    assert {"lab", "canary", "all", "merge", "soaks", "on v1.4.2", "proven", "a window is open", "all 5"} <= set(said)
    assert "waits for earlier waves" in said
    assert "stopped" not in said
    assert "<title>A &lt;title&gt; of $10</title>" in svg
    assert "prefers-color-scheme: dark" in svg
    assert not re.search(r'(href|src)="(?!#)', svg)


def test_a_stop_and_a_controller_that_was_away_are_in_it(tmp_path: Path) -> None:
    away = ((AT + timedelta(hours=20), AT + timedelta(hours=30)),)
    run = simulate(
        course(states=True, faults=Faults(bad_from_s=86400, bad=frozenset({"v1.4.2"}), down=away))
    )  # fmt: skip
    said = words(drawn(run, tmp_path / "a.svg"))
    assert {"stopped", "gate failed", "the controller is down", "held: the release is stopped"} <= set(said)


def test_an_app_has_lanes_of_its_own(tmp_path: Path) -> None:
    run = simulate(course(waves("v1.4.2", app="2.8.0"), states=True))
    said = words(drawn(run, tmp_path / "a.svg"))
    assert {"lab, image", "lab, video", "on v1.4.2", "on video@2.8.0"} <= set(said)


@pytest.mark.parametrize("length", [timedelta(hours=5), timedelta(days=2), timedelta(days=30), timedelta(days=400)])
def test_no_word_lies_over_another(rollout: Run, length: timedelta) -> None:
    """Of an hour as of a year: labels of the axis, and words in the lanes, are apart."""
    from dataclasses import replace

    trace = replace(rollout.trace, ended_at=rollout.trace.started_at + length)
    figure = draw(trace, rollout.desired, rollout.waves, "t", "s")
    figure.canvas.draw()
    axes = figure.axes[0]
    for texts in (axes.get_xticklabels(), axes.texts):
        boxes = [text.get_window_extent() for text in texts if text.get_text() and _is_inside(axes, text)]
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[number + 1 :]), texts


def _is_inside(axes: Any, text: Any) -> bool:
    low, high = axes.get_xlim()
    return bool(low <= float(text.get_position()[0]) <= high)


def test_a_distribution_is_drawn_where_nothing_was_proven_too(tmp_path: Path) -> None:
    bad = Faults(bad_from_s=60, bad=frozenset({"v1.4.2"}))
    found = distribution(course(faults=bad), 2, processes=1)
    path = tmp_path / "a.svg"
    canvas.save(draw_distribution(found, "Spread"), path, "Spread", "")
    assert {"proven in 0, stopped in 2 of 2", "most devices at once on a bad release"} <= set(words(path.read_text()))


def test_a_file_that_cannot_be_written_is_named(rollout: Run, tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="neither"):
        drawn(rollout, tmp_path / "a.pdf")
    with pytest.raises(TerminalError, match=r"nowhere/a\.svg cannot be written"):
        drawn(rollout, tmp_path / "nowhere/a.svg")
