"""The container registry over the registry's own HTTP API (OCI distribution-spec v2), as Debian's docker-registry, Harbor, Zot and
others speak it.

A tag is moved by reading the manifest's exact bytes by digest, hashing them here, putting the same bytes under the
tag and reading the tag back: what the registry says of a digest is compared, never believed. There is no
compare-and-set in the API: of two writers the last wins. `tags` costs one listing and one HEAD a tag, since the API
lists names only.

Anonymous or HTTP Basic authentication. Token services (WWW-Authenticate: Bearer) are not spoken: AWS has
`registry_ecr`, and a plain registry of one's own needs none; a registry that asks for one gives a TerminalError that
says so. Redirects are not followed, so that a credential never travels to another host. Plain `http://` is for a
registry on this machine or behind a tunnel.

Dependency: httpx (connect 5 s, read 30 s; a request that did not get through is sent three times in all, with backoff).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx

from reconciler.adapters.manifests import (
    MANIFEST_TYPES,
    MAX_MANIFEST,
    check_digest,
    check_repository,
    check_tag,
    manifest_type,
    sha256_digest,
)
from reconciler.ports import TerminalError, TransientError

_ATTEMPTS = 3
_PAGE = 1000
_MOST_PAGES = 1000
# Never compressed: a digest is over the bytes as they are.
_HEADERS = {"Accept": ", ".join(MANIFEST_TYPES), "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer read to its end. `following` is the next page's address, as the server gave it."""

    status: int
    headers: httpx.Headers
    content: bytes
    following: str | None


