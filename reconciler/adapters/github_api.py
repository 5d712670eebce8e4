"""GitHub's REST API: one request, its pages, its redirects, its limits, its errors. Knows no pull request and no status.

Every request carries the API's version (2022-11-28) and the token, which goes to the one origin that the settings name and
nowhere else: a redirect to another origin is an error, as is a next page there. The token never stands in an error.

What passes by itself is a `TransientError`: no answer, 5xx, and both rate limits. The primary one says when it ends in
`x-ratelimit-reset`; the secondary one in `retry-after`, or not at all, and then a minute is waited (GitHub, "Rate limits for
the REST API"). `patiently` repeats a whole operation within a bound of seconds. It repeats operations and not single
requests, because a POST without an answer may have been taken: an operation looks first, and then finds what it made.

Dependency: httpx (connect 5 s, read 30 s). Called by `forge_github`.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx

from reconciler.ports import TerminalError, TransientError

T = TypeVar("T")

API_VERSION = "2022-11-28"
API_URL = "https://api.github.com"
PAGE = 100
_MOST_PAGES = 100
_MOST_REDIRECTS = 5
_MOST_BYTES = 64 << 20
_ATTEMPTS = 4
_SECONDARY_WAIT_S = 60.0
_REPOSITORY = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}$")
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer read to its end. `following` is the next page's address, as the server gave it."""

    status: int
    headers: httpx.Headers
    content: bytes
    following: str | None

    def json(self) -> Any:
        """The body as JSON. TerminalError: it is not."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            raise odd_answer() from None


def odd_answer() -> TerminalError:
    """What answers is not GitHub."""
    return TerminalError(
        "the forge's answer is not what GitHub's REST API gives",
        needed_for="pull requests and statuses",
        remedy="check `forge.apiUrl` (GITHUB_API_URL): https://api.github.com, or https://HOST/api/v3",
    )


def check_repository(name: str) -> str:
    """`owner/name`. TerminalError: it is not one."""
    if not _REPOSITORY.match(name) or name.endswith(("/.", "/..")):
        raise TerminalError(
            f"{name!r} is not a repository of a forge",
            needed_for="pull requests and statuses",
            remedy="write OWNER/NAME, as video-edge/fleet",
        )
    return name


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class GithubApi:
    """One repository's part of the API at `url`. Safe from any thread.

    `token` is asked for before each request, so that a renewed one counts. `patience_s` bounds the seconds that
    `patiently` sleeps in all for one operation; `sleep` and `now` are replaced in tests.
    """

    def __init__(
        self,
        repository: str,
        token: Callable[[], str],
        *,
        url: str = API_URL,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 30,
        patience_s: float = 10,
        sleep: Callable[[float], object] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.repository = check_repository(repository)
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not host or parts.username or parts.query or parts.fragment or parts.scheme not in ("http", "https"):
            raise TerminalError(
                "the forge's address is not valid",
                needed_for="pull requests and statuses",
                remedy="write https://HOST or https://HOST/api/v3, without user or query",
            )
        if parts.scheme == "http" and not is_loopback(host):
            raise TerminalError(
                f"the forge's address {url} is not encrypted",
                needed_for="sending the token",
                remedy="write https://; http is for this machine alone",
            )
        self._url, self._origin, self._token = url.rstrip("/"), parts[:2], token
        self._patience_s, self._sleep, self._now = patience_s, sleep, now
        # A proxy of the environment is the way out of many networks; to this machine itself there is none.
        self._client = httpx.Client(
            timeout=httpx.Timeout(read_timeout_s, connect=connect_timeout_s),
            follow_redirects=False,
            trust_env=not is_loopback(host),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def patiently(self, operation: Callable[[], T]) -> T:
        """Do an operation, and again where it fails for now and the wait is short enough. It must look before it writes."""
        left = self._patience_s
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return operation()
            except TransientError as error:
                wait = error.retry_after_s if error.retry_after_s is not None else 0.25 * 4.0 ** (attempt - 1)
                if attempt == _ATTEMPTS or wait > left:
                    raise
                left -= wait
                self._sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def get(self, path: str, doing: str, **query: str | int) -> Any:
        """The JSON at a path below the repository. TerminalError: refused, or not there."""
        return self._ask("GET", self._of(path), doing, query).json()

    def pages(self, path: str, doing: str, **query: str | int) -> Iterator[Any]:
        """Each page's JSON of a list, to its end, by the addresses that the server gives."""
        answer = self._ask("GET", self._of(path), doing, {"per_page": PAGE, **query})
        for _ in range(_MOST_PAGES):
            yield answer.json()
            if answer.following is None:
                return
            answer = self._ask("GET", answer.following, doing)
        raise odd_answer()

    def items(self, path: str, doing: str, **query: str | int) -> Iterator[dict[str, Any]]:
        """Each entry of a list."""
        for page in self.pages(path, doing, **query):
            if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
                raise odd_answer()
            yield from page

    def send(self, method: str, path: str, doing: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write; returns what was made. TerminalError: refused (`Refused` where its status is 422)."""
        made = self._ask(method, self._of(path), doing, body=body).json()
        if not isinstance(made, dict):
            raise odd_answer()
        return made

    def login(self) -> str | None:
        """Whose token it is; None for an app's (GITHUB_TOKEN among them), which may not ask."""
        try:
            found = self._ask("GET", f"{self._url}/user", "see whose token it is").json()
        except Forbidden:
            return None
        return str(found["login"]) if isinstance(found, dict) and isinstance(found.get("login"), str) else None

    # ------------------------------------------------ one request

    def _of(self, path: str) -> str:
        return f"{self._url}/repos/{self.repository}/{path}"

    def _ask(
        self,
        method: str,
        url: str,
        doing: str,
        query: Mapping[str, str | int] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        """One request, its redirects followed (a renamed repository has one). What is no success is raised."""
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._send(method, self._here(url, doing), doing, query, body)
            location = answer.headers.get("location")
            if answer.status not in (301, 302, 307, 308) or location is None:
                break
            # The same method and body again: so GitHub asks it, for what was renamed.
            url, query = urljoin(url, location), None
        if 200 <= answer.status < 300:
            return answer
        raise self._error(answer, doing)

    def _here(self, url: str, doing: str) -> str:
        """The address, if it is on the forge itself."""
        if urlsplit(url)[:2] != self._origin:
            raise TerminalError(
                f"cannot {doing}: the forge sends on to {urlsplit(url).hostname}, which is not itself",
                needed_for=f"pull requests and statuses of {self.repository}",
                remedy="set the forge's own address; the token is sent nowhere else",
            )
        return url

    def _send(
        self,
        method: str,
        url: str,
        doing: str,
        query: Mapping[str, str | int] | None,
        body: Mapping[str, Any] | None,
    ) -> Answer:
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {self._secret()}",
            "User-Agent": "reconciler",
            "X-GitHub-Api-Version": API_VERSION,
        }
        try:
            with self._client.stream(method, url, headers=headers, params=query or None, json=body) as answer:
                content = bytearray()
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > _MOST_BYTES:
                        raise odd_answer()
            following = answer.links.get("next", {}).get("url")
            following = urljoin(url, following) if following else None
            return Answer(answer.status_code, answer.headers, bytes(content), following)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransientError(
                f"cannot {doing}: the forge did not answer ({type(error).__name__})",
                needed_for=f"pull requests and statuses of {self.repository}",
                remedy="check the network and the forge; it is tried again",
            ) from None

    def _secret(self) -> str:
        token = self._token().strip()
        # A line end in a header would be a second header; and httpx would show the value in its error.
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise TerminalError(
                "the forge's token is empty, or is no token",
                needed_for=f"pull requests and statuses of {self.repository}",
                remedy="write the token alone into its file, on one line",
            )
        return token

    # ------------------------------------------------ errors

    def _error(self, answer: Answer, doing: str) -> TransientError | TerminalError:
        """What an answer that is no success means."""
        said = self._said(answer)
        wrong = f"cannot {doing}: the forge answered {answer.status}{f' ({said})' if said else ''}"
        purpose = f"pull requests and statuses of {self.repository}"
        if answer.status in (403, 429):
            wait = self._wait_s(answer, said)
            if wait is not None:
                remedy = "it is tried again when the limit ends; give the reconciler a token of its own if it often is"
                return TransientError(wrong, needed_for=purpose, remedy=remedy, retry_after_s=wait)
        if answer.status >= 500 or answer.status in (408, 429):
            remedy = "see the forge's own status page; it is tried again"
            return TransientError(wrong, needed_for=purpose, remedy=remedy, retry_after_s=_seconds(answer))
        kind = {403: Forbidden, 404: NotFound, 422: Refused}.get(answer.status, TerminalError)
        return kind(wrong, needed_for=purpose, remedy=_remedy(answer.status))

    def _said(self, answer: Answer) -> str:
        """GitHub's own words, on one line, cut, without the token."""
        try:
            found = json.loads(answer.content)
            parts = [found["message"]]
            for fault in found.get("errors") or ():
                more = fault if isinstance(fault, str) else fault.get("message") or _field(fault)
                parts.append(more)
            text = "; ".join(str(part) for part in parts if part)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ""
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text.replace(self._secret(), "***")[:_SHOWN]

    def _wait_s(self, answer: Answer, said: str) -> float | None:
        """How long a rate limit asks to wait; None where it is none."""
        wait = _seconds(answer)
        if wait is not None:
            return wait
        if answer.headers.get("x-ratelimit-remaining") == "0":
            reset = answer.headers.get("x-ratelimit-reset", "")
            known = reset.isascii() and reset.isdigit() and len(reset) <= 12
            return max(1.0, float(reset) - self._now() + 1) if known else _SECONDARY_WAIT_S
        if answer.status == 429 or "rate limit" in said.lower() or "abuse detection" in said.lower():
            return _SECONDARY_WAIT_S
        return None


class Refused(TerminalError):
    """422: what was sent is not accepted as it is."""


class Forbidden(TerminalError):
    """403: the token is known, and may not."""


class NotFound(TerminalError):
    """404: not there, or the token may not see that it is."""


def _field(fault: Mapping[str, Any]) -> str:
    return " ".join(str(fault[key]) for key in ("resource", "field", "code") if fault.get(key))


def _seconds(answer: Answer) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 5 else None


def _remedy(status: int) -> str:
    if status == 401:
        return "the token is wrong or has expired; make a new one"
    if status == 403:
        return "give the token the permission: pull requests, commit statuses, deployments (read and write)"
    if status == 404:
        return "check the repository's name, and that the token may see it"
    if status == 422:
        return "correct what the forge says is not valid"
    if 300 <= status < 400:
        return "set the repository's present name"
    return "see what the forge says"
