"""The command that a person runs where the loop waits for one: signing a release with a key that no server holds. Pure.

Made of the settings alone, so that it works on any machine that reaches the image store and the fleet repo. Handed to
`execute` by `bootstrap`; shown by the condition `SigningReady`, by `status` and by `explain`.
"""

from __future__ import annotations

import shlex

from reconciler.controller import settings as s


def signing_command(settings: s.Settings, release: str, commit: str) -> str:
    """What a key holder runs, on any machine that reaches the image store and the fleet repo, to sign a release."""
    place, git, signer = settings.images, settings.git, settings.keys.signer
    asked = signer.fingerprint if isinstance(signer, s.OfflineSigner) else None
    argv = ["reconciler", "image", "sign", release, "--commit", commit, "--key", asked or settings.keys.releases[0]]
    if isinstance(place, s.S3Place):
        argv += ["--store", place.url]
        argv += ["--region", place.region] if place.region else []
        argv += ["--endpoint", place.endpoint] if place.endpoint else []
    else:
        argv += ["--store", str(place.path)]
    argv += ["--git", git.url]
    argv += ["--branch", git.branch] if git.branch != "main" else []
    return shlex.join(argv)
