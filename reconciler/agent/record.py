"""What is on record of a device, for a person: as one value, and as text. Reads files alone; needs no server and no lock.

Python 3.10, standard library only: runs as root on a device. Decides nothing. Called by `console`, beside a running
agent or without one: what only a running agent knows (`live`) is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from reconciler.agent.disk import Disk
from reconciler.agent.hardware import BootFlags, Hardware, HardwareError, ImageVersion
from reconciler.agent.state import Memory, StateError, StateFile
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.canonical import format_instant
from reconciler.protocol.report import Slot

_T = TypeVar("_T")
_NO_SLOTS: Mapping[str, Slot] = {}
_NO_APPS: Mapping[str, str] = {}


def record(hardware: Hardware, live: Mapping[str, Any] | None) -> dict[str, Any]:
    """The device as JSON. What is there and cannot be read is left empty, and named in `faults`."""
    faults: list[str] = []

    def known(ask: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return ask()
        except (HardwareError, StateError, OSError) as error:
            faults.append(str(error))
            return otherwise

    memory = known(StateFile(hardware.state_folder() / "state.json", Disk()).load, Memory())
    flags = known(hardware.flags, BootFlags("unknown"))
    version, intent, clock = known(hardware.version, ImageVersion()), memory.intent, hardware.clock()
    slots = known(hardware.slots, _NO_SLOTS) or {"a": Slot(), "b": Slot()}
    return {
        "faults": faults,
        "booted": hardware.booted(),
        "default": flags.default,
        "trial": flags.trial,
        "slots": {
            name: {"release": slot.release, "digest": slot.digest, "good": slot.good} for name, slot in slots.items()
        },
        "current": version.current,
        "previous": version.previous,
        "serial": list(memory.last_serial) if memory.last_serial else None,
        "assignment": _assignment(memory.accepted.assignment) if memory.accepted else None,
        "heldUnder": list(memory.held_under) if memory.held_under else None,
        "intent": {"kind": intent.kind, "key": intent.key, "byHand": intent.by_hand} if intent else None,
        "attempts": dict(memory.attempts),
        "config": known(hardware.config_digest, None),
        "apps": dict(known(hardware.apps, _NO_APPS)),
        "clock": {"synchronised": clock.synchronised, "skewS": clock.skew_s},
        "agent": dict(live) if live is not None else None,
    }


def _assignment(assignment: Assignment) -> dict[str, Any]:
    image = assignment.image
    return {
        "issuedAt": format_instant(assignment.issued_at),
        "expiresAt": format_instant(assignment.expires_at),
        "image": image.release if image else None,
        "apps": {name: app.version for name, app in assignment.apps.items()},
        "config": assignment.config,
        "window": [[format_instant(start), format_instant(end)] for start, end in assignment.window],
        "windowWaived": assignment.window_waived,
    }


def text(value: Mapping[str, Any]) -> str:
    """The same for reading, a line a fact."""
    slots, booted = value["slots"], value["booted"]
    other = "b" if booted == "a" else "a"
    lines = [
        (
            "runs",
            f"{_slot(slots[booted])}, slot {booted}"
            + ("" if value["default"] in (booted, "unknown") else ", on trial"),
        ),
        ("other slot", f"{_slot(slots[other])}, slot {other}" + (", armed for a trial" if value["trial"] else "")),
        ("on record", f"current {value['current'] or 'none'}, previous {value['previous'] or 'none'}"),
        ("configuration", value["config"] or "none"),
        *(("app", f"{name} {digest}") for name, digest in sorted(value["apps"].items())),
        ("clock", _clock(value["clock"])),
        ("assignment", _told(value)),
    ]
    if value["intent"]:
        lines.append(("begun", f"{value['intent']['kind']} {value['intent']['key']}"))
    lines += [("failed", f"{key}, {count} times") for key, count in sorted(value["attempts"].items())]
    lines += [("fault", fault) for fault in value["faults"]]
    lines += _agent(value["agent"])
    return "".join(f"{name:<14} {said}\n" for name, said in lines)


def _slot(slot: Mapping[str, Any]) -> str:
    if slot["digest"] is None:
        return "nothing on record"
    return f"{slot['release']} ({'good' if slot['good'] else 'never good'}) {slot['digest']}"


def _clock(clock: Mapping[str, Any]) -> str:
    if not clock["synchronised"]:
        return "not synchronised: nothing begins in a window"
    skew = clock["skewS"]
    return "synchronised" + (f", {abs(skew):.3f} s {'ahead' if skew >= 0 else 'behind'}" if skew is not None else "")


def _told(value: Mapping[str, Any]) -> str:
    told, serial = value["assignment"], value["serial"]
    if told is None:
        return "none yet" if serial is None else f"{serial[0]}.{serial[1]}, which this agent cannot follow"
    wants = [told["image"]] if told["image"] else []
    wants += [f"{name} {version}" for name, version in sorted(told["apps"].items())]
    wants += ["a configuration"] if told["config"] else []
    held = "; held since somebody went back at the console" if value["heldUnder"] == serial else ""
    opens = "waived" if told["windowWaived"] else " ".join("/".join(span) for span in told["window"]) or "none"
    return (
        f"{serial[0]}.{serial[1]}, expires {told['expiresAt']}: {', '.join(wants) or 'nothing'}; windows: {opens}{held}"
    )


def _agent(live: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if live is None:
        return [("agent", "not running")]
    if "error" in live:
        return [("agent", str(live["error"]))]
    doing = " ".join(str(part) for part in (live["state"], live["target"]) if part)
    reached = "reached the server" if live["reached"] else f"has not reached the server: {live['because']}"
    lines = [("agent", f"{doing}; {reached}; reports next at {live['reportsAt'] or 'once'}")]
    return lines + [("refused", f"{item['code']}: {item['reason']}") for item in live["refusals"]]
