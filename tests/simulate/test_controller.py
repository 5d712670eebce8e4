"""The real loop in virtual time: what it tells and when, over kills, outages, refused commits and failing devices.

Devices are played by formula here, just well enough to answer; the machines have tests of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reconciler.agent.transport import TransportError
from reconciler.model.observed import Artifact, ArtifactState, DeviceObservation, Snapshot
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.report import Report, Slot
from reconciler.repo.load import load_tree
from reconciler.simulate import timings
from reconciler.simulate.controller import SimController, on_grid
from reconciler.simulate.memory_git import MemoryGit
from reconciler.simulate.memory_ports import VirtualClock, image_digest
from reconciler.simulate.signing import SimulatedSigner
from reconciler.simulate.start import settled, start_of
from reconciler.simulate.trace import Event, Kind, Trace, calendar_of
from tests.controller.harness import document

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

T0 = datetime(2026, 1, 15, 12, 0, 3, tzinfo=UTC)
MERGE = timedelta(hours=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SITES = ("SITE-1", "SITE-2", "SITE-3")
APP = {"2.7.0": "sha256:" + "7" * 64, "2.8.0": "sha256:" + "8" * 64}
UPDATE_S = 900


def waves(image: str = "v1.4.1", app: str = "2.7.0", **more: Any) -> bytes:
    listed: list[dict[str, Any]] = [
        {"name": "canary", "sites": ["SITE-1"], "soak": "2h"},
        {"name": "all", "percent": 100, "soak": "1h"},
    ]
    return document(
        "Waves", "waves", waves=[w | {"image": image, "apps": {"video": app}} | more for w in listed]
    ).encode()


def tree() -> dict[str, bytes | None]:
    files = {
        "fleet.yaml": document("Fleet", "test", window={"start": "02:00", "end": "04:00"}),
        "apps/video.yaml": document("App", "video", repository="edge/video", releases=APP),
        **{
            f"images/{release}.yaml": document("Image", release, recipe="r/")
            for release in ("v1.4.0", "v1.4.1", "v1.4.2")
        },
        **{f"sites/{site}.yaml": document("Site", site, timezone="UTC", devices=[f"{site}-1"]) for site in SITES},
    }
    return {path: text.encode() for path, text in files.items()} | {"waves.yaml": waves()}


class Play:
    """A controller, and devices by formula: parked, rung a second after the tick, arrived UPDATE_S later."""

    def __init__(self, observed: Snapshot | None = None, *, seed: int = 0) -> None:
        self.clock = VirtualClock(T0)
        self.git = MemoryGit(self.clock.now, documents_only=True)
        first = self.git.push(tree(), T0 - DAY)
        loaded = load_tree(self.git.files(first), self.git.blob)
        assert loaded.desired is not None
        self.observed = start_of(observed or settled(loaded.desired, T0), T0, loaded.desired).observed
        self.events: list[Event] = []
        self.rung: list[tuple[datetime, str]] = []
        self.waiting: list[tuple[datetime, str]] = []
        self.ticks: list[datetime] = []
        self.sequence = 0
        self.bad: set[str] = set()
        self.frozen: set[str] = set()
        self.runs = {
            d.name: (d.image, {app: running.digest for app, running in d.apps.items()}) for d in self.observed.devices
        }
        self.controller = SimController(
            self.clock, self.git, self.observed, self.events.append, self._told, SimulatedSigner(), seed=seed
        )
        for device in self.observed.devices:
            self.controller.parked(device.name)

    def _told(self, rung: Sequence[str], quiet: Sequence[str]) -> None:
        self.waiting += [(self.clock.at, device) for device in quiet]
        for device in rung:
            self.rung.append((self.clock.at, device))

    def told(self, device: str) -> Assignment:
        row = self.controller.store.assignment(device)
        assert row is not None
        return Assignment.from_bytes(row.document)

    def report(self, device: str, at: datetime, **changes: Any) -> None:
        """A device wakes, reports and is parked again."""
        self.sequence += 1
        image, apps = self.runs[device]
        seen = self.controller.store.observation(device)
        row = self.controller.store.assignment(device)
        said = Report(
            device=device,
            site=device.rpartition("-")[0],
            boot_id=f"start {device}",
            sequence=self.sequence,
            slots={
                "a": Slot(image, image_digest(image or ""), True),
                "b": Slot("v1.4.0", image_digest("v1.4.0"), True),
            },
            image=image,
            previous="v1.4.0",
            health="ok",
            apps=apps,
            config=None if seen is None else seen[0].config,
            serial=None if row is None else (row.epoch, row.n),
        )
        fields = {name: getattr(said, name) for name in Report.__dataclass_fields__} | changes
        self.clock.at = at
        self.controller.unparked(device, at - timedelta(seconds=60))
        self.controller.exchange(device, Report(**fields).to_bytes(), at)
        self.controller.parked(device)

    def run(self, until: datetime) -> None:
        """Tick until then; whoever is rung arrives, but those that are bad report that they fell back."""
        arrivals: list[tuple[datetime, str]] = []
        while True:
            fresh, self.rung = self.rung, []
            for at, device in fresh:
                if device not in self.frozen:
                    arrivals.append((at + timedelta(seconds=timings.RING_S + UPDATE_S), device))
            arrivals.sort()
            tick = self.controller.next_at()
            if arrivals and (tick is None or arrivals[0][0] <= tick) and arrivals[0][0] <= until:
                at, device = arrivals.pop(0)
                self._arrive(device, at)
                continue
            if tick is None or tick > until:
                return
            self.ticks.append(tick)
            self.controller.tick(tick)

    def _arrive(self, device: str, at: datetime) -> None:
        word = self.told(device)
        image, apps = self.runs[device]
        if word.image is not None and device in self.bad:
            seen = self.controller.store.observation(device)
            assert seen is not None
            count = seen[0].reported_attempts.get(word.image.release, (0, 0))[0] + 1
            self.report(device, at, attempts={word.image.release: count})
            return
        if word.image is not None:
            image = word.image.release
        self.runs[device] = (image, apps | {name: target.digest for name, target in word.apps.items()})
        self.report(device, at)

    def of(self, *kinds: Kind) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]

    def merge(self, after: timedelta = MERGE, **changes: Any) -> str:
        return self.git.push({"waves.yaml": waves(**changes)}, T0 + after, "Promote")


def at(day: int, hour: int, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 1, day, hour, minute, second, tzinfo=UTC)


def test_a_promotion_runs_through_its_waves_at_the_instants_of_the_timing_model() -> None:
    play = Play()
    sha = play.merge(image="v1.4.2")
    play.run(T0 + 5 * DAY)
    short = [(e.at, e.kind, e.wave, e.device, e.key) for e in play.events if e.kind is not Kind.TAKEN]
    merged = at(15, 13, 0, 10)
    built = merged + timedelta(seconds=timings.BUILD_S)
    signed = built + timedelta(seconds=timings.SIGN_S)
    arrived = at(16, 2, 0, 1) + timedelta(seconds=UPDATE_S)
    # The first tick that sees the canary arrived, two hours and the few seconds until then.
    proven = on_grid(arrived + 2 * HOUR)
    assert short[:8] == [
        (merged, Kind.MERGED, None, None, None),
        (built, Kind.BUILT, None, None, "v1.4.2"),
        (signed, Kind.SIGNED, None, None, "v1.4.2"),
        (signed + timedelta(seconds=timings.PUBLISH_S), Kind.PUBLISHED, None, None, "v1.4.2"),
        (at(16, 2), Kind.TOLD, "canary", "SITE-1-1", "v1.4.2"),
        (arrived, Kind.LEFT, "canary", "SITE-1-1", "v1.4.1"),
        (arrived, Kind.ARRIVED, "canary", "SITE-1-1", "v1.4.2"),
        (proven, Kind.PROVEN, "canary", None, "v1.4.2"),
    ]
    assert play.events[0].detail == sha
    assert {(e.wave, e.site) for e in play.of(Kind.TAKEN)} >= {
        ("canary", "SITE-1"),
        ("all", "SITE-2"),
        ("all", "SITE-3"),
    }
    calendar = {(e.wave, e.key): e for e in calendar_of(Trace(T0, T0 + 5 * DAY, play.events, play.controller.asked()))}
    rest = calendar["all", "v1.4.2"]
    assert (rest.first_told_at, rest.devices, rest.arrived) == (at(17, 2), 2, 2)
    assert play.controller.held() == {}
    assert play.controller.asked()[0] == ("canary", "v1.4.2", 1)


def test_ticks_lie_on_the_grid_and_quiet_devices_are_not_silent() -> None:
    play = Play()
    play.merge(image="v1.4.2")
    play.run(T0 + 3 * DAY)
    assert all(tick == on_grid(tick) for tick in play.ticks)
    assert play.ticks == sorted(set(play.ticks))
    assert play.of(Kind.SILENT, Kind.HEARD, Kind.TIMED_OUT) == []


def test_the_same_seed_is_the_same_run() -> None:
    runs = []
    for _ in range(2):
        play = Play(seed=5)
        play.merge(image="v1.4.2", app="2.8.0")
        play.run(T0 + 2 * DAY)
        runs.append((play.events, play.ticks))
    assert runs[0] == runs[1]


def test_devices_that_wait_for_their_window_alone_are_told_to_fetch_and_not_rung() -> None:
    play = Play()
    play.merge(image="v1.4.2")
    play.run(at(15, 14))
    published = play.of(Kind.PUBLISHED)[0].at
    assert play.waiting == [(published, "SITE-1-1")] and play.rung == []
    assert play.told("SITE-1-1").window == () and not play.told("SITE-1-1").window_waived


def test_an_app_is_retagged_at_once_and_its_devices_restart() -> None:
    play = Play()
    play.merge(app="2.8.0")
    play.run(T0 + 2 * HOUR)
    merged = at(15, 13, 0, 10)
    assert [(e.at, e.wave, e.key, e.detail) for e in play.of(Kind.RETAGGED)] == [
        (merged, "canary", "video@2.8.0", "canary")
    ]
    (told,) = play.of(Kind.TOLD)
    assert (told.at, told.wave, told.device, told.key, told.detail) == (
        merged, "canary", "SITE-1-1", "video@2.8.0", "restart",
    )  # fmt: skip
    moved = [(e.kind, e.key) for e in play.of(Kind.LEFT, Kind.ARRIVED)]
    assert moved == [(Kind.LEFT, "video@2.7.0"), (Kind.ARRIVED, "video@2.8.0")]
    assert play.controller.registry.tags("edge/video")["canary"] == APP["2.8.0"]


def test_a_release_that_fails_its_devices_is_stopped_and_its_revert_proposed_once() -> None:
    play = Play()
    sha = play.merge(image="v1.4.2")
    play.bad = {"SITE-1-1"}
    play.run(T0 + 4 * DAY)
    assert len(play.of(Kind.ATTEMPT_FAILED)) == 3
    (stopped,) = play.of(Kind.STOPPED)
    (proposed,) = play.of(Kind.PROPOSED)
    assert (stopped.wave, stopped.key, proposed.key) == ("canary", "v1.4.2", "v1.4.2")
    assert {e.device for e in play.of(Kind.TOLD)} == {"SITE-1-1"}
    (branch,) = play.git.branches
    assert branch.startswith("revert/v1.4.2-") and sha[:12] in branch
    assert play.controller.held()["all", "v1.4.2"][0].reason == "gate-failed"
    play.git.move(play.git.branches[branch], play.clock.at + HOUR)
    play.run(T0 + 5 * DAY)
    assert len(play.of(Kind.MERGED)) == 2
    assert play.controller.desired.waves.waves[0].image == "v1.4.1"


def test_a_kill_loses_what_was_under_way_and_a_restart_takes_it_up_again() -> None:
    play = Play()
    play.merge(image="v1.4.2")
    play.run(at(15, 13, 10))
    (intent,) = play.controller.store.open_intents()
    play.controller.stop(at(15, 13, 10))
    assert (play.controller.next_at(), play.controller.plan, play.controller.up) == (None, None, False)
    with pytest.raises(TransportError):
        play.controller.exchange("SITE-1-1", b"{}", at(15, 13, 11))
    play.controller.tick(at(15, 13, 30))
    assert play.of(Kind.BUILT) == []
    epoch = play.controller.store.book.words["epoch"]
    play.controller.start(at(15, 14, 0, 4))
    assert play.controller.next_at() == at(15, 14, 0, 10)
    assert play.controller.store.book.words["epoch"] > epoch
    play.run(at(15, 14, 5))
    assert [open_one.id for open_one in play.controller.store.open_intents()] == [intent.id]
    play.run(T0 + 5 * DAY)
    assert [e.at for e in play.of(Kind.BUILT)] == [at(15, 14, 0, 10) + timedelta(seconds=timings.BUILD_S)]
    assert [e.device for e in play.of(Kind.TOLD)].count("SITE-1-1") == 1
    assert {e.device for e in play.of(Kind.ARRIVED)} == {f"{site}-1" for site in SITES}
    assert len(play.of(Kind.MERGED)) == 1


def test_a_merge_while_it_is_down_is_found_when_it_is_back() -> None:
    play = Play()
    sha = play.merge(image="v1.4.2")
    play.run(at(15, 12, 30))
    play.controller.stop(at(15, 12, 30))
    play.run(at(15, 20))
    play.controller.start(at(15, 20))
    play.run(at(15, 20, 1))
    assert [(e.at, e.detail) for e in play.of(Kind.MERGED)] == [(at(15, 20), sha)]


def test_a_remote_that_is_down_is_asked_again() -> None:
    play = Play()
    play.merge(image="v1.4.2")
    play.git.reach.cut(T0, at(15, 15))
    play.run(at(15, 16))
    (merged,) = play.of(Kind.MERGED)
    assert at(15, 15) <= merged.at <= at(15, 15, 25)


def test_heads_that_are_not_taken_are_told_once_and_change_nothing() -> None:
    play = Play()
    first = play.git.head
    play.git.push({"waves.yaml": b"kind: Waves\n"}, T0 + HOUR)
    play.run(at(15, 13, 30))
    (refused,) = play.of(Kind.REFUSED)
    assert refused.detail.startswith("Invalid: ") and "waves.yaml" in refused.detail
    assert play.controller.desired.commit == first
    play.controller.stop(at(15, 13, 30))
    play.controller.start(at(15, 13, 40))
    play.run(at(15, 13, 50))
    assert len(play.of(Kind.REFUSED)) == 1


def test_a_rewrite_is_refused() -> None:
    play = Play()
    play.merge(image="v1.4.2")
    play.git.push({"waves.yaml": waves("v1.4.0")}, T0 + 2 * HOUR, onto=play.git.head)
    play.run(at(15, 15))
    assert [e.detail.partition(":")[0] for e in play.of(Kind.REFUSED)] == ["Rewritten"]
    wave = play.controller.desired.waves.waves[0]
    assert wave.image == "v1.4.2"


def test_silence_and_illness_are_told_as_the_controller_learns_of_them() -> None:
    play = Play()
    play.run(at(15, 12, 10))
    play.clock.at = at(15, 12, 20)
    play.controller.unparked("SITE-2-1", at(15, 12, 19, 30), announce=True)
    play.run(at(15, 12, 34, 30))
    assert play.of(Kind.SILENT) == []
    play.run(at(15, 12, 40))
    (silent,) = play.of(Kind.SILENT)
    assert (silent.at, silent.wave, silent.site, silent.device) == (at(15, 12, 34, 40), "all", "SITE-2", "SITE-2-1")
    play.controller.unparked("SITE-2-1", at(15, 12, 19, 30))
    play.report("SITE-2-1", at(15, 12, 45), health="critical", checks=())
    play.run(at(15, 12, 46))
    play.report("SITE-2-1", at(15, 12, 50))
    told = [(e.at, e.kind, e.device, e.key) for e in play.of(Kind.HEARD, Kind.CRITICAL, Kind.WELL)]
    assert told == [
        (at(15, 12, 45), Kind.HEARD, "SITE-2-1", None),
        (at(15, 12, 45), Kind.CRITICAL, "SITE-2-1", "v1.4.1"),
        (at(15, 12, 50), Kind.WELL, "SITE-2-1", "v1.4.1"),
    ]


def test_a_device_in_the_middle_of_an_update_goes_on_with_the_word_it_has() -> None:
    play = Play()
    devices = []
    for device in play.observed.devices:
        if device.name == "SITE-1-1":
            marks: dict[str, Any] = {"updating_to": "v1.4.2", "updating_since": T0 - HOUR, "serial": (9, 70)}
            device = device.model_copy(update=marks)
        devices.append(device)
    published = {"v1.4.2": Artifact(state=ArtifactState.PUBLISHED, size=1000)}
    artifacts = {**play.observed.artifacts, **published}
    again = Play(play.observed.model_copy(update={"devices": tuple(devices), "artifacts": artifacts}))
    row = again.controller.standing["SITE-1-1"]
    word = Assignment.from_bytes(row.document)
    assert word.image is not None and (word.image.release, word.image.digest) == ("v1.4.2", image_digest("v1.4.2"))
    assert word.window_waived and word.serial > (9, 70) and set(again.controller.standing) == {"SITE-1-1"}
    again.git.push({"waves.yaml": waves("v1.4.2")}, T0 + timedelta(seconds=1))
    again.frozen = {"SITE-1-1"}
    again.run(T0 + timedelta(minutes=5))
    assert again.told("SITE-1-1") == word and again.waiting == [] and again.of(Kind.TOLD) == []
    again.runs["SITE-1-1"] = ("v1.4.2", again.runs["SITE-1-1"][1])
    again.report("SITE-1-1", T0 + timedelta(minutes=6))
    again.run(T0 + timedelta(minutes=7))
    assert [(e.kind, e.key) for e in again.of(Kind.ARRIVED)] == [(Kind.ARRIVED, "v1.4.2")]
    found = again.controller.store.observation("SITE-1-1")
    assert found is not None and found[0].updating_to is None


def test_a_tag_that_somebody_moved_is_put_back_after_a_look() -> None:
    play = Play()
    play.run(at(15, 12, 30))
    play.controller.registry.push("edge/video", APP["2.8.0"], "canary")
    play.run(at(15, 12, 40))
    assert play.of(Kind.RETAGGED) == []
    play.clock.at = at(15, 12, 45)
    play.controller.look()
    play.run(at(15, 12, 50))
    assert [(e.at, e.key, e.detail) for e in play.of(Kind.RETAGGED)] == [(at(15, 12, 45), "video@2.7.0", "canary")]


def test_what_failed_for_now_is_tried_again_and_its_effect_seen_by_the_same_tick() -> None:
    play = Play()
    play.merge(app="2.8.0")
    play.controller.registry.reach.cut(at(15, 13, 0, 5), at(15, 13, 20))
    play.run(at(15, 13, 19, 50))
    (tried,) = play.controller.store.open_intents()
    assert tried.attempts > 1 and tried.last_error is not None and tried.not_before is not None
    play.run(at(15, 14))
    (moved,) = play.of(Kind.RETAGGED)
    assert moved.at == on_grid(max(tried.not_before, at(15, 13, 20))) == play.of(Kind.TOLD)[0].at


def test_documents_that_do_not_load_are_refused_at_the_beginning() -> None:
    clock = VirtualClock(T0)
    git = MemoryGit(clock.now)
    git.push({"waves.yaml": b"kind: Waves\n"}, T0)
    with pytest.raises(ValueError, match=r"waves\.yaml"):
        SimController(clock, git, Snapshot(), lambda _: None, lambda *_: None, SimulatedSigner())


def test_an_unknown_device_of_a_snapshot_is_kept_and_left_alone() -> None:
    play = Play()
    stray = DeviceObservation(name="SITE-9-1", image="v1.4.1", last_seen=T0)
    again = Play(play.observed.model_copy(update={"devices": (*play.observed.devices, stray)}))
    again.run(T0 + HOUR)
    assert again.controller.store.observation("SITE-9-1") is not None
    assert again.of(Kind.TOLD) == []
