"""`reconciler image sign` as it is called: what it asks for, and what it says of wrong calls. Signing itself: tests/controller."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.main import cli
from reconciler.ports import TerminalError
from tests.support.gpg import make_home
from tests.support.settings import write_settings

KEY = "0123456789ABCDEF0123456789ABCDEF01234567"


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, ["image", "sign", *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["v1"], "say where the artifact is: --store PLACE, --from DIR, or --config FILE"),
        (["v1", "--store", "/nonexistent/x"], "--store: there is no folder /nonexistent/x"),
        (["v1", "--store", "."], "say which key signs: --key FINGERPRINT"),
        (["v1", "--from", ".", "--attach", "x"], "--attach puts a signature into the store"),
        ([], "Missing argument 'RELEASE'"),
    ],
)
def test_a_wrong_call_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.exit_code == 2 and said in done.output


def test_a_fingerprint_is_whole(tmp_path: Path) -> None:
    done = call("v1", "--store", str(tmp_path), "--key", "ABCD")
    assert isinstance(done.exception, TerminalError) and "'ABCD' is not a fingerprint" in str(done.exception)


def test_a_settings_file_in_the_folder_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = call("v1", "--attach", "nowhere.gpg")
    assert isinstance(done.exception, TerminalError) and "cannot read nowhere.gpg" in str(done.exception)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "words", [("--attach", "pipe"), ("--attach", "/dev/zero"), ("--from", "carried", "--key", KEY)]
)
def test_what_is_no_file_is_not_waited_for(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reconciler.adapters.gpg_hand.PersonalKey.public", lambda self: b"")
    Path("carried").mkdir()
    for name in ("pipe", "carried/SHA256SUMS"):
        os.mkfifo(name)
    done = call("v1", *words, *(("--store", ".") if "--attach" in words else ()))
    assert isinstance(done.exception, TerminalError) and "not a regular file" in str(done.exception)


@pytest.mark.system
def test_a_key_that_gpg_lacks_is_said_before_anything_is_checked(tmp_path: Path) -> None:
    with make_home() as home:
        done = call("v1", "--store", str(tmp_path), "--key", KEY, "--home", str(home.path))
    assert isinstance(done.exception, TerminalError)
    assert f"gpg has no key {KEY}" in str(done.exception) and "--card-edit" in str(done.exception)
