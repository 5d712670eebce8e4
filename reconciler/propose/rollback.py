"""`rollback`: waves shall run again what they ran before, told from the git history of the Waves document.

Decides which release is taken back, which waves asked for it, and to what each returns. History is handed in as old texts of
the Waves document; what a device or a wave really ran is the planner's to know, and so is the fast lane (design §4.7). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from reconciler.model.desired import WaveSpec
from reconciler.propose.base import Base, Change, Declined
from reconciler.propose.edit import edited, value_at
from reconciler.propose.release import Wanted, find_release, find_wave, must_not_be_withdrawn
from reconciler.repo.reader import Refused, read


@dataclass(frozen=True, slots=True)
class Version:
    """The Waves document as a commit left it. `commit` is its hash; the newest first wherever there are several."""

    commit: str
    data: bytes


Asked = Mapping[str, Mapping[str | None, str]]
"""Wave → what it asks for: None is the image, else the app's name."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A commit that made waves ask for something else: wave → what (None: the image), before and after."""

    commit: str
    changes: tuple[tuple[str, str | None, str | None, str], ...]


def rollback(
    base: Base,
    history: Sequence[Version],
    release: str | None = None,
    wave: str | None = None,
    to: str | None = None,
    complete: bool = True,
) -> Change:
    """Take `release` (the one that was raised last unless said) back in `wave`, or in every wave that asks for it.

    `to` names the release to return to. `history` is the Waves document, newest first, the present one included; `complete`
    says whether it goes back to the first commit. Declined: nothing to take back, or nothing to return to.
    """
    path, spec = base.single("Waves")
    waves: Sequence[WaveSpec] = spec.waves
    if to is not None:
        target = find_release(base, to)
        must_not_be_withdrawn(base, target)
        returns = _down_to(base, target, waves, release, wave)
        bad = find_release(base, release) if release is not None else None
    else:
        asked = [_asked(version.data) for version in history]
        bad = find_release(base, release) if release is not None else _last_raised(waves, history, asked, wave)
        returns = _as_before(base, bad, waves, wave, history, asked, complete)
    edits = [wanted.set_in(number, waves[number]) for number, (wanted, _) in returns.items()]
    names = [waves[number].name for number in returns]
    goals = sorted({str(wanted) for wanted, _ in returns.values()})
    what = str(bad) if bad is not None else "the waves"
    says = [
        f"{wanted.asked_by(waves[number])} → {wanted.release} in wave {waves[number].name!r}{why}"
        for number, (wanted, why) in returns.items()
    ]
    says += _lane(returns, history)
    scope = wave or "all"
    branch = bad.branch if bad is not None else f"to-{next(iter(returns.values()))[0].branch}"
    title = f"Roll {what} back to {', '.join(goals)} in wave{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return Change(title, f"rollback/{branch}-{scope}", {path: edited(base.read(path), *edits)}, tuple(says))


Returns = dict[int, tuple[Wanted, str]]
"""Number of a wave → the release it returns to, and where that is known from."""


def _asked(data: bytes) -> Asked:
    """What each wave asked for in a text of the Waves document, valid or not; nothing where it cannot be read."""
    try:
        waves = value_at(read(data), ("spec", "waves"))
    except Refused:
        return {}
    found: dict[str, Mapping[str | None, str]] = {}
    for each in waves if isinstance(waves, list) else ():
        name = value_at(each, ("name",))
        if not isinstance(name, str):
            continue
        image, apps = value_at(each, ("image",)), value_at(each, ("apps",))
        pairs: dict[str | None, Any] = {None: image, **(apps if isinstance(apps, dict) else {})}
        found[name] = {what: release for what, release in pairs.items() if isinstance(release, str)}
    return found


def _steps(history: Sequence[Version], asked: Sequence[Asked]) -> Iterator[_Step]:
    """What each commit changed, newest first. A text that cannot be read is passed over."""
    known = [(version.commit, one) for version, one in zip(history, asked, strict=True) if one]
    for (commit, new), (_, old) in pairwise(known):
        changes = tuple(
            (wave, what, old[wave].get(what), release)
            for wave, releases in new.items()
            if wave in old
            for what, release in releases.items()
            if old[wave].get(what) != release
        )
        if changes:
            yield _Step(commit, changes)


