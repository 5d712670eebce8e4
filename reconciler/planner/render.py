"""Columns → the contract's plan: names for codes, holds grouped, messages written. Pure; done on request, not every tick."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import numpy as np

from reconciler.model.plan import (
    Action,
    ActionKind,
    AppStatus,
    Hold,
    Plan,
    Reason,
    WaveState,
    WaveStatus,
)
from reconciler.planner.fleetwide import artifact_actions, facts, flagged, retag_actions, revert_actions
from reconciler.planner.judge import Gate, digest_codes
from reconciler.planner.messages import message
from reconciler.planner.roster import I64, IMAGE_TRACK
from reconciler.planner.state import State, Track
from reconciler.planner.want import MAY_START, REASONS, SETTLED
from reconciler.planner.want_app import TagState
from reconciler.planner.want_image import RESCUE, ROLLBACK, WHYS
from reconciler.planner.windows import NEVER, instant

OF_THE_WAVE = frozenset({Reason.GATE_FAILED, Reason.WAVE_WAITS, Reason.SOAKING, Reason.GATE_UNRESOLVED})
"""Reasons that hold a wave: their holds name no devices, which means all of the wave that are not on the release."""


def render(state: State) -> Plan:
    """The plan that a state holds, all of it."""
    return Plan(
        at=instant(state.now),
        commit=state.roster.desired.commit,
        actions=actions(state),
        holds=holds_in_order(state),
        waves=tuple(wave_status(state, index) for index in range(len(state.roster.waves))),
        facts=facts(state),
        flagged=flagged(state),
        wake_at=wake_at(state),
    )


def actions(state: State) -> tuple[Action, ...]:
    """Every action, in the contract's order. Costs what starts, not the fleet."""
    found = [*artifact_actions(state), *revert_actions(state), *retag_actions(state), *device_actions(state)]
    return tuple(sorted(found, key=lambda action: action.sort_key))


def holds_in_order(state: State) -> tuple[Hold, ...]:
    """Every hold, sorted."""
    return tuple(sorted(holds(state), key=lambda hold: hold.sort_key))


def device_actions(state: State) -> Iterator[Action]:
    """Flash, configure and restart, for the rows that start."""
    roster, obs = state.roster, state.obs
    image = state.tracks[IMAGE_TRACK]
    for row in image.ration.started.tolist():
        target, running = int(image.target[row]), int(obs.image[row])
        yield Action(
            ActionKind.FLASH,
            {
                "device": roster.device_names[row],
                "site": roster.site_names[roster.site_of[row]],
                "wave": wave_name(state, row),
                "from": obs.release_names[running] if running >= 0 else None,
                "to": obs.release_names[target],
                "why": WHYS[image.why[row]].value,
                "method": "switch" if obs.inactive[row] == target else "write",
            },
        )
    for row in state.config.ration.started.tolist():
        digest = roster.config_of[0][state.config.target[row]]
        yield Action(ActionKind.CONFIGURE, {"device": roster.device_names[row], "config": digest})
    for number, track in enumerate(state.tracks):
        if number == IMAGE_TRACK:
            continue
        app = roster.apps[number - 1]
        for row in track.ration.started.tolist():
            digest = app.digests[track.target[row]]
            yield Action(ActionKind.RESTART, {"device": roster.device_names[row], "app": app.name, "to": digest})


def wave_name(state: State, row: int) -> str | None:
    """Name of the wave that a row is in."""
    wave = int(state.places.wave_of[row])
    return state.roster.waves[wave].spec.name if wave >= 0 else None


def reason_of(track: Track, row: int) -> Reason | None:
    """Why a row is held on a track; None where nothing is wanted or it starts."""
    code = int(track.reason[row])
    if code == SETTLED or track.starts[row]:
        return None
    return Reason.BUDGET if code == MAY_START else REASONS[code - 1]


