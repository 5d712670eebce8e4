"""The agent's transition table: states, events, effects. Pure: no clock, no file, no network.

Python 3.10, standard library only: runs as root on a device. Decides what follows when something happened; `agent`
senses what happened (each state has one activity) and carries out the effects in the order given. A pair of state and
event is either in `TABLE` or in `IMPOSSIBLE`; a test holds the two complete and disjoint, so nothing happens unnoticed.

What survives a power cut is the intent and the boot flags, not the state: every life begins in BOOTING, which
compares them. A life that does not know yet what it runs finds that out first, and comes back to BOOTING.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """Where the device is. The value is the activity that is tried while it is there."""

    BOOTING = "compare the booted slot with the intent"
    RECOGNISING = "hash the booted slot, of which nothing is recorded"
    IDLE = "look for the next thing that may be done"
    FETCHING = "download and verify the artifact"
    CHECKING = "hash the inactive slot, which should hold the image already"
    WRITING = "write the inactive slot and read it back"
    WRITTEN = "wait until a reboot is allowed"
    REBOOTING = "reboot into the armed slot"
    TRIAL = "judge the trial boot by its healthcheck"
    RETURNING = "reboot into the slot that was good"
    CONFIGURING = "fetch and apply the site's configuration"
    PULLING = "pull the app's release"
    RESTARTING = "switch and restart the app, and judge it by the healthcheck"


class Event(Enum):
    """What an activity found."""

    UNKNOWN = "nothing is recorded of the booted slot"
    CLEAN = "no intent is open"
    ON_TRIAL = "the armed slot is booted and not marked good"
    FINISHED = "the slot was marked good, but the intent is still open"
    NOT_TRIED = "the intent is open, and the armed slot was never tried"
    FELL_BACK = "the armed slot was tried, and the old one is booted"
    STRAY = "a slot is booted that is neither default nor intended"
    PASSED_OVER = "the default slot could not be loaded, and one that was good runs instead"
    APP_OPEN = "an app's restart was begun and not finished"
    CONFIG_OPEN = "a configuration was begun and not finished"

    NOTHING = "nothing may be done now"
    FETCH = "an image is wanted that is not on the device"
    WRITE = "its artifact is here and the window is open"
    SWITCH = "the inactive slot holds the wanted image and the window is open"
    BACK = "a person asks for the other slot, which was good"
    CONFIGURE = "another configuration is wanted"
    PULL = "another release of an app is wanted, and not on the device"
    RESTART = "another release of an app is wanted, and on the device"

    MORE = "not done yet"
    DONE = "done"
    FAILED = "did not work, and may work later"
    SPOILED = "what is on the device is not what it should be"
    REFUSED = "it is not what was assigned, or not signed by whom it should be"
    OBSOLETE = "no longer wanted, or the assignment has expired"
    WORSE = "a check is worse than before"


class Effect(Enum):
    """What a transition does, by hands in `agent`. Each can be repeated after a power cut."""

    FORGET_SLOT = "write down that the inactive slot holds nothing usable"
    RECORD_INTENT = "write down slot, release, digest, and the checks as they are now"
    ARM = "arm one trial boot of the inactive slot"
    DISARM = "clear a trial boot that is over or no longer wanted"
    MARK_GOOD = "make the booted slot the default"
    SET_VERSION = "write /etc/edge-image-version: current and previous"
    CLEAR_INTENT = "write down that nothing is open"
    COUNT_FAILURE = "count a failed attempt and close the intent, in one write"
    DROP_CACHE = "remove the downloaded artifact"
    BACK_OFF = "try this again later, each time later"


@dataclass(frozen=True)
class Transition:
    """The state that follows, and the effects before it is entered."""

    state: State
    effects: tuple[Effect, ...] = ()


_S, _E, _F = State, Event, Effect

TABLE: Mapping[tuple[State, Event], Transition] = {
    # Before anything is concluded or told: a slot without a record is not an empty one.
    (_S.BOOTING, _E.UNKNOWN): Transition(_S.RECOGNISING),
    (_S.RECOGNISING, _E.MORE): Transition(_S.RECOGNISING),
    (_S.RECOGNISING, _E.DONE): Transition(_S.BOOTING),
    (_S.RECOGNISING, _E.FAILED): Transition(_S.BOOTING),
    (_S.BOOTING, _E.CLEAN): Transition(_S.IDLE, (_F.DISARM, _F.SET_VERSION)),
    (_S.BOOTING, _E.ON_TRIAL): Transition(_S.TRIAL),
    # The intent is closed last: what a power cut leaves undone is done by the next life as long as it is open.
    (_S.BOOTING, _E.FINISHED): Transition(_S.IDLE, (_F.MARK_GOOD, _F.SET_VERSION, _F.DROP_CACHE, _F.CLEAR_INTENT)),
    # The slot is whole, only the boot was not armed: closing the intent leads back here by way of IDLE and CHECKING.
    (_S.BOOTING, _E.NOT_TRIED): Transition(_S.IDLE, (_F.DISARM, _F.CLEAR_INTENT)),
    # Counted before the flags are cleared: flags without an intent are cleared by CLEAN, an intent without flags
    # would be taken for never tried, and the failure lost.
    (_S.BOOTING, _E.FELL_BACK): Transition(_S.IDLE, (_F.COUNT_FAILURE, _F.DISARM, _F.SET_VERSION)),
    (_S.BOOTING, _E.STRAY): Transition(_S.RETURNING),
    # A reboot would end where it began, for ever. It was good before, so nothing is judged.
    (_S.BOOTING, _E.PASSED_OVER): Transition(_S.BOOTING, (_F.MARK_GOOD,)),
    (_S.BOOTING, _E.APP_OPEN): Transition(_S.RESTARTING, (_F.SET_VERSION,)),
    (_S.BOOTING, _E.CONFIG_OPEN): Transition(_S.CONFIGURING, (_F.SET_VERSION,)),
    # A record that is lost while the device runs: what runs is found out again, before anything is told or concluded.
    (_S.IDLE, _E.UNKNOWN): Transition(_S.RECOGNISING),
    (_S.IDLE, _E.NOTHING): Transition(_S.IDLE),
    (_S.IDLE, _E.FETCH): Transition(_S.FETCHING),
    (_S.IDLE, _E.WRITE): Transition(_S.WRITING),
    (_S.IDLE, _E.SWITCH): Transition(_S.CHECKING),
    (_S.IDLE, _E.BACK): Transition(_S.CHECKING),
    (_S.IDLE, _E.CONFIGURE): Transition(_S.CONFIGURING),
    (_S.IDLE, _E.PULL): Transition(_S.PULLING),
    (_S.IDLE, _E.RESTART): Transition(_S.RESTARTING),
    (_S.FETCHING, _E.MORE): Transition(_S.FETCHING),
    (_S.FETCHING, _E.DONE): Transition(_S.IDLE),
    (_S.FETCHING, _E.FAILED): Transition(_S.IDLE, (_F.BACK_OFF,)),
    (_S.FETCHING, _E.REFUSED): Transition(_S.IDLE, (_F.BACK_OFF,)),
    (_S.FETCHING, _E.OBSOLETE): Transition(_S.IDLE),
    (_S.CHECKING, _E.MORE): Transition(_S.CHECKING),
    (_S.CHECKING, _E.DONE): Transition(_S.WRITTEN),
    # A slot that has rotted is not booted; the image is fetched again.
    (_S.CHECKING, _E.SPOILED): Transition(_S.IDLE, (_F.FORGET_SLOT,)),
    (_S.CHECKING, _E.FAILED): Transition(_S.IDLE, (_F.BACK_OFF,)),
    (_S.CHECKING, _E.OBSOLETE): Transition(_S.IDLE),
    (_S.WRITING, _E.MORE): Transition(_S.WRITING),
    (_S.WRITING, _E.DONE): Transition(_S.WRITTEN),
    # The slot's record was cleared before its first byte changed, so there is nothing to forget here. A disk that
    # does not give back what was written is an attempt: writing again and again would hide that it dies.
    (_S.WRITING, _E.SPOILED): Transition(_S.IDLE, (_F.COUNT_FAILURE,)),
    (_S.WRITING, _E.FAILED): Transition(_S.IDLE, (_F.COUNT_FAILURE,)),
    # The downloaded file is not what it was when it was verified: it is fetched again.
    (_S.WRITING, _E.REFUSED): Transition(_S.IDLE, (_F.DROP_CACHE, _F.BACK_OFF)),
    (_S.WRITING, _E.OBSOLETE): Transition(_S.IDLE),
    (_S.WRITTEN, _E.MORE): Transition(_S.WRITTEN),
    (_S.WRITTEN, _E.OBSOLETE): Transition(_S.IDLE),
    (_S.WRITTEN, _E.DONE): Transition(_S.REBOOTING, (_F.RECORD_INTENT, _F.ARM)),
    (_S.REBOOTING, _E.MORE): Transition(_S.REBOOTING),
    (_S.REBOOTING, _E.FAILED): Transition(_S.IDLE, (_F.DISARM, _F.CLEAR_INTENT, _F.BACK_OFF)),
    (_S.TRIAL, _E.MORE): Transition(_S.TRIAL),
    (_S.TRIAL, _E.DONE): Transition(_S.IDLE, (_F.MARK_GOOD, _F.SET_VERSION, _F.DROP_CACHE, _F.CLEAR_INTENT)),
    (_S.TRIAL, _E.WORSE): Transition(_S.RETURNING, (_F.COUNT_FAILURE,)),
    (_S.RETURNING, _E.MORE): Transition(_S.RETURNING),
    (_S.RETURNING, _E.FAILED): Transition(_S.RETURNING),
    (_S.CONFIGURING, _E.MORE): Transition(_S.CONFIGURING),
    (_S.CONFIGURING, _E.DONE): Transition(_S.IDLE, (_F.CLEAR_INTENT,)),
    (_S.CONFIGURING, _E.FAILED): Transition(_S.IDLE, (_F.BACK_OFF,)),
    (_S.CONFIGURING, _E.REFUSED): Transition(_S.IDLE, (_F.BACK_OFF,)),
    (_S.CONFIGURING, _E.WORSE): Transition(_S.IDLE, (_F.COUNT_FAILURE,)),
    (_S.PULLING, _E.MORE): Transition(_S.PULLING),
    (_S.PULLING, _E.DONE): Transition(_S.RESTARTING),
    (_S.PULLING, _E.FAILED): Transition(_S.IDLE, (_F.BACK_OFF,)),
    (_S.PULLING, _E.REFUSED): Transition(_S.IDLE, (_F.BACK_OFF,)),
    (_S.PULLING, _E.OBSOLETE): Transition(_S.IDLE),
    (_S.RESTARTING, _E.MORE): Transition(_S.RESTARTING),
    (_S.RESTARTING, _E.DONE): Transition(_S.IDLE, (_F.CLEAR_INTENT,)),
    (_S.RESTARTING, _E.FAILED): Transition(_S.IDLE, (_F.COUNT_FAILURE,)),
    (_S.RESTARTING, _E.WORSE): Transition(_S.IDLE, (_F.COUNT_FAILURE,)),
    (_S.RESTARTING, _E.OBSOLETE): Transition(_S.IDLE, (_F.CLEAR_INTENT,)),
}
"""What follows from what."""

_AT_BOOT = frozenset(
    (_E.UNKNOWN, _E.CLEAN, _E.ON_TRIAL, _E.FINISHED, _E.NOT_TRIED, _E.FELL_BACK, _E.STRAY, _E.PASSED_OVER)
) | {_E.APP_OPEN, _E.CONFIG_OPEN}
_AT_REST = frozenset((_E.NOTHING, _E.FETCH, _E.WRITE, _E.SWITCH, _E.BACK, _E.CONFIGURE, _E.PULL, _E.RESTART))
_AT_WORK = frozenset((_E.MORE, _E.DONE, _E.FAILED, _E.SPOILED, _E.REFUSED, _E.OBSOLETE, _E.WORSE))

IMPOSSIBLE: Mapping[State, frozenset[Event]] = {
    _S.BOOTING: _AT_REST | _AT_WORK,
    _S.RECOGNISING: _AT_BOOT | _AT_REST | {_E.SPOILED, _E.REFUSED, _E.OBSOLETE, _E.WORSE},
    _S.IDLE: _AT_BOOT - {_E.UNKNOWN} | _AT_WORK,
    _S.FETCHING: _AT_BOOT | _AT_REST | {_E.SPOILED, _E.WORSE},
    _S.CHECKING: _AT_BOOT | _AT_REST | {_E.REFUSED, _E.WORSE},
    _S.WRITING: _AT_BOOT | _AT_REST | {_E.WORSE},
    _S.WRITTEN: _AT_BOOT | _AT_REST | {_E.FAILED, _E.SPOILED, _E.REFUSED, _E.WORSE},
    # A reboot ends this life; only one that could not be begun is heard of.
    _S.REBOOTING: _AT_BOOT | _AT_REST | {_E.DONE, _E.SPOILED, _E.REFUSED, _E.OBSOLETE, _E.WORSE},
    # A trial is judged whatever the assignment says by now: the device must not stay on a slot that nobody judged.
    _S.TRIAL: _AT_BOOT | _AT_REST | {_E.FAILED, _E.SPOILED, _E.REFUSED, _E.OBSOLETE},
    _S.RETURNING: _AT_BOOT | _AT_REST | {_E.DONE, _E.SPOILED, _E.REFUSED, _E.OBSOLETE, _E.WORSE},
    _S.CONFIGURING: _AT_BOOT | _AT_REST | {_E.SPOILED, _E.OBSOLETE},
    _S.PULLING: _AT_BOOT | _AT_REST | {_E.SPOILED, _E.WORSE},
    _S.RESTARTING: _AT_BOOT | _AT_REST | {_E.SPOILED, _E.REFUSED},
}
"""Events that a state's activity never reports; meeting one is a fault of this package and raises."""

PHASES: Mapping[State, str] = {
    _S.BOOTING: "idle",
    _S.RECOGNISING: "idle",
    _S.IDLE: "idle",
    _S.FETCHING: "prefetching",
    _S.CHECKING: "writing",
    _S.WRITING: "writing",
    _S.WRITTEN: "writing",
    _S.REBOOTING: "rebooting",
    _S.TRIAL: "trial",
    _S.RETURNING: "rebooting",
    _S.CONFIGURING: "configuring",
    _S.PULLING: "restarting",
    _S.RESTARTING: "restarting",
}
"""The word of the protocol for each state."""


class ImpossibleEvent(Exception):
    """An activity reported what it cannot find. A fault of this package."""


def follow(state: State, event: Event) -> Transition:
    """The transition for an event. Raises ImpossibleEvent for a pair outside of `TABLE`."""
    found = TABLE.get((state, event))
    if found is None:
        raise ImpossibleEvent(f"{state.name} reported {event.name}")
    return found
