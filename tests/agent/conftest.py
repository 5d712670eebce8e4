"""Keys and images are made once a session; every test gets its own office and device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent.world import BAD, GOOD, Artifact, Keys, Office, Site, build_image, make_keys, office_at, pack
from tests.support.gpg import make_home


@dataclass(frozen=True)
class Releases:
    """Artifacts below one folder of the session: v1 and v2 good, v3 bad."""

    root: Path
    v1: Artifact
    v2: Artifact
    bad: Artifact


@pytest.fixture(scope="session")
def keys() -> Iterator[Keys]:
    with make_home() as home:
        yield make_keys(home)


@pytest.fixture(scope="session")
def releases(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    root = tmp_path_factory.mktemp("releases")
    made = []
    for release, health in (("v1", GOOD), ("v2", GOOD), ("v3", BAD)):
        image = build_image(root, release, health)
        made.append(pack(image, root / "artifacts" / f"edge-golden-{release}-20300101", release, keys))
    return Releases(root, *made)


@pytest.fixture
def office(keys: Keys, releases: Releases, tmp_path: Path) -> Iterator[Office]:
    root = tmp_path / "office"
    (root / "artifacts").mkdir(parents=True)
    for artifact in (releases.v1, releases.v2, releases.bad):
        (root / "artifacts" / artifact.folder.name).symlink_to(artifact.folder)
    with office_at(root, keys) as made:
        yield made


# What these say holds for a device with partitions too. Its half takes as long again: slow.
ON_BOTH = ("test_update", "test_power", "test_refusals", "test_download", "test_configuration")
ON_PARTITIONS = ("test_boot_faults", "test_rest", "test_unreadable")
# A device with partitions has booted from an image, and its GRUB takes no steps of the agent's (test_grub.py cuts there).
ON_A_FOLDER = (
    "test_a_device_without_an_image_is_provisioned",
    "test_the_boot_loader_is_cut_after_it_has_spent_the_try",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        kinds: list[object] = ["partitions" if module in ON_PARTITIONS else "directory"]
        if module in ON_BOTH and metafunc.function.__name__ not in ON_A_FOLDER:
            kinds.append(pytest.param("partitions", marks=pytest.mark.slow))
        metafunc.parametrize("kind", kinds)


@pytest.fixture
def new_site(office: Office, releases: Releases, tmp_path: Path, kind: str) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(factory: Artifact | None = releases.v1) -> Site:
        assert factory is not None or kind == "directory", "a device with partitions boots from an image"
        made.append(Site(tmp_path / f"device-{len(made)}", office, factory, releases.root / "unpacked", kind))
        return made[-1]

    yield make
    for site in made:
        site.device.end()
        site.transport.close()


@pytest.fixture
def site(new_site: Callable[..., Site]) -> Site:
    return new_site()
