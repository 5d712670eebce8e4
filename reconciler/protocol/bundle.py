"""An assignment with the proof that the reconciler issued it: leaf, Merkle path, signed root.

Python 3.10, standard library only: runs as root on a device. The signed bytes are a small root document (root hash,
count, epoch, instant): one signature serves every device of a tick. `open_bundle` proves origin alone; whether the
assignment is for this device, new enough and not expired is decided by who opens it. Source: design, section 5.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reconciler.protocol import PROTOCOL, merkle
from reconciler.protocol.assignment import MAX_ASSIGNMENT_BYTES
from reconciler.protocol.canonical import MAX_INT, Fields, Malformed, dump, format_instant, load_canonical
from reconciler.protocol.signature import MAX_SIGNATURE_BYTES, Refused, verify_detached

MAX_ROOT_BYTES = 1024
MAX_BUNDLE_BYTES = 160 * 1024


@dataclass(frozen=True)
class Root:
    """What is signed: the root hash over `count` assignments that one tick issued under `epoch`."""

    root: bytes
    count: int
    epoch: int
    issued_at: datetime

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return dump(
            {
                "protocol": PROTOCOL,
                "type": "assignment-root",
                "root": self.root.hex(),
                "count": self.count,
                "epoch": self.epoch,
                "issuedAt": format_instant(self.issued_at),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Root:
        """Parse bytes of unknown origin. Raises Malformed."""
        fields = Fields(load_canonical(data, MAX_ROOT_BYTES, "root document"), "root document")
        fields.word("type", ("assignment-root",))
        if fields.whole("protocol", 1) != PROTOCOL:
            raise Malformed(f"root document: `protocol` is not {PROTOCOL}")
        text = fields.text("root", 64)
        if len(text) != 64 or any(c not in "0123456789abcdef" for c in text):
            raise fields.bad("root", "64 lower-case hexadecimal digits")
        return cls(bytes.fromhex(text), fields.whole("count", 1), fields.whole("epoch"), fields.instant("issuedAt"))


@dataclass(frozen=True)
class Bundle:
    """What a device receives: its assignment (`document`), the leaf's place and path, the root document and its
    signature."""

    document: bytes
    index: int
    count: int
    proof: tuple[bytes, ...]
    root_document: bytes
    signature: bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON: bytes in base64."""
        return {
            "document": _encode(self.document),
            "index": self.index,
            "count": self.count,
            "proof": [_encode(part) for part in self.proof],
            "root": _encode(self.root_document),
            "signature": _encode(self.signature),
        }

    @classmethod
    def from_dict(cls, value: Any) -> Bundle:
        """Parse an untrusted JSON value. Raises Malformed."""
        fields = Fields(value, "bundle")
        proof = fields.items("proof", merkle.MAX_PROOF, missing_ok=False)
        return cls(
            document=_decode(fields.value.get("document"), MAX_ASSIGNMENT_BYTES, "document"),
            index=fields.whole("index"),
            count=fields.whole("count", 1, MAX_INT),
            proof=tuple(_decode(part, merkle.HASH_BYTES, "proof") for part in proof),
            root_document=_decode(fields.value.get("root"), MAX_ROOT_BYTES, "root"),
            signature=_decode(fields.value.get("signature"), MAX_SIGNATURE_BYTES, "signature"),
        )


def seal(documents: Sequence[bytes], epoch: int, issued_at: datetime, sign: Callable[[bytes], bytes]) -> list[Bundle]:
    """Bundles for a tick's assignments, in their order, under one signature (`sign(root document) -> detached
    signature`)."""
    tree = merkle.build(documents)
    root = Root(tree.root, tree.count, epoch, issued_at).to_bytes()
    signature = sign(root)
    return [
        Bundle(document, index, tree.count, tree.proof(index), root, signature)
        for index, document in enumerate(documents)
    ]


def open_bundle(
    bundle: Bundle, keyring: bytes | Path, allowed_fingerprints: Collection[str], now: datetime
) -> tuple[bytes, Root]:
    """Prove that an allowed key signed the root over this document; returns document and root. Raises Refused."""
    root = prove(bundle, lambda data, signature: verify_detached(data, signature, keyring, allowed_fingerprints, now))
    return bundle.document, root


def prove(bundle: Bundle, verify: Callable[[bytes, bytes], object]) -> Root:
    """As `open_bundle`, with `verify(data, signature)`, which raises Refused. The signature is judged before anything
    is read."""
    verify(bundle.root_document, bundle.signature)
    try:
        root = Root.from_bytes(bundle.root_document)
    except Malformed as error:
        raise Refused("root-malformed", error.reason) from None
    if bundle.count != root.count:
        raise Refused("proof-invalid", f"the bundle speaks of {bundle.count} assignments, the root of {root.count}")
    if not merkle.verify(bundle.document, bundle.index, root.count, bundle.proof, root.root):
        raise Refused("proof-invalid", "the assignment is not under the signed root")
    return root


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(value: Any, limit: int, what: str) -> bytes:
    if not isinstance(value, str) or len(value) > (limit + 2) // 3 * 4:
        raise Malformed(f"bundle: `{what}` is not base64 of at most {limit} bytes")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"bundle: `{what}` is not base64") from None
    if len(data) > limit:
        raise Malformed(f"bundle: `{what}` has more than {limit} bytes")
    return data
