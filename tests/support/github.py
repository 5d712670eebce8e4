"""A GitHub on loopback: real HTTP, and of its REST API the few endpoints that we use, with GitHub's shapes, limits and refusals.

It keeps what was made in lists that a test reads (`pulls`, `comments`, `statuses`, `deployments`) and counts requests in
`seen`. `fail` breaks the next matching requests: an answer of its own, a lost answer (it acts, then hangs up), or a silence.
What it checks, as GitHub does: the token (401), what it may (403), the API's version header, unknown things (404), a second
open pull request from a branch, a branch without commits, texts that are too long (422), pages of 100 at most with `Link`.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY = 65_536
MAX_DESCRIPTION = 140
MAX_TITLE = 256
AT = "2026-01-15T01:30:00Z"

Json = dict[str, Any]


@dataclass(frozen=True)
class Token:
    """Whose token it is, and what it may write. `app`: an installation's token, which may not ask who it is."""

    login: str = "fleet-bot"
    app: bool = False
    may: frozenset[str] = frozenset({"pulls", "issues", "statuses", "deployments"})


@dataclass
class Failure:
    """How the next matching request goes wrong."""

    status: int = 0
    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    do: str = "answer"


class Answered(Exception):
    """An answer that ends a handler."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


def refused(message: str, *, resource: str, field: str) -> Answered:
    """422, as GitHub gives it."""
    fault = {"resource": resource, "code": "custom", "field": field, "message": message}
    return Answered(422, {"message": "Validation Failed", "errors": [fault], "status": "422"})


NOT_FOUND = {"message": "Not Found", "documentation_url": "https://docs.github.com/rest", "status": "404"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what these tests are about."""


