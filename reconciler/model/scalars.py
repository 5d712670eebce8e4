"""The scalar vocabulary of fleet documents: durations, times of day, releases, names, digests, budgets.

Each is a pydantic-annotated type that accepts the text as it was written in YAML (`02:00`, `v1.10`, `48h`, `10%`; scalars reach the
model as text) and keeps a machine value. Errors are `ValueError`s whose text names the offending value, the cause and the
remedy; `reconciler.repo` adds file, line and column. Contract: "Fleet documents".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import total_ordering
from ipaddress import ip_address
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, StringConstraints, WithJsonSchema

_DURATION = re.compile(r"^(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?$", re.ASCII)
_TIME_OF_DAY = re.compile(r"^([01]\d|2[0-3]):([0-5]\d)$", re.ASCII)
_RELEASE = re.compile(r"^v(0|[1-9]\d{0,8})(?:\.(0|[1-9]\d{0,8}))?(?:\.(0|[1-9]\d{0,8}))?$", re.ASCII)
_VERSION = re.compile(r"^[0-9A-Za-z][0-9A-Za-z._+-]{0,62}$", re.ASCII)
_PERCENT = re.compile(r"^(\d{1,3})%$", re.ASCII)
_BANDWIDTH = re.compile(r"^(\d{1,6}(?:\.\d{1,3})?)(k|M|G)bit$", re.ASCII)
_SIZE = re.compile(r"^(\d{1,9}) ?(Ki|Mi|Gi|Ti)B$", re.ASCII)
_SIZES = {"Ti": 1 << 40, "Gi": 1 << 30, "Mi": 1 << 20, "Ki": 1 << 10}
_INSTANT = re.compile(r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:[Zz]|[+-]\d{2}:\d{2})$", re.ASCII)

_MOST = 999_999_999
_MOST_BYTES = 2**53 - 1
"""The largest whole number that every JSON reader keeps exactly."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9-]{0,62}$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
SIZE_PATTERN = r"^\d{1,9} ?(Ki|Mi|Gi|Ti)B$"
BANDWIDTH_PATTERN = r"^\d{1,6}(\.\d{1,3})?[kMG]bit$"
DURATION_PATTERN = r"^(?=.)(\d+d)?(\d+h)?(\d+m)?(\d+s)?$"
TIME_PATTERN = r"^(([01]\d|2[0-3]):[0-5]\d|24:00)$"
RELEASE_PATTERN = _RELEASE.pattern
FINGERPRINT_PATTERN = r"^[0-9A-Fa-f]{40}$"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_IPV6 = r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+"
# Both are written into configuration files of a device: nothing passes that a format or a shell could take for syntax.
HOST_PATTERN = rf"^(?:{_HOST_NAME}|{_IPV6})$"
CAMERA_PATTERN = rf"^(?:{_HOST_NAME}(?::\d{{1,5}})?|{_IPV6}|\[{_IPV6}\](?::\d{{1,5}})?)$"

_HOST = re.compile(HOST_PATTERN, re.ASCII)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}", re.ASCII)
_CAMERA = re.compile(
    rf"(?:(?P<host>{_HOST_NAME}|{_IPV6}(?!\]))|\[(?P<v6>{_IPV6})\])(?::(?P<port>\d{{1,5}}))?", re.ASCII
)


