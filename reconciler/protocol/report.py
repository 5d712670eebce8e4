"""A device's report: what it runs, how it is, what it refused. The upward half of one exchange.

Python 3.10, standard library only: runs as root on a device. Holds the document's shape and bounds; what a report
means for a rollout is decided by the controller. A report comes from whoever holds the device's token, so every value
is bounded and typed before it is used. Unknown keys are ignored (see the package's rule of compatibility). Source:
design, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from reconciler.protocol import PROTOCOL
from reconciler.protocol.canonical import Fields, Malformed, dump, format_instant, is_digest, load

MAX_REPORT_BYTES = 64 * 1024
MAX_CHECKS = 64
MAX_APPS = 32
MAX_ATTEMPTS = 64
MAX_REFUSALS = 16
MESSAGE_CHARS = 300
REASON_CHARS = 500

SLOTS = ("a", "b")
PHASES = ("idle", "prefetching", "writing", "rebooting", "trial", "configuring", "restarting")
HEALTH = ("ok", "warning", "critical", "unknown")

Serial = tuple[int, int]
"""(epoch, n): compared in this order."""


class ReportError(Malformed):
    """Bytes are not a report."""


@dataclass(frozen=True)
class Check:
    """One check of healthcheck.sh: its name, `ok`, `warning`, `critical` or `unknown`, and what it says."""

    name: str
    status: str
    message: str = ""


@dataclass(frozen=True)
class Slot:
    """What one slot holds. Release and digest are None where the slot is empty or was never finished."""

    release: str | None = None
    digest: str | None = None
    good: bool = False


@dataclass(frozen=True)
class DeviceClock:
    """What a device knows of its clock: the instant that it showed when the report was made, whether its time service says
    that it is synchronised, and by how many milliseconds that one takes it to be ahead (None: nobody knows).

    `at` takes no part in comparisons: a report that differs by it alone says nothing new.
    """

    at: datetime = field(compare=False)
    synchronised: bool
    ahead_ms: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Refusal:
    """Something the device would not do: a code, one sentence, and the serial of the assignment where it is known."""

    code: str
    reason: str
    serial: Serial | None = None


@dataclass(frozen=True)
class Report:
    """One report. `sequence` rises within a boot id; `serial` is that of the last accepted assignment.

    `image` and `previous` are what `/etc/edge-image-version` says; `attempts` counts failed attempts by release or
    `app@version`; `checks_before` are the checks as they were before the last update, to compare `checks` with.
    """

    device: str
    site: str
    boot_id: str
    sequence: int
    serial: Serial | None = None
    booted: str = "a"
    slots: Mapping[str, Slot] = field(default_factory=lambda: {"a": Slot(), "b": Slot()})
    image: str | None = None
    previous: str | None = None
    phase: str = "idle"
    target: str | None = None
    health: str = "unknown"
    checks: tuple[Check, ...] = ()
    checks_before: tuple[Check, ...] = ()
    config: str | None = None
    apps: Mapping[str, str] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    agent: str = ""
    clock: DeviceClock | None = None
    """None from an agent that does not tell."""

    @property
    def inactive(self) -> Slot:
        """The slot that is not booted."""
        return self.slots.get("b" if self.booted == "a" else "a", Slot())

    def to_bytes(self) -> bytes:
        """Canonical JSON. A report built from values out of bounds is a fault of the caller: ReportError."""
        data = dump(
            {
                "protocol": PROTOCOL,
                "agent": self.agent,
                "device": self.device,
                "site": self.site,
                "bootId": self.boot_id,
                "sequence": self.sequence,
                "serial": _serial(self.serial),
                "booted": self.booted,
                "slots": {
                    name: {"release": slot.release, "digest": slot.digest, "good": slot.good}
                    for name, slot in self.slots.items()
                },
                "image": self.image,
                "previous": self.previous,
                "phase": self.phase,
                "target": self.target,
                "health": self.health,
                "checks": _checks_out(self.checks),
                "checksBefore": _checks_out(self.checks_before),
                "config": self.config,
                "apps": dict(self.apps),
                "attempts": dict(self.attempts),
                **({"clock": _clock_out(self.clock)} if self.clock is not None else {}),
                "refusals": [
                    {"code": item.code, "reason": item.reason, "serial": _serial(item.serial)} for item in self.refusals
                ],
            }
        )
        if len(data) > MAX_REPORT_BYTES:
            raise ReportError(f"the report has {len(data)} bytes; at most {MAX_REPORT_BYTES} are accepted")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Report:
        """Parse untrusted bytes. Raises ReportError, which names the key and the offending value."""
        try:
            return _parse(Fields(load(data, MAX_REPORT_BYTES, "report"), "report"))
        except ReportError:
            raise
        except Malformed as error:
            raise ReportError(error.reason) from None


def worse_checks(before: Sequence[Check], after: Sequence[Check]) -> tuple[str, ...]:
    """Names of checks that are worse than before: `ok` and `warning` are good, then `unknown`, then `critical`.

    A check that did not exist before counts as good before; one that is gone is not worse (contract: `warning` counts
    as good).
    """
    rank = {"ok": 0, "warning": 0, "unknown": 1, "critical": 2}
    was = {check.name: rank[check.status] for check in before}
    return tuple(sorted({check.name for check in after if rank[check.status] > was.get(check.name, 0)}))


def overall(checks: Sequence[Check]) -> str:
    """Health of a device from its checks: the worst of them, `unknown` where there are none."""
    statuses = {check.status for check in checks}
    return next((word for word in ("critical", "unknown", "warning", "ok") if word in statuses), "unknown")


def _serial(serial: Serial | None) -> list[int] | None:
    return list(serial) if serial is not None else None


def _clock_out(clock: DeviceClock) -> dict[str, Any]:
    return {"at": format_instant(clock.at), "synchronised": clock.synchronised, "aheadMs": clock.ahead_ms}


def _clock_in(fields: Fields) -> DeviceClock | None:
    if fields.value.get("clock") is None:
        return None
    part = Fields(fields.value["clock"], "report `clock`")
    ahead = part.value.get("aheadMs")
    if ahead is not None and (not isinstance(ahead, int) or isinstance(ahead, bool)):
        raise part.bad("aheadMs", "a whole number of milliseconds")
    return DeviceClock(part.instant("at"), part.flag("synchronised"), ahead)


def _checks_out(checks: Sequence[Check]) -> list[dict[str, str]]:
    return [{"name": check.name, "status": check.status, "message": check.message} for check in checks]


def _checks_in(fields: Fields, key: str) -> tuple[Check, ...]:
    found = []
    for item in fields.items(key, MAX_CHECKS):
        part = Fields(item, f"report `{key}`")
        found.append(
            Check(
                part.text("name", 64),
                part.word("status", HEALTH),
                part.text("message", MESSAGE_CHARS, empty=True, default=""),
            )
        )
    if len({check.name for check in found}) != len(found):
        raise ReportError(f"report: `{key}` names a check twice")
    return tuple(found)


def _slots_in(fields: Fields) -> dict[str, Slot]:
    found = {}
    for name, item in fields.mapping("slots", 2, missing_ok=False).items():
        if name not in SLOTS:
            raise ReportError(f"report: `slots` names {name[:20]!r}; a device has slots a and b")
        part = Fields(item, f"report slot {name}")
        found[name] = Slot(
            release=part.optional("release", part.text),
            digest=part.optional("digest", part.digest),
            good=part.flag("good"),
        )
    return {name: found.get(name, Slot()) for name in SLOTS}


def _refusals_in(fields: Fields) -> tuple[Refusal, ...]:
    found = []
    for item in fields.items("refusals", MAX_REFUSALS):
        part = Fields(item, "report `refusals`")
        found.append(
            Refusal(part.text("code", 64), part.text("reason", REASON_CHARS), part.optional("serial", part.serial))
        )
    return tuple(found)


def _parse(fields: Fields) -> Report:
    number: Any = fields.whole("protocol", 1)
    if number != PROTOCOL:
        raise ReportError(f"report: `protocol` is {number}; this end speaks {PROTOCOL}")
    apps = fields.mapping("apps", MAX_APPS)
    for name, digest in apps.items():
        if not is_digest(digest):
            raise ReportError(f"report: app {name!r} has {str(digest)[:80]!r}, which is not a digest")
    attempts = fields.mapping("attempts", MAX_ATTEMPTS)
    for key, count in attempts.items():
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 1_000_000:
            raise ReportError(f"report: attempts for {key!r} is {str(count)[:80]!r}, not a count")
    return Report(
        device=fields.name("device"),
        site=fields.name("site"),
        boot_id=fields.text("bootId", 64),
        sequence=fields.whole("sequence"),
        serial=fields.optional("serial", fields.serial),
        booted=fields.word("booted", SLOTS),
        slots=_slots_in(fields),
        image=fields.optional("image", fields.text),
        previous=fields.optional("previous", fields.text),
        phase=fields.word("phase", PHASES),
        target=fields.optional("target", lambda key: fields.text(key, 192)),
        health=fields.word("health", HEALTH),
        checks=_checks_in(fields, "checks"),
        checks_before=_checks_in(fields, "checksBefore"),
        config=fields.optional("config", fields.digest),
        apps=apps,
        attempts=attempts,
        refusals=_refusals_in(fields),
        agent=fields.text("agent", 64, empty=True, default=""),
        clock=_clock_in(fields),
    )
