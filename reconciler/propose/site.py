"""`site add`: the document of a new site, written as its neighbours are.

Decides the text of the file and, where asked for, the wave whose list it joins. The schema's comment and the line breaks are
those that most other sites have. Pure. Source: contract, "Fleet documents" (Site).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from reconciler.propose.base import Base, Change, Declined, new_path
from reconciler.propose.edit import Append, edited
from reconciler.propose.release import find_wave
from reconciler.propose.scalar import Value, text_written, written

_SCHEMA = "# yaml-language-server: $schema="


@dataclass(frozen=True, slots=True)
class NewSite:
    """What a new site has. `window` is start and end; `vpn` the kind of tunnel and its secret's name."""

    name: str
    timezone: str
    devices: Sequence[str]
    ntp: Sequence[str] = ()
    cameras: Sequence[str] = ()
    vpn: tuple[str, str] | None = None
    uplink: str | None = None
    window: tuple[str, str] | None = None
    lab: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


def add_site(base: Base, new: NewSite, wave: str | None = None) -> Change:
    """The new site's file, and its name in the list of `wave`. Declined: the name is taken, or the wave draws by percent."""
    known = base.site(new.name)
    if known is not None:
        raise Declined(
            f"site {new.name} is there already, in {known.path}", remedy="edit that file, or choose another name"
        )
    path = new_path(base, "Site", new.name)
    schema, line_break = _as_neighbours(base)
    text = line_break.join([*([schema] if schema else []), *_lines(new)]) + line_break
    files: dict[str, bytes | None] = {path: text.encode("utf-8")}
    says, hints = [], []
    if wave is not None:
        number = find_wave(base, wave)
        if base.waves.waves[number].sites is None:
            raise Declined(
                f"wave {wave!r} draws its sites by percent, so none is listed in it",
                remedy="leave --wave out: percentages draw the new site, and the last wave takes every other",
            )
        rollout = base.single("Waves")[0]
        files[rollout] = edited(base.read(rollout), Append(("spec", "waves", number, "sites"), new.name))
        says.append(f"{new.name} is listed in wave {wave!r}")
    elif new.lab:
        hints.append("a lab site is never drawn for a percentage: --wave WAVE lists it in one")
    else:
        hints.append("percentage waves draw it, and the last takes every site that no other has: it needs no list")
    if new.vpn is not None:
        hints.append(f"the secret {new.vpn[1]} must exist before the site's devices are configured")
    hints += [f"after the merge, enrol it: reconciler device enrol {name} --out enrol-{name}" for name in new.devices]
    return Change(f"Add site {new.name}", f"site/{new.name}", files, tuple(says), hints=tuple(hints))


def _as_neighbours(base: Base) -> tuple[str, str]:
    """The schema's comment (or nothing) and the line break that most sites have."""
    schemas: Counter[str] = Counter()
    breaks: Counter[str] = Counter()
    for path in sorted(path for path in base.entries if path.startswith("sites/") and path.endswith((".yaml", ".yml")))[
        :200
    ]:
        data = base.read(path)
        first = data.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
        schemas[first if first.startswith(_SCHEMA) else ""] += 1
        breaks["\r\n" if b"\r\n" in data else "\n"] += 1
    return (schemas.most_common(1)[0][0] if schemas else "", breaks.most_common(1)[0][0] if breaks else "\n")


def _lines(new: NewSite) -> Iterator[str]:
    yield from ("apiVersion: fleet/v1", "kind: Site", "metadata:", f"  name: {text_written(new.name)}")
    if new.labels:
        yield f"  labels: {written(new.labels)}"
    yield "spec:"
    if new.lab:
        yield "  lab: true"
    yield f"  timezone: {text_written(new.timezone)}"
    if new.window is not None:
        start, end = (f'"{part}"' for part in new.window)
        yield f"  window: {{start: {start}, end: {end}}}"
    entries: list[tuple[str, Value | None]] = [
        ("devices", list(new.devices)),
        ("uplink", new.uplink),
        ("ntp", list(new.ntp)),
        ("vpn", {"type": new.vpn[0], "secretRef": new.vpn[1]} if new.vpn is not None else None),
        ("cameras", list(new.cameras)),
    ]
    for key, value in entries:
        if value:
            yield f"  {key}: {written(value)}"
