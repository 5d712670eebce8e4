"""What the HTTP API takes and answers, as models: the source of `/v1/openapi.json`. Validates one body, decides nothing.

Answers are written by those who know them and not built from these models; tests hold the two together by the published
description. Keys are camelCase, instants UTC as `2026-01-15T01:30:00Z`. Called by the modules that serve routes.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Responses = dict[int | str, dict[str, Any]]
"""A route's `responses`, as the framework takes them."""


class Document(BaseModel):
    """A JSON object of the API."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class ErrorBody(Document):
    """What is wrong, and what to do."""

    error: str
    remedy: str


class Health(Document):
    """The process serves."""

    status: str


class Readiness(Document):
    """`ok`, or `not ready` and what it waits for."""

    status: str
    waits_for: list[str]


class Flagged(Document):
    """A device that failed on a release, since `at`."""

    device: str
    release: str = Field(description="`v1.4.2`, or `video-ingest@2.8.0`")
    at: str


class Given(Document):
    """An acknowledgement of a flag."""

    release: str
    by: str = Field(description="The name of the token")
    at: str
    note: str


class FlagRow(Flagged):
    """A flag, and who has acknowledged it."""

    acknowledged: Given | None


class Flags(Document):
    """The flags of the last plan; `at` is null before the first tick."""

    api_version: str
    kind: str
    at: str | None
    flags: list[FlagRow]


class Acknowledged(Document):
    """What stands acknowledged of a device now."""

    device: str
    acknowledgements: list[Given]


class AcknowledgeRequest(BaseModel):
    """A body of `POST /v1/flags/{device}/acknowledge`; it may be empty."""

    model_config = ConfigDict(extra="forbid", strict=True)

    note: str = Field(default="", max_length=4000, description="For whoever looks next, 500 characters at most")
    release: str | None = Field(
        default=None, max_length=192, description="Acknowledge this flag alone; all of the device's unless said"
    )

    @classmethod
    def as_body(cls) -> dict[str, Any]:
        """For the description of a route that reads its body itself."""
        return json_body(cls.model_json_schema())


class AuditRow(Document):
    """What a person did."""

    id: int
    at: str
    who: str
    address: str
    what: str
    about: str
    outcome: str


class AuditLog(Document):
    """A page of the audit log, newest first. `next` goes into `before` for the page after it; null: there is none."""

    api_version: str
    kind: str
    entries: list[AuditRow]
    next: int | None


class AppState(Document):
    """Where a wave stands with an app's release."""

    release: str
    state: str
    on_release: int
    healthy: int
    failed: int
    soak_ends_at: str | None


class WaveState(Document):
    """Where a wave stands with the release it asks for; counts are of devices, `sites` of sites."""

    name: str
    image: str | None
    state: str
    sites: int
    devices: int
    on_release: int
    healthy: int
    failed: int
    offline: int
    in_flight: int
    soak_ends_at: str | None
    apps: dict[str, AppState]


class HoldState(Document):
    """Why something wanted is not done now; `until` is when that can change, if that is known."""

    reason: str
    wave: str | None
    image: str | None = None
    app: str | None = None
    release: str | None = None
    devices: list[str]
    until: str | None
    message: str


class PlanFacts(Document):
    """What the plan newly established."""

    proofs: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    members: dict[str, dict[str, list[str]]]
    closed: list[str]
    timeouts: list[Flagged]
    rescues: list[Flagged]


class PlanDocument(Document):
    """The last plan, as `reconciler plan --output json` prints it."""

    api_version: str
    kind: str
    at: str
    commit: str | None
    actions: list[dict[str, Any]] = Field(description="Each with its `kind` and what it is of")
    holds: list[HoldState]
    waves: list[WaveState]
    facts: PlanFacts
    flagged: list[Flagged]
    next_change_at: str | None
    wake_at: str | None


class ConditionState(Document):
    """A condition of the controller."""

    type: str
    status: str
    reason: str
    message: str
    since: str


class StatusDocument(Document):
    """Where everything stands, as `reconciler status --output json` prints it."""

    api_version: str
    kind: str
    at: str
    commit: str | None
    plan_at: str | None
    waves: list[WaveState]
    holds: list[HoldState]
    flagged: list[Flagged]
    next_change_at: str | None
    conditions: list[ConditionState]
    open_actions: list[dict[str, Any]] = Field(description="Actions without an outcome, with their tries")


class ExchangeAnswer(Document):
    """The answer to a report: the signed assignment where it is new, and where to fetch what it names."""

    bundle: dict[str, Any] | None
    sources: dict[str, list[str]]
    registry_token: str | None
    report_every: int
    server_time: str | None


class ConfigAnswer(Document):
    """The rendered files of the device's own site."""

    digest: str
    files: dict[str, str] = Field(description="Name → text; `user-data` and `meta-data` among them")


def answers(model: type[BaseModel] | None, *errors: int) -> Responses:
    """For a route's `responses`: what it answers with 200, and which refusals are its own beside everybody's."""
    told: Responses = {code: {"model": ErrorBody, "description": STATUSES[code]} for code in errors}
    return told | ({200: {"model": model}} if model is not None else {})


def json_body(schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    """For a route's `openapi_extra`: a JSON body that the route reads and judges by itself."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


STATUSES = {
    400: "The request is not as it is documented",
    401: "No valid token or session",
    403: "The token lacks the scope, or another site's page sent the request",
    404: "There is no such thing here",
    408: "The body did not arrive in time",
    413: "The body is too long",
    415: "The body is encoded",
    416: "No such range of the file",
    429: "Too many requests; `Retry-After` says when to come again",
    500: "The service, or a system behind it, failed",
    503: "A system behind the service does not answer now; `Retry-After`",
}
"""What a status means, for the published description."""
