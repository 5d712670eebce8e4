"""JSON between device and controller: one byte form for one meaning, and a parser for bytes that nobody vouches for.

Python 3.10, standard library only: runs as root on a device. Decides what is well-formed; what a document means is
decided by `report`, `assignment` and `bundle`. Source: design, section 5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn

MAX_DEPTH = 16
MAX_INT = 2**53 - 1

_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{6})?Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Malformed(Exception):
    """Bytes are not the document they were taken for. `reason` is one sentence for a person."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def dump(value: Any) -> bytes:
    """A JSON value (dict, list, str, int, bool, None; no floats) → its one byte form: sorted keys, no spaces, ASCII."""
    _no_floats(value, 0)
    return _ENCODER.encode(value).encode("ascii")


def load(data: bytes, limit: int, what: str) -> dict[str, Any]:
    """Untrusted bytes → a JSON object. Bounded in size, depth and integers; duplicate keys are refused. Raises
    Malformed."""
    if len(data) > limit:
        raise Malformed(f"{what} has {len(data)} bytes; at most {limit} are read")
    try:
        value = _DECODER.decode(data.decode("utf-8"))
        _depth(value, 0)
    except Malformed as error:
        raise Malformed(f"{what}: {error.reason}") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not JSON: {str(error)[:200] or 'nested too deeply'}") from None
    if not isinstance(value, dict):
        raise Malformed(f"{what} is {type(value).__name__}, not an object")
    return value


def load_canonical(data: bytes, limit: int, what: str) -> dict[str, Any]:
    """As `load`, and the bytes must be the canonical form: equal bytes and equal meaning are then the same thing."""
    value = load(data, limit, what)
    try:
        same = dump(value) == data
    except Malformed as error:
        raise Malformed(f"{what}: {error.reason}") from None
    if not same:
        raise Malformed(f"{what} is not in canonical form (sorted keys, no spaces, ASCII)")
    return value


def _no_floats(value: Any, depth: int) -> None:
    # Leaves are looked at here and not by a call of their own: there are thirty of them in a report.
    if depth > MAX_DEPTH:
        raise Malformed(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, float):
        raise Malformed(f"{value!r} is not a whole number")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for item in value:
        if item.__class__ not in _LEAVES or depth == MAX_DEPTH:
            _no_floats(item, depth + 1)


