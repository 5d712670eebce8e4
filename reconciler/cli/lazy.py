"""A group of commands that are imported when they are called. Holds a table and finds in it; loads nothing by itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from reconciler.cli.guide import SECTIONS, attach

Commands = Mapping[str, tuple[str, str, str]]
"""Command → module below `reconciler.cli`, attribute, and one line of help, shown without loading the module."""


class LazyGroup(click.Group):
    """A click group over a table of commands. `path` is the words by which it is called, without the program's name."""

    def __init__(self, *args: Any, table: Commands, path: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table, self._path = table, path

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in alphabetical order."""
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        entry = self._table.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"reconciler.cli.{entry[0]}"), entry[1])
        assert isinstance(command, click.Command)
        attach(command, f"{self._path} {cmd_name}".strip())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with the nearest name where the command is unknown."""
        if args and not args[0].startswith("-") and args[0] not in self._table:
            import difflib

            near = difflib.get_close_matches(args[0], self._table, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" See `{ctx.command_path} --help`."
            raise click.UsageError(f"no such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names for the shell, from the table alone: click would import every command that may be meant, at each Tab."""
        names = [name for name in sorted(self._table) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=self._table[name][2]) for name in names]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the tables alone: the program's by what one wants, a group's by name."""
        sections = dict(SECTIONS) if not self._path else {}
        rest = sorted(set(self._table) - {name for names in sections.values() for name in names})
        for title, names in (*sections.items(), ("More" if sections else "Commands", rest)):
            rows = [(name, self._table[name][2]) for name in names if name in self._table]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
