"""Flags and their acknowledgements: `/v1/flags`, and the forms by which a page does the same.

A flag is what the last plan says: this device failed on this release. Acknowledging says that a person has seen it; it changes
nothing of what is decided. An acknowledgement covers the flag that stood when it was given: a device that recovers and fails
again is flagged anew. Each one is in the audit log and among the events, in the transaction that keeps it. Source: design §1,
"a dashboard flags devices whose healthcheck turned critical after a wave".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from unicodedata import category

from fastapi import Depends, FastAPI, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, RedirectResponse, Response

from reconciler.controller.board import Board
from reconciler.model.access import Acknowledgement, Deed
from reconciler.model.events import Event, EventKind
from reconciler.model.scalars import NAME_PATTERN, format_instant, parse_instant
from reconciler.ports import PortError
from reconciler.server.access import Caller, Callers, Posted
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.audit import Audit
from reconciler.server.documents import Acknowledged, AcknowledgeRequest, Flags, answers
from reconciler.server.limits import read_body
from reconciler.server.options import Options
from reconciler.server.sessions import safe_next

NOTE_CHARS = 500
_BODY_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Flag:
    """A device that failed on a release, since `at`. `lasting` False: the plan knows no beginning, so that each says its own."""

    device: str
    release: str
    at: datetime
    lasting: bool = True

    def covered_by(self, given: Acknowledgement) -> bool:
        """Whether an acknowledgement is of this flag and of no earlier one."""
        of_this = (given.device, given.release) == (self.device, self.release)
        return of_this and (self.at <= given.at or not self.lasting)


def flags_of(plan: Mapping[str, Any]) -> tuple[Flag, ...]:
    """The flags of a plan's document, by device and release."""
    found = []
    for flag in plan.get("flagged", []):
        at = parse_instant(flag["at"])
        found.append(Flag(flag["device"], flag["release"], at, lasting=flag["at"] != plan.get("at")))
    return tuple(found)


def flags_on(board: Board) -> tuple[Flag, ...]:
    """The same of a board."""
    return tuple(Flag(fact.device, fact.key, fact.at, lasting=fact.at != board.at) for fact in board.flagged)


def acknowledged_of(flags: Sequence[Flag], given: Sequence[Acknowledgement]) -> dict[Flag, Acknowledgement]:
    """The acknowledgement of each flag that has one."""
    by_device: dict[str, list[Acknowledgement]] = {}
    for one in given:
        by_device.setdefault(one.device, []).append(one)
    found = {flag: covering(flag, by_device.get(flag.device, ())) for flag in flags}
    return {flag: one for flag, one in found.items() if one is not None}


def covering(flag: Flag, given: Sequence[Acknowledgement]) -> Acknowledgement | None:
    """The acknowledgement of a flag, None where nobody has given one."""
    return next((one for one in given if flag.covered_by(one)), None)


class FlagDesk:
    """Gives and takes back acknowledgements. Called from worker threads; PortErrors are its callers' to translate."""

    def __init__(self, options: Options, audit: Audit) -> None:
        self._options, self._audit = options, audit

    def current(self) -> tuple[str | None, tuple[Flag, ...]]:
        """When the last plan was made, and its flags."""
        plan = json.loads(self._options.store.last_plan() or "{}")
        return plan.get("at"), flags_of(plan)

    def listed(self) -> dict[str, Any]:
        """`GET /v1/flags`."""
        at, flags = self.current()
        given = acknowledged_of(flags, self._options.access.acknowledgements())
        rows = [
            {
                "device": flag.device,
                "release": flag.release,
                "at": format_instant(flag.at),
                "acknowledged": _shown(given.get(flag)),
            }
            for flag in flags
        ]
        return {"apiVersion": "fleet/v1", "kind": "Flags", "at": at, "flags": rows}

    def acknowledge(self, caller: Caller, device: str, note: str, release: str | None) -> dict[str, Any]:
        """Acknowledge a device's flags, or the one of a release. The same again changes nothing. Refusal 404: none stands."""
        options = self._options
        flags = [flag for flag in self.current()[1] if flag.device == device]
        wanted = [flag for flag in flags if release in (None, flag.release)]
        if not wanted:
            raise Refusal(404, "no such flag stands", "see GET /v1/flags for those that do")
        with options.store.transaction():
            before = options.access.acknowledgements(device)
            # Those of flags that do not stand any more go with this.
            kept = {flag.release: covering(flag, before) for flag in flags}
            new = []
            for flag in wanted:
                old = kept[flag.release]
                if old is None or (old.by, old.note) != (caller.name, note):
                    at = max(options.now(), flag.at)
                    new.append(Acknowledgement(device, flag.release, caller.name, at, note))
                    kept[flag.release] = new[-1]
            standing = [one for one in kept.values() if one is not None]
            if new:
                options.access.acknowledge(device, standing)
            for one in new:
                about = f"{device} {one.release}" + (f": {note}" if note else "")
                self._audit.write(caller.name, caller.address, Deed.ACKNOWLEDGE, about)
                options.store.add_events(None, [_event(one)])
        return {"device": device, "acknowledgements": [_shown(one) for one in standing]}

    def take_back(self, caller: Caller, device: str) -> dict[str, Any]:
        """Take a device's acknowledgements back. Where there is none, nothing changes."""
        options = self._options
        with options.store.transaction():
            before = options.access.acknowledgements(device)
            if before:
                options.access.acknowledge(device, ())
            for one in before:
                self._audit.write(caller.name, caller.address, Deed.TAKE_BACK, f"{device} {one.release}")
        return {"device": device, "acknowledgements": []}


