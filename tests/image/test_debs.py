"""Resolving, pinning and fetching by the real apt, from a small signed repository of real packages in a folder."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reconciler.image.debs import Apt, lasting, newest
from reconciler.image.mirrors import Entry
from reconciler.image.newest import offered
from reconciler.image.process import Surroundings
from reconciler.ports import TerminalError, TransientError
from tests.support.gpg import Home, make_home
from tests.support.system import need

pytestmark = pytest.mark.system


class Mirror:
    """A repository with the packages `base` (essential), `apt`, `tool` in two versions, and `broken`, which needs more."""

    def __init__(self, folder: Path, home: Home) -> None:
        self.folder = folder
        (folder / "dists/stable/main/binary-amd64").mkdir(parents=True)
        index = ""
        for name, version, more in (
            ("base", "1", "Essential: yes\n"),
            ("apt", "2.6", ""),
            ("tool", "1:1.0-1", "Depends: base\n"),
            ("tool", "1:1.0-2", "Depends: base\n"),
            ("broken", "1", "Depends: nonesuch\n"),
        ):
            index += self._package(name, version, more)
        (folder / "dists/stable/main/binary-amd64/Packages").write_text(index)
        self.key = home.generate("archive <archive@mirror.example>")
        (folder / "key.asc").write_bytes(home.run("--armor", "--export", self.key))
        self.sign(home, self.key)

    def sign(self, home: Home, key: str) -> None:
        """Write InRelease, signed by a key of a home."""
        data = (self.folder / "dists/stable/main/binary-amd64/Packages").read_bytes()
        release = (
            "Suite: stable\nCodename: stable\nComponents: main\nArchitectures: amd64\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n"
            f"SHA256:\n {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-amd64/Packages\n"
        )
        (self.folder / "dists/stable/InRelease").write_bytes(home.clearsign(release.encode(), key))

    def entry(self) -> Entry:
        """The source. `copy:`: files of a `file:` address apt would use in place."""
        return Entry(f"copy:{self.folder}", "stable", ("main",), self.folder / "key.asc")

    def _package(self, name: str, version: str, more: str) -> str:
        tree = self.folder / "tree" / f"{name}{version[-1]}"
        (tree / "DEBIAN").mkdir(parents=True)
        fields = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x <x@mirror.example>\n"
        control = f"{fields}{more}Description: x\n"
        (tree / "DEBIAN/control").write_text(control)
        deb = self.folder / f"{name}_{version.replace(':', '.')}.deb"
        argv = [need("dpkg-deb", "dpkg"), "--root-owner-group", "-b", str(tree), str(deb)]
        subprocess.run(
            argv, check=True, capture_output=True, env={"SOURCE_DATE_EPOCH": "1700000000", "PATH": "/usr/bin:/bin"}
        )
        data = deb.read_bytes()
        return f"{control}Filename: {deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    need("apt-get", "apt")
    with make_home() as home:
        return Mirror(tmp_path_factory.mktemp("mirror"), home)


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    (tmp_path / "log").write_bytes(b"")
    (tmp_path / "scratch").mkdir()
    where = Surroundings(tmp_path / "scratch", tmp_path / "log", 60)
    return Apt(where, tmp_path / "apt", tmp_path / "debs", "amd64")


def test_the_whole_system_is_known_and_fetched_before_anything_is_installed(
    tmp_path: Path, mirror: Mirror, apt: Apt
) -> None:
    apt.update([mirror.entry()], {})
    debs = apt.resolve(["tool"], {})
    assert [(deb.package, deb.version) for deb in debs] == [("apt", "2.6"), ("base", "1"), ("tool", "1:1.0-2")]
    apt.fetch(debs)
    assert all(hashlib.sha256(apt.file(deb).read_bytes()).hexdigest() == deb.sha256 for deb in debs)
    assert newest(apt.file(deb) for deb in debs) == 1700000000
    # What is there is not fetched again, what is damaged is.
    before = (tmp_path / "log").read_text().count("--download-only")
    apt.fetch(debs)
    assert (tmp_path / "log").read_text().count("--download-only") == before
    apt.file(debs[0]).write_bytes(b"x" * debs[0].size)
    apt.fetch(debs)
    assert hashlib.sha256(apt.file(debs[0]).read_bytes()).hexdigest() == debs[0].sha256


def test_a_pin_is_exact(mirror: Mirror, apt: Apt) -> None:
    apt.update([mirror.entry()], {"tool": "1:1.0-1"})
    assert ("tool", "1:1.0-1") in [(deb.package, deb.version) for deb in apt.resolve(["tool"], {"tool": "1:1.0-1"})]


@pytest.mark.parametrize(
    ("pins", "packages", "said"),
    [
        ({"tool": "1:9"}, ["tool"], r"no package source has the pin tool=1:9 \(there is 1:1.0-2, 1:1.0-1\)"),
        ({"other": "1"}, ["tool"], r"no package source has the pin other=1 \(there is no such package\)"),
        ({"tool": "1:1.0-1"}, ["base"], "the pin tool=1:1.0-1 has no effect, the image does not have that package"),
        ({}, ["tool", "absent"], "Unable to locate package absent"),
        ({}, ["broken"], "nonesuch|unmet dependencies|held broken"),
    ],
)
def test_what_is_not_to_be_had_is_named(
    mirror: Mirror, apt: Apt, pins: dict[str, str], packages: list[str], said: str
) -> None:
    apt.update([mirror.entry()], pins)
    with pytest.raises(TerminalError, match=f"stage 'packages'.*({said})"):
        apt.resolve(packages, pins)


def test_an_index_by_another_key_is_refused_for_good(mirror: Mirror, apt: Apt) -> None:
    with make_home() as home:
        other = home.generate("somebody else")
        good = (mirror.folder / "dists/stable/InRelease").read_bytes()
        mirror.sign(home, other)
        try:
            with pytest.raises(TerminalError, match="a package source is not to be had"):
                apt.update([mirror.entry()], {})
        finally:
            (mirror.folder / "dists/stable/InRelease").write_bytes(good)


def test_a_mirror_that_does_not_answer_may_later(tmp_path: Path, mirror: Mirror, apt: Apt) -> None:
    away = Entry("http://127.0.0.1:9/debian", "stable", ("main",), mirror.folder / "key.asc")
    with pytest.raises(TransientError, match="a mirror does not answer"):
        apt.update([away], {})


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The address of a mirror that answers everything with one status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/debian"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "kind"), [(503, TransientError), (404, TerminalError), (403, TerminalError)])
def test_a_build_and_a_bump_take_a_mirrors_answer_alike(
    mirror: Mirror, apt: Apt, status: int, kind: type[TransientError] | type[TerminalError]
) -> None:
    with answering(status) as address:
        source = Entry(address, "stable", ("main",), mirror.folder / "key.asc")
        with pytest.raises(kind):
            apt.update([source], {})
        with pytest.raises(kind):
            offered(["tool"], [source.line("amd64")])


@pytest.mark.parametrize(
    ("said", "stays"),
    [
        ("E: The repository 'x' does not have a Release file.", True),
        ("E: Failed to fetch x  503  Service Unavailable; E: The repository 'x InRelease' is not signed.", False),
        ("W: GPG error: x: NO_PUBKEY 0123; E: Failed to fetch y  503  Service Unavailable", True),
        ("E: Malformed entry 1 in list file x (Component)", True),
        ("E: Failed to fetch x  Hash Sum mismatch", False),
        ("E: something that no apt has said before", False),
    ],
)
def test_what_apt_says_lasts_or_passes(said: str, stays: bool) -> None:
    assert lasting(said) is stays
