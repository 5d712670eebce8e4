"""Server-sent events: what happened, and that there is a new board or forecast, to everybody who looks on. One rendering for all.

While somebody listens, one task waits for the loop's word (and looks into the store each second, since people write there too),
renders what is new once, and hands the same bytes to every client. A client that does not take them is let go: it comes again with
`Last-Event-ID`, and is given what it missed. Nothing is remembered for anybody. One event loop; called by `server.api`.
Format: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from reconciler.controller.board import Board
from reconciler.model.events import Event
from reconciler.model.scalars import format_instant
from reconciler.ports import PortError
from reconciler.server.answers import Refusal
from reconciler.server.foreseen import Forecasts
from reconciler.server.options import Options

LOOK_S = 1.0
"""How long something that nobody announced stays unseen: an acknowledgement, another process's event."""
HEARTBEAT_S = 15.0
STILL_S = 60.0
"""How often it is looked whether a client's token or session still holds."""
BACKLOG = 64
"""Pieces that may wait for a client."""
PAGE = 200
MOST_MISSED = 1000
"""Events that a client may have missed; one that missed more begins anew."""
RETRY_MS = 2000

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_END = b""
_BEAT = b": still here\n\n"


class _Client:
    """Somebody who listens, by the token `who`: the pieces that wait for them."""

    def __init__(self, who: str = "") -> None:
        self.who = who
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue(BACKLOG + 1)

    def give(self, piece: bytes) -> bool:
        """Let a piece wait; False where too many do."""
        if self.pieces.qsize() >= BACKLOG:
            self.end()
            return False
        self.pieces.put_nowait(piece)
        return True

    def forget(self) -> None:
        """Drop what waits."""
        while not self.pieces.empty():
            self.pieces.get_nowait()

    def end(self) -> None:
        """Nothing more: what waits is dropped."""
        self.forget()
        self.pieces.put_nowait(_END)


