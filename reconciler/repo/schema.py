"""JSON Schemas (2020-12) of the fleet documents, one a kind, generated from the same models that the loader uses.

Decides how a model is told to an editor or another validator, which reads YAML in the ordinary way: there `paused: true` is a
boolean, `percent: 10` a number and an unquoted `22:00` may be one too, while our loader sees text as written.
A schema accepts what the loader accepts, and refuses what a schema can. Called by `reconciler schema`; a test fails when
schemas/ is stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from reconciler.model.observed import ArtifactState
from reconciler.model.scalars import DURATION_PATTERN, TIME_PATTERN, format_duration
from reconciler.repo.documents import KINDS, model_of

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Text that an ordinary YAML reader turns into something else, and the type it becomes.
_TURNS_INTO = {"number": ("10", "1.5", "1" * 40), "boolean": ("true",)}
_ONE_OF_LISTS = [
    {"required": ["sites"], "properties": {"sites": {"type": "array"}, "percent": {"type": "null"}}},
    {"required": ["percent"], "properties": {"percent": {"not": {"type": "null"}}, "sites": {"type": "null"}}},
]


def file_name(kind: str) -> str:
    """`Site` → `site.schema.json`."""
    return f"{kind.lower()}.schema.json"


def schemas() -> dict[str, str]:
    """File name → text of the schema of every kind. The same models give the same bytes."""
    return {file_name(kind): json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n" for kind in KINDS}


def schema_of(kind: str) -> Schema:
    """The schema of one kind's whole document."""
    made = model_of(kind).model_json_schema(by_alias=True, mode="validation")
    definitions: Schema = made.pop("$defs", {})
    for name, definition in definitions.items():
        tighten = _TIGHTEN.get(name)
        if tighten is not None:
            tighten(definition)
    ordered: Schema = {"$schema": _DIALECT, "title": made.pop("title"), "description": made.pop("description")}
    ordered |= {"examples": [EXAMPLES[kind]], **made}
    if definitions:
        ordered["$defs"] = definitions
    _walk(ordered, None)
    ordered["examples"] = [EXAMPLES[kind]]
    return ordered


def _walk(node: Any, key: str | None) -> None:
    """Adapt every schema below `node`. `key` is the document key that it describes, if any."""
    if isinstance(node, list):
        for item in node:
            _walk(item, None)
        return
    if not isinstance(node, dict):
        return
    if key is not None and "title" in node:
        node["title"] = _words(key)
    _default(node)
    _loosen(node)
    if "patternProperties" in node:
        node.setdefault("additionalProperties", False)
    for name, below in node.items():
        if name in ("properties", "$defs", "patternProperties"):
            for inner, schema in below.items():
                _walk(schema, inner if name == "properties" else None)
        elif name == "anyOf" and {"integer", "string"} <= {item.get("type") for item in below}:
            continue  # the model says itself what number and text may be
        elif name not in ("examples", "default", "enum", "required", "oneOf", "not"):
            _walk(below, None)


def _default(node: Schema) -> None:
    """A default is shown as it would be written."""
    default = node.get("default", ...)
    if default is None:
        del node["default"]
    elif isinstance(default, int) and node.get("pattern") == DURATION_PATTERN:
        node["default"] = format_duration(default)
    elif isinstance(default, dict) and set(default) == {"count", "percent"}:
        count, percent = default["count"], default["percent"]
        node["default"] = count if percent is None else f"{percent}%"


def _loosen(node: Schema) -> None:
    """Let a scalar be what an ordinary YAML reader makes of text that the loader accepts."""
    kind = node.get("type")
    if "enum" in node or "const" in node:
        if kind == "string" and any(not isinstance(value, str) for value in node.get("enum", ())):
            del node["type"]
    elif kind == "string" and node.get("pattern") == TIME_PATTERN:
        limits = {"type": "integer", "minimum": 600, "maximum": 1440}
        node["anyOf"] = [{"type": "string", "pattern": node.pop("pattern")}, {**limits, "description": _SEXAGESIMAL}]
        del node["type"]
    elif kind == "string" and "format" not in node:
        pattern = re.compile(node.get("pattern", ""))
        also = [name for name, texts in _TURNS_INTO.items() if any(pattern.search(text) for text in texts)]
        if also:
            node["type"] = ["string", *also]
    elif kind == "boolean":
        node["enum"] = [True, False, "true", "false"]
        del node["type"]
    elif kind == "integer":
        limits = {name: node.pop(name) for name in ("type", "minimum", "maximum") if name in node}
        node["anyOf"] = [limits, {"type": "string", "pattern": r"^\d{1,9}$"}]


_SEXAGESIMAL = "What a YAML 1.1 reader makes of an unquoted 22:00; write the time in quotes, and it stays text"


def _words(key: str) -> str:
    """`maxInFlight` → `Max in flight`."""
    spaced = re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: " " + found.group().lower(), key)
    return spaced[:1].upper() + spaced[1:]


