"""Debian programs that some tests need: skipped visibly where they are missing, failed in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str, package: str | None = None) -> str:
    """Path of a program, or skip the test naming the package that holds it. In CI nothing may be skipped: fail."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        message = f"needs {program}: apt-get install {package or program}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path
