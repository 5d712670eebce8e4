"""Limits of a request: how often, and how much. Knows nothing of reports; used by the HTTP service's endpoints."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from starlette.requests import ClientDisconnect, Request

from reconciler.server.answers import Refusal

REMEMBERED = 100_000
"""Callers remembered by one limiter; beyond that the one not heard of for longest is forgotten."""


_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
_NETWORK_BITS = 64


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What one caller is counted by: the address itself, of IPv6 its /64. Whoever has one such address has all of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    # A translator puts all of IPv4 into one /96.
    if parsed in _TRANSLATED:
        return str(parsed)
    return str(ipaddress.IPv6Network((int(parsed) >> _NETWORK_BITS << _NETWORK_BITS, _NETWORK_BITS)))


class RateLimiter:
    """A bucket of tokens for each caller: `rate` a second flow in, up to `burst`. One event loop only."""

    def __init__(self, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, *, take: bool = True) -> float:
        """Take one token; 0.0 if there was one, otherwise after how many seconds there will be."""
        now = self._now()
        level, at = self._buckets.pop(caller, (float(self._burst), now))
        level = min(float(self._burst), level + (now - at) * self._rate)
        enough = level >= 1.0
        self._buckets[caller] = (level - 1.0 if enough and take else level, now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return 0.0 if enough else (1.0 - level) / self._rate

    def check(self, caller: str, *, take: bool = True) -> None:
        """Refusal 429 with Retry-After where the caller has used up its share."""
        wait = self.wait_s(caller, take=take)
        if wait > 0.0:
            raise Refusal(
                429, "too many requests", "wait as long as Retry-After says", retry_after_s=max(1, int(wait + 0.999))
            )


class Lately:
    """What was met lately, the newest of it: membership alone. One event loop only."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most, self._met = most, OrderedDict[str, None]()

    def add(self, item: str) -> None:
        """It was met now."""
        self._met[item] = None
        self._met.move_to_end(item)
        if len(self._met) > self._most:
            self._met.popitem(last=False)

    def __contains__(self, item: object) -> bool:
        return item in self._met


async def read_body(request: Request, limit: int, timeout_s: float) -> bytes:
    """The body, refused (413) as soon as it is known to be longer than `limit` bytes, or (408) if it does not come."""
    declared = request.headers.get("content-length", "")
    too_long = Refusal(413, f"the body is longer than {limit} bytes", "send one report, as the agent makes it")
    if declared.isdigit() and int(declared) > limit:
        raise too_long
    # Nothing that unpacks to more than was sent.
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "the body is encoded", "send it without Content-Encoding")
    received = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                received += chunk
                if len(received) > limit:
                    raise too_long
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {timeout_s:g} s", "send it again") from None
    except ClientDisconnect:
        raise Refusal(400, "the connection was closed before the body was whole", "send it again") from None
    return bytes(received)
