"""The sweep: every state that a power cut may leave of a recorded run, judged; and the agent started on it, to the end.

Called by tests/agent/test_power_sweep.py, which says what is asked for. `Depth` says how much of what is too much for every
change is left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

from tests.agent.power.bench import CONFIGS, END, Desk, Scenario, SweptHardware, Workshop, live
from tests.agent.power.disk import Content, Disk, File, State, Write
from tests.agent.power.oracle import Known, Oracle, Verdict, version
from tests.agent.power.replay import Moment, Replay
from tests.agent.world import START

SMALL = 4096
"""Writes up to so many bytes are torn at every sector, whatever the depth."""
SHARES = (0.5, 0.1, 0.9)


@dataclass(frozen=True)
class Depth:
    """How much is looked at. 1 as `every_…` is all."""

    every_sector: int
    """Of large writes, each so-many-th sector boundary is a point."""
    every_byte: int
    """Of the boot loader's variables, each so-many-th byte besides."""
    subsets: int
    """Seeded states a point, in which a part of what is not synced is there."""
    every_kind: int
    """The agent is started on each so-many-th kind of state that was not met before."""
    every_state: int
    """And besides on each so-many-th state of all."""
    second: int = 0
    """So many of the states that an agent is started on are kept, for a second cut: `Sweep.kept`."""


FULL = Depth(every_sector=1, every_byte=1, subsets=9, every_kind=1, every_state=40, second=8)
SAMPLE = Depth(every_sector=64, every_byte=64, subsets=2, every_kind=6, every_state=400)
JUDGED = Depth(every_sector=128, every_byte=32, subsets=3, every_kind=0, every_state=0)
"""No agent is started."""
SECOND = replace(JUDGED, every_sector=32, every_kind=4, every_state=400)
"""Of a run that began with what a cut had left."""


@dataclass
class Tally:
    """What a sweep has seen, and what it has found to be wrong."""

    points: int = 0
    states: int = 0
    kinds: set[object] = field(default_factory=set)
    started: int = 0
    fell_back: int = 0
    wrong: list[str] = field(default_factory=list)
    calls: int = 0

    def __str__(self) -> str:
        return (
            f"{self.calls} changes and syncs, {self.points} points, {self.states} states of {len(self.kinds)} kinds;"
            f" the agent was started on {self.started}, of which {self.fell_back} had lost their trial"
        )


