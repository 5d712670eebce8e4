"""Every edge of the transition table is walked by the real agent on a real device, by what makes it happen; every pair that is
no edge is refused by it and changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta

import pytest

from reconciler.agent.machine import IMPOSSIBLE, TABLE, ImpossibleEvent, State
from tests.agent.conftest import Releases
from tests.agent.play import Play
from tests.agent.scenes import SCENES, E, S
from tests.agent.world import START, Office, Site

pytestmark = pytest.mark.system


def test_the_scenes_below_leave_no_edge_out() -> None:
    assert set().union(*SCENES.values()) == set(TABLE)


@pytest.fixture
def play(site: Site, office: Office, releases: Releases, monkeypatch: pytest.MonkeyPatch) -> Play:
    office.assign(window=((START - timedelta(hours=1), START + timedelta(hours=9)),))
    return Play(site, office, releases, monkeypatch)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_a_scene_walks_its_edges_and_ends_at_rest(play: Play, scene: Callable[[Play], None]) -> None:
    scene(play)
    missing = SCENES[scene] - set(play.walked)
    assert not missing, f"never walked: {sorted((s.name, e.name) for s, e in missing)}"
    assert play.state is S.IDLE
    assert play.site.device.agent.notes.memory.intent is None
    assert play.site.hardware.flags().trial is None
    for (before, _), (after, _) in itertools.pairwise(play.walked):
        # Each walk is one of the table: a state follows from the one before, or a new life begins.
        assert after is S.BOOTING or any(
            TABLE[before, event].state is after for event in E if (before, event) in TABLE
        ), (before, after)


def test_every_pair_that_is_no_edge_is_refused_by_the_agent_and_changes_nothing(play: Play) -> None:
    play.updated()
    agent = play.site.device.agent
    before, pairs = play.site.tree(), 0
    for state in State:
        for event in IMPOSSIBLE[state]:
            agent.work.state = state
            play.patch.setitem(agent.work._activities, state, lambda _now, event=event: (event, None))  # type: ignore[index]
            with pytest.raises(ImpossibleEvent, match=f"{state.name} reported {event.name}"):
                agent.work.advance(play.office.now)
            assert agent.work.state is state
            pairs += 1
    assert pairs == len(State) * len(E) - len(TABLE)
    assert play.site.tree() == before
