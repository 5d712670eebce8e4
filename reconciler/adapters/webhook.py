"""Posts notifications to one target: a chat's incoming webhook, or a service of one's own. Implements `controller.notify.Sender`.

To a service every message is signed as Standard Webhooks does it: `webhook-id` is the message's, the same at every attempt, so that
a receiver can drop a repeat; `webhook-timestamp` is the attempt's, in seconds; `webhook-signature` holds `v1,` and the base64 of
HMAC-SHA256 over `ID.TIMESTAMP.BODY`, one for each key. Address and keys are asked for at each message, so that a renewed secret
counts, and stand in no error. Certificates are verified. A redirect is followed only within the origin and where it keeps the
method (307, 308): elsewhere a signed message would be given to whoever is named. Private addresses are allowed: who writes the
settings may reach them anyway. Of an answer its status counts; of its body the first few KiB are read where it explains a refusal.

Dependency: httpx (connect 5 s, read 10 s, a whole body 15 s). Called by `controller.notify` and `reconciler notify test`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from reconciler import __version__
from reconciler.adapters import webhook_forms as forms
from reconciler.model.notices import Answer, Message
from reconciler.ports import TerminalError, TransientError

_LEAST_KEY, _MOST_KEY = 24, 64
_PREFIX = "whsec_"
_MOST_KEYS = 4
_MOST_REDIRECTS = 3
_MOST_BODY = 4096
_MOST_SAID = 200
_MOST_HOST = 100
_LEAST_SECRET = 8
"""Characters of a part of an address that is hidden by itself: shorter ones are words."""
_BODY_S = 15.0
_DIGITS = re.compile(r"^\d{1,9}$", re.ASCII)


class WebhookSender:
    """One target called `name`. Safe from any thread.

    `url` and `keys` are called at each message and may raise PortErrors; without `keys` nothing is signed. `ca`: a PEM file of the
    authorities of which the certificate may be, the system's unless said. `now` (seconds since 1970) is replaced in tests.
    """

    def __init__(
        self,
        name: str,
        form: Literal["slack", "webhook"],
        url: Callable[[], str],
        keys: Callable[[], str] | None = None,
        *,
        ca: Path | None = None,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 10,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._form, self._url, self._keys, self._ca = name, form, url, keys, ca
        self._timeout = httpx.Timeout(read_timeout_s, connect=connect_timeout_s)
        self._now = now
        self._purpose = f"telling {name}"

    def send(self, message_id: str, message: Message) -> Answer:
        """Post a message. TransientError: no answer, or 408, 429 or 5xx. TerminalError: its address or key is not usable."""
        url = self._address()
        body = forms.slack(message) if self._form == "slack" else forms.webhook(message)
        headers = {
            "accept-encoding": "identity",
            "content-type": "application/json; charset=utf-8",
            "user-agent": f"reconciler/{__version__}",
        }
        if self._keys is not None:
            headers |= signed(message_id, int(self._now()), body, read_keys(self._keys(), self._purpose))
        local = is_loopback(urlsplit(url).hostname or "")
        try:
            # A proxy of the environment is the way out of many networks; to this machine itself there is none.
            with httpx.Client(timeout=self._timeout, verify=self._trust(), trust_env=not local) as client:
                return self._post(client, url, headers, body)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            # The error's own text may hold the address.
            raise TransientError(
                f"it did not answer ({_why(error)})",
                needed_for=self._purpose,
                remedy="check the network, the target and its certificate",
            ) from None

    # ------------------------------------------------ one request

    def _post(self, client: httpx.Client, url: str, headers: dict[str, str], body: bytes) -> Answer:
        origin = urlsplit(url)[:2]
        for _ in range(_MOST_REDIRECTS + 1):
            with client.stream("POST", url, headers=headers, content=body) as answer:
                status = answer.status_code
                if 200 <= status < 300:
                    return Answer(True, status)
                if 300 <= status < 400:
                    try:
                        location = urljoin(url, answer.headers.get("location", ""))
                    except ValueError:
                        location = url  # It is no address, so it leads nowhere.
                    if status not in (307, 308) or urlsplit(location)[:2] != origin or location == url:
                        return self._redirected(status, location, origin)
                    url = location
                    continue
                return self._refused(answer, url)
        return Answer(False, status, "it sends from one address to the next without an end; set the last one")

    @staticmethod
    def _redirected(status: int, location: str, origin: tuple[str, str]) -> Answer:
        host = _one_line(urlsplit(location).hostname or "(nowhere)")[:_MOST_HOST]
        where = "on" if urlsplit(location)[:2] == origin else f"on to {host}"
        return Answer(
            False, status, f"it answered {status} and sends {where}, which is not followed; set its own address"
        )

    def _refused(self, answer: httpx.Response, url: str) -> Answer:
        status, said = answer.status_code, self._said(answer, url)
        text = f"it answered {status}{f' ({said})' if said else ''}"
        if status >= 500 or status in (408, 429):
            remedy = "see the target's own log"
            raise TransientError(text, needed_for=self._purpose, remedy=remedy, retry_after_s=self._later(answer))
        return Answer(False, status, f"{text}: {_remedy(status)}", gone=status == 410)

    @staticmethod
    def _said(answer: httpx.Response, url: str) -> str:
        """The first words of the body, on one line, without the address that it may repeat."""
        data, until = bytearray(), time.monotonic() + _BODY_S
        try:
            for chunk in answer.iter_raw(1024):
                data += chunk
                if len(data) >= _MOST_BODY or time.monotonic() > until:
                    break
        except httpx.HTTPError:
            pass  # The status was said; the rest only explains it.
        text = _one_line(data[:_MOST_BODY].decode("utf-8", "replace"))
        for secret in _secrets_of(url):
            text = text.replace(secret, "***")
        return text[:_MOST_SAID]

    def _later(self, answer: httpx.Response) -> float | None:
        """`Retry-After`: seconds, or an instant."""
        text = answer.headers.get("retry-after", "").strip()
        if _DIGITS.match(text):
            return float(text)
        try:
            instant = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        instant = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant
        return max(0.0, (instant - datetime.fromtimestamp(self._now(), UTC)).total_seconds())

    # ------------------------------------------------ address, keys, trust

    def _address(self) -> str:
        url = self._url().strip()
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            clean = url.isprintable() and " " not in url and parts.username is None and not parts.fragment
        except ValueError:
            usable = clean = False
        if not usable or not clean:
            raise self._unusable(
                "its address is not one", "write https://HOST/PATH into `url`, or into the secret of `urlSecret`"
            )
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise self._unusable("its address is http, so it would be read on its way", "write https://")
        return url

    def _trust(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._ca)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or "no PEM certificates"
            raise self._unusable(
                f"cannot read {self._ca}: {reason}", "name the authorities' PEM file in `ca`"
            ) from None

    def _unusable(self, wrong: str, remedy: str) -> TerminalError:
        return TerminalError(wrong, needed_for=self._purpose, remedy=remedy)


def signed(message_id: str, at: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers of Standard Webhooks for a body that is sent at an instant (seconds since 1970)."""
    content = f"{message_id}.{at}.".encode() + body
    macs = [base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{mac}" for mac in macs),
    }


