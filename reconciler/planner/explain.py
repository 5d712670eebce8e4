"""Why a device has the decision it has, read from the codes that the three stages left for its row. Pure.

Nothing is decided here. Every line is a fact of the plan: what the device runs and shall run, the rung that stops it (or the
action that starts), and, where its wave waits, the chain of waves back to the one that all of them wait for.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from reconciler.model.observed import NO_CONFIG
from reconciler.model.plan import Action, Reason
from reconciler.model.scalars import format_instant
from reconciler.planner.judge import Judged, Seen
from reconciler.planner.messages import message, plain
from reconciler.planner.render import device_actions, named, reason_of, until_of, wave_name
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.state import State, Track
from reconciler.planner.want import RUNGS
from reconciler.planner.windows import NEVER, NONE, instant

_BUDGET_WHY = "As many devices are in flight as the wave allows, or another device of the site is."
_SEEN = {
    Seen.OUTSIDE: "not counted by its wave",
    Seen.FAILED: "failed",
    Seen.SILENT: "silent",
    Seen.SILENT_AFTER: "silent since it got the release",
    Seen.NEITHER: "neither charged nor credited",
    Seen.HEALTHY: "healthy on the release",
    Seen.PENDING: "on the release, not judged yet",
    Seen.NOT_THERE: "not on the release yet",
}


class UnknownDevice(LookupError):
    """No such device in the fleet; `near` are names like it."""

    def __init__(self, name: str, names: list[str]) -> None:
        self.near = difflib.get_close_matches(name, names, 3)
        hint = f"; did you mean {', '.join(self.near)}?" if self.near else ""
        super().__init__(f"{name!r} is no device of this fleet{hint}")


@dataclass(frozen=True, slots=True)
class Part:
    """One track of a device: its image, its configuration, or an app."""

    subject: str
    """`image`, `configuration`, or the app's name."""
    running: str | None
    target: str | None
    judged: str | None
    """What the device says about its wave's release."""
    decision: str
    """`settled`, `start`, or the reason it is held."""
    message: str
    why: str
    """The rung's sentence."""
    until: datetime | None
    chain: tuple[str, ...]
    """Waves that are waited for, nearest first."""

    def to_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {
            "subject": self.subject,
            "running": self.running,
            "target": self.target,
            "judged": self.judged,
            "decision": self.decision,
            "message": self.message,
            "why": self.why,
            "until": format_instant(self.until) if self.until else None,
            "chain": list(self.chain),
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything the plan says about one device."""

    device: str
    site: str
    wave: str | None
    at: datetime
    commit: str | None
    last_seen: datetime | None
    parts: tuple[Part, ...]
    actions: tuple[Action, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--output json`."""
        return {
            "apiVersion": "fleet/v1",
            "kind": "Explanation",
            "device": self.device,
            "site": self.site,
            "wave": self.wave,
            "at": format_instant(self.at),
            "commit": self.commit,
            "lastSeen": format_instant(self.last_seen) if self.last_seen else None,
            "parts": [part.to_dict() for part in self.parts],
            "actions": [action.to_dict() for action in self.actions],
        }

    def lines(self) -> list[str]:
        """For people."""
        seen = format_instant(self.last_seen) if self.last_seen else "never"
        out = [
            f"{self.device} at {self.site}, wave {self.wave or '-'}, at {format_instant(self.at)} (last seen {seen})"
        ]
        for part in self.parts:
            arrow = f"{plain(part.running or 'nothing')} → {plain(part.target or 'nothing')}"
            out.append(f"  {part.subject}: {arrow}: {part.decision}")
            out.append(f"    {part.message}")
            if part.why:
                out.append(f"    why: {part.why}")
            out += [f"    ← {link}" for link in part.chain]
            if part.until:
                out.append(f"    until: {format_instant(part.until)}")
        return out


def explain(state: State, device: str) -> Explanation:
    """What the plan in `state` says about a device. UnknownDevice: git names none such."""
    roster, obs = state.roster, state.obs
    row = roster.row_of.get(device)
    if row is None:
        raise UnknownDevice(device, roster.device_names)
    parts = [_part(state, IMAGE_TRACK, state.tracks[IMAGE_TRACK], row), _part(state, -1, state.config, row)]
    parts += [_part(state, number, track, row) for number, track in enumerate(state.tracks) if number != IMAGE_TRACK]
    seen = int(obs.last_seen[row])
    return Explanation(
        device=device,
        site=roster.site_names[roster.site_of[row]],
        wave=wave_name(state, row),
        at=instant(state.now),
        commit=roster.desired.commit,
        last_seen=None if seen == NONE else instant(seen),
        parts=tuple(parts),
        actions=tuple(action for action in device_actions(state) if action.fields.get("device") == device),
    )


def _running(state: State, number: int, row: int) -> str | None:
    obs = state.obs
    if number == IMAGE_TRACK:
        code = int(obs.image[row])
        return obs.release_names[code] if code >= 0 else None
    table = obs.digest_code if number < 0 else obs.app_digest_code[number - 1]
    code = int(obs.config[row] if number < 0 else obs.app_digest[number - 1][row])
    digest = next((text for text, value in table.items() if value == code), None) if code >= 0 else None
    if digest == NO_CONFIG:
        return None
    if number > 0 and digest in state.roster.apps[number - 1].digests:
        app = state.roster.apps[number - 1]
        return app.versions[app.digests.index(digest)]
    return digest


def _target(state: State, number: int, code: int) -> str | None:
    if code < 0:
        return None
    if number < 0:
        return state.roster.config_of[0][code]
    of = named(state, number, code)
    return of.image or of.release


def _part(state: State, number: int, track: Track, row: int) -> Part:
    code, wave = int(track.target[row]), int(state.places.wave_of[row])
    subject = (
        "image" if number == IMAGE_TRACK else "configuration" if number < 0 else state.roster.apps[number - 1].name
    )
    judged = None if number < 0 else _SEEN[Seen(int(track.seen[row]))]
    running, target = _running(state, number, row), _target(state, number, code)
    reason = reason_of(track, row)
    if reason is None:
        starts = bool(track.starts[row])
        text = (
            "starts now" if starts else "nothing is wanted" if target is None or running == target else "not reported"
        )
        return Part(subject, running, target, judged, "start" if starts else "settled", text, "", None, ())
    until = until_of(state, number, reason, wave, int(state.roster.calendar_of[row]))
    why = next((rung.why for rung in RUNGS if rung.reason is reason), _BUDGET_WHY)
    name = state.roster.device_names[row]
    said = message(state, number, reason, wave, code, until, (name,))
    then = None if until == NEVER else instant(until)
    return Part(subject, running, target, judged, reason.value, said, why, then, _chain(state, number, reason, wave))


def _chain(state: State, number: int, reason: Reason, wave: int) -> tuple[str, ...]:
    """Waves that a wave waits for, back to the first that waits for none."""
    if number < 0 or reason not in (Reason.WAVE_WAITS, Reason.SOAKING, Reason.GATE_UNRESOLVED):
        return ()
    gates, out = state.ground.gates[number], []
    while wave >= 0 and gates.entry[wave].reason is not None:
        blocker = gates.entry[wave].blocker
        out.append(_link(state, number, blocker, gates.judged[blocker]))
        wave = blocker
    return tuple(out)


def _link(state: State, number: int, wave: int, judged: Judged) -> str:
    spec = state.roster.waves[wave].spec
    text = f"wave {spec.name!r}: {judged.healthy} of {judged.devices} healthy, {judged.failed} failed, {judged.offline} offline"
    if judged.soak_ends != NEVER:
        text += f", soak ends {format_instant(instant(judged.soak_ends))}"
    track = state.tracks[number]
    missing = np.flatnonzero(
        (state.places.wave_of == wave) & np.isin(track.seen, (Seen.PENDING, Seen.NOT_THERE, Seen.SILENT, Seen.FAILED))
    )
    if len(missing):
        names = [state.roster.device_names[row] for row in missing[:3]]
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        text += f"; not counted as healthy: {', '.join(names)}{more}"
    return text
