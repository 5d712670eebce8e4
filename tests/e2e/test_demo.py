"""The whole of it: the demo as a person starts it, looked at afterwards; once undisturbed, once with its controller killed."""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from reconciler.demo.story import APP, BAD, GOOD, NEW_APP, OLD, Demo
from reconciler.demo.summary import Line, read_log
from reconciler.model.observed import Snapshot
from reconciler.planner import waves_of_sites
from reconciler.planner.windows import calendar, micros
from tests.e2e import leaks
from tests.support.system import need

# One worker plays both demos: two would play them twice.
pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(600)]

FLEET = Path(__file__).resolve().parents[2] / "fleet"
KILLS = 10
PROVISIONED = "SITE-4532-1"


@dataclass
class Played:
    """A finished demo, everything still up."""

    demo: Demo
    root: Path
    seen: Snapshot
    journal: list[dict[str, Any]]
    log: list[Line]
    watch: leaks.Watch

    @property
    def wave_of(self) -> dict[str, str]:
        waves = waves_of_sites(self.demo.desired, self.seen, self.demo.now)
        return {name: waves[site] for site, spec in self.demo.desired.sites.items() for name in spec.devices}


def _play(kills: tuple[float, ...]) -> Iterator[Played]:
    for program, package in (("git", "git"), ("gpgv", "gpgv"), ("mke2fs", "e2fsprogs"), ("zstd", "zstd")):
        need(program, package)
    # A short path of its own: sockets and GnuPG homes lie in it.
    root = Path(tempfile.mkdtemp(prefix="demo-"))
    demo = Demo(root, FLEET, lambda at, text: None, kills=kills, debug=True)
    try:
        with leaks.Watch() as watch:
            demo.play()
        rows = [dict(row) for row in demo.store.journal(100_000)]
        yield Played(demo, root, demo.store.snapshot(), rows, read_log(demo.ground.log), watch)
    finally:
        demo.close()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def calm() -> Iterator[Played]:
    yield from _play(())


@pytest.fixture(scope="module")
def killed() -> Iterator[Played]:
    draw = random.Random(20260115)
    yield from _play(tuple(draw.uniform(0.2, 5.0) for _ in range(KILLS)))


@pytest.fixture(params=["calm", "killed"])
def played(request: pytest.FixtureRequest) -> Played:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Played)
    return found


def end_state(played: Played) -> dict[str, Any]:
    """What must not depend on how often the controller died: everything but instants, serials and random digests."""
    seen, releases = played.seen, played.demo.desired.apps[APP].releases
    names = {digest: version for version, digest in releases.items()}
    return {
        "devices": {
            d.name: (
                d.image, d.previous_image, d.inactive_slot, d.health.value, names[d.apps[APP].digest],
                d.updating_to, dict(d.failed_attempts), d.conflict,
            )
            for d in seen.devices
        },
        "proofs": sorted((v.wave, v.key, v.closed) for v in seen.proofs),
        "failures": sorted((v.wave, v.key, v.closed) for v in seen.failures),
        "members": {key: dict(waves) for key, waves in seen.members.items()},
        "tags": {tag: names[digest] for tag, digest in dict(seen.tags_set[APP]).items() if digest},
        "proposals": sorted(proposal.key for proposal in seen.proposals),
        "actions": sorted(_without_digests(str(row["key"])) for row in played.journal),
    }  # fmt: skip


def _without_digests(key: str) -> str:
    return re.sub(r"sha256:[0-9a-f]{64}", "sha256", key)


def test_the_fleet_ends_where_git_wants_it(played: Played) -> None:
    for device in played.seen.devices:
        assert device.image == GOOD, device.name
        assert device.apps[APP].digest == played.demo.desired.apps[APP].releases[NEW_APP]
        assert device.health.value == "ok" and not device.failed_attempts and not device.conflict
    assert len(played.seen.devices) == sum(len(site.devices) for site in played.demo.desired.sites.values())
    assert not played.demo.store.open_intents()
    conditions = {row.type: row.status for row in played.demo.store.conditions()}
    assert conditions == {
        "GitReady": "True", "FleetValid": "True", "StoresReady": "True", "SigningReady": "True", "ForgeReady": "True",
        "NotificationsReady": "True", "Progressing": "False", "Stalled": "False",
    }  # fmt: skip


def test_no_action_is_doubled_and_none_is_lost(played: Played) -> None:
    counted = Counter((row["key"], row["commit"]) for row in played.journal)
    assert not [key for key, count in counted.items() if count > 1]
    assert {row["outcome"] for row in played.journal} == {"done"}
    # The device's side of it: each life of an agent takes a block of numbers, so reboots can be counted.
    flashes = Counter(
        re.search(r"device=(\S+)", str(row["key"])).group(1) for row in played.journal if row["kind"] == "flash"
    )  # type: ignore[union-attr]
    for device in played.seen.devices:
        assert device.boot is not None
        lives = device.boot.first_sequence // 10_000
        assert lives == flashes[device.name], f"{device.name} rebooted {lives} times for {flashes[device.name]} flashes"
    assert flashes[PROVISIONED] == 2 and set(flashes.values()) == {1, 2, 3}


