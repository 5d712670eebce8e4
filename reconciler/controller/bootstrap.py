"""Puts the program together: the only place that names adapters. Called by the entry points, imported by nobody else.

Decides nothing but which adapter stands behind each port, as the settings say. Imports an adapter where it is chosen, so
that nobody waits for boto3 who keeps images in a folder. Source: design §6, "Architecture".
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from reconciler.controller import settings as s
from reconciler.controller.assign import Artifacts, Assigner
from reconciler.controller.boards import Boards
from reconciler.controller.by_hand import signing_command
from reconciler.controller.chronicle import Chronicle, Watched
from reconciler.controller.conditions import Conditions, Type
from reconciler.controller.execute import Executor, Hands
from reconciler.controller.gatekeeper import ReleaseKeys, StateLock
from reconciler.controller.gather import Gatherer, Polls
from reconciler.controller.herald import Herald
from reconciler.controller.jobs import Jobs, PacedJobs, Underway, Worker
from reconciler.controller.loop import Loop, Parts
from reconciler.controller.notify_senders import make_notifier
from reconciler.controller.pace import Backoff, Poll
from reconciler.controller.pulse import Pulse
from reconciler.controller.record import Recorder
from reconciler.controller.signing_keys import signing_keys
from reconciler.controller.source import Source
from reconciler.model.desired import Desired, ImageSpec
from reconciler.model.observed import Snapshot
from reconciler.model.plan import ActionKind
from reconciler.planner.live import Live
from reconciler.ports import (
    AssignmentSigner,
    Builder,
    Clock,
    Doorbell,
    GitSource,
    ImageStore,
    Registry,
    Secrets,
    Signer,
    TerminalError,
    TransientError,
)

if TYPE_CHECKING:
    from reconciler.adapters.aws import Aws
    from reconciler.adapters.forge_github import GithubForge
    from reconciler.adapters.sql import SqlStore
    from reconciler.image.job import Maker

_JOB_STOP_S = 30.0
_HERALD_S = 15.0
Working = Callable[[], AbstractContextManager[None]]


# ---------------------------------------------------------------- ports, one function each


def make_clock(settings: s.Settings) -> tuple[Clock, Working]:
    """The clock, and what holds its time still during work beside the loop."""
    if isinstance(settings.clock, s.SteppedClockSettings):
        from reconciler.adapters.clock_stepped import SteppedClock

        stepped = SteppedClock(settings.clock.socket, settings.clock.every)
        return stepped, stepped.working
    from reconciler.adapters.clock_system import SystemClock

    return SystemClock(), nullcontext


def make_worker(settings: s.Settings, clock: Clock, jobs: Jobs) -> Worker:
    """Who does long work: a thread, which takes virtual time where the settings say how much."""
    if not isinstance(settings.clock, s.SteppedClockSettings) or not settings.clock.work:
        return jobs
    from reconciler.adapters.clock_stepped import SteppedClock

    assert isinstance(clock, SteppedClock)
    return PacedJobs(jobs, clock.spend, {ActionKind(kind): took for kind, took in settings.clock.work.items()})


def make_folder(path: Path, needed_for: str) -> Path:
    """A folder of the controller's own, made where there is none. TerminalError: it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise TerminalError(
            f"cannot make the folder {path}: {error.strerror}",
            needed_for=needed_for,
            remedy="name another in the settings, or make it writable for this user",
        ) from None
    return path


def make_store(settings: s.Settings, *, create: bool) -> SqlStore:
    """The store. TerminalError: there is none and `create` is False."""
    from reconciler.adapters.sql import open_store

    return open_store(settings.store_place, create=create)


def make_git(settings: s.Settings, now: Callable[[], datetime], folder: str = "git") -> GitSource:
    """The fleet repo's mirror."""
    from reconciler.adapters.git_source import GitMirror

    git, commits = settings.git, settings.commits
    return GitMirror(
        settings.state / folder,
        git.url,
        git.branch,
        signers_keyring=commits.keyring,
        allowed=frozenset(key.upper() for key in commits.signers),
        timeout_s=git.timeout,
        ssh_command=git.ssh_command,
        credential_helper=git.credential_helper,
        now=now,
    )


def make_images(settings: s.Settings, now: Callable[[], datetime]) -> ImageStore:
    """The image store."""
    return open_images(settings.images, now, base_url=settings.server.address)


def open_images(
    place: s.DirectoryPlace | s.S3Place, now: Callable[[], datetime], *, base_url: str | None = None
) -> ImageStore:
    """The image store at a place. `base_url`: where devices reach the service that serves a folder."""
    if isinstance(place, s.DirectoryPlace):
        from reconciler.adapters.images_dir import DirectoryImageStore

        return DirectoryImageStore(place.path, base_url=base_url, now=now)
    from reconciler.adapters.images_s3 import S3ImageStore

    return S3ImageStore(_aws(place.region, place.endpoint), place.bucket, place.prefix, now=now)


