"""The real controller in virtual time: its loop, source, gatherer, executor, assigner and recorder on ports that are in memory.

Nothing of the loop is imitated: what is replaced is what lies around it, and the plan's JSON is not printed each tick. A tick costs
what changed. It can be killed and started again over the same store. Called by whoever drives a run (`simulate.run`), which moves
time, plays the devices before each tick, and rings them after it. Source: design §6; the timing model of `timings`.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.controller.assign import Artifacts, Assigner
from reconciler.controller.conditions import Conditions, Finding
from reconciler.controller.execute import Executor, Hands
from reconciler.controller.gather import Gatherer, Polls
from reconciler.controller.loop import SPIN, Loop, Parts
from reconciler.controller.pace import Backoff, Poll
from reconciler.controller.record import Recorder
from reconciler.controller.settings import LoopSettings, Settings
from reconciler.controller.source import Source
from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.model.plan import Action, Facts, Plan
from reconciler.planner.live import Live
from reconciler.planner.windows import NEVER, instant
from reconciler.ports import AssignmentRow, AssignmentSigner, Decision, Intent
from reconciler.protocol.exchange import SiteConfig
from reconciler.repo.load import LoadResult, load_tree, with_config
from reconciler.simulate.forecast_wakes import next_wake
from reconciler.simulate.jobs import VirtualJobs
from reconciler.simulate.memory_git import MemoryGit
from reconciler.simulate.memory_images import MemoryImages
from reconciler.simulate.memory_ports import (
    MemoryBuilder,
    MemoryDoorbell,
    MemoryRegistry,
    MemorySecrets,
    MemorySigner,
    VirtualClock,
    put_tags,
)
from reconciler.simulate.memory_store import MemoryStore
from reconciler.simulate.outcome import Asked, asked_of, held_of
from reconciler.simulate.service import Service
from reconciler.simulate.standing import standing_words
from reconciler.simulate.timings import IMAGE_BYTES, TICK_S
from reconciler.simulate.trace import Held
from reconciler.simulate.witness import Listener, Witness

FAR = datetime(9000, 1, 1, tzinfo=UTC)
"""When a parked device was last seen: it is known to go on reporting."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_IDLE_S = 7 * 86400
"""Between two looks of a loop that nothing calls for: whatever happens in virtual time is told, so no poll has to find it."""

Told = Callable[[Sequence[str], Sequence[str]], object]
"""Called by a tick that told devices something: who is rung (the word acts), and who hears it with the next report."""


