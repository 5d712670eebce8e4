"""Asking a running service: where it is, whose token is sent, and what to say where it gives nothing. Decides nothing.

A token goes to the address that was named and to no other: no redirect is followed, TLS is verified, and without it only this
machine is asked. It stands in a file or in RECONCILER_TOKEN, never among the arguments, which everybody on the machine can read.
Called by the commands that have `--server`.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import click

from reconciler.ports import TransientError

F = TypeVar("F", bound=Callable[..., Any])

TOKEN = "RECONCILER_TOKEN"  # noqa: S105  the name of the variable
_CONNECT_S = 5.0
_READ_S = 120.0
_SHOWN = 200
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: path and query, what it is needed for, what is said of a service that gives nothing (`gave no …`), and how many
    bytes its answer may have, with what to do about a longer one. `missing` is what a 404 means; None: an older version."""

    path: str
    needed_for: str
    gave: str
    most: int = _MOST_BYTES
    too_long: str = "ask for less"
    query: Mapping[str, str] = field(default_factory=dict)
    missing: str | None = None


class NotThere(LookupError):
    """The service answers, and has no such thing, or (`unclear`) several: what it says of it."""

    def __init__(self, said: str, *, unclear: bool) -> None:
        super().__init__(said)
        self.unclear = unclear


def server_options(of: F) -> F:
    """`--server` and `--token-file`, for commands that can ask a running service instead of reading the store."""
    of = click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        help=f"An operator's token for --server; scope `read` suffices. [the variable {TOKEN}]",
    )(of)
    return click.option(
        "--server", metavar="URL", help="Ask the controller's service, as https://reconciler.example, not its store."
    )(of)


def ask_json(server: str, token_file: Path | None, wanted: Asked) -> dict[str, Any]:
    """The JSON object of an answer. TransientError (exit 3): none came. UsageError: no address, or no token. NotThere."""
    data = ask(server, token_file, wanted)
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        _none(
            server, wanted, "its answer is no JSON object", "check that the address is a reconciler's, of this version"
        )
    return document


def ask(server: str, token_file: Path | None, wanted: Asked) -> bytes:
    """The bytes of an answer. Raises as `ask_json`."""
    import httpx

    address, token = address_of(server), token_of(token_file)
    timeout = httpx.Timeout(_READ_S, connect=_CONNECT_S)
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "User-Agent": "reconciler"}
    data = bytearray()
    try:
        # No redirect is followed: the token is for this address.
        with (
            httpx.Client(timeout=timeout, follow_redirects=False, trust_env=not _loopback(address)) as client,
            client.stream("GET", f"{address}{wanted.path}", params=dict(wanted.query), headers=headers) as answer,
        ):
            if answer.status_code != 200:
                _refused(server, wanted, answer)
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > wanted.most:
                    _none(server, wanted, f"its answer is longer than {wanted.most} bytes", wanted.too_long)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        cause = f"{type(error).__name__}: {error}"[:_SHOWN] if str(error) else type(error).__name__
        remedy = "see that the service runs, and that its certificate is known here"
        _none(server, wanted, f"it did not answer ({cause})", remedy)
    return bytes(data)


def _refused(server: str, wanted: Asked, answer: Any) -> NoReturn:
    """What an answer other than 200 means. What the service itself says is shown where it is one of ours."""
    said = _said(answer) if answer.status_code in (400, 404, 503) else None
    # A 404 of ours names what is missing; any other server's, or an older version's, names none.
    if answer.status_code in (400, 404) and wanted.missing is not None and said is not None and said[0] != "Not Found":
        raise NotThere(said[0], unclear=answer.status_code == 400)
    wrong = f"it answered {answer.status_code}"
    if said is not None and answer.status_code == 503:
        _none(server, wanted, f"{wrong}: {said[0]}", said[1])
    _none(server, wanted, wrong, _remedy(answer.status_code, wanted))


def _said(answer: Any) -> tuple[str, str] | None:
    """Error and remedy of an answer of this program; None: it is none."""
    try:
        body = json.loads(answer.read()[:_MOST_BYTES])
        error, remedy = body["error"], body["remedy"]
    except (ValueError, KeyError, TypeError):
        return None
    plain = isinstance(error, str) and isinstance(remedy, str) and error.isprintable() and remedy.isprintable()
    return (error[:_SHOWN], remedy[:_SHOWN]) if plain else None


def _none(server: str, wanted: Asked, wrong: str, remedy: str) -> NoReturn:
    raise TransientError(f"{server} {wanted.gave}: {wrong}", needed_for=wanted.needed_for, remedy=remedy)


def _remedy(status: int, wanted: Asked) -> str:
    if status in (401, 403):
        return "make a token with `reconciler token operator NAME --scope read`, and name its file"
    if status == 404:
        return f"name the address of the service itself, without a path; an older version has no {wanted.path}"
    if 300 <= status < 400:
        return "name the final address; redirects are not followed"
    return "try again; the controller's log has the cause"


def address_of(server: str) -> str:
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


def token_of(path: Path | None) -> str:
    """The token of a file, or without one that of RECONCILER_TOKEN. UsageError: there is none."""
    if path is None:
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise click.UsageError(
                f"--server wants a token: name its file with --token-file, or set {TOKEN}; "
                "on the controller's own machine leave --server out: its store is read, which asks for none"
            )
        where, hint = f"the variable {TOKEN}", TOKEN
    else:
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no token"
            raise click.BadParameter(f"{path} cannot be read ({why})", param_hint="--token-file") from None
        where, hint = str(path), "--token-file"
    if not token or not token.isprintable() or " " in token or not token.isascii():
        raise click.BadParameter(f"{where} holds no token; write it alone, on one line", param_hint=hint)
    return token
