"""The world in memory keeps the contracts of the ports: the suites of the real adapters, run again over memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest

from reconciler.model.desired import ImageSpec
from reconciler.model.observed import Artifact, ArtifactState, Snapshot
from reconciler.ports import Registry, Secrets, TerminalError, TransientError
from reconciler.protocol.manifest import Manifest
from reconciler.simulate.memory_images import MemoryImages, Shelf
from reconciler.simulate.memory_ports import (
    MemoryBuilder,
    MemoryDoorbell,
    MemoryRegistry,
    MemorySecrets,
    MemorySigner,
    VirtualClock,
    image_digest,
    put_tags,
)
from reconciler.simulate.signing import SimulatedSigner
from tests.adapters import test_doorbell, test_images, test_images_removed, test_registry, test_secrets
from tests.adapters.test_images import NOW
from tests.support.registry import SmallImage, digest_of

HOUR = timedelta(hours=1)
T = TypeVar("T")


def suite(module: ModuleType, *names: str) -> Callable[[T], T]:
    """Run tests of a real adapter's suite in this class, over its own fixtures."""

    def with_tests(of: T) -> T:
        for name in names:
            setattr(of, name, staticmethod(getattr(module, name)))
        return of

    return with_tests


class ImagePlace:
    """What the suite of the image stores does behind a store's back."""

    def __init__(self) -> None:
        self.shelf = Shelf()

    def open(self, **_options: Any) -> MemoryImages:
        return MemoryImages(lambda: NOW, self.shelf)

    def tamper(self, path: str, data: bytes) -> None:
        folder, _, name = path.partition("/")
        self.shelf.files.setdefault(folder, {})[name] = data

    def remove(self, path: str) -> None:
        folder, _, name = path.partition("/")
        del self.shelf.files[folder][name]

    def content(self, path: str) -> bytes:
        if path == "index.json":
            return json.dumps({"releases": sorted(self.shelf.published)}).encode()
        folder, _, name = path.partition("/")
        return self.shelf.files[folder][name]

    def paths(self) -> list[str]:
        return sorted(f"{folder}/{name}" for folder, files in self.shelf.files.items() for name in files)


@suite(
    test_images,
    "test_a_release_goes_from_absent_to_published",
    "test_every_step_may_be_repeated_also_after_a_restart",
    "test_a_large_file_arrives_whole",
    "test_other_bytes_under_a_staged_name_are_refused",
    "test_staging_goes_on_where_a_kill_left_it",
    "test_files_that_are_not_those_of_the_sums_are_refused",
    "test_a_folder_that_does_not_name_the_release_is_refused",
    "test_an_artifact_has_one_image_file_and_a_manifest",
    "test_publishing_refuses_what_is_absent_or_unsigned",
    "test_bytes_that_do_not_match_make_a_release_broken_until_they_are_put_back",
    "test_a_published_release_is_immutable",
    "test_a_published_release_that_loses_a_file_is_broken_and_can_be_restored",
    "test_a_download_of_wrong_bytes_leaves_nothing",
    "test_what_is_absent_or_no_file_name_is_refused",
    "test_read_does_not_take_an_image_into_memory",
)
@suite(
    test_images_removed,
    "test_what_is_held_is_told_at_every_step",
    "test_folders_beside_the_artifact_are_told_with_it",
    "test_a_removed_release_is_gone_with_every_folder_of_it",
    "test_a_release_that_was_never_published_leaves_no_trace",
    "test_the_name_of_a_published_release_stands_for_its_bytes_for_good",
)
class TestImages:
    """The image store's suite, without what it says of `index.json`, of families and of two writers at once."""

    @pytest.fixture
    def place(self) -> ImagePlace:
        return ImagePlace()

    @pytest.fixture
    def store(self, place: ImagePlace) -> MemoryImages:
        return place.open()

    @pytest.mark.parametrize("state", list(ArtifactState))
    def test_what_a_snapshot_knows_is_shown_as_it_was_given(self, store: MemoryImages, state: ArtifactState) -> None:
        given = Artifact(state=state, digest="sha256:" + "1" * 64, size=123_456_789_012)
        store.put("v1.4.2", given, 1)
        assert store.artifacts() == ({} if state is ArtifactState.ABSENT else {"v1.4.2": given})

    def test_a_made_up_artifact_can_be_assigned_and_spoilt(self, store: MemoryImages) -> None:
        store.put("v1.4.2", Artifact(state=ArtifactState.PUBLISHED), 1000)
        manifest = Manifest.from_bytes(store.read("v1.4.2", "manifest.json"))
        assert (manifest.digest, manifest.size) == (image_digest("v1.4.2"), 1000)
        assert image_digest("v1.4.2") != image_digest("v1.4.1")
        store.spoil("v1.4.2")
        assert store.artifacts()["v1.4.2"].state is ArtifactState.BROKEN

    def test_a_built_release_is_signed_judged_and_published(self, store: MemoryImages, tmp_path: Path) -> None:
        signer = MemorySigner(lambda: NOW, lambda release: store.read(release, "SHA256SUMS"), SimulatedSigner())
        built = MemoryBuilder(lambda: NOW, tmp_path, image_bytes=1000).build("v2", ImageSpec(), tmp_path, "c0ffee")
        store.stage("v2", built.name, sorted(built.folder.iterdir()))
        assert built.digest == image_digest("v2")
        signature = signer.sign_release("v2", "c0ffee")
        store.attach_signature("v2", signature)
        signer.judge("v2", store.read("v2", "SHA256SUMS"), signature, ())
        with pytest.raises(TerminalError, match="refused"):
            signer.judge("v2", b"other sums", signature, ())
        store.publish("v2")
        assert store.artifacts()["v2"].state is ArtifactState.PUBLISHED


