"""How a device with the golden image puts its site configuration in force: the image's unit `edge-configure.service`.

Python 3.10, standard library only: runs as root on a device. Starts the unit and learns how it ended; what it does is the
image's (`/usr/local/lib/edge/configure`). Called by `seed.Seed.activate`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress

from reconciler.agent.hardware import HardwareError

UNIT = "edge-configure.service"
_ANSWER_S = 10.0
# As `/usr/local/lib/edge/configure` of the image says them.
MEANINGS = {
    1: "it failed by itself",
    10: "the seed is not one that cloud-init can read",
    11: "cloud-init failed",
    12: "a file of the site was not written",
    13: "a service does not run with it",
}


class UnitActivation:
    """`seed.Activation` by systemd. The unit goes on without the agent: whoever begins again joins it."""

    def __init__(self, unit: str = UNIT, systemctl: Sequence[str] = ("systemctl",)) -> None:
        self._unit, self._systemctl = unit, tuple(systemctl)
        self._child: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        with suppress(HardwareError):  # Nothing to reset, mostly; without it a unit that failed often would not start.
            self._ask("reset-failed", self._unit)
        try:
            self._child = subprocess.Popen(
                [*self._systemctl, "start", self._unit],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise HardwareError(f"{self._unit} cannot be started: {error.strerror}") from None

    def ended(self) -> int | None:
        if self._child is None:
            raise HardwareError(f"{self._unit} was never started")
        code = self._child.poll()
        if code is None:
            return None
        if code == 0:
            return 0
        # systemctl's own status only says that the job failed.
        answer = self._ask("show", "--property=ExecMainStatus", "--value", self._unit).strip()
        return int(answer) if answer.isdigit() and answer != "0" else -1

    def meaning(self, status: int) -> str:
        said = MEANINGS.get(status, "it was ended, or could not be started")
        return f"{said}; see `journalctl -u {self._unit}`"

    def _ask(self, *words: str) -> str:
        try:
            done = subprocess.run(
                [*self._systemctl, *words], capture_output=True, timeout=_ANSWER_S, check=True, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.SubprocessError):
            raise HardwareError(f"systemctl {words[0]} {self._unit} did not answer") from None
        return done.stdout.decode("utf-8", "replace")
