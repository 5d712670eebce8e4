"""What tests on virtual machines share: the golden image of variant debian-12, built once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_image() -> Path:
    """The raw slot image. Never written to."""
    return Path(os.environ["GOLDEN"])
