"""The doorbell over AWS Systems Manager Run Command: asks devices to call in now.

A ring runs one pinned document (name and number of its version, with its sha256 if given) on the devices' managed
nodes, at most 50 a call. Nothing of an assignment travels this way: the document does no more than start the agent's
exchange. SendCommand has no idempotency token, and botocore may send one twice after a lost answer, so a ring is best
effort: twice is harmless, and a device that misses it calls in by itself within `reportEvery`. A device whose last
ring is still pending is not rung again but looked up.

Devices are found by DescribeInstanceInformation: a managed node's `ComputerName` (its host name) or `Name` (given at
activation) is the device's name. That answer holds no tags, so a tag can narrow the nodes (`only_tag`) but not name
them. The map is cached for five minutes and read again earlier, at most once a minute, when a device is not on it; of
two nodes with one name the one seen last counts. At 50 nodes a page this suits thousands of devices, not a million:
larger fleets leave the doorbell out.

States: `delivered` (the document ran, whatever came of it), `pending`, `timed-out` (not delivered in time,
undeliverable, or not sent because AWS stopped answering half-way), `unknown` (no managed node of this name).

Permissions: ssm:SendCommand on the document and the nodes, ssm:ListCommandInvocations,
ssm:DescribeInstanceInformation. Dependency: boto3. moto's Run Command is no proof of anything (it says Success for
any node), so the tests have a server of their own.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import ClientError

from reconciler.adapters.aws import Aws, code_of, translated
from reconciler.ports import TerminalError, TransientError

_BATCH = 50
_PAGE = 50
_FRESH_S = 60.0
_PURPOSE = "asking devices to call in"
_DOCUMENT = re.compile(r"^[A-Za-z0-9_.:/-]{3,128}$")
_VERSION = re.compile(r"^[1-9][0-9]{0,9}$")
_HASH = re.compile(r"^[0-9a-f]{64}$")
_PARAMETER = re.compile(r"^[A-Za-z][A-Za-z0-9]{0,63}$")
# Documents paste parameters into shell scripts: nothing that a shell reads as more than a word.
_VALUE = re.compile(r"^[A-Za-z0-9._:@%/+=-]{1,256}$")
_WAITING = frozenset({"Pending", "InProgress", "Delayed", "Cancelling"})
_UNREACHED = frozenset({"Undeliverable", "DeliveryTimedOut", "Terminated", "InvalidPlatform", "AccessDenied"})


@dataclass(frozen=True, slots=True)
class Bell:
    """What a ring runs: a document of this account, its version's number, and its parameters. TerminalError: not pinned."""

    document: str
    version: str
    sha256: str | None = None
    parameters: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        remedy = "set the document's name and the number of its version; $LATEST and $DEFAULT can change under us"
        if not _DOCUMENT.match(self.document):
            raise TerminalError(f"{self.document!r} is not a document's name", needed_for=_PURPOSE, remedy=remedy)
        if not _VERSION.match(self.version):
            raise TerminalError(f"{self.version!r} pins no document version", needed_for=_PURPOSE, remedy=remedy)
        if self.sha256 is not None and not _HASH.match(self.sha256):
            raise TerminalError("the document's sha256 is not 64 hex digits", needed_for=_PURPOSE, remedy=remedy)
        for name, values in (self.parameters or {}).items():
            if not _PARAMETER.match(name) or isinstance(values, str) or not all(_VALUE.match(each) for each in values):
                advice = "use lists of plain words: letters, digits and . _ : @ % / + = -"
                raise TerminalError(f"parameter {name!r} is not safe to send", needed_for=_PURPOSE, remedy=advice)


@dataclass(frozen=True, slots=True)
class _Ring:
    """A ring under way: its command and node, and when waiting for it ends (monotonic seconds)."""

    command: str
    node: str
    until: float


