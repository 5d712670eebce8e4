"""What a model refuses, in plain words: pydantic's errors → messages with the key, the offending value and the remedy.

Decides the text of a problem and whether it belongs to the key or to the value; `repo.reader` knows the place, and the
models know the rule. Used for fleet documents, scenarios and snapshots alike.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from reconciler.repo.near import nearest_name
from reconciler.repo.reader import Where, clip

SECRET_KEYS = frozenset(("secretRef",))
"""Keys under which somebody may paste a secret by mistake: the value is never repeated."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A message for an entry of the document, to be shown at its key or at its value."""

    where: Where
    at_key: bool
    message: str
    code: str


def key_text(where: Where) -> str:
    """`("spec", "waves", 2, "soak")` → `spec.waves[2].soak`."""
    text = ""
    for part in where:
        word = f"[{part}]" if isinstance(part, int) else part if len(part) <= 80 else part[:80] + "…"
        text += f".{word}" if text and isinstance(part, str) else word
    return text or "the document"


def complaint(error: ErrorDetails, model: type[BaseModel]) -> Complaint:
    """One of pydantic's errors, by alias, raised by `model` over data as `repo.reader` gives it."""
    where: Where = tuple(error["loc"])
    of_key = bool(where) and where[-1] == "[key]"
    if of_key:
        where = where[:-1]
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return Complaint(where, True, _unknown_key(where, model), "unknown-key")
    if kind == "missing":
        return Complaint(where[:-1], True, f"{key_text(where)} is missing; {_how_to_write(where, model)}", "missing")
    name = key_text(where[:-1] if of_key else where)
    if given is None:
        needed = _is_needed(model, where)
        remedy = (
            "write one ({} for none)" if where == ("spec",) else "write one" if needed else "write one, or leave it out"
        )
        return Complaint(where, False, f"{name} has no value; {remedy}", "empty")
    if where and where[-1] == "vpn":
        return Complaint(where, False, f"{name}: {_SHAPES['model_type']} (what is there is not shown)", "value")
    if where and where[-1] in SECRET_KEYS:
        return Complaint(
            where, False, f"{name} is not the name of a secret (its value is not shown); {_HOW_TO_REFER}", "value"
        )
    return Complaint(where, of_key, f"{name}: {_fault(error, given, _target(model, where))}", "value")


_HOW_TO_REFER = "write the name under which it is stored, as edge/SITE-2847/vpn, 512 characters at most"


def _fault(error: ErrorDetails, given: Any, target: Any) -> str:
    """What is wrong with the value itself, and what to write."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return _own_words(str(context.get("error", error["msg"])), given, target)
    shown = show(given)
    if kind in _SHAPES:
        return f"{shown} stands where {_SHAPES[kind]}"
    if kind in ("literal_error", "enum"):
        words = [word.strip().strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(",")]
        near = nearest_name(given, words) if isinstance(given, str) else None
        hint = f"; did you mean {near!r}?" if near else ""
        return f"{shown} is not known here; write {' or '.join(words)}{hint}"
    template = _RULES.get(kind)
    if template is not None:
        return f"{shown} {template.format(**context)}"
    return f"{shown}: {error['msg'][:1].lower()}{error['msg'][1:]}; write it as the schema of this kind says"


_SHAPES: Mapping[str, str] = {
    "model_type": "a mapping is expected; write `key: value` lines, indented below it",
    "model_attributes_type": "a mapping is expected; write `key: value` lines, indented below it",
    "dict_type": "a mapping is expected; write `key: value` lines, indented below it",
    "mapping_type": "a mapping is expected; write `key: value` lines, indented below it",
    "tuple_type": "a list is expected; write [a, b], or lines that begin with '- '",
    "list_type": "a list is expected; write [a, b], or lines that begin with '- '",
    "string_type": "text is expected; write a single value",
    "int_type": "a whole number is expected; write digits, as 3",
    "bool_type": "true or false is expected; write one of them, without quotes",
}

_RULES: Mapping[str, str] = {
    "int_parsing": "is not a whole number; write digits, as 3",
    "int_parsing_size": "is too large; write a smaller number",
    "int_from_float": "is not a whole number; write digits, as 3",
    "bool_parsing": "is not true or false; write one of them, without quotes",
    "string_too_short": "is too short; write at least {min_length} characters",
    "string_too_long": "is too long; write at most {max_length} characters",
    "too_short": "has {actual_length} entries; write at least {min_length}",
    "too_long": "has too many entries; write at most {max_length}",
    "greater_than_equal": "is too small; write at least {ge}",
    "less_than_equal": "is too large; write at most {le}",
    "greater_than": "is too small; write more than {gt}",
    "less_than": "is too large; write less than {lt}",
    "string_pattern_mismatch": "is not of the right form; write it to match {pattern}",
}


def show(given: Any) -> str:
    """A value as a message shows it, bounded whatever was written."""
    if isinstance(given, str):
        return clip(given)
    if isinstance(given, Mapping):
        keys = ", ".join(str(key)[:20] for key in list(given)[:3])
        return f"a mapping ({keys}{', …' if len(given) > 3 else ''})" if given else "an empty mapping"
    if isinstance(given, (list, tuple)):
        return f"a list of {len(given)}" if given else "an empty list"
    return "null" if given is None else clip(str(given))


def _own_words(text: str, given: Any, target: Any) -> str:
    """A rule's own message, unless a list or a mapping was written where it takes a single value."""
    text = text.removeprefix("Value error, ")
    if isinstance(given, (Mapping, list, tuple)):
        if _is_model(target) is not None or repr(given) not in text:
            return text
        remedy = text.rpartition("; ")[2]
        return f"{show(given)} stands where a single value is expected; {remedy}"
    if isinstance(given, str) and len(given) > 80:
        text = text.replace(repr(given), clip(given))
    return text if len(text) <= 500 else text[:500] + "…"


