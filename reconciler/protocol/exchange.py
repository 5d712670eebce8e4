"""The envelopes of the HTTP API between device and server: the answer to a report, and a site's rendered configuration.

Python 3.10, standard library only: runs as root on a device. Holds shapes and bounds. Nothing in an envelope is
signed but the bundle: addresses are hints (a device trusts digests), `server_time` is shown and never obeyed. Source:
design, section 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from reconciler.protocol.bundle import MAX_BUNDLE_BYTES, Bundle
from reconciler.protocol.canonical import Fields, Malformed, dump, format_instant, load

MAX_ANSWER_BYTES = MAX_BUNDLE_BYTES + 64 * 1024
MAX_CONFIG_BYTES = 1024 * 1024
MAX_SOURCES = 64
URL_CHARS = 4096
CONFIG_FILES = ("user-data", "meta-data", "network-config")

_URL = re.compile(r"(?:https?|file)://[!-~]+")


@dataclass(frozen=True)
class Answer:
    """The answer to `POST /v1/exchange`. No bundle means: nothing new.

    `sources["image"]` are addresses of the assigned artifact: one that ends with `/` is a folder to which file names
    are appended, any other is that of the file its path ends with (a presigned URL). `sources["registry"]` are
    addresses of the registry (`https://host:port`); `registry_token` a short-lived credential for it: `user:password` for HTTP
    Basic, as Amazon ECR's decoded authorization token is (`AWS:…`), or a token without a colon.
    `report_every_s` is 1 to 86400.
    """

    bundle: Bundle | None = None
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    report_every_s: int = 60
    server_time: datetime | None = None
    registry_token: str | None = field(default=None, repr=False)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return dump(
            {
                "bundle": self.bundle.to_dict() if self.bundle else None,
                "sources": {kind: list(urls) for kind, urls in self.sources.items()},
                "reportEvery": self.report_every_s,
                "serverTime": format_instant(self.server_time) if self.server_time else None,
                "registryToken": self.registry_token,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Answer:
        """Parse untrusted bytes. Raises Malformed. Unknown keys are ignored."""
        fields = Fields(load(data, MAX_ANSWER_BYTES, "answer"), "answer")
        sources = {}
        for kind, urls in fields.mapping("sources", 16).items():
            if not isinstance(urls, list) or len(urls) > MAX_SOURCES:
                raise Malformed(f"answer: sources of {kind!r} are not a list of at most {MAX_SOURCES}")
            if not all(isinstance(url, str) and len(url) <= URL_CHARS and _URL.fullmatch(url) for url in urls):
                raise Malformed(f"answer: sources of {kind!r} hold something that is no http, https or file address")
            sources[kind] = tuple(urls)
        return cls(
            bundle=fields.optional("bundle", lambda key: Bundle.from_dict(fields.value[key])),
            sources=sources,
            report_every_s=fields.whole("reportEvery", 1, 86400),
            server_time=fields.optional("serverTime", fields.instant),
            registry_token=fields.optional("registryToken", lambda key: fields.text(key, 4096)),
        )


@dataclass(frozen=True)
class RegistryToken:
    """What an answer's `registry_token` is made from: the registry's address, the token, and until when it holds (None: until
    it is changed)."""

    address: str
    secret: str = field(repr=False)
    expires_at: datetime | None = None


@dataclass(frozen=True)
class SiteConfig:
    """The answer to `GET /v1/config`: the site's rendered files with secrets in them (never shown), and their config
    digest.

    The digest is over the spec and the versions of its secrets, never their values, so a device cannot recompute it
    from the files: it accepts files that carry the digest its signed assignment names, over a connection that it
    authenticated.
    """

    digest: str
    files: Mapping[str, bytes] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Canonical JSON. The files are text (UTF-8)."""
        return dump({"digest": self.digest, "files": {name: data.decode("utf-8") for name, data in self.files.items()}})

    @classmethod
    def from_bytes(cls, data: bytes) -> SiteConfig:
        """Parse untrusted bytes. Raises Malformed, which never quotes a file's content."""
        fields = Fields(load(data, MAX_CONFIG_BYTES, "config"), "config")
        files = {}
        for name, text in fields.mapping("files", len(CONFIG_FILES), missing_ok=False).items():
            if name not in CONFIG_FILES or not isinstance(text, str):
                raise Malformed(f"config: `files` may hold {', '.join(CONFIG_FILES)}, each as text; {name!r} is not")
            try:
                files[name] = text.encode("utf-8")
            except UnicodeEncodeError:
                raise Malformed(f"config: file {name!r} is not UTF-8") from None
        if "user-data" not in files or "meta-data" not in files:
            raise Malformed("config: `files` lacks user-data or meta-data")
        return cls(fields.digest("digest"), files)
