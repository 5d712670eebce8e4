"""Runs git through GitPython's argv interface, hardened: a clean environment, a configuration of our own, a timeout.

What this promises: no shell, no prompt, no hook, no filter, no work tree, no helper transport, none of the user's or
the system's git configuration, no GIT_* variable from outside but those named below. What it does not judge: what the
output means. Called by the other `adapters.git_*` modules. Source: git(1) "Environment Variables", git-config(1)
safe.directory, protocol.allow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reconciler.adapters.git_remote import ALLOWED_PROTOCOLS, NEEDED_FOR, Remote, printable
from reconciler.ports import TerminalError, TransientError

# What an operator may set from outside: how ssh is called, who answers for a password, which CA signs the server.
_KEPT = frozenset({"GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT", "GIT_ASKPASS", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"})

_CONFIG = """\
[core]
\thooksPath = /dev/null
\tfsmonitor = false
\tattributesFile = /dev/null
\texcludesFile = /dev/null
[protocol]
\tallow = never
[protocol "https"]
\tallow = always
[protocol "ssh"]
\tallow = always
[protocol "file"]
\tallow = always
[fetch]
\tfsckObjects = true
\trecurseSubmodules = false
[submodule]
\trecurse = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
[http]
\tlowSpeedLimit = 1000
\tlowSpeedTime = 60
"""


@dataclass(frozen=True, slots=True)
class Result:
    """How a call of git ended: exit status, standard output as bytes, standard error as text."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output as one stripped line."""
        return self.out.decode("utf-8", "backslashreplace").strip()


class GitProgram:
    """The git program under one configuration file, which it writes."""

    def __init__(
        self,
        home: Path,
        remote: Remote,
        *,
        timeout_s: float,
        ssh_command: str | None = None,
        credential_helper: str | None = None,
    ) -> None:
        try:
            from git import Git
        except ImportError as error:  # GitPython refuses to load where there is no git program
            raise TerminalError(
                "the git program was not found", needed_for=NEEDED_FOR, remedy="apt-get install git"
            ) from error
        self._timeout_s = timeout_s
        self._config = home / "gitconfig"
        self._env = {
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": ALLOWED_PROTOCOLS,
            "GIT_PROTOCOL_FROM_USER": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "SSH_ASKPASS_REQUIRE": "never",
        }
        if ssh_command is not None:
            self._env["GIT_SSH_COMMAND"] = ssh_command
        elif not os.environ.get("GIT_SSH_COMMAND") and not os.environ.get("GIT_SSH"):
            self._env["GIT_SSH_COMMAND"] = "ssh -oBatchMode=yes -oConnectTimeout=20"
        self._write_config(remote, credential_helper)
        self._git: Any = Git(str(home))

    def _write_config(self, remote: Remote, credential_helper: str | None) -> None:
        lines = [_CONFIG]
        if remote.folder is not None:
            # A local remote may belong to another user; only this very one is let through.
            names = {str(base / end) for base in (remote.folder, remote.folder.resolve()) for end in ("", ".git")}
            lines.append("[safe]\n" + "".join(f"\tdirectory = {quote(name)}\n" for name in sorted(names)))
        if credential_helper is not None:
            lines.append(f"[credential]\n\thelper = {quote(credential_helper)}\n")
        part = self._config.with_suffix(f".{os.getpid()}")
        part.write_text("".join(lines), encoding="utf-8")
        part.replace(self._config)

    def run(
        self,
        *arguments: str,
        git_dir: Path | None = None,
        stdin: IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        lock_fd: int | None = None,
    ) -> Result:
        """Run git and wait. Never raises for a non-zero status; TransientError when the time is up.

        `lock_fd` is a held lock that git and its children inherit: the lock then lasts as long as the last of them,
        also where this process is killed meanwhile.
        """
        limit = self._timeout_s if timeout_s is None else timeout_s
        extra: dict[str, Any] = {} if lock_fd is None else {"pass_fds": (lock_fd,)}
        status, out, err = self._git.execute(
            self._argv(git_dir, arguments, kept=env or {}),
            istream=stdin,
            env={**self._env, **(env or {})},
            with_extended_output=True,
            with_exceptions=False,
            stdout_as_string=False,
            strip_newline_in_stdout=False,
            kill_after_timeout=limit,
            **extra,
        )
        if status < 0 and err.startswith("Timeout: "):
            raise TransientError(
                f"git {arguments[0]} did not end within {limit:g} s", needed_for=NEEDED_FOR, remedy="it is tried again"
            )
        return Result(status, out, err)

    def must(self, *arguments: str, git_dir: Path | None = None, **options: Any) -> bytes:
        """Like `run`, for a call that only damage makes fail: TransientError with git's words."""
        result = self.run(*arguments, git_dir=git_dir, **options)
        if result.status != 0:
            raise TransientError(
                f"git {arguments[0]} failed ({printable(result.err)})",
                needed_for=NEEDED_FOR,
                remedy="the mirror is checked at the next fetch, and cloned again if it is damaged",
            )
        return result.out

    def start(self, *arguments: str, git_dir: Path) -> Any:
        """Start git with pipes on its three descriptors and return GitPython's process wrapper."""
        from subprocess import PIPE

        return self._git.execute(self._argv(git_dir, arguments), istream=PIPE, env=self._env, as_process=True)

    def _argv(self, git_dir: Path | None, arguments: Sequence[str], kept: Iterable[str] = ()) -> list[str]:
        # GitPython passes its own process's environment on: a GIT_DIR or GIT_CONFIG_PARAMETERS in it would steer ours.
        ours = _KEPT | self._env.keys() | set(kept)
        unset = [name for name in os.environ if name.startswith("GIT_") and name not in ours]
        prefix = ["env", *(part for name in unset for part in ("-u", name))] if unset else []
        where = [] if git_dir is None else [f"--git-dir={git_dir}"]
        return [*prefix, "git", "--no-pager", *where, *arguments]


def quote(value: str) -> str:
    """A value for a git configuration file."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
