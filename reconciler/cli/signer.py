"""`reconciler signer`: signs one release, as another user with a home, a mirror and a settings file of its own.

Reads one line of JSON from standard input, `{"release": "v1.4.2", "commit": "…40 hex…"}`, and takes nothing else from
who asks. Writes the detached signature's bytes to standard output. Exit codes: 1 refused, 3 a system did not answer.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

_LIMIT = 4096


@click.command(short_help="Sign a release that an accepted commit names, after checking it.")
@click.option(
    "--config",
    "--settings",
    "config",
    type=click.Path(path_type=Path),
    default=Path("signer.yaml"),
    show_default=True,
    help="The signer's own settings: the form of reconciler.yaml, with a state folder and `keys.signer` of its own.",
)
def signer(config: Path) -> None:
    """Sign the release named on standard input, if commit, manifest and bytes agree."""
    from reconciler.controller.bootstrap import make_git, make_images, make_key_signer
    from reconciler.controller.settings import KeySigner, load_settings
    from reconciler.ports import TerminalError

    release, commit = _request(sys.stdin.buffer.read(_LIMIT + 1))
    settings = load_settings(config)
    place = settings.keys.signer
    if not isinstance(place, KeySigner):
        raise TerminalError(
            f"{config} names no key to sign with", needed_for="signing a release", remedy="add keys.signer of type key"
        )

    def now() -> datetime:
        return datetime.now(UTC)

    source, store = make_git(settings, now), make_images(settings, now)
    made = make_key_signer(settings, place, source, store)
    try:
        signature = made.sign_release(release, commit)
    except OSError as error:
        from reconciler.ports import TransientError

        # A full disk under the copy of the image passes.
        raise TransientError(
            f"{error.strerror or type(error).__name__} ({error.filename or 'a file'})",
            needed_for=f"signing {release}",
            remedy="see that the signer's `state` has room for the image twice, and is writable for it; it is tried again",
        ) from None
    sys.stdout.buffer.write(signature)
    sys.stdout.buffer.flush()


def _request(data: bytes) -> tuple[str, str]:
    """The release and the commit asked for. TerminalError: anything else."""
    from reconciler.ports import TerminalError

    try:
        found = json.loads(data) if len(data) <= _LIMIT else None
    except ValueError:
        found = None
    if isinstance(found, dict) and set(found) == {"release", "commit"}:
        release, commit = str(found["release"]), str(found["commit"])
        if re.fullmatch(r"v\d{1,9}(\.\d{1,9}){0,2}", release, re.ASCII) and re.fullmatch(r"[0-9a-f]{40}", commit):
            return release, commit
    raise TerminalError(
        "standard input holds no request",
        needed_for="signing a release",
        remedy='write {"release": "v1.4.2", "commit": "<40 hex digits>"}',
    )
