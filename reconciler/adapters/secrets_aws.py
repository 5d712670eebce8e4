"""Secrets in AWS Secrets Manager.

A reference is a secret's name or ARN. A *version* is the id of the version staged AWSCURRENT: it says nothing of the
value. Up to 20 references are described one by one (exact at once); more are found by listing, 100 a call, by their
common prefix. AWS says that a listing may lag by minutes: a new version is then seen a little later, never wrongly. A
secret that is absent, has no current version, or is scheduled for deletion has no version and is left out. A value is
fetched when it is needed, kept by nobody here, and in no message. Rotation between `versions` and `value` gives the
newer value; the next tick sees its version.

Permissions: secretsmanager:DescribeSecret, :GetSecretValue on the secrets, :ListSecrets (on `*`, AWS allows no
narrower), and kms:Decrypt where they have a key of their own. BatchGetSecretValue is not used for versions, because
it returns values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from botocore.exceptions import ClientError

from reconciler.adapters.aws import Aws, code_of, translated
from reconciler.ports import TerminalError

_ONE_BY_ONE = 20
_PAGE = 100
_CURRENT = "AWSCURRENT"


class SecretsManager:
    """`ports.Secrets` in one account and region."""

    def __init__(self, aws: Aws, *, one_by_one: int = _ONE_BY_ONE) -> None:
        self._client, self._one_by_one = aws.client("secretsmanager"), one_by_one

    def versions(self, references: Iterable[str]) -> Mapping[str, str]:
        """Reference → id of its current version; those without one are left out."""
        wanted = sorted(set(references))
        if len(wanted) > self._one_by_one:
            found = self._listed(wanted)
        else:
            found = {reference: self._described(reference) for reference in wanted}
        return {reference: version for reference, version in found.items() if version is not None}

    def value(self, reference: str) -> str:
        """The current value. TerminalError: no such secret, scheduled for deletion, not text, or no permission."""
        purpose = f"the value of {reference}"
        with translated(f"read secret {reference}", needed_for=purpose, remedy="check the reference and its KMS key"):
            try:
                answer = self._client.get_secret_value(SecretId=reference)
            except ClientError as error:
                raise _absent(error, reference, purpose) from None
        if isinstance(text := answer.get("SecretString"), str):
            return text
        try:
            return bytes(answer["SecretBinary"]).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            remedy = "store it as SecretString; encode binary values, for instance in base64"
            raise TerminalError(f"secret {reference} is not text", needed_for=purpose, remedy=remedy) from None

    def _described(self, reference: str) -> str | None:
        with translated(f"describe secret {reference}", needed_for=f"the version of {reference}"):
            try:
                answer = self._client.describe_secret(SecretId=reference)
            except ClientError as error:
                if code_of(error) == "ResourceNotFoundException":
                    return None
                raise
        if answer.get("DeletedDate") is not None:
            return None
        return _current(answer.get("VersionIdsToStages"))

    def _listed(self, wanted: list[str]) -> dict[str, str | None]:
        names = [reference for reference in wanted if not reference.startswith("arn:")]
        prefix = _common_prefix(names[0], names[-1]) if len(names) == len(wanted) else ""
        filters = [{"Key": "name", "Values": [prefix]}] if prefix else []
        found: dict[str, str | None] = {}
        pages = self._client.get_paginator("list_secrets")
        asked = frozenset(wanted)
        with translated("list secrets", needed_for="the versions of secrets"):
            for page in pages.paginate(
                Filters=filters, IncludePlannedDeletion=False, PaginationConfig={"PageSize": _PAGE}
            ):
                for row in page["SecretList"]:
                    if row.get("DeletedDate") is not None:
                        continue
                    for reference in asked.intersection((row["Name"], row["ARN"])):
                        found[reference] = _current(row.get("SecretVersionsToStages"))
        return found


def _common_prefix(first: str, last: str) -> str:
    """What the first and last of sorted names have in common, and so all between them."""
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _current(stages: Mapping[str, Any] | None) -> str | None:
    return next((version for version, labels in (stages or {}).items() if _CURRENT in labels), None)


def _absent(error: ClientError, reference: str, purpose: str) -> TerminalError | ClientError:
    """A TerminalError for a secret that is not there or is going away; any other error as it is."""
    code = code_of(error)
    if code == "ResourceNotFoundException":
        remedy = "create it in Secrets Manager, or correct the reference in git"
        return TerminalError(
            f"there is no secret {reference} with a current version", needed_for=purpose, remedy=remedy
        )
    if code == "InvalidRequestException":
        remedy = "restore it (RestoreSecret), or take the reference out of git"
        return TerminalError(f"secret {reference} is scheduled for deletion", needed_for=purpose, remedy=remedy)
    return error
