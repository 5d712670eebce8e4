"""`reconciler run`: the daemon, or one pass of it. Puts loop and HTTP service together; decides nothing."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from reconciler.controller.bootstrap import Program
    from reconciler.controller.settings import Settings
    from reconciler.ports import Secrets
    from reconciler.server.pull_tokens import TokenSource
    from reconciler.server.run import HttpServer

CONFIG = click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path),
    default=Path("reconciler.yaml"),
    show_default=True,
    help="The controller's settings.",
)


@click.command(short_help="Run the loop and the HTTP service.")
@CONFIG
@click.option("--once", is_flag=True, help="Tick until nothing more can be done at once, and stop. Serves nobody.")
@click.option(
    "--log", "form", type=click.Choice(["text", "json"]), default=None, help="Form of the log; text on a terminal."
)
def run(config: Path, once: bool, form: str | None) -> None:
    """Run the loop: from the merged commit to a fleet that matches it.

    Logs one line a transition on stderr, and with --once each stage of a build as it begins. SIGTERM and SIGINT finish the
    tick and stop; a second one stops at once. Under systemd (Type=notify) it says when it serves, and while its loop goes on.
    """
    from reconciler.controller.settings import load_settings

    settings = load_settings(config)
    from reconciler.adapters.service_manager import ServiceManager
    from reconciler.controller.bootstrap import Program, make_clock

    clock = make_clock(settings)
    log = _log(form, clock[0].now)
    # Read before anything is started: what is started must not speak for this process.
    manager = ServiceManager()
    program = Program(settings, log.info, clock, inline=once)
    if once:
        try:
            program.once()
        finally:
            program.close()
        return

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        manager.stopping()
        program.stop()

    def serve() -> HttpServer:
        server = _serve(program, log)
        manager.watch(lambda: program.pulse.busy_s)
        manager.ready(f"serving {server.address}")
        return server

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        program.run(serve)
    finally:
        manager.close()


def _serve(program: Program, log: Any) -> HttpServer:
    """Start the HTTP service on the program's parts."""
    from reconciler.cli.foresee import foreseer
    from reconciler.controller import settings as s
    from reconciler.controller.gatekeeper import ReleaseKeys
    from reconciler.review.asked import askers
    from reconciler.server.app import create_app
    from reconciler.server.options import Limits, Options, SessionTimes
    from reconciler.server.pull_tokens import PullTokens
    from reconciler.server.run import HttpServer, Tls
    from reconciler.server.serving import Serving
    from reconciler.server.tokens import read_operators

    settings, loop, images = program.settings, program.loop, program.images
    keys = ReleaseKeys(settings.keys.release_keyring, settings.keys.releases, program.clock.now)
    place, operators = settings.server, settings.server.operators
    tokens = _token_source(settings, program.secrets)
    artifact = getattr(images, "path", None) if isinstance(settings.images, s.DirectoryPlace) else None
    serving = Serving(
        lambda: loop.world.desired if loop.world is not None else None,
        images,
        program.secrets,
        artifacts_at=place.address if artifact is not None else None,
        registry_at=_registry_address(settings),
        tokens=PullTokens(tokens, program.clock.now) if tokens is not None else None,
    )
    # Rates are of real seconds, and a stepped day may last one.
    stepped = isinstance(settings.clock, s.SteppedClockSettings)
    limits = Limits(per_device=(1e6, 1_000_000), per_address=(1e6, 1_000_000)) if stepped else Limits()
    options = Options(
        store=program.store,
        now=program.clock.now,
        policy=serving.policy,
        sources=serving.sources,
        config=serving.config,
        artifact=artifact,
        access=program.store.access,
        operators=(lambda: read_operators(operators)) if operators is not None else tuple,
        sessions=SessionTimes(place.sessions.idle, place.sessions.longest),
        audit_kept_s=place.audit_kept,
        local=place.local,
        public_url=place.public_url,
        export=program.store.export,
        stores=lambda: loop.world.observed if loop.world is not None else None,
        not_ready=lambda: () if loop.world is not None else ("a commit in force, and the image store",),
        reported=program.clock.wake,
        tls=place.tls is not None,
        boards=program.boards,
        images=images,
        signed_by=keys.signed_by,
        commit=program.git.commit,
        changed=program.git.changed,
        asked=askers(program.git),
        foresee=foreseer(program.store.export, program.clock.now),
        pulse=program.pulse,
        notified=program.notifier.counts,
        limits=limits,
    )
    tls = Tls(place.tls.certificate, place.tls.key) if place.tls is not None else None
    server = HttpServer(create_app(options), place.host, place.port, tls)
    server.start()
    log.info("serving", address=server.address)
    return server


def _registry_address(settings: Settings) -> str | None:
    """Where devices pull apps from; None where the fleet's own `registry` says it."""
    from reconciler.controller import settings as s

    place = settings.registry
    if isinstance(place, s.LayoutRegistry):
        return place.path.as_uri()
    return place.url if isinstance(place, s.OciRegistry) else None


def _token_source(settings: Settings, secrets: Secrets) -> TokenSource | None:
    """Where the credentials come from that devices pull apps with; None where they have their own, or need none."""
    from reconciler.controller import settings as s

    place = settings.registry
    if isinstance(place, s.OciRegistry) and place.pull_secret is not None:
        from reconciler.adapters.registry_tokens import SecretToken

        return SecretToken(secrets, place.pull_secret, place.url)
    if isinstance(place, s.EcrRegistry) and place.pull_role is not None:
        from reconciler.adapters.aws import Aws, AwsSettings
        from reconciler.adapters.registry_tokens import EcrTokens

        ecr, sts = (Aws(AwsSettings(region=place.region, endpoint_url=url)) for url in (place.endpoint, None))
        return EcrTokens(ecr, sts, place.pull_role, registry_id=place.registry_id)
    return None


def _log(form: str | None, now: Callable[[], datetime]) -> Any:
    """structlog on stderr: one line a transition, with the instant of the loop's own clock."""
    import logging

    import structlog

    from reconciler.model.scalars import format_instant

    text = form == "text" or (form is None and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if text else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            lambda _logger, _method, line: {"at": format_instant(now()), **line},
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger("reconciler")
