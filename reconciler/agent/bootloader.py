"""What the agent needs of a boot loader, as a Protocol.

Python 3.10, standard library only: runs as root on a device. Decides nothing and touches nothing. `grub.GrubLoader` keeps
it on a disk that `reconciler image disk` made; another boot loader takes its place by keeping the same promises, which
`tests/agent/test_grub.py` states:

1. Whatever returned is durable. A power cut in any call leaves a default that was good before the call, or that the call
   marks as good.
2. Only `mark_good` changes the default. An armed slot boots once; the try is spent before its kernel starts.
3. What cannot be done raises HardwareError and leaves the default as it is.
"""

from __future__ import annotations

from typing import Protocol

from reconciler.agent.hardware import BootFlags


class BootLoader(Protocol):
    """The flags that choose a slot. Every method may raise HardwareError."""

    def flags(self) -> BootFlags:
        """The flags as the boot loader would read them now."""

    def arm(self, slot: str) -> None:
        """Boot `slot` once, next time; the default stays."""

    def disarm(self) -> None:
        """Clear a trial boot."""

    def mark_good(self, slot: str) -> None:
        """Make `slot` the default, and clear the trial."""

    def mend(self, running: str | None = None) -> None:
        """Put right what a power cut left, so that every copy of the flags names the default that is in force. Nothing is
        written where all is well. `running` is a slot that was good and runs now: the default where no copy tells one.

        To be called before a slot is written: no copy may name a slot whose content is about to change, and nothing is worth
        writing that could not be armed. HardwareError: the flags cannot be written.
        """
