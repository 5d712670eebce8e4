"""The third step of a tick: one handler an action. Idempotent effects, each written down as an intent before it is taken.

Decides nothing about the rollout. What fails for now (TransientError) is tried again with a growing delay; what cannot go
right (TerminalError) stalls until its input changes: the commit in force, the artifact's state, a signature. A stall is
tried once an hour too, one of the builder's own once a day: what was in the way may be gone where nothing tells us. An
intent that the plan no longer asks for, or whose effect is there already, is closed without being taken. Assignments are no
effect of their own: they are written in the transaction of their intents (`record`). Source: design §6; style, habit 6.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from reconciler.controller.evidence import evidence_of
from reconciler.controller.gather import World
from reconciler.controller.jobs import Finished, Underway, Worker
from reconciler.controller.promotion import commit_that_raised
from reconciler.controller.stored import stored_build
from reconciler.model.desired import ImageSpec
from reconciler.model.observed import ArtifactState
from reconciler.model.plan import Action, ActionKind, Plan
from reconciler.ports import (
    Builder,
    Built,
    Forge,
    GitSource,
    ImageStore,
    Intent,
    PortError,
    Registry,
    Signer,
    TerminalError,
)
from reconciler.protocol.manifest import SUMS, SUMS_SIGNATURE

_STEPS = {
    ActionKind.BUILD: ArtifactState.BUILT,
    ActionKind.SIGN: ArtifactState.SIGNED,
    ActionKind.PUBLISH: ArtifactState.PUBLISHED,
}
_ORDER = list(ArtifactState)
_LOOK_EVERY = timedelta(seconds=60)
_STALL_RETRY = timedelta(hours=1)
_BUILD_RETRY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class _Stall:
    """An action that failed for good: on what input, why, and from when on it is tried again on the same."""

    input: str
    error: str
    again: datetime

    def is_over(self, now: datetime) -> bool:
        """Whether it is time to try again."""
        return now >= self.again


@dataclass(frozen=True, slots=True)
class Hands:
    """The ports through which actions act. `signer` is None where releases are signed elsewhere. `judge` gets a release, its
    SHA256SUMS, the signature and the keys that the fleet allows; TerminalError: devices would refuse it."""

    git: GitSource
    images: ImageStore
    registry: Registry
    builder: Builder
    signer: Signer | None
    work: Path
    judge: Callable[[str, bytes, bytes, Collection[str]], None]
    forge: Forge | None = None
    """Where pull requests are; None: a proposed revert is a branch alone."""
    base: str = "main"
    """The branch in force, into which a proposed revert is to be merged."""
    underway: Underway = field(default_factory=Underway)
    """What the work that runs says of itself."""
    inputs: Callable[[str, ImageSpec, Path], str] | None = None
    """The digest of what a release would be built from, given its document and its recipe's folder."""
    by_hand: Callable[[str, str], str] | None = None
    """The command that signs a release of a commit, for a person with the key."""


