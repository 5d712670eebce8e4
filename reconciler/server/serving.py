"""What the HTTP service asks of the loop's world: a device's files, the addresses of its artifact, the reporting policy.

Secrets' values pass through here on their way to a device, in memory only, at the moment the device asks. Built by the
entry point that runs loop and service; called from the service's threads. Its methods are what `Options` asks for.
Source: design §5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reconciler.controller.reports import Sources
from reconciler.model.desired import Desired
from reconciler.ports import ImageStore, Secrets, TerminalError, TransientError
from reconciler.protocol.assignment import Assignment
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.sums import parse_sums
from reconciler.repo.render import UnusableSecret, render_site, resolve
from reconciler.server.options import Policy
from reconciler.server.pull_tokens import PullTokens

_URL_S = 3600


class Serving:
    """Answers from the desired state in force. `desired` returns it, or None before the first tick knew one.

    `registry_at` is the registry's address, if it is not at the host that the fleet names; `tokens` has devices' access to it.
    """

    def __init__(
        self,
        desired: Callable[[], Desired | None],
        images: ImageStore,
        secrets: Secrets,
        *,
        artifacts_at: str | None,
        registry_at: str | None,
        tokens: PullTokens | None = None,
    ) -> None:
        self._desired, self._images, self._secrets = desired, images, secrets
        self._artifacts_at, self._registry_at = artifacts_at, registry_at
        self._tokens = tokens
        self._files: dict[str, tuple[str, ...]] = {}
        self._sites: tuple[str | None, Mapping[str, str]] = ("", {})

    def policy(self) -> Policy:
        """How often devices report, and when they are stale."""
        desired = self._desired()
        if desired is None:
            return Policy()
        return Policy(desired.fleet.report_every, desired.fleet.stale_after)

    def sources(self, assignment: Assignment) -> Sources:
        """Where the device fetches what it is assigned."""
        addresses: dict[str, tuple[str, ...]] = {}
        if assignment.image is not None:
            addresses["image"] = self._image(assignment.image.release, assignment.image.folder)
        registry, token = self._registry() if assignment.apps else (None, None)
        if registry is not None:
            addresses["registry"] = (registry,)
        return Sources(addresses, token)

    def config(self, device: str) -> SiteConfig | None:
        """The device's rendered files, secrets resolved. None: git names no such device. Port errors: not now, or never."""
        desired = self._desired()
        if desired is None:
            raise TransientError("no commit is in force yet", needed_for="a site's configuration", retry_after_s=30)
        site = self._site_of(desired, device)
        if site is None:
            return None
        digest = desired.config.get(site)
        if digest is None:
            raise TransientError(
                f"a secret of site {site} has no version", needed_for="its configuration", remedy="store the secret"
            )
        rendering = render_site(site, desired.sites[site], desired.fleet, device)
        try:
            files = resolve(rendering, self._secrets.value, digest)
        except UnusableSecret as error:
            raise TerminalError(str(error), needed_for=f"the configuration of {site}") from None
        return SiteConfig(digest, files)

    def _site_of(self, desired: Desired, device: str) -> str | None:
        if self._sites[0] != desired.commit:
            names = {name: site for site, spec in desired.sites.items() for name in spec.devices}
            self._sites = (desired.commit, names)
        return self._sites[1].get(device)

    def _registry(self) -> tuple[str | None, str | None]:
        """The registry's address and its token."""
        if self._tokens is not None:
            held = self._tokens.current()
            # Without a token the registry would deny the release, which a device takes for an answer: rather no address now.
            # With one it is the token's own registry: a commit cannot have it sent elsewhere.
            return (held.address, held.secret) if held is not None else (None, None)
        if self._registry_at is not None:
            return self._registry_at, None
        desired = self._desired()
        host = desired.fleet.registry if desired is not None else ""
        return (f"https://{host}" if host and "/" not in host and not host.endswith(".invalid") else None), None

    def _image(self, release: str, folder: str) -> tuple[str, ...]:
        """A folder of this service, or an address for each file where the store gives out its own."""
        if self._artifacts_at is not None:
            return (f"{self._artifacts_at}/v1/artifacts/{folder}/",)
        if release not in self._files:
            listed = parse_sums(self._images.read(release, "SHA256SUMS"))
            self._files[release] = (*sorted(listed), "SHA256SUMS", "SHA256SUMS.gpg")
        return tuple(self._images.url(release, name, _URL_S) for name in self._files[release])
