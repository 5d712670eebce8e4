"""One registry a module; every test gets its own device, and a runtime of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.protocol.assignment import AppTarget
from tests.agent.conftest import Releases
from tests.agent.containers.world import REPOSITORY, AppDevice, Apps
from tests.agent.world import Office
from tests.support.faults import FaultProxy
from tests.support.podman import ENDS, app_image, running_podman
from tests.support.registry import index_of, running_registry


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        made = {
            "one": app_image("2.7.0", bytes_more=300_000),
            "two": app_image("2.8.0", bytes_more=300_000),
            "three": app_image("2.9.0"),
            "ending": app_image("3.0.0", command=ENDS),
            "foreign": app_image("2.8.0", "arm64"),
        }
        digests = {}
        for name, image in made.items():
            registry.push_image(REPOSITORY, image, "stable" if name == "one" else None)
            digests[name] = image.digest
        for name, parts in (("index", ("foreign", "three")), ("foreign_index", ("foreign",))):
            data = index_of(*(made[part] for part in parts))
            digests[name] = registry.push_manifest(REPOSITORY, data)
        versions = {name: f"2.{number}.0" for number, name in enumerate(digests)}
        targets = {name: AppTarget(REPOSITORY, "lab", digest, versions[name]) for name, digest in digests.items()}
        yield Apps(registry, **targets, manifest_of_three=made["three"].manifest)


@pytest.fixture
def proxy(apps: Apps) -> Iterator[FaultProxy]:
    with FaultProxy(apps.registry.url) as made:
        yield made


@pytest.fixture
def device(office: Office, releases: Releases, tmp_path: Path, proxy: FaultProxy) -> Iterator[AppDevice]:
    with running_podman() as runtime:
        made = AppDevice(tmp_path / "d", office, releases, runtime, proxy.url)
        try:
            yield made
        finally:
            made.end()
            made.site.transport.close()
