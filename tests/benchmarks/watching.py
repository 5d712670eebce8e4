"""What it costs that people look on, at 100,000 devices: the board of every tick, 500 who listen to the stream, the front page.

The same loop with and without a board take turns; so do ticks with and without listeners, who are another process. Some devices
turn at every tick, so that there is something to tell each time. Ticks come a second apart, as often as a controller's do at most.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from reconciler.controller.board import Asked
from reconciler.model.observed import Health
from tests.benchmarks.ticking import REPORTS, Bench

LISTENERS = 500
ROUNDS = 8
BLOCKS = 4
GAP_S = 1.0
LOADS = 1000
MOST_LOOKED_ON = 1.1
"""Of a tick while so many pages are open: they listen, and each fetches itself again."""
AGAIN = 25
"""Loads of the front page between two ticks that change it."""

_LISTEN = """
import selectors, socket, sys
port, count, token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
wait = selectors.DefaultSelector()
for _ in range(count):
    peer = socket.create_connection(("127.0.0.1", port))
    peer.sendall(f"GET /v1/events/stream HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer {token}\\r\\n\\r\\n".encode())
    assert b" 200 " in peer.recv(4096)
    wait.register(peer, selectors.EVENT_READ)
print("ready", flush=True)
told = 0
while count:
    for key, _ in wait.select():
        data = key.fileobj.recv(65536)
        told += data.count(b"event: ")
        if not data:
            wait.unregister(key.fileobj)
            count -= 1
