"""How a value is written in YAML so that every reader takes it for what it is: plain where that is safe, quoted elsewhere.

Pure. `2.10` is a version here and a number to others, `NO` a word here and false to others: such values are quoted. Used by
`propose.edit` and by the template of a site. Source: YAML 1.1 and 1.2, "Plain Style" and "Tag Resolution".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

Value = str | bool | Sequence[str] | Mapping[str, "Value"]
"""What can be written: text, true or false, a list of texts, a mapping of any of these."""

_PLAIN = re.compile(
    r"[^\s\-?:,\[\]{}#&*!|>'\"%@`=<~.\\](?:[^\x00-\x1f\x7f]*\S)?|[.\-=<][^\s,\[\]{}:#][^\x00-\x1f\x7f]*(?<!\s)"
)
_OTHER_TYPES = re.compile(
    r"(?:~|null|true|false|yes|no|on|off|y|n"
    r"|[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-f_]+|[0-9][0-9_]*(?::[0-5]?[0-9])*(?:\.[0-9_]*)?(?:e[-+]?[0-9]+)?)"
    r"|[-+]?\.[0-9_]+(?:e[-+]?[0-9]+)?|[-+]?\.inf|\.nan"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?)",
    re.IGNORECASE,
)


def written(value: Value, *, flow: bool = False, style: str | None = None) -> str:
    """A value on one line. `flow`: inside brackets. `style` is the quote that stands around its neighbours, if any."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return text_written(value, flow=flow, style=style)
    if isinstance(value, Mapping):
        quote = style if style == '"' else None
        entries = [
            f"{text_written(key, flow=True, style=quote)}: {written(item, flow=True, style=quote)}"
            for key, item in value.items()
        ]
        return "{" + ", ".join(entries) + "}"
    return "[" + ", ".join(text_written(item, flow=True, style=style if style == '"' else None) for item in value) + "]"


def text_written(value: str, *, flow: bool = False, style: str | None = None) -> str:
    """Text on one line, in the quotes of `style` where they can hold it."""
    clean = value.isprintable()
    if style == "'" and clean:
        return "'" + value.replace("'", "''") + "'"
    if style not in ('"', "'") and clean and is_plain(value, flow=flow):
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    # Beyond U+FFFF the escapes of JSON and of YAML differ; there the character itself is right in both.
    return "".join(c if c.isprintable() or c > "\uffff" else json.dumps(c)[1:-1] for c in quoted)


def is_plain(value: str, *, flow: bool = False) -> bool:
    """Whether text can stand without quotes, and is text to every reader of YAML."""
    # YAML 1.1 has types of their own for a merge and for a default value.
    if value in ("<<", "=") or not _PLAIN.fullmatch(value) or _OTHER_TYPES.fullmatch(value):
        return False
    if value.startswith(("---", "...")):
        return False
    if ": " in value or " #" in value or value.endswith(":"):
        return False
    return not (flow and re.search(r"[,\[\]{}:?]", value))


def block(key: str, value: Value, indent: str, step: str, line_break: str) -> str:
    """An entry of a block mapping: one line, or a nested block for a mapping. Without a line break at the end."""
    if not isinstance(value, Mapping) or not value:
        return f"{indent}{text_written(key)}: {written(value)}"
    lines = [f"{indent}{text_written(key)}:"]
    lines += [block(name, item, indent + step, step, line_break) for name, item in value.items()]
    return line_break.join(lines)
