"""The controller's end of an exchange in virtual time: a report in, the answer out, as the HTTP service would give them.

Records and answers through `controller.reports`, which the HTTP service calls too; only sockets, tokens and batches are left out.
Tells the observer what each report changed. Called by the simulated network. Source: design §5, "Protocol".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from reconciler.agent.transport import TransportError
from reconciler.controller.reports import Received, Recorded, Sources, answer_to, plain_answer, record
from reconciler.model.observed import DeviceObservation
from reconciler.ports import PortError
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.exchange import Answer, SiteConfig
from reconciler.protocol.report import Report, ReportError
from reconciler.simulate.memory_store import MemoryStore

Heard = Callable[[DeviceObservation | None, DeviceObservation, datetime], None]
"""Called for each report that was taken: the device's observation before and after it, and when it came."""
_ADDRESS = "https://reconciler.invalid/v1/artifacts"


class Service:
    """Answers devices while `up`. `policy` gives (reportEvery, staleAfter) in seconds, `config` the digest of a device's
    configuration or None where git names no such device."""

    def __init__(
        self,
        store: MemoryStore,
        policy: Callable[[], tuple[int, int]],
        config: Callable[[str], str | None],
        heard: Heard,
    ) -> None:
        self._store, self._policy, self._config, self._heard = store, policy, config, heard
        self.up = True
        """Whether anybody answers: not while the controller is down."""
        self.reports = 0
        """Reports taken since the start."""

    def exchange(self, device: str, report: bytes, now: datetime) -> bytes:
        """Record a device's report and answer it, as bytes of the protocol.

        TransportError, with the status that the HTTP service would give: nobody answers, or this is no report of that device.
        """
        self._must_be_up()
        try:
            parsed = Report.from_bytes(report)
        except ReportError as error:
            raise TransportError(error.reason, status=400) from None
        if parsed.device != device:
            raise TransportError("this token is not that device's", status=403)
        return self.answer(parsed, now).to_bytes()

    def answer(self, report: Report, now: datetime) -> Answer:
        """The same where both ends are objects already: a report that was parsed or made here. TransportError as above."""
        self._must_be_up()
        every, stale = self._policy()
        found = self._store.observation(report.device)
        before = None if found is None else found[0]
        (outcome,) = record(self._store, [Received(report, now)], stale)
        if not isinstance(outcome, Recorded):
            raise TransportError("report: a value is out of bounds", status=400)
        if outcome.taken:
            self.reports += 1
            after = self._store.observation(report.device)
            if after is not None:
                self._heard(before, after[0], now)
        try:
            return answer_to(report, outcome.assignment, now, every, _sources)
        except (Malformed, PortError):
            return plain_answer(every, now)

    def config(self, device: str, now: datetime) -> SiteConfig:
        """A device's files. They are made up: what is simulated is their digest. TransportError: down, or no such device."""
        self._must_be_up()
        digest = self._config(device)
        if digest is None:
            raise TransportError(f"git names no device {device}", status=404)
        return SiteConfig(digest, {"user-data": b"#cloud-config\n", "meta-data": b"{}\n"})

    def _must_be_up(self) -> None:
        if not self.up:
            raise TransportError("the controller does not answer", status=503)


def _sources(assignment: Assignment) -> Sources:
    addresses: dict[str, tuple[str, ...]] = {}
    if assignment.image is not None:
        addresses["image"] = (f"{_ADDRESS}/{assignment.image.folder}/",)
    if assignment.apps:
        addresses["registry"] = (_ADDRESS,)
    return replace(Sources(), addresses=addresses)