def read_keys(text: str, needed_for: str) -> tuple[bytes, ...]:
    """Keys as a secret holds them, one a line: `whsec_` and base64. TerminalError: one is not, without showing it."""
    keys: list[bytes] = []
    for line in text.split():
        try:
            key = base64.b64decode(line.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not line.startswith(_PREFIX) or not _LEAST_KEY <= len(key) <= _MOST_KEY:
            keys.clear()
            break
        keys.append(key)
    if not keys or len(keys) > _MOST_KEYS:
        raise TerminalError(
            f"its secret is no key: `{_PREFIX}` and base64 of {_LEAST_KEY} to {_MOST_KEY} bytes, one a line, {_MOST_KEYS} at most",
            needed_for=needed_for,
            remedy='make one: echo "whsec_$(openssl rand -base64 32)"',
        )
    return tuple(keys)


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _secrets_of(url: str) -> list[str]:
    """What of an address nothing may repeat, the longest first: path and query, and each part of them that may be a key."""
    parts = urlsplit(url)
    whole = [url, f"{parts.path}?{parts.query}" if parts.query else parts.path, parts.query]
    single = [part for part in re.split(r"[/?&=;]", f"{parts.path}?{parts.query}") if len(part) >= _LEAST_SECRET]
    found = {form for part in (*whole, *single) for form in (part, unquote(part)) if len(form) > 1}
    return sorted(found, key=len, reverse=True)


def _why(error: Exception) -> str:
    """What kind of silence it was, without the address."""
    if isinstance(error, httpx.TimeoutException):
        return "too slow"
    cause = error.__cause__ or error.__context__ or error
    text = str(cause) + str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        found = re.search(r"certificate verify failed: ([^()]{1,120}?)(?: \(_ssl|$)", text)
        return f"its certificate is not trusted: {found[1]}" if found else "its certificate is not trusted"
    return "connection refused" if "refused" in text else type(error).__name__


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "it does not allow this; check its address and its key"
    if status == 404:
        return "there is nothing at its address; make it anew there, and set it"
    if status == 410:
        return "it wants no more; take the target out of the settings, or set its new address"
    return "it does not take this message; see its own log"
