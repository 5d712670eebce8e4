"""The public halves of the keys that sign, for whoever watches when they expire. Names the adapters that look into them.

Reads the keyring of the settings and asks gpg for the assignment key's public half; never a secret key. Called by `bootstrap`'s
chronicle, once an hour.
"""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.controller.settings import KeySettings
from reconciler.ports import PublicKey, TerminalError

_NEEDED_FOR = "knowing when the signing keys expire"


def signing_keys(keys: KeySettings) -> Sequence[tuple[str, PublicKey]]:
    """Each key with what it is for: `release` or `assignment`. TerminalError: one cannot be looked at."""
    from reconciler.adapters.gpg_hand import PersonalKey
    from reconciler.adapters.gpg_keys import GpgKeys

    gpg = GpgKeys()
    try:
        ring = keys.release_keyring.read_bytes()
    except OSError as error:
        raise TerminalError(
            f"cannot read {keys.release_keyring}: {error.strerror}",
            needed_for=_NEEDED_FOR,
            remedy="name the keyring in `keys.releaseKeyring`",
        ) from None
    allowed = {fingerprint.upper() for fingerprint in keys.releases}
    found = [("release", key) for key in gpg.keys(ring) if key.fingerprint in allowed]
    place = keys.assignment
    own = PersonalKey(place.fingerprint, place.home, needed_for=_NEEDED_FOR).public()
    return [*found, *(("assignment", key) for key in gpg.keys(own))]
