"""What a merge changes in the cloud-init of sites, as a unified diff that a person reads; alike changes are shown once. Pure.

Works on renderings, in which a secret is only ever its reference: nothing here, and nothing that it calls, can read a secret's
value. Called by `review.make`. Source: design §4.10; `repo.render`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.model.desired import Desired, SiteSpec
from reconciler.repo.render import USER_DATA, Rendering, render_site

MOST_GROUPS = 200
_NAME = "\0"
"""Stands for the site's own name while changes are compared: two sites that differ in nothing else change alike."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Sites whose rendered configuration changes in the same way. `diff` is that of the first, secrets as references."""

    sites: tuple[str, ...]
    devices: int
    diff: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"sites": list(self.sites), "devices": self.devices, "diff": self.diff}


@dataclass(frozen=True, slots=True)
class Configurations:
    """Every site of both sides whose rendering differs, grouped; the largest group first. New sites are not among them."""

    groups: tuple[Alike, ...]

    @property
    def sites(self) -> int:
        """How many sites are configured anew."""
        return sum(len(group.sites) for group in self.groups)

    @property
    def devices(self) -> int:
        """How many devices these sites have."""
        return sum(group.devices for group in self.groups)


def configurations(before: Desired | None, after: Desired) -> Configurations:
    """Compare the renderings of the sites that can differ: their spec changed, or what all of them share."""
    if before is None:
        return Configurations(())
    everybody = before.fleet.registry != after.fleet.registry
    groups: dict[str, list[tuple[str, Rendering, Rendering]]] = {}
    for name in sorted(before.sites.keys() & after.sites.keys()):
        old, new = before.sites[name], after.sites[name]
        if not everybody and not _can_differ(old, new):
            continue
        was, will = render_site(name, old, before.fleet), render_site(name, new, after.fleet)
        if was.spec_digest != will.spec_digest:
            groups.setdefault(_signature(name, was.tree, will.tree), []).append((name, was, will))
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0][0]))
    return Configurations(tuple(_alike(group, after, shown=at < MOST_GROUPS) for at, group in enumerate(ordered)))


def _can_differ(old: SiteSpec, new: SiteSpec) -> bool:
    return old is not new and old != new


def _alike(group: list[tuple[str, Rendering, Rendering]], after: Desired, *, shown: bool) -> Alike:
    sites = tuple(name for name, _, _ in group)
    name, was, will = group[0]
    diff = unified(name, was.user_data, will.user_data) if shown else ""
    return Alike(sites, sum(len(after.sites[site].devices) for site in sites), diff)


def unified(site: str, old: str, new: str) -> str:
    """A unified diff of two user-data files."""
    lines = difflib.unified_diff(
        old.splitlines(),
        new.splitlines(),
        f"{site}/{USER_DATA} (before)",
        f"{site}/{USER_DATA} (after)",
        lineterm="",
        n=2,
    )
    return "\n".join(lines)


def _signature(site: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two trees, the site's name left out: cheap, since it may be asked of every site."""
    parts: list[str] = []
    old_files, new_files = (_files(tree["write_files"]) for tree in (old, new))
    for path in sorted(old_files.keys() | new_files.keys()):
        was, will = old_files.get(path, ()), new_files.get(path, ())
        if was != will:
            gone, come = [line for line in was if line not in will], [line for line in will if line not in was]
            parts += [path, "-", *gone, "+", *come]
    if old["runcmd"] != new["runcmd"]:
        parts += ["runcmd", str(old["runcmd"]), str(new["runcmd"])]
    return "\n".join(parts).replace(site, _NAME).replace(site.lower(), _NAME)


def _files(files: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    return {file["path"]: (file["permissions"], *str(file["content"]).splitlines()) for file in files}
