"""The settings of the fleet repo, `git:`, `commits:` and `allowed:` of `reconciler.yaml`. Parts of `settings`, its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from reconciler.model.desired import Part
from reconciler.model.scalars import Duration, Fingerprint, Flag


class GitSettings(Part):
    """Where the fleet repo is."""

    url: Annotated[str, Field(min_length=1, max_length=1000)] = Field(
        description="URL or absolute path of the fleet repo; https, ssh, file, or a path"
    )
    branch: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        default="main", description="Branch in force; `main` unless said"
    )
    poll: Duration = Field(
        default=60, description="How often the remote is asked, ±10 %. A minute: a merge should not wait for a person"
    )
    timeout: Duration = Field(
        default=60, description="Longest fetch or push. A minute: a fleet repo's daily change is small"
    )
    watch: Flag = Field(
        default=True,
        description="Wake at once when the branch of a repo on this machine moves; the poll covers the rest",
    )
    ssh_command: str | None = Field(default=None, description="git's core.sshCommand, as `ssh -i /etc/edge/deploy_key`")
    credential_helper: str | None = Field(
        default=None, description="git's credential.helper; the credential itself never stands in a file of ours"
    )


class CommitSettings(Part):
    """Whose commits are acted on."""

    required: Flag = Field(
        default=False, description="Whether a commit must be signed by one of `signers`; off until keys are handed out"
    )
    signers: tuple[Fingerprint, ...] = Field(
        default=(), description="Primary fingerprints of the keys whose commits are acted on"
    )
    keyring: Path | None = Field(default=None, description="Binary export of those public keys")

    @model_validator(mode="after")
    def _can_be_met(self) -> CommitSettings:
        if self.required and (not self.signers or self.keyring is None):
            raise ValueError(
                "signatures are required and nobody may sign; name `signers` and `keyring`, or drop `required`"
            )
        return self


class AllowedSettings(Part):
    """What a fleet commit may point at. `Fleet` may narrow this, never widen it."""

    images: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Beginnings of image addresses, as s3://vlt-edge-images/ or file:///srv/images/"
    )
    registries: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Registry hosts, with port if not 443"
    )

    @field_validator("images")
    @classmethod
    def _whole_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not text.endswith("/"):
                raise ValueError(
                    f"{text!r} does not end with '/', so it would allow other buckets that begin alike; add it"
                )
        return value
