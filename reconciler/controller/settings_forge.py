"""The settings of the forge, `forge:` of `reconciler.yaml`: where pull requests are, and what the loop tells there.

A part of `settings`, of which it is a field. The token stands in a file of its own and never here.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from reconciler.model.desired import Part
from reconciler.model.scalars import Flag


class GithubForge(Part):
    """GitHub, or what speaks its REST API."""

    type: Literal["github"] = Field(description="GitHub, or GitHub Enterprise Server")
    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}$")] = Field(
        description="OWNER/NAME of the fleet repo there"
    )
    api_url: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(?:/[^\s?#]*)?$")] = Field(
        default="https://api.github.com", description="Address of the API; https://HOST/api/v3 of an Enterprise Server"
    )
    token_file: Path = Field(
        description="File with a token that may read and write pull requests, commit statuses and deployments; read "
        "again at each use, so it may be renewed"
    )
    deployments: Flag = Field(
        default=True, description="Whether each wave's rollout is shown as a deployment; the commit's status always is"
    )
    environments: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        default="fleet", description="Environments are named NAME/WAVE; `fleet` unless said"
    )

    @field_validator("api_url")
    @classmethod
    def _not_in_clear_text(cls, value: str) -> str:
        parts = urlsplit(value)
        host = parts.hostname or ""
        try:
            local = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if parts.scheme == "http" and not local:
            raise ValueError(f"{value!r} would carry the token in clear text; write https://")
        return value
