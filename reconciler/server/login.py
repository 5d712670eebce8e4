"""Logging in and out with a browser: an operator's token is typed once, and a session's cookie speaks for it from then on.

A failed login costs the address as any wrong token does, and stands in the audit log without the token. The session and its
entry in the log are one transaction. Called by `server.app`.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from reconciler.model.access import Deed, Outcome, Session
from reconciler.model.scalars import format_instant
from reconciler.ports import PortError
from reconciler.server.access import Caller, Callers, address_of
from reconciler.server.answers import Refusal, refusal_of
from reconciler.server.audit import Audit
from reconciler.server.dashboard.frame import Frame
from reconciler.server.dashboard.shell import Shell
from reconciler.server.options import Options
from reconciler.server.sessions import (
    check_origin,
    drop_cookie,
    read_form,
    safe_next,
    session_id,
    set_cookie,
)
from reconciler.server.tokens import hash_token, looks_like_token, make_session_id


def serve_login(app: FastAPI, options: Options, callers: Callers, shell: Shell, audit: Audit) -> None:
    """Add `/login`, `/logout` and `/account`."""
    by_page, door = Depends(callers.page), Door(options, callers, audit)

    @app.get("/login", include_in_schema=False)
    async def get_login(request: Request) -> Response:
        wanted = safe_next(request.query_params.get("next"))
        caller = await callers.caller(request)
        if caller is not None and caller.via == "session":
            return RedirectResponse(wanted, 303)
        return shell.render("login.html", next=wanted, refusal=None)

    @app.post("/login", include_in_schema=False)
    async def post_login(request: Request) -> Response:
        check_origin(request, options)
        fields = await read_form(request, options.limits.body_timeout_s)
        wanted = safe_next(fields.get("next"))
        try:
            opened = await door.enter(request, fields.get("token", "").strip())
        except Refusal as refusal:
            # The challenge is for programs: a browser would ask for a name and a password.
            headers = {"retry-after": str(refusal.retry_after_s)} if refusal.retry_after_s else {}
            return shell.render("login.html", refusal.status, headers=headers, next=wanted, refusal=refusal)
        response = RedirectResponse(wanted, 303)
        set_cookie(response, options, opened)
        return response

    @app.post("/logout", include_in_schema=False)
    async def post_logout(request: Request) -> Response:
        posted = await callers.form(request)
        # Whoever shows no session may be one whose browser held it back: another site's page must not have it dropped.
        check_origin(request, options)
        if posted is not None:
            await door.leave(posted.caller)
        response = RedirectResponse("/login", 303)
        drop_cookie(response, options)
        return response

    @app.get("/account", include_in_schema=False)
    async def get_account(caller: Caller = by_page) -> Response:
        ends = format_instant(caller.ends_at.replace(microsecond=0)) if caller.ends_at is not None else None
        board = None if options.boards is None else options.boards.latest()
        frame = Frame("/account", options.now(), board, live=False)
        return shell.render("account.html", caller=caller, frame=frame, ends=ends)


class Door:
    """Opens sessions and ends them."""

    def __init__(self, options: Options, callers: Callers, audit: Audit) -> None:
        self._options, self._callers, self._audit = options, callers, audit

    async def enter(self, request: Request, token: str) -> str:
        """Open a session for a token that was typed; returns the session's id. Refusal 401, 403, 429 or 503."""
        address = address_of(request)
        try:
            caller = await self._callers.check_login(request, token)
        except Refusal as refusal:
            # One that is told to wait was not looked at, and writes nothing: else the log would grow with the trying.
            if refusal.status in (401, 403):
                about = refusal.error if looks_like_token(token) else "what was typed is no token"
                await self._in_store(lambda: self._audit.write("", address, Deed.LOGIN, about, Outcome.REFUSED))
            raise
        opened = make_session_id()
        before = session_id(request, self._options)

        def keep() -> None:
            now, times, access = self._options.wall(), self._options.sessions, self._options.access
            with self._options.store.transaction():
                # The session that this browser had is not left behind: whoever knew its id knows nothing of the new one.
                if before is not None:
                    access.end_session(hash_token(before))
                session = Session(caller.token_hash, now, now, address)
                access.add_session(hash_token(opened), session, idle_s=times.idle_s, longest_s=times.longest_s)
                self._audit.write(caller.name, address, Deed.LOGIN)

        await self._in_store(keep)
        return opened

    async def leave(self, caller: Caller) -> None:
        """End a caller's session."""

        def end() -> None:
            with self._options.store.transaction():
                self._options.access.end_session(caller.session_hash)
                self._audit.write(caller.name, caller.address, Deed.LOGOUT)

        await self._in_store(end)

    async def _in_store(self, work: Callable[[], None]) -> None:
        try:
            await run_in_threadpool(work)
        except PortError as error:
            raise refusal_of(error) from None
