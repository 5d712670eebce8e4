"""What every command that changes a fleet repo does with its change: show it, commit it on a branch, push, open the pull request.

The change itself is made by `reconciler.propose`; this module decides where it goes by the options that all these commands share,
and ends with what happened and what to do next. It writes to the work tree only with `--write`, and to the base branch never.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from reconciler.adapters.forge_github import GithubForge
    from reconciler.adapters.git_clone import GitClone
    from reconciler.ports import PullRequest
    from reconciler.propose.base import Base, Change
    from reconciler.propose.publish import Proposal, Published
    from reconciler.repo.problem import Problem


@dataclass(frozen=True, slots=True)
class Options:
    """Where a change goes, as the command line says."""

    folder: Path
    remote: str
    base: str | None
    branch: str | None
    message: str | None
    dry_run: bool
    push: bool
    fetch: bool
    write: bool
    observed: Path | None
    token_file: Path | None
    api: str | None
    repository: str | None
    output: str
    request: bool = True

    @property
    def where(self) -> str:
        """What stands before a file's path in messages."""
        return "" if str(self.folder) == "." else f"{self.folder}/"

    def clone(self) -> GitClone:
        """The clone that the fleet folder is in. With `--write` the history that counts is that of the checked-out commit."""
        from reconciler.adapters.git_clone import GitClone

        fetch = self.fetch and not self.write
        local = self.write or not self.push or self.dry_run
        return GitClone(self.folder, remote=self.remote, base=self.base, fetch=fetch, local=local)


MakeWith = Callable[["Base", str, "GitClone | None"], "Change"]
"""The change, from a fleet repo at a commit (`HEAD` where it is the work tree), in a clone where there is one."""

_OPTIONS = (
    click.option("--fleet", type=click.Path(path_type=Path), metavar="DIR", help="The fleet repo's folder. [. or fleet]"),
    click.option("--remote", default="origin", show_default=True, help="The clone's remote that is pushed to."),
    click.option("--base", metavar="BRANCH", help="Branch that the change is for. [the remote's default branch]"),
    click.option("--branch", metavar="BRANCH", help="Branch to propose it on. [named after the change]"),
    click.option("-m", "--message", metavar="TEXT", help="Message of the commit. [what the change does]"),
    click.option("--dry-run", is_flag=True, help="Show the diff; write, commit and push nothing."),
    click.option("--no-push", is_flag=True, help="Make the branch in this clone alone."),
    click.option("--no-pull-request", is_flag=True, help="Push the branch, and open no pull request."),
    click.option("--no-fetch", is_flag=True, help="Start from what was fetched last."),
    click.option("--write", is_flag=True, help="Write into the work tree instead; commit nothing. Needs no git."),
    click.option("--observed", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
                 help="Observed snapshot, for what the pull request says its merge will do. [a settled fleet]"),
    click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE",
                 help="Token that may open pull requests. [environment GITHUB_TOKEN]"),
    click.option("--github-api", metavar="URL", help="Address of the GitHub API. [https://api.github.com]"),
    click.option("--repository", metavar="OWNER/NAME", help="Repository there. [that of the remote's address]"),
    click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True),
)  # fmt: skip
_SHARED = (
    "fleet", "remote", "base", "branch", "message", "dry_run", "no_push", "no_pull_request", "no_fetch", "write", "observed",
    "token_file", "github_api", "repository", "output",
)  # fmt: skip


