"""`reconciler publish-review`: puts a review on its pull request, as one comment and one commit status. For workflows.

Knows nothing of what it posts: text and state come from a job that may not write, and are only text here. Called by the
action `fleet-pr`, with GitHub's own variables; what it cannot find there is named as an option.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import IO

import click

_CONTEXT = re.compile(r"[A-Za-z0-9._/-]{1,100}")
_SHA = re.compile(r"[0-9a-f]{40}")
_PATIENCE_S = 120.0


@click.command("publish-review", short_help="Post a review's comment and commit status; for workflows.")
@click.argument("text", type=click.File("r", encoding="utf-8", errors="replace"))
@click.option("--pull-request", type=click.IntRange(min=1), required=True, help="Number of the pull request.")
@click.option("--sha", help="Commit that gets the status, 40 digits: the head of the pull request's branch.")
@click.option(
    "--state",
    type=click.Choice(["success", "failure", "error", "pending"]),
    help="State of the status; none, no status.",
)
@click.option("--description", default="", help="The status' one line; cut at 140 characters.")
@click.option(
    "--context",
    default="reconciler/review",
    show_default=True,
    help="Name of the status, and of the comment: another name is another comment.",
)
@click.option("--url", help="Address behind the status, as that of the workflow's run.")
@click.option(
    "--repository", envvar="GITHUB_REPOSITORY", metavar="OWNER/NAME", required=True, help="[$GITHUB_REPOSITORY]"
)
@click.option("--api-url", envvar="GITHUB_API_URL", default="https://api.github.com", help="[$GITHUB_API_URL]")
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="A token that may comment and set statuses. [$GITHUB_TOKEN]"
)
def publish_review(
    text: IO[str],
    pull_request: int,
    sha: str | None,
    state: str | None,
    description: str,
    context: str,
    url: str | None,
    repository: str,
    api_url: str,
    token_file: Path | None,
) -> None:
    """Post TEXT (a file, or - for standard input) as the one comment of a review, and set a commit status.

    A comment that is there already is brought up to date, and nothing is sent that is there already. Prints the comment's
    address. Exit codes: 0 posted, 1 refused, 2 wrong usage, 3 the forge did not answer.
    """
    if (sha is None) != (state is None):
        raise click.UsageError("--sha and --state go together")
    if sha is not None and not _SHA.fullmatch(sha):
        raise click.BadParameter("write the commit's 40 hexadecimal digits", param_hint="--sha")
    if not _CONTEXT.fullmatch(context) or "--" in context:
        raise click.BadParameter("write letters, digits, '.', '_', '/' and single '-'", param_hint="--context")
    from reconciler.adapters.forge_github import GithubForge, token_from

    if token_file is not None:
        token = token_from(token_file)
    else:
        given = os.environ.get("GITHUB_TOKEN", "")
        if not given:
            raise click.UsageError("there is no token; set GITHUB_TOKEN, or give --token-file FILE")

        def token() -> str:
            return given

    forge = GithubForge(repository, token, api_url=api_url, patience_s=_PATIENCE_S)
    try:
        if sha is not None and state is not None:
            # First: a conversation that is locked takes no comment, and must not leave a stale status behind.
            forge.set_status(sha, context, state, description, url)
        click.echo(forge.comment(pull_request, f"<!-- {context} -->", text.read()))
    finally:
        forge.close()