class SimController:
    """A controller, its record, and the world it acts on.

    `git` holds the commit in force at the clock's instant (its head then), and what is pushed later; `observed` is the record to
    begin with. `listener` gets the trace. `told` hears whom a tick told something. `settings` are a real controller's, where
    they are known: signers and allowances then bind, as they do there.
    """

    def __init__(
        self,
        clock: VirtualClock,
        git: MemoryGit,
        observed: Snapshot,
        listener: Listener,
        told: Told,
        signer: AssignmentSigner,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        in_force: str | None = None,
        loaded: LoadResult | None = None,
    ) -> None:
        """Begin, and be up. `in_force` is the commit to begin with (the head, unless said: a merge may come at the same
        instant), and `loaded` what it holds, where somebody has loaded it already. ValueError: its documents do not load."""
        self.clock, self.git, self._told, self._settings = clock, git, told, settings
        self._life: _Life | None = None
        self._random = random.Random(seed)  # noqa: S311 - jitter of polls, the same for the same seed
        head = in_force or git.head
        result = loaded or load_tree(git.files(head), git.blob)
        if result.desired is None:
            raise ValueError("; ".join(str(problem) for problem in result.problems if problem.severity == "error"))
        self._loaded = (head, result)
        self._in_force = _with_config(result.desired, observed, head)
        self._make_world(observed, signer)
        self.store = MemoryStore()
        self.store.load(observed, head)
        self.witness = Witness(listener, self.wave_of)
        self.witness.in_force(self._in_force)
        self.witness.watch(observed.devices, self._stale, clock.at)
        self.service = Service(self.store, self._policy, self._config_of, self._heard)
        self._news_at: datetime | None = clock.at
        self._ticked_at: datetime | None = None
        self._due_at: datetime | None = None
        self.ticks = 0
        """Passes of the loop since the beginning."""
        self._give_standing_words(observed)
        self.start(clock.at)

    def _make_world(self, observed: Snapshot, signer: AssignmentSigner) -> None:
        now = self.clock.now
        self.images = MemoryImages(now)
        for release, artifact in sorted(observed.artifacts.items()):
            self.images.put(release, artifact, IMAGE_BYTES)
        self.registry = MemoryRegistry(now, holds_all=True)
        put_tags(self.registry, observed, {name: app.repository for name, app in self._in_force.apps.items()})
        self.secrets = MemorySecrets(now, observed.secret_versions)
        self.signer = MemorySigner(now, lambda release: self.images.read(release, "SHA256SUMS"), signer)
        self._work = Path(tempfile.mkdtemp(prefix="reconciler-simulate-"))
        weakref.finalize(self, shutil.rmtree, self._work, ignore_errors=True)

    def _give_standing_words(self, observed: Snapshot) -> None:
        """Devices that are in the middle of something were told so by the controller before this one."""
        serials = [device.serial for device in observed.devices if device.serial is not None]
        epoch = self.store.raise_epoch(max((serial[0] for serial in serials), default=0))
        rows = standing_words(
            self._in_force,
            observed,
            self.clock.at,
            (epoch, 1 + max((serial[1] for serial in serials), default=0)),
            Artifacts(self.images).target,
            Assigner(self.store, valid_s=LoopSettings().assignment_valid, nights=LoopSettings().nights),
            self.signer.sign_root,
        )
        self.store.record(epoch, Decision(self.clock.at, None, Facts(), assignments=rows))
        self.standing: Mapping[str, AssignmentRow] = {row.device: row for row in rows}
        """Device → the assignment that it is following when the run begins."""

    # ------------------------------------------------ up and down

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self._life is not None

    def start(self, now: datetime) -> None:
        """A new process over the same store: the epoch rises, and everything that was only in memory is read again."""
        if self._life is None:
            self.clock.at = now
            self._life = _Life(self)
            self.service.up, self._news_at, self._ticked_at = True, now, None

    def stop(self, now: datetime) -> None:
        """Killed: nobody answers, jobs under way have no effect, and nothing is remembered but the store."""
        self.clock.at, self._in_force = now, self.desired
        if self._life is not None:
            self._loaded = self._life.source.loaded or self._loaded
        self._life, self.service.up = None, False

    # ------------------------------------------------ ticks

    def tick(self, now: datetime) -> None:
        """One tick at `now`, repeated while it leaves more to be done at once. Nothing while it is down."""
        self.clock.at = now
        life = self._life
        if life is None:
            return
        if life.pushed_at is None or (self.git.next_push_at(life.pushed_at) or FAR) <= now:
            life.gatherer.git_rang()
        life.pushed_at, self._news_at, self._ticked_at = now, None, now
        self.witness.silence(now, self._stale, self._seen_at)
        for _ in range(SPIN):
            self.ticks += 1
            more = life.loop.tick()
            ended = life.jobs.next_at()
            if not more and (ended is None or ended > now):
                break
        # A real loop looks at every edge of a window; here only at those that some device waits for, as the forecast does: a
        # fleet at rest costs nothing. Asked now: no answer lies before the loop's clock, which moves on with the devices.
        wake = next_wake(life.live.state) if life.live.state is not None else NEVER
        self._due_at = life.loop.next_due(now, None if wake == NEVER else instant(wake))

    def next_at(self) -> datetime | None:
        """When to tick next, if no device is heard of before: a multiple of TICK_S. None while it is down."""
        life = self._life
        if life is None:
            return None
        if self._ticked_at is None:
            return on_grid(self.clock.at)
        instants = [at for at in (self._due_at, self._news_at, life.jobs.next_at()) if at is not None]
        pushed = self.git.next_push_at(life.pushed_at or self._ticked_at)
        if pushed is not None:
            instants.append(pushed)
        # What was due at the last tick was tried by it.
        return max(on_grid(min(instants)), on_grid(self._ticked_at + timedelta(seconds=1)))

    def look(self) -> None:
        """Read tags, artifacts and secret versions at the next tick: somebody else has changed one of them."""
        if self._life is not None:
            self._life.gatherer.stores_changed()
            self._life.polls.secrets.now()
            self._news(self.clock.at)

    # ------------------------------------------------ reports

    def exchange(self, device: str, report: bytes, now: datetime) -> bytes:
        """A device calls in. TransportError: it is down, or that is no report."""
        return self.service.exchange(device, report, now)

    def config(self, device: str, now: datetime) -> SiteConfig:
        """A device fetches its site's files. TransportError: it is down, or git names no such device."""
        return self.service.config(device, now)

    def parked(self, device: str, *, announce: bool = True) -> None:
        """The device goes on reporting the same until further notice."""
        self.store.set_last_seen(device, FAR, announce=announce)

    def unparked(self, device: str, last_at: datetime, *, announce: bool = False) -> None:
        """The device is parked no more; its last report came at `last_at`. `announce` where no report follows at once."""
        if self.store.set_last_seen(device, last_at, announce=announce):
            self.witness.last_seen(device, last_at)
            if announce:
                self._news(self.clock.at)

    def _news(self, at: datetime) -> None:
        self._news_at = at if self._news_at is None else min(self._news_at, at)

    def _heard(self, before: DeviceObservation | None, after: DeviceObservation, now: datetime) -> None:
        self._news(now)
        self.witness.heard(before, after, now)

    def _seen_at(self, device: str) -> datetime | None:
        found = self.store.observation(device)
        return None if found is None else found[0].last_seen

    # ------------------------------------------------ what stands

    @property
    def desired(self) -> Desired:
        """What the commit in force asks for, as the last tick knew it."""
        if self._life is not None and self._life.loop.world is not None:
            self._in_force = self._life.loop.world.desired
        return self._in_force

    @property
    def plan(self) -> Plan | None:
        """The last plan; None before the first tick, and while it is down."""
        return None if self._life is None else self._life.loop.plan

    @property
    def live(self) -> Live | None:
        """The planner with its memory; None while it is down."""
        return None if self._life is None else self._life.live

    @property
    def busy(self) -> bool:
        """Whether long work is under way, or something was heard that no tick has seen yet."""
        return self._life is not None and (self._life.jobs.busy or self._news_at is not None)

    def asked(self) -> Asked:
        """(wave, key, devices) of what the commit in force asks for, in the waves' order."""
        return () if self._life is None else asked_of(self._life.live)

    def held(self) -> Mapping[tuple[str, str], tuple[Held, ...]]:
        """(wave, key) → what the last plan holds there."""
        life = self._life
        return {} if life is None or life.loop.plan is None else held_of(life.live, life.loop.plan)

    def wave_of(self, site: str) -> str | None:
        """Name of the wave that a site is in, as the planner has it now; None while it is down."""
        return None if self._life is None else self._life.live.wave_of(site)

    @property
    def _stale(self) -> timedelta:
        return timedelta(seconds=self.desired.fleet.stale_after)

    def _policy(self) -> tuple[int, int]:
        fleet = self.desired.fleet
        return fleet.report_every, fleet.stale_after

    def _config_of(self, device: str) -> str | None:
        site = self.witness.site_of(device)
        return None if site is None else self.desired.config.get(site)


