"""Flagged devices: what each check said before and after, who has seen it, and what to do about the release.

Called by `dashboard.pages`. The forms on the page are answered by `server.flags`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from reconciler.controller.board import Board, DeviceRow
from reconciler.model.access import Acknowledgement, Scope
from reconciler.model.events import Event, EventKind
from reconciler.model.observed import CheckChange, DeviceObservation
from reconciler.server.access import Caller, Callers
from reconciler.server.answers import Refusal
from reconciler.server.dashboard.frame import Pages, known
from reconciler.server.dashboard.pages_devices import site_page
from reconciler.server.dashboard.view_now import failed_on
from reconciler.server.flags import NOTE_CHARS, Flag, acknowledged_of, flags_on
from reconciler.server.options import Options
from reconciler.server.paging import cursor_of, name_behind

ROWS = 25
_TOLD = 200
_SHOW = ("open", "all")
_KINDS = (EventKind.REVERT_PROPOSED,)


@dataclass(frozen=True, slots=True)
class Row:
    """A flag as the page shows it. `checks` are those that got worse; `during` says that they are of the attempt, now over."""

    flag: Flag
    device: DeviceRow | None
    checks: tuple[CheckChange, ...]
    during: bool
    acknowledged: Acknowledgement | None

    @property
    def apart(self) -> str | None:
        """The release of the image that the device can be pinned to; None: an app failed, or what it ran before is not known."""
        if self.device is None or "@" in self.flag.release:
            return None
        # One that fell back runs it already.
        there = (self.device.image, self.device.previous)
        return next((release for release in there if release not in (None, self.flag.release)), None)


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about a release that devices failed on. `asked_by` are the waves that ask for it, `stopped_by` those whose gate
    failed on it; `proposal` is what is on record of its revert, `spent` how much of `maxFailed` is used where it goes on."""

    release: str
    flags: int
    asked_by: tuple[str, ...]
    stopped_by: tuple[str, ...]
    proposal: Event | None
    proposed: bool
    spent: tuple[Spent, ...]


@dataclass(frozen=True, slots=True)
class Spent:
    """A wave with failed devices whose gate has not failed: so many more failures stop the release."""

    wave: str
    failed: int
    devices: int
    max_failed: str
    more: int


def serve_flagged(app: FastAPI, callers: Callers, pages: Pages) -> None:
    """Add `GET /flagged`."""
    by_page, options = Depends(callers.page), pages.options

    @app.get("/flagged", include_in_schema=False)
    async def get_flagged(request: Request, caller: Caller = by_page) -> Response:
        query = dict(request.query_params)
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")

        def make(board: Board) -> dict[str, Any]:
            # A form needs a session: its token stands in the form.
            may = caller.may(Scope.ACKNOWLEDGE) and caller.via == "session"
            return {**flagged(options, board, query), "may": may, "here": here, "note_chars": NOTE_CHARS}

        return await pages.page(request, caller, "flagged.html", make)


def flagged(options: Options, board: Board, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the flags, by device. Refusal 400: the query asks for what there is not."""
    show = query.get("show") or "all"
    if show not in _SHOW:
        raise Refusal(400, "`show` is open or all", "choose from the page")
    flags = sorted(flags_on(board), key=_name)
    given = known(options.access.acknowledgements) if flags else ()
    seen = acknowledged_of(flags, given or ())
    wanted = [flag for flag in flags if show == "all" or flag not in seen]
    after = name_behind(query.get("cursor") or None)
    behind = [flag for flag in wanted if after is None or _name(flag) > after]
    page = behind[:ROWS]
    following = {"show": show, "cursor": cursor_of(_name(page[-1]))} if len(behind) > ROWS else None
    observed = known(lambda: options.store.observed([flag.device for flag in page])) if page else {}
    return {
        "rows": [_row(board, flag, (observed or {}).get(flag.device), seen.get(flag)) for flag in page],
        "show": show,
        "total": len(flags),
        "open": len(flags) - len(seen),
        "dumb": given is None or observed is None,
        "first": after is not None,
        "next": None if following is None else f"/flagged?{urlencode(following)}",
        "advice": list(_advice(options, board, flags)),
        "site_page": site_page,
    }


def _name(flag: Flag) -> str:
    return f"{flag.device} {flag.release}"


def _row(
    board: Board, flag: Flag, seen: tuple[DeviceObservation, str, int] | None, acknowledged: Acknowledgement | None
) -> Row:
    device = board.device(flag.device)
    if seen is None:
        return Row(flag, device, (), False, acknowledged)
    said = seen[0]
    attempt = said.attempt
    if attempt is not None and attempt.release == flag.release and attempt.checks:
        return Row(flag, device, attempt.checks, said.image != flag.release, acknowledged)
    return Row(flag, device, said.checks, False, acknowledged)


def _advice(options: Options, board: Board, flags: Sequence[Flag]) -> Iterator[Advice]:
    releases = dict.fromkeys(flag.release for flag in flags)
    told = known(lambda: options.store.events(kinds=_KINDS, limit=_TOLD, newest_first=True)) if releases else ()
    for release in releases:
        about = [event for event in told or () if event.release == release]
        failures = [one.wave for one in board.observed.failures if one.key == release and not one.closed]
        stopped = dict.fromkeys([*failures, *(wave.name for wave in board.waves if failed_on(wave, release))])
        yield Advice(
            release=release,
            flags=sum(flag.release == release for flag in flags),
            asked_by=tuple(wave.name for wave in board.waves if wave.of(release) is not None),
            stopped_by=tuple(stopped),
            proposal=next(iter(about), None),
            proposed=any(one.key == release for one in board.observed.proposals),
            spent=() if stopped else tuple(_spent(board, release)),
        )


def _spent(board: Board, release: str) -> Iterator[Spent]:
    limits = {} if board.desired is None else {spec.name: spec.max_failed for spec in board.desired.waves.waves}
    for wave in board.waves:
        status, limit = wave.of(release), limits.get(wave.name)
        if status is None or not status.failed or limit is None:
            continue
        more = limit.still(status.failed, wave.devices)
        yield Spent(wave.name, status.failed, wave.devices, str(limit), more)