def parse_duration(value: Any) -> int:
    """`90s`, `15m`, `48h`, `7d`, `1h30m` → whole seconds. An int is taken as seconds already parsed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write a number with its unit, as 90s, 15m, 48h, 7d or 1h30m")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def format_duration(seconds: int) -> str:
    """Whole seconds → the shortest form that `parse_duration` reads back: 5400 → `1h30m`."""
    if seconds == 0:
        return "0s"
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if unit == "d" and seconds % 86400:
            continue
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_bandwidth(value: Any) -> int:
    """`512kbit`, `20Mbit`, `1.5Gbit` → bits a second. An int is taken as bits a second already parsed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _BANDWIDTH.fullmatch(value) if isinstance(value, str) else None
    bits = round(float(match[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[match[2]]) if match is not None else 0
    if bits <= 0:
        raise ValueError(
            f"{value!r} is not a bandwidth above zero; write bits a second with their unit, as 512kbit, 20Mbit or 1Gbit"
        )
    return bits


def format_bandwidth(bits: int) -> str:
    """Bits a second → the largest unit that shows it in full: 20000000 → `20Mbit`."""
    for unit, size in (("G", 1_000_000_000), ("M", 1_000_000)):
        if bits >= size:
            return f"{bits / size:.3f}".rstrip("0").rstrip(".") + f"{unit}bit"
    return f"{bits / 1000:.3f}".rstrip("0").rstrip(".") + "kbit"


def parse_size(value: Any) -> int:
    """`512MiB`, `8GiB` → bytes. An int is taken as bytes already parsed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    size = int(match[1]) * _SIZES[match[2]] if match is not None else 0
    if size <= 0:
        raise ValueError(f"{value!r} is not a size above zero; write it with its unit, as 512MiB or 8GiB")
    return size


def format_size(size: int) -> str:
    """Bytes → the largest unit that shows them in full, or a decimal of MiB: 8589934592 → `8GiB`."""
    exact = next((unit for unit, scale in _SIZES.items() if size >= scale and size % scale == 0), None)
    return f"{size // _SIZES[exact]}{exact}B" if exact is not None else f"{size / (1 << 20):.1f}MiB"


def parse_time_of_day(value: Any) -> int:
    """`02:00` → minutes since local midnight; `24:00` is the midnight that ends the day (1440)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if value == "24:00":
        return 1440
    match = _TIME_OF_DAY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{value!r} is not a time of day; write hours and minutes, as "02:00" (00:00 to 24:00)')
    return int(match.group(1)) * 60 + int(match.group(2))


def format_time_of_day(minutes: int) -> str:
    """Minutes since midnight → `02:00`."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def parse_instant(value: Any) -> datetime:
    """RFC 3339 text with an offset → an aware datetime in UTC."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no offset; write UTC, as 2026-01-15T01:30:00Z")
        return value.astimezone(UTC)
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise ValueError(f"{value!r} is not an instant; write date, time and offset, as 2026-01-15T01:30:00Z")
    try:
        return datetime.fromisoformat(value.upper().replace(" ", "T")).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{value!r} is not an instant: {error}; write it as 2026-01-15T01:30:00Z") from None


def format_instant(instant: datetime) -> str:
    """An aware datetime → `2026-01-15T01:30:00Z`, with microseconds only where there are any."""
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def release_key(release: str) -> tuple[int, int, int]:
    """The numbers a release of an image is ordered by, missing parts 0: `v1.10` → (1, 10, 0)."""
    match = _RELEASE.fullmatch(release)
    if match is None:
        raise ValueError(f"{release!r} is not a release; write v and one to three numbers, as v2, v1.10 or v1.4.2")
    major, minor, patch = (int(part or 0) for part in match.groups())
    return major, minor, patch


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """The order of app versions: numeric parts as numbers, a missing part is 0, a pre-release before its release."""
    main, dash, pre = version.lstrip("v").partition("-")
    parts = [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in re.split(r"[.+]", main)]
    while parts and parts[-1] == (1, 0, ""):
        parts.pop()
    tail = [(0, int(p), "") if p.isdigit() else (0, 1 << 62, p) for p in pre.split(".")] if dash else [(1, 0, "")]
    return (*parts, (0, -1, ""), *tail) if dash else tuple(parts)


def _release(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a release; write v and one to three numbers, as v2, v1.10 or v1.4.2")
    release_key(value)
    return value


def _version(value: Any) -> str:
    if not isinstance(value, str) or not _VERSION.fullmatch(value):
        raise ValueError(f"{value!r} is not a version; write letters, digits, '.', '-', '+' or '_', as 2.8.0")
    return value


def _pattern(pattern: str, what: str, remedy: str) -> Any:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}; {remedy}")
        return value

    return BeforeValidator(check)


def _is_host(value: str) -> bool:
    """A host name, or an IP address: what ends in a number must be one (192.0.2.300 is neither)."""
    if not _HOST.fullmatch(value) or len(value) > 253:
        return False
    if ":" not in value and not value.rpartition(".")[2].isdigit():
        return True
    # Most addresses are these; asking the library costs ten times as much.
    if _IPV4.fullmatch(value):
        return True
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def parse_host(value: Any) -> str:
    """A host name or an IP address, as text."""
    if not isinstance(value, str) or not _is_host(value):
        raise ValueError(
            f"{value!r} is not a host; write a host name or an IP address, as ntp.site-2847.example or 192.0.2.1"
        )
    return value


def parse_camera(value: Any) -> str:
    """A host with an optional port: `192.0.2.21`, `cam-3.example:8554`, `[2001:db8::1]:554`. Never a URL: it could hold a
    password."""
    if isinstance(value, str) and _IPV4.fullmatch(value):
        return value
    match = _CAMERA.fullmatch(value) if isinstance(value, str) else None
    if match is None or not _is_host(match["v6"] or match["host"]) or not 0 < int(match["port"] or 554) < 65536:
        shown = re.sub(r"[^/\s]*@", "…@", value) if isinstance(value, str) else value
        raise ValueError(
            f"{shown!r} is not a camera's address; write a host name or an IP address, with its port where that is not 554, "
            "as 192.0.2.21 or 192.0.2.21:8554 (no URL, no user, no password)"
        )
    return str(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError(f"{value!r} is not true or false; write true or false, without quotes")


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        return int(value)
    raise ValueError(f"{value!r} is not a whole number; write digits, as 10")


def _count(value: Any) -> int:
    number = _whole(value)
    if number > _MOST:
        raise ValueError(f"{value!r} is too large; write a whole number up to {_MOST}")
    return number


def _bytes(value: Any) -> int:
    number = _whole(value)
    if number > _MOST_BYTES:
        raise ValueError(f"{value!r} is too large; write a whole number of bytes up to {_MOST_BYTES}")
    return number


def _percentage(value: Any) -> int:
    number = _whole(value[:-1] if isinstance(value, str) and value.endswith("%") else value)
    if not 1 <= number <= 100:
        raise ValueError(f"{value!r} is not a percentage; write a whole number from 1 to 100")
    return number


@total_ordering
@dataclass(frozen=True, slots=True)
class Budget:
    """A count of devices, or a percentage of a wave's non-suspended devices (contract, fine print 10)."""

    count: int | None = None
    percent: int | None = None

    def exceeded_by(self, number: int, of: int) -> bool:
        """Strictly greater fails, in integer arithmetic."""
        return number > self.count if self.count is not None else number * 100 > (self.percent or 0) * of

    def still(self, number: int, of: int) -> int:
        """How many more than `number` it takes to exceed it; 0 where all `of` them would not."""
        most = self.count if self.count is not None else (self.percent or 0) * of // 100
        return max(1, most - number + 1) if most < of else 0

    def slots(self, of: int) -> int:
        """How many may be in flight: a percentage rounds down, and at least 1 of it remains."""
        return self.count if self.count is not None else max(1, (self.percent or 0) * of // 100)

    def __str__(self) -> str:
        return f"{self.percent}%" if self.count is None else str(self.count)

    def __lt__(self, other: Budget) -> bool:
        return (self.percent or 0, self.count or 0) < (other.percent or 0, other.count or 0)


def parse_budget(value: Any) -> Budget:
    """`3` → a count, `10%` → a percentage (0 to 100)."""
    if isinstance(value, Budget):
        return value
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value)
        if match and int(match.group(1)) <= 100:
            return Budget(percent=int(match.group(1)))
    try:
        return Budget(count=_whole(value))
    except ValueError:
        raise ValueError(f'{value!r} is neither a count nor a percentage; write 3 or "10%"') from None


Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "examples": ["90s", "15m", "48h", "1h30m"]}),
]
"""A length of time in whole seconds."""

