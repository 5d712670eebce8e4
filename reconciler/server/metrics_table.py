"""Every metric of ours: its name, what it says, and its labels with what may stand in them. The source of code and page alike.

Names follow Prometheus' conventions: units last, counters end in `_total`, an instant is a Unix time in seconds. No label names a
device, a site or a commit, so that their number does not grow with the fleet. Decides nothing. Read by the metrics of this
package, by the reference page and by tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from reconciler.controller.board import DeviceState
from reconciler.controller.notify import Sent
from reconciler.model.observed import Health
from reconciler.model.plan import ActionKind, Reason, WaveState

MOST_RELEASES = 20
"""Releases of one track that have a series of their own, those that most devices run; the rest is `other`."""
OTHER, NONE = "other", "none"
AGES: tuple[tuple[str, float], ...] = (
    ("under 2 minutes", 120),
    ("2 to 5 minutes", 300),
    ("5 to 15 minutes", 900),
    ("15 minutes to 1 hour", 3600),
    ("1 hour to 1 day", 86400),
    ("over 1 day", float("inf")),
)
"""Groups of devices by how long ago they reported, each with its upper bound in seconds."""
NEVER = "never"
STATUSES = ("True", "False", "Unknown")


class Kind(StrEnum):
    """Prometheus' kinds of metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class About(StrEnum):
    """What a metric is about: the parts of the page."""

    FLEET = "The fleet"
    WAVES = "The waves"
    LOOP = "The loop"
    SERVICE = "The service"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as it is scraped (of a histogram without `_bucket`), and what it says, in one sentence."""

    name: str
    kind: Kind
    about: About
    says: str
    labels: tuple[str, ...] = ()

    def family(self) -> GaugeMetricFamily:
        """Empty, to be filled at a scrape."""
        return GaugeMetricFamily(self.name, self.says, labels=self.labels)

    def counter(self, registry: CollectorRegistry) -> Counter:
        """One that counts as things happen."""
        return Counter(self.name.removesuffix("_total"), self.says, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """One that is set as things happen."""
        return Gauge(self.name, self.says, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry, bounds: tuple[float, ...]) -> Histogram:
        """One that counts by size as things happen."""
        return Histogram(self.name, self.says, self.labels, buckets=bounds, registry=registry)


def _gauge(about: About, name: str, says: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, about, says, labels)


def _counter(name: str, says: str, *labels: str, about: About = About.SERVICE) -> Family:
    return Family(name, Kind.COUNTER, about, says, labels)


def _histogram(name: str, says: str, *labels: str, about: About = About.SERVICE) -> Family:
    return Family(name, Kind.HISTOGRAM, about, says, labels)


_FLEET, _WAVES, _LOOP = About.FLEET, About.WAVES, About.LOOP

STATE_DEVICES = _gauge(_FLEET, "reconciler_state_devices", "Devices, by the worst that holds of each", "state")
HEALTH_DEVICES = _gauge(_FLEET, "reconciler_health_devices", "Devices, by what their healthcheck said last", "health")
RELEASE_DEVICES = _gauge(_FLEET, "reconciler_release_devices", "Devices, by what they run", "track", "release")
AGE_DEVICES = _gauge(_FLEET, "reconciler_report_age_devices", "Devices, by how long ago they reported", "age")
HOLDS = _gauge(_FLEET, "reconciler_holds", "Holds of the last plan, by reason", "reason")
HOLD_DEVICES = _gauge(
    _FLEET, "reconciler_hold_devices", "Devices of these holds; a device can have one on each track", "reason"
)
FLAGGED = _gauge(_FLEET, "reconciler_flagged_devices", "Devices that failed on the release that is asked of them")

WAVE_SITES = _gauge(_WAVES, "reconciler_wave_sites", "Sites of a wave", "wave")
WAVE_DEVICES = _gauge(_WAVES, "reconciler_wave_devices", "Devices of a wave", "wave")
WAVE_OFFLINE = _gauge(_WAVES, "reconciler_wave_offline_devices", "Devices of a wave that are silent", "wave")
WAVE_IN_FLIGHT = _gauge(_WAVES, "reconciler_wave_in_flight_devices", "Devices of a wave under update", "wave")
WAVE_FLAGGED = _gauge(_WAVES, "reconciler_wave_flagged_devices", "Flagged devices of a wave", "wave")
WAVE_ON_RELEASE = _gauge(
    _WAVES, "reconciler_wave_on_release_devices", "Devices that run what their wave asks for", "wave", "track"
)
WAVE_HEALTHY = _gauge(_WAVES, "reconciler_wave_healthy_devices", "Those of them in good health", "wave", "track")
WAVE_FAILED = _gauge(
    _WAVES, "reconciler_wave_failed_devices", "Devices that count as failed on it, for the gate", "wave", "track"
)
WAVE_STATE = _gauge(
    _WAVES, "reconciler_wave_state", "1 for the state that a wave is in, 0 for the others", "wave", "track", "state"
)
WAVE_SOAK_END = _gauge(
    _WAVES,
    "reconciler_wave_soak_end_timestamp_seconds",
    "When a soak that has begun ends, if nothing fails; absent where none has",
    "wave",
    "track",
)

TICK_SECONDS = _histogram("reconciler_tick_seconds", "How long ticks took, failed ones among them", about=_LOOP)
TICK_FAILURES = _counter("reconciler_tick_failures_total", "Ticks that failed", about=_LOOP)
LAST_TICK = _gauge(
    _LOOP, "reconciler_last_tick_timestamp_seconds", "When the last tick ended that did not fail, in real time"
)
CONDITION = _gauge(
    _LOOP, "reconciler_condition", "1 for the status that a condition has, 0 for the others", "type", "status"
)
COMMIT_AT = _gauge(
    _LOOP, "reconciler_commit_in_force_timestamp_seconds", "When the commit in force came into force; absent before"
)
HEAD_REFUSED = _gauge(_LOOP, "reconciler_head_refused", "1 where the branch's head is not acted on")
OPEN_ACTIONS = _gauge(_LOOP, "reconciler_open_actions", "Actions without an outcome", "kind")
ACTION_ATTEMPTS = _gauge(
    _LOOP, "reconciler_open_action_attempts", "Failed attempts of the open action that has most of them", "kind"
)
ACTION_OLDEST = _gauge(
    _LOOP,
    "reconciler_open_action_oldest_timestamp_seconds",
    "When the oldest open action was decided; absent where none is open",
    "kind",
)
KEY_EXPIRY = _gauge(
    _LOOP,
    "reconciler_key_expiry_timestamp_seconds",
    "From when on nothing counts that a signing key signs; absent where it never expires. Looked for once an hour",
    "purpose",
    "fingerprint",
)
ASSIGNMENTS_EXPIRING = _gauge(
    _LOOP,
    "reconciler_assignments_expiring",
    "Devices in flight whose assignment ends within six hours. Looked for once an hour",
)

BUILD_INFO = _gauge(About.SERVICE, "reconciler_build_info", "1, with the versions that run", "version", "python")
STORE_UP = _gauge(About.SERVICE, "reconciler_store_up", "Whether the store answered this scrape")
STORE_SECONDS = _histogram("reconciler_store_seconds", "How long the store took", "operation")
REQUESTS = _counter("reconciler_http_requests_total", "Requests answered", "route", "method", "status")
REQUEST_SECONDS = _histogram("reconciler_http_request_seconds", "Time to answer, by route", "route")
STREAM_CLIENTS = _gauge(About.SERVICE, "reconciler_event_stream_clients", "Clients that listen to the stream of events")
NOTIFICATIONS = _counter(
    "reconciler_notifications_total",
    "Attempts to tell a target something, by what came of them; those that failed are tried again",
    "target",
    "sent",
)
REPORTS = _counter("reconciler_reports_total", "Reports, by what came of them", "outcome")
BATCH_SIZE = _histogram("reconciler_report_batch_size", "Reports in one transaction")
CLOCK_SKEW = _histogram(
    "reconciler_device_clock_skew_seconds", "How far the clock of a device was off, either way, when it reported"
)
UNSYNCHRONISED = _counter(
    "reconciler_reports_unsynchronised_total",
    "Reports of devices whose time service does not say that their clock is right",
)

FAMILIES: tuple[Family, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Family))


def _values(*values: str) -> str:
    return ", ".join(f"`{value}`" for value in values)


LABELS: dict[str, str] = {
    "state": "of a device: " + _values(*DeviceState) + "; of a wave: " + _values(*WaveState),
    "health": _values(*Health),
    "track": "`image`, or the name of an app",
    "release": f"releases that git names and that run somewhere, the {MOST_RELEASES} that most devices run, and those that a wave"
    f" asks for; `{OTHER}`: all others; `{NONE}`: devices that never said",
    "age": _values(*(name for name, _ in AGES), NEVER),
    "reason": "[reasons](reasons.md): " + _values(*Reason),
    "wave": "waves, as git names them",
    "type": "[conditions](conditions.md)",
    "status": "of a condition: " + _values(*STATUSES) + "; of a request: the HTTP status",
    "kind": _values(*ActionKind),
    "purpose": _values("release", "assignment"),
    "fingerprint": "keys that the settings allow",
    "version": "of this program",
    "python": "of Python",
    "operation": "`reports`: a transaction that records reports; `scrape`: what a scrape reads",
    "route": "routes, as [patterns](http-api.md)",
    "method": "HTTP's, or `other`",
    "target": "targets of notifications, as the settings name them",
    "sent": _values(*Sent),
    "outcome": _values("taken", "late", "refused"),
}
"""What may stand in each label."""
