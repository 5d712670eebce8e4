"""Makes those who tell targets what happened, of the settings. Names the adapter that posts to them.

Address and keys of a target are read at each message, so that a renewed secret counts; where secrets are kept is opened when the
first is asked for. Called by `bootstrap`, and by `reconciler notify test`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

from reconciler.controller.notices import Asked
from reconciler.controller.notify import Events, Notices, Notifier, Office, Sender, Target
from reconciler.controller.pace import Backoff
from reconciler.controller.record import Recorder
from reconciler.controller.settings import Settings
from reconciler.controller.settings_notify import NotifyTarget, WebhookTarget
from reconciler.ports import Secrets


class Kept(Events, Protocol):
    """The store, with what it keeps of notifications."""

    @property
    def notices(self) -> Notices:
        """Deliveries."""


def make_notifier(
    settings: Settings,
    store: Kept,
    secrets: Secrets,
    recorder: Recorder,
    backoff: Backoff,
    log: Callable[..., object],
    changed: Callable[[], object],
) -> Notifier:
    """Who tells the settings' targets, ready to `start`: what happens from now on is told. Errors are the store's."""
    targets = [
        Target(Asked(target.name, target.events, target.waves), make_sender(target, lambda: secrets))
        for target in settings.notifications
    ]
    base, epoch = settings.server.public_url, lambda: recorder.epoch
    office = Office(store, store.notices, epoch, base, backoff, log, changed)
    notifier = Notifier(targets, office)
    notifier.open()
    return notifier


def make_sender(target: NotifyTarget, secrets: Callable[[], Secrets]) -> Sender:
    """How a target is told."""
    from reconciler.adapters.webhook import WebhookSender

    opened = cache(secrets)
    url, reference = target.url, target.url_secret
    key = target.secret if isinstance(target, WebhookTarget) else None

    def address() -> str:
        return opened().value(reference) if reference is not None else url or ""

    keys = (lambda: opened().value(key)) if key is not None else None
    return WebhookSender(target.name, target.type, address, keys, ca=target.ca)
