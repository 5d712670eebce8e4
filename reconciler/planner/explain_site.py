"""One site explained: its wave and why it is in that one, its window, and its devices. Pure. Called by `explain`.

Which wave a site is in is `roster.membership`'s to decide; here it is said which of its three rules gave the answer. Source:
design §4.2, contract fine print 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reconciler.model.scalars import format_instant
from reconciler.planner.explain_parts import DeviceExplanation, explain_device
from reconciler.planner.explain_values import Ask, Places, site_ask, wave_ask
from reconciler.planner.explain_view import View
from reconciler.planner.explain_window import clock
from reconciler.planner.messages import plain
from reconciler.planner.roster import recorded_waves
from reconciler.planner.windows import instant


@dataclass(frozen=True, slots=True)
class Membership:
    """Why a site is in its wave. `rule`: `listed`, `recorded`, `drawn`, or `none`."""

    rule: str
    statement: str
    ask: Ask | None
    release: str | None = None
    """The release for which it was taken, where that is on record."""
    place: int | None = None
    """Its place in the draw order, from 1, among `of` sites that are not lab."""
    of: int | None = None

    def to_dict(self, places: Places) -> dict[str, Any]:
        """For `--output json`."""
        found = places.get(self.ask) if self.ask else None
        return {
            "rule": self.rule,
            "statement": self.statement,
            "release": self.release,
            "place": self.place,
            "of": self.of,
            "askedFor": found.to_dict() if found and found.exact else None,
        }


@dataclass(frozen=True, slots=True)
class SiteExplanation:
    """Everything the plan says about one site."""

    site: str
    wave: str | None
    at: datetime
    commit: str | None
    timezone: str
    window: str
    membership: Membership
    notes: tuple[tuple[str, Ask], ...]
    """What git says that sets the site apart: suspended, a pin, lab."""
    devices: tuple[DeviceExplanation, ...]

    def asks(self) -> Iterator[Ask]:
        """Every value of git that is spoken of."""
        yield from self._own()
        for device in self.devices:
            yield from device.asks()

    def authored(self) -> Iterator[Ask]:
        """Those that are shown with who asked for them."""
        yield from self._own()
        for device in self.devices:
            yield from device.authored()

    def _own(self) -> Iterator[Ask]:
        if self.membership.ask is not None:
            yield self.membership.ask
        yield from (ask for _, ask in self.notes)

    def to_dict(self, places: Places | None = None) -> dict[str, Any]:
        """For `--output json`."""
        known = places or {}
        notes = []
        for said, ask in self.notes:
            found = known.get(ask)
            notes.append({"statement": said, "askedFor": found.to_dict() if found and found.exact else None})
        return {
            "apiVersion": "fleet/v1",
            "kind": "Explanation",
            "of": "site",
            "site": self.site,
            "wave": self.wave,
            "at": format_instant(self.at),
            "commit": self.commit,
            "timezone": self.timezone,
            "window": self.window,
            "membership": self.membership.to_dict(known),
            "notes": notes,
            "devices": [device.to_dict(known) for device in self.devices],
        }

    def lines(self, places: Places | None = None) -> list[str]:
        """For people."""
        known = places or {}
        count = f"{len(self.devices)} device" + ("s" if len(self.devices) > 1 else "")
        out = [
            f"site {self.site}, wave {self.wave or '-'}, at {format_instant(self.at)}:"
            f" {count}, window {self.window} {self.timezone}"
        ]
        for said, ask in ((self.membership.statement, self.membership.ask), *self.notes):
            out.append(f"  {said}")
            found = known.get(ask) if ask else None
            if found and found.exact:
                out.append(f"    {found.sentence()}")
        return out + [line for device in self.devices for line in ("", *device.lines(known))]


def explain_site(view: View, site: int) -> SiteExplanation:
    """What the plan says about a site."""
    roster = view.roster
    name, wave = roster.site_names[site], int(view.state.places.site_wave[site])
    spec = roster.desired.sites[name]
    window = spec.window or roster.desired.fleet.window
    rows = range(int(roster.site_start[site]), int(roster.site_start[site + 1]))
    return SiteExplanation(
        site=name,
        wave=roster.waves[wave].spec.name if wave >= 0 else None,
        at=instant(view.now),
        commit=roster.desired.commit,
        timezone=spec.timezone,
        window=f"{clock(window.start)} to {clock(window.end)}",
        membership=membership_of(view, site),
        notes=tuple(_notes(view, name)),
        devices=tuple(explain_device(view, row) for row in rows),
    )


def _notes(view: View, site: str) -> Iterator[tuple[str, Ask]]:
    spec = view.roster.desired.sites[site]
    if spec.suspended:
        yield "suspended in git: nothing is done here, and nothing here is counted", site_ask(site, "suspended")
    if spec.pin is not None:
        who = "its devices" if spec.pin.devices is None else ", ".join(spec.pin.devices)
        said = f"pins {who} to {spec.pin.image}, apart from the wave: {plain(spec.pin.why)}"
        yield said, site_ask(site, "pin", "image")


def membership_of(view: View, site: int) -> Membership:
    """Which rule put a site into its wave."""
    roster, wave = view.roster, int(view.state.places.site_wave[site])
    lab, listed = bool(roster.site_lab[site]), int(roster.listed_wave[site])
    if listed >= 0:
        name = roster.waves[listed].spec.name
        sites = roster.waves[listed].spec.sites or ()
        ask = wave_ask(listed, "sites", sites.index(roster.site_names[site]))
        return Membership("listed", f"in wave {name}: listed there by name", ask)
    order = int((~roster.site_lab[: site + 1]).sum())
    total = int((~roster.site_lab).sum())
    if wave < 0:
        last = roster.waves[-1]
        why = "it is a lab, which is never drawn" if lab else "no wave lists it, and no percentage reaches it"
        whole = None if lab else wave_ask(last.index)
        return Membership("none", f"in no wave: {why}", whole, None, None if lab else order, None if lab else total)
    spec, ask = roster.waves[wave].spec, wave_ask(wave, "percent")
    key = recorded_waves(roster, view.state.obs.members).get(site)
    if key is not None and int(view.state.obs.members[key][site]) == wave:
        release = key.replace("@", " ")
        said = f"in wave {spec.name}: taken there for {release}; that is on record, and stands while a wave asks for it"
        return Membership("recorded", said, ask, key, None if lab else order, None if lab else total)
    word = view.roster.desired.waves.order
    by = f" by `order: {plain(word)}`" if word else ""
    said = f"in wave {spec.name}: drawn by `percent: {spec.percent}`, place {order} of {total} in the draw order{by}"
    return Membership("drawn", said, ask, None, order, total)
