"""The one place that makes AWS clients and translates what boto3 raises. Called by the adapters of AWS services.

Credentials are boto3's to find (environment, profile, web identity, container or instance role); none is ever a
setting of ours. Every client has timeouts (connect 5 s, read 30 s), a bounded pool, and botocore's `standard` retries
(5 attempts in all, exponential backoff with jitter and a retry quota, on throttling, 5xx and broken connections).
What is still wrong after these becomes a `TransientError`, for the loop to try again later, or a `TerminalError` that
says what to grant or correct.

Messages carry the operation, the service's error code and its short message, never a request's parameters or body:
botocore's own validation errors and URLs do contain them, so their text is dropped, and the original is not chained.

Dependency: boto3/botocore (the pinned floor has S3's If-Match and If-None-Match on PutObject and
CompleteMultipartUpload).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from botocore import exceptions as foreign
from botocore.config import Config

from reconciler.ports import PortError, TerminalError, TransientError

_PASSING_CODES = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "ProvisionedThroughputExceededException",
        "SlowDown",
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "PriorRequestNotComplete",
        "TransactionInProgressException",
        "RequestTimeout",
        "RequestTimeoutException",
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "InternalServiceError",
        "InternalServiceErrorException",
        "ServerException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "OperationAborted",
        "ConditionalRequestConflict",
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "RequestTimeTooSkewed",
    }
)
_DENIED_CODES = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "UnauthorizedOperation",
        "UnauthorizedAccess",
        "AuthorizationError",
        "Forbidden",
        "403",
        "KMSAccessDeniedException",
        "AllAccessDisabled",
    }
)
_IDENTITY_CODES = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidToken",
        "InvalidSignatureException",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "OptInRequired",
        "NotSignedUp",
    }
)
_PASSING = (
    foreign.EndpointConnectionError,
    foreign.ConnectTimeoutError,
    foreign.ReadTimeoutError,
    foreign.ConnectionClosedError,
    foreign.ConnectionError,
    foreign.HTTPClientError,
    foreign.IncompleteReadError,
    foreign.ResponseStreamingError,
    foreign.FlexibleChecksumError,
    foreign.CredentialRetrievalError,
    foreign.MetadataRetrievalError,
)
_SPOKEN = 200


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """How AWS is reached. `endpoint_url` is for a private endpoint or a stand-in; None is the region's public one."""

    region: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None
    connect_timeout_s: float = 5
    read_timeout_s: float = 30
    attempts: int = 5
    pool: int = 32


class Aws:
    """Clients by service name, made once. Safe from any thread (clients are; sessions are not, hence the lock)."""

    def __init__(self, settings: AwsSettings | None = None) -> None:
        self.settings = settings or AwsSettings()
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """The client of a service (`s3`, `ecr`, `ssm`, `secretsmanager`). TerminalError: no region, or no such profile."""
        settings = self.settings
        with self._lock, translated(f"make a client of {service}", needed_for=f"using {service}"):
            if service not in self._clients:
                if self._session is None:
                    self._session = boto3.session.Session(region_name=settings.region, profile_name=settings.profile)
                self._clients[service] = self._open(service, self._session)
            return self._clients[service]

    def lent(self, service: str, session: Any) -> Any:
        """A client with a session of other credentials; the caller's to close."""
        return self._open(service, session)

    def _open(self, service: str, session: Any) -> Any:
        settings = self.settings
        config = Config(
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": settings.attempts},
            max_pool_connections=settings.pool,
            tcp_keepalive=True,
            user_agent_extra="reconciler",
            # An address with any older signature would not be refused after it has expired.
            signature_version="s3v4" if service == "s3" else None,
        )
        return session.client(service, endpoint_url=settings.endpoint_url, config=config)

    def close(self) -> None:
        """Close every client's connections."""
        with self._lock:
            while self._clients:
                self._clients.popitem()[1].close()


