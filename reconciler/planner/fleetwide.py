"""What is decided for the fleet rather than for a device: artifacts, reverts, memberships, and the facts to record. Pure.

Design §4.1, §4.7, §4.9; contract fine print 3, 6, 13, 15.
"""

from __future__ import annotations

import numpy as np

from reconciler.model.observed import ArtifactState
from reconciler.model.plan import Action, ActionKind, DeviceFact, Facts, VerdictFact
from reconciler.planner.judge import Seen
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.state import State
from reconciler.planner.want_app import TagState
from reconciler.planner.want_image import RESCUE
from reconciler.planner.windows import NONE, instant

_STEP = {
    ArtifactState.ABSENT: ActionKind.BUILD,
    ArtifactState.BUILT: ActionKind.SIGN,
    ArtifactState.SIGNED: ActionKind.PUBLISH,
}


def artifact_actions(state: State) -> list[Action]:
    """One step a release: build, sign or publish what a wave, a pin or a device asks for; never rebuild what is gone back to."""
    roster, obs, track = state.roster, state.obs, state.tracks[IMAGE_TRACK]
    wanted = {wave.image for wave in roster.waves} | set(roster.pinned)
    wanted |= set(track.wanted())
    never_rebuilt = set(track.gone_back_to())
    out = []
    for code in sorted(code for code in wanted if 0 <= code < len(roster.releases)):
        name = roster.releases[code]
        kind = _STEP.get(obs.artifacts.get(name, ArtifactState.ABSENT))
        if kind is None or roster.withdrawn[code] or (kind is ActionKind.BUILD and code in never_rebuilt):
            continue
        out.append(Action(kind, {"image": name}))
    return out


def revert_actions(state: State) -> list[Action]:
    """One proposal for each release that is stopped and has none on record."""
    proposed = {proposal.key for proposal in state.obs.proposals}
    out = []
    for track, gates in zip(state.roster.tracks, state.ground.gates, strict=True):
        for code in sorted(gates.failed):
            key = state.roster.key(track, code)
            if key in proposed:
                continue
            app, at_sign, version = key.partition("@")
            of: dict[str, str | None] = {"app": app, "release": version} if at_sign else {"image": key}
            out.append(Action(ActionKind.PROPOSE_REVERT, of))
    return out


def retag_actions(state: State) -> list[Action]:
    """Tags that move in this plan. Waves that share a tag share the action."""
    roster = state.roster
    out: dict[tuple[str, str, str | None], Action] = {}
    for verdicts in state.tag_verdicts:
        for verdict in verdicts:
            if verdict.state is TagState.MOVES:
                app, tag = roster.apps[verdict.app].name, roster.waves[verdict.wave].tag
                fields = {"app": app, "tag": tag, "from": verdict.current, "to": verdict.wanted}
                out[(app, tag, verdict.wanted)] = Action(ActionKind.RETAG, fields)
    return list(out.values())


def _verdict_facts(state: State, name: str) -> tuple[VerdictFact, ...]:
    out = []
    for track, gates in zip(state.roster.tracks, state.ground.gates, strict=True):
        for wave, code in getattr(gates, name):
            fact = VerdictFact(state.roster.waves[wave].spec.name, state.roster.key(track, code), instant(state.now))
            out.append(fact)
    return tuple(sorted(out, key=lambda fact: (fact.key, fact.wave)))


def _members(state: State) -> dict[str, dict[str, tuple[str, ...]]]:
    """Sites newly taken. They follow from memberships and from which waves may begin, and are found again when those change."""
    tracks = state.roster.tracks
    begin = tuple(state.ground.entry_open(wave.index, track) for wave in state.roster.waves for track in tracks)
    memo = state.taken_memo
    if memo is None or memo[0] is not state.obs.members or memo[1] is not state.places or memo[2] != begin:
        memo = state.taken_memo = (state.obs.members, state.places, begin, _newly_taken(state))
    return memo[3]


def _newly_taken(state: State) -> dict[str, dict[str, tuple[str, ...]]]:
    """Those of every wave that may begin on its release which no wave is recorded to have taken for it."""
    roster, site_wave = state.roster, state.places.site_wave
    out: dict[str, dict[str, tuple[str, ...]]] = {}
    for wave in roster.waves:
        track = next((number for number in roster.tracks if wave.ask(number) >= 0), None)
        if track is None or not state.ground.entry_open(wave.index, track):
            continue
        key = roster.key(track, wave.ask(track))
        inside = site_wave == wave.index
        taken = state.obs.members.get(key)
        if taken is not None:
            inside &= taken < 0
        names = sorted(roster.site_names[site] for site in np.flatnonzero(inside))
        if names:
            out.setdefault(key, {})[wave.spec.name] = tuple(names)
    return out


def _timeouts(state: State) -> list[DeviceFact]:
    """Updates, restarts and configurations whose time is up: to be counted and ended by the recorder."""
    roster, obs, now = state.roster, state.obs, instant(state.now)
    out = []
    for row in state.late_updates.rows:
        out.append(DeviceFact(roster.device_names[row], obs.release_names[obs.updating_to[row]], now))
    for row in state.late_restarts.rows:
        key = "configure"
        if obs.restarting_since[row] != NONE:
            app = next((number for number in range(len(roster.apps)) if obs.restarts(number, row)), -1)
            target = int(state.tracks[app + 1].target[row]) if app >= 0 else -1
            key = roster.apps[app].key(target) if target >= 0 else "restart"
        out.append(DeviceFact(roster.device_names[row], key, now))
    return sorted(out, key=lambda fact: (fact.device, fact.key))


def flagged(state: State) -> tuple[DeviceFact, ...]:
    """Devices that failed on the release that they run, charged or not: what a person should look at."""
    out = []
    for number, track in enumerate(state.tracks):
        for row in np.flatnonzero(track.seen == Seen.FAILED):
            wave = int(state.places.wave_of[row])
            key = state.roster.key(number, state.roster.waves[wave].ask(number))
            since = int(track.start[row])
            at = instant(since if since != NONE else state.now)
            out.append(DeviceFact(state.roster.device_names[row], key, at))
    return tuple(sorted(out, key=lambda fact: (fact.device, fact.key)))


def facts(state: State) -> Facts:
    """What this plan newly established."""
    roster, obs, image = state.roster, state.obs, state.tracks[IMAGE_TRACK]
    rescues = [
        DeviceFact(roster.device_names[row], obs.release_names[obs.image[row]], instant(state.now))
        for row in image.ration.started
        if image.why[row] == RESCUE
    ]
    return Facts(
        proofs=_verdict_facts(state, "new_proofs"),
        failures=_verdict_facts(state, "new_failures"),
        members=_members(state),
        closed=tuple(sorted(key for key in obs.on_record if key not in roster.asked)),
        timeouts=tuple(_timeouts(state)),
        rescues=tuple(sorted(rescues, key=lambda fact: fact.device)),
    )
