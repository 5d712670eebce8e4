"""`reconciler pin`, `withdraw` and `pause`: what is set apart, banned or stopped, as pull requests."""

from __future__ import annotations

import click

from reconciler.cli.names import releases, sites
from reconciler.cli.proposal import Options, carry_out, proposing


@click.command(short_help="Propose that devices of a site run a release of their own.")
@click.argument("site", shell_complete=sites)
@click.argument("release", required=False, shell_complete=releases)
@click.option(
    "--device", "devices", metavar="DEVICE", multiple=True, help="A device to pin; all of the site unless said."
)
@click.option("--why", metavar="TEXT", help="Why; shown wherever the pin matters. Needed with RELEASE.")
@click.option("--remove", is_flag=True, help="End the site's pin.")
@proposing
def pin(
    options: Options, site: str, release: str | None, devices: tuple[str, ...], why: str | None, remove: bool
) -> None:
    """Propose that devices of SITE run RELEASE, apart from their wave; or, with --remove, that they follow it again."""
    from reconciler.propose.policy import pin as make
    from reconciler.propose.policy import unpin

    if remove:
        if release or devices or why:
            raise click.UsageError("--remove ends the whole pin; it goes with no RELEASE, --device or --why")
        carry_out(options, lambda base, _sha, _clone: unpin(base, site))
        return
    if release is None or why is None:
        raise click.UsageError("say what to pin to and why: reconciler pin SITE RELEASE --why TEXT; or --remove")
    carry_out(options, lambda base, _sha, _clone: make(base, site, release, tuple(dict.fromkeys(devices)), why))


@click.command(short_help="Propose that nothing moves to a release any more.")
@click.argument("release", shell_complete=releases)
@click.option("--why", metavar="TEXT", required=True, help="Why; shown wherever the ban holds something.")
@proposing
def withdraw(options: Options, release: str, why: str) -> None:
    """Propose to ban RELEASE of the image: nothing moves to it, nor back to it. Names who still asks for it."""
    from reconciler.propose.policy import withdraw as make

    carry_out(options, lambda base, _sha, _clone: make(base, release, why))


@click.command(short_help="Propose to stop the fleet, or a wave; or to let it go on.")
@click.option("--wave", metavar="WAVE", help="Stop this wave alone.")
@click.option("--off", is_flag=True, help="Let it go on.")
@proposing
def pause(options: Options, wave: str | None, off: bool) -> None:
    """Propose that nothing moves forward in the fleet, or in one wave. Going back is always possible."""
    from reconciler.propose.policy import pause as make

    carry_out(options, lambda base, _sha, _clone: make(base, wave, off))
