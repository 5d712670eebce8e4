"""Reading scenarios: shorthands, what is made where it is missing, and problems at their line and column."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from reconciler.model.desired import Desired, FleetSpec, ImageSpec, SiteSpec, WavesSpec
from reconciler.repo.problem import InvalidInput
from reconciler.repo.scenario_read import read_scenario
from reconciler.repo.scenario_run import Scenario

CONTRACT = Path(__file__).resolve().parents[1] / "contract" / "scenarios"

GIVEN = """\
apiVersion: fleet/v1
kind: Scenario
metadata: {name: a sentence}
spec:
  sites: {count: 3, timezone: Europe/Berlin}
  documents:
    - kind: Waves
      metadata: {name: waves}
      spec: {waves: [{name: all, percent: 100, image: v2, soak: 24h, maxOffline: 10%}]}
  now: 2026-01-15T01:30:00Z
  observed:
    artifacts: {v1: published, v2: {state: signed}}
    defaults: {image: v1, lastSeen: now, health: ok}
    devices:
      SITE-0002-1: {image: v9, lastSeen: 2026-01-15T01:00:00Z, previousImage: v8}
  expect: {actions: []}
"""


def read(text: str) -> Scenario:
    return read_scenario("a.yaml", text.encode())[0]


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    return [str(problem) for problem in caught.value.problems]


def test_sites_are_made_with_one_device_each() -> None:
    sites = read(GIVEN).desired.sites
    assert sorted(sites) == ["SITE-0001", "SITE-0002", "SITE-0003"]
    assert sites["SITE-0003"] == SiteSpec(timezone="Europe/Berlin", devices=("SITE-0003-1",))


def test_defaults_fill_every_device_and_a_device_overrides_them() -> None:
    one, two, three = read(GIVEN).snapshot.devices
    now = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
    assert (one.name, one.site, one.image, one.last_seen) == ("SITE-0001-1", "SITE-0001", "v1", now)
    assert (two.image, two.health, two.last_seen) == ("v9", "ok", now.replace(hour=1, minute=0))
    assert three.image == "v1"


def test_a_null_takes_a_default_away() -> None:
    text = GIVEN.replace("{image: v9,", "{image: null, health: unknown,")
    assert read(text).snapshot.devices[1].image is None


def test_without_defaults_a_device_that_is_not_written_never_reported() -> None:
    text = GIVEN.replace("    defaults: {image: v1, lastSeen: now, health: ok}\n", "")
    assert [device.name for device in read(text).snapshot.devices] == ["SITE-0002-1"]


def test_what_is_missing_of_fleet_and_image_is_made_with_defaults() -> None:
    """Also the releases of artifacts and defaults; not those that a single device reports."""
    desired = read(GIVEN).desired
    assert desired.fleet == FleetSpec()
    assert dict(desired.images) == {"v1": ImageSpec(), "v2": ImageSpec()}


def test_releases_on_record_and_of_pins_are_made() -> None:
    text = GIVEN.replace(
        "    devices:\n",
        "    proofs: [{wave: all, image: v3, at: 2026-01-01T00:00:00Z}]\n    members: {v4: {all: [SITE-0001]}}\n    devices:\n",
    ).replace(
        "  documents:\n",
        "  documents:\n    - {kind: Site, metadata: {name: SITE-0003}, spec: {pin: {image: v5, why: trial}}}\n",
    )
    assert sorted(read(text).desired.images) == ["v1", "v2", "v3", "v4", "v5"]


def test_a_document_completes_a_made_site() -> None:
    text = GIVEN.replace(
        "  documents:\n", "  documents:\n    - {kind: Site, metadata: {name: SITE-0003}, spec: {suspended: true}}\n"
    )
    site = read(text).desired.sites["SITE-0003"]
    assert site == SiteSpec(timezone="Europe/Berlin", devices=("SITE-0003-1",), suspended=True)


@pytest.mark.parametrize(
    "sites",
    [
        "{count: 1, timezone: UTC, LAB-0001: {lab: true, timezone: Asia/Kathmandu, devices: [LAB-0001-1]}}",
        "[{name: SITE-0001, timezone: UTC, devices: [SITE-0001-1]}, {name: LAB-0001, lab: true, timezone: Asia/Kathmandu}]",
        "[{name: SITE-0001}, {kind: Site, metadata: {name: LAB-0001}, spec: {lab: true, timezone: Asia/Kathmandu}}]",
    ],
)
def test_sites_may_be_written_out(sites: str) -> None:
    text = GIVEN.replace("{count: 3, timezone: Europe/Berlin}", sites).replace("SITE-0002-1", "LAB-0001-1")
    found = read(text).desired.sites
    assert found["SITE-0001"].devices == ("SITE-0001-1",)
    assert found["LAB-0001"] == SiteSpec(timezone="Asia/Kathmandu", devices=("LAB-0001-1",), lab=True)


def test_devices_may_be_the_snapshots_list() -> None:
    text = GIVEN.replace("      SITE-0002-1: {image: v9,", "      - {name: SITE-0002-1, image: v9,")
    assert read(text).snapshot == read(GIVEN).snapshot


def test_a_name_listed_twice_is_claimed_by_two() -> None:
    item = "      - {name: SITE-0002-1, image: v9}\n"
    text = GIVEN.replace(
        "      SITE-0002-1: {image: v9, lastSeen: 2026-01-15T01:00:00Z, previousImage: v8}\n", 2 * item
    )
    assert [device.conflict for device in read(text).snapshot.devices] == [False, True, False]


def test_without_documents_the_repos_own_are_planned() -> None:
    wave = {"name": "all", "percent": "100", "image": "v1", "soak": "1h"}
    site = SiteSpec(timezone="UTC", devices=("OWN-0001-1",))
    own = Desired(
        FleetSpec(attempts=5), WavesSpec.model_validate({"waves": [wave]}), {"v1": ImageSpec()}, {}, {"OWN-0001": site}
    )
    text = GIVEN[: GIVEN.index("  sites:")] + "  now: 2026-01-15T01:30:00Z\n  expect: {actions: []}\n"
    scenario, _ = read_scenario("a.yaml", text.encode(), lambda: own)
    assert scenario.desired == own
    assert problems(text) == [
        "a.yaml:5:3: no documents, and there is no fleet repo to take them from; name it with --fleet"
    ]


def test_a_device_of_no_site_is_a_warning() -> None:
    _, warnings = read_scenario("a.yaml", GIVEN.replace("SITE-0002-1:", "SITE-0022-1:").encode())
    assert [str(problem) for problem in warnings] == [
        "a.yaml:15:7: warning: device 'SITE-0022-1' is in no site; did you mean 'SITE-0002-1'?"
    ]
    _, warnings = read_scenario("a.yaml", GIVEN.replace("SITE-0002-1: {", "OLD-1: {site: OLD, ").encode())
    assert warnings == ()


@pytest.mark.parametrize(
    ("old", "new", "at", "words"),
    [
        ("kind: Scenario", "kind: Site", "Site", "where a scenario is expected"),
        ("  now: 2026-01-15T01:30:00Z\n", "", "spec:", "spec.now is missing"),
        ("now: 2026-01-15T01:30:00Z", "now: today", "today", "'today' is not an instant"),
        ("expect: {actions: []}", "expect: {}", "{}", "could not fail"),
        ("expect: {actions: []}", "expect: {actions: }", "actions: }", "actions has no value"),
        ("expect: {actions: []}", "expect: {action: []}", "action:", "did you mean 'actions'?"),
        ("actions: []", "actions: [{kind: flush}]", "flush", "did you mean 'flash'?"),
        ("actions: []", "actions: [{knd: flash}]", "knd", "did you mean 'kind'?"),
        ("actions: []", "holds: [{reason: soak}]", "soak}", "'soak' is not known here"),
        ("kind: Waves", "kind: Wave", "Wave\n", "did you mean 'Waves'?"),
        ("image: v2, soak", "image: 2, soak", "2, soak", "'2' is not a release"),
        ("count: 3", "count: three", "three", "'three'"),
        ("timezone: Europe/Berlin", "timezone: Europe/Berlim", "Europe/Berlim", "did you mean 'Europe/Berlin'?"),
        ("percent: 100", "sites: [SITE-0004]", "SITE-0004", "lists site 'SITE-0004', which has no document"),
        ("image: v2, soak", "apps: {video: 1.0.0}, soak", "video", "app 'video', which has no document"),
        ("health: ok}", "healthy: ok}", "healthy", "did you mean 'health'?"),
        ("health: ok}", "health: fine}", "fine", "'fine' is not known here"),
        ("previousImage: v8", "previusImage: v8", "previusImage", "did you mean 'previousImage'?"),
        ("kind: Waves", "kind: Image", "waves}\n", "'waves' is not a release"),
        ("v1: published", "v1: shipped", "v1: shipped", "'shipped' is not known here"),
    ],
)
def test_a_problem_names_its_place_and_the_remedy(old: str, new: str, at: str, words: str) -> None:
    assert old in GIVEN
    text = GIVEN.replace(old, new, 1)
    assert at in text
    before = text[: text.index(at)]
    place = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    told = problems(text)
    assert any(line.startswith(f"a.yaml:{place}: ") and words in line for line in told), "\n".join(told)


def test_every_problem_is_reported_in_one_run() -> None:
    told = problems(
        GIVEN.replace("count: 3", "count: x").replace("now: 2026", "now: 26").replace("v1: published", "v1: x")
    )
    assert len(told) == 3


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "x", "a: &a 1\nb: *a\n", "a: 1\na: 2\n"])
def test_what_is_no_scenario_is_a_problem(text: str) -> None:
    assert problems(text)


def test_the_contracts_scenarios_load() -> None:
    for path in sorted(CONTRACT.glob("*.yaml")):
        assert read_scenario(path.name, path.read_bytes())[1] == ()
