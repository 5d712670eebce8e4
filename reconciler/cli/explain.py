"""`reconciler explain NAME`: why a device, a site or a wave is where it is, from the same plan that the loop acts on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from reconciler.cli.inputs import input_options, read_inputs, write
from reconciler.cli.names import sites
from reconciler.cli.server import server_options

if TYPE_CHECKING:
    from reconciler.cli.explain_places import Found
    from reconciler.planner.explain import Explanation, UnknownName


@click.command()
@click.argument("name", metavar="DEVICE|SITE|WAVE", shell_complete=sites)
@click.option(
    "--kind",
    type=click.Choice(["device", "site", "wave"]),
    help="What NAME is, where a device, a site and a wave share it. [whichever has the name]",
)
@input_options
@server_options
@click.option(
    "--history/--no-history",
    default=True,
    show_default=True,
    help="Name the commit and the author behind what git asks for, where the fleet is in a git work tree.",
)
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
def explain(
    name: str,
    kind: str | None,
    fleet: Path | None,
    observed: Path | None,
    at: str | None,
    config: Path | None,
    server: str | None,
    token_file: Path | None,
    history: bool,
    output: str,
) -> None:
    """Say why a device, a site or a wave is, or is not, moving, what would change that and when, and who asked for it.

    The chain of reasons goes from the name down to the devices that keep a gate open, with instants. Exit codes: 0 fine, 1 the
    input is invalid or nothing has the name, 2 wrong usage, 3 a system that was needed did not answer.

    With --server the controller's service says it, from its last tick; who asked for it is known where the fleet repo is.
    """
    if server is not None:
        if any(value is not None for value in (fleet, observed, at, config)):
            raise click.UsageError(
                "--server says where to look; --fleet, --observed, --at and --config do too: give one"
            )
        _ask(server, token_file, name, kind, output)
        return
    if token_file is not None:
        raise click.UsageError("--token-file goes with --server")
    from reconciler.planner import Columns, Roster, decide
    from reconciler.planner.explain import AmbiguousName, UnknownName
    from reconciler.planner.explain import explain as make
    from reconciler.planner.windows import micros

    desired, snapshot, now = read_inputs(fleet, observed, at, config)
    roster = Roster(desired)
    state = decide(roster, Columns.bind(roster, snapshot), micros(now))
    try:
        said = make(state, name, kind, snapshot)  # type: ignore[arg-type]
    except UnknownName as error:
        click.echo(f"error: {error}{_near(error)}", err=True)
        raise SystemExit(1) from None
    except AmbiguousName as error:
        raise click.UsageError(str(error)) from None
    found = _places(said, fleet, config, desired.commit, history=history)
    signing = _awaited(config) if observed is None and _waits_for_an_image(said) else None
    ailing = _ailing(config, said) if observed is None and output == "text" else []
    write(_as_json(said, found, signing) if output == "json" else _as_text(said, found, signing, ailing))


def _ask(server: str, token_file: Path | None, name: str, kind: str | None, output: str) -> None:
    """What the service says. Its text is for people, the rest of its answer is the document that programs read."""
    from reconciler.cli.server import Asked, NotThere, ask_json

    query = {"kind": kind} if kind is not None else {}
    path = f"/v1/explain/{quote(name, safe='')}"
    wanted = Asked(path, f"explaining {name}", "explained nothing", query=query, missing=name)
    try:
        said = ask_json(server, token_file, wanted)
    except NotThere as error:
        if error.unclear:
            raise click.UsageError(str(error)) from None
        click.echo(f"error: {error}; `reconciler status --server {server}` shows the waves", err=True)
        raise SystemExit(1) from None
    lines = said.pop("text", [])
    if output == "json":
        write(json.dumps(said, indent=2, ensure_ascii=False) + "\n")
        return
    # What a device said is in it: nothing of that may steer the terminal.
    write("".join(f"{line if line.isprintable() else ascii(line)}\n" for line in map(str, lines)))


def _waits_for_an_image(said: Explanation) -> bool:
    from reconciler.model.plan import Reason

    return Reason.IMAGE_NOT_READY.value in json.dumps(said.to_dict({}))


def _awaited(config: Path | None) -> str | None:
    """What a person has to sign, with the command, as the loop recorded it; None where nobody is waited for."""
    from reconciler.controller.bootstrap import make_store
    from reconciler.controller.conditions import AWAITING_SIGNATURE
    from reconciler.controller.settings import load_settings

    store = make_store(load_settings(config or Path("reconciler.yaml")), create=False)
    try:
        return next((row.message for row in store.conditions() if row.reason == AWAITING_SIGNATURE), None)
    finally:
        store.close()


def _ailing(config: Path | None, said: Explanation) -> list[str]:
    """Checks that are not ok and that no plan heeds, as the service logs them."""
    from reconciler.controller.ailing import ailing_lines
    from reconciler.controller.bootstrap import make_store
    from reconciler.controller.settings import load_settings

    store = make_store(load_settings(config or Path("reconciler.yaml")), create=False)
    try:
        return ailing_lines(store, said)
    finally:
        store.close()


def _near(error: UnknownName) -> str:
    """The nearest names of all kinds that were looked through."""
    from reconciler.repo.near import nearest_name

    exact = [kind for kind, names in error.known.items() if error.name in names]
    if exact:
        return f"; it is the name of a {' and of a '.join(exact)}"
    near = [(kind, nearest_name(error.name, names)) for kind, names in error.known.items()]
    shown = [f"{kind} {name!r}" for kind, name in near if name is not None]
    return f"; did you mean {' or '.join(shown)}?" if shown else "; `reconciler status` or `plan` lists what there is"


def _places(said: Explanation, fleet: Path | None, config: Path | None, commit: str | None, *, history: bool) -> Found:
    """The lines behind the explanation. Of a folder, or of the commit in force in the controller's mirror."""
    from reconciler.cli.explain_places import find, folder_repo, mirror_repo

    asks = list(said.asks())
    if fleet is not None:
        repo = folder_repo(fleet, history=history)
    elif commit is not None:
        repo = mirror_repo(config or Path("reconciler.yaml"), commit, history=history)
    else:
        from reconciler.cli.explain_places import Found

        return Found(note="no commit is known")
    return find(repo, asks, said.authored())


def _as_text(said: Explanation, found: Found, signing: str | None, ailing: Sequence[str]) -> str:
    lines = [*said.lines(found.places), *ailing]
    if signing is not None:
        lines += ["", f"signing: {signing}"]
    if found.note is not None:
        lines += ["", f"no author is shown: {found.note}"]
    return "\n".join(lines) + "\n"


def _as_json(said: Explanation, found: Found, signing: str | None) -> str:
    shown: dict[str, Any] = said.to_dict(found.places)
    return json.dumps({**shown, "signing": signing, "historyNote": found.note}, indent=2, ensure_ascii=False) + "\n"
