"""`reconciler monitoring`: prints the alert rules and the dashboard that come with the program. Reads nothing else."""

from __future__ import annotations

import click


@click.group(short_help="Print alert rules for Prometheus and a dashboard for Grafana.")
def monitoring() -> None:
    """Print what a monitoring system is given beside the metrics."""


@monitoring.command(short_help="Print the alert rules, for Prometheus.")
@click.option(
    "--runbook",
    metavar="URL",
    default=None,
    help="Where your people read the page Recover, such as the book's how-to/recover.html: what alerts link to.",
)
def alerts(runbook: str | None) -> None:
    """Print the alert rules (YAML), for `rule_files` of Prometheus. They expect that the scrape job is called `reconciler`."""
    from reconciler.server import monitoring as given

    if runbook is not None and not _plain(runbook):
        raise click.BadParameter(
            "is not an address: http:// or https://, no spaces, quotes or #", param_hint="--runbook"
        )
    click.echo(given.alerts(given.PAGE if runbook is None else runbook), nl=False)


@monitoring.command(short_help="Print the dashboard, for Grafana.")
def grafana() -> None:
    """Print the dashboard (JSON), as Grafana imports or provisions it. It asks for the data source when it is opened."""
    from reconciler.server import monitoring as given

    click.echo(given.dashboard(), nl=False)


def _plain(address: str) -> bool:
    """Whether an address stays one word in the rules, to which an anchor can be added."""
    word = address.isascii() and address.isprintable() and not any(c in " \"'#{}" for c in address)
    return word and address.startswith(("http://", "https://"))
