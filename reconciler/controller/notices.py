"""Which events become one message to a target, in which words, and where a person reads on. Pure; sends and keeps nothing.

A storm is one message with a count: of each kind a target gets a few messages a minute, what exceeds them is gathered until the
minute is over. Called by `notify`; the words are made when a message is sent, so that only the events themselves are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import quote

from reconciler.controller.conditions import Type
from reconciler.model.events import Event, EventKind
from reconciler.model.notices import Batch, Delivery, Message

FOLD_ABOVE = 5
"""Messages of one kind to one target within `WITHIN`; more events than these are told as one."""
WITHIN = timedelta(minutes=1)
_SHOWN = 10
"""Events whose sentences stand in a message; of the others, how many there are."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """What a target asks for. No waves: all of them."""

    target: str
    kinds: Collection[EventKind]
    waves: Collection[str] = ()

    def takes(self, event: Event) -> bool:
        """Whether the target is told of an event. What concerns no wave passes the choice of waves."""
        # Whether notifications get through is never told by notifications: each success would be the next thing to tell.
        own = event.kind is EventKind.CONDITION_CHANGED and event.key.startswith(f"{Type.NOTIFICATIONS_READY} ")
        wave = not self.waves or event.wave is None or event.wave in self.waves
        return event.kind in self.kinds and wave and not own


# ---------------------------------------------------------------- what becomes one message


def fold(
    asked: Asked,
    events: Sequence[Event],
    gathering: Mapping[EventKind, Delivery],
    counts: Mapping[EventKind, int],
    now: datetime,
    make_id: Callable[[], str],
) -> tuple[Delivery, ...]:
    """Deliveries of events that are not in one yet: new ones, and ones of `gathering` that grew, in the order to record them.

    `gathering` are those that still grow, by kind. `counts` says how many events of a kind went out within the last minute.
    """
    kinds: dict[EventKind, list[Event]] = {}
    for event in events:
        if asked.takes(event):
            kinds.setdefault(event.kind, []).append(event)
    out: list[tuple[int, Delivery]] = []

    def new(part: Sequence[Event], ready_at: datetime) -> None:
        delivery = Delivery(None, asked.target, make_id(), Batch.of(part), now, ready_at)
        out.append((part[0].id or 0, delivery))

    for kind, found in kinds.items():
        before = counts.get(kind, 0)
        if kind in gathering:
            grown = gathering[kind]
            out.append((found[0].id or 0, replace(grown, batch=grown.batch.with_(Batch.of(found)))))
        elif before + len(found) <= FOLD_ABOVE:
            for event in found:
                new([event], now)
        else:
            # All at once is one message at once. Where some went out before, the rest waits for its fellows.
            new(found, now if before == 0 else now + WITHIN)
    return tuple(delivery for _, delivery in sorted(out, key=lambda pair: pair[0]))


# ---------------------------------------------------------------- words

_TITLES: dict[EventKind, tuple[str, str]] = {
    EventKind.COMMIT_ACCEPTED: ("A commit came into force", "{count} commits came into force"),
    EventKind.COMMIT_REFUSED: ("The branch's head is not acted on", "{count} heads of the branch were refused"),
    EventKind.WAVE_OPENED: ("Wave {wave} opened for {release}", "{count} waves opened"),
    EventKind.WAVE_SOAKING: ("Wave {wave} soaks {release}", "{count} soaks began"),
    EventKind.WAVE_SOAKED: ("Wave {wave} has soaked {release}", "{count} waves have soaked"),
    EventKind.WAVE_COMPLETE: ("Wave {wave} is complete on {release}", "{count} waves are complete"),
    EventKind.GATE_FAILED: ("The gate of wave {wave} failed for {release}", "{count} gates failed"),
    EventKind.REVERT_PROPOSED: ("The revert of {release} is proposed", "{count} reverts are proposed"),
    EventKind.DEVICE_FLAGGED: ("Device {device} is flagged on {release}", "{count} devices flagged"),
    EventKind.DEVICE_RECOVERED: ("The flag of {device} on {release} is gone", "{count} flags are gone"),
    EventKind.CONDITION_CHANGED: (
        "A condition of the controller changed",
        "{count} conditions of the controller changed",
    ),
    EventKind.KEY_EXPIRING: ("A signing key expires", "{count} signing keys expire"),
    EventKind.ASSIGNMENT_EXPIRING: ("The assignment of {device} expires", "{count} assignments expire"),
    EventKind.FLAG_ACKNOWLEDGED: ("A flag of {device} was acknowledged", "{count} flags were acknowledged"),
}
"""Of one event, and of many."""
PAGES: dict[EventKind, tuple[str, str]] = {
    EventKind.COMMIT_ACCEPTED: ("/commits/{commit}", "/commits"),
    EventKind.COMMIT_REFUSED: ("/commits/{commit}", "/commits"),
    EventKind.WAVE_OPENED: ("/rollout", "/rollout"),
    EventKind.WAVE_SOAKING: ("/rollout", "/rollout"),
    EventKind.WAVE_SOAKED: ("/rollout", "/rollout"),
    EventKind.WAVE_COMPLETE: ("/rollout", "/rollout"),
    EventKind.GATE_FAILED: ("/flagged", "/flagged"),
    EventKind.REVERT_PROPOSED: ("/flagged", "/flagged"),
    EventKind.DEVICE_FLAGGED: ("/devices/{device}", "/flagged"),
    EventKind.DEVICE_RECOVERED: ("/devices/{device}", "/flagged"),
    EventKind.CONDITION_CHANGED: ("/", "/"),
    EventKind.KEY_EXPIRING: ("/", "/"),
    EventKind.ASSIGNMENT_EXPIRING: ("/devices/{device}", "/"),
    EventKind.FLAG_ACKNOWLEDGED: ("/devices/{device}", "/flagged"),
}
"""The dashboard's page where a person reads on: of one event, and of many."""


