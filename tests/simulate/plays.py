"""The courses on which mutants must be caught: each brings about what a protection is there for. The code as it is comes clean.

Names are those of the kill matrix (`mutants`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from reconciler.protocol.assignment import AppTarget, Assignment, ImageTarget
from reconciler.protocol.bundle import seal
from reconciler.protocol.exchange import Answer, SiteConfig
from reconciler.simulate.course import Merge
from reconciler.simulate.faults import Faults
from reconciler.simulate.hardware import Condition
from reconciler.simulate.memory_ports import image_digest
from reconciler.simulate.network import Controller
from reconciler.simulate.run import Simulation
from reconciler.simulate.signing import SimulatedSigner
from reconciler.simulate.start import settled
from tests.simulate.courses import (
    APP,
    APP_NEW,
    AT,
    LOWEST,
    NEW,
    NEXT,
    OLD,
    SOON,
    ZONES,
    Document,
    Play,
    SmallFleet,
    document,
    later,
)

CANARY = "SITE-01-1"
FORGED = "sha256:" + "f" * 64
HALF_CALM = ({"name": "canary", "sites": ["SITE-01"], "soak": "2h"}, {"name": "all", "percent": 100, "soak": "1h"})
FOUR_FIRST = (
    {"name": "canary", "sites": ["SITE-01", "SITE-02", "SITE-03", "SITE-04"], "soak": "1h", "maxInFlight": 1},
    {"name": "all", "percent": 100, "soak": "1h"},
)
NIGHTS = SmallFleet(two=(2, 3, 6), zones=ZONES)
PLAIN = SmallFleet(sites=6, waves=HALF_CALM)


def asks(fleet: SmallFleet, at: datetime, *images: str, **more: Any) -> Merge:
    """A commit that asks the waves for these images, the last of them from there on."""
    wanted = [*images, *[images[-1]] * len(fleet.waves)][: len(fleet.waves)]
    return Merge(at, {"waves.yaml": fleet.asking(wanted, **more)}, f"Ask for {', '.join(wanted)}")


def says(fleet: SmallFleet, at: datetime, **spec: Any) -> Merge:
    """A commit that changes the Fleet document."""
    return Merge(at, {"fleet.yaml": replace(fleet, spec={**fleet.spec, **spec}).files()["fleet.yaml"]})


def ill(device: str, since: datetime, until: datetime | None = None, image: str = NEW) -> Callable[[Simulation], None]:
    """A device is critical while it runs an image, between two instants."""
    condition = Condition("decoder", message="it leaks", image=image_digest(image), since=since, until=until)
    return lambda simulation: simulation.machines.impose([device], (condition,), simulation.clock.at)


def silent(device: str, since: datetime, until: datetime) -> Callable[[Simulation], None]:
    """A device's line is down between two instants."""

    def prepare(simulation: Simulation) -> None:
        simulation._at(since, partial(simulation._line_is_down, device))
        simulation._at(until, partial(simulation._line_is_back, device))

    return prepare


def fails(fate: str, *devices: str, release: str = NEW) -> Callable[[Simulation], None]:
    """Every attempt of these devices at a release fails so; of all devices where none is named."""

    def prepare(simulation: Simulation) -> None:
        simulation.depot.fate = lambda name, wanted: (
            fate if wanted == release and (not devices or name in devices) else None
        )

    return prepare


def rots(at: datetime, slot: str = "a") -> Callable[[Simulation], None]:
    """A bit flips in a slot of every device."""

    def spoil(_at: datetime) -> None:
        for device in simulation_of[0].machines.devices.values():
            if device.hardware.booted() != slot:
                device.hardware.spoil(slot)

    simulation_of: list[Simulation] = []

    def prepare(simulation: Simulation) -> None:
        simulation_of.append(simulation)
        simulation._at(at, spoil)

    return prepare


def forges(simulation: Simulation) -> None:
    """The depot gives other bytes than were published."""
    simulation.depot.gives[image_digest(NEW)] = FORGED
    assert simulation.oracle is not None
    simulation.oracle.is_supply_sound = False


