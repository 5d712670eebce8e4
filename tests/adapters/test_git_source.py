"""The bare mirror against real repositories: reading, malicious content, damage, kills, signatures."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.adapters.git_source import GitMirror
from reconciler.ports import TerminalError, TransientError
from tests.support.gitrepo import Repo
from tests.support.gpg import Home, days_ago, make_home


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = Repo(tmp_path / "fleet")
    made.commit("First", {"fleet.yaml": "kind: Fleet\n", "sites/a.yaml": "name: a\n", "sites/b.yaml": "name: b\n"})
    return made


@pytest.fixture
def mirror(repo: Repo, tmp_path: Path) -> Iterator[GitMirror]:
    made = GitMirror(tmp_path / "state", str(repo.path), "main", timeout_s=20)
    yield made
    made.close()


def test_refresh_returns_the_head_as_it_is(repo: Repo, mirror: GitMirror) -> None:
    head = mirror.refresh()
    assert head.sha == repo.head()
    assert head.author == "Ada <ada@example.org>" and head.message == "First\n" and head.signer is None
    assert head.committed_at == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    second = repo.commit("Second\n\nwith a body", {"sites/c.yaml": "name: c\n"})
    assert mirror.refresh().sha == second
    assert mirror.commit(head.sha) == head


@pytest.mark.parametrize("form", ["bare", "file-url", "worktree"])
def test_every_local_form_of_a_remote_is_read(repo: Repo, tmp_path: Path, form: str) -> None:
    remote = str(repo.path)
    if form == "bare":
        remote = str(tmp_path / "bare.git")
        repo.git("clone", "-q", "--bare", ".", remote)
    elif form == "file-url":
        remote = f"file://{repo.path}"
    else:
        remote = str(tmp_path / "linked")
        repo.git("worktree", "add", "-q", "--detach", remote)
    assert GitMirror(tmp_path / "state", remote, "main").refresh().sha == repo.head()


def test_files_changed_and_blobs(repo: Repo, mirror: GitMirror) -> None:
    old = mirror.refresh().sha
    assert [entry.path for entry in mirror.files(old)] == ["fleet.yaml", "sites/a.yaml", "sites/b.yaml"]
    new = repo.commit("Change", {"sites/a.yaml": "name: A\n", "sites/b.yaml": None, "x.sh": "#!/bin/sh\n"})
    mirror.refresh()
    changed = mirror.changed(old, new)
    assert set(changed) == {"sites/a.yaml", "sites/b.yaml", "x.sh"} and changed["sites/b.yaml"] is None
    entry = changed["sites/a.yaml"]
    assert entry is not None and mirror.blob(entry.blob) == b"name: A\n"
    assert mirror.changed(new, new) == {}
    assert mirror.is_ancestor(old, new) and not mirror.is_ancestor(new, old) and mirror.is_ancestor(new, new)


def test_odd_names_and_modes_are_listed_and_nothing_is_followed(repo: Repo, mirror: GitMirror) -> None:
    os.symlink("/etc/passwd", repo.path / "link")
    names = ["a-b", "a b\tc", 'q"uote', "ü.yaml", "-dash", "new\nline", "a/x", "a.b"]
    repo.commit("Odd", {**dict.fromkeys(names, "x"), "run.sh": "x"})
    (repo.path / "run.sh").chmod(0o755)
    repo.git("add", "-A")
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module")
    repo.record("Modes")
    entries = {entry.path: entry for entry in mirror.files(mirror.refresh().sha)}
    assert set(names) <= set(entries) and list(entries) == sorted(entries)
    assert [entries[name].mode for name in ("link", "run.sh", "module", "a/x")] == [
        "120000",
        "100755",
        "160000",
        "100644",
    ]
    assert mirror.blob(entries["link"].blob) == b"/etc/passwd"


def test_a_name_that_is_not_utf8_is_shown_escaped(repo: Repo, mirror: GitMirror) -> None:
    (Path(os.fsdecode(os.fsencode(str(repo.path)) + b"/caf\xe9.yaml"))).write_text("x")
    sha = repo.commit("Latin")
    mirror.refresh()
    assert "caf\\xe9.yaml" in [entry.path for entry in mirror.files(sha)]


def test_loading_runs_nothing_that_the_repo_or_the_user_configured(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters, hooks, submodules, textconv and fsmonitor are all armed to leave a mark."""
    mark = tmp_path / "mark"
    evil = f"touch {mark}; cat"
    home = tmp_path / "home"
    home.mkdir()
    config = f'[filter "evil"]\n\tsmudge = "{evil}"\n\tclean = "{evil}"\n[diff "evil"]\n\ttextconv = "{evil}"\n'
    config += f'[core]\n\thooksPath = "{tmp_path}/hooks"\n\tfsmonitor = "{evil}"\n\tpager = "{evil}"\n'
    config += f'[uploadpack]\n\tpackObjectsHook = "{evil}"\n[alias]\n\tfetch = "!{evil}"\n'
    (home / ".gitconfig").write_text(config)
    for folder in (tmp_path / "hooks", repo.path / ".git" / "hooks"):
        folder.mkdir(exist_ok=True)
        for name in ("post-checkout", "reference-transaction", "pre-push", "post-merge", "pre-auto-gc"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
    old = repo.head()
    repo.commit(
        "Evil",
        {".gitattributes": "* filter=evil diff=evil\n", ".gitmodules": '[submodule "x"]\n\tpath = x\n\turl = ./x\n'},
    )
    for folder in (tmp_path / "hooks", repo.path / ".git" / "hooks"):
        for path in folder.iterdir():
            path.chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.fsmonitor'='{evil}'")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {mark}")
    mirror = GitMirror(tmp_path / "state", str(repo.path), "main")
    head = mirror.refresh().sha
    for entry in mirror.files(head):
        mirror.blob(entry.blob)
    mirror.changed(old, head)
    mirror.export(head, "sites", tmp_path / "out")
    mirror.propose_revert("revert/x", head, "Revert", "evidence")
    assert not mark.exists()


def test_a_rewrite_is_followed_and_the_old_commit_stays_readable(repo: Repo, mirror: GitMirror) -> None:
    repo.commit("Second")
    old = mirror.refresh().sha
    repo.git("reset", "-q", "--hard", "HEAD~1")
    new = repo.commit("Other", {"z": "1"})
    assert mirror.refresh().sha == new
    assert not mirror.is_ancestor(old, new)
    assert len(mirror.files(old)) == 3


def test_a_missing_branch_keeps_the_mirror(repo: Repo, mirror: GitMirror) -> None:
    sha = mirror.refresh().sha
    repo.git("branch", "-m", "main", "other")
    with pytest.raises(TerminalError, match="no branch 'main'"):
        mirror.refresh()
    assert mirror.commit(sha).sha == sha
    repo.git("branch", "-m", "other", "main")
    assert mirror.refresh().sha == sha


def test_missing_and_empty_remotes_are_terminal(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="no repository") as caught:
        GitMirror(tmp_path / "s", str(tmp_path / "none"), "main").refresh()
    assert "settings" in caught.value.remedy
    (tmp_path / "plain").mkdir()
    with pytest.raises(TerminalError, match="no repository"):
        GitMirror(tmp_path / "s2", str(tmp_path / "plain"), "main").refresh()
    Repo(tmp_path / "empty")
    with pytest.raises(TerminalError, match="no branch"):
        GitMirror(tmp_path / "s3", str(tmp_path / "empty"), "main").refresh()


def test_an_unreachable_remote_is_transient(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="did not answer"):
        GitMirror(tmp_path / "s", "https://127.0.0.1:1/fleet.git", "main", timeout_s=20).refresh()


def test_a_hanging_remote_is_cut_off(tmp_path: Path) -> None:
    mirror = GitMirror(tmp_path / "s", "ssh://h.invalid/x", "main", clone_timeout_s=0.5, ssh_command="sleep 200; true")
    start = time.monotonic()
    with pytest.raises(TransientError, match="did not end within"):
        mirror.refresh()
    assert time.monotonic() - start < 150


def test_unknown_objects_are_terminal(mirror: GitMirror) -> None:
    with pytest.raises(TransientError, match="no mirror yet"):
        mirror.commit("1" * 40)
    head = mirror.refresh()
    for call in (mirror.commit, mirror.files, mirror.blob):
        with pytest.raises(TerminalError, match="not in the mirror"):
            call("1" * 40)
    with pytest.raises(TerminalError, match="not a blob"):
        mirror.blob(head.sha)
    with pytest.raises(TerminalError, match="not in the mirror"):
        mirror.is_ancestor(head.sha, "1" * 40)
    assert not mirror.is_ancestor("1" * 40, head.sha)
    with pytest.raises(TerminalError, match="full object hash"):
        mirror.commit("main")


@pytest.mark.slow
def test_a_blob_beyond_the_limit_is_refused_and_the_next_is_read(repo: Repo, mirror: GitMirror) -> None:
    repo.commit("Big", {"big": b"\0" * (33 * 1024 * 1024)})
    blobs = {entry.path: entry.blob for entry in mirror.files(mirror.refresh().sha)}
    with pytest.raises(TerminalError, match="more than"):
        mirror.blob(blobs["big"])
    assert mirror.blob(blobs["sites/a.yaml"]) == b"name: a\n"


def test_a_killed_reader_is_started_again(repo: Repo, mirror: GitMirror) -> None:
    blob = mirror.files(mirror.refresh().sha)[0].blob
    mirror.blob(blob)
    process = mirror._reader._process
    process.proc.kill()
    process.proc.wait()
    assert mirror.blob(blob) == b"kind: Fleet\n"


def test_reads_from_several_threads_do_not_mix(repo: Repo, mirror: GitMirror) -> None:
    repo.commit("Many", {f"f{n}": f"content {n}\n" * n for n in range(100)})
    entries = [
        entry for entry in mirror.files(mirror.refresh().sha) if entry.path.startswith("f") and "." not in entry.path
    ]
    wrong: list[str] = []

    def read() -> None:
        for entry in entries:
            number = int(entry.path[1:])
            if mirror.blob(entry.blob) != f"content {number}\n".encode() * number:
                wrong.append(entry.path)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries) == 100 and not wrong


