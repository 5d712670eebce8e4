"""The contract of `ports.ImageStore`, over a directory and over S3 (moto)."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from reconciler.adapters.aws import Aws
from reconciler.adapters.image_folders import FolderImageStore
from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.ports import ImageStore, TerminalError
from reconciler.protocol.sums import format_sums
from tests.adapters.artifacts import FOLDER, IMAGE, SIGNATURE, digest_of, pack
from tests.adapters.image_places import BucketPlace, DirectoryPlace, Place

NOW = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
BIG = bytes(range(256)) * 4096 * 6  # 6 MiB: two parts


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        return DirectoryPlace(tmp_path / "images")
    return BucketPlace(request.getfixturevalue("aws"))


@pytest.fixture
def store(place: Place) -> FolderImageStore:
    return place.open(now=lambda: NOW)


def state(store: ImageStore, release: str = "v1.4.2") -> str:
    artifact = store.artifacts().get(release)
    return artifact.state.value if artifact else "absent"


def published(store: ImageStore, folder: Path) -> None:
    store.stage("v1.4.2", FOLDER, pack(folder))
    store.attach_signature("v1.4.2", SIGNATURE)
    store.publish("v1.4.2")


@pytest.mark.slow
def test_a_release_goes_from_absent_to_published(store: FolderImageStore, tmp_path: Path) -> None:
    files = pack(tmp_path / "built")
    identity = digest_of((tmp_path / "built" / IMAGE).read_bytes())
    assert store.artifacts() == {} and store.folder("v1.4.2") is None
    store.stage("v1.4.2", FOLDER, files)
    assert (state(store), store.artifacts()["v1.4.2"].digest) == ("built", identity)
    store.attach_signature("v1.4.2", SIGNATURE)
    assert (state(store), store.artifacts()["v1.4.2"].digest) == ("signed", identity)
    store.publish("v1.4.2")
    assert (state(store), store.artifacts()["v1.4.2"].digest) == ("published", identity)
    assert store.folder("v1.4.2") == FOLDER
    assert store.read("v1.4.2", "SHA256SUMS.gpg") == SIGNATURE
    assert json.loads(store.read("v1.4.2", "manifest.json")) == {"release": "v1.4.2"}


def test_the_index_says_what_was_read_back(place: Place, store: FolderImageStore, tmp_path: Path) -> None:
    published(store, tmp_path / "built")
    entry = json.loads(place.content("index.json"))["releases"][0]
    assert (entry["release"], entry["folder"], entry["publishedAt"]) == ("v1.4.2", FOLDER, "2026-01-15T01:30:00Z")
    assert entry["digest"] == digest_of((tmp_path / "built" / IMAGE).read_bytes())
    assert entry["sums"] == digest_of((tmp_path / "built" / "SHA256SUMS").read_bytes())
    names = [file["name"] for file in entry["files"]]
    assert names == ["SHA256SUMS", "SHA256SUMS.gpg", IMAGE, "manifest.json", "packages.txt"]


def test_a_release_has_the_size_that_a_device_downloads_at_every_step(store: FolderImageStore, tmp_path: Path) -> None:
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=b"x" * 12_345))
    assert store.artifacts()["v1.4.2"].size == 12_345
    store.attach_signature("v1.4.2", SIGNATURE)
    store.publish("v1.4.2")
    assert store.artifacts()["v1.4.2"].size == 12_345


def test_every_step_may_be_repeated_also_after_a_restart(place: Place, tmp_path: Path) -> None:
    for _ in range(2):
        published(place.open(now=lambda: NOW), tmp_path / "built")
    before = place.content("index.json")
    published(place.open(now=lambda: datetime(2027, 1, 1, tzinfo=UTC)), tmp_path / "built")
    assert place.content("index.json") == before


@pytest.mark.slow
def test_a_large_file_arrives_whole(store: FolderImageStore, tmp_path: Path) -> None:
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=BIG))
    store.attach_signature("v1.4.2", SIGNATURE)
    store.publish("v1.4.2")
    file = store.download("v1.4.2", IMAGE, tmp_path / "copy.img.zst")
    assert (file.name, file.size, f"sha256:{file.sha256}") == (IMAGE, len(BIG), digest_of(BIG))
    assert (tmp_path / "copy.img.zst").read_bytes() == BIG


def test_other_bytes_under_a_staged_name_are_refused(place: Place, store: FolderImageStore, tmp_path: Path) -> None:
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "one"))
    before = {path: place.content(path) for path in place.paths()}
    with pytest.raises(TerminalError, match="holds other bytes"):
        store.stage("v1.4.2", FOLDER, pack(tmp_path / "two", image=b"another image"))
    assert {path: place.content(path) for path in place.paths()} == before


def test_staging_goes_on_where_a_kill_left_it(place: Place, tmp_path: Path) -> None:
    files = pack(tmp_path / "built")
    for count in range(len(files)):
        # Killed before file `count`: those before it are there. SHA256SUMS is last, so nothing shows yet.
        for file in files[:count]:
            place.tamper(f"{FOLDER}/{file.name}", file.read_bytes())
        assert state(place.open()) == "absent"
    place.open().stage("v1.4.2", FOLDER, files)
    assert state(place.open()) == "built"


def test_files_that_are_not_those_of_the_sums_are_refused(
    place: Place, store: FolderImageStore, tmp_path: Path
) -> None:
    files = pack(tmp_path / "built")
    (tmp_path / "built" / "extra").write_bytes(b"?")
    with pytest.raises(TerminalError, match="extra is not listed"):
        store.stage("v1.4.2", FOLDER, [*files, tmp_path / "built" / "extra"])
    with pytest.raises(TerminalError, match="listed in SHA256SUMS but not given"):
        store.stage("v1.4.2", FOLDER, files[1:])
    with pytest.raises(TerminalError, match="SHA256SUMS is not among"):
        store.stage("v1.4.2", FOLDER, files[:-1])
    files[0].write_bytes(b"changed since it was hashed")
    with pytest.raises(TerminalError, match=r"has sha256 .*, SHA256SUMS says"):
        store.stage("v1.4.2", FOLDER, files)
    assert state(store) == "absent" and place.paths() == []


@pytest.mark.parametrize("name", ["edge-golden-v1.4.1-20251115", "v1.4.2", "../v1.4.2-20251115", "edge-golden-v1.4.2"])
def test_a_folder_that_does_not_name_the_release_is_refused(store: FolderImageStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(TerminalError, match=r"does not name an artifact of v1\.4\.2"):
        store.stage("v1.4.2", name, pack(tmp_path / "built"))


def test_an_artifact_has_one_image_file_and_a_manifest(store: FolderImageStore, tmp_path: Path) -> None:
    files = pack(tmp_path / "built")
    sums = {line.split()[1]: line.split()[0] for line in files[-1].read_text().splitlines()}
    files[-1].write_bytes(format_sums({name: value for name, value in sums.items() if name != IMAGE}))
    with pytest.raises(TerminalError, match="no image file"):
        store.stage("v1.4.2", FOLDER, files)
    files[-1].write_bytes(format_sums({name: value for name, value in sums.items() if name != "manifest.json"}))
    with pytest.raises(TerminalError, match=r"does not list manifest\.json"):
        store.stage("v1.4.2", FOLDER, files)


def test_publishing_refuses_what_is_absent_or_unsigned(store: FolderImageStore, tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match=r"v1\.4\.2 is not in the image store"):
        store.publish("v1.4.2")
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    with pytest.raises(TerminalError, match=r"SHA256SUMS\.gpg is missing"):
        store.publish("v1.4.2")
    assert state(store) == "built"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["changed", "missing", "stranger", "sums"])
def test_bytes_that_do_not_match_make_a_release_broken_until_they_are_put_back(
    place: Place, store: FolderImageStore, tmp_path: Path, what: str
) -> None:
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    store.attach_signature("v1.4.2", SIGNATURE)
    good = place.content(f"{FOLDER}/{IMAGE}"), place.content(f"{FOLDER}/SHA256SUMS")
    if what == "changed":
        place.tamper(f"{FOLDER}/{IMAGE}", good[0][:-1] + b"?")
    elif what == "missing":
        place.remove(f"{FOLDER}/{IMAGE}")
    elif what == "stranger":
        place.tamper(f"{FOLDER}/payload", b"unsigned")
    else:
        place.tamper(f"{FOLDER}/SHA256SUMS", b"no sums\n")
    with pytest.raises(TerminalError) as caught:
        store.publish("v1.4.2")
    assert FOLDER in str(caught.value)
    assert state(store) == "broken" and state(place.open()) == "broken"
    assert json.loads(place.content("index.json"))["releases"] == []
    if what == "stranger":
        place.remove(f"{FOLDER}/payload")
    place.tamper(f"{FOLDER}/{IMAGE}", good[0])
    place.tamper(f"{FOLDER}/SHA256SUMS", good[1])
    assert state(store) == "signed"
    store.publish("v1.4.2")
    assert state(store) == "published"


def test_a_published_release_is_immutable(place: Place, store: FolderImageStore, tmp_path: Path) -> None:
    published(store, tmp_path / "built")
    before = {path: place.content(path) for path in place.paths()}
    with pytest.raises(TerminalError, match="published already"):
        store.stage("v1.4.2", FOLDER, pack(tmp_path / "two", image=b"another image"))
    with pytest.raises(TerminalError, match="published already"):
        store.stage("v1.4.2", "edge-golden-v1.4.2-20251231", pack(tmp_path / "built"))
    with pytest.raises(TerminalError, match="another signature"):
        store.attach_signature("v1.4.2", b"another")
    store.attach_signature("v1.4.2", SIGNATURE)
    assert {path: place.content(path) for path in place.paths()} == before


def test_a_published_release_that_loses_a_file_is_broken_and_can_be_restored(
    place: Place, store: FolderImageStore, tmp_path: Path
) -> None:
    published(store, tmp_path / "built")
    place.remove(f"{FOLDER}/{IMAGE}")
    assert state(store) == "broken"
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    assert state(store) == "published"
    place.tamper(f"{FOLDER}/{IMAGE}", b"short")
    assert state(store) == "broken"


def test_a_download_of_wrong_bytes_leaves_nothing(place: Place, store: FolderImageStore, tmp_path: Path) -> None:
    published(store, tmp_path / "built")
    size = len(place.content(f"{FOLDER}/{IMAGE}"))
    place.tamper(f"{FOLDER}/{IMAGE}", b"x" * size)
    (tmp_path / "here").mkdir()
    with pytest.raises(TerminalError, match="SHA256SUMS says"):
        store.download("v1.4.2", IMAGE, tmp_path / "here" / "image")
    assert list((tmp_path / "here").iterdir()) == []


def test_what_is_absent_or_no_file_name_is_refused(store: FolderImageStore, tmp_path: Path) -> None:
    published(store, tmp_path / "built")
    for ask in (
        lambda: store.read("v9", "manifest.json"),
        lambda: store.read("v1.4.2", "nothing"),
        lambda: store.read("v1.4.2", "../index.json"),
        lambda: store.download("v1.4.2", "nothing", tmp_path / "x"),
        lambda: store.url("v1.4.2", "../../etc/passwd"),
        lambda: store.url("v9", "manifest.json"),
        lambda: store.attach_signature("v9", SIGNATURE),
        lambda: store.attach_signature("v1.4.2", b""),
    ):
        with pytest.raises(TerminalError):
            ask()
    with pytest.raises(ValueError, match="expires_s"):
        store.url("v1.4.2", IMAGE, expires_s=8 * 86400)
    assert not (tmp_path / "x").exists()


def test_read_does_not_take_an_image_into_memory(store: FolderImageStore, tmp_path: Path) -> None:
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=BIG[: 2 << 20]))
    with pytest.raises(TerminalError, match="larger than"):
        store.read("v1.4.2", IMAGE)


def test_the_latest_folder_of_an_unpublished_release_counts_and_strangers_do_not(
    place: Place, store: FolderImageStore, tmp_path: Path
) -> None:
    late = "edge-golden-v1.4.2-20251201"
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "one"))
    store.stage("v1.4.2", late, pack(tmp_path / "two", image=b"built again", name=late))
    place.tamper("edge-golden-v1.4.2-20251224/packages.txt", b"a build that was cut off")
    place.tamper("notes/SHA256SUMS", b"not an artifact")
    place.tamper("edge-lab-v1.5.0-20251201/SHA256SUMS", place.content(f"{FOLDER}/SHA256SUMS"))
    assert store.folder("v1.4.2") == late
    assert store.artifacts()["v1.4.2"].digest == digest_of(b"built again")
    assert set(store.artifacts()) == {"v1.4.2", "v1.5.0"}
    assert state(store, "v1.5.0") == "broken"  # its files are not there
    assert set(place.open(family="edge-golden").artifacts()) == {"v1.4.2"}
    with pytest.raises(TerminalError, match="not of family"):
        place.open(family="edge-lab").stage("v1.4.2", FOLDER, pack(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"{", b"[]", b'{"apiVersion": "images/v2"}', b'{"releases": [{"release": "v1"}]}'])
def test_an_index_that_is_none_is_never_overwritten(
    place: Place, store: FolderImageStore, tmp_path: Path, data: bytes
) -> None:
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    store.attach_signature("v1.4.2", SIGNATURE)
    place.tamper("index.json", data)
    for ask in (store.artifacts, lambda: store.publish("v1.4.2")):
        with pytest.raises(TerminalError, match="is not an index of images"):
            ask()
    assert place.content("index.json") == data


@pytest.mark.slow
def test_writers_at_once_lose_no_release(place: Place, tmp_path: Path) -> None:
    releases = [f"v1.5.{number}" for number in range(6)]
    for release in releases:
        folder = f"edge-golden-{release}-20251115"
        place.open().stage(release, folder, pack(tmp_path / release, release, release.encode(), folder))
        place.open().attach_signature(release, SIGNATURE)
    errors: list[BaseException] = []
    start = threading.Barrier(len(releases))

    def publish(release: str) -> None:
        try:
            store = place.open()
            start.wait(60)
            store.publish(release)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(release,)) for release in releases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert {release: state(place.open(), release) for release in releases} == dict.fromkeys(releases, "published")


def test_a_device_fetches_the_file_from_its_address(
    place: Place, store: FolderImageStore, tmp_path: Path, aws: Aws
) -> None:
    published(store, tmp_path / "built")
    url = store.url("v1.4.2", IMAGE, expires_s=60)
    if isinstance(place, DirectoryPlace):
        assert url == (place.root / FOLDER / IMAGE).as_uri()
        served = DirectoryImageStore(place.root, base_url="https://fleet.example/")
        assert served.url("v1.4.2", IMAGE) == f"https://fleet.example/v1/artifacts/{FOLDER}/{IMAGE}"
        assert served.path(FOLDER, IMAGE).read_bytes() == (tmp_path / "built" / IMAGE).read_bytes()
        for folder, name in ((FOLDER, "nothing"), ("..", "index.json"), (FOLDER, "../index.json")):
            with pytest.raises(TerminalError):
                served.path(folder, name)
    else:
        assert "X-Amz-Expires=60" in url and "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
        assert httpx.get(url, trust_env=False, timeout=60).content == (tmp_path / "built" / IMAGE).read_bytes()