def _event(given: Acknowledgement) -> Event:
    said = f": {given.note}" if given.note else ""
    return Event(
        None,
        given.at,
        EventKind.FLAG_ACKNOWLEDGED,
        f"{given.device} {given.release} {given.by} {format_instant(given.at)}",
        device=given.device,
        release=given.release,
        reason="acknowledged",
        message=f"{given.by} has seen that {given.device} failed on {given.release}{said}",
    )


def _shown(given: Acknowledgement | None) -> dict[str, Any] | None:
    if given is None:
        return None
    at = format_instant(given.at.replace(microsecond=0))
    return {"release": given.release, "by": given.by, "at": at, "note": given.note}


def clean_note(text: str) -> str:
    """A note as it is kept: one line or several, without other control characters. Refusal 400: too long."""
    note = re.sub(r"[^\S\n]+", " ", text.replace("\r\n", "\n")).strip()
    if len(note) > NOTE_CHARS or any(category(letter) == "Cc" and letter != "\n" for letter in note):
        raise Refusal(400, f"the note is longer than {NOTE_CHARS} characters, or no text", "say it in fewer words")
    return note


def serve_flags(app: FastAPI, options: Options, callers: Callers, desk: FlagDesk) -> None:
    """Add the routes of the API."""
    by_person = Depends(callers.acknowledger)

    @app.get("/v1/flags", dependencies=[Depends(callers.reader)], responses=answers(Flags))
    async def get_flags() -> Response:
        try:
            return JSONResponse(await run_in_threadpool(desk.listed))
        except PortError as error:
            raise refusal_of(error) from None

    @app.post(
        "/v1/flags/{device}/acknowledge",
        responses=answers(Acknowledged, 400, 404, 408, 413, 415),
        openapi_extra=AcknowledgeRequest.as_body(),
    )
    async def post_acknowledge(device: str, request: Request, caller: Caller = by_person) -> Response:
        wanted = _parse(await read_body(request, _BODY_BYTES, options.limits.body_timeout_s))
        await callers.hold(caller)
        note = clean_note(wanted.note)
        return JSONResponse(await _done(lambda: desk.acknowledge(caller, _device(device), note, wanted.release)))

    @app.delete("/v1/flags/{device}/acknowledge", responses=answers(Acknowledged, 404))
    async def delete_acknowledge(device: str, caller: Caller = by_person) -> Response:
        return JSONResponse(await _done(lambda: desk.take_back(caller, _device(device))))


def serve_flag_forms(app: FastAPI, callers: Callers, desk: FlagDesk) -> None:
    """Add what the forms of a page send: fields `csrf`, `note`, `release` and `next`. Answered by going on to `next`."""
    by_form = Depends(callers.acknowledging_form)

    @app.post("/flags/{device}/acknowledge", include_in_schema=False)
    async def post_acknowledge(device: str, posted: Posted = by_form) -> Response:
        note, release = clean_note(posted.fields.get("note", "")), posted.fields.get("release") or None
        await _done(lambda: desk.acknowledge(posted.caller, _device(device), note, release))
        return RedirectResponse(safe_next(posted.fields.get("next")), 303)

    @app.post("/flags/{device}/take-back", include_in_schema=False)
    async def post_take_back(device: str, posted: Posted = by_form) -> Response:
        await _done(lambda: desk.take_back(posted.caller, _device(device)))
        return RedirectResponse(safe_next(posted.fields.get("next")), 303)


async def _done(work: Any) -> Any:
    try:
        return await run_in_threadpool(work)
    except PortError as error:
        raise refusal_of(error) from None


def _device(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise Refusal(404, "no such device", "write its name as the fleet repo has it")
    return name


def _parse(body: bytes) -> AcknowledgeRequest:
    if not body.strip():
        return AcknowledgeRequest()
    try:
        return AcknowledgeRequest.model_validate_json(body)
    except ValidationError:
        raise Refusal(
            400, "the body is no acknowledgement", 'send {"note": "…", "release": "…"}, both optional'
        ) from None