def until_of(state: State, number: int, reason: Reason, wave: int, calendar: int) -> int:
    """The instant at which a hold can change, in microseconds; NEVER where it is not known."""
    nights, ground = state.ground.nights, state.ground
    if reason in (Reason.OUTSIDE_WINDOW, Reason.NO_WINDOW):
        return (nights.flash_until if number == IMAGE_TRACK else nights.restart_until)[calendar]
    if reason is Reason.FROZEN:
        return ground.frozen_until
    if reason is Reason.SOAKING and wave >= 0:
        return ground.gates[number].entry[wave].until
    return NEVER


class Named(NamedTuple):
    """How a hold names what it is about."""

    image: str | None
    app: str | None
    release: str | None


def named(state: State, number: int, code: int) -> Named:
    """Names of a release on a track; the configuration track (-1) has none."""
    if number == IMAGE_TRACK:
        return Named(state.obs.release_names[code] if code >= 0 else None, None, None)
    if number > 0:
        app = state.roster.apps[number - 1]
        return Named(None, app.name, app.versions[code] if code >= 0 else None)
    return Named(None, None, None)


def holds(state: State) -> list[Hold]:
    """Every hold: of rows, grouped by reason, wave, release and until; of stopped releases; of tags."""
    out: list[Hold] = []
    for number, track in enumerate(state.tracks):
        out += _track_holds(state, number, track)
    out += _track_holds(state, -1, state.config)
    have = {(hold.reason, hold.wave, hold.image, hold.app) for hold in out}
    for hold in (*failed_holds(state), *tag_holds(state)):
        if (hold.reason, hold.wave, hold.image, hold.app) not in have:
            have.add((hold.reason, hold.wave, hold.image, hold.app))
            out.append(hold)
    return out