def proposing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that all of these share, as one `Options` in its first argument."""

    @wraps(command)
    def called(**given: Any) -> None:
        own = {name: given.pop(name) for name in _SHARED}
        if own["write"] and (own["branch"] or own["message"]):
            raise click.UsageError("--write commits nothing, so it takes no --branch and no --message")
        options = Options(
            own["fleet"] or nearest(), own["remote"], own["base"], own["branch"], own["message"], own["dry_run"],
            not own["no_push"], not own["no_fetch"], own["write"], own["observed"], own["token_file"], own["github_api"],
            own["repository"], own["output"], not own["no_pull_request"],
        )  # fmt: skip
        command(options, **given)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called


def nearest() -> Path:
    """This folder if it is a fleet repo, or `fleet` in it, as for the other commands."""
    elsewhere = not Path("fleet.yaml").exists() and Path("fleet/fleet.yaml").exists()
    return Path("fleet") if elsewhere else Path()


@dataclass(slots=True)
class _Told:
    """What happened: for people as lines, for programs as a document."""

    change: Change
    diff: str
    warnings: Sequence[Problem]
    lines: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def show(self, output: str) -> None:
        from reconciler.repo.finding import one_line

        for problem in self.warnings:
            click.echo(one_line(str(problem)), err=True)
        if output == "json":
            document = {
                "title": self.change.title,
                "says": list(self.change.says),
                "moves": [{"what": move.what, "old": move.old, "new": move.new} for move in self.change.moves],
                "files": sorted(self.change.files),
                "diff": self.diff,
                "warnings": [str(problem) for problem in self.warnings],
                **self.facts,
                "next": [*self.change.hints, *self.next],
            }
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
            return
        click.echo(one_line(self.change.title))
        for line in self.change.told:
            click.echo(f"  {one_line(line)}")
        click.echo()
        for line in self.diff.split("\n"):
            click.echo("\t".join(map(one_line, line.split("\t"))))
        for line in self.lines:
            click.echo(line)
        following = [*self.change.hints, *self.next]
        if following:
            click.echo("next:")
            for line in following:
                click.echo(f"  {line}")


def carry_out(options: Options, make: MakeWith) -> None:
    """Make the change, and take it as far as the options say. InvalidInput, TerminalError, TransientError as its parts raise."""
    from reconciler.repo.problem import InvalidInput

    try:
        (_into_work_tree if options.write else _onto_branch)(options, make)
    except InvalidInput as invalid:
        click.echo(f"{invalid}\nnothing was written: with this the fleet repo would not be valid", err=True)
        raise SystemExit(1) from None


def _onto_branch(options: Options, make: MakeWith) -> None:
    from reconciler.propose.publish import prepare

    clone = options.clone()

    def made(base: Base, sha: str) -> Change:
        return make(base, sha, clone)

    proposal = prepare(clone, made, options.where)
    told = _Told(proposal.change, proposal.diff, proposal.warnings)
    told.facts["base"] = {"branch": clone.base_branch, "commit": proposal.base}
    if options.dry_run:
        told.lines.append("dry run: nothing was written, committed or pushed")
        told.next.append("leave --dry-run out, and it is proposed as a branch")
    else:
        _publish(options, clone, proposal, made, told)
    told.show(options.output)


def _into_work_tree(options: Options, make: MakeWith) -> None:
    from reconciler.propose.base import Base
    from reconciler.propose.publish import shown
    from reconciler.repo.folder import folder_entries
    from reconciler.repo.problem import InvalidInput

    files = folder_entries(options.folder, scenarios=True)
    if files.problems:
        raise InvalidInput(files.problems)
    base = Base(files.entries, files.read, options.where)
    base.must_be_fleet()
    change = make(base, "HEAD", None)
    warnings = base.warnings_after(change)
    told = _Told(change, shown(base, change, options.where), warnings)
    if options.dry_run:
        told.lines.append("dry run: nothing was written")
    else:
        _write(options.folder, change)
        written = ", ".join(f"{options.where}{path}" for path in sorted(change.files))
        told.lines.append(f"wrote {written}; nothing is committed")
        told.facts["written"] = sorted(change.files)
        told.next.append(
            f"reconciler validate --fleet {options.folder}, and commit it on a branch when it is as you want it"
        )
    told.show(options.output)


def _write(folder: Path, change: Change) -> None:
    from reconciler.adapters.durable import make_folder, os_errors, sync_folder, write_atomic

    for path, data in change.files.items():
        target = folder / path
        with os_errors(f"write {target}", needed_for="the change"):
            if data is None:
                target.unlink(missing_ok=True)
                sync_folder(target.parent)
                continue
            make_folder(target.parent)
            mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
            write_atomic(target, (data,), mode)


def _publish(
    options: Options,
    clone: GitClone,
    proposal: Proposal,
    made: Callable[[Base, str], Change],
    told: _Told,
) -> None:
    from reconciler.propose.publish import publish

    push = options.push and clone.remote is not None
    forge = _forge(options, clone) if push and options.request else None
    request = None
    try:

        def closed(name: str) -> bool:
            found = forge.pull_request(name) if forge is not None else None
            return found is not None and found.state != "open"

        published = publish(
            clone, proposal, made, branch=options.branch, push=push, message=options.message, closed=closed
        )  # fmt: skip
        if forge is not None:
            request = _requested(options, clone, proposal, published, forge)
    finally:
        if forge is not None:
            forge.close()
    _tell(options, clone, published, request, told)


def _requested(
    options: Options, clone: GitClone, proposal: Proposal, published: Published, forge: GithubForge
) -> PullRequest:
    """The pull request, once the branch is pushed. What fails here says that the branch stands: a repeat goes on from it."""
    from reconciler.ports import TerminalError, TransientError

    try:
        there = forge.pull_request(published.branch)
        if there is not None:
            return there
        body = _body(options, proposal, published)
        return forge.open_pull_request(published.branch, clone.base_branch, proposal.change.title, body)
    except (TransientError, TerminalError) as error:
        more = f"branch {published.branch} is pushed; run the same command again for its pull request"
        remedy = f"{error.remedy}; {more}" if error.remedy else more
        raise type(error)(error.wrong, needed_for=error.needed_for, remedy=remedy) from error


def _tell(options: Options, clone: GitClone, published: Published, request: PullRequest | None, told: _Told) -> None:
    branch, pushed = published.branch, options.push and clone.remote is not None
    told.facts |= {
        "branch": branch,
        "commit": published.commit,
        "pushed": pushed,
        "existed": published.existed,
        "pullRequest": None if request is None else {"number": request.number, "url": request.url},
    }
    where = f"on {clone.remote}" if pushed else "in this clone"
    did = "is there already" if published.existed else "pushed" if pushed else "made"
    untouched = f"{clone.base_branch} and your work tree are as they were"
    told.lines.append(f"branch {branch} {did} {where if did != 'pushed' else f'to {clone.remote}'}"
                      f" (commit {published.commit[:12]}); {untouched}")  # fmt: skip
    if published.earlier is not None:
        told.facts["earlier"] = True
        told.lines.append(
            "it was proposed before, maybe with other versions than the diff above says: "
            f"merge it, or delete {branch} for those of today"
        )
    full = f"{clone.remote}/{branch}" if pushed else branch
    fleet = f" --fleet {options.folder}" if str(options.folder) != "." else ""
    told.next.append(f"see what its merge will do: reconciler diff {clone.base_name} {full}{fleet}")
    if request is not None:
        told.lines.append(f"pull request {request.number}: {request.url}")
        told.next.append("have it reviewed, and merge it there")
    elif not pushed:
        if clone.remote is not None:
            told.next.append(f"push it: git push {clone.remote} {branch}")
        else:
            told.next.append(f"merge it: git switch {clone.base_branch} && git merge {branch}")
    else:
        told.next += _how_to_merge(options, clone, branch)


def _how_to_merge(options: Options, clone: GitClone, branch: str) -> list[str]:
    """What to do where no pull request was opened."""
    from reconciler.propose.publish import github_repository

    url = clone.url() or ""
    repository = github_repository(url)
    if repository is not None:
        compare = f"https://github.com/{repository}/compare/{clone.base_branch}...{branch}?expand=1"
        return [f"open the pull request: {compare} (with GITHUB_TOKEN or --token-file this is done for you)"]
    if url.startswith(("/", "file:", ".")):
        return [
            "merge it, when it is reviewed: "
            f"git switch {clone.base_branch} && git pull && git merge --no-ff {clone.remote}/{branch} && "
            f"git push {clone.remote} {clone.base_branch}"
        ]
    return [f"open a pull request from {branch} to {clone.base_branch} at {url}"]


def _body(options: Options, proposal: Proposal, published: Published) -> str:
    """The pull request's text: what was asked, and what its merge will do; where that cannot be told, the plain diff."""
    from reconciler.review.markdown import code, fenced, prose

    change = proposal.change
    # What stands in documents and commits was written by anybody: it is shown, and does nothing.
    if published.earlier is not None:
        said = [line.removeprefix("- ") for line in published.earlier.splitlines()[1:] if line.strip()]
        parts, diff = ["\n".join(f"- {prose(line)}" for line in said)], list[str]()
    else:
        parts = [prose(change.body), "\n".join(f"- {prose(line)}" for line in change.says)]
        if change.moves:
            rows = [f"| {code(move.what)} | {code(move.old or '')} | {code(move.new or '')} |" for move in change.moves]
            parts.append("\n".join(["| what | from | to |", "| --- | --- | --- |", *rows]))
        diff = list(fenced(proposal.diff.splitlines()))
    parts.append(_review(options, proposal.base, published.commit) or "\n".join(diff))
    return "\n\n".join(part for part in parts if part)


