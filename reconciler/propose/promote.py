"""`promote`: a wave, or all of them, shall run a release.

Decides which waves are raised and what is refused: a release that is not known or withdrawn, one that is asked for already, a
wave before which another has not been raised. The order of waves is the planner's rule (design §4.1); here it only keeps a
person from a pull request that would be held. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.model.desired import WaveSpec
from reconciler.propose.base import Base, Change, Declined
from reconciler.propose.edit import edited
from reconciler.propose.release import Wanted, find_release, find_wave, must_not_be_withdrawn


def promote(base: Base, release: str, wave: str | None = None, every: bool = False) -> Change:
    """Raise `wave`, every wave, or the first that does not ask for the release yet.

    Declined: unknown or withdrawn release, unknown wave, asked already, or an earlier wave that does not ask for it.
    InvalidInput: the Waves document cannot be read.
    """
    wanted = find_release(base, release)
    must_not_be_withdrawn(base, wanted)
    path, spec = base.single("Waves")
    waves: Sequence[WaveSpec] = spec.waves
    below = [number for number, each in enumerate(waves) if _below(wanted, each)]
    chosen = _chosen(base, wanted, waves, below, wave, every)
    data = edited(base.read(path), *(wanted.set_in(number, waves[number]) for number in chosen))
    names = [waves[number].name for number in chosen]
    who = "all waves" if len(names) == len(waves) > 1 else f"wave{'s' if len(names) > 1 else ''} {', '.join(names)}"
    scope = "all" if every else names[0]
    says = [f"{_from(wanted, waves[number])} → {wanted.release} in wave {waves[number].name!r}" for number in chosen]
    says += _remarks(base, wanted, waves, chosen)
    hints = []
    if wave is None and not every:
        hints.append(f"wave {names[0]!r} is the next that did not ask for {wanted}; --wave or --all name others")
    return Change(
        f"Promote {wanted} to {who}", f"promote/{wanted.branch}-{scope}", {path: data}, tuple(says), hints=tuple(hints)
    )


def _below(wanted: Wanted, wave: WaveSpec) -> bool:
    """Whether a wave asks for a lower release, or for none."""
    asked = wanted.asked_by(wave)
    return asked is None or wanted.key(asked) < wanted.key(wanted.release)


def _chosen(
    base: Base, wanted: Wanted, waves: Sequence[WaveSpec], below: list[int], wave: str | None, every: bool
) -> list[int]:
    if wave is None:
        if not below:
            higher = [each.name for each in waves if wanted.asked_by(each) != wanted.release]
            more = f", or for a higher one ({', '.join(higher)})" if higher else ""
            raise Declined(f"every wave asks for {wanted} already{more}", remedy="there is nothing to promote")
        return below if every else below[:1]
    number = find_wave(base, wave)
    asked = wanted.asked_by(waves[number])
    if asked is not None and number not in below:
        if wanted.key(asked) == wanted.key(wanted.release):
            raise Declined(f"wave {wave!r} asks for {wanted} already", remedy="there is nothing to promote")
        raise Declined(
            f"wave {wave!r} asks for {asked}, which is higher than {wanted.release}: this would go back",
            remedy=f"to go back, `reconciler rollback --wave {wave} --to {wanted}`",
        )
    skipped = [waves[earlier].name for earlier in below if earlier < number]
    if skipped:
        names = ", ".join(repr(name) for name in skipped)
        raise Declined(
            f"wave {wave!r} would be held: {'an earlier wave' if len(skipped) == 1 else 'earlier waves'} "
            f"({names}) {'does' if len(skipped) == 1 else 'do'} not ask for {wanted}",
            remedy=f"promote {skipped[0]!r} first, or all together with --all: the gates pace them",
        )
    return [number]


def _from(wanted: Wanted, wave: WaveSpec) -> str:
    return wanted.asked_by(wave) or "no release"


def _remarks(base: Base, wanted: Wanted, waves: Sequence[WaveSpec], chosen: Sequence[int]) -> list[str]:
    """What keeps the promotion from going on by itself, as far as git knows."""
    says = [f"wave {waves[number].name!r} is paused: nothing starts there" for number in chosen if waves[number].paused]
    fleet = base.loaded.state.fleet.single("Fleet")
    if fleet is not None and fleet.spec is not None and fleet.spec.paused:
        says.append("the fleet is paused: nothing starts until `reconciler pause --off` is merged")
    if len(chosen) > 1:
        names = [waves[number].name for number in chosen]
        says.append(f"the gates pace them: {names[1]!r} follows when {names[0]!r} has soaked, and so on")
    return says