def test_a_damaged_mirror_heals_by_a_new_clone(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    head = mirror.refresh().sha
    mirror.close()
    entries = mirror.files(head)
    for path in (tmp_path / "state" / "mirror.git" / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(TransientError):
        mirror.blob(entries[0].blob)
    assert mirror.refresh().sha == head
    assert mirror.blob(entries[0].blob) == b"kind: Fleet\n"


def test_missing_objects_heal_too(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    head = mirror.refresh().sha
    mirror.close()
    shutil.rmtree(tmp_path / "state" / "mirror.git" / "objects")
    assert mirror.refresh().sha == head
    assert len(mirror.files(head)) == 3


def test_another_remote_in_the_settings_is_cloned_anew(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    mirror.refresh()
    other = Repo(tmp_path / "other")
    sha = other.commit("Other", {"x": "1"})
    assert GitMirror(tmp_path / "state", str(other.path), "main").refresh().sha == sha


def test_locks_that_a_killed_git_left_are_removed(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    mirror.refresh()
    bare = tmp_path / "state" / "mirror.git"
    for name in ("packed-refs.lock", "refs/heads/main.lock", "config.lock", "shallow.lock"):
        (bare / name).write_text("")
    assert mirror.refresh().sha == repo.head()
    sha = repo.commit("Next")
    (bare / "refs/heads/main.lock").write_text("")
    assert mirror.refresh().sha == sha


_FETCH = "import sys; from pathlib import Path; from reconciler.adapters.git_source import GitMirror; "
_FETCH += "GitMirror(Path(sys.argv[1]), sys.argv[2], 'main').refresh()"


@pytest.mark.slow
def test_a_refresh_killed_anywhere_leaves_a_mirror_that_recovers(repo: Repo, tmp_path: Path) -> None:
    repo.commit("Many", {f"data/{n}": os.urandom(2000) for n in range(2000)})
    state = tmp_path / "state"
    for delay in (0.15, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6):
        repo.commit("More", {f"more/{delay}-{n}": os.urandom(500) for n in range(300)})
        child = subprocess.Popen([sys.executable, "-c", _FETCH, str(state), str(repo.path)], stderr=subprocess.DEVNULL)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        mirror = GitMirror(state, str(repo.path), "main")
        head = mirror.refresh()
        assert head.sha == repo.head()
        assert all(mirror.blob(entry.blob) is not None for entry in mirror.files(head.sha))
        mirror.close()


def test_a_half_written_clone_is_thrown_away(repo: Repo, tmp_path: Path) -> None:
    part = tmp_path / "state" / "mirror.git.new"
    part.mkdir(parents=True)
    (part / "HEAD").write_text("garbage")
    assert GitMirror(tmp_path / "state", str(repo.path), "main").refresh().sha == repo.head()
    assert not part.exists()


def test_malformed_objects_are_refused_at_the_fetch(repo: Repo, mirror: GitMirror) -> None:
    good = mirror.refresh().sha
    blob = repo.git("hash-object", "-w", "--stdin", data=b"x")
    tree = repo.git(
        "hash-object", "-t", "tree", "-w", "--stdin", "--literally", data=b"100644 ..\0" + bytes.fromhex(blob)
    )
    commit = repo.git("commit-tree", "-p", good, "-m", "Out", tree)
    repo.git("update-ref", "refs/heads/main", commit)
    with pytest.raises(TerminalError, match="git's checks refuse"):
        mirror.refresh()
    assert mirror.commit(good).sha == good


def test_many_fetches_are_packed_and_nothing_is_lost(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    old = mirror.refresh().sha
    sample = tmp_path / "state" / "mirror.git" / "objects" / "17"
    sample.mkdir(exist_ok=True)
    mirror.refresh()
    repo.commit("One", {"n": "1"})
    mirror.refresh()
    for number in range(30):
        (sample / f"{number:038x}").write_bytes(b"")
    # Objects of no content stand in for 7,000 real ones; what counts is that a repack happens and reads go on.
    new = mirror.refresh().sha
    assert list((tmp_path / "state" / "mirror.git" / "objects" / "pack").glob("*.pack"))
    assert len(mirror.files(old)) == 3 and len(mirror.files(new)) == 4


def test_export_writes_regular_files_with_the_commits_times(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    sha = repo.commit(
        "Recipe", {"images/r/setup.sh": "#!/bin/sh\n", "images/r/rootfs/etc/motd": "hi\n", "images/rx": "no"}
    )
    (repo.path / "images/r/setup.sh").chmod(0o755)
    sha = repo.commit("Mode")
    mirror.refresh()
    mirror.export(sha, "images/r", tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["rootfs/etc/motd", "setup.sh"]
    status = (tmp_path / "out/setup.sh").stat()
    assert status.st_mode & 0o777 == 0o755 and status.st_mtime == mirror.commit(sha).committed_at.timestamp()
    with pytest.raises(TerminalError, match="not empty"):
        mirror.export(sha, "images/r", tmp_path / "out")
    for folder in ("images/none", "", "/", ".."):
        with pytest.raises(TerminalError, match="no folder"):
            mirror.export(sha, folder, tmp_path / "out2")


def test_export_refuses_links(repo: Repo, mirror: GitMirror, tmp_path: Path) -> None:
    (repo.path / "r").mkdir()
    os.symlink("/etc", repo.path / "r" / "etc")
    sha = repo.commit("Link", {"r/etc2": "x"})
    mirror.refresh()
    with pytest.raises(TerminalError, match="r/etc is not a regular file"):
        mirror.export(sha, "r", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- signatures


@pytest.fixture(scope="module")
def keys() -> Iterator[Home]:
    with make_home() as home:
        yield home


def sign(repo: Repo, home: Home, key: str, at: datetime | None = None) -> str:
    """Put a signature into the head commit, as `git commit -S` does."""
    raw = subprocess.run(["git", "cat-file", "commit", "HEAD"], cwd=repo.path, capture_output=True, check=True).stdout
    signature = home.sign_detached(raw, key, armour=True, at=at)
    head, _, body = raw.partition(b"\n\n")
    header = b"\ngpgsig " + signature.rstrip(b"\n").replace(b"\n", b"\n ") + b"\n\n"
    sha = repo.git("hash-object", "-t", "commit", "-w", "--stdin", data=head + header + body)
    repo.git("update-ref", "HEAD", sha)
    return sha


def signed_by(tmp_path: Path, repo: Repo, home: Home, ring: list[str], allowed: list[str]) -> str | None:
    keyring = tmp_path / "ring.gpg"
    keyring.write_bytes(home.export(ring))
    mirror = GitMirror(tmp_path / "signed", str(repo.path), "main", signers_keyring=keyring, allowed=frozenset(allowed))
    try:
        return mirror.refresh().signer
    finally:
        mirror.close()


def test_signers_are_judged_by_key_not_by_git(repo: Repo, keys: Home, tmp_path: Path) -> None:
    good, foreign = keys.generate("Good <g@example.org>"), keys.generate("Foreign <f@example.org>")
    assert signed_by(tmp_path, repo, keys, [good], [good]) is None
    sha = sign(repo, keys, good)
    assert repo.head() == sha
    assert signed_by(tmp_path, repo, keys, [good], [good]) == good
    assert signed_by(tmp_path, repo, keys, [good], [good.lower()]) == good
    assert signed_by(tmp_path, repo, keys, [good, foreign], [foreign]) is None
    assert signed_by(tmp_path, repo, keys, [foreign], [good]) is None
    repo.commit("Next")
    sign(repo, keys, good, at=days_ago(-30))
    assert signed_by(tmp_path, repo, keys, [good], [good]) is None


def test_a_commit_that_git_itself_signed_is_accepted(repo: Repo, keys: Home, tmp_path: Path) -> None:
    key = keys.generate("Git <git@example.org>", signing_subkey=True)
    repo.git("config", "user.signingKey", key)
    env = {"GNUPGHOME": str(keys.path)}
    repo.git("commit", "-q", "--allow-empty", "-S", "-m", "Signed by git\n\nwith ümlaut", env=env)
    assert signed_by(tmp_path, repo, keys, [key], [key]) == key


def test_a_signature_over_other_content_names_nobody(repo: Repo, keys: Home, tmp_path: Path) -> None:
    key = keys.generate("Mover <m@example.org>")
    sign(repo, keys, key)
    raw = subprocess.run(["git", "cat-file", "commit", "HEAD"], cwd=repo.path, capture_output=True, check=True).stdout
    forged = repo.git("hash-object", "-t", "commit", "-w", "--stdin", data=raw + b"and more\n")
    repo.git("update-ref", "HEAD", forged)
    assert signed_by(tmp_path, repo, keys, [key], [key]) is None
    doubled = raw.replace(b"\ngpgsig ", b"\ngpgsig " + b"".join(
        line + b"\n " for line in keys.sign_detached(b"x", key, armour=True).split(b"\n") if line
    ).removesuffix(b" ") + b"gpgsig ", 1)  # fmt: skip
    repo.git(
        "update-ref", "HEAD", repo.git("hash-object", "-t", "commit", "-w", "--stdin", "--literally", data=doubled)
    )
    mirror = GitMirror(tmp_path / "d", str(repo.path), "main")
    assert mirror.parsed(mirror.refresh().sha).signature is None


def test_an_ssh_signature_is_no_signer(repo: Repo, keys: Home, tmp_path: Path) -> None:
    key = keys.generate("Nobody <n@example.org>")
    raw = subprocess.run(["git", "cat-file", "commit", "HEAD"], cwd=repo.path, capture_output=True, check=True).stdout
    header = b"\ngpgsig -----BEGIN SSH SIGNATURE-----\n U1NIU0lH\n -----END SSH SIGNATURE-----\n\n"
    sha = repo.git("hash-object", "-t", "commit", "-w", "--stdin", data=raw.replace(b"\n\n", header, 1))
    repo.git("update-ref", "HEAD", sha)
    assert signed_by(tmp_path, repo, keys, [key], [key]) is None


def test_a_verifier_that_cannot_judge_is_no_verdict(repo: Repo, keys: Home, tmp_path: Path) -> None:
    key = keys.generate("Ring <r@example.org>")
    sign(repo, keys, key)
    for content in (b"", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"):
        (tmp_path / "bad.gpg").write_bytes(content)
        mirror = GitMirror(
            tmp_path / "s", str(repo.path), "main", signers_keyring=tmp_path / "bad.gpg", allowed=frozenset({key})
        )
        with pytest.raises(TerminalError, match="keyring is"):
            mirror.refresh()
    with pytest.raises(TerminalError, match="fingerprint"):
        GitMirror(tmp_path / "s", str(repo.path), "main", allowed=frozenset({"ABCD"}))


def test_a_refusal_is_judged_again_an_acceptance_is_kept(repo: Repo, keys: Home, tmp_path: Path) -> None:
    key = keys.generate("Clock <c@example.org>")
    sha = sign(repo, keys, key)
    (tmp_path / "ring.gpg").write_bytes(keys.export([key]))
    clock = [datetime.now(UTC) - timedelta(days=1)]
    mirror = GitMirror(
        tmp_path / "s",
        str(repo.path),
        "main",
        signers_keyring=tmp_path / "ring.gpg",
        allowed=frozenset({key}),
        now=lambda: clock[0],
    )
    assert mirror.refresh().signer is None
    clock[0] += timedelta(days=1, minutes=1)
    assert mirror.commit(sha).signer == key
    (tmp_path / "ring.gpg").unlink()
    assert mirror.commit(sha).signer == key
