"""The settings of the HTTP service, `server:` of `reconciler.yaml`: where it listens, and who may use it for how long.

A part of `settings`, of which it is a field. No token stands here: operators' are hashes in the store, or in a file of their own.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from reconciler.model.desired import Part
from reconciler.model.scalars import Duration

URL = r"^https?://[^\s/@]+(?:/[^\s]*)?$"
_BIND = re.compile(r"^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$")


def is_loopback(host: str) -> bool:
    """Whether a host of a setting is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TlsSettings(Part):
    """The server's certificate."""

    certificate: Path = Field(description="PEM file with the certificate chain")
    key: Path = Field(description="PEM file with the private key, mode 0600")


class SessionSettings(Part):
    """How long a browser stays logged in. A session never outlives the token that it was opened with."""

    idle: Annotated[Duration, Field(gt=0)] = Field(
        default=12 * 3600, description="A session that is not used ends. Half a day: a shift"
    )
    longest: Annotated[Duration, Field(gt=0)] = Field(
        default=7 * 86400, description="A session ends, used or not. A week: whoever comes daily shows the token weekly"
    )


class ServerSettings(Part):
    """The HTTP service to which devices report."""

    bind: str = Field(default="127.0.0.1:8470", description="Address and port; loopback only unless `tls` is set")
    tls: TlsSettings | None = Field(default=None, description="Certificate; without it nothing but loopback is bound")
    public_url: Annotated[str, Field(pattern=URL)] | None = Field(
        default=None,
        description="Address under which devices and browsers reach it, https, or http on loopback; http(s)://BIND unless said",
    )
    operators: Path | None = Field(
        default=None,
        description="File of hashes of operators' tokens, for set-ups that are written as files; tokens of "
        "`reconciler token operator` are in the store and need none. `HASH [SCOPE,...]  # NAME` a line",
    )
    sessions: SessionSettings = Field(default=SessionSettings(), description="Browsers that are logged in")
    audit_kept: Annotated[Duration, Field(gt=0)] = Field(
        default=365 * 86400,
        description="How long the audit log keeps what people did. A year: what an audit asks for",
    )

    @property
    def host(self) -> str:
        """The host part of `bind`, without brackets."""
        match = _BIND.match(self.bind)
        assert match is not None
        return match.group(1) or match.group(2)

    @property
    def port(self) -> int:
        """The port part of `bind`; 0 lets the system choose."""
        return int(self.bind.rpartition(":")[2])

    @property
    def address(self) -> str:
        """Where devices reach the service."""
        return self.public_url or f"{'https' if self.tls else 'http'}://{self.bind}"

    @property
    def local(self) -> bool:
        """Whether this machine alone reaches it, so that a Prometheus beside it needs no token: without TLS it is bound to
        loopback, and a public address would mean that a proxy stands there for others."""
        return self.tls is None and self.public_url is None

    @field_validator("public_url")
    @classmethod
    def _read_by_nobody(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError(
                f"{value} is http, so tokens and sessions would be readable on their way; write https://, with `tls` or a proxy"
            )
        return value

    @field_validator("bind")
    @classmethod
    def _bindable(cls, value: str) -> str:
        match = _BIND.match(value)
        if match is None or int(match.group(3)) > 65535:
            raise ValueError(f"{value!r} is not an address to bind; write HOST:PORT, as 127.0.0.1:8470 or [::1]:8470")
        return value

    @model_validator(mode="after")
    def _loopback_without_tls(self) -> ServerSettings:
        if self.tls is None and not is_loopback(self.host):
            raise ValueError(
                f"`bind` is {self.bind}, which is not loopback, and `tls` is not set; set `tls`, or bind 127.0.0.1"
            )
        return self
