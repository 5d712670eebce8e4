"""`reconciler promote` and `reconciler rollback`: the two changes that a rollout is made of, as pull requests.

Which waves, and what is refused, is `reconciler.propose`'s to say; where the change goes, `cli.proposal`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reconciler.cli.names import releases
from reconciler.cli.proposal import Options, carry_out, proposing

if TYPE_CHECKING:
    from reconciler.adapters.git_clone import GitClone
    from reconciler.propose.base import Base, Change


@click.command(short_help="Propose that the next wave, or every wave, runs a release.")
@click.argument("release", shell_complete=releases)
@click.option("--wave", metavar="WAVE", help="The wave to raise. [the first that does not ask for RELEASE]")
@click.option("--all", "every", is_flag=True, help="Raise every wave: the gates pace them.")
@proposing
def promote(options: Options, release: str, wave: str | None, every: bool) -> None:
    """Propose that a wave runs RELEASE: v1.4.2 of the image, or video-ingest@2.8.0 of an app.

    The change is made on the remote's branch as it stands, checked as a whole, and pushed on a branch of its own; where a
    GitHub token is given, the pull request is opened too. The work tree is not touched.
    """
    from reconciler.propose.promote import promote as make

    if wave is not None and every:
        raise click.UsageError("--wave and --all exclude each other; give one of them")
    carry_out(options, lambda base, _sha, _clone: make(base, release, wave, every))


@click.command(short_help="Propose that waves go back to what they ran before.")
@click.argument("release", required=False, shell_complete=releases)
@click.option("--wave", metavar="WAVE", help="Take it back in this wave alone.")
@click.option("--all", "every", is_flag=True, help="Take it back in every wave that asks for it; so it is unless said.")
@click.option("--to", metavar="RELEASE", help="Release to go back to. [what each wave asked for before, as git tells]")
@click.option("--commit", metavar="SHA", help="Take back what this commit changed instead, as git revert does.")
@proposing
def rollback(
    options: Options, release: str | None, wave: str | None, every: bool, to: str | None, commit: str | None
) -> None:
    """Propose that the waves that ask for RELEASE (the one raised last, unless said) go back to what they asked for before.

    Going back takes the fast lane: no gates, no freezes, all waves at once. The history of the base branch tells what each
    wave asked for before.
    """
    if wave is not None and every:
        raise click.UsageError("--wave and --all exclude each other; give one of them")
    if commit is not None and (release or wave or every or to):
        raise click.UsageError("--commit takes back a whole commit; it goes with no RELEASE, --wave, --all or --to")

    def make(base: Base, sha: str, clone: GitClone | None) -> Change:
        from reconciler.propose.revert import revert_commit
        from reconciler.propose.rollback import Version
        from reconciler.propose.rollback import rollback as back

        if to is not None and clone is None:
            return back(base, (), release, wave, to)
        if clone is None:
            clone = options.clone()
            sha = clone.resolve("HEAD").sha
        if commit is not None:
            return revert_commit(clone, base, sha, commit)
        path, _ = base.single("Waves")
        history = [Version(one, data) for one, data in clone.versions(path, sha)]
        present = base.read(path)
        if not history or history[0].data != present:
            history.insert(0, Version("the work tree", present))
        return back(base, history, release, wave, to, complete=not clone.shallow)

    carry_out(options, make)
