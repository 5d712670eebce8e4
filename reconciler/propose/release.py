"""What a release is called on the command line, which waves ask for it, and why it may not be asked for.

`v1.4.2` is a release of the image, `video-ingest@2.8.0` one of an app. Pure. Source: design §2, §4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reconciler.model.desired import WaveSpec
from reconciler.model.scalars import release_key, version_key
from reconciler.propose.base import Base, Declined
from reconciler.propose.edit import Set
from reconciler.repo.near import did_you_mean, nearest_name

BEFORE_IMAGE = ("name", "sites", "percent")
BEFORE_APPS = (*BEFORE_IMAGE, "image")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A release of the image (`app` None) or of an app."""

    release: str
    app: str | None = None

    def __str__(self) -> str:
        return self.release if self.app is None else f"{self.app}@{self.release}"

    @property
    def branch(self) -> str:
        """The release as a part of a branch's name."""
        return str(self).replace("@", "-")

    def asked_by(self, wave: WaveSpec) -> str | None:
        """What a wave asks for of the same kind: of the image, or of this app."""
        return wave.image if self.app is None else wave.apps.get(self.app)

    def key(self, release: str) -> Any:
        """What releases of this kind are ordered by."""
        return release_key(release) if self.app is None else version_key(release)

    def set_in(self, number: int, wave: WaveSpec) -> Set:
        """The edit of the Waves document that makes a wave ask for it."""
        where = ("spec", "waves", number)
        if self.app is None:
            return Set((*where, "image"), self.release, BEFORE_IMAGE)
        if wave.apps:
            return Set((*where, "apps", self.app), self.release)
        return Set((*where, "apps"), {self.app: self.release}, BEFORE_APPS)


def find_release(base: Base, text: str) -> Wanted:
    """The release that a word names. Declined: no document has it; the nearest names are said."""
    name, at, version = text.partition("@")
    base.must_be_sound("App" if at else "Image", name)
    apps, images = base.apps(), base.images()
    if not at:
        if text in images:
            return Wanted(text)
        of = [f"{app}@{text}" for app, spec in apps.items() if text in spec.releases]
        every = [*images, *(f"{app}@{version}" for app, spec in apps.items() for version in spec.releases)]
        near = f"; did you mean {of[0]!r}?" if of else did_you_mean(text, every)
        near = near or f"; known are {_some(sorted(images, key=release_key, reverse=True))}"
        raise Declined(
            f"there is no release {text!r}{near}",
            remedy=f"a new one gets its document by `reconciler image bump {text}`" if text.startswith("v") else "",
        )
    if name not in apps:
        near = did_you_mean(name, apps) or (f"; known are {_some(sorted(apps))}" if apps else "")
        raise Declined(f"there is no app {name!r}{near}", remedy="write APP@VERSION, or RELEASE for the image")
    if version not in apps[name].releases:
        known = sorted(apps[name].releases, key=version_key, reverse=True)
        near = did_you_mean(version, known) or f"; known are {_some(known)}"
        raise Declined(
            f"app {name!r} has no release {version!r}{near}",
            remedy=f"add it to {base.path('App', name)} with its digest first",
        )
    return Wanted(version, name)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def must_not_be_withdrawn(base: Base, wanted: Wanted) -> None:
    """Declined: the release is withdrawn, so nothing would move to it."""
    why = base.images()[wanted.release].withdrawn if wanted.app is None else None
    if why is not None:
        raise Declined(
            f"{wanted} is withdrawn ({' '.join(why.split())}): nothing moves to it", remedy="ask for another release"
        )


def find_wave(base: Base, name: str) -> int:
    """The number of a wave. Declined: there is none of this name."""
    names = [wave.name for wave in base.waves.waves]
    if name not in names:
        near = nearest_name(name, names)
        hint = f"did you mean {near!r}?" if near else f"the waves are {', '.join(names)}"
        raise Declined(f"there is no wave {name!r}; {hint}")
    return names.index(name)
