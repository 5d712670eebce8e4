"""From a variant's package sources to lines that apt understands: which address a mirror's name stands for.

A mirror is an address (`{snapshot}` in it stands for the base's snapshot) or the path of an apt sources file, of which the
entries that have the wanted suites are taken. Where none is configured, and this machine runs the variant's distribution
and suite, its own apt sources are taken. Contacts nobody. Called by `image.rootfs` and `image bump`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.image.recipe import Recipe, Source

_ADDRESS = re.compile(r"(?:https?|file|copy|mirror\+https?)://?[^\s\[\]]+")
_ONE_LINE = re.compile(r"^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of apt's sources: address, suite, components, key file, and whether the suite's expiry counts."""

    address: str
    suite: str
    components: tuple[str, ...]
    key: Path
    expires: bool = True

    def line(self, architecture: str) -> str:
        """As apt's one-line format has it."""
        options = f"arch={architecture} signed-by={self.key}" + ("" if self.expires else " check-valid-until=no")
        return f"deb [{options}] {self.address} {self.suite} {' '.join(self.components)}".rstrip()


@dataclass(frozen=True, slots=True)
class Offer:
    """What an apt sources file offers."""

    address: str
    suite: str
    components: frozenset[str]


def resolve(recipe: Recipe, snapshot: str | None, mirrors: Mapping[str, str], machine: Path = Path("/")) -> list[Entry]:
    """The sources of a recipe, in its order. InvalidInput, with the place in the variant's file: one cannot be had."""
    entries: list[Entry] = []
    for number, source in enumerate(recipe.variant.sources):
        where = ("sources", number)
        key = machine / source.key.lstrip("/") if source.key.startswith("/") else recipe.folder / source.key
        if not key.is_file():
            raise recipe.problem(
                (*where, "key"),
                f"there is no key file {source.key}; "
                + (
                    "install the distribution's archive keyring on this machine"
                    if source.key.startswith("/")
                    else "add it to the recipe"
                ),
            )
        entries += _entries(recipe, number, source, key, snapshot, mirrors.get(source.mirror), machine)
    return entries


def _entries(
    recipe: Recipe, number: int, source: Source, key: Path, snapshot: str | None, place: str | None, machine: Path
) -> Iterator[Entry]:
    """The entries of one source."""
    name, where = source.mirror, ("sources", number, "mirror")
    if place is not None and not place.startswith("/"):
        if not _ADDRESS.fullmatch(place):
            raise recipe.problem(
                where,
                f"mirror {name!r} is configured as {place!r}, which is no address and no path; write https://… or /…",
            )
        dated = "{snapshot}" in place
        if dated and snapshot is None:
            raise recipe.problem(
                where,
                f"mirror {name!r} serves snapshots, and the Image document's `base` names none; add `snapshot` there",
            )
        address = place.replace("{snapshot}", snapshot or "")
        for suite in source.suites:
            yield Entry(address, suite, source.components, key, expires=not dated)
        return
    if place is not None:
        files = [Path(place)]
        if not files[0].is_file():
            raise recipe.problem(
                where, f"mirror {name!r} is configured as {place}, which is no file; name an apt sources file"
            )
    else:
        files = own_sources(machine, recipe.variant.distribution, recipe.variant.suite)
        if not files:
            raise recipe.problem(
                where,
                f"mirror {name!r} is not configured, and this machine does not run {recipe.variant.distribution} "
                f"{recipe.variant.suite}; add {name} to builder.mirrors in the settings, or give --mirror {name}=ADDRESS",
            )
    offers = [offer for file in files for offer in read_sources(file)]
    for suite in source.suites:
        fit = [offer for offer in offers if offer.suite == suite and offer.components.issuperset(source.components)]
        if not fit:
            raise recipe.problem(
                where,
                f"no entry of {', '.join(str(file) for file in files)} has suite {suite} with {' '.join(source.components)}; "
                f"add it there, or add {name} to builder.mirrors in the settings, or give --mirror {name}=ADDRESS",
            )
        yield Entry(fit[0].address, suite, source.components, key)


def own_sources(machine: Path, distribution: str, suite: str) -> list[Path]:
    """The apt sources files of the machine whose root is `machine`, if it runs this distribution; else none."""
    try:
        lines = (machine / "etc/os-release").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    told = {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}
    if (told.get("ID"), told.get("VERSION_CODENAME")) != (distribution, suite):
        return []
    apt = machine / "etc/apt"
    found = [
        apt / "sources.list",
        *sorted(apt.glob("sources.list.d/*.list")),
        *sorted(apt.glob("sources.list.d/*.sources")),
    ]
    return [file for file in found if file.is_file()]


def read_sources(file: Path) -> list[Offer]:
    """What an apt sources file offers, in the one-line format or deb822 (`.sources`)."""
    text = file.read_text("utf-8", "replace")
    return list(
        _deb822(text) if re.search(r"^URIs:", text, re.MULTILINE | re.IGNORECASE) else _one_line(text.splitlines())
    )


def _one_line(lines: Iterable[str]) -> Iterator[Offer]:
    for line in lines:
        found = _ONE_LINE.match(line.partition("#")[0])
        if found is not None:
            yield Offer(found[1], found[2], frozenset(found[3].split()))


def _deb822(text: str) -> Iterator[Offer]:
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", plain):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" not in fields.get("types", []) or fields.get("enabled", ["yes"]) == ["no"]:
            continue
        for address in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield Offer(address, suite, frozenset(fields.get("components", [])))