"""

_LOOK = """
import asyncio, sys, time
port, count, token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
took, bad = [], 0
head = f"Host: x\\r\\nAuthorization: Bearer {token}\\r\\nConnection: close\\r\\n\\r\\n"
async def ask(path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    writer.write(f"GET {path} HTTP/1.1\\r\\n{head}".encode())
    return reader, writer
async def page(ready):
    global bad
    news = asyncio.Event()
    reader, writer = await ask("/v1/events/stream")
    assert b" 200 " in await reader.readline()
    ready()
    async def again():
        global bad
        while True:
            await news.wait()
            news.clear()
            begun = time.perf_counter()
            answer, end = await ask("/")
            text = await answer.read()
            end.close()
            spent = time.perf_counter() - begun
            took.append(spent)
            bad += b" 200 " not in text[:20]
            await asyncio.sleep(max(0.0, min(max(1.0, 10 * spent), 15.0) - spent))
    task = asyncio.create_task(again())
    while line := await reader.readline():
        if line.startswith(b"event: "):
            news.set()
    task.cancel()
async def main():
    there = 0
    def ready():
        nonlocal there
        there += 1
        if there == count:
            print("ready", flush=True)
            asyncio.get_running_loop().add_reader(sys.stdin, told)
    def told():
        asyncio.get_running_loop().remove_reader(sys.stdin)
        middle = sorted(took)[len(took) // 2] if took else 0.0
        print(len(took), bad, middle, flush=True)
    await asyncio.gather(*(page(ready) for _ in range(count)))
asyncio.run(main())
"""
"""Pages that are open: on news each fetches itself again, as often as the script of the pages does (`live.js`)."""


class Turning(Bench):
    """A few of the devices that report have turned."""

    def turned(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """The time of a tick in which 100 devices reported, ten of them another health than before."""
        self.clock.at = self.clock.at.fromtimestamp(self.clock.at.timestamp() + 1, UTC)
        rows = self.random.sample(range(self.roster.size), REPORTS)
        self.sequence += 1
        seen = [self._seen(row) for row in rows]
        health = Health.WARNING if self.sequence % 2 else Health.OK
        seen[:10] = [device.model_copy(update={"health": health}) for device in seen[:10]]
        self.store.observe(seen, sequences={device.name: ("b", self.sequence) for device in seen})
        start = clock()
        self.loop.tick()
        return clock() - start


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def serving(bench: Turning) -> Iterator[tuple[int, str]]:
    """The service beside the loop: its port, and a reader's token."""
    from dataclasses import replace

    import structlog

    from reconciler.model.access import OperatorToken, Scope
    from reconciler.server.app import create_app
    from reconciler.server.options import Limits, Options
    from reconciler.server.run import HttpServer
    from reconciler.server.tokens import hash_token, make_token

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    token = make_token()
    kept = OperatorToken("r", frozenset({Scope.READ}), _now(), None)
    bench.store.access.add_operator(hash_token(token), kept)
    limits = replace(Limits(), per_device=(1e6, 10**6), per_address=(1e6, 10**6))
    options = Options(store=bench.store, now=_now, access=bench.store.access, boards=bench.boards, limits=limits)
    with HttpServer(create_app(options), "127.0.0.1", 0) as server:
        yield server.port, token


@contextmanager
def listening(port: int, token: str) -> Iterator[None]:
    """So many who listen, in a process of their own."""
    with subprocess.Popen(
        [sys.executable, "-c", _LISTEN, str(port), str(LISTENERS), token], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n", "the listeners did not come"
        try:
            yield
        finally:
            process.kill()


@dataclass
class Seen:
    """What those who look on saw: pages that they fetched, those that were refused, and the middle load in seconds."""

    pages: int = 0
    refused: int = 0
    load_s: float = 0.0


@contextmanager
def looking(port: int, token: str) -> Iterator[Seen]:
    """So many open pages that fetch themselves again, in a process of their own."""
    seen = Seen()
    with subprocess.Popen(
        [sys.executable, "-c", _LOOK, str(port), str(LISTENERS), token],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the pages did not open"
        try:
            yield seen
            process.stdin.write("\n")
            process.stdin.flush()
            pages, refused, load = process.stdout.readline().split()
            seen.pages, seen.refused, seen.load_s = int(pages), int(refused), float(load)
        finally:
            process.kill()


def _ticks(bench: Turning) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        times.append(bench.turned())
        time.sleep(GAP_S)
    return times


def _timed(bench: Turning) -> list[float]:
    """Seconds that every tick from now on spends on its board and on telling what happened."""
    times: list[float] = []
    tell: Any = bench.loop._tell

    def timed(*arguments: Any) -> None:
        started = time.thread_time()
        tell(*arguments)
        times.append(time.thread_time() - started)

    vars(bench.loop)["_tell"] = timed
    return times


def looked(bench: Turning) -> dict[str, float]:
    """Seconds that a look at the board takes, once nothing of it is kept from an earlier look."""
    board: Any = bench.boards.latest()
    started = time.perf_counter()
    _ = (
        board.counts,
        board.sites(limit=200),
        board.devices(Asked(flagged=True)),
        [board.of_hold(h) for h in board.holds],
    )
    front = time.perf_counter() - started
    started = time.perf_counter()
    board.devices(Asked(q="s99"), limit=100)
    search = time.perf_counter() - started
    return {"front": front, "search": search}


def loaded(bench: Turning, port: int, token: str, *, changing: bool) -> tuple[list[float], int, list[int]]:
    """The front page over HTTP, again and again: seconds of each load, most bytes, and resident bytes every so many loads.

    `changing`: a tick changes the page before each of those, and nothing of the board before is kept by then.
    """
    times, most, resident = [], 0, []
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {token}"}
    for number in range(LOADS):
        if number % AGAIN == 0:
            if changing:
                bench.turned()
            resident.append(_resident())
        started = time.perf_counter()
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        page = answer.read()
        times.append(time.perf_counter() - started)
        assert answer.status == 200 and b"<h1" in page, page[:200]
        most = max(most, len(page))
    connection.close()
    return times, most, resident


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def measure(devices: int = 100_000) -> Iterator[tuple[str, float, str, float, float]]:
    """(work, ours in s, yardstick, its s, bar)."""
    with tempfile.TemporaryDirectory() as folder:
        benches = []
        for name, watched in (("plain", False), ("watched", True)):
            place = Path(folder) / name
            place.mkdir()
            benches.append(Turning(place, devices, watched=watched))
        plain, bench = benches
        for one in benches:
            one.random = random.Random(3)
            for _ in range(3):
                one.turned()
        # The processor's time of the loop's thread: what else runs here is no part of it.
        shown = _timed(bench)
        pairs = [(plain.turned(time.thread_time), bench.turned(time.thread_time)) for _ in range(3 * ROUNDS)]
        plain.store.close()
        alone = median(pair[0] for pair in pairs)
        yield f"board and events of a tick at {devices:,} devices", median(shown), "the tick", alone, 0.5
        looks = looked(bench)
        yield f"front page's facts at {devices:,} devices (s)", looks["front"], "100 ms", 0.1, 1.0
        yield f"search for a name at {devices:,} devices (s)", looks["search"], "100 ms", 0.1, 1.0
        silent: list[float] = []
        crowded: list[float] = []
        with serving(bench) as (port, token):
            # Ahead of those who listen, whose buffers come and go.
            times, most, between = loaded(bench, port, token, changing=True)
            _, _, resident = loaded(bench, port, token, changing=False)
            for _ in range(BLOCKS):
                silent += _ticks(bench)
                with listening(port, token):
                    crowded += _ticks(bench)
                time.sleep(1.0)
            yield from _looked_on(bench, port, token, silent)
            bench.boards.close()
        bench.store.close()
    slow = quantiles(times, n=100)[98]
    yield f"front page at {devices:,} devices, 99th of 100 loads", slow, "200 ms", 0.2, 1.0
    yield "its size (KiB)", most / 1024, "200 KiB", 200.0, 1.0
    part = LOADS // AGAIN // 4
    yield (
        f"resident memory late in {LOADS:,} loads",
        median(resident[-part:]),
        "early in them",
        median(resident[:part]),
        1.02,
    )
    # What the first loads bring into memory stays, so not from the first quarter on. A tick's own need comes and goes.
    yield (
        f"the same with {LOADS // AGAIN} ticks between them",
        median(between[-part:]),
        "early in them",
        median(between[part : 2 * part]),
        1.05,
    )
    # The lower quarter: what else runs on the machine makes some ticks longer, and none shorter.
    low = [quantiles(times, n=4)[0] for times in (crowded, silent)]
    yield f"tick with {LISTENERS} on the stream", low[0], "the tick without", low[1], 1.1


def _looked_on(
    bench: Turning, port: int, token: str, silent: list[float]
) -> Iterator[tuple[str, float, str, float, float]]:
    """The same with so many pages that fetch themselves again: they share the interpreter with the loop, and make room for it."""
    busy: list[float] = []
    with looking(port, token) as seen:
        for _ in range(BLOCKS):
            busy += _ticks(bench)
    assert seen.pages and not seen.refused, seen
    low = [quantiles(times, n=4)[0] for times in (busy, silent)]
    yield (
        f"tick with {LISTENERS} open pages that fetch themselves again",
        low[0],
        "the tick without",
        low[1],
        MOST_LOOKED_ON,
    )
    yield f"the middle load of those {seen.pages:,} pages (s)", seen.load_s, "15 s", 15.0, 1.0


def main() -> None:
    """Print these rows alone."""
    for work, ours, yardstick, theirs, bar in measure():
        print(f"{work:<60} {ours:.5f} {theirs:.5f} {ours / theirs:.3f} bar {bar}  {yardstick}", flush=True)


if __name__ == "__main__":
    main()