class Attacker:
    """Sits on the line of one device, and gives it a word that nobody signed."""

    def __init__(self, behind: Controller, *, reuses: bool, app: bool = False) -> None:
        self._behind, self._reuses, self._app = behind, reuses, app
        self._signature = b""

    def exchange(self, device: str, report: bytes, now: datetime) -> bytes:
        """The answer, or another one."""
        data = self._behind.exchange(device, report, now)
        answer = Answer.from_bytes(data)
        if device != CANARY or now < later(14.5):
            if answer.bundle is not None:
                self._signature = answer.bundle.signature
            return data
        image = None if self._app else ImageTarget("v6.6.6", FORGED, "edge-golden-v6.6.6-20260101")
        apps = {APP: AppTarget(APP, "stable", FORGED, "6.6.6")} if self._app else {}
        until = now + timedelta(days=1)
        word = Assignment(device, (90, 90), now, until, image, apps, None, ((now, until),), False)
        (bundle,) = seal([word.to_bytes()], 90, now, SimulatedSigner("attacker").sign_root)
        if self._reuses:
            bundle = replace(bundle, signature=self._signature)
        sources = {"image": ("https://attacker.invalid/",), "registry": ("https://attacker.invalid",)}
        return Answer(bundle, sources, answer.report_every_s, answer.server_time).to_bytes()

    def config(self, device: str, now: datetime) -> SiteConfig:
        """As behind it."""
        return self._behind.config(device, now)


def attacked(*, reuses: bool = False, app: bool = False) -> Callable[[Simulation], None]:
    """An attacker is on the canary's line, and makes it call in at half past two."""

    def prepare(simulation: Simulation) -> None:
        simulation.far.controller = Attacker(simulation.far.controller, reuses=reuses, app=app)
        simulation._at(later(14.6), lambda at: simulation.machines.ring([CANARY], at))

    return prepare


BAD = Faults(bad_from_s=900, bad=frozenset({NEW}))
LATE_BAD = Faults(bad_from_s=3 * 3600, bad=frozenset({NEW}))
AT_ONCE = {"window": {"start": "00:00", "end": "24:00"}}
TOLERANT = (
    {"name": "canary", "sites": ["SITE-01"], "soak": "2h"},
    {"name": "all", "percent": 100, "soak": "1h", "maxFailed": 1, "maxOffline": 1},
)
BY_APP = SmallFleet(sites=6, waves=HALF_CALM, app_window="site")


def _promote_and_revert(fleet: SmallFleet, **more: Any) -> Play:
    return fleet.play(asks(fleet, SOON, NEW), asks(fleet, later(60), OLD), days=5, **more)


def _in_march() -> Play:
    """Berlin's clocks go forward on the 29th."""
    one_by_one: list[Document] = [{**HALF_CALM[0]}, {**HALF_CALM[1], "maxInFlight": 1}]
    fleet = replace(PLAIN, sites=8, zones=("Europe/Berlin",), waves=one_by_one)
    at = datetime(2026, 3, 28, 12, tzinfo=UTC)
    return Play(replace(fleet.play(asks(fleet, at + timedelta(minutes=5), NEW), days=4).course, at=at))


def _undrawn(play: Play) -> Play:
    """Nothing is on record of who was taken for what."""
    observed = settled(Simulation(play.course).base, AT).model_copy(update={"members": {}})
    return replace(play, course=replace(play.course, observed=observed))


def _removed(sites: int) -> Merge:
    changes: dict[str, bytes | None] = {f"sites/SITE-{number:02d}.yaml": None for number in range(7 - sites, 7)}
    return Merge(SOON, {**changes, "waves.yaml": PLAIN.asking(NEW)}, "Remove sites")


def _pinned() -> SmallFleet:
    pin = {"image": OLD, "devices": ["SITE-05-1"], "why": "a trial"}
    return replace(PLAIN, site={5: {"pin": pin}})


def _replaced(fleet: SmallFleet, path: str, data: bytes, at: datetime) -> Merge:
    return Merge(at, {path: data})


def plays() -> dict[str, Play]:
    """Name → play, made anew."""
    return _of_policy() | _of_faults()


