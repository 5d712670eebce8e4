"""The help suffices to work from: every command says what it needs and shows an example that its own parser takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from reconciler.cli.guide import GUIDES, SECTIONS
from reconciler.cli.main import COMMANDS, cli


def commands(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found, words = group.get_command(context, name), f"{path} {name}".strip()
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, words)
        else:
            yield words, found


ALL = dict(commands())
EXAMPLES = [example for _, examples in GUIDES.values() for example in examples]


def test_every_command_has_its_lines() -> None:
    assert set(GUIDES) == set(ALL), "give a new command its lines in reconciler/cli/guide.py"


def test_the_sections_name_commands_that_exist_once() -> None:
    named = [name for _, names in SECTIONS for name in names]
    assert len(set(named)) == len(named)
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize("words", sorted(ALL))
def test_a_commands_help_ends_with_what_it_needs_and_an_example(words: str) -> None:
    done = CliRunner().invoke(cli, [*words.split(), "--help"], prog_name="reconciler")
    assert done.exit_code == 0
    assert re.search(r"^  Needs: ", done.output, re.MULTILINE)
    assert re.search(rf"^  Examples?:\n(?:    .*\n)*    .*reconciler {words}\b", done.output, re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_one_that_the_command_takes(example: str) -> None:
    call = next(part for part in re.split(r" [|<>] ", example) if part.startswith("reconciler "))
    words = shlex.split(call)[1:]
    command: click.Command = cli
    # With its settings: a command keeps the help option that it is first asked for.
    context = click.Context(cli, info_name="reconciler", **cli.context_settings)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command, context = found, click.Context(found, parent=context)
    given, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left
    missing = [item.name for item in command.params if item.required and given.get(item.name or "") is None]
    # What the environment of a workflow says need not stand in an example.
    assert set(missing) <= {"repository"}
    for item in command.params:
        value = given.get(item.name or "")
        if isinstance(item.type, click.Choice) and isinstance(value, str):
            assert value in item.type.choices


def test_the_help_of_all_begins_with_where_to_begin_and_names_every_command() -> None:
    done = CliRunner().invoke(cli, ["--help"], prog_name="reconciler")
    assert "Where to begin:" in done.output
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", done.output, re.MULTILINE), name