def make_registry(settings: s.Settings) -> Registry:
    """The registry of the apps."""
    place = settings.registry
    if isinstance(place, s.LayoutRegistry):
        from reconciler.adapters.registry_layout import LayoutRegistry

        return LayoutRegistry(place.path)
    if isinstance(place, s.OciRegistry):
        from reconciler.adapters.registry_oci import OciRegistry

        return OciRegistry(place.url)
    from reconciler.adapters.registry_ecr import EcrRegistry

    return EcrRegistry(_aws(place.region, place.endpoint), registry_id=place.registry_id)


def make_secrets(settings: s.Settings) -> Secrets:
    """Where secrets are."""
    place = settings.secrets
    if isinstance(place, s.DirectoryPlace):
        from reconciler.adapters.secrets_dir import DirectorySecrets

        return DirectorySecrets(place.path)
    from reconciler.adapters.secrets_aws import SecretsManager

    return SecretsManager(_aws(place.region, place.endpoint))


def make_doorbell(settings: s.Settings) -> Doorbell:
    """How devices are asked to call in."""
    from reconciler.adapters.doorbell_local import LocalDoorbell, SilentDoorbell

    place = settings.doorbell
    if isinstance(place, s.DirectoryPlace):
        return LocalDoorbell(place.path)
    if isinstance(place, s.SsmDoorbell):
        from reconciler.adapters.doorbell_ssm import Bell, SsmDoorbell

        bell = Bell(place.document, place.document_version, place.document_hash)
        return SsmDoorbell(_aws(place.region, place.endpoint), bell)
    return SilentDoorbell()


def _aws(region: str | None, endpoint: str | None) -> Aws:
    from reconciler.adapters.aws import Aws, AwsSettings

    return Aws(AwsSettings(region=region, endpoint_url=endpoint))


def make_forge(settings: s.Settings) -> GithubForge | None:
    """Where pull requests are; None where the settings name no forge."""
    place = settings.forge
    if place is None:
        return None
    from reconciler.adapters.forge_github import GithubForge, token_from

    return GithubForge(place.repository, token_from(place.token_file), api_url=place.api_url)


def make_builder(settings: s.Settings, git: GitSource, progress: Callable[[str, float], None] | None = None) -> Builder:
    """Who builds images: another process where the settings name its command, or this one."""

    def committed_at(sha: str) -> datetime:
        return git.commit(sha).committed_at

    options = settings.builder
    if options.command:
        from reconciler.adapters.builder_process import ProcessBuilder

        handed_on = options.model_dump(mode="json", by_alias=True, include={"type", "mirrors", "slot_size", "timeout"})
        return ProcessBuilder(
            options.command,
            committed_at=committed_at,
            options=handed_on,
            timeout_s=options.timeout,
            progress=progress,
        )
    work = make_folder(options.work or settings.state / "builds", "building images")
    return make_local_builder(options, work, settings.state / "artifacts", committed_at, progress)


def make_local_builder(
    options: s.BuilderSettings,
    work: Path,
    output: Path,
    committed_at: Callable[[str], datetime],
    progress: Callable[[str, float], None] | None = None,
) -> Builder:
    """The builder in this process: of the loop, or of `reconciler builder`."""
    from reconciler.image.builder import ImageBuilder

    def maker() -> Maker:
        if options.type == "files":
            from reconciler.image.bareroot import BareRoot

            return BareRoot()
        from reconciler.image.rootfs import DistributionRoot

        return DistributionRoot((options.cache or work / "cache").absolute(), options.mirrors)

    return ImageBuilder(
        work,
        output,
        committed_at=committed_at,
        maker=maker,
        timeout_s=options.timeout,
        slot_bytes=options.slot_size,
        progress=progress,
    )


def make_inputs(settings: s.Settings) -> Callable[[str, ImageSpec, Path], str]:
    """What a build would be made from, as the builder and the signer know it."""

    def inputs(release: str, spec: ImageSpec, recipe: Path) -> str:
        from reconciler.image.inputs import inputs_digest, read_recipe

        return inputs_digest(release, spec, read_recipe(recipe), settings.builder.type)

    return inputs