def worded(batch: Batch, base: str | None) -> Message:
    """A batch in words. `base` is the dashboard's address, None where there is none."""
    first = batch.events[0]
    many = batch.count > 1
    title = _TITLES[batch.kind][many].format(count=batch.count, **_names_of(first))
    if many:
        title += _where(batch)
    lines = [_sentence(event) for event in batch.events[:_SHOWN]]
    if batch.count > len(lines):
        lines.append(f"… and {batch.count - len(lines)} more")
    reasons = dict.fromkeys(event.reason for event in batch.events if event.reason)
    return Message(
        kind=batch.kind.value,
        title=title,
        text="\n".join(f"- {line}" for line in lines) if many else lines[0],
        reason=", ".join(list(reasons)[:_NAMED]) or batch.kind.value,
        at=batch.last_at,
        count=batch.count,
        link=None if base is None else base.rstrip("/") + _page(batch),
        command=_command(batch),
        commit=first.commit,
        events=batch.events,
    )


def trial(target: str, base: str | None, at: datetime) -> Message:
    """What `reconciler notify test` sends."""
    return Message(
        kind="test",
        title="Notifications of reconciler reach this place",
        text=f"This is a test of the target {target}. Nothing happened, and nothing is to be done.",
        reason="test",
        at=at,
        count=1,
        link=None if base is None else base.rstrip("/") + "/",
        command="reconciler status",
    )


def _names_of(event: Event) -> dict[str, str]:
    names = {"wave": event.wave, "release": event.release, "device": event.device, "commit": event.commit}
    return {name: value or "(unknown)" for name, value in names.items()}


def _sentence(event: Event) -> str:
    """An event's own sentence; a refused head says it by its hash first."""
    text = event.message or event.kind.value
    return f"{event.commit[:12]}: {text}" if event.kind is EventKind.COMMIT_REFUSED and event.commit else text


def _where(batch: Batch) -> str:
    """What many events have in common."""
    said = ""
    if batch.kind not in _OF_WAVES and batch.waves:
        named = ", ".join(batch.waves[:_NAMED]) + (", …" if len(batch.waves) > _NAMED else "")
        said += f" in wave{'s' * (len(batch.waves) > 1)} {named}"
    if len(batch.releases) == 1:
        said += f" on {batch.releases[0]}"
    return said


_OF_WAVES = frozenset(
    {
        EventKind.WAVE_OPENED,
        EventKind.WAVE_SOAKING,
        EventKind.WAVE_SOAKED,
        EventKind.WAVE_COMPLETE,
    }
)


def _page(batch: Batch) -> str:
    one, many = PAGES[batch.kind]
    first = batch.events[0]
    wanted = {"{commit}": first.commit, "{device}": first.device}
    lacks = any(word in one and value is None for word, value in wanted.items())
    if batch.count > 1 or lacks:
        return many
    return one.format(commit=quote(first.commit or "", safe=""), device=quote(first.device or "", safe=""))


def _command(batch: Batch) -> str:
    """What to type on the controller to read on."""
    first = batch.events[0]
    if batch.count == 1 and first.device is not None:
        return f"reconciler explain {first.device}"
    if batch.count == 1 and batch.kind is EventKind.COMMIT_REFUSED and first.commit is not None:
        return f"git show {first.commit}"
    if len(batch.waves) == 1:
        return f"reconciler explain {batch.waves[0]}"
    return "reconciler status"
