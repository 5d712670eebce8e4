"""`ports.Forge` over GitHub's REST API: pull requests, the one comment, statuses, deployments.

Every operation looks before it writes, so that a repeat after a kill or a lost answer makes nothing twice: one pull request
a branch for ever (open, closed or merged), one comment a marker, one deployment a commit and environment, and no status or
deployment state that says again what is there. Endpoints: GitHub REST API, "Pulls", "Issue comments", "Commit statuses",
"Deployments". Transport, limits and errors: `github_api`. Called by the controller's herald and by the commands that propose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reconciler.adapters.github_api import API_URL, GithubApi, NotFound, Refused, odd_answer
from reconciler.adapters.github_text import MAX_BODY, MAX_TITLE, fit, one_line
from reconciler.ports import PullRequest, TerminalError

_SHA = re.compile(r"^[0-9a-f]{40}$")
_STATES = ("error", "failure", "pending", "success")
_DEPLOYMENT_STATES = ("error", "failure", "inactive", "in_progress", "queued", "success")
_TASK = "rollout"


def token_from(path: Path) -> Callable[[], str]:
    """The token in a file, read each time, so that a renewed one counts. TerminalError: unreadable (never its content)."""

    def read() -> str:
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a token"
            raise TerminalError(
                f"cannot read the forge's token {path}: {reason}",
                needed_for="pull requests and statuses",
                remedy="write the token into it, mode 0600, readable for this user",
            ) from None

    return read


class GithubForge:
    """`ports.Forge` for one repository (`owner/name`). Safe from any thread.

    `token` is asked before each request; `login` is who comments by it (asked of the API unless said). `api` is for tests.
    """

    def __init__(
        self,
        repository: str,
        token: Callable[[], str],
        *,
        api_url: str = API_URL,
        login: str | None = None,
        patience_s: float = 10,
        api: GithubApi | None = None,
    ) -> None:
        self._api = api or GithubApi(repository, token, url=api_url, patience_s=patience_s)
        self._owner = self._api.repository.partition("/")[0]
        self._login, self._asked = login, login is not None

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    # ------------------------------------------------ pull requests

    def pull_request(self, branch: str) -> PullRequest | None:
        """The newest pull request from `branch` of this repository, whatever its state; None where there never was one."""
        return self._api.patiently(lambda: self._newest(branch))

    def pull_requests(self) -> Sequence[PullRequest]:
        """All that are open, by number. The branch of a fork is `OWNER:BRANCH`."""

        def read() -> list[PullRequest]:
            found = self._api.items(
                "pulls", "list the open pull requests", state="open", sort="created", direction="asc"
            )
            return sorted((_pull_request(item) for item in found), key=lambda each: each.number)

        return self._api.patiently(read)

    def open_pull_request(self, branch: str, base: str, title: str, body: str) -> PullRequest:
        """Open one, or return the newest that was ever opened from `branch`: never a second.

        TerminalError: no such branch, or nothing between it and `base`. A longer body is cut.
        """
        doing = f"open a pull request from {branch}"
        wanted = {"title": one_line(title, MAX_TITLE), "head": branch, "base": base, "body": fit(body)}

        def make() -> PullRequest:
            there = self._newest(branch)
            if there is not None:
                return there
            try:
                return _pull_request(self._api.send("POST", "pulls", doing, wanted))
            except Refused:
                # Somebody else was faster, or our own lost answer was a success.
                there = self._newest(branch)
                if there is None:
                    raise
                return there

        return self._api.patiently(make)

    def _newest(self, branch: str) -> PullRequest | None:
        query = {"head": f"{self._owner}:{branch}", "state": "all", "sort": "created", "direction": "desc"}
        for item in self._api.items("pulls", f"look for a pull request from {branch}", **query):
            found = _pull_request(item)
            # The owner may have forks of the same owner, and an unknown branch's filter is none in some versions.
            if found.branch == branch:
                return found
        return None

    # ------------------------------------------------ the comment

    def comment(self, number: int, marker: str, body: str) -> str:
        """The one comment of ours that begins with `marker`, made or brought up to date; its address. A longer one is cut.

        A comment of somebody else that carries the marker is left alone. Where there are several of ours, the first is kept up.
        """
        if not (marker.startswith("<!--") and marker.endswith("-->")):
            raise ValueError(f"{marker!r} is no marker; write an HTML comment, as <!-- reconciler:diff -->")
        text = fit(body if body.startswith(marker) else f"{marker}\n{body}", MAX_BODY)

        def post() -> str:
            ours = self._find_comment(number, marker)
            if ours is None:
                made = self._api.send("POST", f"issues/{number}/comments", f"comment on #{number}", {"body": text})
                return _text(made, "html_url")
            if _same(_text(ours, "body"), text):
                return _text(ours, "html_url")
            path, doing = f"issues/comments/{_number(ours, 'id')}", f"update the comment on #{number}"
            try:
                return _text(self._api.send("PATCH", path, doing, {"body": text}), "html_url")
            except NotFound:
                # Removed since it was listed: the next look makes another.
                made = self._api.send("POST", f"issues/{number}/comments", f"comment on #{number}", {"body": text})
                return _text(made, "html_url")

        return self._api.patiently(post)

    def _find_comment(self, number: int, marker: str) -> Mapping[str, Any] | None:
        for item in self._api.items(f"issues/{number}/comments", f"read the comments of #{number}"):
            if _text(item, "body").lstrip().startswith(marker) and self._is_ours(item):
                return item
        return None

    def _is_ours(self, comment: Mapping[str, Any]) -> bool:
        """By the author: anybody can write the marker into a comment of their own."""
        if not self._asked:
            self._login = self._api.login()
            self._asked = True
        user = comment.get("user") or {}
        if self._login is not None:
            return str(user.get("login", "")).lower() == self._login.lower()
        # An app may not ask who it is. Its comments are a bot's, and only apps with the right to write here are bots.
        return user.get("type") == "Bot"

    # ------------------------------------------------ statuses

    def set_status(self, sha: str, context: str, state: str, description: str, url: str | None = None) -> None:
        """A commit's status under `context`. A repeat of the same is not sent. A longer description is cut."""
        _check(sha, state, _STATES)
        wanted = {"state": state, "context": context, "description": one_line(description), "target_url": url}

        def put() -> None:
            for page in self._api.pages(f"commits/{sha}/status", f"read the statuses of {sha[:12]}"):
                for there in _entries(page, "statuses"):
                    if str(there.get("context", "")).lower() == context.lower():
                        if all((there.get(key) or None) == (wanted[key] or None) for key in _SAID):
                            return
                        break
            self._api.send("POST", f"statuses/{sha}", f"set the status of {sha[:12]}", _given(wanted))

        self._api.patiently(put)

    # ------------------------------------------------ deployments

    def deploy(self, sha: str, environment: str, description: str) -> int:
        """The deployment of a commit to an environment, made if it is not there; its id."""
        _check(sha)
        doing = f"deploy {sha[:12]} to {environment}"
        wanted = {
            "ref": sha,
            "task": _TASK,
            "environment": environment,
            "description": one_line(description),
            # The rollout happens whether or not other checks of the commit agree: this only tells of it.
            "auto_merge": False,
            "required_contexts": [],
        }

        def make() -> int:
            for there in self._api.items("deployments", doing, sha=sha, environment=environment, task=_TASK):
                if there.get("sha") == sha and there.get("environment") == environment:
                    return _number(there, "id")
            return _number(self._api.send("POST", "deployments", doing, wanted), "id")

        return self._api.patiently(make)

    def set_deployment(self, deployment: int, state: str, description: str, url: str | None = None) -> None:
        """A deployment's state. A repeat is not sent. A longer description is cut."""
        if state not in _DEPLOYMENT_STATES:
            raise ValueError(f"{state!r} is no state of a deployment; write one of {', '.join(_DEPLOYMENT_STATES)}")
        wanted = {"state": state, "description": one_line(description), "log_url": url}
        path, doing = f"deployments/{deployment}/statuses", f"set the state of deployment {deployment}"

        def put() -> None:
            # Newest first: only the present state counts.
            newest = next(self._api.items(path, doing), None)
            if newest is not None and all((newest.get(k) or None) == (v or None) for k, v in wanted.items()):
                return
            self._api.send("POST", path, doing, _given(wanted))

        self._api.patiently(put)


