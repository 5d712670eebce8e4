"""Why a device, a site or a wave is where it is: the plan's own reasons as a chain, down to devices and lines of git. Pure.

Nothing is decided here. Every link is a fact that the three stages left: the rung that stops a device, the gate of the wave
that it waits for, the devices that keep that gate open; with instants, and with what would change it. Called by the command
line. Source: design §4 and §6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from reconciler.model.observed import Snapshot
from reconciler.planner.explain_parts import DeviceExplanation, explain_device
from reconciler.planner.explain_site import SiteExplanation, explain_site
from reconciler.planner.explain_view import View
from reconciler.planner.explain_wave import WaveExplanation, explain_wave
from reconciler.planner.state import State

Kind = Literal["device", "site", "wave"]
KINDS: tuple[Kind, ...] = ("device", "site", "wave")
Explanation = DeviceExplanation | SiteExplanation | WaveExplanation


def _or(words: Sequence[str]) -> str:
    """`device, site or wave`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


class UnknownName(LookupError):
    """Nothing of the kinds that were `asked` has this name; `known` are the names that there are, of every kind."""

    def __init__(self, name: str, asked: Sequence[Kind], known: Mapping[Kind, Sequence[str]]) -> None:
        self.name, self.known = name, known
        super().__init__(f"{name!r} is no {_or(asked)} of this fleet")


class AmbiguousName(LookupError):
    """A name that several kinds have."""

    def __init__(self, name: str, kinds: Sequence[Kind]) -> None:
        self.kinds = tuple(kinds)
        super().__init__(f"{name!r} is the name of a {' and of a '.join(kinds)}; say which with --kind")


def explain(state: State, name: str, kind: Kind | None = None, observed: Snapshot | None = None) -> Explanation:
    """What the plan in `state` says about a device, a site or a wave.

    `observed` is the snapshot that the state was made from: it tells which checks got worse. UnknownName: nothing is called so.
    AmbiguousName: several are, and `kind` does not say which.
    """
    roster = state.roster
    known: dict[Kind, Sequence[str]] = {
        "device": roster.device_names,
        "site": roster.site_names,
        "wave": [wave.spec.name for wave in roster.waves],
    }
    tables: dict[Kind, Mapping[str, int]] = {
        "device": roster.row_of,
        "site": roster.site_code,
        "wave": roster.wave_code,
    }
    asked: tuple[Kind, ...] = KINDS if kind is None else (kind,)
    found = [one for one in asked if name in tables[one]]
    if not found:
        raise UnknownName(name, asked, known)
    if len(found) > 1:
        raise AmbiguousName(name, found)
    view, code = View(state, observed), tables[found[0]][name]
    if found[0] == "device":
        return explain_device(view, code)
    return explain_site(view, code) if found[0] == "site" else explain_wave(view, code)
