"""What may be asked of a git remote: which URLs and refs are let through, and what git's complaints mean. Pure.

A URL or a ref that begins with `-` is an option to git, and `ext::` URLs run commands (CVE-2017-1000117 and its kin),
so nothing reaches git's argv that did not pass here. Called by `adapters.git_source`. Touches no file and starts no
process. Source: gitprotocol(7), git-check-ref-format(1), GIT_ALLOW_PROTOCOL in git(1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from reconciler.ports import PortError, TerminalError, TransientError

ALLOWED_PROTOCOLS = "https:ssh:file"
"""Value of GIT_ALLOW_PROTOCOL: git itself refuses every other transport, also after a redirect."""

NEEDED_FOR = "reading the fleet repo"
_FORMS = "write https://HOST/PATH, ssh://HOST/PATH, git@HOST:PATH, file:///PATH, or an absolute path"
_HOST = re.compile(r"^(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\])$")
_USER = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")
_SCP = re.compile(r"^(?:(?P<user>[^@/:]+)@)?(?P<host>[^@/:]+|\[[^\]/]+\]):(?P<path>[^:].*)$")
_REF_BAD = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|^[./-]|[./]$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Remote:
    """A checked remote: the text handed to git, and the folder where it is on this machine."""

    url: str
    folder: Path | None = None


def parse_remote(text: str) -> Remote:
    """A URL or path from the settings → `Remote`. TerminalError names what is wrong with it.

    Credentials in a URL are refused: they would show in process lists and logs. A user name alone is fine.
    """
    if not text or text != text.strip() or _CONTROL.search(text):
        raise _bad(text, "it is empty, or has spaces at its ends or control characters in it")
    if text.startswith("-"):
        raise _bad(text, "it begins with `-`, which git would take for an option")
    if re.match(r"^[A-Za-z0-9+.-]*::", text):
        raise _bad(text, "`name::address` starts a helper program")
    scheme, separator, rest = text.partition("://")
    if separator:
        return _parse_url(text, scheme.lower(), rest)
    match = _SCP.match(text)
    if match is not None and not text.startswith((".", "/", "~")):
        if not _HOST.match(match["host"]) or (match["user"] and not _USER.match(match["user"])):
            raise _bad(text, "its user or host has characters that do not belong there")
        if match["path"].startswith("-"):
            raise _bad(text, "its path begins with `-`")
        return Remote(text)
    folder = Path(text).expanduser().absolute()
    return Remote(str(folder), folder)


def _parse_url(text: str, scheme: str, rest: str) -> Remote:
    if scheme == "file":
        if not rest.startswith("/"):
            raise _bad(text, "file:// takes an absolute path, as file:///srv/fleet.git")
        return Remote(rest, Path(rest))
    if scheme not in ("https", "ssh"):
        raise _bad(text, f"transport {scheme!r} is not allowed")
    try:
        parts = urlsplit(text)
        host, port, user, password = parts.hostname or "", parts.port, parts.username, parts.password
    except ValueError as error:
        raise _bad(text, str(error)) from None
    if password is not None:
        raise _bad("(hidden)", "it holds a password; use a credential helper or an ssh key")
    if ":" in host:
        host = f"[{host}]"
    if not _HOST.match(host) or (user is not None and not _USER.match(user)):
        raise _bad(text, "its user or host has characters that do not belong there")
    if port == 0 or parts.path.strip("/") == "" or parts.path.startswith("/-") or parts.query or parts.fragment:
        raise _bad(text, "its port or path is not one of a repository")
    return Remote(text)


def _bad(text: str, why: str) -> TerminalError:
    return TerminalError(f"git remote {text!r} is refused: {why}", needed_for=NEEDED_FOR, remedy=_FORMS)


def check_branch(name: str) -> str:
    """A branch's short name, if git and we can take it; TerminalError otherwise. Rules of git-check-ref-format(1)."""
    if not name or len(name) > 200 or name in ("@", "HEAD") or name.startswith("refs/") or _REF_BAD.search(name):
        raise TerminalError(
            f"branch name {name!r} is refused",
            needed_for=NEEDED_FOR,
            remedy="write a plain branch name, as main: no leading `-`, no spaces, none of ~^:?*[\\ or `..`, no refs/",
        )
    return name


def check_sha(text: str) -> str:
    """A full object hash (40 or 64 hex digits, lower case); TerminalError otherwise. Short hashes are ambiguous."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text):
        raise TerminalError(
            f"{text!r} is not a full object hash", needed_for=NEEDED_FOR, remedy="write all 40 hex digits"
        )
    return text


def printable(text: str, limit: int = 400) -> str:
    """Git's (and so the remote's) words, fit for a log: one line, no control characters, bounded."""
    line = _CONTROL.sub(" ", text).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


# What git says, in the C locale → why, and what to do. The first that is found counts; everything else is transient.
_TERMINAL = (
    (
        ("couldn't find remote ref",),
        "the remote has no branch {branch!r}",
        "push the branch, or correct it in the settings",
    ),
    (
        ("fsck error", "in unpacked object", "fatal: fsck", "bad tree", "error in object"),
        "the branch holds an object that git's checks refuse ({said})",
        "remove the malformed commit from the branch",
    ),
    (
        (
            "Permission denied (",
            "Authentication failed",
            "could not read Username",
            "could not read Password",
            "returned error: 403",
        ),
        "the remote refused our credentials ({said})",
        "give the controller's user an ssh key or a credential helper that may read the repo",
    ),
    (("Host key verification failed",), "the host's ssh key is not known", "add the host's key to known_hosts"),
    (
        (
            "does not appear to be a git repository",
            "Repository not found",
            "repository not found",
            "' not found",
            "not a git repository",
        ),
        "there is no repository at {url!r}",
        "correct the remote in the settings, or create it",
    ),
    (
        ("dubious ownership",),
        "the repository belongs to another user ({said})",
        "make it readable by the controller's user",
    ),
    (
        ("transport '", "is not allowed"),
        "the remote led to a transport that is not allowed ({said})",
        "point the remote at an https, ssh or file address",
    ),
)


def explain_failure(stderr: str, *, url: str, branch: str, needed_for: str = NEEDED_FOR) -> PortError:
    """A failed fetch or push → the error to raise."""
    said = printable(stderr)
    for signs, wrong, remedy in _TERMINAL:
        if any(sign in stderr for sign in signs):
            return TerminalError(wrong.format(branch=branch, url=url, said=said), needed_for=needed_for, remedy=remedy)
    return TransientError(
        f"git remote {url!r} did not answer ({said or 'no reason given'})",
        needed_for=needed_for,
        remedy="it is tried again",
    )