class Sweep:
    """One recorded run of one scenario."""

    def __init__(self, workshop: Workshop, scenario: Scenario, device: Path, depth: Depth, *, until: str = "") -> None:
        """`device` is the folder that the run was recorded in. It ends with a finding that says `until`."""
        self._workshop, self._scenario, self._device, self._depth = workshop, scenario, device, depth
        self._oracle = Oracle(workshop, scenario)
        self._until = until
        self._chance = Random(scenario.name)
        self.kept: list[tuple[Path, Known, str]] = []
        """Devices in a state that a cut has left, what was known then, and what the state is."""
        self.disk = Disk(device / "begin")
        """What was there before the run that is swept; recorded by then."""
        self.tally = Tally()

    def run(self, log: Path, known: Known | None = None) -> Tally:
        known, tally = known or Known(config="" if self._scenario.is_new else CONFIGS["c1"].digest), self.tally
        for moment in Replay(log, self._device / "disk", self._device / "marks", self.disk).moments():
            if moment.mark is not None:
                known.learn(moment.mark)
                if moment.mark == "ended":
                    break
            else:
                tally.calls += moment.write is None
            for what, state in self._states(moment):
                self._look(f"{what} ({moment.label})", state, known)
                if any(self._until in sentence for sentence in tally.wrong):
                    return tally
        return tally

    # ------------------------------------------------------------ states

    def _states(self, moment: Moment) -> Iterator[tuple[str, State]]:
        """All that the power may leave at a moment."""
        if moment.write is not None and moment.file is not None:
            yield from self._torn(moment.label, moment.file, moment.write)
            return
        self.tally.points += 1
        number = self.tally.points
        yield f"{number}: all is on the disk", self.disk.everything()
        yield f"{number}: only what was synced", self.disk.only_synced()
        for count in range(self._depth.subsets):
            share = SHARES[count % len(SHARES)]
            yield f"{number}: part {count} of what was not synced", self.disk.some(f"{number} {count}", share)

    def _torn(self, label: str, file: File, write: Write) -> Iterator[tuple[str, State]]:
        if write.data is None:
            return
        size = len(write.data)
        stride = 1 if size <= SMALL else self._depth.every_sector
        for count in range(1, len(write.cuts()) + 1, stride):
            self.tally.points += 1
            yield f"torn behind sector {count}", self.disk.torn(file, write, range(count))
        for count in range(self._depth.subsets if len(write.cuts()) else 0):
            chance = Random(f"{self.tally.points} {count}")
            done = {number for number in range(len(write.cuts()) + 1) if chance.random() < 0.5}
            yield f"torn, with sectors {sorted(done)[:8]} …", self.disk.torn(file, write, done)
        if "esp/" in label:
            # Harder than a sector: the page promises a good slot whatever is torn.
            for end in range(1, size, self._depth.every_byte):
                self.tally.points += 1
                content = bytearray(file.now)
                Write(write.at, write.data[:end]).to(content)
                torn = Content(None, partial(bytes, content))
                yield f"torn behind byte {end}", self.disk.everything({file.number: torn})

    # ------------------------------------------------------------ what must hold

    def _look(self, what: str, state: State, known: Known) -> None:
        tally, depth = self.tally, self._depth
        tally.states += 1
        verdict = self._oracle.judge(state, known)
        tally.wrong += [f"{what}: {wrong}" for wrong in verdict.wrong]
        is_new = verdict.kind not in tally.kinds
        tally.kinds.add(verdict.kind)
        due = depth.every_kind and is_new and len(tally.kinds) % depth.every_kind == 0
        due = due or (depth.every_state and tally.states % depth.every_state == 0)
        if due and not verdict.wrong:
            tally.started += 1
            self._keep(what, state, known)
            try:
                self._start(state, verdict)
            except Exception as error:
                tally.wrong.append(f"{what}: started on it, the agent ends otherwise: {type(error).__name__}: {error}")

    def _keep(self, what: str, state: State, known: Known) -> None:
        """Keep a state, each that an agent is started on with the same chance of being among the last that are kept."""
        count = len(self.kept)
        at = count if count < self._depth.second else self._chance.randrange(self.tally.started)
        if at < self._depth.second:
            root = self._device / f"second-{at}"
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            state.write_to(root / "disk")
            self.kept[at : at + 1] = [(root, deepcopy(known), what)]

    def _start(self, state: State, verdict: Verdict) -> None:
        """Boot what a cut has left, and let the agent come to its end; a failed attempt is made again under a newer serial."""
        root, scenario = self._device / "started", self._scenario
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        state.write_to(root / "disk")
        hardware, desk = SweptHardware(self._workshop, root), Desk(self._workshop, scenario.name)
        device = live(self._workshop, hardware, desk, END)
        device.end()
        # A try that was spent and not judged is a failed one, counted once; and no other is.
        attempts, lost = verdict.attempts, verdict.lost
        if lost is not None:
            attempts[lost] = attempts.get(lost, 0) + 1
        if not scenario.is_good:
            attempts = {scenario.release: 1}
        counted = dict(desk.reports[-1].attempts)
        assert counted == attempts, f"attempts {counted} are counted, and should be {attempts}"
        if attempts and scenario.is_good:
            self.tally.fell_back += 1
            assert desk.reports[-1].image == "v1", f"{desk.reports[-1].image} runs after a failed attempt"
            desk.answer = f"{scenario.name}-again"
            live(self._workshop, hardware, desk, END + (END - START), END).end()
        self._ended(root, desk)

    def _ended(self, root: Path, desk: Desk) -> None:
        """The end that the assignment wanted, by the report and by the disk."""
        scenario, report = self._scenario, desk.reports[-1]
        release = scenario.release if scenario.is_good else "v1"
        told = (report.image, report.phase, report.config)
        assert told == (release, "idle", CONFIGS[scenario.config].digest), f"the last report says {told}"
        state = read_from(root / "disk")
        known = Known(
            serial=report.serial or (0, 0), sequence=report.sequence, config=report.config or "", last_good=release
        )
        known.good.add(release)
        # Contents are told apart by the numbers of one disk.
        verdict = Oracle(self._workshop, scenario).judge(state, known)
        assert not verdict.wrong, verdict.wrong
        slot, choice = "b" if scenario.is_good else "a", verdict.choice
        assert (choice.default, choice.backup_default, choice.trial, choice.spent) == (slot, slot, None, None), choice
        good = {name: held.release for name, held in report.slots.items() if held.good}
        assert good == ({"a": "v1", "b": release} if scenario.is_good else {"a": "v1"}), f"good are {good}"
        left = [path for path in state.files if "/cache/" in path and scenario.is_good]
        assert not left, f"the artifact is left over: {left}"
        assert verdict.memory.get("intent") is None, verdict.memory
        before = "v1" if scenario.is_good else "v0"
        assert version(state) == {"current": release, "previous": before}, version(state)


def read_from(root: Path) -> State:
    """The state that a folder is in."""
    state = State()
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            state.links[name] = os.readlink(path)
        elif path.is_dir():
            state.folders.append(name)
        else:
            state.files[name] = Content(name, path.read_bytes)
    return state


def differences(disk: Disk, root: Path) -> list[str]:
    """What differs between the model, all of it written, and the real folder: nothing, or the log has missed something."""
    mine, real = disk.everything(), read_from(root)
    wrong = [name for name in {*mine.files, *real.files} if mine.data(name) != real.data(name)]
    wrong += [name for name in {*mine.links, *real.links} if mine.links.get(name) != real.links.get(name)]
    return wrong + sorted({*mine.folders} ^ {*real.folders})
