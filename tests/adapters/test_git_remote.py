"""URLs and refs: what is let through to git, and what its complaints mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.adapters.git_remote import check_branch, check_sha, explain_failure, parse_remote, printable
from reconciler.ports import TerminalError, TransientError


@pytest.mark.parametrize(
    "text",
    [
        "https://git.example.org/fleet.git",
        "https://bot@git.example.org:8443/team/fleet",
        "ssh://git@git.example.org:2222/fleet.git",
        "ssh://[2001:db8::1]/fleet.git",
        "git@git.example.org:team/fleet.git",
        "git.example.org:fleet.git",
    ],
)
def test_remote_addresses_pass_unchanged(text: str) -> None:
    remote = parse_remote(text)
    assert (remote.url, remote.folder) == (text, None)


def test_paths_and_file_urls_are_local(tmp_path: Path) -> None:
    assert parse_remote(str(tmp_path)).folder == tmp_path
    assert parse_remote(f"file://{tmp_path}").folder == tmp_path
    assert parse_remote("/srv/odd:name").folder == Path("/srv/odd:name")
    assert parse_remote("./fleet").folder == Path.cwd() / "fleet"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " https://git.example.org/x",
        "-oProxyCommand=touch /tmp/x",
        "--upload-pack=touch /tmp/x",
        "ext::sh -c touch% /tmp/x",
        "EXT::sh -c x",
        "fd::17",
        "file::/srv/fleet.git",
        "::x",
        "http://git.example.org/fleet.git",
        "git://git.example.org/fleet.git",
        "ftp://git.example.org/fleet.git",
        "ssh://-oProxyCommand=touch/x",
        "ssh://git@-oProxyCommand=x/fleet",
        "ssh://-x@host/fleet",
        "-oProxyCommand=x:fleet",
        "git@-oProxyCommand=x:fleet",
        "git@host:-x",
        "https://git.example.org/",
        "https://git.example.org/x?service=y",
        "https://git.example.org:99999/x",
        "https:///x",
        "file://host/x",
        "https://git.example.org/x\nfoo",
        "https://git.example.org/\x1b[2J",
    ],
)
def test_addresses_that_could_run_something_are_refused(text: str) -> None:
    with pytest.raises(TerminalError) as caught:
        parse_remote(text)
    assert caught.value.remedy


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(TerminalError) as caught:
        parse_remote("https://bot:hunter2@git.example.org/fleet.git")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["main", "release/2026", "feature-x", "revert/v1.4.2", "ü", "a@b"])
def test_plain_branches_pass(name: str) -> None:
    assert check_branch(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-x", "--upload-pack=x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a//b", "/a", "a/", "a.", ".a",
     "a/.b", "a.lock", "a.lock/b", "@", "HEAD", "a@{1}", "refs/heads/main", "a\nb", "x" * 201],
)  # fmt: skip
def test_odd_branches_are_refused(name: str) -> None:
    with pytest.raises(TerminalError):
        check_branch(name)


@pytest.mark.parametrize("text", ["", "HEAD", "abc1234", "A" * 40, "g" * 40, "a" * 41, "-" + "a" * 39, "a" * 40 + "\n"])
def test_only_full_hashes_are_hashes(text: str) -> None:
    with pytest.raises(TerminalError):
        check_sha(text)


@pytest.mark.parametrize(
    ("said", "terminal"),
    [
        ("fatal: couldn't find remote ref refs/heads/main", True),
        ("fatal: '/x' does not appear to be a git repository", True),
        ("remote: Repository not found.\nfatal: repository 'https://h/x/' not found", True),
        ("git@h: Permission denied (publickey).", True),
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", True),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 403", True),
        ("Host key verification failed.", True),
        ("error: object 1234: treeNotSorted: not properly sorted\nfatal: fsck error in packed object", True),
        ("fatal: transport 'http' not allowed", True),
        ("fatal: unable to access 'https://h/': Could not resolve host: h", False),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 503", False),
        ("fatal: early EOF\nfatal: the remote end hung up unexpectedly", False),
        ("", False),
    ],
)
def test_complaints_are_told_apart(said: str, terminal: bool) -> None:
    error = explain_failure(said, url="https://h/x", branch="main")
    assert isinstance(error, TerminalError if terminal else TransientError)
    assert error.wrong and error.needed_for and error.remedy


def test_the_remotes_words_are_tamed() -> None:
    assert printable("a\x1b[31mb\nc\x9b") == "a [31mb c"
    assert len(printable("x" * 1000)) == 400