class RegistryPlace:
    """A registry, and how images come into it."""

    def __init__(self) -> None:
        self.registry: Registry = MemoryRegistry(lambda: NOW)
        self._manifests: dict[str, bytes] = {}

    def push(self, repository: str, image: SmallImage, tag: str | None = None) -> None:
        self.push_manifest(repository, image.manifest, tag)

    def push_manifest(self, repository: str, manifest: bytes, tag: str | None = None) -> None:
        digest = digest_of(manifest)
        self._manifests[digest] = manifest
        assert isinstance(self.registry, MemoryRegistry)
        self.registry.push(repository, digest, tag)

    def manifest(self, repository: str, tag: str) -> bytes:
        return self._manifests[self.registry.tags(repository)[tag]]


class SecretPlace:
    """A store of secrets, and how they come into it."""

    def __init__(self) -> None:
        self._secrets = MemorySecrets(lambda: NOW)

    def open(self) -> Secrets:
        return self._secrets

    def put(self, reference: str, value: str) -> None:
        self._secrets.put(reference, value)

    def remove(self, reference: str) -> None:
        self._secrets.remove(reference)


class BellPlace:
    """A doorbell, devices that hear it, and one that cannot be reached."""

    def __init__(self) -> None:
        self._rung: dict[str, int] = {}
        self._broken: set[str] = set()
        self.doorbell = MemoryDoorbell(self._heard, self._rung.__contains__)

    def install(self, *devices: str) -> None:
        self._rung.update(dict.fromkeys(devices, 0))

    def break_bell(self, device: str) -> None:
        self._broken.add(device)

    def rung(self, device: str) -> int:
        return self._rung[device]

    def _heard(self, device: str) -> None:
        if device in self._broken:
            raise ConnectionError(device)
        self._rung[device] += 1


@suite(
    test_registry,
    "test_a_tag_moves_by_digest_and_the_bytes_stay_the_same",
    "test_a_retag_may_be_repeated",
    "test_a_multi_platform_index_moves_as_it_is",
    "test_what_lost_its_tag_is_still_there_to_go_back_to",
    "test_a_digest_that_is_not_there_is_refused_and_nothing_moves",
    "test_a_repository_that_is_not_there_is_an_error_and_not_an_empty_one",
    "test_many_tags_are_all_listed",
)
class TestRegistry:
    """The registry's suite."""

    @pytest.fixture
    def place(self) -> RegistryPlace:
        return RegistryPlace()

    @pytest.fixture
    def repository(self) -> str:
        return "edge/video-ingest"

    def test_where_all_is_held_every_digest_can_be_tagged(self) -> None:
        registry = MemoryRegistry(lambda: NOW, holds_all=True)
        assert registry.tags("video") == {}
        observed = Snapshot(tags={"video-ingest": {"canary": "sha256:" + "1" * 64, "old": None}, "gone": {"x": None}})
        put_tags(registry, observed, {"video-ingest": "video"})
        registry.retag("video", "stable", "sha256:" + "2" * 64)
        assert registry.tags("video") == {"canary": "sha256:" + "1" * 64, "stable": "sha256:" + "2" * 64}


@suite(
    test_secrets,
    "test_a_value_is_read_and_its_version_changes_with_it_alone",
    "test_a_version_does_not_tell_the_value",
    "test_what_does_not_exist_has_no_version_and_no_value",
    "test_a_removed_secret_is_gone",
    "test_values_keep_lines_and_letters",
)
class TestSecrets:
    """The secrets' suite, without bytes that are no text."""

    @pytest.fixture
    def place(self) -> SecretPlace:
        return SecretPlace()

    @pytest.fixture
    def site(self) -> str:
        return "edge/SITE-0001"


@suite(
    test_doorbell,
    "test_devices_are_rung_and_strangers_are_unknown",
    "test_one_device_that_cannot_be_reached_does_not_spoil_the_others",
    "test_ringing_nobody_and_twice_is_harmless",
    "test_odd_names_are_unknown",
)
class TestDoorbell:
    """The doorbell's suite."""

    @pytest.fixture
    def place(self) -> BellPlace:
        return BellPlace()


def test_what_is_down_does_not_answer_between_two_instants(tmp_path: Path) -> None:
    clock = VirtualClock(NOW)
    registry, images = MemoryRegistry(clock.now, holds_all=True), MemoryImages(clock.now)
    secrets = MemorySecrets(clock.now)
    signer = MemorySigner(clock.now, lambda _: b"", SimulatedSigner())
    for reach in (registry.reach, images.reach, secrets.reach, signer.reach):
        reach.cut(NOW + HOUR, NOW + 2 * HOUR)
    asks = (
        lambda: registry.tags("x"),
        lambda: registry.retag("x", "t", "sha256:" + "0" * 64),
        images.artifacts,
        lambda: images.folder("v1"),
        lambda: secrets.versions(["a"]),
        lambda: signer.sign_root(b"root"),
        lambda: signer.sign_release("v1", "c0ffee"),
    )
    for at, down in (
        (NOW, False),
        (NOW + HOUR, True),
        (NOW + 2 * HOUR - timedelta(seconds=1), True),
        (NOW + 2 * HOUR, False),
    ):
        clock.at = at
        for ask in asks:
            if down:
                with pytest.raises(TransientError, match="does not answer"):
                    ask()
            else:
                ask()


def test_virtual_time_passes_at_once_and_never_back() -> None:
    clock = VirtualClock(NOW)
    clock.wake()
    assert clock.wait(NOW + HOUR) is False and clock.now() == NOW + HOUR
    clock.wait(NOW)
    assert clock.now() == NOW + HOUR
    with pytest.raises(AssertionError):
        clock.wait(None)
