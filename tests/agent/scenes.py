"""What makes each edge of the agent's transition table happen on a real device: one scene a cause. Walked by `test_edges`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

import pytest

from reconciler.agent.hardware import Clock, HardwareError
from reconciler.agent.machine import Event, State
from reconciler.agent.notes import Notes
from reconciler.protocol.assignment import AppTarget
from reconciler.protocol.exchange import SiteConfig
from tests.agent.play import Cut, Edge, Play

S, E = State, Event

# ---------------------------------------------------------------- what makes each edge happen


def an_update(play: Play) -> None:
    play.settle()
    play.updated()


def a_trial_that_settles(play: Play) -> None:
    play.office.assign(play.releases.v2)
    play.until(S.REBOOTING)
    play.faulty()
    play.until(S.TRIAL)
    play.healed()
    play.settle()
    assert play.office.last().image == "v2"


def a_switch(play: Play) -> None:
    play.updated()
    play.office.assign(play.releases.v1)
    play.settle()
    assert play.office.last().image == "v1"


def a_person_goes_back(play: Play) -> None:
    play.updated()
    assert play.site.device.agent.work.go_back() is None
    play.settle()
    assert play.office.last().image == "v1"


def a_bad_release(play: Play) -> None:
    play.office.assign(play.releases.bad)
    play.settle()
    assert play.office.last().attempts == {"v3": 1}


def a_bad_release_whose_reboot_fails(play: Play) -> None:
    play.office.assign(play.releases.bad)
    play.until(S.TRIAL)
    play.fails("reboot")
    play.settle()
    assert play.office.last().image == "v1"


def an_agent_that_dies_on_a_bad_slot(play: Play) -> None:
    play.office.assign(play.releases.bad)
    play.until(S.RETURNING)
    play.new_process()
    play.settle()
    assert play.office.last().image == "v1"


def a_release_that_does_not_boot(play: Play) -> None:
    play.office.assign(play.releases.v2)
    play.until(S.REBOOTING)
    (play.site.root / "slot-a.img").write_bytes(b"\0" * 4096)
    play.settle()
    assert play.office.last().attempts == {"v2": 1}


def a_power_cut_between_mark_and_end(play: Play) -> None:
    play.office.assign(play.releases.v2)
    play.until(S.REBOOTING)
    with play.patch.context() as patch:
        patch.setattr(Notes, "clear_intent", lambda *_, **__: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            play.until(S.IDLE)
    play.power_cut()
    play.settle()
    assert play.office.last().image == "v2"


def a_default_slot_that_cannot_be_loaded(play: Play) -> None:
    """The boot loader passes over it and runs the other one, which was good."""
    play.updated()
    hardware = play.site.hardware
    play.site.device.end()
    value = json.loads((play.site.root / "run" / "boot.json").read_text())
    (play.site.root / "run" / "boot.json").write_text(json.dumps({**value, "slot": "b"}))
    play.patch.setattr(hardware, "passed_over", lambda: hardware.flags().default == "a")
    marked: list[str] = []
    mark = hardware.mark_good
    play.patch.setattr(hardware, "mark_good", lambda slot: (marked.append(slot), mark(slot)))
    # What is wanted is tried again after that, from the slot that runs.
    play.settle()
    assert marked == ["b", "a"]
    assert play.office.last().image == "v2"


def a_power_cut_before_the_boot_is_armed(play: Play) -> None:
    play.office.assign(play.releases.v2)
    play.until(S.WRITTEN)
    with play.patch.context() as patch:
        patch.setattr(play.site.hardware, "arm", lambda _: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            play.until(S.REBOOTING)
    play.power_cut()
    play.settle()
    assert (play.office.last().image, play.office.last().attempts) == ("v2", {})


def a_slot_without_a_record(play: Play) -> None:
    jobs = [iter([0.0, 0.0])]

    def recognise() -> Iterator[float] | None:
        job = jobs[-1] if jobs else None
        if play.state is S.RECOGNISING and jobs:
            jobs.pop()
        return job

    play.patch.setattr(play.site.hardware, "recognise", recognise)
    play.until(S.RECOGNISING)
    assert play.office.reports == [], "nothing is told before it is known"
    play.settle()
    assert play.office.last().image == "v1"


def a_record_that_is_lost_while_it_runs(play: Play) -> None:
    play.settle()
    told, jobs = len(play.office.reports), [iter([0.0])]

    def recognise() -> Iterator[float] | None:
        job = jobs[-1] if jobs else None
        if play.state is S.RECOGNISING and jobs:
            jobs.pop()
        return job

    play.patch.setattr(play.site.hardware, "recognise", recognise)
    play.site.device.call_in()
    play.until(S.RECOGNISING)
    assert len(play.office.reports) == told, "nothing is told before it is known"
    play.settle()
    assert len(play.office.reports) > told and play.office.last().image == "v1"


def a_slot_that_cannot_be_recognised(play: Play) -> None:
    def failing() -> Iterator[float]:
        yield 0.0
        raise HardwareError("slot b holds no file system")

    play.patch.setattr(play.site.hardware, "recognise", failing)
    play.settle()
    assert [item.reason for item in play.office.last().refusals] == ["slot b holds no file system"]


def a_download_that_breaks_off(play: Play) -> None:
    play.away("SHA256SUMS")
    play.updated()


def an_artifact_that_is_refused(play: Play) -> None:
    wanted = play.releases.v2.target
    play.office.assign(type(wanted)("v7", wanted.digest, wanted.folder))
    play.settle()
    assert [item.code for item in play.office.last().refusals] == ["artifact-mismatch"]


def another_image_while_it_fetches(play: Play) -> None:
    play.office.assign(play.releases.bad)
    play.until(S.FETCHING)
    _other(play)


def _other(play: Play) -> None:
    """v2 is wanted instead, and heard of at once."""
    play.office.assign(play.releases.v2)
    play.site.device.call_in()
    play.settle()
    assert play.office.last().image == "v2"


def another_image_while_it_checks(play: Play) -> None:
    play.updated()
    play.office.assign(play.releases.v1)
    play.until(S.CHECKING)
    play.office.assign(play.releases.v2)
    play.site.device.call_in()
    play.settle()
    assert play.office.last().image == "v2"


def another_image_while_it_writes(play: Play) -> None:
    play.office.assign(play.releases.bad)
    play.until(S.WRITING)
    _other(play)


def another_image_before_it_reboots(play: Play) -> None:
    play.office.assign(play.releases.bad)
    play.until(S.WRITTEN)
    _other(play)


def a_clock_that_is_lost_before_it_reboots(play: Play) -> None:
    play.office.assign(play.releases.v2)
    play.until(S.WRITTEN)
    with play.patch.context() as patch:
        patch.setattr(play.site.hardware, "clock", lambda: Clock(False))
        play.settle(2)
        assert play.state is S.WRITTEN
    play.settle()
    assert play.office.last().image == "v2"


def a_slot_that_has_rotted(play: Play) -> None:
    play.updated()
    data = bytearray((play.site.root / "slot-b.img").read_bytes())
    data[70000] ^= 1
    (play.site.root / "slot-b.img").write_bytes(bytes(data))
    play.office.assign(play.releases.v1)
    play.settle()
    assert play.office.last().image == "v1"


def a_slot_that_cannot_be_read(play: Play) -> None:
    play.updated()
    play.office.assign(play.releases.v1)
    play.until(S.CHECKING)
    play.fails("read_slot")
    play.settle()
    assert play.office.last().image == "v1"


def a_disk_that_gives_back_something_else(play: Play) -> None:
    read = play.site.hardware.read_slot
    play.patch.setattr(
        play.site.hardware, "read_slot", lambda *args: iter([b"\0", *itertools.islice(read(*args), 1, None)])
    )
    play.office.assign(play.releases.v2)
    play.settle()
    assert play.office.last().attempts == {"v2": 1}


def a_slot_that_cannot_be_opened(play: Play) -> None:
    play.fails("open_slot")
    play.office.assign(play.releases.v2)
    play.settle()
    assert play.office.last().attempts == {"v2": 1}


def a_download_that_has_gone_bad(play: Play) -> None:
    play.office.assign(play.releases.v2)
    play.until(S.WRITING)
    (packed,) = (p for p in (play.site.root / "agent/cache").rglob("*") if len(p.name) == 64 and p.is_file())
    packed.write_bytes(b"x" * packed.stat().st_size)
    play.settle()
    assert (play.office.last().image, play.office.last().attempts) == ("v2", {})


def a_reboot_that_fails(play: Play) -> None:
    play.fails("reboot")
    play.updated()
    assert play.office.last().attempts == {}


def _config(digit: str) -> SiteConfig:
    return SiteConfig("sha256:" + digit * 64, {"user-data": digit.encode(), "meta-data": b"x"})


def _configured(play: Play, digit: str = "1") -> None:
    play.office.config = _config(digit)
    play.office.assign(config=play.office.config.digest)
    play.settle()


def a_configuration(play: Play) -> None:
    _configured(play)
    assert play.office.last().config == _config("1").digest


def a_configuration_cut_off(play: Play) -> None:
    play.office.config = _config("1")
    play.office.assign(config=_config("1").digest)
    play.until(S.CONFIGURING)
    while play.site.hardware.config_digest() is None:
        play.site.step()
    play.new_process()
    play.settle()
    assert play.office.last().config == _config("1").digest


def a_configuration_that_cannot_be_fetched(play: Play) -> None:
    play.away("/v1/config")
    a_configuration(play)


def a_configuration_that_is_another(play: Play) -> None:
    play.office.config = _config("2")
    play.office.assign(config=_config("1").digest)
    play.settle()
    assert [item.code for item in play.office.last().refusals] == ["config-mismatch"]


def a_configuration_that_is_worse(play: Play) -> None:
    a_configuration(play)
    play.office.config = _config("2")
    play.office.assign(config=_config("2").digest)
    while play.site.hardware.config_digest() != _config("2").digest:
        play.office.now = max(play.office.now, play.site.step())
    play.faulty()
    play.settle(1)
    assert play.office.last().config == _config("1").digest


def _app(play: Play, content: bytes, version: str) -> AppTarget:
    app = play.office.push_app(content, version=version)
    play.office.assign(apps={"video-ingest": app})
    return app


def an_app_and_the_one_before(play: Play) -> None:
    first = play.office.push_app(b"one")
    _app(play, b"one", "2.8.0")
    play.settle()
    _app(play, b"two", "2.9.0")
    play.settle()
    play.office.assign(apps={"video-ingest": first})
    play.settle()
    assert play.office.last().apps == {"video-ingest": first.digest}


def an_app_whose_restart_is_cut_off(play: Play) -> None:
    _app(play, b"one", "2.8.0")
    play.until(S.RESTARTING)
    while not play.site.hardware.apps():
        play.site.step()
    play.new_process()
    play.settle()
    assert play.office.last().apps


def another_app_before_it_restarts(play: Play) -> None:
    _app(play, b"one", "2.8.0")
    play.until(S.RESTARTING)
    app = _app(play, b"two", "2.9.0")
    play.site.device.call_in()
    play.settle()
    assert play.office.last().apps == {"video-ingest": app.digest}


def an_app_that_does_not_start(play: Play) -> None:
    _app(play, b"one", "2.8.0")
    play.until(S.RESTARTING)
    play.fails("run_app")
    play.settle()
    assert play.office.last().attempts == {"video-ingest@2.8.0": 1}


def an_app_that_is_worse(play: Play) -> None:
    _app(play, b"one", "2.8.0")
    while not play.site.hardware.apps():
        play.office.now = max(play.office.now, play.site.step())
    play.faulty()
    play.settle(1)
    assert play.office.last().attempts == {"video-ingest@2.8.0": 1}


def a_registry_that_is_away(play: Play) -> None:
    play.away("/registry/")
    _app(play, b"one", "2.8.0")
    play.settle()
    assert play.office.last().apps


def an_app_of_other_bytes(play: Play) -> None:
    _app(play, b"one", "2.8.0")
    for path in (play.office.root / "registry" / "video-ingest" / "blobs").iterdir():
        path.write_bytes(b"x" * path.stat().st_size)
    play.settle()
    assert [item.code for item in play.office.last().refusals] == ["app-digest"]


def another_app_while_it_pulls(play: Play) -> None:
    _app(play, b"one", "2.8.0")
    play.until(S.PULLING)
    app = _app(play, b"two", "2.9.0")
    play.site.device.call_in()
    play.settle()
    assert play.office.last().apps == {"video-ingest": app.digest}


SCENES: dict[Callable[[Play], None], set[Edge]] = {
    an_update: {
        (S.BOOTING, E.CLEAN), (S.IDLE, E.NOTHING), (S.IDLE, E.FETCH), (S.FETCHING, E.MORE), (S.FETCHING, E.DONE),
        (S.IDLE, E.WRITE), (S.WRITING, E.MORE), (S.WRITING, E.DONE), (S.WRITTEN, E.DONE), (S.REBOOTING, E.MORE),
        (S.BOOTING, E.ON_TRIAL), (S.TRIAL, E.DONE),
    },
    a_trial_that_settles: {(S.TRIAL, E.MORE), (S.TRIAL, E.DONE)},
    a_switch: {(S.IDLE, E.SWITCH), (S.CHECKING, E.MORE), (S.CHECKING, E.DONE)},
    a_person_goes_back: {(S.IDLE, E.BACK), (S.CHECKING, E.DONE)},
    a_bad_release: {(S.TRIAL, E.WORSE), (S.RETURNING, E.MORE)},
    a_bad_release_whose_reboot_fails: {(S.RETURNING, E.FAILED)},
    an_agent_that_dies_on_a_bad_slot: {(S.BOOTING, E.STRAY)},
    a_release_that_does_not_boot: {(S.BOOTING, E.FELL_BACK)},
    a_power_cut_between_mark_and_end: {(S.BOOTING, E.FINISHED)},
    a_default_slot_that_cannot_be_loaded: {(S.BOOTING, E.PASSED_OVER)},
    a_power_cut_before_the_boot_is_armed: {(S.BOOTING, E.NOT_TRIED)},
    a_slot_without_a_record: {(S.BOOTING, E.UNKNOWN), (S.RECOGNISING, E.MORE), (S.RECOGNISING, E.DONE)},
    a_record_that_is_lost_while_it_runs: {(S.IDLE, E.UNKNOWN), (S.RECOGNISING, E.DONE)},
    a_slot_that_cannot_be_recognised: {(S.RECOGNISING, E.FAILED)},
    a_download_that_breaks_off: {(S.FETCHING, E.FAILED)},
    an_artifact_that_is_refused: {(S.FETCHING, E.REFUSED)},
    another_image_while_it_fetches: {(S.FETCHING, E.OBSOLETE)},
    another_image_while_it_checks: {(S.CHECKING, E.OBSOLETE)},
    another_image_while_it_writes: {(S.WRITING, E.OBSOLETE)},
    another_image_before_it_reboots: {(S.WRITTEN, E.OBSOLETE)},
    a_clock_that_is_lost_before_it_reboots: {(S.WRITTEN, E.MORE)},
    a_slot_that_has_rotted: {(S.CHECKING, E.SPOILED)},
    a_slot_that_cannot_be_read: {(S.CHECKING, E.FAILED)},
    a_disk_that_gives_back_something_else: {(S.WRITING, E.SPOILED)},
    a_slot_that_cannot_be_opened: {(S.WRITING, E.FAILED)},
    a_download_that_has_gone_bad: {(S.WRITING, E.REFUSED)},
    a_reboot_that_fails: {(S.REBOOTING, E.FAILED)},
    a_configuration: {(S.IDLE, E.CONFIGURE), (S.CONFIGURING, E.MORE), (S.CONFIGURING, E.DONE)},
    a_configuration_cut_off: {(S.BOOTING, E.CONFIG_OPEN), (S.CONFIGURING, E.DONE)},
    a_configuration_that_cannot_be_fetched: {(S.CONFIGURING, E.FAILED)},
    a_configuration_that_is_another: {(S.CONFIGURING, E.REFUSED)},
    a_configuration_that_is_worse: {(S.CONFIGURING, E.WORSE)},
    an_app_and_the_one_before: {
        (S.IDLE, E.PULL), (S.PULLING, E.MORE), (S.PULLING, E.DONE), (S.RESTARTING, E.MORE), (S.RESTARTING, E.DONE),
        (S.IDLE, E.RESTART),
    },
    an_app_whose_restart_is_cut_off: {(S.BOOTING, E.APP_OPEN), (S.RESTARTING, E.DONE)},
    another_app_before_it_restarts: {(S.RESTARTING, E.OBSOLETE)},
    an_app_that_does_not_start: {(S.RESTARTING, E.FAILED)},
    an_app_that_is_worse: {(S.RESTARTING, E.WORSE)},
    a_registry_that_is_away: {(S.PULLING, E.FAILED)},
    an_app_of_other_bytes: {(S.PULLING, E.REFUSED)},
    another_app_while_it_pulls: {(S.PULLING, E.OBSOLETE)},
}  # fmt: skip
