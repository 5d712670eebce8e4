"""Files of at most 500 lines, functions under 70: what is longer is two things."""

from __future__ import annotations

import ast

from tests.house.tree import ROOT, parsed, python

MOST_LINES = 500
FUNCTION_LINES = 70
ALL = (*python(), *python("tests"), *python(".ci"))


def test_modules_are_short() -> None:
    counted = ((path, (ROOT / path).read_text(encoding="utf-8").count("\n")) for path in ALL)
    long = [f"{path} has {lines} lines" for path, lines in counted if lines > MOST_LINES]
    assert not long, f"{MOST_LINES} lines at most; split by what is decided:\n" + "\n".join(long)


def test_every_module_says_what_it_is() -> None:
    silent = [str(path) for path in ALL if parsed(path).body and not ast.get_docstring(parsed(path))]
    assert not silent, "say in a docstring what it decides and who calls it:\n" + "\n".join(silent)


def test_functions_are_short() -> None:
    long = [
        f"{path}:{node.lineno}: {node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
        for path in ALL
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 >= FUNCTION_LINES
    ]
    assert not long, f"under {FUNCTION_LINES} lines:\n" + "\n".join(long)


def test_what_is_public_says_what_it_is() -> None:
    """Public classes and functions of every module have docstrings."""
    silent = [
        f"{path}:{node.lineno}: {node.name}"
        for path in python()
        for node in parsed(path).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent, "\n".join(silent)
