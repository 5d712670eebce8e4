"""What must hold of a disk after a power cut, judged from its bytes alone: no part of the agent is asked.

Formats are those of docs/reference/boot.md, and of the module docstrings of `agent.records`, `agent.state` and `agent.seed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.agent.power import grub
from tests.agent.power.bench import CONFIGS, HEALTHY, IMAGE_KIB, Scenario, Workshop
from tests.agent.power.disk import Content, State, digest

AGENT = "data/agent"
SEED = "data/cidata"
IMAGE = IMAGE_KIB * 1024
WORDS = {"user-data", "meta-data", "digest"}


@dataclass
class Known:
    """What has happened so far, as the recorded run said: what was told to the server must never be taken back."""

    good: set[str] = field(default_factory=lambda: {"v0", "v1"})
    last_good: str = "v1"
    serial: tuple[int, int] = (0, 0)
    sequence: int = 0
    image: str | None = None
    config: str = CONFIGS["c1"].digest
    attempts: Mapping[str, int] = field(default_factory=dict)

    def learn(self, mark: str) -> None:
        word, _, rest = mark.partition(" ")
        if word == "good":
            self.good.add(rest)
            self.last_good = rest
        elif word == "told":
            told = json.loads(rest)
            self.serial = max(self.serial, tuple(told["serial"] or (0, 0)))
            self.sequence, self.image, self.attempts = told["sequence"], told["image"], told["attempts"]
            self.config = told["config"] or self.config


@dataclass(frozen=True)
class Verdict:
    """`wrong` is what must not be, in sentences; `choice` what boots, `kind` what tells this state from others for the
    agent that starts on it (bytes of slots that nothing names left out)."""

    wrong: tuple[str, ...]
    choice: grub.Choice
    kind: object
    memory: Mapping[str, Any]
    """What the state file says."""

    @property
    def attempts(self) -> dict[str, int]:
        """Failed attempts on record."""
        return dict(self.memory.get("attempts") or ())

    @property
    def lost(self) -> str | None:
        """What was tried, was not judged before the cut, and is a failed attempt."""
        intent = self.memory.get("intent") or {}
        spent = self.choice.spent
        is_lost = spent is not None and spent != self.choice.default and intent.get("slot") == spent
        return str(intent["key"]) if is_lost else None


class Oracle:
    """Judges the states of one scenario. Digests of unchanged content are kept."""

    def __init__(self, workshop: Workshop, scenario: Scenario) -> None:
        self._workshop, self._scenario = workshop, scenario
        self._digests: dict[object, str] = {}
        self._packings: dict[object, str] = {}
        (artifact,) = (workshop.root / "artifacts").glob(f"*-{scenario.release}-*/*.img.zst")
        self._packed = artifact.read_bytes()

    def judge(self, state: State, known: Known) -> Verdict:
        """All of it."""
        choice = grub.choose(state.data("esp/EFI/edge/grubenv"), state.data("esp/EFI/edge/grubenv.bak"))
        records = _object(state.data(f"{AGENT}/slots.json"))
        memory = _object(state.data(f"{AGENT}/state.json"))
        wrong: list[str] = []
        # What a new device has not written yet is not there; what was told has been written.
        if records is None and not (self._scenario.is_new and state.data(f"{AGENT}/slots.json") is None):
            wrong.append("the records cannot be read")
        if memory is None and not (
            self._scenario.is_new and known.sequence == 0 and state.data(f"{AGENT}/state.json") is None
        ):
            wrong.append("the state file cannot be read")
        records, memory = records or {}, memory or {}
        wrong += self._boots(state, choice, known)
        wrong += self._trial(state, choice, records, memory)
        wrong += self._records(state, records, known)
        wrong += _remembers(memory, known)
        wrong += _seed(state, self._scenario, known)
        wrong += _version(state, self._scenario)
        return Verdict(tuple(wrong), choice, self._kind(state, choice, records), memory)

    # ------------------------------------------------------------ what boots

    def _boots(self, state: State, choice: grub.Choice, known: Known) -> Iterator[str]:
        release = self._holds(state, choice.default)
        if release is None or release not in known.good:
            yield f"slot {choice.default} boots by default and holds {release or 'no release'}, which is not good"
        # While grubenv is torn, GRUB goes by the copy. One that is behind would lead back without an assignment.
        here, copy = choice.environment_default, choice.backup_default
        if here is not None and copy is not None and here != copy and self._holds(state, here) == known.last_good:
            yield f"the copy of the flags names slot {copy}, and grubenv slot {here}, which was found good after it"
        if here is None and copy is None:
            yield "neither file of flags names a default"

    def _trial(
        self, state: State, choice: grub.Choice, records: Mapping[str, Any], memory: Mapping[str, Any]
    ) -> Iterator[str]:
        if choice.trial is None:
            return
        slot, wanted = choice.trial, self._workshop.digests[self._scenario.release]
        if slot == choice.default:
            yield f"slot {slot} is tried, and is what a failure leads back to"
        if self._digest(state, slot) != wanted or _record(records, slot).get("digest") != wanted:
            yield f"slot {slot} is armed, and is not recorded as what it holds"
        intent = memory.get("intent") or {}
        if (intent.get("kind"), intent.get("slot"), intent.get("digest")) != ("image", slot, wanted):
            yield f"slot {slot} is armed, and the intent on record is {intent or 'none'}"

    def _records(self, state: State, records: Mapping[str, Any], known: Known) -> Iterator[str]:
        for slot in grub.SLOTS:
            item = _record(records, slot)
            held = item.get("digest")
            if held is None:
                continue
            found = self._digest(state, slot)
            release = self._workshop.releases.get(found)
            if held != found or item.get("release") != release or item.get("size") != IMAGE:
                said = f"{item.get('release')} ({'good' if item.get('good') else 'not good'})"
                yield f"slot {slot} is recorded as {said}, and holds {release or 'something else'}"
            elif item.get("good") is True and release not in known.good:
                yield f"slot {slot} is recorded as good with {release}, which nobody has found good"

    def _holds(self, state: State, slot: str) -> str | None:
        return self._workshop.releases.get(self._digest(state, slot))

    def _digest(self, state: State, slot: str) -> str:
        content = state.files.get(f"slot-{slot}.img")
        return self._hashed(content, IMAGE) if content is not None else ""

    def _hashed(self, content: Content, size: int | None = None) -> str:
        if content.key is None:
            return digest(content.load()[:size])
        if content.key not in self._digests:
            self._digests[content.key] = digest(content.load()[:size])
        return self._digests[content.key]

    # ------------------------------------------------------------ what is the same for an agent

    def _kind(self, state: State, choice: grub.Choice, records: Mapping[str, Any]) -> object:
        """Small files by their bytes, the packed image by how far it is right, a slot that anything names by its digest."""
        named = {choice.default, choice.trial, choice.spent, choice.environment_default, choice.backup_default}
        named |= {slot for slot in grub.SLOTS if _record(records, slot)}
        parts: list[object] = [tuple(sorted(state.links.items())), tuple(sorted(state.folders))]
        for path, content in sorted(state.files.items()):
            if path.startswith("slot-"):
                parts.append((path, self._hashed(content, IMAGE) if path[5] in named else "unnamed"))
            elif f"{AGENT}/cache/" in path and not path.endswith(".json"):
                parts.append((path, self._packing(content)))
            else:
                parts.append((path, content.load()))
        return hash(tuple(parts))

    def _packing(self, content: Content) -> str:
        found = self._packings.get(content.key)
        if found is None:
            data = content.load()
            found = (
                "wrong" if not self._packed.startswith(data) else "begun" if len(data) < len(self._packed) else "whole"
            )
            found = found if data else "empty"
            if content.key is not None:
                self._packings[content.key] = found
        return found


def _object(data: bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(data or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _record(records: Mapping[str, Any], slot: str) -> Mapping[str, Any]:
    item = records.get(slot)
    return item if isinstance(item, dict) and item.get("digest") else {}


def _remembers(memory: Mapping[str, Any], known: Known) -> Iterator[str]:
    """What the server was told lasts."""
    if not memory:
        return
    serial = tuple(memory.get("lastSerial") or (0, 0))
    if serial < known.serial:
        yield f"serial {known.serial} was reported, and {serial} is remembered"
    if memory.get("sequenceReserved", 0) < known.sequence:
        yield f"report {known.sequence} was sent, and numbers up to {memory.get('sequenceReserved')} are reserved"
    counted = dict(memory.get("attempts") or ())
    if any(counted.get(key, 0) < count for key, count in known.attempts.items()):
        yield f"attempts {dict(known.attempts)} were reported, and {counted} are remembered"


def _seed(state: State, scenario: Scenario, known: Known) -> Iterator[str]:
    """The names of the seed lead to all files of one configuration, and to one that was reported, or the next."""
    found = {name: data for name in WORDS if (data := state.data(f"{SEED}/{name}")) is not None}
    whole = {
        config.digest: {**config.files, "digest": config.digest.encode() + b"\n"}
        for name, config in CONFIGS.items()
        if name in ("c1", scenario.config)
    }
    if scenario.is_new and not found and not known.config:
        return
    now = [key for key, files in whole.items() if files == found]
    if not now:
        yield f"the configuration is none that there ever was: {found}"
    elif known.config not in ("", CONFIGS["c1"].digest, now[0]):
        yield f"configuration {known.config[:12]} was reported, and {now[0][:12]} is there"


def version(state: State) -> dict[str, str]:
    """What the version file says."""
    lines = (state.data(f"{AGENT}/image-version") or b"").decode("utf-8", "replace").splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def _version(state: State, scenario: Scenario) -> Iterator[str]:
    """`current=` and `previous=`, whole."""
    pairs = version(state)
    if scenario.is_new and state.data(f"{AGENT}/image-version") is None:
        return
    if set(pairs) != {"current", "previous"} or pairs["current"] not in HEALTHY:
        yield f"the version file says {pairs}"