def make_release_signer(settings: s.Settings, images: ImageStore, now: Callable[[], datetime]) -> Signer | None:
    """Who signs releases; None: a person with the key, and the loop waits for the signature."""
    place = settings.keys.signer
    if place is None or isinstance(place, s.OfflineSigner):
        return None
    if isinstance(place, s.ProcessSigner):
        from reconciler.adapters.signer_process import ProcessSigner

        return ProcessSigner(place.command)
    # A mirror of its own: what is signed is rechecked against what the signer itself has fetched.
    git = make_git(settings, now, folder="signer")
    return make_key_signer(settings, place, git, images)


def make_key_signer(settings: s.Settings, place: s.KeySigner, git: GitSource, images: ImageStore) -> Signer:
    """A signer with its key in reach: of the loop, or of `reconciler signer`."""
    from reconciler.adapters.gpg_signer import ReleaseSigner

    scratch = make_folder(settings.state / "signing", "looking into an image before it is signed")
    return ReleaseSigner(
        place,
        git,
        images,
        builder_type=settings.builder.type,
        keys=settings.keys.releases,
        required=settings.commits.required,
        scratch=scratch,
    )


def make_assignment_signer(settings: s.Settings) -> AssignmentSigner:
    """Who signs assignments."""
    from reconciler.adapters.gpg_signer import RootSigner

    return RootSigner(settings.keys.assignment)


# ---------------------------------------------------------------- the program


class Service(Protocol):
    """What runs beside the loop and is stopped with it: the HTTP service."""

    def stop(self) -> None:
        """Answer what is being served, then end."""


class Program:
    """The loop, its ports and the watcher, made of one settings file."""

    def __init__(
        self, settings: s.Settings, log: Callable[..., object], clock: tuple[Clock, Working], *, inline: bool = False
    ) -> None:
        """Open everything. `clock` is `make_clock`'s. `inline` takes long work within the tick, for a single pass.

        Takes over as the writer: a loop that runs elsewhere on the same store is fenced from here on.
        """
        self.settings, self._log = settings, log
        self.clock, working = clock
        self._lock = StateLock(make_folder(settings.state, "what the controller keeps"))
        self.store = make_store(settings, create=True)
        self.git, self.images = make_git(settings, self.clock.now), make_images(settings, self.clock.now)
        self.secrets = make_secrets(settings)
        registry = make_registry(settings)
        loop = settings.loop
        # Jitter only: nothing about it is secret.
        rng = random.Random()  # noqa: S311
        backoff = Backoff(loop.retry_first, loop.retry_most)
        epoch = self.store.begin_epoch()
        self.source = Source(self.git, self.store, settings, Poll(settings.git.poll, backoff), epoch)
        polls = Polls(*(Poll(loop.stores_poll, backoff) for _ in range(3)))
        self.gatherer = Gatherer(self.source, self.store, self.images, registry, self.secrets, polls, rng)
        self.jobs = Jobs(self.clock.wake, working, inline=inline)
        # Under a stepped clock a tick is an event of its time; what a build says of itself is none.
        rings = self.clock.wake if isinstance(settings.clock, s.SystemClockSettings) else None
        # Nobody can ask a single pass how far it is: it says so itself.
        tell: Callable[[str], object] | None = (lambda text: log("under way", work=text)) if inline else None
        underway = Underway(rings, tell)
        self.forge = make_forge(settings)
        self.herald, self.boards, self.pulse = self._make_herald(backoff), Boards(self.store), Pulse()
        hands = Hands(
            self.git,
            self.images,
            registry,
            make_builder(settings, self.git, underway.stage),
            make_release_signer(settings, self.images, self.clock.now),
            settings.builder.work or settings.state / "builds",
            ReleaseKeys(settings.keys.release_keyring, settings.keys.releases, self.clock.now).judge,
            self.forge,
            settings.git.branch,
            underway,
            make_inputs(settings),
            lambda release, commit: signing_command(settings, release, commit),
        )
        watched = Watched(lambda: signing_keys(settings.keys), timedelta(seconds=loop.events_kept), self.pulse.looked)
        recorder = Recorder(self.store, epoch, backoff, rng, log, journal_kept=loop.journal_kept)
        self.notifier = make_notifier(settings, self.store, self.secrets, recorder, backoff, log, self.clock.wake)
        parts = Parts(
            clock=self.clock,
            store=self.store,
            gatherer=self.gatherer,
            live=Live(),
            executor=Executor(hands, make_worker(settings, self.clock, self.jobs)),
            assigner=Assigner(self.store, valid_s=loop.assignment_valid, nights=loop.nights),
            recorder=recorder,
            signer=make_assignment_signer(settings),
            artifacts=Artifacts(self.images),
            doorbell=make_doorbell(settings),
            conditions=Conditions(self.store.conditions(), self.clock.now(), log),
            log=log,
            herald=self.herald,
            notifier=self.notifier,
            chronicle=Chronicle(self.store, log, watched, self.notifier.ring),
            boards=self.boards,
            pulse=self.pulse,
        )
        self.loop = Loop(parts, loop, debug=settings.debug)
        self._watch: Any = None
        self._service: Service | None = None

    def _make_herald(self, backoff: Backoff) -> Herald | None:
        place = self.settings.forge
        if self.forge is None or place is None:
            return None
        environments = place.environments if place.deployments else None
        return Herald(self.forge, self._log, environments=environments, backoff=backoff, wake=self.clock.wake)

    def once(self) -> None:
        """Tick until nothing more can be done at once, and stop.

        TransientError: a system did not answer, so that nothing could be planned. TerminalError: the branch's head is
        not acted on; what the commit in force asks for was done.
        """
        self.notifier.start()
        for _ in range(100):
            if not self.loop.tick() and not self.jobs.busy:
                break
        if self.herald is not None:
            self.herald.flush(_HERALD_S)
        self.notifier.flush(_HERALD_S)
        rows = {row.type: row for row in self.store.conditions() if row.status == "False"}
        refused = rows.get(Type.FLEET_VALID)
        if refused is not None:
            raise TerminalError(refused.message, needed_for="acting on the branch's head")
        silent = rows.get(Type.GIT_READY) or (rows.get(Type.STORES_READY) if self.loop.world is None else None)
        if silent is not None:
            kind = TerminalError if silent.reason == "Refused" else TransientError
            raise kind(silent.message)

    def run(self, serve: Callable[[], Service]) -> None:
        """Serve and tick until stopped. Errors of the store that will not pass end it, after everything is closed."""
        try:
            self.notifier.start()
            # The first tick before the first report: how much silence ends a run is for the commit in force to say.
            self.loop.first_tick()
            self._start_watch()
            self._service = serve()
            self.loop.run()
        finally:
            self.close()

    def stop(self) -> None:
        """Finish the tick and end `run`. Safe in a signal handler."""
        self.loop.stop()

    def close(self) -> None:
        """Stop serving and watching, wait for the job under way, close the store."""
        if self._watch is not None:
            self._watch.stop()
        if self._service is not None:
            self._service.stop()
        self.jobs.stop(_JOB_STOP_S)
        if self.herald is not None:
            self.herald.stop(_HERALD_S)
        self.notifier.stop(_HERALD_S)
        if self.forge is not None:
            self.forge.close()
        self.store.close()
        self._lock.release()

    # ------------------------------------------------ the watcher

    def _start_watch(self) -> None:
        from reconciler.adapters.git_remote import parse_remote

        folder = parse_remote(self.settings.git.url).folder
        if not self.settings.git.watch or folder is None:
            return
        from reconciler.adapters.ref_watch import RefWatch

        def rang() -> None:
            self.gatherer.git_rang()
            self.clock.wake()

        try:
            self._watch = RefWatch(folder, rang)
            self._watch.start()
        except TerminalError as error:
            # The poll covers it, only later.
            self._watch = None
            self._log("not watching", error=str(error))


