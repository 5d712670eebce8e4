"""All rules of the sysprep gate: what an image must not hold, why, and what to do about it.

Data, and which rules look at a path. `docs/reference/image-check.md` is made from this table. Opening the image and
walking it is `image.gate`; finding secrets in bytes is `image.gate_secrets`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reconciler.image.gate_look import Look, Rule, glob
from reconciler.image.gate_site import SITE
from reconciler.image.gate_traces import TRACES

# Rules that look at more than one file's name and text: `image.gate_secrets`, `image.gate_keys`, `image.gate` find them.
FORMS: tuple[Rule, ...] = (
    Rule(
        "private-key",
        "private keys by their form, in any file that no package ships: PEM, OpenSSH, PGP, DER, WireGuard, age, JWK, in base64 too",
        "a key in an image is on every device, and in the store, for as long as any of them lives",
        "remove it, and have the image rebuilt without its ever being there; a key that was published must be replaced",
    ),
    Rule(
        "aws-key",
        "AWS access key ids, secret keys and session tokens",
        "a device has its own identity from its enrolment; no cloud credential is in the image",
        "remove it, and revoke the key if the image was published",
    ),
    Rule(
        "psk",
        "pre-shared keys of IPsec, WireGuard, OpenVPN and Wi-Fi",
        "whoever has one device could join every site's network",
        "remove it; a site's secrets come from the secret store with its seed",
    ),
    Rule(
        "registry-auth",
        "logins of container registries (Docker's config.json)",
        "a device gets a token that lives for minutes; one in the image would live for years",
        "docker logout before sysprep, or name a credential helper (`credHelpers`), which keeps no secret in the file",
    ),
    Rule(
        "token",
        "tokens of well-known services, by their form",
        "whoever gets one device, or one image, has them",
        "remove it, and revoke the token if the image was published",
    ),
    Rule(
        "setuid",
        "programs with set-uid or set-gid, or with capabilities, that no package ships",
        "they run with another's rights, and no package's update will ever mend them",
        "remove the bit in setup.sh, or ship the program as a package",
    ),
    Rule(
        "world-writable",
        "files that anybody may write, folders that are so without the sticky bit, and password files that anybody may read",
        "any program on the device could change what another one runs or reads",
        "chmod o-w in setup.sh (chmod +t for a folder that is shared; chmod 640 for /etc/shadow)",
    ),
    Rule(
        "device-node",
        "device nodes outside /dev",
        "whoever may open one reads the disk past every permission",
        "remove it in setup.sh",
    ),
    Rule(
        "release-keys",
        "an image whose own release keys (/etc/edge/keys/release.gpg and release.fpr) cannot verify the fleet's next release",
        "a device that fell back to this image has only these keys to verify the next release with; without one it is stuck",
        "put them into the recipe's rootfs/etc/edge/keys: release.gpg (gpg --export), release.fpr (a fingerprint a line)",
    ),
    Rule(
        "assignment-keys",
        "an image with one of /etc/edge/keys/assignment.gpg and assignment.fpr by which no assignment can be verified; "
        "a device whose image has neither may have been given them at enrolment",
        "a device looks there first and nowhere else then: it would report, and obey nobody",
        "put both into the recipe's rootfs/etc/edge/keys: assignment.gpg (gpg --export), assignment.fpr (a fingerprint a line)",
    ),
    Rule(
        "unread",
        "packed data that could not be looked into whole: more than 1 GiB unpacked, packed more than three times over, more than "
        "100 000 members, or minutes of work",
        "the gate passes nothing that it did not see",
        "unpack it in setup.sh, or ship it as a package",
    ),
    Rule(
        "artifact",
        "an artifact whose SHA256SUMS, manifest.json or chunk index does not fit the files beside it",
        "a device would refuse it, after it has fetched it",
        "build the release again; an artifact is never mended",
    ),
    Rule(
        "residue",
        "bytes that belong to no file: in free blocks and inodes, behind the end of a file, before or behind the file system",
        "what was deleted from a file system is still in it, for everybody who reads the image",
        "make the image from a folder (mke2fs -d), not by deleting from a mounted one",
    ),
    Rule(
        "file-system",
        "a file system with errors, or one that was not unmounted",
        "it would be repaired or replayed on the device, and its bytes would no longer be those of its digest",
        "make it again; e2fsck -fn FILE shows the errors",
    ),
)
RULES: tuple[Rule, ...] = (*TRACES, *SITE, *FORMS)
BY_NAME = {rule.name: rule for rule in RULES}


def looks_at(path: bytes) -> Iterator[tuple[Rule, Look]]:
    """The rules that look at a path."""
    if _ANY.fullmatch(path) is None:
        return
    for rule, look, compiled in _COMPILED:
        if compiled.fullmatch(path) is not None:
            yield rule, look


_COMPILED = [
    (rule, look, re.compile("|".join(glob(path) for path in look.paths).encode(), re.DOTALL))
    for rule in RULES
    for look in rule.looks
]
# Most paths are none of ours: one look at all globs at once.
_ANY = re.compile(
    "|".join(sorted({glob(path) for rule in RULES for look in rule.looks for path in look.paths})).encode(), re.DOTALL
)