class Executor:
    """Takes actions whose intents are open. Knows what is stalled; a restart tries that once more."""

    def __init__(self, hands: Hands, jobs: Worker) -> None:
        self._hands, self._jobs = hands, jobs
        self._stalled: dict[str, _Stall] = {}
        self._tried: dict[int, tuple[str, datetime]] = {}
        self._by_builder: set[str] = set()
        self._refused: dict[str, bytes] = {}
        self._looked_at: dict[str, datetime] = {}
        self._handlers: Mapping[ActionKind, Callable[[Action, World, Plan], str]] = {
            ActionKind.BUILD: self._build,
            ActionKind.SIGN: self._sign,
            ActionKind.PUBLISH: self._publish,
            ActionKind.RETAG: self._retag,
            ActionKind.PROPOSE_REVERT: self._propose_revert,
        }

    # ------------------------------------------------ what is to be taken

    def takes(self, action: Action, world: World) -> bool:
        """Whether to write the action down: not while it is stalled on the very same input, nor where it is another's."""
        if action.kind is ActionKind.SIGN and self._hands.signer is None:
            return False
        stalled = self._stalled.get(action.key)
        if stalled is None:
            return True
        same = stalled.input == _input(action, world) and not self._signature_replaced(action, world.now)
        if same and not stalled.is_over(world.now):
            return False
        del self._stalled[action.key]
        return True

    def waiting(self, plan: Plan, commit: str) -> Mapping[str, str]:
        """Releases whose signature a person has to make → the command for it."""
        if self._hands.signer is not None:
            return {}
        by_hand = self._hands.by_hand or (lambda release, _commit: f"reconciler image sign {release}")
        releases = [action.fields["image"] or "" for action in plan.actions if action.kind is ActionKind.SIGN]
        return {release: by_hand(release, commit) for release in releases}

    @property
    def underway(self) -> str:
        """What the work that runs says of itself; empty where nothing runs."""
        return self._hands.underway.text()

    def _signature_replaced(self, action: Action, now: datetime) -> bool:
        """Whether another signature lies where a refused one was. Looked at seldom: listings do not show it."""
        release = action.fields.get("image") or ""
        if action.kind is not ActionKind.PUBLISH or release not in self._refused:
            return False
        before = self._looked_at.get(release)
        if before is not None and timedelta(0) <= now - before < _LOOK_EVERY:
            return False
        self._looked_at[release] = now
        with suppress(PortError):
            found = self._hands.images.read(release, SUMS_SIGNATURE)
            return hashlib.sha256(found).digest() != self._refused[release]
        return False

    @property
    def stalled(self) -> Mapping[str, str]:
        """Action keys that are stalled, and why."""
        return {key: stall.error for key, stall in self._stalled.items()}

    def unstall(self, wanted: Iterable[Action]) -> None:
        """Forget stalls of what the plan does not ask for any more."""
        keys = {action.key for action in wanted}
        for key in [key for key in self._stalled if key not in keys]:
            del self._stalled[key]

    def stall(self, intent: Intent, error: TerminalError) -> None:
        """Do not take this action again before its input changes, or for long: a permission, a program or a mirror may be
        mended where nothing tells us."""
        tried, at = self._tried.pop(intent.id, ("", intent.created_at))
        again = at + (_BUILD_RETRY if intent.key in self._by_builder else _STALL_RETRY)
        self._stalled[intent.key] = _Stall(tried, str(error), again)

    def is_done(self, action: Action, world: World) -> bool:
        """Whether the effect can be seen: a kill between effect and outcome is completed by this."""
        fields = action.fields
        if action.kind in _STEPS:
            artifact = world.observed.artifacts.get(fields["image"] or "")
            state = artifact.state if artifact is not None else ArtifactState.ABSENT
            reached = _ORDER.index(state) >= _ORDER.index(_STEPS[action.kind])
            return reached and state is not ArtifactState.BROKEN
        if action.kind is ActionKind.RETAG:
            tags = world.observed.tags.get(fields["app"] or "", {})
            return tags.get(fields["tag"] or "") == fields["to"]
        if action.kind is ActionKind.PROPOSE_REVERT:
            return any(proposal.key == _key(fields) for proposal in world.observed.proposals)
        return False

    # ------------------------------------------------ taking it

    def start(self, intent: Intent, world: World, plan: Plan) -> None:
        """Hand the intent to the worker; its outcome is collected from the jobs."""
        handler = self._handlers.get(intent.action.kind)
        if handler is None:
            return
        action = intent.action
        # The worker reads it while the loop goes on: what is made when it is read is made now.
        plan = plan.settled() if action.kind is ActionKind.PROPOSE_REVERT else plan
        self._tried[intent.id] = (_input(action, world), world.now)
        self._jobs.submit(intent, lambda: handler(action, world, plan))

    def holds(self, intent: Intent) -> bool:
        """Whether the worker has it: it waits, runs, or has not been collected yet."""
        return self._jobs.holds(intent)

    @property
    def busy(self) -> bool:
        """Whether the worker has anything."""
        return self._jobs.busy

    def collect(self) -> list[Finished]:
        """What has ended."""
        finished = self._jobs.collect()
        for done in finished:
            if not isinstance(done.error, TerminalError):
                self._tried.pop(done.intent.id, None)
        return finished

    def _build(self, action: Action, world: World, plan: Plan) -> str:
        release = action.fields["image"] or ""
        spec = world.desired.images.get(release)
        if spec is None:
            raise TerminalError(f"{world.commit[:12]} has no image {release}", needed_for=f"building {release}")
        if spec.recipe is None:
            raise TerminalError(
                f"images/{release} names no recipe",
                needed_for=f"building {release}",
                remedy="add `recipe`, or put the artifact into the image store by hand",
            )
        folder = self._hands.work / f"{release}-{world.commit[:12]}"
        # What a killed build left is of no use: the builder wants a whole recipe.
        shutil.rmtree(folder, ignore_errors=True)
        recipe = folder / "recipe"
        recipe.mkdir(parents=True)
        try:
            self._hands.git.export(world.commit, f"images/{spec.recipe.rstrip('/')}", recipe)
            # What this tick has seen of the store may be old: somebody else may have staged the very same.
            inputs = self._hands.inputs(release, spec, recipe) if self._hands.inputs is not None else None
            there = stored_build(self._hands.images, release, inputs) if inputs is not None else None
            if there is not None:
                return f"{there} is in the store already"
            with self._hands.underway.doing(f"building {release}"):
                built = self._built(action, release, spec, recipe, world.commit)
            with self._hands.underway.doing(f"uploading {release}"):
                files = sorted(path for path in built.folder.iterdir() if path.is_file())
                self._hands.images.stage(release, built.name, files)
            return built.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _built(self, action: Action, release: str, spec: ImageSpec, recipe: Path, commit: str) -> Built:
        """Ask the builder, and note where it refuses: building the same again takes long, and likely ends in the same way."""
        self._by_builder.discard(action.key)
        try:
            return self._hands.builder.build(release, spec, recipe, commit)
        except TerminalError:
            self._by_builder.add(action.key)
            raise

    def _sign(self, action: Action, world: World, plan: Plan) -> str:
        release = action.fields["image"] or ""
        if self._hands.signer is None:
            raise TerminalError(
                "no release key here", needed_for=f"signing {release}", remedy="sign it where the key is"
            )
        with self._hands.underway.doing(f"signing {release}"):
            signature = self._hands.signer.sign_release(release, world.commit)
        self._hands.images.attach_signature(release, signature)
        return f"{len(signature)} bytes"

    def _publish(self, action: Action, world: World, plan: Plan) -> str:
        release = action.fields["image"] or ""
        images, keys = self._hands.images, world.desired.fleet.release_keys
        # Whoever signed it: what no device would take is not published.
        sums, signature = images.read(release, SUMS), images.read(release, SUMS_SIGNATURE)
        try:
            self._hands.judge(release, sums, signature, keys)
        except TerminalError as error:
            sums = self._signed_anew(release, world, signature, error)
        with self._hands.underway.doing(f"publishing {release}"):
            images.publish(release)
        return images.folder(release) or ""

    def _signed_anew(self, release: str, world: World, refused: bytes, error: TerminalError) -> bytes:
        """Replace a signature that devices refuse, where the signer can be asked; a person is asked by the error's remedy."""
        images, keys = self._hands.images, world.desired.fleet.release_keys
        if self._hands.signer is None:
            self._refused[release] = hashlib.sha256(refused).digest()
            by_hand = self._hands.by_hand
            remedy = f"replace it: {by_hand(release, world.commit)}" if by_hand is not None else error.remedy
            raise TerminalError(error.wrong, needed_for=error.needed_for, remedy=remedy) from None
        signature = self._hands.signer.sign_release(release, world.commit)
        sums = images.read(release, SUMS)
        self._hands.judge(release, sums, signature, keys)
        images.attach_signature(release, signature)
        return sums

    def _retag(self, action: Action, world: World, plan: Plan) -> str:
        app, tag, digest = (action.fields[key] or "" for key in ("app", "tag", "to"))
        spec = world.desired.apps.get(app)
        if spec is None:
            raise TerminalError(f"{world.commit[:12]} has no app {app}", needed_for=f"moving the tag {tag}")
        self._hands.registry.retag(spec.repository, tag, digest)
        return f"{spec.repository}:{tag} is {digest}"

    def _propose_revert(self, action: Action, world: World, plan: Plan) -> str:
        key = _key(action.fields)
        of = commit_that_raised(self._hands.git, world.commit, key)
        branch = f"revert/{key.replace('@', '-')}-{of[:12]}"
        forge = self._hands.forge
        # A kill after the pull request was opened, and before that was written down, finds it here: open, or merged, or closed
        # by a person, with its branch removed. None of these is answered with another.
        there, trouble = None, None
        try:
            there = forge.pull_request(branch) if forge is not None else None
        except PortError as error:
            # The branch is of use without it: whoever has to revert now finds it. What went wrong is raised below.
            trouble = error
        if there is not None:
            return f"{branch} {there.url} ({there.state})"
        evidence = evidence_of(key, of, world, plan)
        sha = self._hands.git.propose_revert(branch, of, evidence.title, evidence.message)
        if trouble is not None:
            raise trouble
        if forge is None:
            return f"{branch} {sha}"
        opened = forge.open_pull_request(branch, self._hands.base, evidence.title, evidence.body)
        return f"{branch} {sha} {opened.url}"


def _key(fields: Mapping[str, str | None]) -> str:
    """`v1.4.2`, or `video-ingest@2.8.0`."""
    return fields.get("image") or f"{fields.get('app')}@{fields.get('release')}"


def _input(action: Action, world: World) -> str:
    """What the outcome of an action depends on, as text: it is not tried again before this changes."""
    parts = [world.commit]
    artifact = world.observed.artifacts.get(action.fields.get("image") or "")
    if artifact is not None:
        parts += [artifact.state.value, artifact.digest or ""]
    if action.kind is ActionKind.RETAG:
        parts.append(str(sorted(world.observed.tags.get(action.fields["app"] or "", {}).items(), key=str)))
    return " ".join(parts)
