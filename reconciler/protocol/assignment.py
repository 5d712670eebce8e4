"""A device's assignment: what it shall run, until when the word holds, and when it may act. The downward half of an
exchange.

Python 3.10, standard library only: runs as root on a device. Holds the document's shape and bounds. Whether a device
acts on it is decided in `agent.judge`, in the order of design section 5; that it comes from the reconciler is proven
in `bundle`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from reconciler.protocol import PROTOCOL
from reconciler.protocol.canonical import (
    Fields,
    Malformed,
    dump,
    format_instant,
    is_name,
    load_canonical,
    parse_instant,
)
from reconciler.protocol.report import Serial

MAX_ASSIGNMENT_BYTES = 64 * 1024
MAX_APPS = 32
MAX_WINDOWS = 64

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RELEASE = re.compile(r"v\d{1,9}(?:\.\d{1,9}){0,2}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._/-][a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,62}")

KNOWN_KEYS = frozenset(
    (
        "protocol",
        "type",
        "device",
        "serial",
        "issuedAt",
        "expiresAt",
        "image",
        "apps",
        "config",
        "window",
        "windowWaived",
        "critical",
    )
)
"""Keys that this end understands; a `critical` key outside of them is refused."""


class AssignmentError(Malformed):
    """Bytes are not an assignment that this end can follow."""


@dataclass(frozen=True)
class ImageTarget:
    """The image release to run: `digest` is that of the raw image (what a slot holds), `folder` the artifact's folder
    name."""

    release: str
    digest: str
    folder: str


@dataclass(frozen=True)
class AppTarget:
    """An app release to run. `digest` decides; `tag` and `version` name it for people and for counting attempts."""

    repository: str
    tag: str
    digest: str
    version: str


@dataclass(frozen=True)
class Assignment:
    """One device's orders. None for image or config means: leave it as it is. Apps not named are left alone.

    `window` holds half-open UTC intervals, ascending; empty means prefetch only. `window_waived` lets the device act
    at once.
    """

    device: str
    serial: Serial
    issued_at: datetime
    expires_at: datetime
    image: ImageTarget | None = None
    apps: Mapping[str, AppTarget] = field(default_factory=dict)
    config: str | None = None
    window: tuple[tuple[datetime, datetime], ...] = ()
    window_waived: bool = False
    critical: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Canonical JSON: the leaf of the signed tree."""
        image = self.image
        value: dict[str, Any] = {
            "protocol": PROTOCOL,
            "type": "assignment",
            "device": self.device,
            "serial": list(self.serial),
            "issuedAt": format_instant(self.issued_at),
            "expiresAt": format_instant(self.expires_at),
            "image": {"release": image.release, "digest": image.digest, "folder": image.folder} if image else None,
            "apps": {
                name: {"repository": app.repository, "tag": app.tag, "digest": app.digest, "version": app.version}
                for name, app in self.apps.items()
            },
            "config": self.config,
            "window": [[format_instant(start), format_instant(end)] for start, end in self.window],
            "windowWaived": self.window_waived,
        }
        if self.critical:
            value["critical"] = sorted(self.critical)
        return dump(value)

    @classmethod
    def from_bytes(cls, data: bytes) -> Assignment:
        """Parse bytes of unknown origin; they must be canonical. Raises AssignmentError, which names the key and
        value."""
        try:
            return _parse(Fields(load_canonical(data, MAX_ASSIGNMENT_BYTES, "assignment"), "assignment"))
        except AssignmentError:
            raise
        except Malformed as error:
            raise AssignmentError(error.reason) from None

    def open_at(self, now: datetime) -> bool:
        """Whether the device may write and reboot now."""
        return self.window_waived or any(start <= now < end for start, end in self.window)


def _matching(fields: Fields, key: str, pattern: re.Pattern[str], wanted: str, limit: int = 255) -> str:
    text = fields.text(key, limit)
    if pattern.fullmatch(text) is None:
        raise fields.bad(key, wanted)
    return text


def _image(value: Any) -> ImageTarget | None:
    if value is None:
        return None
    part = Fields(value, "assignment image")
    return ImageTarget(
        release=_matching(part, "release", _RELEASE, "a release, as v1.4.2"),
        digest=part.digest("digest"),
        folder=_matching(part, "folder", _FOLDER, "a folder's name, without slashes"),
    )


def _apps(fields: Fields) -> dict[str, AppTarget]:
    found = {}
    for name, item in fields.mapping("apps", MAX_APPS).items():
        if not is_name(name):
            raise AssignmentError(f"assignment: `apps` names {name[:80]!r}, which is not a name")
        part = Fields(item, f"assignment app {name}")
        found[name] = AppTarget(
            repository=_matching(part, "repository", _REPOSITORY, "a repository"),
            tag=_matching(part, "tag", _TAG, "a tag"),
            digest=part.digest("digest"),
            version=_matching(part, "version", _VERSION, "a version"),
        )
    return found


def _window(fields: Fields) -> tuple[tuple[datetime, datetime], ...]:
    found = []
    for item in fields.items("window", MAX_WINDOWS):
        if not isinstance(item, list) or len(item) != 2:
            raise AssignmentError(f"assignment: `window` holds {str(item)[:80]}, not [start, end]")
        try:
            start, end = parse_instant(item[0]), parse_instant(item[1])
        except ValueError as error:
            raise AssignmentError(f"assignment: `window`: {error}") from None
        if start >= end:
            raise AssignmentError(f"assignment: the window {item[0]} to {item[1]} is empty")
        found.append((start, end))
    if any(later[0] < earlier[1] for earlier, later in pairwise(found)):
        raise AssignmentError("assignment: `window` is not ascending")
    return tuple(found)


def _parse(fields: Fields) -> Assignment:
    if fields.whole("protocol", 1) != PROTOCOL:
        raise AssignmentError(f"assignment: `protocol` is {fields.value['protocol']}; this end speaks {PROTOCOL}")
    fields.word("type", ("assignment",))
    critical = fields.items("critical", 32)
    for key in critical:
        if not isinstance(key, str) or key not in KNOWN_KEYS:
            raise AssignmentError(f"assignment: {str(key)[:64]!r} must be understood, and this end does not know it")
    issued_at, expires_at = fields.instant("issuedAt"), fields.instant("expiresAt")
    if expires_at <= issued_at:
        raise AssignmentError("assignment: `expiresAt` is not after `issuedAt`")
    return Assignment(
        device=fields.name("device"),
        serial=fields.serial("serial"),
        issued_at=issued_at,
        expires_at=expires_at,
        image=_image(fields.value.get("image")),
        apps=_apps(fields),
        config=fields.optional("config", fields.digest),
        window=_window(fields),
        window_waived=fields.flag("windowWaived"),
        critical=tuple(critical),
    )
