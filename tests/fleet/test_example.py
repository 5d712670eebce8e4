"""The example fleet is as large and as varied as its README says, and its recipe does what its README says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from reconciler.cli.main import cli
from reconciler.model.desired import AppSpec, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.planner import plan
from reconciler.repo.load import load_folder
from reconciler.repo.render import config_digests, secret_refs
from reconciler.repo.snapshot import load_snapshot

ROOT = Path(__file__).parents[2]
FLEET = ROOT / "fleet"
DOCUMENTATION = ("192.0.2.", "198.51.100.", "203.0.113.")


def documents(pattern: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(FLEET.glob(pattern)):
        # Plain strings, as our own loader keeps them; that loader has tests of its own.
        yield path, yaml.load(path.read_text(), Loader=yaml.BaseLoader)


@pytest.fixture(scope="module")
def sites() -> dict[str, SiteSpec]:
    return {
        document["metadata"]["name"]: SiteSpec.model_validate(document["spec"])
        for _, document in documents("sites/*.yaml")
    }


@pytest.fixture(scope="module")
def waves() -> WavesSpec:
    ((_, document),) = documents("waves.yaml")
    return WavesSpec.model_validate(document["spec"])


def test_there_are_52_sites_in_ten_zones_with_one_to_three_devices(sites: dict[str, SiteSpec]) -> None:
    assert len(sites) == 52
    assert len({spec.timezone for spec in sites.values()}) == 10
    assert {len(spec.devices) for spec in sites.values()} == {1, 2, 3}
    readme = (FLEET / "README.md").read_text()
    devices = sum(len(spec.devices) for spec in sites.values())
    assert f"52 sites in ten time zones with {devices} devices" in readme


def test_every_device_is_named_once_and_after_its_site(sites: dict[str, SiteSpec]) -> None:
    devices = [device for spec in sites.values() for device in spec.devices]
    assert len(devices) == len(set(devices))
    for name, spec in sites.items():
        assert spec.devices == tuple(f"{name}-{number}" for number in range(1, len(spec.devices) + 1))


def test_a_file_is_named_after_its_document_and_names_its_schema() -> None:
    kinds = set()
    for pattern in ("*.yaml", "sites/*.yaml", "images/*.yaml", "apps/*.yaml", "tests/*.yaml"):
        for path, document in documents(pattern):
            kind = document["kind"]
            kinds.add(kind)
            first = path.read_text().splitlines()[0]
            match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
            assert match, path
            schema = (path.parent / match[1]).resolve()
            assert schema == ROOT / "schemas" / f"{kind.lower()}.schema.json"
            assert schema.is_file(), f"{path} names {match[1]}, which is not there"
            if kind in ("Site", "Image", "App"):
                assert path.stem == document["metadata"]["name"]
            if kind == "Scenario":
                assert path.stem == document["metadata"]["name"].replace(" ", "-").replace(",", "")
    assert kinds == {"Fleet", "Waves", "Site", "Image", "App", "Scenario"}


def test_addresses_are_those_set_aside_for_documentation(sites: dict[str, SiteSpec]) -> None:
    for spec in sites.values():
        for host in (*spec.cameras, *spec.ntp):
            assert host.startswith(DOCUMENTATION) or host.endswith(".example"), host
        assert len(set(spec.cameras)) == len(spec.cameras)
        assert spec.cameras and spec.ntp


def test_each_site_has_a_secret_of_its_own_and_both_kinds_of_tunnel_occur(sites: dict[str, SiteSpec]) -> None:
    tunnels = {name: spec.vpn for name, spec in sites.items() if spec.vpn is not None}
    assert set(sites) - set(tunnels) == {"LAB-0001"}
    assert {vpn.type for vpn in tunnels.values()} == {"wireguard", "ipsec"}
    assert all(vpn.secret_ref == f"edge/{name}/vpn" for name, vpn in tunnels.items())


def test_every_site_has_a_configuration_of_its_own(sites: dict[str, SiteSpec]) -> None:
    ((_, fleet),) = documents("fleet.yaml")
    versions = dict.fromkeys(secret_refs(sites.values()), "1")
    assert len(set(config_digests(sites, FleetSpec.model_validate(fleet["spec"]), versions).values())) == 52


def test_the_waves_go_from_the_lab_to_all_and_all_run_the_same(sites: dict[str, SiteSpec], waves: WavesSpec) -> None:
    lab, canary, tenth, half, everything = waves.waves
    assert lab.sites == ("LAB-0001",)
    assert sites["LAB-0001"].lab
    assert sites["LAB-0001"].window is not None
    assert (sites["LAB-0001"].window.start, sites["LAB-0001"].window.end) == (0, 1440)
    assert len(canary.sites or ()) == 2 and set(canary.sites or ()) <= set(sites)
    assert [wave.percent for wave in (tenth, half, everything)] == [10, 50, 100]
    assert [wave.soak // 3600 for wave in waves.waves] == [1, 48, 24, 24, 24]
    assert {wave.image for wave in waves.waves} == {"v1.4.1"}, "one promotion is one line away"
    assert {wave.apps["video-ingest"] for wave in waves.waves} == {"2.7.0"}


def test_two_releases_of_the_image_and_of_the_app() -> None:
    images = {d["metadata"]["name"]: ImageSpec.model_validate(d["spec"]) for _, d in documents("images/*.yaml")}
    assert set(images) == {"v1.4.1", "v1.4.2"}
    for image in images.values():
        assert image.recipe is not None
        assert (FLEET / "images" / image.recipe / "setup.sh").is_file()
        # Every pin is of a package that the recipe installs: another one would pin nothing.
        variants = [variant for _, variant in documents(f"images/{image.recipe}*.yaml")]
        assert image.base is not None
        (variant,) = [one for one in variants if one["distribution"] == image.base.distribution]
        assert variant["suite"] == image.base.suite
        lines = (FLEET / "images" / image.recipe / "packages.txt").read_text().splitlines()
        shared = {line.split()[0] for line in lines if line and not line.startswith("#")}
        assert set(image.packages) <= shared | set(variant["packages"])
    ((_, app),) = documents("apps/*.yaml")
    releases = AppSpec.model_validate(app["spec"]).releases
    assert set(releases) == {"2.7.0", "2.8.0"}
    assert len(set(releases.values())) == 2


def test_it_loads_without_a_problem_or_a_warning() -> None:
    result = load_folder(FLEET)
    assert result.problems == ()
    assert result.desired is not None


def test_its_policy_holds() -> None:
    result = CliRunner().invoke(cli, ["test", "--fleet", str(FLEET)])
    assert result.exit_code == 0, result.output
    assert "8 passed, 0 failed" in result.output
    assert len(list((FLEET / "tests").iterdir())) == 8


def actions(folder: Path) -> list[dict[str, Any]]:
    """What is planned for a folder where every device runs v1.4.1 and 2.7.0 in good health."""
    desired = load_folder(folder).desired
    assert desired is not None
    release = desired.apps["video-ingest"].releases["2.7.0"]
    then = "2026-01-10T00:00:00Z"
    devices = [
        {
            "name": device, "site": name, "image": "v1.4.1", "imageSince": then, "health": "ok", "healthSince": then,
            "lastSeen": "2026-02-10T12:00:00Z", "apps": {"video-ingest": {"digest": release, "since": then}},
        }
        for name, spec in desired.sites.items()
        for device in spec.devices
    ]  # fmt: skip
    tags = {desired.tag_of(index): release for index in range(len(desired.waves.waves))}
    observed = {
        "devices": devices,
        "artifacts": {"v1.4.1": {"state": "published", "digest": "sha256:" + "1" * 64}},
        "tags": {"video-ingest": tags},
        "tagsSet": {"video-ingest": tags},
    }
    snapshot = load_snapshot(json.dumps(observed).encode())
    return plan(desired, snapshot, datetime(2026, 2, 10, 12, tzinfo=UTC)).to_dict()["actions"]  # type: ignore[no-any-return]


def test_as_it_stands_there_is_nothing_to_do() -> None:
    assert actions(FLEET) == []


@pytest.mark.parametrize(
    ("old", "new", "first"),
    [
        ("image: v1.4.1", "image: v1.4.2", {"kind": "build", "image": "v1.4.2"}),
        ("video-ingest: 2.7.0", "video-ingest: 2.8.0", {"kind": "retag", "app": "video-ingest", "tag": "lab"}),
    ],
)
def test_a_promotion_is_one_line_and_breaks_no_policy(
    tmp_path: Path, old: str, new: str, first: dict[str, str]
) -> None:
    copy = tmp_path / "fleet"
    shutil.copytree(FLEET, copy)
    waves = copy / "waves.yaml"
    waves.write_text(waves.read_text().replace(old, new, 1))
    (action,) = actions(copy)
    assert action.items() >= first.items()
    assert CliRunner().invoke(cli, ["test", "--fleet", str(copy)]).exit_code == 0
