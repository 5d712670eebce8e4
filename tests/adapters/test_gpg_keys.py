"""Keyrings looked into with the real gpg: expiry of primary and signing keys, revocation, and what is no keyring."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.adapters.gpg_keys import GpgKeys
from reconciler.ports import TerminalError
from tests.support.gpg import Home, days_ago, make_home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with make_home() as made:
        yield made


def test_expiry_is_that_of_the_first_to_end(home: Home) -> None:
    at = days_ago(1)
    plain = home.generate("Plain <p@example>")
    soon = home.generate("Soon <s@example>", expires="10d", at=at)
    split = home.generate("Split <x@example>", expires="30d", at=at, signing_subkey=True)
    home.run("--quick-set-expire", split, "never")
    keys = {key.fingerprint: key for key in GpgKeys().keys(home.export([plain, soon, split]))}
    assert list(keys) == [plain, soon, split]
    assert (keys[plain].expires_at, keys[plain].user, keys[plain].revoked) == (None, "Plain <p@example>", False)
    # The primary key never expires; its only key that signs does.
    for name, days in ((soon, 10), (split, 30)):
        expires = keys[name].expires_at
        assert expires is not None
        assert abs(expires - (at + timedelta(days=days))) < timedelta(minutes=2)


def test_a_revoked_key_is_revoked(home: Home) -> None:
    gone = home.generate("Gone <g@example>")
    home.revoke(gone)
    (key,) = GpgKeys().keys(home.export([gone]))
    assert key.revoked


def test_an_armoured_keyring_is_read_too(home: Home) -> None:
    name = home.generate("Armour <a@example>", expires="5d")
    (key,) = GpgKeys().keys(home.run("--armor", "--export", name))
    assert key.expires_at is not None and key.expires_at > datetime.now(UTC)


@pytest.mark.parametrize("data", [b"", b"no keyring", b"-----BEGIN PGP SIGNATURE-----\n"])
def test_what_is_no_keyring(data: bytes) -> None:
    with pytest.raises(TerminalError, match="finds no public key"):
        GpgKeys().keys(data)


def test_without_gpg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(TerminalError, match="gpg cannot be run"):
        GpgKeys().keys(b"x")
