"""`reconciler snapshot`: what is observed, from the running service or from the store, as a file for `diff`, `plan` and `simulate`.

`fetch_snapshot` is the same for commands that need the snapshot itself. A token goes to the address that was named and to no
other; TLS is verified; nothing is changed anywhere but in the output file, which is written as a whole or not at all.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import click

from reconciler.model.observed import Snapshot
from reconciler.ports import TransientError

_CONNECT_S = 5.0
_READ_S = 120.0
_SHOWN = 200


@click.command(short_help="Write what is observed, for `diff`, `plan` and `simulate`.")
@click.option("--server", metavar="URL", help="The controller's service, as https://reconciler.example.")
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="An operator's token for --server; scope `read` suffices."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings of the controller: its store is read, and the stores that it names. [reconciler.yaml]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it to this file, as a whole or not at all. [standard output]",
)
def snapshot(server: str | None, token_file: Path | None, config: Path | None, output: Path | None) -> None:
    """Write everything observed as one JSON document: devices, artifacts, tags, proofs. No secret is in it.

    With --server it is asked of a running service, else it is read from the store of --config. Its `at` says how old it is.

    Exit codes: 0 fine, 1 an input is invalid, 2 wrong usage, 3 the service or the store gave none.
    """
    if server is not None and config is not None:
        raise click.UsageError("--server and --config each say where to look; give one of them")
    if (server is None) != (token_file is None):
        raise click.UsageError("--server and --token-file go together")
    if server is not None and token_file is not None:
        data = fetch(server, token_file)
        check(data, server)
    else:
        data = _from_store(config)
    if output is None:
        click.echo(data, nl=False)
        return
    from reconciler.adapters import durable

    with durable.os_errors(f"write {output}", needed_for="the snapshot"):
        durable.write_atomic(output, [data])


def fetch_snapshot(server: str, token_file: Path) -> Snapshot:
    """The snapshot that a running service gives for an operator's token, its `at` included.

    TransientError (exit 3): it gave none, whatever the reason, or what it gave is no snapshot. UsageError: `server` is no
    address to which a token may go, or there is no token in the file.
    """
    return check(fetch(server, token_file), server)


def check(data: bytes, server: str) -> Snapshot:
    """What a service gave, as a snapshot. TransientError: it is none."""
    from reconciler.repo.problem import InvalidInput
    from reconciler.repo.snapshot import load_snapshot

    try:
        return load_snapshot(data, server)
    except InvalidInput as error:
        first = str(error).splitlines()[0][:_SHOWN]
        _none(
            server,
            f"its answer is not a snapshot ({first})",
            "check that the address is a reconciler's, of this version",
        )


def fetch(server: str, token_file: Path) -> bytes:
    """The bytes of `GET /v1/observed`. TransientError: none came. UsageError: see `fetch_snapshot`."""
    import httpx

    from reconciler.repo.snapshot import MAX_BYTES

    address, token = _address(server), _token(token_file)
    timeout = httpx.Timeout(_READ_S, connect=_CONNECT_S)
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "User-Agent": "reconciler"}
    data = bytearray()
    try:
        # No redirect is followed: the token is for this address.
        with (
            httpx.Client(timeout=timeout, follow_redirects=False, trust_env=not _loopback(address)) as client,
            client.stream("GET", f"{address}/v1/observed", headers=headers) as answer,
        ):
            if answer.status_code != 200:
                _none(server, f"it answered {answer.status_code}", _remedy(answer.status_code))
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    _none(
                        server, f"its answer is longer than {MAX_BYTES} bytes", "read it from the store, with --config"
                    )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        cause = f"{type(error).__name__}: {error}"[:_SHOWN] if str(error) else type(error).__name__
        _none(
            server, f"it did not answer ({cause})", "see that the service runs, and that its certificate is known here"
        )
    return bytes(data)


def _none(server: str, wrong: str, remedy: str) -> NoReturn:
    raise TransientError(f"{server} gave no snapshot: {wrong}", needed_for="what is observed", remedy=remedy)


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "make a token with `reconciler token operator NAME --scope read`, and name its file"
    if status == 404:
        return "name the address of the service itself, without a path; an older version has no /v1/observed"
    if 300 <= status < 400:
        return "name the final address; redirects are not followed"
    return "try again; the controller's log has the cause"


def _address(server: str) -> str:
    """The service's address without a slash at its end. UsageError: none to which a token may go."""
    try:
        parts = urlsplit(server)
        host = parts.hostname or ""
        known = parts.scheme in ("http", "https") and host and not parts.username and not parts.query
        known = bool(known and not parts.fragment and (parts.port is None or parts.port))
    except ValueError:
        known = False
    if not known:
        raise click.BadParameter("write https://HOST[:PORT], without user or query", param_hint="--server")
    if parts.scheme == "http" and not _loopback(server):
        raise click.BadParameter(
            f"{server} is not encrypted, and the token would be readable on the way; write https://",
            param_hint="--server",
        )
    return server.rstrip("/")


def _loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no token"
        raise click.BadParameter(f"{path} cannot be read ({why})", param_hint="--token-file") from None
    if not token or not token.isprintable() or " " in token:
        raise click.BadParameter(f"{path} holds no token; write it alone, on one line", param_hint="--token-file")
    return token


def _from_store(config: Path | None) -> bytes:
    from reconciler.controller.bootstrap import open_snapshot
    from reconciler.controller.settings import load_settings

    settings = config or Path("reconciler.yaml")
    if config is None and not settings.exists():
        raise click.UsageError(
            "there is no settings file reconciler.yaml; give --config FILE, or --server URL and --token-file FILE"
        )
    _, observed = open_snapshot(load_settings(settings))
    at = datetime.now(UTC).replace(microsecond=0)
    whole = observed.model_copy(update={"at": at, "api_version": "fleet/v1", "kind": "Observed"})
    return whole.model_dump_json(by_alias=True, exclude_defaults=True).encode() + b"\n"
