"""Asks another process for a release's signature: a `ports.Signer` whose key this process cannot reach.

The command (as `reconciler signer --settings FILE`, or the same through sudo as another user) gets one line of JSON on
its standard input, `{"release": "v1.4.2", "commit": "…"}`, and nothing else: no home, no environment of ours. It
answers with the signature's bytes on standard output; status 1 is a refusal, 3 a system that did not answer, both with
one line on standard error.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from reconciler.ports import TerminalError, TransientError

SIGNATURE_LIMIT = 16 * 1024
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProcessSigner:
    """Runs `command` for every signature. `timeout_s` bounds it: it fetches, and hashes the whole image."""

    def __init__(self, command: Sequence[str], *, timeout_s: float = 1800.0) -> None:
        self._command, self._timeout_s = list(command), timeout_s

    def sign_release(self, release: str, commit: str) -> bytes:
        """Detached signature over the release's SHA256SUMS (port)."""
        purpose = f"signing {release}"
        request = json.dumps({"release": release, "commit": commit}).encode("ascii") + b"\n"
        try:
            done = subprocess.run(
                self._command,
                input=request,
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
                cwd="/",
                env={"PATH": _PATH, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise TransientError(
                f"the signer did not end within {self._timeout_s:g} s", needed_for=purpose, remedy="it is asked again"
            ) from None
        except OSError as error:
            raise TerminalError(
                f"the signer {self._command[0]!r} cannot be run ({error.strerror})",
                needed_for=purpose,
                remedy="correct the signer's command in the settings",
            ) from None
        if done.returncode == 0 and 0 < len(done.stdout) <= SIGNATURE_LIMIT:
            return done.stdout
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        said = "".join(letter if letter.isprintable() else " " for letter in lines[-1])[:600]
        refusal, said = said.startswith("error: "), said.removeprefix("error: ")
        # Anything else that ends with 1 (a traceback, sudo without the right) is no refusal, and may be mended there.
        if done.returncode == 1 and refusal:
            # Its own three slots, on one line (`ports.PortError`): what is wrong, for what, what to do.
            wrong, _, rest = said.partition("; needed for ")
            raise TerminalError(f"the signer refused: {wrong}", needed_for=purpose, remedy=rest.partition("; ")[2])
        if done.returncode == 3 and refusal:
            wrong, _, rest = said.partition("; needed for ")
            raise TransientError(f"the signer: {wrong}", needed_for=purpose, remedy=rest.partition("; ")[2])
        raise TransientError(
            f"the signer failed with {done.returncode} ({said})", needed_for=purpose, remedy="it is asked again"
        )
