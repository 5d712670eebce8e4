"""Agents with one fault each, in the order or the durability of what they write. The sweep has to find every one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reconciler.agent import disk, grub, machine, partitioned, partitions, records, seed, slotfile
from reconciler.agent.machine import Effect, Event, State


@dataclass(frozen=True)
class Mutant:
    """`apply` spoils the agent of this process. `found` is what the sweep has to say of it, among others. `starts`: it is seen
    only by starting an agent on what a cut has left."""

    apply: Callable[[], None]
    found: str
    starts: bool = False
    scenario: str = "update"


def _set(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def _environment_first() -> None:
    def put(self: Any, default: str, trial: str | None = None) -> None:
        self._write(grub.ENVIRONMENT, grub._environment(default, trial))
        self._write(grub.BACKUP, grub._backup(default))

    _set(grub.GrubLoader, "_put", put)


def _flags_not_synced() -> None:
    def overwrite(_self: Any, path: Path, data: bytes, mode: int = 0o600) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, mode)
        os.write(descriptor, data)
        os.close(descriptor)

    _set(disk.Disk, "overwrite", overwrite)


def _recorded_before_it_is_read_back() -> None:
    plain = partitioned.PartitionedHardware.open_slot

    def open_slot(self: Any, slot: str, size: int) -> Any:
        opened = plain(self, slot, size)
        self.record_slot(slot, "v2", self.workshop.digests["v2"], size)
        return opened

    _set(partitioned.PartitionedHardware, "open_slot", open_slot)


def _record_kept_while_writing() -> None:
    _set(records.Records, "forget", lambda _self, _slot: None)
    _set(partitioned.PartitionedHardware, "open_slot", lambda self, slot, size: partitions.open_slot(
        self._slots, slot, size, self.disk
    ))  # fmt: skip


def _slot_not_synced() -> None:
    _set(slotfile.SlotFile, "sync", lambda _self: None)


def _folder_not_synced() -> None:
    plain = disk.Disk.sync_folder

    def sync_folder(self: Any, folder: Path) -> None:
        if folder.name != "agent":
            plain(self, folder)

    _set(disk.Disk, "sync_folder", sync_folder)


def _new_folder_not_synced() -> None:
    def folder(_self: Any, path: Path, mode: int = 0o755) -> Path:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        return path

    _set(disk.Disk, "folder", folder)


def _file_not_synced() -> None:
    def write(self: Any, path: Path, data: bytes, _mode: int = 0o644) -> None:
        temporary = path.with_name(path.name + ".new")
        temporary.write_bytes(data)
        self.rename(temporary, path)

    _set(disk.Disk, "replace", write)


def _effects(key: tuple[State, Event], *effects: Effect) -> None:
    assert {*effects} == {*machine.TABLE[key].effects}
    _set(machine, "TABLE", {**machine.TABLE, key: replace(machine.TABLE[key], effects=effects)})


def _default_before_it_is_judged() -> None:
    plain = partitioned.PartitionedHardware.arm

    def arm(self: Any, slot: str) -> None:
        self._loader.mark_good(slot)
        plain(self, slot)

    _set(partitioned.PartitionedHardware, "arm", arm)


def _seed_file_by_file() -> None:
    def store(self: Any, config: Any) -> None:
        for name, data in {**config.files, seed.DIGEST: config.digest.encode() + b"\n"}.items():
            self._disk.replace((self.folder / name).resolve(), data, 0o600)

    _set(seed.Seed, "store", store)


MUTANTS = {
    "grubenv is written before its copy": Mutant(_environment_first, "the copy of the flags names slot a"),
    "the flags are not synced": Mutant(_flags_not_synced, "the copy of the flags names slot a"),
    "a slot is recorded before it is read back": Mutant(_recorded_before_it_is_read_back, "slot b is recorded as v2"),
    "a slot's record is kept while it is written": Mutant(_record_kept_while_writing, "slot b is recorded as v0"),
    "a slot is not synced before it is recorded": Mutant(_slot_not_synced, "slot b is recorded as v2"),
    "the folder of state and records is not synced": Mutant(_folder_not_synced, "numbers up to"),
    "the name of a new folder is not synced": Mutant(
        _new_folder_not_synced, "the configuration is none that there ever was: {}", scenario="first"
    ),
    "a file is not synced before it gets its name": Mutant(_file_not_synced, "the state file cannot be read"),
    "the trial is armed before the intent is written": Mutant(
        lambda: _effects((State.WRITTEN, Event.DONE), Effect.ARM, Effect.RECORD_INTENT),
        "slot b is armed, and the intent on record is none",
    ),
    "a slot is the default before it is judged": Mutant(_default_before_it_is_judged, "holds v2, which is not good"),
    "a configuration is stored file by file": Mutant(
        _seed_file_by_file, "the configuration is none that there ever was"
    ),
    "the intent is closed before the artifact is removed": Mutant(
        lambda: _effects(
            (State.TRIAL, Event.DONE), Effect.MARK_GOOD, Effect.SET_VERSION, Effect.CLEAR_INTENT, Effect.DROP_CACHE
        ),
        "the artifact is left over",
        starts=True,
    ),
    "the intent is closed before the slot is marked good": Mutant(
        lambda: _effects(
            (State.TRIAL, Event.DONE), Effect.SET_VERSION, Effect.CLEAR_INTENT, Effect.MARK_GOOD, Effect.DROP_CACHE
        ),
        "good are",
        starts=True,
    ),
}
