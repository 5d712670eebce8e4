"""A simulated device does what a device does, in virtual time: to the second, and without playing what nobody would notice."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.agent.hardware import BootFlags
from reconciler.protocol.assignment import AppTarget
from reconciler.protocol.exchange import SiteConfig
from reconciler.simulate.hardware import Condition
from reconciler.simulate.network import Noise
from reconciler.simulate.timings import CHECK_S, CONFIGURE_S, PULL_S, RESTART_S, download_s, window_share
from tests.simulate.machines import EVERY_S, SITE, START, World, app, desired, digest, image, world

TOLD = START + timedelta(seconds=100)
CALLED = TOLD + timedelta(seconds=1)
NAME = "SITE-1-1"
FETCH_S = download_s(desired(), SITE, None)
WRITE_S, BOOT_S = 660, 240


def after(seconds: float, at: datetime = CALLED) -> datetime:
    return at + timedelta(seconds=seconds)


def arrivals(one: World, release: str, device: str = NAME) -> list[datetime]:
    """When reports first showed a release marked good, each time anew."""
    found, was = [], False
    for at, name, report in one.desk.reports:
        if name == device:
            held = report.slots[report.booted]
            now = held.release == release and held.good and report.phase == "idle"
            found += [at] if now and not was else []
            was = now
    return found


def phases(one: World) -> list[str]:
    words = [report.phase for _, _, report in one.desk.reports]
    return [word for word, before in zip(words, [None, *words], strict=False) if word != before]


# ------------------------------------------------------------ durations


def test_a_flash_arrives_to_the_second() -> None:
    one = world()
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=3))
    assert arrivals(one, "v2") == [after(FETCH_S + WRITE_S + BOOT_S)]
    assert phases(one) == ["idle", "prefetching", "idle", "writing", "rebooting", "trial", "idle"]
    report = one.desk.last()
    assert (report.image, report.previous, report.health, report.attempts) == ("v2", "v1", "ok", {})
    assert one.device().hardware.booted_digest() == digest("v2")
    assert one.seen.of("began", "armed", "ended") == [
        ("began", NAME, "v2", after(FETCH_S), True),
        ("armed", NAME, "v2", after(FETCH_S + WRITE_S), True),
        ("ended", NAME, "v2", after(FETCH_S + WRITE_S + BOOT_S), "good"),
    ]
    assert len(one.desk.reports) <= 10


def test_a_prefetched_flash_begins_at_its_place_in_the_window() -> None:
    one = world()
    opens = START + timedelta(hours=5)
    window = ((opens, opens + timedelta(hours=2)),)
    one.tell(TOLD, image=image("v2"), window=())
    one.play(START + timedelta(hours=1))
    assert one.device().supply.has_image(image("v2"))
    assert not one.seen.of("began")
    one.tell(START + timedelta(hours=2), image=image("v2"), window=window)
    one.play(opens + timedelta(hours=1))
    begin = opens + timedelta(seconds=round(300 * window_share(NAME)))
    assert one.seen.of("began") == [("began", NAME, "v2", begin, False)]
    assert arrivals(one, "v2") == [begin + timedelta(seconds=WRITE_S + BOOT_S)]


def test_going_back_to_the_other_slot_hashes_and_boots_it() -> None:
    one = world()
    one.tell(TOLD, image=image("v0"), window_waived=True)
    one.play(START + timedelta(hours=1))
    assert arrivals(one, "v0") == [after(CHECK_S + BOOT_S)]
    assert [event[0] for event in one.seen.of("began", "armed", "ended")] == ["armed", "ended"]


def test_a_rotten_slot_is_not_booted_but_written_anew() -> None:
    one = world()
    one.device().hardware.spoil("a")
    one.tell(TOLD, image=image("v0"), window_waived=True)
    one.play(START + timedelta(hours=1))
    assert arrivals(one, "v0") == [after(CHECK_S + FETCH_S + WRITE_S + BOOT_S)]


def test_an_app_runs_after_its_pull_and_restart_and_needs_no_pull_to_go_back() -> None:
    one = world()
    one.tell(TOLD, apps={"video-ingest": app("2.0")})
    one.play(after(600))
    ran = [(event[3], event[4]) for event in one.seen.of("app")]
    assert ran == [(digest("2.0"), after(PULL_S + RESTART_S))]
    first = next(at for at, _, report in one.desk.reports if report.apps["video-ingest"] == digest("2.0"))
    assert first == after(PULL_S + RESTART_S)
    again = after(700)
    one.tell(again, apps={"video-ingest": app("1.0")})
    one.play(after(1200))
    assert one.seen.of("app")[-1][3:] == (digest("1.0"), again + timedelta(seconds=1 + RESTART_S))
    assert one.desk.last().phase == "idle"


def test_a_configuration_is_in_force_after_its_time() -> None:
    one = world()
    config = SiteConfig(digest("c"), {"user-data": b"x", "meta-data": b"y"})
    one.desk.configs[NAME] = config
    one.tell(TOLD, config=config.digest)
    one.play(after(300))
    assert one.seen.of("configured") == [("configured", NAME, config.digest, after(CONFIGURE_S))]
    first = next(at for at, _, report in one.desk.reports if report.config == config.digest)
    assert first == after(CONFIGURE_S)


# ------------------------------------------------------------ what goes wrong


def test_a_release_that_is_worse_is_left_again_and_the_attempt_counted() -> None:
    one = world()
    bad = Condition("camera", "critical", "no picture", image=digest("v2"))
    one.machines.impose([NAME], (bad,), START)
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=2))
    report = one.desk.last()
    assert (report.image, report.attempts, report.health) == ("v1", {"v2": 1}, "ok")
    assert one.device().hardware.flags() == BootFlags("b")
    assert [event[4] for event in one.seen.of("ended")] == ["fell-back"]
    assert [item[3] for item in one.seen.of("health")] == [True, False]


@pytest.mark.parametrize("fate", ["boot", "health", "disk"])
def test_an_attempt_that_fails_by_fate_is_counted_once(fate: str) -> None:
    one = world()
    fates = iter([fate])
    one.depot.fate = lambda device, release: next(fates, None)
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=2))
    assert (one.desk.last().image, one.desk.last().attempts) == ("v1", {"v2": 1})
    assert one.device().hardware.is_default_sound()
    ended = [event[4] for event in one.seen.of("ended")]
    assert ended == ["failed" if fate == "disk" else "fell-back"]
    one.tell(START + timedelta(hours=3), image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=5))
    assert (one.desk.last().image, one.desk.last().attempts) == ("v2", {"v2": 1})


def test_bytes_that_are_not_the_release_are_refused_and_nothing_is_written() -> None:
    one = world()
    one.depot.gives[digest("v2")] = digest("evil")
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=2))
    assert one.seen.of("began") == []
    assert "artifact-digest" in [refusal.code for refusal in one.desk.last().refusals]
    one.depot.gives[digest("v2")] = None
    one.play(START + timedelta(hours=3))
    assert "not-fetched" in [refusal.code for refusal in one.desk.last().refusals]
    del one.depot.gives[digest("v2")]
    one.play(START + timedelta(hours=4))
    assert one.desk.last().image == "v2"


def test_a_release_that_turns_bad_after_hours_is_reported_with_the_next_report() -> None:
    one = world()
    one.machines.impose([NAME], (Condition("gpu", image=digest("v2"), after_s=30 * 3600),), START)
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=40))
    ((_, _, turned, critical),) = one.seen.of("health")
    booted = one.device().hardware.image_since
    assert booted is not None
    assert (turned, critical) == (booted + timedelta(hours=30), True)
    first = next(at for at, _, report in one.desk.reports if report.health == "critical")
    assert turned <= first < turned + timedelta(seconds=EVERY_S)
    arrived = arrivals(one, "v2")[0]
    assert (first - arrived).total_seconds() % EVERY_S == 0
    assert len(one.desk.reports) < 14


class PowerCut(BaseException):
    """Nothing in the agent may catch it."""


def _cut_at(one: World, cut: int | None) -> list[str]:
    """Cut the power before the n-th durable step from now on; the names of all steps."""
    steps: list[str] = []

    def on_step(name: str) -> None:
        steps.append(name)
        if cut is not None and len(steps) == cut + 1:
            raise PowerCut

    one.device().hardware.on_step = on_step
    return steps


def _play_through(one: World, until: datetime) -> None:
    for _ in range(3):
        try:
            one.play(until)
            return
        except PowerCut:
            assert one.device().hardware.is_default_sound()
            one.machines.cut_power(NAME, one.clock.at)
            assert one.device().hardware.is_default_sound()
    raise AssertionError("cut more than once")


@pytest.mark.parametrize("release", ["v2", "v0", "v3"])
def test_power_cut_at_every_step_leaves_a_good_slot_to_boot(release: str) -> None:
    def prepared() -> World:
        one = world()
        one.machines.impose([NAME], (Condition("camera", image=digest("v3")),), START)
        one.tell(TOLD, image=image(release), window_waived=True)
        return one

    end = START + timedelta(hours=4)
    one = prepared()
    steps = _cut_at(one, None)
    one.play(end)
    assert len(steps) > 8
    for cut in range(len(steps)):
        one = prepared()
        _cut_at(one, cut)
        _play_through(one, end)
        where = f"cut before step {cut}, {steps[cut]}"
        report, hardware = one.desk.last(), one.device().hardware
        fell_back = bool(report.attempts)
        assert report.image == ("v1" if fell_back else release), where
        assert report.attempts in ({}, {release: 1}), where
        assert hardware.is_default_sound(), where
        assert hardware.booted() == hardware.flags().default, where
        assert hardware.booted_digest() == digest(report.image or ""), where
        assert hardware.memory.intent is None, where
        outcomes = [event[4] for event in one.seen.of("ended")]
        assert outcomes[-1] == ("fell-back" if fell_back else "good"), where


@pytest.mark.parametrize("at_s", range(0, FETCH_S + WRITE_S + BOOT_S + 30, 37))
def test_power_cut_at_any_instant_ends_on_the_release_or_on_the_old_one(at_s: int) -> None:
    one = world()
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(after(at_s))
    one.machines.cut_power(NAME, after(at_s), off_s=300)
    assert one.device().hardware.is_default_sound()
    one.play(START + timedelta(hours=4))
    report = one.desk.last()
    assert (report.image, report.attempts) in (("v2", {}), ("v1", {"v2": 1}))
    # While the kernel of the trial boots, the try is spent already.
    assert bool(report.attempts) is (FETCH_S + WRITE_S <= at_s < FETCH_S + WRITE_S + BOOT_S)


def test_a_bare_machine_takes_its_first_image() -> None:
    one = world(bare=True)
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=1))
    assert (one.desk.last().image, one.desk.last().previous) == ("v2", None)


def test_a_word_that_calls_off_ends_a_write_and_leaves_the_running_slot() -> None:
    one = world()
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.tell(after(FETCH_S + 100), window_waived=True)
    one.play(START + timedelta(hours=2))
    assert [event[4] for event in one.seen.of("ended")] == ["dropped"]
    assert one.desk.last().image == "v1"
    assert one.desk.last().phase == "idle"


# ------------------------------------------------------------ parking


def test_a_quiet_device_costs_nothing_and_a_word_that_does_not_act_is_heard_with_its_next_report() -> None:
    one = world()
    one.play(START + timedelta(days=40))
    assert len(one.desk.reports) == 1
    assert one.machines.next_at() is None
    assert one.seen.of("parked") == [("parked", NAME, START, EVERY_S)]
    at = one.clock.at + timedelta(seconds=60)
    one.play(at)
    one.desk.assign(NAME, at, image=image("v2"), window=())
    one.machines.hear([NAME], at)
    one.play(at + timedelta(seconds=EVERY_S))
    assert one.seen.of("accepted") == [("accepted", NAME, (1, 1), at + timedelta(seconds=EVERY_S))]
    assert ("woken", NAME, at) in one.seen.events


def test_a_device_that_settled_before_the_run_is_woken_as_if_it_had_reported_all_along() -> None:
    one = world(begin=False)
    one.device().settle(START - timedelta(seconds=17), EVERY_S)
    assert one.machines.next_at() is None
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(START + timedelta(hours=1))
    assert one.seen.of("woken")[0] == ("woken", NAME, START + timedelta(seconds=60 - 17))
    assert one.desk.reports[0][0] == CALLED
    assert arrivals(one, "v2") == [after(FETCH_S + WRITE_S + BOOT_S)]


def test_a_line_that_is_down_costs_no_step_and_the_device_returns_when_its_own_back_off_says() -> None:
    def returned(*, parking: bool, cut: int, back: int) -> list[datetime]:
        one = world(parking=parking)
        one.play(after(cut))
        one.machines.cut([NAME], after(cut))
        if parking:
            assert one.machines.next_at() is None
        one.play(after(back))
        one.machines.restore([NAME], after(back))
        before = len(one.desk.reports)
        one.play(after(back + 1300))
        return [at for at, _, _ in one.desk.reports[before:]]

    for cut, back in ((500, 510), (500, 2000), (519, 90_000), (559, 560), (560, 620), (500, 7333)):
        parked, stepped = returned(parking=True, cut=cut, back=back), returned(parking=False, cut=cut, back=back)
        assert parked[:1] == stepped[:1], (cut, back)


def test_a_download_that_is_cut_off_goes_on_where_it_was() -> None:
    one = world()
    one.tell(TOLD, image=image("v2"), window_waived=True)
    one.play(after(100))
    one.machines.cut([NAME], after(100))
    one.play(after(120))
    assert one.device().agent is not None
    one.machines.restore([NAME], after(120))
    one.play(START + timedelta(hours=3))
    (began,) = one.seen.of("began")
    # 30 seconds of waiting after the failure, and then what was missing.
    assert began[3] == after(100 + 30 + FETCH_S - 100)


def test_nobody_answers_for_a_night_and_every_device_comes_back_by_itself() -> None:
    one = world(5)
    one.play(after(1000))
    one.machines.leave(after(1000))
    assert one.machines.next_at() is None
    assert len(one.seen.of("woken")) == 5
    one.play(after(30_000))
    before = len(one.desk.reports)
    one.machines.come_back(after(30_000))
    one.play(after(30_600))
    assert len(one.desk.reports) == before + 5
    assert all(after(30_000) <= at <= after(30_600) for at, _, _ in one.desk.reports[before:])


def _story(parking: bool, draws: list[tuple[int, str, int]]) -> World:
    """The same words and faults at the same instants, with parking and without."""
    one = world(2, parking=parking)
    one.machines.impose(one.machines.devices, (Condition("gpu", image=digest("v3"), after_s=900),), START)
    at = START
    for gap_s, what, number in draws:
        at += timedelta(seconds=gap_s)
        name = f"{SITE}-{1 + number % 2}"
        one.play(at)
        if what == "flash":
            one.tell(at, name, image=image(("v2", "v0", "v3", "v1")[number % 4]), window_waived=True)
        elif what == "window":
            opens = at + timedelta(seconds=700 * number)
            one.tell(at, name, image=image("v2"), window=((opens, opens + timedelta(hours=1)),))
        elif what == "prefetch":
            one.desk.assign(name, at, image=image("v2"), window=())
            one.machines.hear([name], at)
        elif what == "app":
            targets: dict[str, AppTarget] = {"video-ingest": app(("1.0", "2.0")[number % 2])}
            one.tell(at, name, apps=targets)
        elif what == "cut":
            one.machines.cut([name], at)
        elif what == "restore":
            one.machines.restore([name], at)
        elif what == "power":
            one.machines.cut_power(name, at, number * 10)
        elif what == "leave":
            one.machines.leave(at)
        elif what == "come back":
            one.machines.come_back(at)
    one.play(at + timedelta(seconds=10))
    one.machines.restore(one.machines.devices, one.clock.at)
    one.machines.come_back(one.clock.at)
    one.play(at + timedelta(hours=2))
    return one


_KINDS = ("flash", "window", "prefetch", "app", "cut", "restore", "power", "leave", "come back")


_DRAWS = st.lists(st.tuples(st.integers(1, 4000), st.sampled_from(_KINDS), st.integers(0, 7)), min_size=1, max_size=8)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(_DRAWS)
def test_parking_changes_nothing_but_the_number_of_reports(draws: list[tuple[int, str, int]]) -> None:
    _hold_equal(draws)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(_DRAWS)
def test_parking_changes_nothing_in_many_stories(draws: list[tuple[int, str, int]]) -> None:
    _hold_equal(draws)


def _hold_equal(draws: list[tuple[int, str, int]]) -> None:
    parked, stepped = _story(True, draws), _story(False, draws)

    def told(one: World) -> list[tuple[Any, ...]]:
        """Reports that said something else than the one before, with their instants."""
        found: list[tuple[Any, ...]] = []
        last: dict[str, tuple[Any, ...]] = {}
        for at, name, report in one.desk.reports:
            says = (
                report.boot_id,
                report.serial,
                report.slots,
                report.phase,
                report.health,
                report.apps,
                report.attempts,
            )
            if last.get(name) != says:
                found.append((at, name, says))
            last[name] = says
        return found

    true = ("began", "armed", "ended", "app", "configured", "accepted", "health")
    assert sorted(parked.seen.of(*true), key=str) == sorted(stepped.seen.of(*true), key=str)
    assert sorted(told(parked), key=str) == sorted(told(stepped), key=str)
    assert len(parked.desk.reports) <= len(stepped.desk.reports)


def test_the_same_seed_gives_the_same_bytes() -> None:
    def run() -> tuple[Any, ...]:
        one = world(4)
        for number, device in enumerate(one.machines.devices.values()):
            device.link.disturb(Noise(0.2, 0.2, 0.2, 0.2), random.Random(number))
        for name in one.machines.devices:
            one.tell(one.clock.at, name, image=image("v2"), window_waived=True)
        one.play(START + timedelta(hours=6))
        return [(at, report.to_bytes()) for at, _, report in one.desk.reports], one.seen.events

    assert run() == run()
