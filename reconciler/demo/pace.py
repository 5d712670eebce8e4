"""A device's long work at the pace of a real one: real downloads, writes and restarts, after the time they take in the field.

Decides nothing: durations are those of `simulate.timings`, by which forecasts are made, so that a review's calendar is what the
demo then does. The work itself is the agent's own, done in the instant in which its time has passed. Called by the agents of
the demo, through `agent.supply`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from reconciler.agent.supply import Job, Supply
from reconciler.protocol.assignment import AppTarget, ImageTarget
from reconciler.protocol.exchange import SiteConfig
from reconciler.simulate.timings import CHECK_S, CONFIGURE_S, PULL_S, RESTART_S


class PacedSupply:
    """`agent.supply.Supply` over another. `now` is virtual time."""

    def __init__(
        self, supply: Supply, now: Callable[[], datetime], *, fetch_s: Callable[[str], int], write_s: int
    ) -> None:
        """`fetch_s` gives the seconds that a release's download takes at this device's site."""
        self._supply, self._now, self._fetch_s, self._write_s = supply, now, fetch_s, write_s

    def has_image(self, image: ImageTarget) -> bool:
        return self._supply.has_image(image)

    def fetch_image(self, image: ImageTarget, sources: Sequence[str], now: datetime) -> Job:
        yield from self._pass(self._fetch_s(image.release))
        yield from self._supply.fetch_image(image, sources, now)

    def check_slot(self, slot: str, image: ImageTarget) -> Job:
        yield from self._pass(CHECK_S)
        yield from self._supply.check_slot(slot, image)

    def write_image(self, image: ImageTarget, slot: str) -> Job:
        yield from self._pass(self._write_s)
        yield from self._supply.write_image(image, slot)

    def drop_image(self) -> None:
        self._supply.drop_image()

    def has_app(self, name: str, app: AppTarget) -> bool:
        return self._supply.has_app(name, app)

    def pull_app(self, name: str, app: AppTarget, sources: Sequence[str], token: str | None) -> Job:
        yield from self._pass(PULL_S)
        yield from self._supply.pull_app(name, app, sources, token)

    def start_app(self, name: str, digest: str) -> Job:
        yield from self._pass(RESTART_S)
        yield from self._supply.start_app(name, digest)

    def apply_config(self, config: SiteConfig) -> Job:
        yield from self._pass(CONFIGURE_S)
        yield from self._supply.apply_config(config)

    def _pass(self, seconds: float) -> Job:
        """Let so much time pass, however often it is gone on with meanwhile."""
        until = self._now() + timedelta(seconds=seconds)
        while (left := (until - self._now()).total_seconds()) > 0:
            yield left
