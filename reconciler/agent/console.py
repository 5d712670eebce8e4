"""Commands for a person on the console of a device: status, apply, rollback, verify. Beside a running agent, or without.

Python 3.10, standard library only: runs as root on a device. Where an agent runs it is asked over its socket (`control`)
and does the work itself; where none runs, the work is done here, under the same lock. Never past a window, a check or a
signature: those are the agent's to keep. Called by `main`. Source: docs/reference/device.md, "Commands for a person".
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from reconciler.agent import control, loop, record
from reconciler.agent.device import Life
from reconciler.agent.hardware import Hardware
from reconciler.agent.judge import Keyring
from reconciler.agent.transport import TransportError
from reconciler.protocol.signature import Refused, verify_detached

POLL_S = 0.5
SILENT_S = 600.0
"""So long an agent may be at one step before a command gives up waiting for it."""
FINE, WRONG, USAGE, UNREACHED = 0, 1, 2, 3


class Declined(Exception):
    """What a person asked for is not done: one sentence that says why, or what to do. `status` is the exit status."""

    def __init__(self, reason: str, status: int = WRONG) -> None:
        super().__init__(reason)
        self.status = status


def say(text: str) -> None:
    """Progress: one line on standard error."""
    print(text, file=sys.stderr, flush=True)


def show(hardware: Hardware, folder: Path, *, as_json: bool, is_held: Callable[[], bool] = lambda: False) -> int:
    """`status`: what is on record, and what a running agent is at. `is_held` tells whether an agent holds the lock."""
    live: Mapping[str, Any] | None = None
    try:
        live = control.ask(folder, {"ask": "status"}, 3.0)
    except control.NotRunning:
        if is_held():
            live = {"error": deaf(folder)}
    except control.Silent as error:
        live = {"error": str(error)}
    value = record.record(hardware, live)
    sys.stdout.write(json.dumps(value, indent=2) + "\n" if as_json else record.text(value))
    for fault in value["faults"]:
        say(f"edge-agent: {fault}")
    return WRONG if value["faults"] else FINE


def deaf(folder: Path) -> str:
    """Why an agent that runs cannot be asked, and what to do."""
    path = folder / control.NAME
    try:
        lies = "is not a socket" if not stat.S_ISSOCK(os.lstat(path).st_mode) else "is one that nobody listens at"
    except FileNotFoundError:
        lies = "is not there"
    except OSError as error:
        lies = f"cannot be looked at ({error.strerror})"
    return (
        f"runs, since it holds its lock, but cannot be asked: {path} {lies}. Why it could not be made stands in the journal"
        " (journalctl -u edge-agent); mend that, and start the agent anew. Where it is another command of a person's that holds"
        " the lock, wait for that one"
    )


# ---------------------------------------------------------------- with the agent that runs


class Ended(NamedTuple):
    """How a command ended: its exit status, and whether the machine goes down, so that there is nothing more to see."""

    status: int
    is_down: bool = False


def ask_running(folder: Path, question: str) -> Ended | None:
    """Have the running agent do it, and follow it to its end. None: no agent runs. Raises Declined."""
    try:
        before = _asked(folder, "status")
        live = _asked(folder, question)
    except control.NotRunning:
        return None
    if question == "apply":
        return _follow(folder, live, lambda now: now["exchanges"] > before["exchanges"] or now["pid"] != before["pid"])
    return _follow(folder, live, lambda _: True)


def _asked(folder: Path, question: str) -> dict[str, Any]:
    ends = time.monotonic() + SILENT_S
    while True:
        try:
            found = control.ask(folder, {"ask": question})
            break
        except control.Silent as error:
            # Asked twice, both questions do the same once more, so asking again is safe.
            if time.monotonic() > ends:
                raise Declined(str(error), UNREACHED) from None
            say(str(error))
    if "error" in found:
        raise Declined(str(found["error"]))
    return found


def _follow(folder: Path, live: dict[str, Any], has_begun: Callable[[Mapping[str, Any]], bool]) -> Ended:
    """Tell what the agent is at until it is at rest, or goes down with the machine."""
    said, first = "", True
    while True:
        line = " ".join(str(part) for part in (live["state"], live["target"]) if part)
        if line != said:
            say(line)
            said = line
        if live["leaving"]:
            say("the device reboots; after that the agent judges what it has booted: see `edge-agent status`")
            return Ended(FINE, True)
        if not first and has_begun(live) and live["atRest"]:
            return Ended(_ending(live))
        first = False
        time.sleep(POLL_S)
        try:
            live = _asked(folder, "status")
        except control.NotRunning:
            say("the agent has ended: the device reboots, or somebody stopped it; see `edge-agent status`")
            return Ended(FINE, True)


def _ending(live: Mapping[str, Any]) -> int:
    if not live["reached"]:
        say(f"the server was not reached: {live['because']}")
        return UNREACHED
    status = refused(live)
    if live["wakesAt"] is not None and not live["refusals"]:
        say(f"there is more to do, not before {live['wakesAt']}")
    if not live["refusals"] and live["wakesAt"] is None:
        say("nothing is left to do")
    return status


def refused(live: Mapping[str, Any]) -> int:
    """Say what stands refused, and the exit status of that: what was only not reached may be, later."""
    for item in live["refusals"]:
        say(f"{item['code']}: {item['reason']}")
    codes = {item["code"] for item in live["refusals"]}
    if codes == {"not-fetched"}:
        return UNREACHED
    return WRONG if codes else FINE


# ---------------------------------------------------------------- without one


def apply_here(life: Life) -> Ended:
    """`apply` where no agent runs: ask the server, and do what is due now, to the end of it."""
    _steps(life)
    return Ended(FINE, True) if life.is_over else Ended(_ending(loop.standing(life)))


def rollback_here(life: Life) -> Ended:
    """`rollback` where no agent runs. The trial is judged by the agent that runs after the boot."""
    while not life.agent.wake(loop.utc_now()):
        pass
    why_not = life.agent.work.go_back()
    if why_not is not None:
        raise Declined(why_not)
    # Whether the server can be reached or not: a person has decided. It hears of it with the next report.
    life.agent.report_from(loop.utc_now() + timedelta(seconds=60), 60)
    _steps(life)
    if not life.is_over:
        for item in life.agent.notes.refusals():
            say(f"{item.code}: {item.reason}")
    return Ended(FINE, life.is_over)


def _steps(life: Life) -> None:
    """Step until the agent is at rest or the machine goes down, telling what it is at."""
    said = ""
    while True:
        due = life.step(loop.utc_now())
        if life.is_over:
            say("the device reboots; the agent that runs after that judges what it has booted")
            return
        line = loop.described(life)
        if line != said:
            say(line)
            said = line
        if loop.at_rest(life.agent, loop.utc_now()) and due > loop.utc_now() + timedelta(seconds=1):
            return
        time.sleep(min(max((due - loop.utc_now()).total_seconds(), 0.0), POLL_S * 20))


# ---------------------------------------------------------------- going back, and proving


def other_slot(hardware: Hardware) -> tuple[str, str]:
    """The slot that `rollback` would switch to, and what that is in words. Declined: there is nothing."""
    slot = "b" if hardware.booted() == "a" else "a"
    held = hardware.slots()[slot]
    if not held.good or held.digest is None:
        raise Declined(f"slot {slot} holds nothing that was good, so there is nothing to go back to")
    return slot, f"slot {slot} with {held.release}"


def gone_back(hardware: Hardware, wanted: str, ended: Ended) -> int:
    """The exit status of `rollback`. Declined: the trial is over, and the device does not run what was asked for."""
    if ended.is_down:
        return ended.status
    booted = hardware.booted()
    if booted != wanted:
        raise Declined(f"slot {wanted} was not kept; it runs slot {booted} again, for the reasons above")
    say(f"slot {booted} runs, and is marked good; it stays until the server sends a newer assignment")
    return FINE


def ask_first(hardware: Hardware) -> NoReturn:
    """Say what `rollback` would do, and that it takes `--yes`."""
    raise Declined(
        f"this reboots the device into {other_slot(hardware)[1]}, on trial; it stays there until the server sends a newer"
        " assignment. To do it, add --yes",
        USAGE,
    )


def verify(path: Path, keyring: Keyring, slot_bytes: int, *, as_json: bool) -> int:
    """`verify`: prove an artifact's folder, or a packed image with its papers beside it."""
    from reconciler.agent.inspection import inspect

    try:
        found = inspect(path, keyring, verify_detached, slot_bytes, loop.utc_now())
    except Refused as error:
        if as_json:
            print(json.dumps({"accepted": False, "code": error.code, "reason": error.reason}, indent=2))
        raise Declined(f"{path} is refused: {error.code}: {error.reason}") from None
    except TransportError as error:
        raise Declined(str(error)) from None
    manifest = found.manifest
    value = {
        "accepted": True,
        "release": manifest.release,
        "digest": manifest.digest,
        "file": manifest.file,
        "size": manifest.size,
        "sha256": found.sha256,
        "imageSize": manifest.image_size,
        "signedBy": found.primary,
        "signedAt": found.signed_at.isoformat(),
        "others": list(found.others),
        "absent": list(found.absent),
    }
    if as_json:
        print(json.dumps(value, indent=2))
        return FINE
    print(f"{manifest.release} is genuine: signed by {found.primary} at {found.signed_at.isoformat()}")
    print(f"image    {manifest.digest}, {manifest.image_size} bytes")
    print(f"packed   sha256:{found.sha256}, {manifest.size} bytes, {manifest.file}")
    for name in found.others:
        print(f"fits     {name}")
    for name in found.absent:
        print(f"not here {name}")
    return FINE
