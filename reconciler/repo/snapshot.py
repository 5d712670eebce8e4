"""An observed snapshot (JSON) → `Snapshot`, or every problem with its line and column.

Decides whether the bytes are a snapshot; what it means is the planner's. Snapshots grow with the fleet, so JSON's own fast
reader does the work, and places are looked up only for what is wrong. Called by `plan`, `explain` and `simulate`. Source:
contract, "Observed snapshot".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reconciler.model.observed import Snapshot
from reconciler.repo.finding import one_line
from reconciler.repo.json_places import Places
from reconciler.repo.problem import InvalidInput, Problem
from reconciler.repo.wording import complaint, show

MAX_BYTES = 1 << 30
_MOST = 200


class _NoNumber(ValueError):
    """A word that JavaScript takes for a number, and JSON does not."""


_STRING = r'"(?:[^"\\]|\\.)*"'
_NO_NUMBER = re.compile(rf"{_STRING}|(?P<found>-?(?:NaN|Infinity))")
_LONG_NUMBER = re.compile(rf"{_STRING}|(?P<found>-?\d{{4000,}})")


def load_snapshot(source: Path | str | bytes, name: str = "snapshot") -> Snapshot:
    """The snapshot in a file (or in bytes, called `name` in problems). Raises `InvalidInput` with every problem found."""
    path = name if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _bytes(Path(source))
    if len(data) > MAX_BYTES:
        raise _refused(
            path, 1, 1, f"the snapshot has {len(data)} bytes, more than {MAX_BYTES}; leave devices out", "size"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise _refused(path, line, column, "not UTF-8; save the snapshot as UTF-8", "encoding") from None
    tree = _read(path, text)
    if not isinstance(tree, dict):
        raise _refused(
            path, 1, 1, f'{show(tree)} where a snapshot is expected; write {{"devices": […], …}}', "no-snapshot"
        )
    try:
        return Snapshot.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidInput(_problems(path, text, error)) from None
    except RecursionError:
        raise _refused(path, 1, 1, "nested too deep to be a snapshot; flatten it", "depth") from None


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot be read ({(error.strerror or 'error').lower()}); name a snapshot in JSON"
        raise _refused(str(path), 1, 1, message, "unreadable") from None


def _read(path: str, text: str) -> Any:
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return made

    def no_number(word: str) -> Any:
        raise _NoNumber(f"{word} is no number in JSON; write a number, or null")

    try:
        tree = json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except json.JSONDecodeError as error:
        message = (
            f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}; a snapshot is JSON, check it with a JSON tool"
        )
        raise _refused(path, error.lineno, error.colno, message, "syntax") from None
    except _NoNumber as error:
        raise _refused(path, *_place(text, _NO_NUMBER), f"not valid JSON: {error}", "syntax") from None
    except ValueError:  # Python reads whole numbers up to some length only
        message = "a whole number with thousands of digits; write a smaller one"
        raise _refused(path, *_place(text, _LONG_NUMBER), message, "syntax") from None
    except RecursionError:
        raise _refused(path, 1, 1, "nested too deep to be a snapshot; flatten it", "depth") from None
    if twice:
        raise InvalidInput(
            Problem(
                path, line, column, f"key {key!r} is written twice in one object; keep one", "error", "duplicate-key"
            )
            for key, line, column in Places(text).repeated_keys(_MOST)
        )
    return tree


def _place(text: str, of: re.Pattern[str]) -> tuple[int, int]:
    """Line and column of the first match of `found`, strings left out."""
    at = next((match.start() for match in of.finditer(text) if match["found"]), 0)
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def _problems(path: str, text: str, error: ValidationError) -> list[Problem]:
    told = [complaint(detail, Snapshot) for detail in error.errors(include_url=False)[:_MOST]]
    places = Places(text).find({one.where for one in told})
    problems = []
    for one in told:
        spot, exact = places.nearest(one.where)
        at_key = one.at_key or not exact
        line, column = (spot.key_line, spot.key_column) if at_key else (spot.line, spot.column)
        problems.append(Problem(path, line, column, one_line(one.message), "error", one.code))
    if error.error_count() > _MOST:
        message = f"{error.error_count()} problems in all; the first {_MOST} are shown, correct these first"
        problems.append(Problem(path, problems[-1].line, problems[-1].column, message, "error", "many"))
    return problems


def _refused(path: str, line: int, column: int, message: str, code: str) -> InvalidInput:
    return InvalidInput([Problem(path, line, column, message, "error", code)])