def _review(options: Options, base: str, commit: str) -> str | None:
    """What `reconciler diff --output markdown` says of a commit on its base, or None where it cannot say it."""
    from datetime import UTC, datetime

    from reconciler.adapters.git_trees import GitTrees
    from reconciler.ports import PortError
    from reconciler.repo.problem import InvalidInput
    from reconciler.review.make import Outside, make, observed_of
    from reconciler.review.markdown import as_markdown
    from reconciler.review.sides import from_revisions

    known = None
    if options.observed is not None:
        from reconciler.repo.snapshot import load_snapshot

        known = observed_of(load_snapshot(options.observed), options.observed.name)
    try:
        sides = from_revisions(GitTrees(options.folder), base, commit, options.folder)
        return as_markdown(make(sides, known, datetime.now(UTC).replace(microsecond=0), Outside()))
    except (PortError, InvalidInput) as error:
        click.echo(f"warning: the pull request shows the plain diff, since the review was not made: {error}", err=True)
        return None


def _forge(options: Options, clone: GitClone) -> GithubForge | None:
    """GitHub, where a token is given and the repository is known there; else nothing, and the output says what to do."""
    from reconciler.propose.publish import github_repository

    repository = options.repository or github_repository(clone.url())
    named = options.api is not None or options.repository is not None
    if options.token_file is None and not os.environ.get("GITHUB_TOKEN"):
        if named:
            raise click.UsageError("a pull request needs a token: set GITHUB_TOKEN, or give --token-file FILE")
        return None
    if repository is None:
        if named or options.token_file is not None:
            raise click.UsageError(
                "the remote is no address of GitHub; name the repository with --repository OWNER/NAME"
            )
        return None
    from reconciler.adapters.forge_github import GithubForge, token_from
    from reconciler.adapters.github_api import API_URL

    token = _from_environment if options.token_file is None else token_from(options.token_file)
    token()
    return GithubForge(repository, token, api_url=options.api or API_URL)


def _from_environment() -> str:
    return os.environ.get("GITHUB_TOKEN", "").strip()
