"""The nearest known name for an unknown one ("did you mean"). Cheap also where there are 100,000 to choose from."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

_MOST = 400


def _squeezed(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def nearest_name(unknown: str, known: Iterable[str]) -> str | None:
    """The known name that `unknown` was probably meant to be, or None. Long lists are narrowed by cheap signs first."""
    if len(unknown) > 200:
        return None
    names = known if isinstance(known, Collection) else list(known)
    plain = _squeezed(unknown)
    if len(names) > _MOST:
        ends = (unknown[:3].lower(), unknown[-3:].lower())
        names = [
            name
            for name in names
            if abs(len(name) - len(unknown)) <= 2 and (name[:3].lower() == ends[0] or name[-3:].lower() == ends[1])
        ]
        if len(names) > _MOST:
            names = [name for name in names if name[-2:] == unknown[-2:]] or names
        names = sorted(names)[:_MOST]
    same = sorted(name for name in names if _squeezed(name) == plain) if plain else []
    if same:
        return same[0]
    lowered = {name.lower(): name for name in sorted(names, reverse=True)}
    cutoff = 0.8 if any(character.isdigit() for character in unknown) else 0.6  # numbers are alike without meaning it
    found = difflib.get_close_matches(unknown.lower(), sorted(lowered), 1, cutoff)
    return lowered[found[0]] if found else None


def did_you_mean(unknown: str, known: Iterable[str]) -> str:
    """`; did you mean 'SITE-2847'?`, or nothing."""
    found = nearest_name(unknown, known)
    return f"; did you mean {found!r}?" if found is not None and found != unknown else ""