def open_snapshot(settings: s.Settings) -> tuple[Desired, Snapshot]:
    """What `plan` without `--observed` plans from: the commit in force and everything recorded, with what the stores hold.

    Takes no epoch and writes nothing but the mirror's own folder. TransientError: a system did not answer.
    TerminalError: nothing is in force yet, or there is no store.
    """
    clock, _ = make_clock(settings)
    store = make_store(settings, create=False)
    try:
        source = Source(make_git(settings, clock.now), store, settings, Poll(1, Backoff(1, 1)), epoch=0)
        troubles = [finding.message for finding in source.restore()]
        if source.desired is None:
            raise TerminalError(
                f"no commit is in force: {'; '.join(troubles)}",
                needed_for="a plan against the store",
                remedy="start `reconciler run`, or plan a folder with --fleet and --observed",
            )
        # Git is not asked: what is in force is what the loop has accepted.
        source.poll.due_at = datetime.max.replace(tzinfo=clock.now().tzinfo)
        polls = Polls(*(Poll(1, Backoff(1, 1)) for _ in range(3)))
        rng = random.Random()  # noqa: S311
        images, registry = make_images(settings, clock.now), make_registry(settings)
        gatherer = Gatherer(source, store, images, registry, make_secrets(settings), polls, rng)
        world, findings = gatherer.gather(clock.now())
        if world is None:
            raise TransientError("; ".join(f.message for f in findings if f.status is False), needed_for="a plan")
        return world.desired, world.observed.model_copy(update={"devices": tuple(world.everyone())})
    finally:
        store.close()