class _Life:
    """One process: what is lost when it is killed."""

    def __init__(self, of: SimController) -> None:
        now, store, rng = of.clock.now, of.store, of._random
        backoff = Backoff(5, 900)
        settings = of._settings or _open_settings()
        pace = settings.loop.model_copy(update={"interval": _IDLE_S})
        epoch = store.begin_epoch()
        self.source = _Source(of, settings, Poll(_IDLE_S, backoff), epoch)
        self.polls = Polls(*(Poll(_IDLE_S, backoff) for _ in range(3)))
        self.gatherer = Gatherer(self.source, store, of.images, of.registry, of.secrets, self.polls, rng)
        self.jobs, self.live = VirtualJobs(now), Live()
        self.pushed_at: datetime | None = None
        """Up to when pushes have been looked at."""
        builder = MemoryBuilder(now, of._work / "built", image_bytes=IMAGE_BYTES)
        hands = Hands(of.git, of.images, of.registry, builder, of.signer, of._work / "builds", of.signer.judge)
        words = _Words(of._told)
        parts = Parts(
            clock=of.clock,
            store=store,
            gatherer=self.gatherer,
            live=self.live,
            executor=Executor(hands, self.jobs),
            assigner=Assigner(store, valid_s=pace.assignment_valid, nights=pace.nights),
            recorder=_Recorder(of, words, epoch, backoff, rng),
            signer=of.signer,
            artifacts=Artifacts(of.images),
            doorbell=words,
            conditions=Conditions(store.conditions(), now(), _unsaid),
            log=_unsaid,
        )
        self.loop = Loop(parts, pace)