def _last_raised(
    waves: Sequence[WaveSpec], history: Sequence[Version], asked: Sequence[Asked], only: str | None
) -> Wanted:
    """The release that was asked for last. Declined: the last step already went back, or there is none."""
    for step in _steps(history, asked):
        raised: dict[Wanted, None] = {}
        lowered: list[str] = []
        for wave, what, before, after in step.changes:
            if only not in (None, wave):
                continue
            wanted = Wanted(after, what)
            if _lower(wanted, after, before):
                lowered.append(f"wave {wave!r} went back already, from {before} to {after}")
            elif any(wanted.asked_by(each) == after for each in waves):
                raised[wanted] = None
        if len(raised) > 1:
            raise Declined(
                f"commit {step.commit[:12]} raised {' and '.join(map(str, raised))}",
                remedy=f"name the one to take back, or take all of it back with --commit {step.commit[:12]}",
            )
        if raised:
            return next(iter(raised))
        if lowered:
            raise Declined(
                f"the last change of {lowered[0]} (commit {step.commit[:12]})",
                remedy="to go further back, name the release: `reconciler rollback --to RELEASE`",
            )
    who = f"wave {only!r}" if only is not None else "a wave"
    raise Declined(
        f"git knows no commit that raised what {who} asks for",
        remedy="name the release to return to, with --to RELEASE",
    )


def _lower(wanted: Wanted, one: str, other: str | None) -> bool:
    """Whether a release is lower than another; one that is written as no release can be is not."""
    try:
        return other is not None and bool(wanted.key(one) < wanted.key(other))
    except ValueError:
        return False


def _as_before(
    base: Base,
    bad: Wanted,
    waves: Sequence[WaveSpec],
    only: str | None,
    history: Sequence[Version],
    asked: Sequence[Asked],
    complete: bool,
) -> Returns:
    """Each wave that asks for `bad` → what it asked for before. Declined: one of them has nothing to return to."""
    numbers = [find_wave(base, only)] if only is not None else range(len(waves))
    asking = [number for number in numbers if bad.asked_by(waves[number]) == bad.release]
    if not asking:
        who = f"wave {only!r} does not ask" if only is not None else "no wave asks"
        raise Declined(f"{who} for {bad}, so there is nothing to take back")
    returns: Returns = {}
    for number in asking:
        before = _before(bad, waves[number].name, history, asked)
        if before is None:
            more = "" if complete else "; this clone's history is cut off: `git fetch --unshallow` brings the rest"
            raise Declined(
                f"git knows no lower release that wave {waves[number].name!r} asked for before {bad}{more}",
                remedy="name the one to return to, with --to RELEASE",
            )
        release, commit = before
        wanted = find_release(base, str(Wanted(release, bad.app)))
        must_not_be_withdrawn(base, wanted)
        returns[number] = (wanted, f", as before commit {commit[:12]}")
    return returns


def _before(bad: Wanted, wave: str, history: Sequence[Version], asked: Sequence[Asked]) -> tuple[str, str] | None:
    """What a wave asked for before it asked for `bad`, lower than it; and the commit that raised it."""
    raised = history[0].commit if history else ""
    for version, one in zip(history, asked, strict=True):
        if not one:
            continue
        release = one.get(wave, {}).get(bad.app)
        if release == bad.release:
            raised = version.commit
        elif release is not None and _lower(bad, release, bad.release):
            return release, raised
    return None


def _down_to(base: Base, target: Wanted, waves: Sequence[WaveSpec], release: str | None, only: str | None) -> Returns:
    """The waves that ask for more than `target` (and for `release`, where one is named)."""
    bad = find_release(base, release) if release is not None else None
    if bad is not None and bad.app != target.app:
        raise Declined(f"{target} is no release of what {bad} is of", remedy="name two releases of the same")
    numbers = [find_wave(base, only)] if only is not None else range(len(waves))
    returns: Returns = {}
    for number in numbers:
        asked = target.asked_by(waves[number])
        if asked is None or target.key(asked) <= target.key(target.release):
            continue
        if bad is None or asked == bad.release:
            returns[number] = (target, "")
    if not returns:
        who = f"wave {only!r} does not ask" if only is not None else "no wave asks"
        what = str(bad) if bad is not None else f"more than {target}"
        raise Declined(
            f"{who} for {what}, so there is nothing to take back",
            remedy=f"to go forward, `reconciler promote {target}`",
        )
    return returns


def _lane(returns: Returns, history: Sequence[Version]) -> list[str]:
    """Whether this is a way back that needs no gate, as far as git knows."""
    asked = [_asked(version.data) for version in history]
    ran = {(what, release) for one in asked for releases in one.values() for what, release in releases.items()}
    if all((wanted.app, wanted.release) in ran for wanted, _ in returns.values()):
        return [
            "a device or wave that ran it before goes back in the fast lane: no gates, no freezes, all waves at once, "
            "failing devices first"
        ]
    return ["git knows no wave that asked for it before: a wave that never ran it takes the gates"]
