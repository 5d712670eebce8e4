"""`pin`, `withdraw` and `pause`: what is set apart, banned or stopped.

Decides the edit of the one document that says it, and what a reader must know of its reach. Pure. Source: design §4.2, §4.7.
"""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.model.desired import SiteSpec
from reconciler.propose.base import Base, Change, Declined, listed
from reconciler.propose.edit import Edit, Remove, Set, edited
from reconciler.propose.release import find_release, find_wave, must_not_be_withdrawn
from reconciler.propose.scalar import Value
from reconciler.repo.near import did_you_mean
from reconciler.repo.parse import Parsed

_BEFORE_PIN = ("timezone", "devices", "window", "uplink", "lab", "suspended")
_BEFORE_WITHDRAWN = ("family", "base", "packages", "recipe")
_BEFORE_FLEET_PAUSED = ("images", "registry", "releaseKeys", "window", "uplink", "onFailure", "rollback", "freezes")
_BEFORE_WAVE_PAUSED = (
    "name", "sites", "percent", "image", "apps", "soak", "appSoak", "maxFailed", "maxOffline", "maxInFlight", "tag",
)  # fmt: skip


def pin(base: Base, site: str, release: str, devices: Sequence[str], why: str) -> Change:
    """Set devices of a site apart from their wave; all of them unless `devices` names some.

    Declined: unknown site, device or release, a withdrawn release, or the same pin is there.
    """
    document, spec = _site(base, site)
    wanted = find_release(base, release)
    if wanted.app is not None:
        raise Declined(
            f"{wanted} is a release of an app, and a pin is of the image", remedy="name a release of the image"
        )
    must_not_be_withdrawn(base, wanted)
    for device in devices:
        if device not in spec.devices:
            near = did_you_mean(device, spec.devices) or f"; its devices are {', '.join(spec.devices)}"
            raise Declined(f"site {site} has no device {device!r}{near}")
    _said(why)
    devices = list(dict.fromkeys(devices))
    where = ("spec", "pin")
    old = spec.pin
    edits: list[Edit] = []
    if old is None:
        value: dict[str, Value] = {"image": release, **({"devices": list(devices)} if devices else {}), "why": why}
        edits.append(Set(where, value, _BEFORE_PIN))
    else:
        if old.image != release:
            edits.append(Set((*where, "image"), release))
        if devices and tuple(devices) != old.devices:
            edits.append(Set((*where, "devices"), list(devices), ("image",)))
        if not devices and old.devices is not None:
            edits.append(Remove((*where, "devices")))
        if old.why != why:
            edits.append(Set((*where, "why"), why, ("image", "devices")))
    if not edits:
        raise Declined(
            f"site {site} is pinned to {release} already, for this very reason", remedy="there is nothing to do"
        )
    who = ", ".join(devices) if devices else f"all devices of {site}"
    says = (f"{who}: {release} from now on, whatever the wave asks for; they leave the wave's count",)
    files = _one(base, document, edits)
    hints = (f"to end it: reconciler pin {site} --remove",)
    return Change(f"Pin {site} to {release}", f"pin/{site}-{release}", files, says, f"Why: {why}", hints)


def unpin(base: Base, site: str) -> Change:
    """Take a site's pin away. Declined: unknown site, or no pin."""
    document, spec = _site(base, site)
    if spec.pin is None:
        raise Declined(f"site {site} is not pinned", remedy="there is nothing to do")
    says = (
        f"the devices of {site} that followed {spec.pin.image} ({' '.join(spec.pin.why.split())}) follow their wave again",
    )
    return Change(f"End the pin of {site}", f"unpin/{site}", _one(base, document, [Remove(("spec", "pin"))]), says)


