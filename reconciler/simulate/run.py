"""Plays a fleet through virtual time: the real controller, the real agents, and a world that goes wrong as it was told to.

Moves time from one event to the next, in one order: what the world does, what devices do, the tick. Everything that follows is
in the trace; an oracle looks at every event. The same course and seed give the same trace, byte for byte. Called by the
command line, by tests and benchmarks. Source: the timing model of `timings`; design §4 and §6.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from reconciler.controller.assign import Artifacts
from reconciler.model.desired import Desired
from reconciler.model.observed import Snapshot
from reconciler.model.plan import Reason, WaveState
from reconciler.planner.live import Live
from reconciler.planner.render import named, reason_of, track_state
from reconciler.planner.roster import IMAGE_TRACK
from reconciler.planner.windows import micros
from reconciler.repo.load import LoadResult, load_changed, load_tree, with_config
from reconciler.simulate import rules
from reconciler.simulate.controller import FAR, SimController
from reconciler.simulate.course import Course, Run
from reconciler.simulate.faults import POWER_OFF_S, Draws
from reconciler.simulate.fleet import Machines
from reconciler.simulate.forecast_wakes import next_wake
from reconciler.simulate.hardware import Condition
from reconciler.simulate.memory_git import MemoryGit
from reconciler.simulate.memory_ports import VirtualClock
from reconciler.simulate.network import Far, Noise
from reconciler.simulate.oracle import Oracle, Truth
from reconciler.simulate.populate import Populate
from reconciler.simulate.signing import SimulatedSigner
from reconciler.simulate.start import Doing, settled, start_of
from reconciler.simulate.supply import Depot
from reconciler.simulate.timings import RING_S
from reconciler.simulate.trace import Event, Exposure, Kind, Trace, exposure
from reconciler.simulate.world import World

DECODER = "decoder"
"""The check that a bad release fails after a while."""
HERD_HOUR = 2
"""When a herd comes, UTC."""
_SETTLE = timedelta(days=14)
"""After the last fault, so long until everything must be where git wants it."""


def simulate(course: Course) -> Run:
    """Play a course to its end. ValueError: the fleet repo that it begins with does not load."""
    return Simulation(course).run()


class Simulation:
    """One run, made ready by the constructor; `run` plays it once."""

    def __init__(self, course: Course) -> None:
        self.course, self.clock = course, VirtualClock(course.at)
        self.draws = Draws(course.seed, course.faults)
        self.events: list[Event] = []
        self._happenings: list[tuple[datetime, int, Callable[[datetime], None]]] = []
        self._count = 0
        self._end = course.at + course.limit
        self._states: dict[tuple[str, str], str] = {}
        self._poisoned: set[str] = set()
        self.oracle: Oracle | None = None
        self._make_git()
        self._make_fleet()
        self._schedule_faults()

    # ------------------------------------------------ the beginning

    def _make_git(self) -> None:
        course = self.course
        self.git = MemoryGit(self.clock.now, documents_only=True)
        self._first = self._lawful = first = self.git.push(course.files, course.at, "The fleet as it is")
        self._loaded: dict[str, LoadResult] = {first: load_tree(self.git.files(first), self.git.blob)}
        before = [first]
        for merge in sorted(course.merges, key=lambda merge: merge.at):
            onto = before[-2] if merge.rewrites and len(before) > 1 else None
            sha = self.git.push(merge.changes, max(merge.at, course.at), merge.message, onto=onto)
            parent = onto or before[-1]
            changed = self.git.changed(parent, sha)
            self._loaded[sha] = load_changed(self._loaded[parent], changed, self.git.blob)
            before.append(sha)
        base = self._loaded[first].desired
        if base is None:
            raise ValueError("; ".join(str(problem) for problem in self._loaded[first].errors))
        self.base = base
        # A device that any commit names has a machine.
        self._named = [
            base,
            *(r.desired for r in self._loaded.values() if r.desired is not None and r.desired is not base),
        ]

    def _make_fleet(self) -> None:
        course, signer = self.course, SimulatedSigner()
        observed = course.observed or settled(self.base, course.at)
        self.start = start_of(
            observed, course.at, *self._configured(observed), silent=course.silent, in_step=course.faults.herd
        )
        self.controller = SimController(
            self.clock,
            self.git,
            self.start.observed,
            self._listen,
            self._told,
            signer,
            seed=course.seed,
            settings=course.settings,
            in_force=self._first,
            loaded=self._loaded[self._first],
        )
        world = self._world = World(self.controller)
        self.far = Far(world, self.clock)
        self.depot = Depot(self.base, fate=self.draws.attempt)
        self.depot.sizes = {r: a.size for r, a in observed.artifacts.items() if a.size is not None}
        targets = Artifacts(self.controller.images)
        populate = Populate(
            self.start, self.far, self.depot, signer.keyring, world, targets.target,
            self.controller.standing, self.base.fleet.report_every,
        )  # fmt: skip
        devices = [populate.make(name) for name in self.start.devices]
        for device in devices:
            populate.release(device)
        self.machines = Machines(devices, self.far)
        for device in devices:
            start = self.start.devices[device.name]
            if start.silent and start.returns_at is not None and start.booted is not None:
                self._at(start.returns_at, partial(self._is_heard_again, device.name))
        self._targets = targets
        self._make_oracle(populate)

    def _configured(self, observed: Snapshot) -> list[Desired]:
        return [with_config(desired, observed.secret_versions) for desired in self._named]

    def _make_oracle(self, populate: Populate) -> None:
        truths = []
        in_flight = {seen.name for seen in self.start.observed.devices if seen.updating_to is not None}
        for name, device in self.machines.devices.items():
            start = self.start.devices[name]
            truth = Truth(name, start.site or "", device.hardware, image=start.booted, parked=device.is_parked)
            # What it was told before the run, and what came between, nobody has seen.
            truth.goes_on, truth.troubled = start.doing is Doing.UPDATING, name in in_flight
            truths.append(truth)
        published = {**populate.digests}
        for release in self.controller.images.artifacts():
            target = self._targets.target(release)
            if target is not None:
                published[release] = target.digest
        apps = {
            f"{app}@{version}": digest
            for desired in self._named
            for app, spec in desired.apps.items()
            for version, digest in spec.releases.items()
        }
        running = {digest: digest for device in self.start.devices.values() for digest in device.apps.values()}
        self.oracle = Oracle(self.base, truths, published, {**running, **apps})
        self.oracle.remember(self.start.observed)
        self._world.oracle = self.oracle

    def _schedule_faults(self) -> None:
        faults, start = self.course.faults, self.course.at
        end = min(faults.until or self._end, self._end)
        self._faults_end = end if faults.any else start
        for name in sorted(self.machines.devices):
            if self.start.devices[name].silent and self.course.silent == "stay":
                continue
            for begin, back in self.draws.outages(name, start, end):
                self._at(begin, partial(self._line_is_down, name))
                self._at(back, partial(self._line_is_back, name))
            for at in self.draws.instants(f"power {name}", faults.power, start, end):
                self._at(at, partial(self._power_goes, name))
        for begin, back in faults.down:
            self._at(begin, self._controller_leaves)
            self._at(max(back, begin), self._controller_returns)
        for at in self.draws.instants("crashes", faults.crashes, start, end):
            self._at(at, self._controller_crashes)
        if faults.on_the_line:
            noise = Noise(late=faults.late, doubled=faults.doubled, replayed=faults.replayed)
            for name, device in self.machines.devices.items():
                device.link.disturb(noise, self.draws.stream("line", name))
            self._at(end, self._calm)
        if faults.bad_from_s is not None:
            self._at(start, self._poison)
        if faults.herd:
            night = start.replace(hour=HERD_HOUR, minute=0, second=0, microsecond=0)
            while night < end:
                if night > start:
                    self._at(night, self._herd)
                night += timedelta(days=1)

    def _at(self, at: datetime, happens: Callable[[datetime], None]) -> None:
        self._count += 1
        heapq.heappush(self._happenings, (at, self._count, happens))

    # ------------------------------------------------ what the world does

    def _controller_leaves(self, at: datetime) -> None:
        self._fault(at, "the controller is down")
        if self.oracle is not None:
            for name in self.machines.devices:
                self.oracle.disturbed(name)
        self.controller.stop(at)
        self.machines.leave(at)

    def _controller_returns(self, at: datetime) -> None:
        self._fault(at, "the controller is back")
        self.controller.start(at)
        self.machines.come_back(at)

    def _controller_crashes(self, at: datetime) -> None:
        if self.controller.up:
            self._fault(at, "the controller was killed and started again")
            self.controller.stop(at)
            self.controller.start(at)

    def _line_is_down(self, name: str, at: datetime) -> None:
        if self.oracle is not None:
            self.oracle.disturbed(name)
        self.machines.cut([name], at)

    def _line_is_back(self, name: str, at: datetime) -> None:
        self.machines.restore([name], at)

    def _is_heard_again(self, name: str, at: datetime) -> None:
        """A device that was silent when the run began reports in its own second, not when its back-off ends."""
        self.machines.restore([name], at)
        self.machines.ring([name], at)

    def _power_goes(self, name: str, at: datetime) -> None:
        if self.oracle is not None:
            self.oracle.power_went(name)
        self.machines.cut_power(name, at, POWER_OFF_S)

    def _herd(self, at: datetime) -> None:
        """Everybody calls in at the same second, as after a line that they share has come back."""
        self.machines.ring(self.machines.devices, at)

    def _calm(self, at: datetime) -> None:
        for name, device in self.machines.devices.items():
            device.link.disturb(None, self.draws.stream("line", name))

    def _poison(self, at: datetime) -> None:
        """Whatever device runs a bad release gets critical after a while, each for itself."""
        for release in sorted(self.course.faults.bad - self._poisoned):
            image, app = self._digests_of(release)
            if image is None and app is None:
                continue
            self._poisoned.add(release)
            after = self.course.faults.bad_from_s
            condition = Condition(DECODER, message="it leaks", image=image, app=app, after_s=after)
            for name, device in self.machines.devices.items():
                self.machines.impose([name], (*device.hardware.conditions, condition), at)

    def _digests_of(self, release: str) -> tuple[str | None, str | None]:
        """What a device shows that runs a release: the digest of a published image, or of an app that git names."""
        app, at_sign, version = release.partition("@")
        if at_sign:
            specs = [desired.apps[app] for desired in self._named if app in desired.apps]
            return None, next((spec.releases[version] for spec in specs if version in spec.releases), None)
        target = self._targets.target(release)
        return (target.digest if target is not None else None), None

    def _fault(self, at: datetime, what: str) -> None:
        self.events.append(Event(at, Kind.FAULT, detail=what))

    # ------------------------------------------------ what is heard

    def _listen(self, event: Event) -> None:
        self.events.append(event)
        oracle = self.oracle
        if oracle is None:
            return
        if event.kind is Kind.MERGED:
            loaded = self._loaded.get(event.detail)
            desired = None if loaded is None else loaded.desired
            if desired is None or not self._may_follow(event.detail, desired):
                oracle.overruled(desired)
            else:
                self._lawful = event.detail
                self.depot.desired = desired
                oracle.merged(desired)
        elif event.kind is Kind.REFUSED:
            head = self._loaded.get(self.git.head)
            if head is not None and head.desired is not None:
                oracle.refused(head.desired)
        elif event.kind is Kind.PUBLISHED and event.key is not None:
            target = self._targets.target(event.key)
            if target is not None:
                oracle.published(event.key, target.digest)
            if self.course.faults.bad_from_s is not None:
                self._poison(event.at)
        else:
            oracle.decided(event)

    def _may_follow(self, sha: str, desired: Desired) -> bool:
        """Whether a commit may come into force after the last that rightly did."""
        before = self._loaded[self._lawful].desired
        removed = 0 if before is None else len(before.sites.keys() - desired.sites.keys())
        message = self.git.commit(sha).message
        return self.git.is_ancestor(self._lawful, sha) and (
            before is None or rules.may_remove(removed, len(before.sites), message)
        )

    def _told(self, rung: Sequence[str], quiet: Sequence[str]) -> None:
        now = self.clock.at
        if rung:
            self.machines.ring(rung, now + timedelta(seconds=RING_S))
        if quiet:
            self.machines.hear(quiet, now)

    # ------------------------------------------------ time

    def run(self, watchers: Sequence[Callable[[datetime], object]] = ()) -> Run:
        """Event by event, until nothing will happen any more or the limit is reached. `watchers` hear of each instant."""
        while (at := self._next_at()) is not None and at <= self._end:
            self.step(at)
            for watcher in watchers:
                watcher(at)
            if not self.course.to_the_end and self._is_quiet():
                break
        else:
            at = self._end
        return self._result(at)

    def step(self, at: datetime) -> None:
        """Everything at one instant."""
        self.clock.at = max(at, self.clock.at)
        while self._happenings and self._happenings[0][0] <= at:
            heapq.heappop(self._happenings)[2](at)
        self.machines.play(at)
        due = self.controller.next_at()
        if due is not None and due <= at:
            self.controller.tick(at)
            if self.course.states:
                self._note_states(at)

    def _next_at(self) -> datetime | None:
        happening = self._happenings[0][0] if self._happenings else None
        instants = (happening, self.machines.next_at(), self.controller.next_at())
        return min((at for at in instants if at is not None), default=None)

    def _is_quiet(self) -> bool:
        """Whether nothing that is still to come can change anything."""
        controller, live = self.controller, self.controller.live
        if self._happenings or controller.busy or live is None or live.state is None or controller.plan is None:
            return False
        if controller.plan.actions or live.in_flight or self.git.next_push_at(self.clock.at) is not None:
            return False
        if next_wake(live.state) < micros(FAR):
            return False
        return not any(device.is_at_work for device in self.machines.devices.values())

    def _note_states(self, at: datetime) -> None:
        state = self.controller.live.state if self.controller.live is not None else None
        if state is None:
            return
        for wave in state.roster.waves:
            for number in state.roster.tracks:
                code = wave.ask(number)
                if code < 0:
                    continue
                key, now = state.roster.key(number, code), track_state(state, number, wave.index)
                reason = state.ground.gates[number].entry[wave.index].reason
                detail = (
                    f"{now.value}: {reason.value}" if reason is not None and now is WaveState.WAITING else now.value
                )
                if self._states.get((wave.spec.name, key)) != detail:
                    self._states[(wave.spec.name, key)] = detail
                    self.events.append(Event(at, Kind.STATE, wave=wave.spec.name, key=key, detail=detail))

    # ------------------------------------------------ what came of it

    def _result(self, at: datetime) -> Run:
        quiet = at < self._end or self._is_quiet()
        last = max((event.at for event in self.events), default=self.course.at)
        if quiet:
            self.events.append(Event(last, Kind.QUIET))
        if at >= self._end:
            last = self._end
        self._judge_end(at, quiet=quiet)
        events = tuple(sorted(self.events, key=lambda event: event.at))
        controller = self.controller
        trace = Trace(self.course.at, last, events, controller.asked(), controller.held())
        keys = {event.key for event in events if event.key is not None}
        asked = [key for _, key, _ in trace.asked]
        waves = {site: wave for site in controller.desired.sites if (wave := controller.wave_of(site)) is not None}
        return Run(
            self.course,
            trace,
            controller.desired,
            waves,
            tuple(self.oracle.violations) if self.oracle is not None else (),
            self._unproven(events, keys | set(asked), waves),
            exposure([e for e in events if e.kind is not Kind.PROVEN], self.course.faults.bad),
            len(self.machines.devices),
            controller.ticks,
            self.far.exchanges,
        )

    def _unproven(self, events: Sequence[Event], keys: set[str], waves: Mapping[str, str]) -> Exposure:
        """Proofs on record, and what devices ran, stood before."""
        safe = {(verdict.wave, verdict.key) for verdict in self.start.observed.proofs}
        running: dict[tuple[str, str], list[str]] = {}
        for name, device in self.start.devices.items():
            wave = waves.get(device.site or "")
            if device.booted is not None and wave is not None:
                running.setdefault((wave, device.booted), []).append(name)
        return exposure(events, keys, safe=safe, running=running, since=self.course.at)

    def _judge_end(self, at: datetime, *, quiet: bool) -> None:
        """Whether everybody arrived: of a fleet that is quiet, since nothing more will happen to it, and of one that is not,
        long after the last fault."""
        live, faults = self.controller.live, self.course.faults
        over = max([self._faults_end, *(back for _, back in faults.down)]) + (_SETTLE if faults.any else timedelta(0))
        if live is not None and self.oracle is not None and (quiet or at >= over):
            self.oracle.judge_end(at, lambda name: _decision(live, name))


def _decision(live: Live, device: str) -> tuple[str | None, Reason | None]:
    """The image that a device shall run, and what the planner holds it for."""
    state = live.state
    row = None if state is None else state.roster.row_of.get(device)
    if state is None or row is None:
        return None, None
    track = state.tracks[IMAGE_TRACK]
    code = int(track.target[row])
    wanted = named(state, IMAGE_TRACK, code).image if code >= 0 else None
    return wanted, reason_of(track, row)
