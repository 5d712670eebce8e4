"""Sizes as settings write them."""

from __future__ import annotations

import pytest

from reconciler.model.scalars import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("512 MiB", 512 << 20), ("1TiB", 1 << 40), ("1025KiB", 1025 << 10)]
)
def test_a_size_is_read_and_written(text: str, size: int) -> None:
    assert parse_size(text) == size and parse_size(format_size(size)) == size and parse_size(size) == size


@pytest.mark.parametrize("text", ["8", "8GB", "8G", "", "0GiB", "-1GiB", "1.5GiB", "8gib", "٨GiB", True, None])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size above zero; write it with its unit, as 512MiB or 8GiB"):
        parse_size(text)


def test_what_no_unit_shows_in_full_is_told_in_mebibytes() -> None:
    assert format_size((47 << 20) + 512) == "47.0MiB"