def test_each_wave_follows_the_proof_of_the_one_before(played: Played) -> None:
    waves = [wave.name for wave in played.demo.desired.waves.waves]
    # A release that is asked for again after a revert is proven again: the first time counts here.
    proven = {(v.wave, v.key): v.at for v in sorted(played.seen.proofs, key=lambda v: v.at, reverse=True)}
    first: dict[tuple[str, str], datetime] = {}
    for line in played.log:
        if line.event == "action" and line.fields.get("why") == "promote":
            device, release = re.findall(r"=(\S+)", str(line.fields["action"]))
            first.setdefault((played.wave_of[device], release), line.at)
    for before, after in pairwise(waves):
        assert first[after, GOOD] >= proven[before, GOOD]
    soaks = {"canary": 48, "tenth": 24, "half": 24, "all": 24}
    for wave, hours in soaks.items():
        assert (proven[wave, GOOD] - first[wave, GOOD]).total_seconds() >= hours * 3600


def test_promotions_start_inside_the_sites_window_and_nowhere_else(played: Played) -> None:
    sites = {name: spec for spec in played.demo.desired.sites.values() for name in spec.devices}
    checked = 0
    for line in played.log:
        if line.event != "action" or line.fields.get("why") != "promote":
            continue
        device = re.search(r"device=(\S+)", str(line.fields["action"])).group(1)  # type: ignore[union-attr]
        spec = sites[device]
        window = spec.window or played.demo.desired.fleet.window
        verdict = calendar(spec.timezone, window.start, window.end).judge(micros(line.at), 20 * 60 * 1_000_000)
        assert verdict.can_start, f"{device} at {line.at}"
        checked += 1
    assert checked >= 76


def test_the_bad_release_reaches_the_lab_and_the_canary_alone(played: Played) -> None:
    told = {
        re.search(r"device=(\S+)", str(row["key"])).group(1)  # type: ignore[union-attr]
        for row in played.journal
        if f"to={BAD}" in str(row["key"])
    }
    assert {played.wave_of[name] for name in told} == {"lab", "canary"}
    assert [(v.wave, v.key) for v in played.seen.failures] == [("canary", BAD)]
    back = [line for line in played.log if line.fields.get("why") == "rollback"]
    assert {re.search(r"device=(\S+)", str(line.fields["action"])).group(1) for line in back} <= told  # type: ignore[union-attr]
    assert back and all(f"to={GOOD}" in str(line.fields["action"]) for line in back)


def test_the_revert_was_proposed_once_with_its_evidence_and_merged_by_a_person(played: Played) -> None:
    branches = played.demo.ground.branches("revert/*")
    assert len(branches) == 1 and branches[0].startswith(f"revert/{BAD}-")
    body = played.demo.ground._git(played.demo.ground.remote, "log", "-1", "--format=%B", branches[0])
    assert "decoder" in body and "SITE-2847-1" in body and "wave canary" in body
    authors = played.demo.ground._git(played.demo.ground.remote, "log", "--format=%an", "--first-parent", "main")
    assert set(authors.split("\n")) <= {"Demo Engineer", ""}


def test_a_device_keeps_its_configuration_over_update_and_rollback(played: Played) -> None:
    for name, device in played.demo.director.devices.items():
        seed = device.hardware.root / "cidata" / "user-data"
        assert device.identity.site in seed.read_text(), name
        version = (device.hardware.root / "etc" / "edge-image-version").read_text()
        assert f"current={GOOD}" in version
        previous = BAD if name in ("LAB-0001-1", "SITE-2847-1", "SITE-2847-2", "SITE-1033-1") else OLD
        assert (f"previous={previous}" in version) or name == "SITE-1033-1"


def test_no_secret_is_anywhere_but_in_its_place(played: Played) -> None:
    root, demo = played.root, played.demo
    secrets = leaks.planted(root)
    assert len(secrets) > 120
    needles = leaks.Needles(secrets)
    found, inside = leaks.in_files(root, needles)
    assert found == {}
    assert inside > 200, "the search itself finds them where they are"
    assert (
        leaks.in_git([demo.ground.remote, demo.ground.clone, demo.ground.state / "git" / "mirror.git"], needles)
        == set()
    )
    assert leaks.in_store(demo.ground.state / "store.db", needles) == set()
    assert played.watch.leaks(needles) == set()


def test_what_operators_read_holds_no_secret(calm: Played) -> None:
    needles = leaks.Needles(leaks.planted(calm.root))
    token = (calm.root / "tokens" / "operator").read_text()
    for path in ("metrics", "v1/plan", "v1/status"):
        url = f"http://127.0.0.1:{calm.demo.ground.port}/{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        assert needles.names_in(body) == set() and len(body) > 200
        if path != "metrics":
            json.loads(body)


def test_ten_kills_end_in_the_same_state(calm: Played, killed: Played) -> None:
    assert killed.demo.killed() == KILLS
    assert killed.demo.controller.starts >= KILLS + 1
    assert end_state(killed) == end_state(calm)
