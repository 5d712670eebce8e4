"""The tree and the bundle: every leaf proves itself, and nothing else proves anything."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.protocol import merkle
from reconciler.protocol.bundle import Bundle, Root, open_bundle, seal
from reconciler.protocol.canonical import Malformed, dump
from reconciler.protocol.signature import Refused
from tests.support.gpg import Home, make_home

NOW = datetime(2026, 1, 15, tzinfo=UTC)


def _reference(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + _reference(leaves[:k]) + _reference(leaves[k:])).digest()


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=70))
def test_the_root_is_rfc_6962s_and_every_leaf_proves_itself(leaves: list[bytes]) -> None:
    tree = merkle.build(leaves)
    assert tree.root == _reference(leaves)
    for index, leaf in enumerate(leaves):
        assert merkle.verify(leaf, index, len(leaves), tree.proof(index), tree.root)


@given(st.integers(1, 40), st.data())
def test_anything_changed_proves_nothing(count: int, data: st.DataObject) -> None:
    leaves = [str(number).encode() for number in range(count)]
    tree = merkle.build(leaves)
    index = data.draw(st.integers(0, count - 1))
    proof = tree.proof(index)
    assert not merkle.verify(b"other", index, count, proof, tree.root)
    assert not merkle.verify(leaves[index], index, count, (*proof, b"\0" * 32), tree.root)
    assert not merkle.verify(leaves[index], index, count, proof, b"\0" * 32)
    other = data.draw(st.integers(-2, count + 2))
    if other != index:
        assert not merkle.verify(leaves[index], other, count, proof, tree.root)
    if proof:
        assert not merkle.verify(leaves[index], index, count, proof[:-1], tree.root)
        assert not merkle.verify(leaves[index], index, count, (proof[0][:-1], *proof[1:]), tree.root)
        flipped = bytes([proof[0][0] ^ 1]) + proof[0][1:]
        assert not merkle.verify(leaves[index], index, count, (flipped, *proof[1:]), tree.root)


def test_a_node_cannot_pass_for_a_leaf() -> None:
    tree = merkle.build([b"a", b"b", b"c", b"d"])
    node = tree.levels[0][0] + tree.levels[0][1]
    assert not merkle.verify(node, 0, 2, (tree.levels[1][1],), tree.root)


def test_bounds_of_the_tree() -> None:
    with pytest.raises(ValueError, match="at least one"):
        merkle.build([])
    with pytest.raises(IndexError):
        merkle.build([b"a"]).proof(1)
    assert not merkle.verify(b"a", 0, 1, [b"\0" * 32] * 65, merkle.build([b"a"]).root)


def test_a_tree_over_many_devices_costs_two_hashes_each() -> None:
    leaves = [b"%d" % number for number in range(20_000)]
    start = time.process_time()
    for leaf in leaves * 2:
        hashlib.sha256(b"\x00" + leaf).digest()
    hashing = time.process_time() - start
    start = time.process_time()
    tree = merkle.build(leaves)
    assert time.process_time() - start < 20 * hashing + 0.5
    assert sum(len(level) for level in tree.levels) < 2 * len(leaves) + 20


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with make_home() as made:
        yield made


def test_one_signature_serves_every_device_of_a_tick(home: Home) -> None:
    key = home.generate("Assign <assign@example>", at=datetime(2020, 1, 1, tzinfo=UTC))
    calls: list[bytes] = []

    def sign(data: bytes) -> bytes:
        calls.append(data)
        return home.sign_detached(data, key, at=NOW)

    documents = [b"one", b"two", b"three"]
    bundles = seal(documents, 7, NOW, sign)
    assert len(calls) == 1
    ring = home.export([key])
    for document, bundle in zip(documents, bundles, strict=True):
        assert Bundle.from_dict(bundle.to_dict()) == bundle
        opened, root = open_bundle(bundle, ring, [key], NOW)
        assert (opened, root.epoch, root.count, root.issued_at) == (document, 7, 3, NOW)
    swapped = replace(bundles[0], document=b"two")
    with pytest.raises(Refused, match="proof-invalid"):
        open_bundle(swapped, ring, [key], NOW)
    with pytest.raises(Refused, match="signature-foreign"):
        open_bundle(bundles[0], ring, ["0" * 40], NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "assignment"},
        {"protocol": 2},
        {"root": "AB" * 32},
        {"root": "ab" * 31},
        {"count": 0},
        {"epoch": -1},
        {"issuedAt": "now"},
    ],
)
def test_root_documents_that_are_not_taken(change: dict[str, object]) -> None:
    good = {"protocol": 1, "type": "assignment-root", "root": "ab" * 32, "count": 1, "epoch": 1}
    good["issuedAt"] = "2026-01-15T00:00:00Z"
    assert Root.from_bytes(dump(good)).to_bytes() == dump(good)
    with pytest.raises(Malformed):
        Root.from_bytes(dump({**good, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"document": 5},
        {"document": "!!!"},
        {"document": None},
        {"document": base64.b64encode(b"x" * 70_000).decode()},
        {"index": -1},
        {"count": 0},
        {"proof": [base64.b64encode(b"x" * 33).decode()]},
        {"proof": ["QQ=="] * 65},
        {"signature": base64.b64encode(b"x" * 17_000).decode()},
    ],
)
def test_bundles_that_are_not_taken(change: dict[str, object]) -> None:
    good = Bundle(b"d", 0, 1, (b"\0" * 32,), b"r", b"s").to_dict()
    assert Bundle.from_dict(good)
    with pytest.raises(Malformed):
        Bundle.from_dict({**good, **change})