def _of_policy() -> dict[str, Play]:
    """What git asks for, and says beside it."""
    limited = replace(
        NIGHTS,
        zones=("UTC",),
        waves=(
            {"name": "canary", "sites": ["SITE-01"], "soak": "1h"},
            {"name": "all", "percent": 100, "soak": "1h", "maxInFlight": "34%"},
        ),
    )
    two_waves = replace(NIGHTS, zones=("UTC",))
    quick = replace(PLAIN, spec=AT_ONCE)
    withdrawn = document("Image", NEW, {"withdrawn": "it eats disks"})
    return {
        "nights": NIGHTS.play(days=4),
        "march": _in_march(),
        "limited": limited.play(days=4),
        "late merge": PLAIN.play(asks(PLAIN, SOON, NEW, OLD), asks(PLAIN, later(39.8), NEW), days=5),
        "some waves": _undrawn(two_waves.play(asks(two_waves, SOON, NEW, NEW, OLD), days=4)),
        "paused": PLAIN.play(asks(PLAIN, SOON, NEW), says(PLAIN, later(20), paused=True), days=4),
        "wave paused": PLAIN.play(asks(PLAIN, SOON, NEW), asks(PLAIN, later(20), NEW, paused=True), days=4),
        "frozen": PLAIN.play(
            asks(PLAIN, SOON, NEW),
            says(
                PLAIN,
                later(20),
                freezes=[{"from": "2026-03-11T09:00:00Z", "to": "2026-03-20T00:00:00Z", "why": "fair"}],
            ),
            days=4,
        ),
        "suspended": replace(PLAIN, site={4: {"suspended": True}}).play(days=4),
        "withdrawn": PLAIN.play(
            asks(PLAIN, SOON, NEW), _replaced(PLAIN, f"images/{NEW}.yaml", withdrawn, later(20)), days=4
        ),
        "pinned": _pinned().play(days=4),
        "never had": PLAIN.play(asks(PLAIN, SOON, LOWEST), days=4),
        "revert": _promote_and_revert(quick),
        "revert at night": _promote_and_revert(PLAIN),
        "rotten slots": _promote_and_revert(PLAIN, prepare=rots(later(58))),
        "raised again": PLAIN.play(
            asks(PLAIN, SOON, NEW), asks(PLAIN, later(60), OLD), asks(PLAIN, later(100), NEW), days=7
        ),
    }


def _of_faults() -> dict[str, Play]:
    """What goes wrong meanwhile."""
    four = replace(PLAIN, waves=FOUR_FIRST)
    tolerant = replace(PLAIN, waves=TOLERANT)
    rescuing = replace(PLAIN, spec={"onFailure": "rollback", "rollback": {"ignoreWindow": "false"}})
    unknown_site = document(
        "Waves",
        "waves",
        {
            "waves": [
                {"name": "canary", "sites": ["SITE-01", "SITE-99"], "soak": "1h", "image": NEW, "apps": {APP: "1.0.0"}},
                {"name": "all", "percent": 100, "soak": "1h", "image": NEW, "apps": {APP: "1.0.0"}},
            ]
        },
    )
    return {
        "silent canary": PLAIN.play(prepare=silent(CANARY, later(14.6), later(15.5)), days=4),
        "silent one": tolerant.play(prepare=silent("SITE-03-1", later(38.8), later(41)), days=4),
        "silent, not tolerated": PLAIN.play(prepare=silent("SITE-03-1", later(38.8), later(47)), days=4),
        "blip": PLAIN.play(prepare=ill(CANARY, later(14.8), later(14.9)), days=4),
        "bad canary": four.play(faults=BAD, days=3),
        "bad later": PLAIN.play(faults=LATE_BAD, days=3),
        "bad and rescued": rescuing.play(faults=LATE_BAD, days=4),
        "well again": PLAIN.play(prepare=ill(CANARY, later(14.6), later(15.2)), days=4),
        "well again, edited": PLAIN.play(
            asks(PLAIN, SOON, NEW),
            asks(PLAIN, later(15.3), NEW, maxFailed="100%"),
            prepare=ill(CANARY, later(14.6), later(15.2)),
            days=4,
        ),
        "does not boot": PLAIN.play(prepare=fails("boot"), days=4),
        "one does not boot": tolerant.play(prepare=fails("boot", "SITE-03-1"), days=5),
        "ill on trial": PLAIN.play(prepare=fails("health"), days=4),
        "bad disks": PLAIN.play(prepare=fails("disk"), days=4),
        "replayed": PLAIN.play(
            asks(PLAIN, SOON, NEW), asks(PLAIN, later(60), OLD), faults=Faults(replayed=0.4), days=5
        ),
        "crashes": PLAIN.play(faults=Faults(crashes=8, until=later(60)), days=18),
        "power cuts": PLAIN.play(faults=Faults(power=6, until=later(60)), days=18),
        "rewritten": PLAIN.play(
            asks(PLAIN, SOON, NEW, OLD),
            replace(asks(PLAIN, later(8), NEXT), rewrites=True),
            days=4,
        ),
        "unknown site": PLAIN.play(Merge(SOON, {"waves.yaml": unknown_site}), days=3),
        "sites removed": PLAIN.play(_removed(2), days=3),
        "app": BY_APP.play(Merge(SOON, {"waves.yaml": BY_APP.asking(OLD, APP_NEW)}), days=3),
        "other bytes": PLAIN.play(prepare=forges, days=3),
        "attacker": PLAIN.play(prepare=attacked(), days=2),
        "attacker of apps": PLAIN.play(prepare=attacked(app=True), days=2),
        "attacker with a signature": PLAIN.play(prepare=attacked(reuses=True), days=2),
    }