class SsmDoorbell:
    """`ports.Doorbell`. Safe from any thread, one ring at a time.

    `timeout_s`: how long SSM tries to deliver (30 at least). `wait_s`: how long `ring` itself waits for states.
    """

    def __init__(
        self,
        aws: Aws,
        bell: Bell,
        *,
        name_field: Literal["ComputerName", "Name"] = "ComputerName",
        only_tag: tuple[str, str] | None = None,
        timeout_s: int = 60,
        wait_s: float = 5,
        cache_s: float = 300,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not 30 <= timeout_s <= 2_592_000:
            raise ValueError(f"timeout_s is {timeout_s}; SSM takes 30 to 2592000 seconds")
        self._client, self._bell = aws.client("ssm"), bell
        self._name_field, self._only_tag = name_field, only_tag
        self._timeout_s, self._wait_s, self._cache_s = timeout_s, wait_s, cache_s
        self._clock, self._sleep, self._lock = clock, sleep, threading.Lock()
        self._nodes: dict[str, str] = {}
        self._nodes_read: float | None = None
        self._rings: dict[str, _Ring] = {}

    def ring(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Device → state. TransientError: no device could be rung now. TerminalError: the document or a permission."""
        with self._lock:
            wanted = sorted(set(devices))
            if not wanted:
                return {}
            nodes = self._find(wanted)
            now = self._clock()
            self._rings = {device: ring for device, ring in self._rings.items() if ring.until > now}
            fresh = [device for device in wanted if device in nodes and device not in self._rings]
            failed = self._send_all(fresh, nodes)
            watched = {device: self._rings[device] for device in wanted if device in self._rings}
            out = dict.fromkeys(wanted, "unknown") | dict.fromkeys(failed, "timed-out") | self._watch(watched)
            for device in watched:
                if out[device] != "pending":
                    del self._rings[device]
            return out

    # ------------------------------------------------ devices

    def _find(self, wanted: Sequence[str]) -> Mapping[str, str]:
        age = None if self._nodes_read is None else self._clock() - self._nodes_read
        missing = any(device not in self._nodes for device in wanted)
        if age is None or age >= self._cache_s or (missing and age >= _FRESH_S):
            self._nodes = self._inventory()
            self._nodes_read = self._clock()
        return self._nodes

    def _inventory(self) -> dict[str, str]:
        """Device → managed node, of all pages."""
        best: dict[str, tuple[float, str]] = {}
        narrow = [{"Key": f"tag:{self._only_tag[0]}", "Values": [self._only_tag[1]]}] if self._only_tag else []
        pages = self._client.get_paginator("describe_instance_information")
        with translated("list the managed nodes", needed_for=_PURPOSE):
            for page in pages.paginate(Filters=narrow, PaginationConfig={"PageSize": _PAGE}):
                for row in page.get("InstanceInformationList", ()):
                    if name := row.get(self._name_field):
                        seen = row["LastPingDateTime"].timestamp() if "LastPingDateTime" in row else 0.0
                        best[name] = max(best.get(name, (0.0, "")), (seen, row["InstanceId"]))
        return {name: node for name, (_, node) in best.items()}

    # ------------------------------------------------ sending

    def _send_all(self, devices: Sequence[str], nodes: Mapping[str, str]) -> set[str]:
        """Ring devices in batches; returns those that were not rung because AWS stopped answering."""
        failed: set[str] = set()
        for start in range(0, len(devices), _BATCH):
            batch = devices[start : start + _BATCH]
            try:
                self._send(batch, nodes)
            except TransientError:
                if self._rings.keys().isdisjoint(devices):
                    raise
                # The rest would meet the same limit; they call in by themselves.
                failed.update(devices[start:])
                break
        return failed - self._rings.keys()

    def _send(self, batch: Sequence[str], nodes: Mapping[str, str]) -> None:
        """SendCommand to a batch. One unknown node spoils the whole call without being named, so the batch is halved."""
        remedy = f"check document {self._bell.document} version {self._bell.version} in this account and region"
        ids = [nodes[device] for device in batch]
        with translated(f"ring {len(batch)} devices", needed_for=_PURPOSE, remedy=remedy):
            try:
                answer = self._client.send_command(**self._request(ids))
            except ClientError as error:
                if code_of(error) != "InvalidInstanceId":
                    raise
                answer = None
        if answer is not None:
            until = self._clock() + self._timeout_s
            command = answer["Command"]["CommandId"]
            self._rings |= {device: _Ring(command, nodes[device], until) for device in batch}
        elif len(batch) > 1:
            middle = len(batch) // 2
            self._send(batch[:middle], nodes)
            self._send(batch[middle:], nodes)
        else:
            # Gone since the inventory was read: unknown now, and looked up anew next time.
            self._nodes = {name: node for name, node in self._nodes.items() if name != batch[0]}

    def _request(self, ids: Sequence[str]) -> dict[str, Any]:
        bell = self._bell
        pinned = {"DocumentHash": bell.sha256, "DocumentHashType": "Sha256"} if bell.sha256 else {}
        return {
            "InstanceIds": list(ids),
            "DocumentName": bell.document,
            "DocumentVersion": bell.version,
            "TimeoutSeconds": self._timeout_s,
            "Comment": "reconciler: call in now",
            "Parameters": {name: list(values) for name, values in (bell.parameters or {}).items()},
            **pinned,
        }

    # ------------------------------------------------ states

    def _watch(self, rings: Mapping[str, _Ring]) -> dict[str, str]:
        """States of rings, waiting up to `wait_s` for those that are pending."""
        out = dict.fromkeys(rings, "pending")
        end, pause = self._clock() + self._wait_s, 0.2
        while True:
            waiting = {device: ring for device, ring in rings.items() if out[device] == "pending"}
            states = self._states({ring.command for ring in waiting.values()})
            for device, ring in waiting.items():
                out[device] = states.get((ring.command, ring.node), "pending")
            if all(state != "pending" for state in out.values()) or self._clock() + pause > end:
                return out
            self._sleep(pause)
            pause = min(pause * 2, 2)

    def _states(self, commands: Iterable[str]) -> dict[tuple[str, str], str]:
        """(command, node) → state, of all pages. What cannot be read now stays pending: the ring itself was sent."""
        out: dict[tuple[str, str], str] = {}
        pages = self._client.get_paginator("list_command_invocations")
        for command in sorted(commands):
            try:
                with translated("read what became of a ring", needed_for=_PURPOSE):
                    for page in pages.paginate(CommandId=command, PaginationConfig={"PageSize": _PAGE}):
                        for row in page.get("CommandInvocations", ()):
                            out[command, row["InstanceId"]] = _state(row)
            except TransientError:
                break
        return out


def _state(row: Mapping[str, Any]) -> str:
    status, details = row.get("Status", "Pending"), str(row.get("StatusDetails", "")).replace(" ", "")
    if status in _WAITING:
        return "pending"
    if status in ("TimedOut", "Cancelled"):
        # An execution that ran too long did reach the device.
        return "delivered" if details == "ExecutionTimedOut" else "timed-out"
    return "timed-out" if status == "Failed" and details in _UNREACHED else "delivered"