_SAID = ("state", "description", "target_url")


def _check(sha: str, state: str = "", states: Sequence[str] = ()) -> None:
    if not _SHA.match(sha):
        raise ValueError(f"{sha!r} is no commit; write its 40 hexadecimal digits")
    if states and state not in states:
        raise ValueError(f"{state!r} is no state of a commit; write one of {', '.join(states)}")


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _same(one: str, other: str) -> bool:
    """Whether two texts say the same: the forge may keep line ends and outer space otherwise."""
    return one.replace("\r\n", "\n").strip() == other.replace("\r\n", "\n").strip()


def _pull_request(item: Mapping[str, Any]) -> PullRequest:
    try:
        head, base = item["head"], item["base"]
        # By id: a renamed repository's entries may bear either name. A fork that is gone has none.
        own = head["repo"] is not None and head["repo"]["id"] == base["repo"]["id"]
        state = "merged" if item.get("merged_at") else str(item["state"])
        return PullRequest(
            number=int(item["number"]),
            url=str(item["html_url"]),
            branch=str(head["ref"] if own else head["label"]),
            base=str(base["ref"]),
            head=str(head["sha"]),
            title=str(item["title"]),
            state=state,
        )
    except (KeyError, TypeError, ValueError):
        raise odd_answer() from None


def _entries(page: Any, key: str) -> list[dict[str, Any]]:
    found = page.get(key) if isinstance(page, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise odd_answer()
    return found


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if value is None and key == "body":
        return ""
    if not isinstance(value, str):
        raise odd_answer()
    return value


def _number(item: Mapping[str, Any], key: str) -> int:
    value = item.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise odd_answer()
    return value
