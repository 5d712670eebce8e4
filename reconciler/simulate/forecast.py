"""What a commit will do to a fleet, and when: the real planner in a closed loop of virtual time, devices by formula. Pure.

Decides nothing itself: every start, proof and failure is the planner's (`planner.live`). What devices and jobs do with it, and
when, is `forecast_devices`' and `forecast_record`'s, by the durations that the simulator's machines take too (`timings`); so
its calendar is the simulator's, to the minute. Called by `review`, for the calendar of a merge before it. Source: design §4, §6.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from reconciler.model.desired import Desired
from reconciler.model.observed import ArtifactState, DeviceObservation, Snapshot
from reconciler.model.plan import Action, ActionKind, Plan
from reconciler.planner import waves_of_sites
from reconciler.planner.live import Live
from reconciler.planner.windows import SECOND, micros
from reconciler.simulate.forecast_calls import NOT_BEGUN, CallsOff
from reconciler.simulate.forecast_devices import Devices, Job, Unit, Work, arrived, first_report, instant_of, seconds_of
from reconciler.simulate.forecast_record import JOB_S, Marks, Record
from reconciler.simulate.forecast_wakes import next_wake
from reconciler.simulate.outcome import asked_of, held_of
from reconciler.simulate.start import Doing, Silent, Start, leaves_out, start_of
from reconciler.simulate.timings import TICK_S, timings
from reconciler.simulate.trace import Event, Kind, Trace

LIMIT = timedelta(days=120)
"""How far a forecast looks."""
SPINS = 20
"""Ticks at one instant that may each leave more to do (`controller.loop`)."""
_ENDED = {
    ActionKind.BUILD: Kind.BUILT,
    ActionKind.SIGN: Kind.SIGNED,
    ActionKind.PUBLISH: Kind.PUBLISHED,
    ActionKind.RETAG: Kind.RETAGGED,
    ActionKind.PROPOSE_REVERT: Kind.PROPOSED,
}
_ON_DEVICES = (ActionKind.FLASH, ActionKind.CONFIGURE, ActionKind.RESTART)


def forecast(
    desired: Desired,
    observed: Snapshot,
    at: datetime,
    *,
    before: Desired | None = None,
    silent: Silent = "stay",
    limit: timedelta = LIMIT,
) -> Trace:
    """The trace of `desired` coming into force at `at` (UTC), from what is observed, until nothing changes by itself any more.

    `before` is what was in force until then: what devices were given under it. `silent` says whether devices that do not report
    at the start ever will. A trace that ends at `at + limit` was cut off there. No faults happen: devices that are
    critical at the start stay so as `start` tells; all others are well.
    """
    return Forecast(desired, observed, at, before=before, silent=silent, limit=limit).run()


@dataclass(frozen=True, slots=True)
class _Task:
    """Long work: when its turn has come and gone."""

    action: Action
    ends: int


class Forecast:
    """One forecast. `run` may be called once; `planned` is for tests that hold every plan to the definition."""

    def __init__(
        self,
        desired: Desired,
        observed: Snapshot,
        at: datetime,
        *,
        before: Desired | None = None,
        silent: Silent = "stay",
        limit: timedelta = LIMIT,
    ) -> None:
        self._start_s = seconds_of(at)
        self._end_s = self._start_s + int(limit.total_seconds())
        at = instant_of(self._start_s)
        self.desired = _configured(desired, observed)
        in_force = _configured(before, observed) if before is not None else self.desired
        # Devices that report go on reporting: their record is as fresh as it can ever be asked for.
        self._heard = instant_of(self._end_s) + timedelta(seconds=self.desired.fleet.stale_after + 86_400)
        self.start: Start = start_of(observed, at, in_force, self.desired, silent=silent, heard=self._heard)
        self.record = Record(self.start.observed)
        self.live = Live()
        self.events: list[Event] = [Event(at, Kind.MERGED, detail=desired.commit or "")]
        self._every = self.desired.fleet.report_every
        self._devices = Devices(self.desired, self.start.devices, timings(self.desired.fleet), self._start_s)
        self._sites = {name: site for site, spec in self.desired.sites.items() for name in spec.devices}
        self._due: list[tuple[int, str, int, Job | None]] = []
        self._scheduled = 0
        self._tasks: list[_Task] = []
        self._open: set[str] = set()
        self._free_s = 0
        self._still: dict[str, Unit] = {}
        self._calls_off = CallsOff(self.desired)
        self._versions = {
            (app, digest): f"{app}@{version}"
            for app, spec in self.desired.apps.items()
            for version, digest in spec.releases.items()
        }
        for name in self._first_reports():
            returns_at = self.start.devices[name].returns_at
            assert returns_at is not None
            self._schedule(seconds_of(returns_at), name, None)
        self._go_on(in_force)

    def run(self) -> Trace:
        """Tick until nothing is left that could change anything."""
        tick: int | None = _grid(self._start_s)
        last = self._start_s
        plan: Plan | None = None
        while tick is not None and tick <= self._end_s:
            last = tick
            plan = self._tick(tick)
            tick = self._next(tick)
        ended = self._end_s if tick is not None else last
        if tick is None:
            self.events.append(Event(instant_of(last), Kind.QUIET))
        held = held_of(self.live, plan) if plan is not None else {}
        # An arrival is recorded with the device's report, a decision with the tick after it.
        self.events.sort(key=lambda event: event.at)
        return Trace(instant_of(self._start_s), instant_of(ended), self.events, asked_of(self.live), held)

    def planned(self, tick: int, plan: Plan) -> None:
        """Called with every plan, before anything is done about it. Nothing here; tests look in."""

    # ------------------------------------------------ the beginning

    def _first_reports(self) -> Iterator[str]:
        """Devices whose first report tells something new: that they are back, or what the snapshot left out."""
        seen = self.record.seen
        for name, start in self.start.devices.items():
            if start.returns_at is None or name not in self._sites:
                continue
            known = seen.get(name)
            if known is None or start.silent or leaves_out(known):
                yield name

    def _go_on(self, in_force: Desired) -> None:
        """What devices are in the middle of at the start takes its course, as they were told under the commit before."""
        busy = [start for start in self.start.devices.values() if start.doing is not Doing.NOTHING]
        given = {name: spec for spec in in_force.sites.values() for name in spec.devices} if busy else {}
        places = waves_of_sites(in_force, self.start.observed, self.start.at) if busy else {}
        apps = {wave.name: wave.apps for wave in in_force.waves.waves}
        for start in busy:
            site, spec, target = self._sites.get(start.name), given.get(start.name), start.target
            if site is None or spec is None:
                continue
            if start.doing is Doing.UPDATING:
                artifact = self.record.shared.artifacts.get(target or "")
                ready = artifact is not None and artifact.state is ArtifactState.PUBLISHED
                target = target if ready else None
                if target is not None:
                    # Silent for ever or not: the controller may take back what it told.
                    self._calls_off.told(start.name, target)
            elif start.doing is Doing.RESTARTING:
                version = apps.get(places.get(site, ""), {}).get(target or "")
                app = in_force.apps.get(target or "")
                target = app.releases.get(version) if app is not None and version is not None else None
            else:
                target = in_force.config.get(site)
            window = (spec.timezone, spec.window or in_force.fleet.window)
            job = self._devices.goes_on(self._devices.unit(start.name, site), start, target, window)
            if job is not None:
                self._schedule(job.ends, start.name, job)

    # ------------------------------------------------ time

    def _schedule(self, at: int, name: str, job: Job | None) -> None:
        """A report that will tell something new."""
        self._scheduled += 1
        heapq.heappush(self._due, (at, name, self._scheduled, job))

    def _next(self, tick: int) -> int | None:
        """The next tick at which there is anything to do; None: never."""
        assert self.live.state is not None
        wake = next_wake(self.live.state)
        instants = [self._due[0][0]] if self._due else []
        instants += [task.ends for task in self._tasks]
        if wake < micros(self._heard):
            instants.append(-(-wake // SECOND))
        if self.record.news:
            instants.append(tick + 1)
        elif self.record.changed:
            # Marks that no plan has seen: what they mark cannot time out before this.
            fleet = self.desired.fleet
            instants.append(tick + min(fleet.update_timeout, fleet.boot_timeout))
        return max(_grid(min(instants)), tick + TICK_S) if instants else None

    def _tick(self, tick: int) -> Plan:
        self._hear(tick)
        now = instant_of(tick)
        self._still.clear()
        for _ in range(SPINS):
            self._collect(tick)
            devices, shared = self.record.taken()
            plan = self.live.advance(self.desired, devices, shared, now)
            self.planned(tick, plan)
            if not self._act(tick, plan):
                break
        for unit in self._still.values():
            self._devices.stand_still(unit, tick, self._every)
        return plan

    def _hear(self, tick: int) -> None:
        """Reports that tell something new, up to a tick."""
        while self._due and self._due[0][0] <= tick:
            at, name, _, job = heapq.heappop(self._due)
            unit = self._devices.unit(name, self._sites[name])
            if job is None:
                self._first_report(unit, at)
            elif unit.job is job:
                self._arrive(unit, job)

    def _collect(self, tick: int) -> None:
        """Outcomes of long work that has ended."""
        for task in [task for task in self._tasks if task.ends <= tick]:
            self._tasks.remove(task)
            self._open.discard(task.action.key)
            self.record.done(task.action, instant_of(tick))
            fields = task.action.fields
            key: str | None = fields.get("image")
            if task.action.kind is ActionKind.RETAG:
                key = self._versions.get((fields["app"] or "", fields["to"] or ""))
            elif key is None:
                key = f"{fields['app']}@{fields['release']}"
            detail = fields.get("tag") or ""
            self.events.append(Event(instant_of(tick), _ENDED[task.action.kind], key=key, detail=detail))

    # ------------------------------------------------ what a plan leads to

    def _act(self, tick: int, plan: Plan) -> bool:
        """Do what the plan says and write it down. Whether that may let more be done at once."""
        self._tell_facts(plan)
        orders = [action for action in plan.actions if action.kind in _ON_DEVICES]
        told = {action.fields["device"] or "" for action in orders}
        for fact in plan.facts.timeouts:
            if fact.device not in told:
                self._taken_back(fact.device)
        # What was told before may be taken back; what this plan tells stands.
        off = list(self._call_off(tick, plan, told))
        marks = off + [self._tell(tick, plan.at, action) for action in orders]
        self.record.note(plan.facts, marks)
        self._fetch(tick, told)
        amended = off or plan.facts.timeouts or plan.facts.rescues or self.record.news
        return self._submit(tick, plan) or bool(amended) or (bool(told) and self._holds_its_own())

    def _holds_its_own(self) -> bool:
        """Whether some wave's own devices hold for its gate. Elsewhere devices that were told to start let nobody else start:
        the plan that starts them has counted them already. So the next tick that has more to say takes their marks along.
        """
        assert self.live.state is not None
        return any(judged.own_held for gates in self.live.state.ground.gates for judged in gates.judged)

    def _tell_facts(self, plan: Plan) -> None:
        facts, add = plan.facts, self.events.append
        for proof in facts.proofs:
            add(Event(plan.at, Kind.PROVEN, wave=proof.wave, key=proof.key))
        for failure in facts.failures:
            add(Event(plan.at, Kind.STOPPED, wave=failure.wave, key=failure.key))
        for release, waves in facts.members.items():
            for wave, sites in waves.items():
                for site in sites:
                    add(Event(plan.at, Kind.TAKEN, wave=wave, site=site, key=release))
        for late in facts.timeouts:
            at = self._sites[late.device]
            key = late.key if late.key not in ("configure", "restart") else None
            add(Event(plan.at, Kind.TIMED_OUT, self.live.wave_of(at), at, late.device, key, "" if key else late.key))

    def _tell(self, tick: int, at: datetime, action: Action) -> tuple[str, Marks]:
        """A device is told to start: what it will do, and the mark that goes with it."""
        fields = action.fields
        name = fields["device"] or ""
        site = self._sites[name]
        unit = self._devices.unit(name, site)
        self._still.pop(name, None)
        job: Job | None
        key: str | None = None
        detail: str | None
        if action.kind is ActionKind.FLASH:
            release = fields["to"] or ""
            size, switch = self._size(release), fields["method"] == "switch"
            job = self._devices.flash(unit, tick, release, size, switch=switch)
            key, detail = release, fields["why"]
            mark: Marks = {"updating_to": release, "updating_since": at}
            self._calls_off.told(name, release)
        elif action.kind is ActionKind.RESTART:
            app, digest = fields["app"] or "", fields["to"] or ""
            job = self._devices.restart(unit, tick, app, digest)
            key, detail = self._versions[(app, digest)], "restart"
            mark = {"restarting_app": app, "restarting_since": at}
        else:
            job, detail = self._devices.configure(unit, tick, fields["config"] or ""), "configure"
            mark = {"configuring_since": at}
        wave = self.live.wave_of(site)
        self.events.append(Event(at, Kind.TOLD, wave, site, name, key, detail or ""))
        if job is not None:
            self._schedule(job.ends, name, job)
        return name, mark

    def _call_off(self, tick: int, plan: Plan, told: set[str]) -> Iterator[tuple[str, Marks]]:
        """Updates that have not begun, and may not begin any more."""
        for name in self._calls_off.after(plan, self.record.shared, self.live):
            if name in told or self._has_begun(name, tick):
                continue
            self._taken_back(name)
            yield name, {"updating_to": None, "updating_since": None, "rebooting_since": None}

    def _has_begun(self, name: str, tick: int) -> bool:
        """Whether the record says that a device writes already: by its own word, or by the last that was heard of it."""
        lives_from = self.start.devices[name].lives_from(self.start.at)
        if lives_from is None or seconds_of(lives_from) > tick:
            return self.record.seen[name].phase not in NOT_BEGUN
        job = self._devices.unit(name, self._sites[name]).job
        return job is not None and (job.work is not Work.IMAGE or job.begins <= tick)

    def _taken_back(self, name: str) -> None:
        """A device is told to stand still, unless a later word of the same tick tells it something else."""
        unit = self._devices.unit(name, self._sites[name])
        unit.word = None
        self._still[name] = unit

    def _fetch(self, tick: int, told: set[str]) -> None:
        """Devices that only wait for their window fetch meanwhile; not those that the same plan tells something else."""
        for name, release in self.live.waiting_for_window():
            if name in told:
                continue
            unit = self._devices.unit(name, self._sites[name])
            held = unit.other == release
            self._devices.fetch(unit, tick, release, self._size(release), self._every, held=held)

    def _submit(self, tick: int, plan: Plan) -> bool:
        """Long work that is asked for and not under way: one at a time, in the order in which it was asked for."""
        new = False
        for action in plan.actions:
            if action.kind not in JOB_S or action.key in self._open or self._never_ends(action):
                continue
            self._free_s = max(self._free_s, tick) + JOB_S[action.kind]
            self._tasks.append(_Task(action, self._free_s))
            self._open.add(action.key)
            new = True
        return new

    def _never_ends(self, action: Action) -> bool:
        """A build without a recipe stalls: somebody has to put the artifact into the store."""
        return action.kind is ActionKind.BUILD and self.desired.images[action.fields["image"] or ""].recipe is None

    def _size(self, release: str) -> int | None:
        artifact = self.record.shared.artifacts.get(release)
        return artifact.size if artifact is not None else None

    # ------------------------------------------------ what devices report

    def _first_report(self, unit: Unit, at: int) -> None:
        seen = self.record.seen.get(unit.name) or DeviceObservation(name=unit.name)
        if self.start.devices[unit.name].silent:
            self._say(unit, at, Kind.HEARD)
        self.record.put(first_report(unit, seen, instant_of(at), self._heard))

    def _arrive(self, unit: Unit, job: Job) -> None:
        before, was_ill = self._runs(unit, job), unit.ill is not None
        self.record.put(arrived(unit, job, self.record.seen[unit.name]))
        if job.work is Work.CONFIG:
            return
        if before is not None:
            self._say(unit, job.ends, Kind.LEFT, before)
        self._say(unit, job.ends, Kind.ARRIVED, self._runs(unit, job))
        if was_ill and unit.ill is None:
            self._say(unit, job.ends, Kind.WELL)

    def _runs(self, unit: Unit, job: Job) -> str | None:
        """The release that a device runs of what a job changes."""
        if job.work is Work.IMAGE:
            return unit.booted
        app = job.app or ""
        return self._versions.get((app, unit.apps.get(app, "")))

    def _say(self, unit: Unit, at: int, kind: Kind, key: str | None = None) -> None:
        self.events.append(Event(instant_of(at), kind, self.live.wave_of(unit.site), unit.site, unit.name, key))


def _grid(seconds: int) -> int:
    """The first tick not before an instant."""
    return -(-seconds // TICK_S) * TICK_S


def _configured(desired: Desired, observed: Snapshot) -> Desired:
    """The commit with the digests of its sites' configurations, where the caller has not computed them."""
    if desired.config:
        return desired
    from reconciler.repo.load import with_config

    return replace(desired, config=with_config(desired, observed.secret_versions).config)
