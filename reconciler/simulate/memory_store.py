"""The store in memory: what must survive a controller that is killed, without a disk. Implements `ports.Store`.

Keeps the contract of the SQL store (`tests/adapters/store_contract.py`), and costs what changes. Beyond the port it lets the
simulator amend when a device was last seen: devices that have nothing new to say are parked, and play no report. Called by the
real loop inside `simulate.controller`, and by `simulate.service`. Source: design §6, "State that must survive".
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime

from reconciler.model.amend import amendments, forgotten
from reconciler.model.observed import DeviceObservation, Snapshot, Verdict
from reconciler.model.plan import Action, ActionKind, Facts
from reconciler.model.report_order import newer
from reconciler.ports import AssignmentRow, Changes, ConditionRow, Decision, Intent, TerminalError
from reconciler.simulate.memory_book import (
    ABSENT,
    Book,
    Entry,
    Row,
    known,
    members_of,
    nested,
    proposals_of,
    report_of,
    shown,
    split_key,
    verdicts_of,
)
from reconciler.simulate.memory_events import MemoryEvents

_OUTCOMES = ("done", "failed")


class MemoryStore(MemoryEvents):
    """`ports.Store` over a book. Safe from any thread; a transaction belongs to the thread that opened it."""

    def __init__(self, book: Book | None = None) -> None:
        self.book: Book = book or Book()

    @property
    def _me(self) -> object:
        return id(self), threading.get_ident()

    def _write(self) -> AbstractContextManager[None]:
        return self.book.write(self._me)

    def _read(self) -> AbstractContextManager[None]:
        return self.book.read(self._me)

    def transaction(self) -> AbstractContextManager[None]:
        """Group calls into one transaction; nested use joins the outer one."""
        return self._write()

    def close(self) -> None:
        """Nothing is held open."""

    def load(self, observed: Snapshot, commit: str | None) -> None:
        """Begin with what a snapshot records, and with the commit in force."""
        book = self.book
        with self._write():
            self._put_rows({device.name: Row(device, *report_of(device)) for device in observed.devices})
            for kind, verdicts in (("proof", observed.proofs), ("failure", observed.failures)):
                for verdict in verdicts:
                    book.put(book.verdicts, self._next("verdict"), (kind, verdict))
            for release, waves in observed.members.items():
                for wave, sites in waves.items():
                    for site in sites:
                        book.put(book.members, (release, wave, site), None)
            for proposal in observed.proposals:
                book.put(book.proposals, proposal.key, proposal.at)
            self._put_tags(observed.tags_set)
            if commit is not None:
                book.put(book.words, "commit", commit)

    # ------------------------------------------------------------ observations

    def snapshot(self) -> Snapshot:
        """Everything recorded."""
        with self._read():
            rows = self.book.devices
            return self._facts().model_copy(update={"devices": tuple(rows[name].observation for name in sorted(rows))})

    def facts(self) -> Snapshot:
        """The same without the devices."""
        with self._read():
            return self._facts()

    def _facts(self) -> Snapshot:
        book = self.book
        verdicts = book.part(book.verdicts, lambda: verdicts_of(book.verdicts))
        return Snapshot().model_copy(
            update={
                "tags_set": book.part(book.tags, lambda: nested(book.tags)),
                "proofs": verdicts[0],
                "failures": verdicts[1],
                "members": book.part(book.members, lambda: members_of(book.members)),
                "proposals": book.part(book.proposals, lambda: proposals_of(book.proposals)),
            }
        )

    def changes_since(self, cursor: int, limit: int | None = None) -> Changes:
        """Observations recorded after `cursor` (0: all), oldest change first, `limit` at most."""
        with self._read():
            book = self.book
            found: list[DeviceObservation] = []
            for number, name in book.changes[bisect_right(book.changes, cursor, key=_first) :]:
                if len(found) == limit:
                    break
                row = book.devices.get(name)
                if row is not None and row.change == number:
                    found.append(row.observation)
                    cursor = number
            return Changes(cursor, tuple(found))

    def observe(self, observations: Sequence[DeviceObservation], *, sequences: Mapping[str, tuple[str, int]]) -> int:
        """Record folded reports; one that is not newer is dropped. A device without an entry in `sequences` is written as given."""
        with self._write():
            changed: dict[str, Row] = {}
            for observation in observations:
                name = observation.name
                before = changed.get(name) or self.book.devices.get(name)
                if name not in sequences:
                    changed[name] = replace(before or Row(observation), observation=observation)
                    continue
                boot_id, sequence = sequences[name]
                boots = newer(before.boots if before else (), boot_id, sequence)
                if boots is not None:
                    changed[name] = Row(observation, boot_id, sequence, boots)
            self._put_rows(changed)
            return self.book.last_change

    def observation(self, device: str) -> tuple[DeviceObservation, str, int] | None:
        """A device's observation with the boot id and sequence of its report (`""`, -1 where none has come yet)."""
        with self._read():
            return known(self.book.devices.get(device))

    def observed(self, devices: Sequence[str]) -> Mapping[str, tuple[DeviceObservation, str, int]]:
        """The same for many devices at once; those that are not on record are left out."""
        with self._read():
            rows = ((name, known(self.book.devices.get(name))) for name in sorted(set(devices)))
            return {name: row for name, row in rows if row is not None}

    def set_last_seen(self, device: str, at: datetime, *, announce: bool = True) -> bool:
        """Amend when a device was last seen; `announce` hands it to the loop as a change. Returns whether it is on record."""
        with self._write():
            row = self.book.devices.get(device)
            if row is None or row.observation.last_seen == at:
                return row is not None
            seen = row.observation.model_copy(update={"last_seen": at})
            amended = Row(seen, row.boot_id, row.sequence, row.boots, row.change)
            if announce:
                self._put_rows({device: amended})
            else:
                self.book.put(self.book.devices, device, amended)
            return True

    def _put_rows(self, rows: Mapping[str, Row]) -> None:
        book = self.book
        for name in sorted(rows):
            # Never given out twice, also not after a transaction was taken back.
            book.last_change += 1
            row = rows[name]
            book.put(book.devices, name, Row(row.observation, row.boot_id, row.sequence, row.boots, book.last_change))
            book.changes.append((book.last_change, name))

    # ------------------------------------------------------------ the writer in office

    def begin_epoch(self) -> int:
        """Take over as writer: raise the epoch above every one on record and return it."""
        return self.raise_epoch(0)

    def raise_epoch(self, above: int) -> int:
        """The same, above an epoch that a device reported."""
        with self._write():
            raised = max(int(self.book.words.get("epoch", 0)), above) + 1
            self.book.put(self.book.words, "epoch", raised)
            return raised

    def next_serial(self, epoch: int, count: int) -> int:
        """Reserve `count` serial numbers under the epoch; returns the first. Numbers rise over epochs too."""
        with self._write():
            self._fence(epoch)
            return self._next("serial", count) - count + 1

    def _fence(self, epoch: int) -> None:
        current = self.book.words.get("epoch", 0)
        if epoch != current:
            raise TerminalError(
                f"fenced: epoch {epoch} is not the current one ({current})",
                needed_for="writing to the store",
                remedy="another controller has taken over; stop this one, or start it again",
            )

    def _next(self, word: str, count: int = 1) -> int:
        number = int(self.book.words.get(word, 0)) + count
        self.book.put(self.book.words, word, number)
        return number

    # ------------------------------------------------------------ ticks

    def record(self, epoch: int, decision: Decision) -> tuple[Intent, ...]:
        """Write a tick's decision; returns the intents that are new."""
        book = self.book
        with self._write():
            self._fence(epoch)
            self._put_facts(decision.facts)
            self._amend(decision)
            self._put_tags(decision.tags_set)
            for row in decision.assignments:
                old = book.assignments.get(row.device)
                if old is None or (old.epoch, old.n) < (row.epoch, row.n):
                    book.put(book.assignments, row.device, row)
            for condition in decision.conditions:
                book.put(book.conditions, condition.type, condition)
            return self._add_intents(decision)

    def _put_facts(self, facts: Facts) -> None:
        book = self.book
        for kind, verdicts in (("proof", facts.proofs), ("failure", facts.failures)):
            for fact in verdicts:
                standing = ((k, v.wave, v.key) for k, v in book.verdicts.values() if not v.closed)
                if (kind, fact.wave, fact.key) not in standing:
                    verdict = Verdict(wave=fact.wave, at=fact.at, **split_key(fact.key))
                    book.put(book.verdicts, self._next("verdict"), (kind, verdict))
        for release, waves in facts.members.items():
            for wave, sites in waves.items():
                for site in sites:
                    book.put(book.members, (release, wave, site), None)
        closed = set(facts.closed)
        if not closed:
            return
        for number, (kind, old) in list(book.verdicts.items()):
            if old.key in closed and not old.closed:
                book.put(book.verdicts, number, (kind, old.model_copy(update={"closed": True})))
        for key in [key for key in book.members if key[0] in closed]:
            book.put(book.members, key, ABSENT)
        for release in closed & book.proposals.keys():
            book.put(book.proposals, release, ABSENT)

    def _amend(self, decision: Decision) -> None:
        steps = amendments(decision.observations, decision.facts)
        closed, rows = frozenset(decision.facts.closed), self.book.devices
        touched = {device for device, _ in steps}
        if closed:
            touched |= {name for name, row in rows.items() if forgotten(row.observation, closed) is not row.observation}
        start = {name: rows.get(name) or Row(DeviceObservation(name=name)) for name in touched}
        after = {name: row.observation for name, row in start.items()}
        for device, step in steps:
            after[device] = step(after[device])
        if closed:
            after = {name: forgotten(observation, closed) for name, observation in after.items()}
        changed = {name: seen for name, seen in after.items() if seen != start[name].observation}
        self._put_rows({name: replace(start[name], observation=seen) for name, seen in changed.items()})

    def _put_tags(self, moved: Mapping[str, Mapping[str, str | None]]) -> None:
        for app, by_tag in moved.items():
            for tag, digest in by_tag.items():
                self.book.put(self.book.tags, (app, tag), digest)

    def _add_intents(self, decision: Decision) -> tuple[Intent, ...]:
        book, new = self.book, []
        wanted: dict[str, Action] = {action.key: action for action in decision.actions}
        for key, action in wanted.items():
            if key not in book.open:
                intent = Intent(self._next("intent"), key, action, decision.commit, decision.at)
                book.put(book.journal, intent.id, Entry(intent))
                book.put(book.open, key, intent.id)
                new.append(intent)
        return tuple(new)

    def open_intents(self) -> tuple[Intent, ...]:
        """Intents without an outcome, oldest first."""
        with self._read():
            return tuple(self.book.journal[number].intent for number in sorted(self.book.open.values()))

    def finish(self, epoch: int, intent: Intent, outcome: str, detail: str, at: datetime) -> None:
        """Write an outcome, `done` or `failed`. A proposal is on record from the moment its action is done."""
        book = self.book
        with self._write():
            self._fence(epoch)
            if outcome not in _OUTCOMES:
                raise TerminalError(f"{outcome!r} is not an outcome; it is one of {', '.join(_OUTCOMES)}")
            entry = book.journal.get(intent.id)
            if entry is None or entry.intent.key != intent.key:
                raise TerminalError(f"the journal holds no intent {intent.id} ({intent.key})")
            if entry.outcome is not None:
                if entry.outcome != outcome:
                    raise TerminalError(f"intent {intent.id} ({intent.key}) is {entry.outcome} already, not {outcome}")
                return
            error = (detail or None) if outcome == "failed" else entry.intent.last_error
            ended = replace(entry.intent, attempts=entry.intent.attempts + 1, last_error=error)
            said = (detail or None) if outcome == "done" else None
            book.put(book.journal, intent.id, Entry(ended, outcome, said, at))
            book.put(book.open, intent.key, ABSENT)
            if outcome == "done" and intent.action.kind is ActionKind.PROPOSE_REVERT:
                fields = intent.action.fields
                release = fields.get("image") or f"{fields.get('app')}@{fields.get('release')}"
                book.put(book.proposals, release, book.proposals.get(release, at))

    def retry(self, epoch: int, intent: Intent, error: str, not_before: datetime) -> None:
        """Write that an intent failed for now, and when to try again."""
        with self._write():
            self._fence(epoch)
            entry = self.book.journal.get(intent.id)
            if entry is None or entry.outcome is not None:
                raise TerminalError(
                    f"intent {intent.id} ({intent.key}) is not open", needed_for="trying it again later"
                )
            tried = replace(entry.intent, attempts=entry.intent.attempts + 1, last_error=error, not_before=not_before)
            self.book.put(self.book.journal, intent.id, replace(entry, intent=tried))

    def journal(self, limit: int = 100) -> Sequence[Mapping[str, str | None]]:
        """The newest journal rows, newest first."""
        with self._read():
            return [shown(self.book.journal[number]) for number in sorted(self.book.journal, reverse=True)[:limit]]

    def prune_journal(self, epoch: int, before: datetime) -> int:
        """Drop intents that were finished before an instant; returns how many. Open ones always stay."""
        with self._write():
            self._fence(epoch)
            rows = self.book.journal.items()
            old = [number for number, entry in rows if entry.finished_at is not None and entry.finished_at < before]
            for number in old:
                self.book.put(self.book.journal, number, ABSENT)
            return len(old)

    def assignment(self, device: str) -> AssignmentRow | None:
        """The device's latest assignment."""
        with self._read():
            return self.book.assignments.get(device)

    def assignments(self, devices: Sequence[str]) -> Mapping[str, AssignmentRow]:
        """The latest assignments of these devices; those that have none are left out."""
        with self._read():
            rows = self.book.assignments
            return {name: rows[name] for name in sorted(set(devices)) if name in rows}

    def conditions(self) -> tuple[ConditionRow, ...]:
        """The loop's conditions as last recorded, by type."""
        with self._read():
            return tuple(self.book.conditions[kind] for kind in sorted(self.book.conditions))

    def save_plan(self, epoch: int, document: str) -> None:
        """Keep the last plan as it was printed."""
        with self._write():
            self._fence(epoch)
            self.book.put(self.book.words, "plan", document)

    def last_plan(self) -> str | None:
        """The last plan's JSON, or None before the first tick."""
        with self._read():
            found: str | None = self.book.words.get("plan")
            return found

    # ------------------------------------------------------------ commits and tokens

    def last_good_commit(self) -> str | None:
        """The commit in force."""
        with self._read():
            found: str | None = self.book.words.get("commit")
            return found

    def accept_commit(self, epoch: int, sha: str, at: datetime) -> None:
        """Put a commit in force."""
        with self._write():
            self._fence(epoch)
            self._put_commit(sha, at)

    def add_token(self, device: str, token_hash: str, at: datetime) -> None:
        """Enrol a device, replacing an earlier token. TerminalError: another device has it."""
        with self._write():
            owner = self.device_of_token(token_hash)
            if owner not in (None, device):
                raise TerminalError(f"this token is {owner}'s already", needed_for=f"enrolling {device}")
            self.book.put(self.book.tokens, device, (token_hash, at))

    def device_of_token(self, token_hash: str) -> str | None:
        """Whose token has this hash, or None."""
        return self.devices_of_tokens([token_hash]).get(token_hash)

    def devices_of_tokens(self, token_hashes: Sequence[str]) -> Mapping[str, str]:
        """The same for many hashes at once; unknown ones are left out."""
        wanted = set(token_hashes)
        with self._read():
            return {known: device for device, (known, _) in self.book.tokens.items() if known in wanted}

    def revoke_token(self, device: str) -> bool:
        """Forget a device's token; returns whether it had one."""
        with self._write():
            had = device in self.book.tokens
            self.book.put(self.book.tokens, device, ABSENT)
            return had

    def tokens(self) -> Mapping[str, datetime]:
        """Enrolled devices, and when their token was made."""
        with self._read():
            return {device: self.book.tokens[device][1] for device in sorted(self.book.tokens)}


def _first(change: tuple[int, str]) -> int:
    return change[0]