@contextmanager
def translated(doing: str, *, needed_for: str, remedy: str = "") -> Iterator[None]:
    """Turn what botocore raises inside into a PortError. `doing` is the step in words (`read s3://…`), `remedy` what a
    terminal error should advise where the code alone does not say it."""
    try:
        yield
    except (foreign.ClientError, foreign.BotoCoreError) as error:
        raise translate(error, doing, needed_for=needed_for, remedy=remedy) from None


def code_of(error: foreign.ClientError) -> str:
    """The service's error code (`NoSuchKey`, `404`), or an empty text."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: foreign.ClientError) -> int:
    """The HTTP status of an error answer, or 0."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def translate(error: Exception, doing: str, *, needed_for: str, remedy: str = "") -> PortError:
    """The PortError for a botocore error: transient for throttling, 5xx, time-outs and broken connections, else terminal."""
    if isinstance(error, foreign.ClientError):
        return _service_error(error, doing, needed_for, remedy)
    name = type(error).__name__
    if isinstance(error, foreign.SSLError):
        advice = "check the endpoint's certificate and AWS_CA_BUNDLE"
        return TerminalError(f"cannot {doing}: the TLS connection was refused", needed_for=needed_for, remedy=advice)
    if isinstance(error, (foreign.NoCredentialsError, foreign.PartialCredentialsError)):
        advice = "give this process an AWS identity: a role, a profile (AWS_PROFILE) or a web identity"
        return TerminalError(f"cannot {doing}: there are no AWS credentials", needed_for=needed_for, remedy=advice)
    if isinstance(error, foreign.NoRegionError):
        advice = "set the region in reconciler.yaml, or AWS_REGION"
        return TerminalError(f"cannot {doing}: no AWS region is set", needed_for=needed_for, remedy=advice)
    if isinstance(error, foreign.ProfileNotFound):
        advice = "correct the profile in reconciler.yaml, or add it to the AWS configuration file"
        return TerminalError(f"cannot {doing}: there is no such AWS profile", needed_for=needed_for, remedy=advice)
    if isinstance(error, _PASSING):
        advice = "check the network and the endpoint; it is tried again"
        return TransientError(f"cannot {doing}: AWS did not answer ({name})", needed_for=needed_for, remedy=advice)
    # ParamValidationError and its kin print the parameters, so only their name is told.
    advice = remedy or "correct the setting or name that this step uses"
    return TerminalError(f"cannot {doing}: the request is not valid ({name})", needed_for=needed_for, remedy=advice)


def _service_error(error: foreign.ClientError, doing: str, needed_for: str, remedy: str) -> PortError:
    code, status, operation = code_of(error), status_of(error), error.operation_name
    said = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())[:_SPOKEN]
    wrong = f"cannot {doing}: {operation} answered {code or status}" + (f" ({said})" if said else "")
    if code in _PASSING_CODES or status >= 500 or status == 429:
        advice = "it is tried again"
        if code == "RequestTimeTooSkewed":
            advice = "set this machine's clock (chrony)"
        elif code.startswith("Expired") or code == "RequestExpired":
            advice = "the AWS credentials have expired; roles renew them, keys of a person must be renewed by hand"
        return TransientError(wrong, needed_for=needed_for, remedy=advice, retry_after_s=_retry_after(error))
    if code in _DENIED_CODES or status == 403:
        if code in _IDENTITY_CODES:
            advice = "check the AWS credentials of this process"
        else:
            advice = f"allow {operation} on it to this process's role" + (f"; {remedy}" if remedy else "")
        return TerminalError(wrong, needed_for=needed_for, remedy=advice)
    if code in _IDENTITY_CODES or status == 401:
        advice = "check the AWS credentials of this process"
        return TerminalError(wrong, needed_for=needed_for, remedy=advice)
    return TerminalError(
        wrong, needed_for=needed_for, remedy=remedy or "correct the name or setting that this step uses"
    )


def _retry_after(error: foreign.ClientError) -> float | None:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:  # absent, or an HTTP date, which AWS does not send
        return None
    return seconds if 0 <= seconds <= 86400 else None