def _depth(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Malformed(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in value:
        if item.__class__ not in _LEAVES or depth == MAX_DEPTH:
            _depth(item, depth + 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise Malformed(f"key {key[:64]!r} appears twice")
        result[key] = value
    return result


def _constant(text: str) -> NoReturn:
    raise Malformed(f"{text} is not JSON")


def _integer(text: str) -> int:
    # Bounded before int(): a million digits cost quadratic time.
    if len(text) > 17 or abs(int(text)) > MAX_INT:
        raise Malformed(f"the number {text[:20]} is out of range")
    return int(text)


_LEAVES = frozenset((str, int, bool, type(None)))
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer)


class Fields:
    """Reads typed, bounded values out of an untrusted object. Every error names the key. Unknown keys are left
    alone."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{what} is not an object")
        self.value: Mapping[str, Any] = value
        self.what = what

    def bad(self, key: str, wanted: str) -> Malformed:
        """The error for a key whose value is not as wanted."""
        shown = repr(self.value.get(key))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return Malformed(f"{self.what}: `{key}` is {shown}, not {wanted}" if key in self.value else self._missing(key))

    def _missing(self, key: str) -> str:
        return f"{self.what}: `{key}` is missing"

    def text(self, key: str, limit: int = 128, *, empty: bool = False, default: str | None = None) -> str:
        """Text of at most `limit` characters, without control characters other than newline and tab."""
        item = self.value.get(key, default)
        if not isinstance(item, str) or len(item) > limit or not (item or empty):
            raise self.bad(key, f"text of at most {limit} characters")
        if not printable(item):
            raise self.bad(key, "text without control characters")
        return item

    def optional(self, key: str, read: Callable[[str], Any]) -> Any:
        """None where the key is missing or null, else `read(key)`."""
        return None if self.value.get(key) is None else read(key)

    def name(self, key: str) -> str:
        """The name of a site or device."""
        item = self.value.get(key)
        if not is_name(item):
            raise self.bad(key, "a name (letters, digits and '-', 63 at most)")
        return str(item)

    def digest(self, key: str) -> str:
        """`sha256:` and 64 lower-case hexadecimal digits."""
        item = self.value.get(key)
        if not is_digest(item):
            raise self.bad(key, "a digest (sha256: and 64 lower-case hexadecimal digits)")
        return str(item)

    def whole(self, key: str, minimum: int = 0, maximum: int = MAX_INT) -> int:
        """A whole number in [minimum, maximum]."""
        item = self.value.get(key)
        if not isinstance(item, int) or isinstance(item, bool) or not minimum <= item <= maximum:
            raise self.bad(key, f"a whole number from {minimum} to {maximum}")
        return item

    def flag(self, key: str) -> bool:
        """True or false."""
        item = self.value.get(key)
        if not isinstance(item, bool):
            raise self.bad(key, "true or false")
        return item

    def word(self, key: str, words: tuple[str, ...]) -> str:
        """One of a closed set."""
        item = self.value.get(key)
        if not isinstance(item, str) or item not in words:
            raise self.bad(key, "one of " + ", ".join(words))
        return item

    def instant(self, key: str) -> datetime:
        """An instant, UTC."""
        try:
            return parse_instant(self.value.get(key))
        except ValueError:
            raise self.bad(key, "an instant, as 2026-01-15T01:30:00Z") from None

    def items(self, key: str, limit: int, *, missing_ok: bool = True) -> list[Any]:
        """A list of at most `limit` values."""
        item = self.value.get(key, [] if missing_ok else None)
        if not isinstance(item, list) or len(item) > limit:
            raise self.bad(key, f"a list of at most {limit}")
        return item

    def mapping(self, key: str, limit: int, *, missing_ok: bool = True) -> dict[str, Any]:
        """An object of at most `limit` keys of at most 128 printable characters each."""
        item = self.value.get(key, {} if missing_ok else None)
        if not isinstance(item, dict) or len(item) > limit:
            raise self.bad(key, f"an object of at most {limit} keys")
        if not all(0 < len(name) <= 128 and printable(name) for name in item):
            raise self.bad(key, "an object whose keys are text of at most 128 characters")
        return item

    def serial(self, key: str) -> tuple[int, int]:
        """`[epoch, n]`."""
        item = self.value.get(key)
        if (
            not isinstance(item, list)
            or len(item) != 2
            or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MAX_INT for n in item)
        ):
            raise self.bad(key, "a serial [epoch, n]")
        return int(item[0]), int(item[1])


def is_name(value: Any) -> bool:
    """Whether `value` may name a site or device."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def is_digest(value: Any) -> bool:
    """Whether `value` is `sha256:` and 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_text(value: Any, limit: int = 128) -> bool:
    """Whether `Fields.text` takes `value`, with this limit."""
    return isinstance(value, str) and 0 < len(value) <= limit and printable(value)


def printable(text: str) -> bool:
    """No control characters other than newline and tab, no lone surrogates: safe to store, log and encode."""
    return _UNPRINTABLE.search(text) is None


def clip(text: str, limit: int) -> str:
    """Text made printable and at most `limit` characters long, for what a device did not write itself."""
    clean = "".join(c if printable(c) else "?" for c in text[:limit])
    return clean if len(text) <= limit else clean[: max(0, limit - 3)] + "..."


def parse_instant(value: Any) -> datetime:
    """`2026-01-15T01:30:00Z` → an aware datetime in UTC. ValueError otherwise."""
    if not isinstance(value, str) or _INSTANT.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not an instant")
    return datetime.fromisoformat(value[:-1]).replace(tzinfo=timezone.utc)


def format_instant(instant: datetime) -> str:
    """An aware datetime → `2026-01-15T01:30:00Z`, with microseconds only where there are any."""
    if instant.utcoffset() is None:
        raise ValueError(f"{instant!r} has no offset")
    return instant.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z"


def parse_epoch(seconds: int) -> datetime:
    """Seconds since 1970 → an aware datetime in UTC."""
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
