"""The settings of notifications, `notifications:` of `reconciler.yaml`: who is told of which events, and where that is.

A part of `settings`, of which it is a field. Keys and addresses that are secrets are named by their reference in `secrets` and
never stand here. No error of this module repeats an address: whoever has one may write into the channel behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic.functional_validators import BeforeValidator

from reconciler.controller.settings_server import is_loopback
from reconciler.model.desired import Part
from reconciler.model.events import EventKind
from reconciler.model.scalars import NAME_PATTERN

_REFERENCE = r"^[A-Za-z0-9/_+=.@-]{1,512}$"

TOLD = (
    EventKind.WAVE_OPENED,
    EventKind.WAVE_SOAKED,
    EventKind.GATE_FAILED,
    EventKind.REVERT_PROPOSED,
    EventKind.DEVICE_FLAGGED,
    EventKind.COMMIT_REFUSED,
    EventKind.KEY_EXPIRING,
    EventKind.ASSIGNMENT_EXPIRING,
)
"""What a target is told unless it says otherwise: what asks for a person, and how a rollout goes on."""


def _address(value: object) -> object:
    """An address that may be posted to. ValueError: it may not; the address itself is not repeated."""
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        usable = parts is not None and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, usable = None, False
    if parts is None or not usable or not isinstance(value, str) or not value.isprintable() or " " in value:
        raise ValueError("is not an address; write https://HOST/PATH, or name the secret that holds it in `urlSecret`")
    if parts.username is not None or parts.fragment:
        raise ValueError("may hold neither a user nor a fragment; write https://HOST/PATH")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("would be read in clear text on its way; write https:// (http is for this machine alone)")
    return value


class _Target(Part):
    """What all targets have."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(
        description="Its name, in conditions, logs and `reconciler notify test`. A target that is renamed begins anew"
    )
    url: Annotated[str, BeforeValidator(_address)] | None = Field(
        default=None, description="Where messages are posted to; https, or http on loopback. This or `urlSecret`"
    )
    url_secret: Annotated[str, Field(pattern=_REFERENCE)] | None = Field(
        default=None, description="Reference (in `secrets`) of that address: who knows a chat's address may write there"
    )
    events: tuple[EventKind, ...] = Field(
        default=TOLD,
        min_length=1,
        description="Kinds of event that are told; unless said, how a rollout goes on and what asks for a person",
    )
    waves: tuple[Annotated[str, Field(pattern=NAME_PATTERN)], ...] = Field(
        default=(), description="Waves of which events are told; all unless said. What concerns no wave is always told"
    )
    ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities of which the target's certificate may be; the system's unless said",
    )

    @model_validator(mode="after")
    def _one_address(self) -> _Target:
        if (self.url is None) == (self.url_secret is None):
            raise ValueError("has to say one of `url` and `urlSecret`: where messages are posted to")
        return self


class SlackTarget(_Target):
    """An incoming webhook of Slack, or of a chat that takes the same."""

    type: Literal["slack"] = Field(description="An incoming webhook of Slack, Mattermost or Rocket.Chat")


class WebhookTarget(_Target):
    """A service of your own: JSON, signed as Standard Webhooks does it."""

    type: Literal["webhook"] = Field(description="JSON, signed by HMAC-SHA256 as Standard Webhooks does it")
    secret: Annotated[str, Field(pattern=_REFERENCE)] = Field(
        description="Reference (in `secrets`) of the key that signs: `whsec_` and base64 of 24 to 64 bytes. With two keys, one a "
        "line, both sign: so it is changed without a gap"
    )


NotifyTarget = Annotated[SlackTarget | WebhookTarget, Field(discriminator="type")]