def _wave(definition: Schema) -> None:
    definition["oneOf"] = _ONE_OF_LISTS
    for option in definition["properties"]["sites"]["anyOf"]:
        if option.get("type") == "array":
            option |= {"minItems": 1, "uniqueItems": True}


def _site(definition: Schema) -> None:
    definition["properties"]["devices"]["uniqueItems"] = True
    definition["properties"]["timezone"] |= {
        "type": "string",
        "pattern": r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$",
    }
    definition["properties"]["timezone"]["examples"] = ["Europe/Berlin", "America/New_York", "UTC"]


def _image(definition: Schema) -> None:
    definition["properties"]["recipe"]["not"] = {"type": "string", "pattern": r"(^|/)\.\.(/|$)"}


def _pin(definition: Schema) -> None:
    for option in definition["properties"]["devices"]["anyOf"]:
        if option.get("type") == "array":
            option["minItems"] = 1


def _observed(definition: Schema) -> None:
    """A scenario's shorthands: an artifact's state alone, and lists by name."""
    artifacts = definition["properties"]["artifacts"]
    states = {"type": "string", "enum": [state.value for state in ArtifactState]}
    for values in ("patternProperties", "additionalProperties"):
        if isinstance(artifacts.get(values), dict):
            below = artifacts[values]
            if values == "additionalProperties":
                artifacts[values] = {"anyOf": [below, states]}
            else:
                artifacts[values] = {pattern: {"anyOf": [value, states]} for pattern, value in below.items()}
    definition["properties"]["devices"]["type"] = ["object", "array"]


def _sites(definition: Schema) -> None:
    definition["type"] = ["object", "array"]


def _expect(definition: Schema) -> None:
    definition["properties"]["waves"]["type"] = ["object", "array"]
    definition["minProperties"] = 1


_TIGHTEN: Mapping[str, Callable[[Schema], None]] = {
    "WaveSpec": _wave,
    "SiteSpec": _site,
    "ImageSpec": _image,
    "Pin": _pin,
    "ScenarioObserved": _observed,
    "ScenarioSites": _sites,
    "Expect": _expect,
}
"""What the documents' own checks refuse or complete and a schema can say too, by model."""


def _example(kind: str, name: str, spec: Schema) -> Schema:
    return {"apiVersion": "fleet/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


EXAMPLES: Mapping[str, Schema] = {
    "Fleet": _example(
        "Fleet",
        "vlt-edge",
        {
            "images": "s3://vlt-edge-images/",
            "registry": "registry.example:5000",
            "releaseKeys": ["0123456789ABCDEF0123456789ABCDEF01234567"],
            "window": {"start": "02:00", "end": "04:00"},
            "staleAfter": "15m",
            "freezes": [{"from": "2026-12-18T00:00:00Z", "to": "2027-01-04T00:00:00Z", "why": "year-end freeze"}],
        },
    ),
    "Image": _example(
        "Image",
        "v1.4.2",
        {
            "family": "edge-golden",
            "recipe": "edge-golden/",
            "base": {"distribution": "ubuntu", "suite": "jammy"},
            "packages": {"docker-ce": "5:27.1.2-1~ubuntu.22.04~jammy"},
        },
    ),
    "App": _example(
        "App",
        "video-ingest",
        {"repository": "video-ingest", "window": "any", "releases": {"2.8.0": "sha256:" + "2" * 64}},
    ),
    "Waves": _example(
        "Waves",
        "waves",
        {
            "waves": [
                {"name": "canary", "sites": ["SITE-2847"], "image": "v1.4.2", "soak": "48h"},
                {
                    "name": "tenth",
                    "percent": 10,
                    "image": "v1.4.1",
                    "soak": "24h",
                    "maxFailed": "2%",
                    "maxOffline": "10%",
                },
                {
                    "name": "all",
                    "percent": 100,
                    "image": "v1.4.1",
                    "soak": "24h",
                    "maxFailed": "2%",
                    "maxOffline": "10%",
                },
            ]
        },
    ),
    "Site": _example(
        "Site",
        "SITE-2847",
        {
            "timezone": "Europe/Berlin",
            "devices": ["SITE-2847-1", "SITE-2847-2"],
            "ntp": ["ntp.site-2847.example"],
            "vpn": {"type": "wireguard", "secretRef": "edge/SITE-2847/vpn"},
            "cameras": ["192.0.2.21", "192.0.2.22"],
        },
    ),
    "Scenario": _example(
        "Scenario",
        "a canary that has soaked opens the next wave",
        {
            "sites": {"count": 50, "timezone": "Europe/Berlin"},
            "now": "2026-01-15T01:30:00Z",
            "observed": {
                "artifacts": {"v2": "published"},
                "defaults": {"image": "v1", "health": "ok", "lastSeen": "now"},
            },
            "expect": {"actions": [{"kind": "flash", "wave": "tenth", "to": "v2", "count": 3}]},
        },
    ),
}
