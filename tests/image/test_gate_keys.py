"""The image's own release keys: whether a device that fell back to it accepts the fleet's next release."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from reconciler.image.gate_keys import (
    ASSIGNMENT_FINGERPRINTS,
    ASSIGNMENT_RING,
    FINGERPRINTS,
    RING,
    judge,
    judge_assignment,
    read_keys,
)
from tests.support.gpg import Home, days_ago, make_home

pytestmark = pytest.mark.system


@dataclass(frozen=True)
class Keys:
    """Keys of every kind, in one home."""

    home: Home
    old: str
    new: str
    expired: str
    revoked: str
    by_subkey: str

    def ring(self, *fingerprints: str) -> bytes:
        return self.home.export(fingerprints)


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    with make_home() as home:
        made = Keys(
            home,
            home.generate("old"),
            home.generate("new"),
            home.generate("expired", expires="1d", at=days_ago(30)),
            home.generate("revoked"),
            home.generate("by subkey", signing_subkey=True),
        )
        home.revoke(made.revoked)
        yield made


def wrong(ring: bytes | None, fingerprints: str | None, allowed: list[str] | None) -> list[tuple[bytes, str]]:
    return list(judge(ring, None if fingerprints is None else fingerprints.encode(), allowed))


def test_one_key_in_common_with_the_fleet_is_enough(keys: Keys) -> None:
    ring = keys.ring(keys.old, keys.new)
    assert wrong(ring, f"{keys.old}\n{keys.new}\n", [keys.new]) == []
    assert wrong(ring, f"{keys.old.lower()}\n", [keys.old, keys.new]) == []
    assert wrong(keys.ring(keys.by_subkey), keys.by_subkey, [keys.by_subkey.lower()]) == []
    assert wrong(ring, f"{keys.old}\n", None) == []  # nobody said which keys may sign


def test_no_key_in_common_is_refused_and_names_what_is_allowed(keys: Keys) -> None:
    (one,) = wrong(keys.ring(keys.old), keys.old, [keys.new])
    assert one[0] == FINGERPRINTS and keys.new in one[1]
    (none,) = wrong(keys.ring(keys.old), keys.old, [])
    assert "it allows none" in none[1]
    # The key is in the ring, but the device would not accept it: only what release.fpr names counts.
    assert wrong(keys.ring(keys.old, keys.new), keys.old, [keys.new]) != []


def test_a_key_that_may_not_sign_any_more_is_none_in_common(keys: Keys) -> None:
    for bad, why in ((keys.expired, "has expired"), (keys.revoked, "is revoked")):
        (one,) = wrong(keys.ring(bad), bad, [bad])
        assert one[0] == RING and bad in one[1] and why in one[1]
        assert any(why in what for _, what in wrong(keys.ring(bad), bad, None))
        # Beside a good one it is no fault: that is how a key is rotated.
        assert wrong(keys.ring(bad, keys.new), f"{bad}\n{keys.new}\n", [bad, keys.new]) == []


def test_what_is_missing_is_named(keys: Keys) -> None:
    assert [path for path, _ in wrong(None, None, None)] == [RING, FINGERPRINTS]
    assert [path for path, _ in wrong(keys.ring(keys.old), None, None)] == [FINGERPRINTS]
    assert [path for path, _ in wrong(None, keys.old, None)] == [RING]
    (one,) = wrong(keys.ring(keys.old), f"{keys.old}\n{keys.new}\n", [keys.old])
    assert one == (FINGERPRINTS, f"{keys.new} is not in release.gpg as a primary key")


def test_the_key_of_assignments_may_come_with_the_enrolment_but_not_by_halves(keys: Keys) -> None:
    ring, named = keys.ring(keys.old), keys.old.encode()
    assert list(judge_assignment(None, None)) == [] == list(judge_assignment(ring, named))
    for given, path in (((ring, None), ASSIGNMENT_FINGERPRINTS), ((None, named), ASSIGNMENT_RING)):
        ((where, what),) = judge_assignment(*given)
        assert where == path and "the device would obey nobody" in what
    ((where, what),) = judge_assignment(ring, keys.new.encode())
    assert (where, what) == (ASSIGNMENT_FINGERPRINTS, f"{keys.new} is not in assignment.gpg as a primary key")
    ((where, what),) = judge_assignment(keys.ring(keys.expired), keys.expired.encode())
    assert where == ASSIGNMENT_RING and what.endswith("no other key here may sign the next assignment")
    assert [path for path, _ in judge_assignment(b"armour", named)] == [ASSIGNMENT_RING]


def test_a_secret_key_in_the_ring_is_refused(keys: Keys) -> None:
    secret = keys.home.run("--export-secret-keys", keys.old)
    assert (RING, "it holds a secret key") in wrong(secret, keys.old, [keys.old])
    assert (RING, "it holds a secret key") in wrong(keys.ring(keys.new) + secret, keys.old, [keys.old])


def test_what_gpgv_could_not_read_is_refused(keys: Keys) -> None:
    armoured = keys.home.run("--armor", "--export", keys.old)
    for ring in (armoured, b"", b"\0" * 40 + b"KBXf", b"\x99\x00\x00 no key"):
        assert [path for path, _ in wrong(ring, keys.old, [keys.old])] == [RING]


@pytest.mark.parametrize("text", ["", "\n", "0123", "not a fingerprint", "{old} # the first"])
def test_fingerprints_are_whole_and_nothing_else(text: str, keys: Keys) -> None:
    found = wrong(keys.ring(keys.old), text.format(old=keys.old), None)
    assert found and all(path == FINGERPRINTS for path, _ in found)


def test_keys_are_read_without_the_machines_own(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNUPGHOME", str(keys.home.path))
    (one,) = read_keys(keys.ring(keys.old))
    assert (one.fingerprint, one.secret, one.why_not) == (keys.old, False, None)
