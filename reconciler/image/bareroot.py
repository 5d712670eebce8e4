"""The root file system that holds what a recipe adds and nothing else: no distribution, no packages, no privilege.

For the demo, and to try a recipe's scripts. The scripts run as the builder's user with an empty environment; what they
may read of the machine is for the system to limit. Pins are handed to setup.sh. Called by `image.builder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reconciler.image.job import Job
from reconciler.image.process import Ended, bound, run


class BareRoot:
    """The maker of builder type `files`."""

    kind = "files"
    keeps_owners = False
    vendor: str | None = None
    folders: tuple[Path, ...] = ()

    def tools(self) -> Mapping[str, str]:
        """Nothing but the recipe decides the root."""
        return {}

    def packages(self, job: Job) -> int:
        """An empty root."""
        job.root.mkdir(mode=0o755)
        job.root.chmod(0o755)
        return job.epoch

    def script(self, job: Job, stage: str, name: str, arguments: Sequence[str] = (), *, change: bool = True) -> Ended:
        """Run a script on the root as a folder."""
        told = {**job.variables(), "ROOT": str(job.root)}
        if job.spec.packages:
            told["PINS"] = str(job.pins)
        given = [str(job.root) if argument == "/" else argument for argument in arguments]
        return run(job.where, stage, [str(job.recipe / name), *given], told)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """As it is: every file is our own."""
        return bound(argv)
