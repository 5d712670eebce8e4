"""The transition table is complete, consistent, and never acts on a slot that nobody judged."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.agent.machine import IMPOSSIBLE, PHASES, TABLE, Effect, Event, ImpossibleEvent, State, follow
from reconciler.protocol.report import PHASES as WORDS


def test_every_pair_is_either_a_transition_or_named_impossible() -> None:
    for state, event in itertools.product(State, Event):
        assert ((state, event) in TABLE) != (event in IMPOSSIBLE[state]), (state, event)


@given(st.sampled_from(State), st.sampled_from(Event))
def test_follow_answers_or_raises_but_never_guesses(state: State, event: Event) -> None:
    if event in IMPOSSIBLE[state]:
        with pytest.raises(ImpossibleEvent, match=f"{state.name} reported {event.name}"):
            follow(state, event)
    else:
        assert isinstance(follow(state, event).state, State)


def test_every_state_is_reached_and_left_and_has_a_word_of_the_protocol() -> None:
    reached = {transition.state for transition in TABLE.values()}
    assert reached | {State.BOOTING} == set(State)
    # A reboot ends the life, so REBOOTING and RETURNING are left by the next one.
    left = {state for (state, _), transition in TABLE.items() if transition.state is not state}
    assert left | {State.RETURNING} == set(State)
    assert set(PHASES) == set(State)
    assert set(PHASES.values()) == set(WORDS)


def test_every_effect_is_used() -> None:
    assert {effect for transition in TABLE.values() for effect in transition.effects} == set(Effect)


@given(st.lists(st.sampled_from(Event), max_size=60))
def test_from_boot_no_walk_marks_a_slot_good_without_a_judgement(events: list[Event]) -> None:
    """Only a trial that was judged (or a mark that was begun) marks; only a written or checked slot is armed."""
    state, trail = State.BOOTING, []
    for event in events:
        if (state, event) not in TABLE:
            continue
        transition = follow(state, event)
        for effect in transition.effects:
            if effect is Effect.MARK_GOOD:
                # One that was passed to was good before: its record says so.
                judged = {
                    (State.TRIAL, Event.DONE),
                    (State.BOOTING, Event.FINISHED),
                    (State.BOOTING, Event.PASSED_OVER),
                }
                assert (state, event) in judged
            if effect is Effect.ARM:
                assert state is State.WRITTEN
                assert transition.effects.index(Effect.RECORD_INTENT) < transition.effects.index(Effect.ARM)
                assert trail[-1] in {State.WRITING, State.CHECKING, State.WRITTEN}
        if transition.state is not state:
            trail.append(state)
        state = transition.state


def test_a_failure_is_counted_before_the_flags_that_prove_it_are_cleared() -> None:
    effects = follow(State.BOOTING, Event.FELL_BACK).effects
    assert effects.index(Effect.COUNT_FAILURE) < effects.index(Effect.DISARM)


def test_a_mark_comes_before_the_end_of_its_intent() -> None:
    for transition in TABLE.values():
        if {Effect.MARK_GOOD, Effect.CLEAR_INTENT} <= set(transition.effects):
            order = [transition.effects.index(item) for item in (Effect.MARK_GOOD, Effect.CLEAR_INTENT)]
            assert order == sorted(order)


def test_the_intent_is_written_before_the_boot_is_armed() -> None:
    """Armed without an intent, a trial boot would be nobody's: not judged, and its failure not counted."""
    assert follow(State.WRITTEN, Event.DONE).effects == (Effect.RECORD_INTENT, Effect.ARM)
