"""The contract of `ports.Registry`, over OCI layouts, a real docker-registry, and ECR's API (moto)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from botocore.exceptions import ClientError

from reconciler.adapters.aws import Aws
from reconciler.adapters.registry_ecr import EcrRegistry
from reconciler.adapters.registry_layout import LayoutRegistry
from reconciler.adapters.registry_oci import OciRegistry
from reconciler.ports import Registry, TerminalError, TransientError
from tests.support.faults import FaultProxy
from tests.support.registry import RunningRegistry, SmallImage, digest_of, index_of, running_registry, small_image

_numbers = itertools.count()
ABSENT = "sha256:" + "0" * 64
BCRYPT = "$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW"


class Place(Protocol):
    """A registry, and how images come into it."""

    registry: Registry

    def push(self, repository: str, image: SmallImage, tag: str | None = None) -> None: ...
    def push_manifest(self, repository: str, manifest: bytes, tag: str | None = None) -> None: ...
    def manifest(self, repository: str, tag: str) -> bytes: ...


class LayoutPlace:
    def __init__(self, root: Path) -> None:
        self.registry = LayoutRegistry(root)

    def push(self, repository: str, image: SmallImage, tag: str | None = None) -> None:
        self.registry.put_blob(repository, image.config)
        self.registry.put_blob(repository, image.layer)
        self.registry.put_manifest(repository, image.manifest, tag)

    def push_manifest(self, repository: str, manifest: bytes, tag: str | None = None) -> None:
        self.registry.put_manifest(repository, manifest, tag)

    def manifest(self, repository: str, tag: str) -> bytes:
        return self.registry.manifest(repository, self.registry.tags(repository)[tag]) or b""


class ServerPlace:
    def __init__(self, server: RunningRegistry) -> None:
        # Two tags a page, so that every listing of the suite is paged.
        self.server, self.registry = server, OciRegistry(server.url, page=2, sleep=lambda _: None)

    def push(self, repository: str, image: SmallImage, tag: str | None = None) -> None:
        self.server.push_image(repository, image, tag)

    def push_manifest(self, repository: str, manifest: bytes, tag: str | None = None) -> None:
        self.server.push_manifest(repository, manifest, tag)

    def manifest(self, repository: str, tag: str) -> bytes:
        url = f"{self.server.url}/v2/{repository}/manifests/{tag}"
        accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
        return httpx.get(url, headers={"Accept": accept}, trust_env=False, timeout=60).content


class EcrPlace:
    def __init__(self, aws: Aws) -> None:
        self.client, self.registry = aws.client("ecr"), EcrRegistry(aws, sleep=lambda _: None)

    def push(self, repository: str, image: SmallImage, tag: str | None = None) -> None:
        self.push_manifest(repository, image.manifest, tag)

    def push_manifest(self, repository: str, manifest: bytes, tag: str | None = None) -> None:
        if not self._exists(repository):
            self.client.create_repository(repositoryName=repository)
        media = json.loads(manifest)["mediaType"]
        named = {"imageTag": tag} if tag else {}
        self.client.put_image(
            repositoryName=repository, imageManifest=manifest.decode(), imageManifestMediaType=media, **named
        )

    def manifest(self, repository: str, tag: str) -> bytes:
        answer = self.client.batch_get_image(repositoryName=repository, imageIds=[{"imageTag": tag}])
        return str(answer["images"][0]["imageManifest"]).encode()

    def _exists(self, repository: str) -> bool:
        return any(row["repositoryName"] == repository for row in self.client.describe_repositories()["repositories"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(params=["layout", pytest.param("docker-registry", marks=pytest.mark.system), "ecr"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "layout":
        return LayoutPlace(tmp_path / "registry")
    if request.param == "ecr":
        return EcrPlace(request.getfixturevalue("aws"))
    place = ServerPlace(request.getfixturevalue("server"))
    request.addfinalizer(place.registry.close)
    return place


@pytest.fixture
def repository() -> str:
    return f"edge/video-ingest-{next(_numbers)}"


def test_a_tag_moves_by_digest_and_the_bytes_stay_the_same(place: Place, repository: str) -> None:
    old, new = small_image("2.7.0"), small_image("2.8.0")
    place.push(repository, old, "canary")
    place.push(repository, old, "stable")
    place.push(repository, new, "2.8.0")
    assert place.registry.tags(repository) == {"canary": old.digest, "stable": old.digest, "2.8.0": new.digest}
    place.registry.retag(repository, "canary", new.digest)
    assert place.registry.tags(repository) == {"canary": new.digest, "stable": old.digest, "2.8.0": new.digest}
    assert place.manifest(repository, "canary") == new.manifest
    place.registry.retag(repository, "canary", old.digest)
    assert place.registry.tags(repository)["canary"] == old.digest


def test_a_retag_may_be_repeated(place: Place, repository: str) -> None:
    image = small_image("2.8.0")
    place.push(repository, image, "2.8.0")
    for _ in range(3):
        place.registry.retag(repository, "canary", image.digest)
    assert place.registry.tags(repository) == {"canary": image.digest, "2.8.0": image.digest}


def test_a_multi_platform_index_moves_as_it_is(place: Place, repository: str) -> None:
    images = small_image("2.8.0"), small_image("2.8.0 for arm", "arm64")
    for image in images:
        place.push(repository, image, "part-" + image.digest[-8:])
    index = index_of(*images)
    place.push_manifest(repository, index, "2.8.0")
    place.registry.retag(repository, "canary", digest_of(index))
    assert place.registry.tags(repository)["canary"] == digest_of(index)
    assert place.manifest(repository, "canary") == index


def test_what_lost_its_tag_is_still_there_to_go_back_to(place: Place, repository: str) -> None:
    old, new = small_image("2.7.0"), small_image("2.8.0")
    place.push(repository, old, "canary")
    place.push(repository, new, "2.8.0")
    kept = {}
    if isinstance(place, EcrPlace):  # moto deletes an image with its last tag, which ECR does not
        place.registry.retag(repository, "2.7.0", old.digest)
        kept = {"2.7.0": old.digest}
    place.registry.retag(repository, "canary", new.digest)
    assert place.registry.exists(repository, old.digest)
    place.registry.retag(repository, "canary", old.digest)
    assert place.registry.tags(repository) == {"canary": old.digest, "2.8.0": new.digest} | kept


def test_a_digest_that_is_not_there_is_refused_and_nothing_moves(place: Place, repository: str) -> None:
    image = small_image("2.7.0")
    place.push(repository, image, "canary")
    assert place.registry.exists(repository, image.digest) and not place.registry.exists(repository, ABSENT)
    with pytest.raises(TerminalError, match="holds no manifest sha256:0000"):
        place.registry.retag(repository, "canary", ABSENT)
    assert place.registry.tags(repository) == {"canary": image.digest}


def test_a_repository_that_is_not_there_is_an_error_and_not_an_empty_one(place: Place) -> None:
    with pytest.raises(TerminalError, match="edge/nothing") as caught:
        place.registry.tags("edge/nothing")
    assert "App.spec.repository" in caught.value.remedy


@pytest.mark.parametrize("name", ["../etc", "/abs", "UPPER", "a//b", "", "a/../b", "a?x=1", "a" * 300])
def test_names_that_are_none_are_refused_before_anything_is_asked(place: Place, name: str) -> None:
    for ask in (
        lambda: place.registry.tags(name),
        lambda: place.registry.exists(name, ABSENT),
        lambda: place.registry.retag(name, "canary", ABSENT),
        lambda: place.registry.retag("edge/app", "-" + name, ABSENT),
        lambda: place.registry.exists("edge/app", "sha256:" + name),
    ):
        with pytest.raises(TerminalError):
            ask()


@pytest.mark.slow
def test_many_tags_are_all_listed(place: Place, repository: str) -> None:
    image = small_image("2.8.0")
    place.push(repository, image, "v-000")
    for number in range(1, 25):
        place.registry.retag(repository, f"v-{number:03}", image.digest)
    assert place.registry.tags(repository) == {f"v-{number:03}": image.digest for number in range(25)}


# ---------------------------------------------------------------- the layout alone


def test_a_layout_is_one_that_other_tools_read(tmp_path: Path) -> None:
    place = LayoutPlace(tmp_path)
    image = small_image("2.8.0")
    place.push("app", image, "canary")
    place.registry.retag("app", "stable", image.digest)
    assert json.loads((tmp_path / "app/oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((tmp_path / "app/index.json").read_text())
    assert index["schemaVersion"] == 2
    row = {"mediaType": json.loads(image.manifest)["mediaType"], "digest": image.digest, "size": len(image.manifest)}
    name = "org.opencontainers.image.ref.name"
    assert index["manifests"] == [row | {"annotations": {name: tag}} for tag in ("canary", "stable")]
    assert (tmp_path / "app/blobs/sha256" / image.digest[7:]).read_bytes() == image.manifest


def test_a_damaged_layout_is_refused(tmp_path: Path) -> None:
    place = LayoutPlace(tmp_path)
    image = small_image("2.8.0")
    place.push("app", image, "canary")
    (tmp_path / "app/blobs/sha256" / image.digest[7:]).write_bytes(b"{}")
    assert not place.registry.exists("app", image.digest)
    with pytest.raises(TerminalError, match="holds no manifest"):
        place.registry.retag("app", "stable", image.digest)
    with pytest.raises(TerminalError, match="no image manifest"):
        place.registry.put_manifest("app", b'{"schemaVersion": 1}')
    for data in ("{", '{"manifests": [{"digest": "x"}]}', '{"manifests": 1}', "[]"):
        (tmp_path / "app/index.json").write_text(data)
        with pytest.raises(TerminalError, match="not the index of an OCI image layout"):
            place.registry.tags("app")


def test_a_config_blob_is_no_manifest(tmp_path: Path) -> None:
    place = LayoutPlace(tmp_path)
    image = small_image("2.8.0")
    place.push("app", image, "canary")
    assert not place.registry.exists("app", digest_of(image.config))


# ---------------------------------------------------------------- faults of a plain registry


@pytest.fixture
def proxied(server: RunningRegistry) -> Iterator[tuple[FaultProxy, OciRegistry]]:
    with FaultProxy(server.url) as proxy:
        registry = OciRegistry(proxy.url, read_timeout_s=60, sleep=lambda _: None)
        yield proxy, registry
        registry.close()


@pytest.mark.system
@pytest.mark.parametrize(
    ("do", "method"), [("answer", "GET"), ("answer", "PUT"), ("drop", "GET"), ("lost", "GET"), ("lost", "PUT")]
)
def test_a_passing_fault_is_tried_again(
    proxied: tuple[FaultProxy, OciRegistry], server: RunningRegistry, repository: str, do: str, method: str
) -> None:
    proxy, registry = proxied
    server.push(repository, "2.7.0", "canary")
    new = server.push(repository, "2.8.0", "2.8.0")
    proxy.next(do, method)
    registry.retag(repository, "canary", new)
    assert registry.tags(repository)["canary"] == new and proxy.left == 0


@pytest.mark.system
def test_a_registry_that_stays_down_is_transient_with_its_own_wish(
    proxied: tuple[FaultProxy, OciRegistry], server: RunningRegistry, repository: str
) -> None:
    proxy, registry = proxied
    server.push(repository, "2.7.0", "canary")
    proxy.next("answer", times=3, status=503, headers={"Retry-After": "17"})
    with pytest.raises(TransientError, match="503") as caught:
        registry.tags(repository)
    assert caught.value.retry_after_s == 17
    proxy.next("hang", times=3)
    impatient = OciRegistry(proxy.url, read_timeout_s=0.2, sleep=lambda _: None)
    with pytest.raises(TransientError, match="ReadTimeout"):
        impatient.tags(repository)
    impatient.close()


@pytest.mark.system
def test_wrong_bytes_never_get_a_tag(
    proxied: tuple[FaultProxy, OciRegistry], server: RunningRegistry, repository: str
) -> None:
    proxy, registry = proxied
    old = server.push(repository, "2.7.0", "canary")
    new = server.push(repository, "2.8.0", "2.8.0")
    proxy.next("wrong", "GET")
    with pytest.raises(TerminalError, match="is not its bytes"):
        registry.retag(repository, "canary", new)
    assert registry.tags(repository)["canary"] == old
    proxy.next("wrong", "GET", "/manifests/canary")
    with pytest.raises(TransientError, match="after it was set"):
        registry.retag(repository, "canary", new)


@pytest.mark.system
@pytest.mark.parametrize(
    ("status", "headers", "body", "says"),
    [
        (401, {"WWW-Authenticate": "Bearer realm=x"}, b"", "token service"),
        (403, {}, b"", "may read and push"),
        (301, {"Location": "http://127.0.0.1:9/"}, b"", "redirects are not followed"),
        (200, {}, b"<html>a proxy's page</html>", "not a registry's"),
        (200, {"Link": '<http://127.0.0.1:9/v2/>; rel="next"'}, b'{"tags": []}', "not a registry's"),
        (200, {}, b" " * (5 << 20), "larger than"),
    ],
)
def test_an_answer_that_is_no_registrys_says_so(
    proxied: tuple[FaultProxy, OciRegistry], status: int, headers: dict[str, str], body: bytes, says: str
) -> None:
    proxy, registry = proxied
    proxy.next("answer", status=status, headers=headers, body=body)
    with pytest.raises(TerminalError, match=says):
        registry.tags("edge/app")


@pytest.mark.system
def test_a_registry_with_a_password_takes_basic_credentials(tmp_path: Path) -> None:
    with running_registry(tmp_path, htpasswd=("edge", "open sesame", BCRYPT)) as guarded:
        digest = guarded.push("app", "2.8.0", "2.8.0")
        registry = OciRegistry(guarded.url, credential=("edge", "open sesame"))
        registry.retag("app", "canary", digest)
        assert registry.tags("app") == {"canary": digest, "2.8.0": digest}
        registry.close()
        for credential in (None, ("edge", "sentinel-password")):
            stranger = OciRegistry(guarded.url, credential=credential)
            with pytest.raises(TerminalError, match="401") as caught:
                stranger.tags("app")
            stranger.close()
            assert "sentinel" not in str(caught.value)


@pytest.mark.parametrize("url", ["registry.example", "ftp://x", "http://user:secret@x", "http://"])
def test_an_address_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(TerminalError) as caught:
        OciRegistry(url)
    assert "secret" not in str(caught.value)


def test_nobody_listening_is_transient() -> None:
    with pytest.raises(TransientError, match="ConnectError"):
        OciRegistry("http://127.0.0.1:1", sleep=lambda _: None).tags("app")


# ---------------------------------------------------------------- ECR alone


def test_ecr_pages_are_all_read_and_the_wrong_tag_after_a_put_is_seen(aws: Aws, repository: str) -> None:
    place: Any = EcrPlace(aws)
    image, other = small_image("2.8.0"), small_image("other")
    place.push(repository, image, "2.8.0")
    place.push(repository, other, "stable")

    def lies(**request: Any) -> Any:
        return {}

    place.registry._client = _Without(aws.client("ecr"), put_image=lies)
    with pytest.raises(TransientError, match=f"stable is {other.digest} after it was set"):
        place.registry.retag(repository, "stable", image.digest)


def test_ecr_bytes_that_are_not_the_digests_are_refused(aws: Aws, repository: str) -> None:
    place: Any = EcrPlace(aws)
    image = small_image("2.8.0")
    place.push(repository, image, "2.8.0")
    real = aws.client("ecr")

    def lies(**request: Any) -> Any:
        answer = real.batch_get_image(**request)
        answer["images"][0]["imageManifest"] += " "
        return answer

    place.registry._client = _Without(real, batch_get_image=lies)
    with pytest.raises(TerminalError, match="is not its bytes"):
        place.registry.retag(repository, "canary", image.digest)
    assert "canary" not in place.registry.tags(repository)


def test_ecr_tags_that_may_not_move_are_terminal_and_say_what_to_change(aws: Aws, repository: str) -> None:
    place: Any = EcrPlace(aws)
    image = small_image("2.8.0")
    place.push(repository, image, "2.8.0")

    def refuses(**request: Any) -> Any:
        raise ClientError({"Error": {"Code": "ImageTagAlreadyExistsException", "Message": "immutable"}}, "PutImage")

    place.registry._client = _Without(aws.client("ecr"), put_image=refuses)
    with pytest.raises(TerminalError, match="does not let the tag canary move") as caught:
        place.registry.retag(repository, "canary", image.digest)
    assert "mutable" in caught.value.remedy


class _Without:
    """A client with single operations replaced."""

    def __init__(self, client: Any, **replaced: Any) -> None:
        self._client, self._replaced = client, replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(self._client, name)
