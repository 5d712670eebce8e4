"""Taking releases out of an image store: what it holds, and that no kill leaves anything that passes for a build."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from reconciler.adapters.image_folders import FolderImageStore
from reconciler.model.observed import ArtifactState
from reconciler.ports import ImageStore, TerminalError, TransientError
from tests.adapters.artifacts import FOLDER, IMAGE, SIGNATURE, digest_of, pack
from tests.adapters.image_places import BucketPlace, DirectoryPlace, Place

NOW = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
LATER = "edge-golden-v1.4.2-20251201"


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        return DirectoryPlace(tmp_path / "images")
    return BucketPlace(request.getfixturevalue("aws"))


@pytest.fixture
def store(place: Place) -> FolderImageStore:
    return place.open(now=lambda: NOW)


def published(store: ImageStore, folder: Path) -> None:
    store.stage("v1.4.2", FOLDER, pack(folder))
    store.attach_signature("v1.4.2", SIGNATURE)
    store.publish("v1.4.2")


def test_what_is_held_is_told_at_every_step(store: FolderImageStore, tmp_path: Path) -> None:
    assert tuple(store.holdings()) == ()
    files = pack(tmp_path / "built")
    size = sum(path.stat().st_size for path in files)
    store.stage("v1.4.2", FOLDER, files)
    (held,) = store.holdings()
    assert (held.release, held.state, held.folders, held.size) == ("v1.4.2", ArtifactState.BUILT, (FOLDER,), size)
    assert (held.day, held.published_at, held.removing) == (date(2025, 11, 15), None, False)
    store.attach_signature("v1.4.2", SIGNATURE)
    store.publish("v1.4.2")
    (held,) = store.holdings()
    assert (held.state, held.published_at) == (ArtifactState.PUBLISHED, NOW)
    assert held.digest == digest_of((tmp_path / "built" / IMAGE).read_bytes())
    assert held.size == size + len(SIGNATURE)


def test_folders_beside_the_artifact_are_told_with_it(place: Place, store: FolderImageStore, tmp_path: Path) -> None:
    published(store, tmp_path / "built")
    place.tamper(f"{LATER}/packages.txt", b"an upload that was cut off")
    place.tamper("edge-golden-v1.5.0-20251301/packages.txt", b"of a day that is none")
    place.tamper("notes/SHA256SUMS", b"not an artifact")
    first, second = store.holdings()
    assert (first.release, first.folders, first.day) == ("v1.4.2", (FOLDER, LATER), date(2025, 11, 15))
    assert (second.release, second.state, second.day) == ("v1.5.0", ArtifactState.ABSENT, date.max)


def test_a_removed_release_is_gone_with_every_folder_of_it(
    place: Place, store: FolderImageStore, tmp_path: Path
) -> None:
    published(store, tmp_path / "built")
    assert store.folder("v1.4.2") == FOLDER
    place.tamper(f"{LATER}/packages.txt", b"an upload that was cut off")
    for _ in range(2):
        store.remove("v1.4.2")
        assert store.artifacts() == {} and tuple(store.holdings()) == () and store.folder("v1.4.2") is None
        assert [path for path in place.paths() if path != "index.json"] == []
    store.remove("v9.9.9")


def test_a_release_that_was_never_published_leaves_no_trace(store: FolderImageStore, tmp_path: Path) -> None:
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    store.remove("v1.4.2")
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "other", image=b"other bytes, and nobody had the first"))
    assert store.artifacts()["v1.4.2"].state is ArtifactState.BUILT


@pytest.mark.slow
def test_the_name_of_a_published_release_stands_for_its_bytes_for_good(store: FolderImageStore, tmp_path: Path) -> None:
    published(store, tmp_path / "built")
    store.remove("v1.4.2")
    with pytest.raises(TerminalError, match="removed since"):
        store.stage("v1.4.2", FOLDER, pack(tmp_path / "other", image=b"other bytes"))
    assert tuple(store.holdings()) == ()
    published(store, tmp_path / "built")
    assert store.artifacts()["v1.4.2"].state is ArtifactState.PUBLISHED
    with pytest.raises(TerminalError, match="published already"):
        store.stage("v1.4.2", FOLDER, pack(tmp_path / "other", image=b"other bytes"))


@pytest.mark.slow
def test_a_reader_that_knew_the_folder_finds_the_new_one(place: Place, store: FolderImageStore, tmp_path: Path) -> None:
    """The loop has the store open while a person prunes, and the release is built again on another day."""
    published(store, tmp_path / "built")
    assert store.folder("v1.4.2") == FOLDER
    place.open(now=lambda: NOW).remove("v1.4.2")
    assert store.artifacts() == {} and store.folder("v1.4.2") is None
    image = (tmp_path / "built" / IMAGE).read_bytes()
    store.stage("v1.4.2", LATER, pack(tmp_path / "again", image=image, name=LATER))
    store.attach_signature("v1.4.2", SIGNATURE)
    store.publish("v1.4.2")
    assert store.folder("v1.4.2") == LATER
    assert json.loads(place.content("index.json"))["removed"] == []


# ---------------------------------------------------------------- killed between any two writes


class Killed(BaseException):
    """Power off."""


WRITES = ("_create", "_replace", "_delete", "_delete_folder", "_update_index")


def kill_at(store: FolderImageStore, number: int, after: bool) -> Callable[[], int]:
    """Cut the power before or after the store's write of that number, from 0; returns how many it has begun."""
    begun = 0

    def broken(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal begun
            begun += 1
            if begun > number + 1 or (begun == number + 1 and not after):
                raise Killed
            result = write(*arguments, **named)
            if begun == number + 1:
                raise Killed
            return result

        return call

    for name in WRITES:
        setattr(store, name, broken(getattr(store, name)))
    return lambda: begun


def kills(place: Place, work: Callable[[FolderImageStore], None]) -> Iterator[tuple[int, bool]]:
    """Do the work with a kill at every write in turn, before it and after it, until no write is left to be killed at."""
    number = 0
    while True:
        for after in (False, True):
            store = place.open(now=lambda: NOW)
            begun = kill_at(store, number, after)
            try:
                work(store)
            except Killed:
                yield number, after
                continue
            assert begun() == number and number > 0
            return
        number += 1


@pytest.mark.slow
def test_a_removal_killed_anywhere_leaves_nothing_that_counts_and_is_ended_by_the_next(
    place: Place, tmp_path: Path
) -> None:
    published(place.open(now=lambda: NOW), tmp_path / "built")
    begun = 0
    for number, after in kills(place, lambda store: store.remove("v1.4.2")):
        store = place.open(now=lambda: NOW)
        if (number, after) == (0, False):
            assert store.artifacts()["v1.4.2"].state is ArtifactState.PUBLISHED
            continue
        # From the first write on: absent to whoever asks, whatever still lies there; told to whoever prunes.
        assert store.artifacts() == {} and store.folder("v1.4.2") is None
        for held in store.holdings():
            assert (held.state, held.removing) == (ArtifactState.ABSENT, True)
            with pytest.raises(TransientError, match="being removed"):
                store.stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
        begun += 1
        store.remove("v1.4.2")
        assert tuple(store.holdings()) == ()
        published(store, tmp_path / "built")
    assert begun > 8


@pytest.mark.slow
def test_a_removal_that_nobody_ended_does_not_hold_up_a_build_for_good(place: Place, tmp_path: Path) -> None:
    published(place.open(now=lambda: NOW), tmp_path / "built")
    store = place.open(now=lambda: NOW)
    kill_at(store, 2, after=False)
    with pytest.raises(Killed):
        store.remove("v1.4.2")
    late = place.open(now=lambda: NOW + timedelta(hours=2))
    late.stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    assert late.artifacts()["v1.4.2"].state is ArtifactState.BUILT
    late.attach_signature("v1.4.2", SIGNATURE)
    late.publish("v1.4.2")
    assert late.artifacts()["v1.4.2"].state is ArtifactState.PUBLISHED