class Stream:
    """The stream of one service."""

    def __init__(self, options: Options, forecasts: Forecasts | None = None) -> None:
        self._options, self._forecasts = options, forecasts or Forecasts(None)
        self._clients: set[_Client] = set()
        self._pump: asyncio.Task[None] | None = None
        self._news: asyncio.Event | None = None
        self._cursor = 0
        self._generation = -1
        self._forecast = 0

    @property
    def clients(self) -> int:
        """How many listen."""
        return len(self._clients)

    async def answer(self, after: int | None, still: Callable[[], Awaitable[bool]], who: str = "") -> StreamingResponse:
        """A stream to a client that has seen events up to `after` (None: it wants what comes).

        Refusal 503: too many listen; 429: too many by the token `who`, which has half of the places, so that a program that forgets
        its streams ends nobody else's.
        """
        if self._options.boards is not None and self._options.boards.closed:
            raise Refusal(503, "the controller stops", "try again", retry_after_s=5)
        most = self._options.limits.stream_clients
        if len(self._clients) >= most:
            raise Refusal(503, "too many listen already", "try again, or poll /v1/events", retry_after_s=30)
        if sum(client.who == who for client in self._clients) >= max(1, most // 2):
            raise Refusal(429, "too many listen by this token", "end a stream first", retry_after_s=30)
        client = _Client(who)
        self._clients.add(client)
        try:
            await self._begin()
            first = await self._missed(client, after)
        except BaseException:
            self._clients.discard(client)
            raise
        return StreamingResponse(
            self._pieces(client, first, still), media_type="text/event-stream", headers=_HEADERS
        )  # fmt: skip

    async def _begin(self) -> None:
        """Have the task run that feeds everybody."""
        if self._pump is not None and not self._pump.done():
            return
        cursor = await run_in_threadpool(self._options.store.last_event)
        # Of several who come at once the first begins; where the task of that one stands is not touched.
        if self._pump is None or self._pump.done():
            self._cursor = cursor
            self._news = asyncio.Event()
            self._generation = self._options.boards.generation if self._options.boards is not None else -1
            self._forecast = self._forecasts.number
            self._pump = asyncio.create_task(self._feed(self._news))

    async def _missed(self, client: _Client, after: int | None) -> bytes:
        """What a client is told first: how soon to come again, the board, and what it missed up to where everybody is."""
        pieces = [f"retry: {RETRY_MS}\n\n".encode()]
        board = self._options.boards.latest() if self._options.boards is not None else None
        if board is not None:
            pieces.append(board_piece(board))
        if self._forecasts.number:
            pieces.append(forecast_piece(self._forecasts.number))
        until = self._cursor
        if after is not None and client in self._clients:
            # What was handed out while it came is among what it missed.
            client.forget()
        if after is not None and after < until:
            found = await run_in_threadpool(
                lambda: self._options.store.events(after=after, before=until + 1, limit=MOST_MISSED + 1)
            )
            if len(found) > MOST_MISSED:
                pieces.append(f"id: {until}\nevent: reset\ndata: {{}}\n\n".encode())
            else:
                pieces.append(events_piece(found))
        return b"".join(pieces)

    async def _pieces(
        self, client: _Client, first: bytes, still: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        asked = clock()
        try:
            yield first
            while True:
                piece = await client.pieces.get()
                if piece == _END:
                    return
                if clock() - asked >= STILL_S:
                    asked = clock()
                    if not await still():
                        return
                yield piece
        finally:
            self._clients.discard(client)

    # ------------------------------------------------ feeding

    async def _feed(self, news: asyncio.Event) -> None:
        """As long as anybody listens: wait, render what is new, hand it out."""
        boards, loop = self._options.boards, asyncio.get_running_loop()
        ends = [self._forecasts.subscribe(lambda: _from_thread(loop, news))]
        if boards is not None:
            ends.append(boards.subscribe(lambda: _from_thread(loop, news)))
        beat = loop.time()
        try:
            while self._clients:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(LOOK_S, HEARTBEAT_S)):
                        await news.wait()
                news.clear()
                if boards is not None and boards.closed:
                    break
                piece = await self._new()
                if loop.time() - beat >= HEARTBEAT_S:
                    beat, piece = loop.time(), piece or _BEAT
                if piece:
                    for client in [client for client in self._clients if not client.give(piece)]:
                        self._clients.discard(client)
        finally:
            for end in ends:
                end()
            for client in list(self._clients):
                client.end()
            self._clients.clear()

    async def _new(self) -> bytes:
        """What has come since the last time, rendered; nothing where the store does not answer now."""
        pieces = []
        try:
            found: Sequence[Event] = await run_in_threadpool(
                lambda: self._options.store.events(after=self._cursor, limit=PAGE)
            )
        except PortError:
            found = ()
        if found:
            self._cursor = found[-1].id or self._cursor
            pieces.append(events_piece(found))
            if len(found) == PAGE and self._news is not None:
                self._news.set()
        board = self._options.boards.latest() if self._options.boards is not None else None
        if board is not None and board.generation != self._generation:
            self._generation = board.generation
            pieces.append(board_piece(board))
        if (number := self._forecasts.number) != self._forecast:
            self._forecast = number
            pieces.append(forecast_piece(number))
        return b"".join(pieces)


def _from_thread(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    # The service may have ended while the loop ticks on.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(news.set)


def events_piece(events: Sequence[Event]) -> bytes:
    """Events as a stream has them: number, kind, and the JSON of `/v1/events`."""
    lines = []
    for event in events:
        data = json.dumps(event.to_dict(), ensure_ascii=False, separators=(",", ":"))
        lines.append(f"id: {event.id}\nevent: {event.kind.value}\ndata: {data}\n\n")
    return "".join(lines).encode()


def board_piece(board: Board) -> bytes:
    """That there is a new board: what is on it is fetched by whoever shows it."""
    counts = {state.value: count for state, count in board.counts.items()}
    data = {
        "generation": board.generation,
        "at": format_instant(board.at),
        "commit": board.commit,
        "flagged": len(board.flagged),
        "states": counts,
    }
    return f"event: board\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def forecast_piece(number: int) -> bytes:
    """That another forecast is there, or could not be made: pages show it."""
    return f'event: forecast\ndata: {{"number":{number}}}\n\n'.encode()