def _track_holds(state: State, number: int, track: Track) -> Iterator[Hold]:
    rows = np.flatnonzero((track.reason != SETTLED) & ~track.starts)
    if len(rows) == 0:
        return
    roster, wave_of = state.roster, state.places.wave_of[rows]
    calendar = roster.calendar_of[rows]
    reason = track.reason[rows].astype(np.int64)
    target = track.target[rows]
    asked = np.array([wave.ask(max(number, 0)) for wave in roster.waves] + [-1])[wave_of]
    with_wave = (target == asked) & (roster.pin_of[rows] < 0) & (number >= 0)
    parts = (reason, wave_of + 1, target + 1, calendar, with_wave.astype(np.int64))
    key: I64 = np.zeros(len(rows), np.int64)
    for part, size in zip(
        parts, (128, len(roster.waves) + 1, int(target.max()) + 3, len(roster.calendars), 2), strict=True
    ):
        key = key * size + part
    order = np.argsort(key, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
    merged: dict[tuple[Reason, int, int, int, bool], list[int]] = {}
    for group in groups:
        first = rows[group[0]]
        why = reason_of(track, int(first))
        assert why is not None
        wave = int(wave_of[group[0]])
        until = until_of(state, number, why, wave, int(calendar[group[0]]))
        of_wave = why in OF_THE_WAVE and bool(with_wave[group[0]])
        merged.setdefault((why, wave, int(target[group[0]]), until, of_wave), []).extend(rows[group].tolist())
    for (why, wave, code, until, of_wave), members in merged.items():
        devices = () if of_wave else tuple(sorted(roster.device_names[row] for row in members))
        yield _hold(state, number, why, wave, code, until, devices)


def _hold(
    state: State, number: int, reason: Reason, wave: int, code: int, until: int, devices: tuple[str, ...] = ()
) -> Hold:
    of = named(state, number, code)
    return Hold(
        reason=reason,
        wave=state.roster.waves[wave].spec.name if wave >= 0 else None,
        image=of.image,
        app=of.app,
        release=of.release,
        devices=devices,
        until=None if until == NEVER else instant(until),
        message=message(state, number, reason, wave, code, until, devices),
    )


def failed_holds(state: State) -> Iterator[Hold]:
    """A stopped release is held in every wave that asks for it, whether or not a device still wants it."""
    for number, gates in enumerate(state.ground.gates):
        for wave in state.roster.waves:
            code = wave.ask(number)
            # Nobody moves to a withdrawn release anyway, and the ladder says that first.
            if code in gates.failed and not (number == IMAGE_TRACK and state.roster.withdrawn[code]):
                yield _hold(state, number, Reason.GATE_FAILED, wave.index, wave.ask(number), NEVER)


def tag_holds(state: State) -> Iterator[Hold]:
    """Tags that may not move yet, or that somebody else has moved."""
    for verdicts in state.tag_verdicts:
        for verdict in verdicts:
            if verdict.state in (TagState.HELD, TagState.DRIFTED) and verdict.reason is not None:
                number = verdict.app + 1
                code = state.roster.waves[verdict.wave].ask(number)
                until = until_of(state, number, verdict.reason, verdict.wave, 0)
                yield _hold(state, number, verdict.reason, verdict.wave, code, until)


def track_state(state: State, number: int, index: int) -> WaveState:
    """Where a wave stands on one track."""
    gates, track = state.ground.gates[number], state.tracks[number]
    wave, judged = state.roster.waves[index], gates.judged[index]
    code = wave.ask(number)
    if code < 0 or judged.gate is Gate.EMPTY:
        return WaveState.IDLE
    counted = ~state.roster.suspended_of & (state.roster.pin_of < 0)
    inside = (state.places.wave_of == index) & (track.reason != SETTLED) & counted
    back = inside & ((track.why == ROLLBACK) | (track.why == RESCUE))
    if back.any():
        return WaveState.ROLLING_BACK
    key = state.roster.key(number, code)
    recorded = any(v.wave == wave.spec.name and v.key == key and state.obs.is_open(v) for v in state.obs.failures)
    if gates.failed_here[index] or recorded:
        return WaveState.FAILED
    if gates.proven[index]:
        return WaveState.COMPLETE
    if state.ground.paused[index]:
        return WaveState.PAUSED
    if judged.gate is Gate.SOAKING:
        return WaveState.SOAKING
    if gates.entry[index].reason is not None or code in gates.failed:
        return WaveState.WAITING
    return WaveState.UNRESOLVED if judged.gate is Gate.UNRESOLVED else WaveState.ROLLING


def wave_status(state: State, index: int) -> WaveStatus:
    """One wave as the contract prints it."""
    roster, wave = state.roster, state.roster.waves[index]
    judged = state.ground.gates[IMAGE_TRACK].judged[index]
    inside = state.places.wave_of == index
    able = inside & ~roster.suspended_of & (roster.pin_of < 0)
    apps = {}
    for number in roster.tracks:
        code = wave.ask(number)
        if number != IMAGE_TRACK and code >= 0:
            app, of = roster.apps[number - 1], state.ground.gates[number].judged[index]
            apps[app.name] = AppStatus(
                app.versions[code],
                track_state(state, number, index),
                int((able & (state.obs.app_digest[number - 1] == digest_codes(roster, state.obs, number)[code])).sum()),
                of.healthy,
                of.failed,
                None if of.soak_ends == NEVER else instant(of.soak_ends),
            )
    return WaveStatus(
        name=wave.spec.name,
        image=wave.spec.image,
        state=track_state(state, IMAGE_TRACK, index),
        sites=state.places.sites_in[index],
        devices=judged.devices if wave.image >= 0 else int(able.sum()),
        on_release=int((able & (state.obs.image == wave.image)).sum()) if wave.image >= 0 else 0,
        healthy=judged.healthy,
        failed=judged.failed,
        offline=judged.offline,
        in_flight=int((inside & state.busy).sum()),
        soak_ends_at=None if judged.soak_ends == NEVER else instant(judged.soak_ends),
        apps=apps,
    )


def wake_at(state: State) -> datetime | None:
    """The earliest instant at which planning again may say something else without a new report."""
    edges = [state.deadlines.earliest, state.ground.nights.edge]
    for gates in state.ground.gates:
        edges += [judged.soak_ends for judged in gates.judged if judged.soak_ends > state.now]
    for opens, closes, _ in state.roster.freezes:
        edges += [edge for edge in (opens, closes) if edge > state.now]
    first = min((edge for edge in edges if edge > state.now), default=NEVER)
    return None if first == NEVER else instant(first)