class _Source(Source):
    """The real source: it begins where the one before it was, and tells what came of the branch's head."""

    def __init__(self, of: SimController, settings: Settings, poll: Poll, epoch: int) -> None:
        super().__init__(of.git, of.store, settings, poll, epoch, loaded=of._loaded)
        self._of, self._bound = of, of._settings is not None

    def refresh(self, now: datetime, draw: float) -> Iterator[Finding]:
        """Ask the branch, and tell."""
        findings = list(super().refresh(now, draw))
        self._of.witness.judged(self.desired, findings, now)
        yield from findings

    def beyond_what_is_allowed(self, desired: Desired) -> str | None:
        """Only a real controller's settings bind a fleet."""
        return super().beyond_what_is_allowed(desired) if self._bound else None


class _Words(MemoryDoorbell):
    """The doorbell: it is rung once the tick has told devices something, and knows whom else it told."""

    def __init__(self, told: Told) -> None:
        super().__init__(lambda _device: None)
        self._told = told
        self.devices: Sequence[str] = ()
        """Whom the tick's decision told something."""

    def ring(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Hand on who is rung, and who was told something that can wait."""
        rung = frozenset(devices)
        quiet = tuple(device for device in self.devices if device not in rung)
        self.devices = ()
        if devices or quiet:
            self._told(tuple(devices), quiet)
        return super().ring(devices)


class _Recorder(Recorder):
    """The real recorder; the plan is not printed, and what was written is told to the witness."""

    def __init__(self, of: SimController, words: _Words, epoch: int, backoff: Backoff, rng: random.Random) -> None:
        super().__init__(of.store, epoch, backoff, rng, _unsaid)
        self._of, self._words = of, words

    def decide(
        self,
        plan: Plan,
        actions: Sequence[Action],
        assignments: Sequence[AssignmentRow],
        marks: Sequence[DeviceObservation],
    ) -> bool:
        """Write a decision down, and remember whom it tells something."""
        written = super().decide(plan, actions, assignments, marks)
        if written:
            self._words.devices = tuple(row.device for row in assignments)
        return written

    def tell(self, plan: Plan, new: Sequence[Intent]) -> None:
        """A decision was written."""
        self._of.witness.decided(plan.at, plan.facts, new)

    def done(self, intent: Intent, detail: str, now: datetime) -> None:
        """An action's effect is there."""
        super().done(intent, detail, now)
        self._of.witness.done(intent.action, now)

    def status(self, conditions: Conditions, plan: Plan | None, now: datetime) -> None:
        """Nobody asks for it while time is virtual."""


def on_grid(at: datetime) -> datetime:
    """The first multiple of TICK_S since the epoch that is not before `at`."""
    grid = timedelta(seconds=TICK_S)
    return _EPOCH + grid * -((_EPOCH - at) // grid)


def _unsaid(event: str, **fields: object) -> None:
    """What a real controller logs, the witness tells."""


def _with_config(desired: Desired, observed: Snapshot, commit: str) -> Desired:
    return replace(with_config(desired, observed.secret_versions), commit=commit)


def _open_settings() -> Settings:
    """A controller that acts on every commit: whose settings are not known forbids nothing."""
    key = {"home": "unused", "fingerprint": "A" * 40}
    place = {"type": "directory", "path": "/unused"}
    return Settings.model_validate(
        {
            "git": {"url": "/unused"},
            "images": place,
            "registry": {"type": "layout", "path": "/unused"},
            "secrets": place,
            "keys": {"assignment": key, "releases": ["B" * 40], "releaseKeyring": "unused"},
            "allowed": {"images": ["file:///unused/"], "registries": ["unused.invalid"]},
        }
    )
