"""What the pages of sites say: the grid by wave and state, cut to what one page can hold, and one site. Pure values from a board.

Called by `pages_sites`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reconciler.controller.board import STATES, Asked, Board, DeviceRow, DeviceState, SiteRow
from reconciler.model.scalars import format_time_of_day

MOST_CELLS = 5_000
"""Sites of one grid."""
_NAMED, _SPACED = 200, 1_000
"""Up to so many a cell has its site's name in it; up to so many it is large."""
MOST_LISTED = 20
_LOOK = frozenset({DeviceState.FAILED, DeviceState.CRITICAL, DeviceState.SILENT, DeviceState.WARNING})
"""States that a person may want to look at."""
MOST_DEVICES = 200


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the grid is cut down to."""

    wave: str | None = None
    state: DeviceState | None = None
    q: str = ""

    @property
    def anything(self) -> bool:
        """Whether it is cut down at all."""
        return self.wave is not None or self.state is not None or bool(self.q)


@dataclass(frozen=True, slots=True)
class Group:
    """Sites of a wave (None: of none), as far as they are shown, and how many of them are in each state."""

    wave: str | None
    sites: tuple[SiteRow, ...]
    counts: Mapping[DeviceState, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid. `size` is `named`, `spaced` or `dense`; `totals` are of all sites, whatever is chosen."""

    chosen: Chosen
    groups: tuple[Group, ...]
    shown: int
    cut: bool
    size: str
    worst: tuple[SiteRow, ...]
    worst_in_all: int
    waves: tuple[str | None, ...]
    totals: Mapping[tuple[str | None, DeviceState], int]

    @property
    def total(self) -> int:
        """All sites that git names."""
        return sum(self.totals.values())

    @property
    def states(self) -> tuple[DeviceState, ...]:
        """States in which any site is, the worst first."""
        there = {state for _, state in self.totals}
        return tuple(state for state in STATES if state in there)

    def count(self, wave: str | None, state: DeviceState) -> int:
        """How many sites of a wave are in a state."""
        return self.totals.get((wave, state), 0)

    def of_state(self, state: DeviceState) -> int:
        """How many sites are in a state."""
        return sum(count for (_, one), count in self.totals.items() if one is state)


def grid_of(board: Board, chosen: Chosen, most: int = MOST_CELLS) -> Grid:
    """The grid of what is chosen."""
    found = board.sites(wave=chosen.wave, state=chosen.state, q=chosen.q, limit=most + 1)
    shown = found[:most]
    waves = waves_of(board)
    groups = tuple(
        Group(wave, mine, Counter(site.state for site in mine))
        for wave in waves
        if (mine := tuple(site for site in shown if site.wave == wave))
    )
    look = sorted((site for site in shown if site.state in _LOOK), key=lambda site: STATES.index(site.state))
    size = "named" if len(shown) <= _NAMED else "spaced" if len(shown) <= _SPACED else "dense"
    return Grid(
        chosen,
        groups,
        len(shown),
        len(found) > most,
        size,
        tuple(look[:MOST_LISTED]),
        len(look),
        waves,
        board.site_totals,
    )


def waves_of(board: Board) -> tuple[str | None, ...]:
    """Waves that have sites, in their order, and None where some are in none."""
    there = {wave for wave, _ in board.site_totals}
    named: Sequence[str | None] = [wave.name for wave in board.waves if wave.name in there]
    rest = sorted(wave for wave in there if wave is not None and wave not in named)
    return (*named, *rest, *((None,) if None in there else ()))


@dataclass(frozen=True, slots=True)
class SiteView:
    """One site: its devices, the first of them by name, and why they are where they are."""

    site: SiteRow
    devices: tuple[DeviceRow, ...]
    said: tuple[str, ...]
    window: str | None


def site_of(board: Board, name: str, said: Sequence[str]) -> SiteView | None:
    """The page of a site; None where git names none that is called so. `said` are the lines of its explanation."""
    site = board.site(name)
    if site is None:
        return None
    window = None
    if board.desired is not None and name in board.desired.sites:
        span = board.desired.sites[name].window or board.desired.fleet.window
        window = f"{format_time_of_day(span.start)}–{format_time_of_day(span.end)}"
    return SiteView(site, tuple(board.devices(Asked(site=name), limit=MOST_DEVICES)), tuple(said), window)