def _unknown_key(where: Where, model: type[BaseModel]) -> str:
    key = str(where[-1])
    parent = _is_model(_target(model, where[:-1]))
    known = aliases(parent) if parent is not None else {}
    near = nearest_name(key, known)
    inside = key_text(where[:-1])
    if near is not None:
        return f"unknown key {clip(key)} in {inside}; did you mean {near!r}?"
    below = next((name for name, below in known.items() if key in aliases(_is_model(below))), None)
    if below is not None:
        return f"unknown key {clip(key)} in {inside}; it belongs under `{below}:`, indent it there"
    if key in aliases(model) or (len(where) > 2 and key in aliases(_is_model(_target(model, ("spec",))))):
        return f"unknown key {clip(key)} in {inside}; it belongs further out, indent it less"
    return f"unknown key {clip(key)} in {inside}; remove it, or write one of {', '.join(known)}"


def _is_needed(model: type[BaseModel], where: Where) -> bool:
    parent = _is_model(_target(model, where[:-1])) if where else None
    fields = parent.model_fields.items() if parent is not None else ()
    return any(field.is_required() for name, field in fields if (field.alias or name) == where[-1])


def _how_to_write(where: Where, model: type[BaseModel]) -> str:
    parent = _is_model(_target(model, where[:-1]))
    field = next((f for n, f in parent.model_fields.items() if (f.alias or n) == where[-1]), None) if parent else None
    if field is None or not field.description:
        return "write it"
    return f"write it ({field.description[:1].lower()}{field.description[1:]})"


def aliases(model: type[BaseModel] | None) -> dict[str, Any]:
    """The keys that a model takes, as they are written in YAML, with the annotation of each."""
    if model is None:
        return {}
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _target(model: Any, where: Where) -> Any:
    """The annotation of the entry at `where`; None where the model leaves it open."""
    target = model
    for part in where:
        target = _bare(target)
        own = _is_model(target)
        if own is not None:
            target = aliases(own).get(str(part))
        else:
            arguments = get_args(target)
            target = arguments[-1 if get_origin(target) is not tuple else 0] if arguments else None
    return _bare(target)


def _bare(target: Any) -> Any:
    """`X | None` → X; `Annotated[X, …]` → X."""
    while True:
        if hasattr(target, "__metadata__"):
            target = target.__origin__
        elif get_origin(target) in (Union, types.UnionType):
            target = next((part for part in get_args(target) if part is not type(None)), None)
        else:
            return target


def _is_model(target: Any) -> type[BaseModel] | None:
    return target if isinstance(target, type) and issubclass(target, BaseModel) else None