def withdraw(base: Base, release: str, why: str) -> Change:
    """Ban a release of the image. Declined: unknown, of an app, or withdrawn for the same reason already."""
    wanted = find_release(base, release)
    if wanted.app is not None:
        raise Declined(
            f"{wanted} is a release of an app, and only those of the image are withdrawn",
            remedy=f"take it back: `reconciler rollback {wanted}`",
        )
    _said(why)
    old = base.images()[release].withdrawn
    if old == why:
        raise Declined(f"{release} is withdrawn already, for this very reason", remedy="there is nothing to do")
    path = base.path("Image", release)
    data = edited(base.read(path), Set(("spec", "withdrawn"), why, _BEFORE_WITHDRAWN))
    says = [f"{release} was withdrawn before, with another reason: {' '.join(old.split())}"] if old is not None else []
    waves = [wave.name for wave in base.waves.waves if wave.image == release]
    pins = sorted(name for name, spec in base.sites().items() if spec.pin is not None and spec.pin.image == release)
    if waves:
        says.append(f"wave{'s' if len(waves) > 1 else ''} {', '.join(waves)} still ask{'s' if len(waves) == 1 else ''} for it: "
                    f"devices that run it stay on it; `reconciler rollback {release}` takes them back")  # fmt: skip
    if pins:
        says.append(f"pins of {listed(pins)} still ask for it: `reconciler pin SITE RELEASE --why TEXT` gives another")
    if not waves and not pins:
        says.append("no wave and no pin asks for it")
    return Change(f"Withdraw {release}", f"withdraw/{release}", {path: data}, tuple(says), f"Why: {why}")


def pause(base: Base, wave: str | None, off: bool) -> Change:
    """Stop a wave, or the fleet; with `off` let it go on. Declined: it stands so already, or there is no such wave."""
    kind = "Fleet" if wave is None else "Waves"
    path, spec = base.single(kind)
    if wave is None:
        what, edit = "the fleet", Set(("spec", "paused"), not off, _BEFORE_FLEET_PAUSED)
        now = spec.paused
    else:
        number = find_wave(base, wave)
        what, edit = f"wave {wave}", Set(("spec", "waves", number, "paused"), not off, _BEFORE_WAVE_PAUSED)
        now = spec.waves[number].paused
    if now is not off:
        raise Declined(f"{what} is {'not paused' if off else 'paused already'}", remedy="there is nothing to do")
    hints: list[str] = []
    if off:
        says = [f"{what} goes on where it stands", *_other_pauses(base, wave)]
    else:
        says = [
            f"nothing moves forward in {what}: no promotion, retag or restart",
            "rollback is always possible, and what is being flashed is not cut off",
        ]
        hints = [f"to go on: reconciler pause --off{f' --wave {wave}' if wave else ''}"]
    verb = "Resume" if off else "Pause"
    branch = f"{'resume' if off else 'pause'}/{wave or 'fleet'}"
    files: dict[str, bytes | None] = {path: edited(base.read(path), edit)}
    return Change(f"{verb} {what}", branch, files, tuple(says), hints=tuple(hints))


def _other_pauses(base: Base, ended: str | None) -> list[str]:
    """What stays paused when one pause ends."""
    says = []
    if ended is not None and base.single("Fleet")[1].paused:
        says.append("the fleet itself is still paused: `reconciler pause --off`")
    waves = [wave.name for wave in base.waves.waves if wave.paused and wave.name != ended]
    if waves:
        says.append(f"still paused: wave{'s' if len(waves) > 1 else ''} {', '.join(waves)}")
    return says


def _site(base: Base, name: str) -> tuple[Parsed, SiteSpec]:
    document = base.site(name)
    if document is None:
        near = did_you_mean(name, base.sites()) or "; its sites are in sites/"
        raise Declined(f"there is no site {name!r}{near}")
    base.must_be_sound("Site", name)
    return document, document.spec


def _said(why: str) -> None:
    if not why.strip():
        raise Declined("--why is empty", remedy="say it in a sentence: it is shown wherever this holds something")


def _one(base: Base, document: Parsed, edits: Sequence[Edit]) -> dict[str, bytes | None]:
    return {document.path: edited(base.read(document.path), *edits)}
