"""The short-lived credentials with which devices pull apps: from Amazon ECR for a role that may only pull, or a secret.

An ECR token may do in the registry all that its owner may. The controller moves tags, so its own token must reach no
device: the token is made as another role, which the controller assumes and which is allowed to pull alone. It ends with the
role's session, an hour after it was made. Permissions: `sts:AssumeRole` on the role for the controller;
`ecr:GetAuthorizationToken`, `ecr:BatchGetImage`, `ecr:GetDownloadUrlForLayer` for the role. STS is found at the region's
endpoint, or where AWS_ENDPOINT_URL_STS says.

Each `fetch` asks anew and may take seconds; `server.pull_tokens` keeps what it got. Nothing here logs.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import boto3

from reconciler.adapters.aws import Aws, translated
from reconciler.ports import Secrets, TerminalError
from reconciler.protocol.exchange import RegistryToken

_SESSION_S = 3600
_FOR = "devices' access to the registry"
_PAIR = re.compile(r"[!-9;-~]{1,256}:[!-~]{1,3800}")


class EcrTokens:
    """Of one account and region. `sts` assumes `role` (its ARN); `registry_id` is the registry's account, if not the role's."""

    def __init__(self, ecr: Aws, sts: Aws, role: str, *, registry_id: str | None = None) -> None:
        self._ecr, self._sts, self._role = ecr, sts, role
        self._accounts = {"registryIds": [registry_id]} if registry_id else {}

    def fetch(self) -> RegistryToken:
        """A new token. TransientError: AWS does not answer. TerminalError: the role cannot be assumed, or has no access."""
        remedy = "let the controller assume the role, and the role call ecr:GetAuthorizationToken"
        with translated(f"assume {self._role}", needed_for=_FOR, remedy=remedy):
            lent = self._sts.client("sts").assume_role(
                RoleArn=self._role, RoleSessionName="reconciler-devices", DurationSeconds=_SESSION_S
            )["Credentials"]
        with translated("get a registry token", needed_for=_FOR, remedy=remedy):
            session = boto3.session.Session(
                lent["AccessKeyId"],
                lent["SecretAccessKey"],
                lent["SessionToken"],
                self._ecr.client("ecr").meta.region_name,
            )
            client = self._ecr.lent("ecr", session)
            try:
                answer = client.get_authorization_token(**self._accounts)
            finally:
                client.close()
        return _read(answer, lent["Expiration"])


class SecretToken:
    """A registry's own user that may only pull, kept as a secret `USER:PASSWORD`; it holds until the secret is changed."""

    def __init__(self, secrets: Secrets, reference: str, address: str) -> None:
        self._secrets, self._reference, self._address = secrets, reference, address.rstrip("/")

    def fetch(self) -> RegistryToken:
        """The secret as it is now. TransientError, TerminalError: as `Secrets.value`, or it is no user with a password."""
        value = self._secrets.value(self._reference).strip()
        if not _PAIR.fullmatch(value):
            remedy = "store it in that form, in one line without spaces"
            raise TerminalError(f"the secret {self._reference} is no USER:PASSWORD", needed_for=_FOR, remedy=remedy)
        return RegistryToken(self._address, value, None)


def _read(answer: Any, session_ends_at: Any) -> RegistryToken:
    """The token of ECR's answer. It says 12 hours; the session that it was made in may end before."""
    try:
        (found,) = answer["authorizationData"]
        secret = base64.b64decode(found["authorizationToken"], validate=True).decode("ascii")
        address, expires_at = str(found["proxyEndpoint"]), min(found["expiresAt"], session_ends_at)
    except (KeyError, TypeError, ValueError, binascii.Error):
        secret, address = "", ""
    if not _PAIR.fullmatch(secret) or not address.startswith("https://"):
        remedy = "check that registry.endpoint is ECR's"
        raise TerminalError("the answer holds no registry token", needed_for=_FOR, remedy=remedy) from None
    return RegistryToken(address.rstrip("/"), secret, expires_at)
