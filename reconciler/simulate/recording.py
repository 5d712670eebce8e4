"""A recording: what was observed over time, one snapshot a line; and how a simulated run is written as one.

The first line is whole. A later line has the devices that changed, and what is not a device's where that changed. A device that
is not in a line has gone on saying the same: it was heard of since the line before. One that was not is in the line once, with the
instant at which it was last seen. Recordings are read by `simulate.replay`; docs/reference/recording.md is the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.repo.problem import InvalidInput, Problem
from reconciler.repo.snapshot import MAX_BYTES, load_snapshot
from reconciler.simulate.controller import FAR
from reconciler.simulate.run import Simulation

PARTS = (
    "artifacts", "tags", "tags_set", "proofs", "failures", "members", "proposals", "secret_versions",
)  # fmt: skip
"""What a snapshot holds beside its devices."""
_HEAD = {"apiVersion": "fleet/v1", "kind": "Observed"}


@dataclass(frozen=True, slots=True)
class Line:
    """One snapshot of a recording, and the number of its line."""

    number: int
    at: datetime
    snapshot: Snapshot


# ---------------------------------------------------------------- writing


class Writer:
    """Makes lines. It remembers what the lines before have said."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Any, datetime | None]] = {}
        """Device → what was said of it, and since when it was said to be silent."""
        self._parts: dict[str, Any] = {}
        self._at: datetime | None = None

    def line(self, at: datetime, devices: Iterable[DeviceObservation], shared: Snapshot) -> bytes | None:
        """The line of this instant, or None where it would say nothing. `devices` are at least those that may have changed."""
        told = [device for device in devices if self._is_news(device)]
        parts = {name: getattr(shared, name) for name in PARTS}
        new = {name: value for name, value in parts.items() if name not in self._parts or self._parts[name] != value}
        if self._at is not None and not told and not new:
            return None
        self._parts, self._at = parts, at
        snapshot = Snapshot.model_construct(devices=tuple(told), **new)
        tree = snapshot.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        # A part that is empty now, and was not before, is said too.
        empty = {name: getattr(shared, name) for name in new if not parts[name]} if len(new) < len(PARTS) else {}
        tree |= Snapshot.model_construct(**empty).model_dump(mode="json", by_alias=True, include=set(empty))
        tree = {**_HEAD, "at": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **tree}
        return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    def _is_news(self, device: DeviceObservation) -> bool:
        content = device.model_copy(update={"last_seen": None, "boot": None, "serial": None})
        said = self._said.get(device.name)
        seen, before = device.last_seen, self._at
        quiet_since = seen if before is None or seen is None or seen <= before else None
        is_quiet = before is not None and (seen is None or seen <= before)
        if (
            said is not None
            and said[0] == content
            and (not is_quiet or said[1] == quiet_since)
            and (is_quiet or said[1] is None)
        ):
            return False
        self._said[device.name] = (content, quiet_since if is_quiet else None)
        return True


class Recording:
    """Writes down what the controller of a simulated run has observed: `look` is a watcher of the run."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation, self._writer = simulation, Writer()
        self._cursor, self._ticks = 0, -1
        self._awake: set[str] = set()
        self.lines: list[bytes] = []

    def look(self, at: datetime) -> None:
        """After an instant: a line, where a tick came and something was new."""
        controller = self._simulation.controller
        live, store = controller.live, controller.store
        if live is None or live.shared is None or controller.ticks == self._ticks:
            return
        self._ticks = controller.ticks
        changes = store.changes_since(self._cursor)
        self._cursor = changes.cursor
        found = {device.name: device for device in changes.devices}
        for name in self._awake - found.keys():
            row = store.observation(name)
            if row is not None:
                found[name] = row[0]
        self._awake = {name for name, device in found.items() if device.last_seen != FAR}
        told = [
            device.model_copy(update={"last_seen": at}) if device.last_seen == FAR else device
            for device in (found[name] for name in sorted(found))
        ]
        facts, seen = store.facts(), live.shared
        shared = facts.model_copy(
            update={"artifacts": seen.artifacts, "tags": seen.tags, "secret_versions": seen.secret_versions}
        )
        line = self._writer.line(at, told, shared)
        if line is not None:
            self.lines.append(line)


# ---------------------------------------------------------------- reading


def read(path: Path) -> Iterator[Line]:
    """The lines of a recording, in order. InvalidInput: a line is no snapshot, has no instant, or one before the last."""
    number, last = 0, None
    try:
        with path.open("rb") as file:
            while data := file.readline(MAX_BYTES + 1):
                number += 1
                if not data.strip():
                    continue
                snapshot = _snapshot(path, number, data)
                if snapshot.at is None:
                    raise _refused(
                        path, number, "the snapshot has no `at`; a recording's lines each say when they were taken"
                    )
                if last is not None and snapshot.at < last:
                    raise _refused(path, number, "its `at` is before the line before it; sort the lines by time")
                last = snapshot.at
                yield Line(number, snapshot.at, snapshot)
    except OSError as error:
        message = f"cannot be read ({(error.strerror or 'error').lower()}); name a recording"
        raise InvalidInput([Problem(str(path), 1, 1, message, "error", "unreadable")]) from None
    if last is None:
        raise _refused(path, 1, "holds no snapshot; write one with `reconciler simulate --record`, or append snapshots")


def _snapshot(path: Path, number: int, data: bytes) -> Snapshot:
    try:
        return load_snapshot(data.rstrip(b"\r\n"), str(path))
    except InvalidInput as error:
        # Each line is a document of its own: its first line is this one.
        raise InvalidInput(
            Problem(one.path, one.line + number - 1, one.column, one.message, one.severity, one.code)
            for one in error.problems
        ) from None


def _refused(path: Path, number: int, message: str) -> InvalidInput:
    return InvalidInput([Problem(str(path), number, 1, message, "error", "recording")])


def given(snapshot: Snapshot) -> Mapping[str, Any]:
    """What a line says beside its devices."""
    return {name: getattr(snapshot, name) for name in PARTS if name in snapshot.model_fields_set}