Bandwidth = Annotated[
    int,
    BeforeValidator(parse_bandwidth),
    PlainSerializer(format_bandwidth, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": BANDWIDTH_PATTERN, "examples": ["512kbit", "20Mbit", "1Gbit"]}),
]
"""A line's speed in bits a second."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN, "examples": ["512MiB", "8GiB"]}),
]
"""A size in bytes."""

TimeOfDay = Annotated[
    int,
    BeforeValidator(parse_time_of_day),
    PlainSerializer(format_time_of_day, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": TIME_PATTERN, "examples": ["02:00", "24:00"]}),
]
"""A local time of day in minutes since midnight."""

Instant = Annotated[
    datetime,
    BeforeValidator(parse_instant),
    PlainSerializer(format_instant, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-15T01:30:00Z"]}),
]
"""A point in time, UTC."""

Release = Annotated[
    str,
    BeforeValidator(_release),
    WithJsonSchema({"type": "string", "pattern": RELEASE_PATTERN, "examples": ["v1.4.2"]}),
]
Version = Annotated[
    str,
    BeforeValidator(_version),
    WithJsonSchema({"type": "string", "pattern": _VERSION.pattern, "examples": ["2.8.0"]}),
]
Digest = Annotated[
    str,
    _pattern(DIGEST_PATTERN, "a digest", "write sha256: and 64 lower-case hexadecimal digits"),
    WithJsonSchema({"type": "string", "pattern": DIGEST_PATTERN}),
]
Name = Annotated[
    str,
    _pattern(NAME_PATTERN, "a name", "use letters, digits and '-', 63 at most, beginning with a letter or digit"),
    WithJsonSchema({"type": "string", "pattern": NAME_PATTERN}),
]
Fingerprint = Annotated[
    str,
    _pattern(FINGERPRINT_PATTERN, "a key fingerprint", "write all 40 hexadecimal digits, without spaces"),
    WithJsonSchema({"type": "string", "pattern": FINGERPRINT_PATTERN}),
]
Host = Annotated[
    str,
    BeforeValidator(parse_host),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": HOST_PATTERN,
            "maxLength": 253,
            "examples": ["ntp.site-2847.example", "192.0.2.1"],
        }
    ),
]
CameraAddress = Annotated[
    str,
    BeforeValidator(parse_camera),
    WithJsonSchema(
        {"type": "string", "pattern": CAMERA_PATTERN, "maxLength": 261, "examples": ["192.0.2.21", "192.0.2.21:8554"]}
    ),
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Flag = Annotated[bool, BeforeValidator(_boolean)]
Count = Annotated[int, BeforeValidator(_count), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": _MOST})]
"""How often something happened."""
Bytes = Annotated[
    int, BeforeValidator(_bytes), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": _MOST_BYTES})
]
"""How large something is."""
Percentage = Annotated[
    int,
    BeforeValidator(_percentage),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 100},
                {"type": "string", "pattern": r"^([1-9]\d?|100)%?$"},
            ]
        }
    ),
]
BudgetField = Annotated[
    Budget,
    BeforeValidator(parse_budget),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^(\d+|(\d{1,2}|100)%)$"}],
            "examples": [3, "10%"],
        }
    ),
]
