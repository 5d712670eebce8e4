"""What tests on virtual machines share: the golden image of variant debian-12, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import golden


@pytest.fixture(scope="session")
def golden_image() -> Path:
    """The raw slot image. Never written to."""
    return golden.image()


@pytest.fixture(scope="session")
def golden_artifact() -> Path:
    """The artifact's folder. Never written to."""
    return golden.artifact()
