"""JSON Schema as others judge by it: jsonschema and check-jsonschema, in this process. A process of its own for every look would
cost more than the look."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import pytest
from click.testing import CliRunner, Result


def jsonschema() -> Any:
    """The module `jsonschema`, without its check of the format `iri`: no schema here names it, and it makes grammars at import
    that cost each process more than a second."""
    return _imported("jsonschema")


def check_jsonschema(*arguments: str) -> Result:
    """What the command check-jsonschema answers: its exit code and output."""
    return CliRunner().invoke(_imported("check_jsonschema").main, arguments)


def _imported(name: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "rfc3987_syntax", None)
        return import_module(name)
