"""The newest versions of pins, asked of real apt over a signed repository in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.image.newest import newest, offered
from reconciler.ports import TerminalError, TransientError
from tests.support.apt import Repository
from tests.support.gpg import Home, make_home
from tests.support.system import need

pytestmark = pytest.mark.system

PACKAGES = {
    "docker-ce": ["5:27.1.2-1~ubuntu.22.04~jammy", "5:27.5.1-1~ubuntu.22.04~jammy", "5:9.0-1"],
    "curl": ["7.9-1", "7.10-1+deb12u1", "7.10-1~bpo1"],
    "libc.x": ["1"],
}


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with make_home() as made:
        yield made


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, home: Home) -> Repository:
    """A repository that no test changes."""
    need("apt-get", "apt")
    made = Repository(tmp_path_factory.mktemp("apt"), home)
    made.offer(PACKAGES)
    return made


def refused(pins: dict[str, str], *sources: str, kind: type[Exception] = TerminalError) -> str:
    """What is said where the newest versions cannot be told."""
    with pytest.raises(kind) as caught:
        newest(pins, sources)
    return str(caught.value)


def test_pins_are_brought_to_the_newest_as_dpkg_orders_versions(repository: Repository) -> None:
    pins = {"docker-ce": "5:27.1.2-1~ubuntu.22.04~jammy", "curl": "7.9-1"}
    assert newest(pins, [repository.line]) == {"docker-ce": "5:27.5.1-1~ubuntu.22.04~jammy", "curl": "7.10-1+deb12u1"}


def test_a_pin_that_is_the_newest_stays(repository: Repository) -> None:
    assert newest({"curl": "7.10-1+deb12u1"}, [repository.line]) == {"curl": "7.10-1+deb12u1"}
    assert newest({}, []) == {}


def test_every_pin_that_cannot_be_had_is_named_with_the_sources(repository: Repository) -> None:
    said = refused({"curl": "7.9-1", "nvidia-driver-535-server": "535.1-1", "libcax": "1"}, repository.line)
    assert "nvidia-driver-535-server (535.1-1 is pinned) is offered by none" in said
    assert "libcax (1 is pinned)" in said and "curl" not in said.replace("libc", "")
    assert f"{repository.address} bookworm main" in said and "--downgrade" not in said
    # apt takes a name that it does not know for a pattern, and tells of what that matches.
    assert offered(["lib..x"], [repository.line]) == {} and set(offered(["libc.x"], [repository.line])) == {"libc.x"}


def test_nothing_goes_down_unless_that_is_said(repository: Repository) -> None:
    said = refused({"curl": "1:1.0-1"}, repository.line)
    assert (
        "curl: 1:1.0-1 is pinned and gone, and the newest, 7.10-1+deb12u1, is lower" in said and "--downgrade" in said
    )
    assert newest({"curl": "1:1.0-1"}, [repository.line], downgrade=True) == {"curl": "7.10-1+deb12u1"}
    assert "bad syntax" in refused({"curl": "a b"}, repository.line)


def test_a_pin_that_apt_would_not_choose_by_itself_stays(tmp_path: Path, home: Home, repository: Repository) -> None:
    later = Repository(tmp_path, home, "backports")
    later.offer({"curl": ["8.0-1"]}, more="NotAutomatic: yes\n")
    sources = [repository.line, later.line]
    assert newest({"curl": "8.0-1"}, sources) == {"curl": "8.0-1"}
    assert newest({"curl": "7.9-1"}, sources) == {"curl": "7.10-1+deb12u1"}
    later.offer({"curl": ["8.0-1"]})
    deb822 = f"Types: deb\nURIs: {later.address}\nSuites: backports\nComponents: main\nSigned-By: {later.key}"
    assert newest({"curl": "7.9-1"}, [repository.line, deb822]) == {"curl": "8.0-1"}


def test_a_source_that_its_key_did_not_sign_is_refused(tmp_path: Path, home: Home, repository: Repository) -> None:
    mine = Repository(tmp_path, home, "mine")
    mine.offer(PACKAGES, signed_by="")
    assert "is not signed" in refused({"curl": "7.9-1"}, mine.line)
    mine.offer(PACKAGES, signed_by=repository.signer)
    said = refused({"curl": "7.9-1"}, mine.line)
    assert "apt refused a source" in said and repository.signer[-16:] in said
    mine.offer(PACKAGES)
    released = tmp_path / "dists/mine/InRelease"
    released.write_bytes(released.read_bytes().replace(b"Origin: test", b"Origin: evil"))
    assert "BADSIG" in refused({"curl": "7.9-1"}, mine.line)
    mine.offer(PACKAGES)
    packages = tmp_path / "dists/mine/main/binary-amd64/Packages"
    packages.write_bytes(packages.read_bytes().replace(b"7.10", b"7.11"))
    assert "Hash" in refused({"curl": "7.9-1"}, mine.line, kind=TransientError)
    mine.offer(PACKAGES, signed_by="")
    for line in (
        f"deb [trusted=yes] {mine.address} mine main",
        f"Types: deb\nURIs: {mine.address}\nSuites: mine\nComponents: main\nTrusted: yes",
    ):
        assert "what nobody signed" in refused({"curl": "7.9-1"}, line)


def test_what_does_not_answer_may_pass_and_what_is_not_there_does_not(repository: Repository) -> None:
    said = refused({"curl": "1"}, "deb http://ada:secret@127.0.0.1:9/debian bookworm main", kind=TransientError)
    assert "127.0.0.1" in said and "secret" not in said
    assert "does not have a Release file" in refused(
        {"curl": "1"}, repository.line.replace("bookworm main", "jammy main")
    )
    assert "no name of a package" in refused({"--config-file=/x": "1"}, repository.line)


def test_nothing_of_the_machine_takes_part(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that the caller's environment names would run a command, and name another architecture."""
    evil = tmp_path / "evil.conf"
    evil.write_text(f'APT::Update::Post-Invoke {{ "touch {tmp_path}/ran"; }};\nAPT::Architecture "arm64";\n')
    monkeypatch.setenv("APT_CONFIG", str(evil))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert newest({"curl": "7.9-1"}, [repository.line]) == {"curl": "7.10-1+deb12u1"}
    assert os.listdir(tmp_path) == ["evil.conf"]
