"""What the pages of sites say: the grid by wave and state, and one site. Pure values from a board.

A grid has a cell a site as long as one page can hold them. Beyond that a large wave is cut into blocks of sites that follow each
other by name; a block has the state of its worst site, and leads to the grid of its own sites. Called by `pages_sites`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from reconciler.controller.board import STATES, Asked, Board, DeviceRow, DeviceState, SiteRow
from reconciler.model.scalars import format_time_of_day
from reconciler.server.paging import cursor_of

MOST_CELLS = 5_000
"""Sites that are shown as cells without being cut into blocks."""
BLOCK = 1_000
"""Sites of a block, and of a page of the grid."""
_NAMED, _SPACED = 200, 1_000
"""Up to so many a cell has its site's name in it; up to so many it is large."""
MOST_LISTED = 20
_LOOK = (DeviceState.FAILED, DeviceState.CRITICAL, DeviceState.SILENT, DeviceState.WARNING)
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

    def address(self, **more: str | None) -> str:
        """The page of sites with this choice, and with `more` of its query instead."""
        asked = {"wave": self.wave, "state": None if self.state is None else self.state.value, "q": self.q} | more
        query = urlencode({name: value for name, value in asked.items() if value})
        return f"/sites?{query}" if query else "/sites"


@dataclass(frozen=True, slots=True)
class Block:
    """Sites of a wave that follow each other by name: the first and the last, and how many are in each state, the worst first."""

    first: str
    last: str
    sites: int
    counts: Mapping[DeviceState, int]
    href: str

    @property
    def state(self) -> DeviceState:
        """That of the worst site."""
        return next(iter(self.counts))


@dataclass(frozen=True, slots=True)
class Group:
    """Chosen sites of a wave (None: of none): all of them as cells, or as blocks."""

    wave: str | None
    total: int
    sites: tuple[SiteRow, ...] = ()
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid. `size` is `named`, `spaced` or `dense`; `found` is how many sites are chosen; `totals` are of all sites, whatever
    is chosen. `stretch`: this is a page of what is chosen, the first and last of its sites; `onward` is the page behind it."""

    chosen: Chosen
    groups: tuple[Group, ...]
    found: int
    size: str
    worst: tuple[SiteRow, ...]
    worst_in_all: int
    waves: tuple[str | None, ...]
    totals: Mapping[tuple[str | None, DeviceState], int]
    stretch: tuple[str, str] | None = None
    onward: str | None = None

    @property
    def total(self) -> int:
        """All sites that git names."""
        return sum(self.totals.values())

    @property
    def blocked(self) -> bool:
        """Whether some of it is shown as blocks."""
        return any(group.blocks for group in self.groups)

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


def grid_of(
    board: Board, chosen: Chosen, after: str | None = None, *, most: int = MOST_CELLS, block: int = BLOCK
) -> Grid:
    """The grid of what is chosen; with `after`, the page of it that begins behind the site of this name."""
    codes = board.site_codes(wave=chosen.wave, state=chosen.state, q=chosen.q, after=after)
    found, onward, stretch = len(codes), None, None
    if after is not None:
        codes = codes[:block]
        names = [row.name for row in board.site_rows(codes[[0, -1]] if len(codes) else codes)]
        stretch = (names[0], names[-1]) if names else ("", "")
        onward = chosen.address(cursor=cursor_of(names[-1])) if found > block else None
    waves = waves_of(board)
    groups = tuple(_groups(board, chosen, waves, codes, most, block))
    cells = sum(len(group.sites) for group in groups)
    look = codes[np.isin(board.site_states[codes], [STATES.index(state) for state in _LOOK])]
    worst = look[np.argsort(board.site_states[look], kind="stable")][:MOST_LISTED]
    return Grid(
        chosen,
        groups,
        found,
        "named" if cells <= _NAMED else "spaced" if cells <= _SPACED else "dense",
        tuple(board.site_rows(worst)),
        len(look),
        waves,
        board.site_totals,
        stretch,
        onward,
    )


def _groups(
    board: Board, chosen: Chosen, waves: Sequence[str | None], codes: NDArray[np.int64], most: int, block: int
) -> Iterator[Group]:
    """One a wave that has chosen sites. Where all of them are too many cells, small waves have theirs until there are `most`."""
    rows = board.rows
    if rows is None:
        return
    room = most
    for wave in waves:
        mine = codes[rows.site_wave[codes] == (-1 if wave is None else rows.roster.wave_code[wave])]
        if len(mine) == 0:
            continue
        if len(codes) <= most or len(mine) <= min(_NAMED, room):
            room -= len(mine)
            yield Group(wave, len(mine), tuple(board.site_rows(mine)))
        elif wave is None:
            # No address asks for sites in no wave. A fleet repo that leaves any out is not valid: there are few, if any.
            yield Group(wave, len(mine), tuple(board.site_rows(mine[:_NAMED])))
        else:
            yield Group(wave, len(mine), blocks=tuple(_blocks(board, chosen, wave, mine, block)))


def _blocks(board: Board, chosen: Chosen, wave: str, codes: NDArray[np.int64], size: int) -> Iterator[Block]:
    before = ""
    for start in range(0, len(codes), size):
        part = codes[start : start + size]
        first, last = (row.name for row in board.site_rows(part[[0, -1]]))
        sums = np.bincount(board.site_states[part], minlength=len(STATES))
        counts = {STATES[number]: int(sums[number]) for number in np.flatnonzero(sums).tolist()}
        # The first block begins before every name.
        yield Block(first, last, len(part), counts, chosen.address(wave=wave, cursor=cursor_of(before)))
        before = last


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
