"""The service without a socket: the whole app in the test's own process, a real store, and a clock that tests move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
from starlette.types import ASGIApp, Message

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.model.access import OperatorToken, Scope
from reconciler.server.app import create_app
from reconciler.server.options import Limits, Options
from reconciler.server.tokens import hash_token, make_token
from tests.server.service import NOW

T = TypeVar("T")
HERE = "http://127.0.0.1:8470"
# Tests ask often, and from one address.
EASY = Limits(per_address=(1e6, 10**6), refused_per_address=(1e6, 10**6), per_device=(1e6, 10**6))
PAGE = {"Accept": "text/html"}


class Bridge(httpx.BaseTransport):
    """Asks an app in this process, over one event loop: what it keeps between requests stays. A stream is left at its first
    piece, as a client that goes away leaves it."""

    def __init__(self, app: ASGIApp, runner: asyncio.Runner, peer: str) -> None:
        self._app, self._runner, self._peer = app, runner, peer

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._runner.run(self._ask(request))

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        scope = {
            "type": "http",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": (request.url.host, request.url.port),
            "client": (self._peer, 50000),
            "root_path": "",
        }
        sent, body, gone = list[Message](), bytearray(), asyncio.Event()
        waiting = [{"type": "http.request", "body": request.read(), "more_body": False}]

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.append(message)
                return
            body.extend(message.get("body", b""))
            streams = any(value.startswith(b"text/event-stream") for name, value in sent[0]["headers"])
            if streams or not message.get("more_body", False):
                gone.set()

        work = asyncio.ensure_future(self._app(scope, receive, send))
        left = asyncio.ensure_future(gone.wait())
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        with suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(work, 60)
        left.cancel()
        return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=bytes(body))


class Inside:
    """The app, its store, and browsers of it."""

    def __init__(self, store: SqlStore, options: Options, runner: asyncio.Runner) -> None:
        self.store, self.options, self._runner = store, options, runner
        self.app = create_app(options)
        self.at = NOW

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the app's own event loop makes of something."""
        return self._runner.run(work)

    def later(self, **lapse: float) -> None:
        """Let real time go on."""
        self.at += timedelta(**lapse)

    def browser(self, address: str = HERE, peer: str = "192.0.2.7") -> httpx.Client:
        """A client that keeps cookies and follows nothing."""
        return httpx.Client(transport=Bridge(self.app, self._runner, peer), base_url=address)

    def token(self, name: str = "anna", *scopes: Scope, days: float | None = 90) -> str:
        """A new operator's token, of all scopes unless said."""
        token = make_token()
        ends = self.at + timedelta(days=days) if days is not None else None
        kept = OperatorToken(name, frozenset(scopes or (Scope.ALL,)), self.at, ends)
        self.store.access.add_operator(hash_token(token), kept, replace=True)
        return token

    def log_in(self, token: str, browser: httpx.Client | None = None, **fields: str) -> httpx.Client:
        """A browser that has logged in."""
        browser = browser or self.browser()
        answer = browser.post("/login", data={"token": token} | fields, headers=own(browser))
        assert answer.status_code == 303, answer.text
        return browser

    def flag(self, *flags: tuple[str, str], at: datetime = NOW) -> None:
        """Save a plan with these flags, of devices and releases."""
        rows = [{"device": device, "release": release, "at": shown(at)} for device, release in flags]
        plan = {"at": shown(self.at + timedelta(seconds=5)), "waves": [], "holds": [], "flagged": rows}
        self.store.save_plan(self.store.begin_epoch(), json.dumps(plan))


@contextmanager
def inside(folder: Path, **options: Any) -> Iterator[Inside]:
    """The app over a new store in `folder`."""
    store = open_store(folder / "store.db")
    known: list[Inside] = []
    base = Options(
        store=store, now=lambda: known[0].at, access=store.access, wall=lambda: known[0].at, limits=EASY
    )  # fmt: skip
    with asyncio.Runner() as runner:
        known.append(Inside(store, replace(base, **options), runner))
        yield known[0]
    store.close()


def bearing(token: str) -> dict[str, str]:
    """The header of a program."""
    return {"Authorization": f"Bearer {token}"}


def own(browser: httpx.Client) -> dict[str, str]:
    """What a browser sends with a form of our own page."""
    return {"Origin": str(browser.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin", **PAGE}


def csrf_of(browser: httpx.Client) -> str:
    """The form token in the page that this browser is shown."""
    text = browser.get("/account", headers=PAGE).text
    return text.partition('name="csrf" value="')[2].partition('"')[0]


def shown(at: datetime) -> str:
    """An instant as documents have it."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