class GithubServer:
    """`with GithubServer("video-edge/fleet") as hub:` then `hub.url`. `branches` are those that have commits of their own."""

    def __init__(self, repository: str = "video-edge/fleet", tokens: dict[str, Token] | None = None) -> None:
        self.repository = repository
        self.owner = repository.partition("/")[0]
        self.tokens = tokens if tokens is not None else {"ghp_secret": Token()}
        self.branches: dict[str, str] = {"main": "a" * 40}
        self.commits: set[str] = {"a" * 40, "b" * 40}
        self.pulls: list[Json] = []
        self.comments: list[Json] = []
        self.statuses: list[Json] = []
        self.deployments: list[Json] = []
        self.deployment_statuses: list[Json] = []
        self.renamed_from: str | None = None
        self.seen: list[tuple[str, str]] = []
        self.authorizations: list[str] = []
        self._failures: list[Failure] = []
        self._lock = threading.RLock()
        self._next = 1
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> GithubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    # ------------------------------------------------ what a test does to it

    def fail(self, status: int = 0, method: str = "", path: str = "", times: int = 1, **more: Any) -> None:
        """Break the next matching requests: `status` with `headers` and `body`, or do="lost", do="hang"."""
        with self._lock:
            self._failures += [Failure(status, method, path, **more) for _ in range(times)]

    def writes(self) -> list[tuple[str, str]]:
        """The requests that changed something, or tried to."""
        return [(method, path) for method, path in self.seen if method != "GET"]

    def push(self, branch: str, sha: str | None = None) -> str:
        """A branch with a commit of its own."""
        tip = sha or f"{self._number():040x}"
        self.branches[branch] = tip
        self.commits.add(tip)
        return tip

    def add_pull(self, branch: str, *, fork: str | None = None, **more: Any) -> Json:
        """A pull request that somebody opened."""
        base_repo = {"id": 1, "full_name": self.repository}
        owner = fork or self.owner
        head_repo: Json | None = {"id": 2, "full_name": f"{fork}/fleet"} if fork else base_repo
        if fork == "gone":
            head_repo = None
        number = self._number()
        pull = {
            "id": number * 1000,
            "number": number,
            "state": "open",
            "title": f"Promote {branch}",
            "body": "",
            "html_url": f"https://github.example/{self.repository}/pull/{number}",
            "merged_at": None,
            "head": {"label": f"{owner}:{branch}", "ref": branch, "sha": self.branches.get(branch, "b" * 40), "repo": head_repo},
            "base": {"label": f"{self.owner}:main", "ref": "main", "sha": self.branches["main"], "repo": base_repo},
        } | more  # fmt: skip
        self.pulls.append(pull)
        return pull

    def add_comment(self, number: int, body: str, login: str = "somebody", kind: str = "User") -> Json:
        """A comment that somebody wrote."""
        ident = self._number()
        comment = {
            "id": ident,
            "issue_number": number,
            "body": body,
            "user": {"login": login, "type": kind},
            "html_url": f"https://github.example/{self.repository}/pull/{number}#issuecomment-{ident}",
            "created_at": AT,
        }
        self.comments.append(comment)
        return comment

    def _number(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    # ------------------------------------------------ endpoints

    def _route(self, method: str, path: str, query: dict[str, str], body: Any, token: Token) -> Answered:
        if path == "/user":
            if token.app:
                return Answered(403, {"message": "Resource not accessible by integration", "status": "403"})
            return Answered(200, {"login": token.login, "type": "User"})
        prefix = f"/repos/{self.repository}/"
        old = f"/repos/{self.renamed_from}/"
        if self.renamed_from is not None and path.startswith(old):
            place = f"{self.url}/repositories/1/{path.removeprefix(old)}"
            place += f"?{urllib.parse.urlencode(query)}" if query else ""
            moved = {"message": "Moved Permanently", "url": place}
            return Answered(301 if method == "GET" else 307, moved, {"Location": place})
        if path.startswith("/repositories/1/"):
            prefix = "/repositories/1/"
        if not path.startswith(prefix):
            return Answered(404, NOT_FOUND)
        rest = path.removeprefix(prefix)
        for verb, pattern, may, handler in self._endpoints():
            match = re.fullmatch(pattern, rest)
            if verb == method and match is not None:
                if may and may not in token.may:
                    message = "Resource not accessible by personal access token"
                    return Answered(403, {"message": message, "status": "403"})
                return handler(match.groups(), query, body, token)
        return Answered(404, NOT_FOUND)

    def _endpoints(self) -> list[tuple[str, str, str, Callable[..., Answered]]]:
        return [
            ("GET", r"pulls", "", self._list_pulls),
            ("POST", r"pulls", "pulls", self._open_pull),
            ("GET", r"issues/(\d+)/comments", "", self._list_comments),
            ("POST", r"issues/(\d+)/comments", "issues", self._add_comment),
            ("PATCH", r"issues/comments/(\d+)", "issues", self._edit_comment),
            ("GET", r"commits/([^/]+)/status", "", self._combined_status),
            ("POST", r"statuses/([^/]+)", "statuses", self._add_status),
            ("GET", r"deployments", "", self._list_deployments),
            ("POST", r"deployments", "deployments", self._add_deployment),
            ("GET", r"deployments/(\d+)/statuses", "", self._list_deployment_statuses),
            ("POST", r"deployments/(\d+)/statuses", "deployments", self._add_deployment_status),
        ]

    def _list_pulls(self, _of: Any, query: dict[str, str], _body: Any, _token: Token) -> Answered:
        found = list(self.pulls)
        if (state := query.get("state", "open")) != "all":
            found = [pull for pull in found if pull["state"] == state]
        if "head" in query:
            found = [pull for pull in found if pull["head"]["label"] == query["head"]]
        newest_first = query.get("direction", "desc") == "desc"
        return self._paged(sorted(found, key=lambda pull: pull["number"], reverse=newest_first), query, "pulls")

    def _open_pull(self, _of: Any, _query: Any, body: Json, _token: Token) -> Answered:
        head, base = body["head"].removeprefix(f"{self.owner}:"), body["base"]
        if base not in self.branches or head not in self.branches:
            fields = "base" if base not in self.branches else "head"
            fault = {"resource": "PullRequest", "field": fields, "code": "invalid"}
            raise Answered(422, {"message": "Validation Failed", "errors": [fault], "status": "422"})
        if self.branches[head] == self.branches[base]:
            raise refused(f"No commits between {base} and {head}", resource="PullRequest", field="head")
        if any(p["head"]["label"] == f"{self.owner}:{head}" and p["state"] == "open" for p in self.pulls):
            message = f"A pull request already exists for {self.owner}:{head}."
            raise refused(message, resource="PullRequest", field="head")
        _length(body["title"], MAX_TITLE, "PullRequest", "title")
        _length(body.get("body") or "", MAX_BODY, "PullRequest", "body")
        return Answered(201, self.add_pull(head, title=body["title"], body=body.get("body") or ""))

    def _list_comments(self, of: tuple[str, ...], query: dict[str, str], _body: Any, _token: Token) -> Answered:
        self._known_issue(of[0])
        found = [comment for comment in self.comments if comment["issue_number"] == int(of[0])]
        return self._paged(found, query, f"issues/{of[0]}/comments")

    def _add_comment(self, of: tuple[str, ...], _query: Any, body: Json, token: Token) -> Answered:
        self._known_issue(of[0])
        _length(body["body"], MAX_BODY, "IssueComment", "body")
        kind, login = ("Bot", f"{token.login}[bot]") if token.app else ("User", token.login)
        return Answered(201, self.add_comment(int(of[0]), body["body"], login, kind))

    def _edit_comment(self, of: tuple[str, ...], _query: Any, body: Json, _token: Token) -> Answered:
        _length(body["body"], MAX_BODY, "IssueComment", "body")
        for comment in self.comments:
            if comment["id"] == int(of[0]):
                comment["body"] = body["body"]
                return Answered(200, comment)
        return Answered(404, NOT_FOUND)

    def _combined_status(self, of: tuple[str, ...], query: dict[str, str], _body: Any, _token: Token) -> Answered:
        self._known_commit(of[0])
        latest: dict[str, Json] = {}
        for status in self.statuses:
            if status["sha"] == of[0]:
                latest[status["context"]] = status
        page = self._paged(list(latest.values()), query, f"commits/{of[0]}/status")
        return Answered(200, {"state": "pending", "sha": of[0], "statuses": page.body}, page.headers)

    def _add_status(self, of: tuple[str, ...], _query: Any, body: Json, _token: Token) -> Answered:
        if of[0] not in self.commits:
            raise Answered(422, {"message": f"No commit found for SHA: {of[0]}", "status": "422"})
        _length(body.get("description") or "", MAX_DESCRIPTION, "Status", "description")
        if body["state"] not in ("error", "failure", "pending", "success"):
            raise refused("state is not included in the list", resource="Status", field="state")
        status = {"id": self._number(), "sha": of[0], "description": None, "target_url": None, "context": "default"}
        self.statuses.append(status | body)
        return Answered(201, self.statuses[-1])

    def _list_deployments(self, _of: Any, query: dict[str, str], _body: Any, _token: Token) -> Answered:
        found = [
            each
            for each in reversed(self.deployments)
            if all(each[key] == query[key] for key in ("sha", "environment", "task") if key in query)
        ]
        return self._paged(found, query, "deployments")

    def _add_deployment(self, _of: Any, _query: Any, body: Json, _token: Token) -> Answered:
        if body["ref"] not in self.commits:
            raise Answered(422, {"message": f"No ref found for: {body['ref']}", "status": "422"})
        if body.get("auto_merge", True) or body.get("required_contexts") is None:
            raise Answered(409, {"message": "Conflict: Commit status checks failed for main.", "status": "409"})
        made = {"id": self._number(), "sha": body["ref"], "ref": body["ref"], "environment": body["environment"]}
        made |= {"task": body.get("task", "deploy"), "description": body.get("description")}
        self.deployments.append(made)
        return Answered(201, made)

    def _list_deployment_statuses(self, of: tuple[str, ...], query: dict[str, str], _body: Any, _t: Token) -> Answered:
        self._known_deployment(of[0])
        found = [each for each in reversed(self.deployment_statuses) if each["deployment"] == int(of[0])]
        return self._paged(found, query, f"deployments/{of[0]}/statuses")

    def _add_deployment_status(self, of: tuple[str, ...], _query: Any, body: Json, _token: Token) -> Answered:
        self._known_deployment(of[0])
        _length(body.get("description") or "", MAX_DESCRIPTION, "DeploymentStatus", "description")
        status = {"id": self._number(), "deployment": int(of[0]), "description": "", "log_url": ""} | body
        self.deployment_statuses.append(status)
        return Answered(201, status)

    # ------------------------------------------------ parts

    def _known_issue(self, number: str) -> None:
        if all(pull["number"] != int(number) for pull in self.pulls):
            raise Answered(404, NOT_FOUND)

    def _known_commit(self, sha: str) -> None:
        if sha not in self.commits:
            raise Answered(422, {"message": f"No commit found for SHA: {sha}", "status": "422"})

    def _known_deployment(self, ident: str) -> None:
        if all(each["id"] != int(ident) for each in self.deployments):
            raise Answered(404, NOT_FOUND)

    def _paged(self, found: list[Json], query: dict[str, str], path: str) -> Answered:
        size = min(100, int(query.get("per_page", "30")))
        page = int(query.get("page", "1"))
        headers = {}
        if len(found) > page * size:
            more = urllib.parse.urlencode(query | {"page": str(page + 1)})
            headers["Link"] = (
                f'<{self.url}/repositories/1/{path}?{more}>; rel="next", <{self.url}/x?page=9>; rel="last"'
            )
        return Answered(200, found[(page - 1) * size : page * size], headers)

    def _take(self, method: str, path: str) -> Failure | None:
        with self._lock:
            for failure in self._failures:
                if failure.method in ("", method) and failure.path in path:
                    self._failures.remove(failure)
                    return failure
        return None

    def _answer(self, method: str, target: str, headers: Any, body: bytes) -> Answered:
        parts = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(parts.query))
        said = headers.get("Authorization", "")
        token = self.tokens.get(said.removeprefix("Bearer "))
        with self._lock:
            self.seen.append((method, target))
            self.authorizations.append(said)
            if token is None:
                return Answered(401, {"message": "Bad credentials", "status": "401"})
            if headers.get("X-GitHub-Api-Version") != "2022-11-28" or not headers.get("User-Agent"):
                return Answered(400, {"message": "Unsupported API version or no User-Agent", "status": "400"})
            try:
                return self._route(method, parts.path, query, json.loads(body) if body else None, token)
            except Answered as answered:
                return answered

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                failure = hub._take(self.command, self.path)
                if failure is not None and failure.do == "hang":
                    hub._over.wait(250)
                    self.close_connection = True
                    return
                if failure is not None and failure.do == "answer":
                    with hub._lock:
                        hub.seen.append((self.command, self.path))
                    self._tell(Answered(failure.status, failure.body, failure.headers))
                    return
                answered = hub._answer(self.command, self.path, self.headers, body)
                if failure is not None and failure.do == "lost":
                    self.close_connection = True
                    return
                self._tell(answered)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any

            def _tell(self, answered: Answered) -> None:
                content = answered.body if isinstance(answered.body, bytes) else json.dumps(answered.body).encode()
                self.send_response(answered.status)
                for name, value in {"Content-Type": "application/json", **answered.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler


def _length(text: str, most: int, resource: str, of: str) -> None:
    if len(text) > most:
        raise refused(f"{of} is too long (maximum is {most} characters)", resource=resource, field=of)
