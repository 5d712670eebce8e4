"""The contract of `ports.Secrets`, over a folder of files and over Secrets Manager (moto)."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any, Protocol

import pytest

from reconciler.adapters.aws import Aws
from reconciler.adapters.secrets_aws import SecretsManager
from reconciler.adapters.secrets_dir import DirectorySecrets
from reconciler.ports import Secrets, TerminalError

SENTINEL = "sentinel-0d9f-wireguard-key"
_numbers = itertools.count()


class Place(Protocol):
    """A store of secrets, and how they come into it."""

    def open(self) -> Secrets: ...
    def put(self, reference: str, value: str) -> None: ...
    def put_bytes(self, reference: str, value: bytes) -> None: ...
    def remove(self, reference: str) -> None: ...


class FolderPlace:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)

    def open(self) -> DirectorySecrets:
        return DirectorySecrets(self.folder)

    def put(self, reference: str, value: str) -> None:
        self.put_bytes(reference, value.encode() + b"\n")

    def put_bytes(self, reference: str, value: bytes) -> None:
        path = self.folder / reference
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(value)

    def remove(self, reference: str) -> None:
        (self.folder / reference).unlink()


class ManagerPlace:
    def __init__(self, aws: Aws, one_by_one: int) -> None:
        self.aws, self.client, self.one_by_one = aws, aws.client("secretsmanager"), one_by_one

    def open(self) -> SecretsManager:
        return SecretsManager(self.aws, one_by_one=self.one_by_one)

    def put(self, reference: str, value: str) -> None:
        if self.open().versions([reference]):
            self.client.put_secret_value(SecretId=reference, SecretString=value)
        else:
            self.client.create_secret(Name=reference, SecretString=value)

    def put_bytes(self, reference: str, value: bytes) -> None:
        self.client.create_secret(Name=reference, SecretBinary=value)

    def remove(self, reference: str) -> None:
        self.client.delete_secret(SecretId=reference, RecoveryWindowInDays=7)


@pytest.fixture(params=["folder", "described", "listed"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return FolderPlace(tmp_path / "secrets")
    return ManagerPlace(request.getfixturevalue("aws"), 1000 if request.param == "described" else 0)


@pytest.fixture
def site() -> str:
    return f"edge/SITE-{next(_numbers):04}"


def test_a_value_is_read_and_its_version_changes_with_it_alone(place: Place, site: str) -> None:
    place.put(f"{site}/vpn", SENTINEL)
    place.put(f"{site}/tls", SENTINEL)
    store = place.open()
    assert store.value(f"{site}/vpn") == SENTINEL
    first = store.versions([f"{site}/vpn", f"{site}/tls"])
    assert store.versions([f"{site}/tls", f"{site}/vpn"]) == first == place.open().versions(first)
    place.put(f"{site}/vpn", "another value")
    second = store.versions(first)
    assert second[f"{site}/vpn"] != first[f"{site}/vpn"] and second[f"{site}/tls"] == first[f"{site}/tls"]
    assert place.open().value(f"{site}/vpn") == "another value"


def test_a_version_does_not_tell_the_value(place: Place, site: str) -> None:
    place.put(f"{site}/a", "1234")
    place.put(f"{site}/b", "1234")
    versions = place.open().versions([f"{site}/a", f"{site}/b"])
    assert versions[f"{site}/a"] != versions[f"{site}/b"]
    assert "1234" not in "".join(versions.values())


def test_what_does_not_exist_has_no_version_and_no_value(place: Place, site: str) -> None:
    place.put(f"{site}/vpn", SENTINEL)
    store = place.open()
    assert set(store.versions([f"{site}/vpn", f"{site}/none"])) == {f"{site}/vpn"}
    assert store.versions([]) == {}
    with pytest.raises(TerminalError, match=f"{site}/none") as caught:
        store.value(f"{site}/none")
    assert caught.value.remedy


def test_a_removed_secret_is_gone(place: Place, site: str) -> None:
    place.put(f"{site}/vpn", SENTINEL)
    place.remove(f"{site}/vpn")
    store = place.open()
    assert store.versions([f"{site}/vpn"]) == {}
    with pytest.raises(TerminalError) as caught:
        store.value(f"{site}/vpn")
    assert SENTINEL not in repr(caught.value)


def test_bytes_that_are_no_text_are_refused_without_showing_them(place: Place, site: str) -> None:
    place.put_bytes(f"{site}/binary", b"\xff\xfe" + SENTINEL.encode())
    with pytest.raises(TerminalError, match="is not text") as caught:
        place.open().value(f"{site}/binary")
    assert SENTINEL not in repr(caught.value) and caught.value.__cause__ is None


def test_values_keep_lines_and_letters(place: Place, site: str) -> None:
    value = "[Interface]\nPrivateKey = x\n\n# schlüssel ✓"
    place.put(f"{site}/vpn", value)
    assert place.open().value(f"{site}/vpn") == value


# ---------------------------------------------------------------- the folder alone


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    place = FolderPlace(tmp_path / "secrets")
    place.put("vpn", SENTINEL)
    (place.folder / "vpn").chmod(mode)
    store = place.open()
    for ask in (lambda: store.value("vpn"), lambda: store.versions(["vpn"])):
        with pytest.raises(TerminalError, match="open to others") as caught:
            ask()
        assert "chmod 0600" in caught.value.remedy and SENTINEL not in str(caught.value)


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets").chmod(0o777)
    with pytest.raises(TerminalError, match="only its owner may write"):
        DirectorySecrets(tmp_path / "secrets")
    with pytest.raises(TerminalError, match="cannot read"):
        DirectorySecrets(tmp_path / "absent")


@pytest.mark.parametrize(
    "reference", ["../outside", "/etc/shadow", "a/../../outside", ".version-key", "a//b", "", "a/."]
)
def test_a_reference_cannot_leave_the_folder(tmp_path: Path, reference: str) -> None:
    place = FolderPlace(tmp_path / "secrets")
    (tmp_path / "outside").write_text(SENTINEL)
    (tmp_path / "outside").chmod(0o600)
    with pytest.raises(TerminalError, match="not a reference"):
        place.open().value(reference)


def test_a_link_cannot_leave_the_folder_and_a_pipe_is_no_secret(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "secrets")
    (tmp_path / "outside").write_text(SENTINEL)
    (tmp_path / "outside").chmod(0o600)
    (place.folder / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(place.folder / "pipe", 0o600)
    (place.folder / "dir").mkdir(mode=0o700)
    store = place.open()
    with pytest.raises(TerminalError, match="leads out of"):
        store.value("link")
    for name in ("pipe", "dir"):
        with pytest.raises(TerminalError, match="not a regular file"):
            store.value(name)


def test_a_secret_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "secrets")
    place.put_bytes("vpn", b"x" * 65537)
    with pytest.raises(TerminalError, match="65537 bytes"):
        place.open().value("vpn")


def test_the_version_key_is_private_and_made_once(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "secrets")
    place.put("vpn", SENTINEL)
    first = place.open().versions(["vpn"])
    key = place.folder / ".version-key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    assert [path.name for path in place.folder.iterdir() if path.name.startswith(".part")] == []
    assert place.open().versions(["vpn"]) == first
    key.unlink()
    assert place.open().versions(["vpn"]) != first
    key.write_bytes(b"short")
    with pytest.raises(TerminalError, match="not a version key"):
        place.open().versions(["vpn"])
    elsewhere = DirectorySecrets(place.folder, key_file=tmp_path / "key")
    assert elsewhere.versions(["vpn"]) and (tmp_path / "key").exists()


# ---------------------------------------------------------------- Secrets Manager alone


@pytest.mark.slow
def test_many_secrets_are_listed_over_all_pages_and_arns_are_references_too(aws: Aws, site: str) -> None:
    place = ManagerPlace(aws, 20)
    names = [f"{site}/camera-{number:03}" for number in range(130)]
    arns = [aws.client("secretsmanager").create_secret(Name=name, SecretString="x")["ARN"] for name in names]
    versions = place.open().versions(names)
    assert set(versions) == set(names) and len(set(versions.values())) == 130
    by_arn = place.open().versions(arns)
    assert [by_arn[arn] for arn in arns] == [versions[name] for name in names]
    assert place.open().versions(arns[:2]) == {arn: by_arn[arn] for arn in arns[:2]}


def test_a_secret_scheduled_for_deletion_says_how_to_get_it_back(aws: Aws, site: str) -> None:
    client = aws.client("secretsmanager")
    client.create_secret(Name=f"{site}/vpn", SecretString=SENTINEL)
    client.delete_secret(SecretId=f"{site}/vpn", RecoveryWindowInDays=7)
    with pytest.raises(TerminalError, match="scheduled for deletion") as caught:
        SecretsManager(aws).value(f"{site}/vpn")
    assert "RestoreSecret" in caught.value.remedy


def test_a_secret_without_a_current_version_has_none(aws: Aws, site: str) -> None:
    aws.client("secretsmanager").create_secret(Name=f"{site}/empty")
    for one_by_one in (0, 20):
        assert SecretsManager(aws, one_by_one=one_by_one).versions([f"{site}/empty"]) == {}
    with pytest.raises(TerminalError):
        SecretsManager(aws).value(f"{site}/empty")


def test_values_are_never_fetched_for_versions(aws: Aws, site: str) -> None:
    client = aws.client("secretsmanager")
    client.create_secret(Name=f"{site}/vpn", SecretString=SENTINEL)
    asked: list[str] = []

    def note(model: Any, **_: Any) -> None:
        asked.append(model.name)

    client.meta.events.register("before-call.secretsmanager", note)
    for one_by_one in (0, 20):
        SecretsManager(aws, one_by_one=one_by_one).versions([f"{site}/vpn"])
    assert sorted(asked) == ["DescribeSecret", "ListSecrets"]