class OciRegistry:
    """`ports.Registry` at `url` (`http://127.0.0.1:5000`, `https://registry.example`). Safe from any thread.

    `credential`: user and password for HTTP Basic. `sleep` is replaced in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        credential: tuple[str, str] | None = None,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 30,
        page: int = _PAGE,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            remedy = "write http://HOST:PORT or https://HOST, without user or query"
            raise TerminalError("the registry's address is not valid", needed_for="the registry", remedy=remedy)
        self._url, self._page, self._sleep = url.rstrip("/"), page, sleep
        timeout = httpx.Timeout(read_timeout_s, connect=connect_timeout_s)
        self._client = httpx.Client(timeout=timeout, auth=credential, follow_redirects=False, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def tags(self, repository: str) -> Mapping[str, str]:
        """Tag → digest. TerminalError: no such repository."""
        check_repository(repository)
        out: dict[str, str] = {}
        for tag in self._names(repository):
            digest = self._digest(repository, tag)
            if digest is not None:  # None: removed since it was listed
                out[tag] = digest
        return out

    def exists(self, repository: str, digest: str) -> bool:
        """Whether the repository holds the manifest."""
        check_repository(repository)
        check_digest(digest)
        answer = self._ask("HEAD", self._manifest(repository, digest), f"look for {digest}", repository)
        return answer.status == 200

    def retag(self, repository: str, tag: str, digest: str) -> None:
        """Point `tag` at `digest` and read it back. TerminalError: the digest is not in the repository."""
        check_repository(repository)
        check_tag(tag)
        purpose = f"pointing {repository}:{tag} at {check_digest(digest)}"
        answer = self._ask("GET", self._manifest(repository, digest), f"read {digest}", repository)
        if answer.status == 404:
            remedy = "push the app release first, or correct its digest in git"
            raise TerminalError(f"{repository} holds no manifest {digest}", needed_for=purpose, remedy=remedy)
        manifest = answer.content
        if sha256_digest(manifest) != digest:
            remedy = "push the release again; the registry gave bytes that are not the digest's"
            raise TerminalError(f"the manifest of {digest} is not its bytes", needed_for=purpose, remedy=remedy)
        media = manifest_type(manifest) or answer.headers.get("Content-Type", "")
        put = self._ask(
            "PUT",
            self._manifest(repository, tag),
            f"move {repository}:{tag}",
            repository,
            headers={"Content-Type": media},
            content=manifest,
        )
        if put.status == 404:
            remedy = "check the repository's name"
            raise TerminalError(f"the registry has no {repository}", needed_for=purpose, remedy=remedy)
        found = self._ask("GET", self._manifest(repository, tag), f"read {repository}:{tag} back", repository)
        back = sha256_digest(found.content) if found.status == 200 else "absent"
        if back != digest:
            remedy = "look for another writer of this tag; it is tried again"
            raise TransientError(f"{repository}:{tag} is {back} after it was set", needed_for=purpose, remedy=remedy)

    # ------------------------------------------------ parts

    def _names(self, repository: str) -> list[str]:
        """Every tag's name, over all pages (`Link: <…>; rel="next"`)."""
        names: list[str] = []
        url: str | None = f"{self._url}/v2/{repository}/tags/list?n={self._page}"
        for _ in range(_MOST_PAGES):
            if url is None:
                return names
            answer = self._ask("GET", url, f"list the tags of {repository}", repository)
            if answer.status == 404:
                raise TerminalError(
                    f"there is no repository {repository} in the registry",
                    needed_for="knowing the apps' tags",
                    remedy="push the app's first release, or correct App.spec.repository",
                )
            try:
                page = json.loads(answer.content)["tags"] or []
                names += [name for name in page if isinstance(name, str)]
            except (ValueError, KeyError, TypeError):
                raise self._odd(f"list the tags of {repository}", repository) from None
            url = urljoin(url, answer.following) if answer.following else None
            if url is not None and urlsplit(url)[:2] != urlsplit(self._url)[:2]:
                raise self._odd(f"list the tags of {repository}", repository)
        raise self._odd(f"list the tags of {repository}", repository)

    def _digest(self, repository: str, tag: str) -> str | None:
        """A tag's digest: the registry's word for it, else the hash of the manifest's bytes."""
        url = self._manifest(repository, tag)
        answer = self._ask("HEAD", url, f"read {repository}:{tag}", repository)
        if answer.status == 404:
            return None
        said = answer.headers.get("Docker-Content-Digest", "")
        try:
            return check_digest(said)
        except TerminalError:
            answer = self._ask("GET", url, f"read {repository}:{tag}", repository)
            return sha256_digest(answer.content) if answer.status == 200 else None

    def _manifest(self, repository: str, reference: str) -> str:
        return f"{self._url}/v2/{repository}/manifests/{reference}"

    def _ask(
        self,
        method: str,
        url: str,
        doing: str,
        repository: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> _Answer:
        """One request with retries. Answers of 2xx and 404 are the caller's; everything else is an error."""
        purpose = f"the apps of {repository}"
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = self._send(method, url, {**_HEADERS, **(headers or {})}, content)
            except httpx.HTTPError as error:
                wrong, wait = f"cannot {doing}: the registry did not answer ({type(error).__name__})", None
            else:
                if 200 <= answer.status < 300 or answer.status == 404:
                    return answer
                wrong, wait = f"cannot {doing}: the registry answered {answer.status}", _retry_after(answer)
                if answer.status < 500 and answer.status not in (408, 429):
                    raise TerminalError(wrong, needed_for=purpose, remedy=_remedy(answer))
            if attempt < _ATTEMPTS:
                self._sleep(min(wait if wait is not None else 0.2 * 2**attempt, 5))
        remedy = "check the registry and the network; it is tried again"
        raise TransientError(wrong, needed_for=purpose, remedy=remedy, retry_after_s=wait)

    def _send(self, method: str, url: str, headers: Mapping[str, str], content: bytes | None) -> _Answer:
        with self._client.stream(method, url, headers=headers, content=content) as answer:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > MAX_MANIFEST:
                    remedy = "check that the address is a registry's; manifests and pages of tags are smaller"
                    wrong = f"the registry's answer is larger than {MAX_MANIFEST} bytes"
                    raise TerminalError(wrong, needed_for="reading from the registry", remedy=remedy)
        following = answer.links.get("next", {}).get("url")
        return _Answer(answer.status_code, answer.headers, bytes(body), following)

    def _odd(self, doing: str, repository: str) -> TerminalError:
        return TerminalError(
            f"cannot {doing}: the answer is not a registry's",
            needed_for=f"the apps of {repository}",
            remedy="check that the address is a registry's (/v2/) and not a proxy's",
        )


def _remedy(answer: _Answer) -> str:
    challenge = answer.headers.get("WWW-Authenticate", "").lower()
    if answer.status == 401 and challenge.startswith("bearer"):
        return "this registry wants a token service, which is not supported; use HTTP Basic, or ECR's own adapter"
    if answer.status in (401, 403):
        return "give the reconciler a user that may read and push"
    if 300 <= answer.status < 400:
        return "set the registry's final address; redirects are not followed"
    return "check that the address is a registry's (/v2/) and that it lets tags move"


def _retry_after(answer: _Answer) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 5 else None
