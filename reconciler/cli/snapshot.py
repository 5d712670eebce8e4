"""`reconciler snapshot`: what is observed, from the running service or from the store, as a file for `diff`, `plan` and `simulate`.

`fetch_snapshot` is the same for commands that need the snapshot itself. A token goes to the address that was named and to no
other; TLS is verified; nothing is changed anywhere but in the output file, which is written as a whole or not at all.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click

from reconciler.model.observed import Snapshot
from reconciler.ports import TransientError

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
    from reconciler.cli.server import Asked, ask
    from reconciler.repo.snapshot import MAX_BYTES

    wanted = Asked(
        "/v1/observed", "what is observed", "gave no snapshot", MAX_BYTES, "read it from the store, with --config"
    )
    return ask(server, token_file, wanted)


def _none(server: str, wrong: str, remedy: str) -> NoReturn:
    raise TransientError(f"{server} gave no snapshot: {wrong}", needed_for="what is observed", remedy=remedy)


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
