"""The SQL store against a model of dicts, under random operations and reopenings (Hypothesis)."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reconciler.adapters.sql import open_store
from reconciler.model.observed import DeviceObservation
from reconciler.model.plan import DeviceFact, Facts, VerdictFact
from reconciler.ports import Decision, Store, TerminalError
from tests.adapters.store_contract import NOW, decision, flash

DEVICES = st.sampled_from(["A", "B", "C"])
RELEASES = st.sampled_from(["v1", "v1.1", "app@2.8.0"])
WAVES = st.sampled_from(["lab", "canary"])


class StoreModel(RuleBasedStateMachine):
    """What the store must hold, in dicts."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.store: Store = self.open_store()
        self.epoch = self.store.begin_epoch()
        self.devices: dict[str, dict[str, Any]] = {}
        self.boots: dict[str, dict[str, int]] = {}
        self.verdicts: list[list[Any]] = []
        self.members: dict[str, dict[str, set[str]]] = {}
        self.open_keys: list[str] = []
        self.last_serial = 0
        self.cursor, self.seen_changes = 0, {}

    def open_store(self) -> Store:
        """The store, as another process would open it."""
        return open_store(self.folder / "store.db")

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    @rule(device=DEVICES, boot=st.sampled_from("xyz"), sequence=st.integers(0, 6), image=RELEASES)
    def report(self, device: str, boot: str, sequence: int, image: str) -> None:
        with self.store.transaction():
            found = self.store.observation(device)
            before = found[0] if found else DeviceObservation(name=device)
            after = before.model_copy(update={"image": image, "last_seen": NOW})
            self.store.observe([after], sequences={device: (boot, sequence)})
        boots = self.boots.setdefault(device, {})
        if sequence > boots.get(boot, -1):
            boots[boot] = sequence
            self.devices.setdefault(device, {})["image"] = image

    def _record(self, facts: Facts | None = None, *patches: DeviceObservation, **more: Any) -> Any:
        plain: Decision = decision(*more.get("actions", ()), facts=facts, observations=patches)
        return self.store.record(self.epoch, plain)

    @rule(device=DEVICES, release=RELEASES)
    def mark(self, device: str, release: str) -> None:
        self._record(None, DeviceObservation(name=device, updating_to=release, updating_since=NOW))
        self.devices.setdefault(device, {})["updating"] = release

    @rule(device=DEVICES, release=st.sampled_from(["v1", "v1.1"]))
    def time_out(self, device: str, release: str) -> None:
        self._record(Facts(timeouts=(DeviceFact(device, release, NOW),)))
        state = self.devices.get(device, {})
        if state.get("updating") == release:
            del state["updating"]
            attempts = state.setdefault("attempts", {})
            attempts[release] = attempts.get(release, 0) + 1

    @rule(device=DEVICES, release=RELEASES)
    def rescue(self, device: str, release: str) -> None:
        self._record(Facts(rescues=(DeviceFact(device, release, NOW),)))
        self.devices.setdefault(device, {}).setdefault("rescued", set()).add(release)

    @rule(wave=WAVES, release=RELEASES, minutes=st.integers(0, 9), failure=st.booleans())
    def judge(self, wave: str, release: str, minutes: int, failure: bool) -> None:
        fact = (VerdictFact(wave, release, NOW + timedelta(minutes=minutes)),)
        self._record(Facts(failures=fact) if failure else Facts(proofs=fact))
        row = [failure, wave, release, False]
        if row not in self.verdicts:
            self.verdicts.append(row)

    @rule(wave=WAVES, release=RELEASES, sites=st.sets(st.sampled_from(["S1", "S2", "S3"])))
    def take(self, wave: str, release: str, sites: set[str]) -> None:
        self._record(Facts(members={release: {wave: tuple(sites)}}))
        if sites:
            self.members.setdefault(release, {}).setdefault(wave, set()).update(sites)

    @rule(closed=st.sets(RELEASES, min_size=1))
    def close(self, closed: set[str]) -> None:
        self._record(Facts(closed=tuple(closed)))
        for row in self.verdicts:
            row[3] = row[3] or row[2] in closed
        for release in closed:
            self.members.pop(release, None)
            for state in self.devices.values():
                state.get("attempts", {}).pop(release, None)
                state.get("rescued", set()).discard(release)

    @rule(devices=st.lists(DEVICES, max_size=4))
    def decide(self, devices: list[str]) -> None:
        new = self._record(actions=[flash(device, "v1") for device in devices])
        keys = [f"flash device={device} to=v1" for device in dict.fromkeys(devices)]
        expected = [key for key in keys if key not in self.open_keys]
        assert [intent.key for intent in new] == expected
        self.open_keys += expected

    @rule(outcome=st.sampled_from(["done", "failed"]), which=st.integers(0, 3))
    def finish(self, outcome: str, which: int) -> None:
        intents = self.store.open_intents()
        if which < len(intents):
            self.store.finish(self.epoch, intents[which], outcome, "", NOW)
            self.open_keys.remove(intents[which].key)

    @rule(count=st.integers(1, 5))
    def serials(self, count: int) -> None:
        first = self.store.next_serial(self.epoch, count)
        assert first > self.last_serial
        self.last_serial = first + count - 1

    @rule()
    def reopen_and_take_over(self) -> None:
        self.store.close()
        self.store = self.open_store()
        old, self.epoch = self.epoch, self.store.begin_epoch()
        with pytest.raises(TerminalError):
            self.store.record(old, decision(flash("A", "v9")))

    @rule()
    def follow_changes(self) -> None:
        changes = self.store.changes_since(self.cursor)
        self.cursor = changes.cursor
        self.seen_changes |= {device.name: device for device in changes.devices}
        assert self.seen_changes == {device.name: device for device in self.store.snapshot().devices}

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        snapshot = self.store.snapshot()
        found = {
            device.name: (
                device.image,
                device.updating_to,
                dict(device.failed_attempts),
                set(device.rescued_from),
            )
            for device in snapshot.devices
        }
        wanted = {
            name: (state.get("image"), state.get("updating"), state.get("attempts", {}), state.get("rescued", set()))
            for name, state in self.devices.items()
        }
        assert {name: found.pop(name) for name in wanted} == wanted
        assert found == {}
        rows = [[False, v.wave, v.key, v.closed] for v in snapshot.proofs]
        rows += [[True, v.wave, v.key, v.closed] for v in snapshot.failures]
        assert sorted(rows) == sorted(self.verdicts)
        assert {r: {w: set(s) for w, s in waves.items()} for r, waves in snapshot.members.items()} == self.members
        assert [intent.key for intent in self.store.open_intents()] == self.open_keys


StoreModel.TestCase.settings = settings(
    max_examples=int(os.environ.get("PROPERTY_EXAMPLES", "20")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestStoreModel = StoreModel.TestCase
