"""Pages with tables of a document's fields: writes each from the model that reads them. Used by `make docs` and its test.

In a page, what stands between `<!-- fields: MODEL -->` and `<!-- end of fields -->` is the table of that model: its keys as
they are written, those of what stands below them too. The words are the fields' own descriptions, which the JSON Schemas show
as well. What a scenario shares with the observed snapshot is on the snapshot's page.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from reconciler.model import desired, scalars
from reconciler.model.desired import Part
from reconciler.model.plan import Reason
from reconciler.model.scalars import Budget, format_duration, format_time_of_day
from reconciler.repo import scenario

_MARK = re.compile(r"(<!-- fields: (\w+) -->\n\n).*?(\n<!-- end of fields -->)", re.DOTALL)
_WORDS: tuple[tuple[Any, str], ...] = (
    (scalars.Duration, "duration"), (scalars.Bandwidth, "speed"), (scalars.TimeOfDay, "time of day"),
    (scalars.Instant, "instant"), (scalars.Release, "release of an image"), (scalars.Version, "version"),
    (scalars.Digest, "digest"), (scalars.Name, "name"), (scalars.Fingerprint, "fingerprint"), (scalars.Host, "host"),
    (scalars.CameraAddress, "address"), (scalars.Text, "text"), (scalars.Flag, "`true` or `false`"),
    (scalars.Count, "number"), (scalars.Bytes, "number"), (scalars.Percentage, "percentage"), (scalars.BudgetField, "budget"),
)  # fmt: skip
_PLAIN = {str: "text", int: "number", bool: "`true` or `false`", dict: "a mapping", float: "number", Any: "anything"}


def fill(page: str) -> str:
    """The page with its tables as the models are now. KeyError: a mark names no model."""

    def made(match: re.Match[str]) -> str:
        model = getattr(desired, match[2], None) or getattr(scenario, match[2], None)
        if not isinstance(model, type) or not issubclass(model, Part):
            raise KeyError(f"there is no model {match[2]}")
        rows = "\n".join(_rows(model, "", {}))
        return f"{match[1]}| key | value | unless said | means |\n| --- | --- | --- | --- |\n{rows}\n{match[3]}"

    return _MARK.sub(made, page)


def _rows(model: type[Part], prefix: str, seen: dict[type[Part], str]) -> Iterator[str]:
    """The rows of a model's keys. `seen`: the models that stand in the table already, each with its key."""
    hints = typing.get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        hint, key = hints[name], f"{prefix}{field.alias or name}"
        text = (field.description or "").replace("|", "\\|")
        assert text, f"{model.__name__}.{name} has no description"
        before = next((seen[part] for part, _ in _parts(hint) if part in seen), None)
        yield f"| `{key}` | {f'as `{before}`' if before else _kind(hint)} | {_default(field, hint)} | {text} |"
        for below, many in _parts(hint):
            if below not in seen:
                seen[below] = key
                yield from _rows(below, f"{key}{many}.", seen)


def _members(hint: Any) -> list[Any]:
    """The alternatives of a hint, without `None`."""
    if any(hint == alias for alias, _ in _WORDS):
        return [hint]
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [found for part in typing.get_args(hint) if part is not type(None) for found in _members(part)]
    return [hint]


def _parts(hint: Any) -> Iterator[tuple[type[Part], str]]:
    """The models in a hint, with how a key says that it holds many of them."""
    for member in _members(hint):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if (
            isinstance(member, type)
            and issubclass(member, Part)
            and member.__module__ in (desired.__name__, scenario.__name__)
        ):
            yield member, ""
        elif origin is tuple:
            yield from ((part, "[]") for part, _ in _parts(arguments[0]))
        elif origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            yield from ((part, ".NAME") for part, _ in _parts(arguments[1]))


def _kind(hint: Any) -> str:
    return " or ".join(dict.fromkeys(_word(member) for member in _members(hint)))


def _word(member: Any) -> str:
    known = next((word for alias, word in _WORDS if member == alias), None)
    origin, arguments = typing.get_origin(member), typing.get_args(member)
    if known is not None:
        return known
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{_kind(arguments[0])} to {_kind(arguments[1])}"
    if isinstance(member, type) and issubclass(member, StrEnum):
        return "a [reason](reasons.md)" if member is Reason else " or ".join(f"`{value}`" for value in member)
    if isinstance(member, type) and issubclass(member, Part):
        return "the keys below" if any(_parts(member)) else "[the snapshot's](observed-snapshot.md)"
    return _PLAIN.get(member, "a mapping")


def _default(field: Any, hint: Any) -> str:
    if field.is_required():
        return "*must be said*"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, desired.Window):
        return f"`{format_time_of_day(value.start)}` to `{format_time_of_day(value.end)}`"
    if isinstance(value, Part):
        return "as below"
    if value is None or value in ((), {}, ""):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and scalars.Duration in _members(hint):
        return f"`{format_duration(value)}`"
    assert isinstance(value, str | int | Budget), value
    return f"`{value}`"
