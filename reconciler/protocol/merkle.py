"""A Merkle tree in the manner of RFC 6962: one signature over its root covers every leaf.

Python 3.10, standard library only: runs as root on a device. Pure. Leaves are hashed with a 0x00 prefix and nodes
with 0x01, so that a node cannot be passed off as a leaf. Building a tree over n leaves takes 2n hashes; a proof has
at most ⌈log2 n⌉ of them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

HASH_BYTES = 32
MAX_PROOF = 64


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of a leaf's bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True)
class Tree:
    """A tree by its levels, leaves first. An odd node at the end of a level moves up unchanged, which is RFC 6962's
    shape."""

    levels: tuple[tuple[bytes, ...], ...]

    @property
    def root(self) -> bytes:
        """The root's hash, 32 bytes."""
        return self.levels[-1][0]

    @property
    def count(self) -> int:
        """Number of leaves."""
        return len(self.levels[0])

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Siblings on the way from leaf `index` to the root, nearest first. IndexError: no such leaf."""
        if not 0 <= index < self.count:
            raise IndexError(f"leaf {index} of {self.count}")
        path: list[bytes] = []
        for level in self.levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                path.append(level[sibling])
            index >>= 1
        return tuple(path)


def build(leaves: Sequence[bytes]) -> Tree:
    """The tree over `leaves` in this order. ValueError: no leaves."""
    if not leaves:
        raise ValueError("a tree needs at least one leaf")
    level = tuple(leaf_hash(leaf) for leaf in leaves)
    levels = [level]
    while len(level) > 1:
        pairs = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = tuple([*pairs, level[-1]] if len(level) % 2 else pairs)
        levels.append(level)
    return Tree(tuple(levels))


def verify(leaf: bytes, index: int, count: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `leaf` is number `index` of the `count` leaves under `root` (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < count or len(proof) > MAX_PROOF or any(len(part) != HASH_BYTES for part in proof):
        return False
    position, last, found = index, count - 1, leaf_hash(leaf)
    for part in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = node_hash(part, found)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            found = node_hash(found, part)
        position >>= 1
        last >>= 1
    return last == 0 and hmac.compare_digest(found, root)
