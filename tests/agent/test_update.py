"""A device from one assignment to the next: updates, fall-backs, switches, configuration, apps. Real HTTP, keys and
images."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler

import pytest

from reconciler.agent import window
from reconciler.agent.machine import State
from reconciler.agent.transport import HttpTransport, Server
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import Slot
from tests.agent.conftest import Releases
from tests.agent.world import DEVICE, QUICK, START, TOKEN, Office, Site, send

pytestmark = pytest.mark.system


def test_an_update_runs_through_every_phase_and_the_slot_is_marked_good(
    site: Site, office: Office, releases: Releases
) -> None:
    site.settle()
    assert office.last().image == "v1"
    assert office.last().health == "ok"
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=2))
    phases = [report.phase for report in office.reports]
    order = [phase for phase, before in zip(phases, [None, *phases], strict=False) if phase != before]
    assert order == ["idle", "prefetching", "idle", "writing", "rebooting", "trial", "idle"]
    report = office.last()
    assert (report.image, report.previous, report.booted) == ("v2", "v1", "a")
    assert report.slots == {"a": Slot("v2", releases.v2.digest, True), "b": Slot("v1", releases.v1.digest, True)}
    assert report.serial == (1, 1)
    assert report.checks_before == report.checks != ()
    assert site.slot_digest("a", len(releases.v2.image)) == releases.v2.digest
    assert (site.root / "etc" / "edge-image-version").read_text() == "current=v2\nprevious=v1\n"
    assert not (site.root / "agent" / "cache").exists()
    sequences = [item.sequence for item in office.reports]
    assert sequences == sorted(set(sequences))
    assert len({item.boot_id for item in office.reports}) == 2


def test_a_bad_release_is_caught_by_its_own_healthcheck_and_the_device_falls_back(
    site: Site, office: Office, releases: Releases
) -> None:
    office.assign(releases.bad)
    site.settle(START + timedelta(minutes=5))
    report = office.last()
    assert (report.image, report.attempts, report.health) == ("v1", {"v3": 1}, "ok")
    assert report.inactive == Slot("v3", releases.bad.digest, False)
    assert site.hardware.flags().default == "b"
    assert "trial" in [item.phase for item in office.reports]
    # Not again under the same assignment, and it says so; under the next one it tries again.
    assert [item.code for item in report.refusals] == ["attempt-failed"]
    office.assign(releases.bad)
    site.settle(START + timedelta(minutes=10))
    assert office.last().attempts == {"v3": 2}
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=15))
    assert (office.last().image, office.last().attempts) == ("v2", {"v3": 2})
    assert office.last().refusals == ()


def test_going_back_switches_slots_without_a_download(site: Site, office: Office, releases: Releases) -> None:
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=2))
    office.requests.clear()
    office.assign(releases.v1)
    site.settle(START + timedelta(minutes=4))
    assert office.last().image == "v1"
    assert office.last().previous == "v2"
    assert {path for _, path, _ in office.requests} == {"/v1/exchange"}


def test_a_slot_that_has_rotted_is_not_booted_but_fetched_again(site: Site, office: Office, releases: Releases) -> None:
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=2))
    slot = site.root / "slot-b.img"
    data = bytearray(slot.read_bytes())
    data[70000] ^= 1
    slot.write_bytes(bytes(data))
    office.requests.clear()
    office.assign(releases.v1)
    site.settle(START + timedelta(minutes=4))
    assert (office.last().image, office.last().attempts) == ("v1", {})
    assert any(path.endswith(".zst") for _, path, _ in office.requests)


def test_outside_the_window_it_prefetches_and_then_waits_for_the_window(
    site: Site, office: Office, releases: Releases
) -> None:
    opens = START + timedelta(hours=3)
    office.assign(releases.v2, window=((opens, opens + timedelta(hours=2)),))
    site.settle(opens - timedelta(seconds=1))
    assert office.last().image == "v1"
    assert site.hardware.slots()["a"] == Slot()
    assert list((site.root / "agent" / "cache").rglob("manifest.json"))
    office.requests.clear()
    site.settle(opens + timedelta(minutes=1))
    assert office.last().image == "v2"
    assert not any(".zst" in path for _, path, _ in office.requests)


def test_an_empty_window_prefetches_only(site: Site, office: Office, releases: Releases) -> None:
    office.assign(releases.v2, window=())
    site.settle(START + timedelta(hours=4))
    assert office.last().image == "v1"
    assert (site.root / "agent" / "cache").is_dir()


def test_a_device_begins_at_its_own_place_in_the_window(site: Site, office: Office, releases: Releases) -> None:
    site.device = site.new_device(type(QUICK)(spread_s=300, slice_s=60, report_jitter=0))
    opens = START + timedelta(hours=1)
    office.assign(releases.v2, window=((opens, opens + timedelta(hours=1)),))
    site.settle(opens + timedelta(minutes=6))
    began = next(item for item in office.reports if item.phase == "writing")
    assert began.image == "v1"
    assignment = office.assign(window=((opens, opens + timedelta(hours=1)),))
    offset = window.opens(assignment, DEVICE, opens, spread_s=300, least_window_s=0)
    assert offset is not None
    assert opens < offset < opens + timedelta(seconds=300)


def test_too_little_of_a_window_begins_nothing(site: Site, office: Office, releases: Releases) -> None:
    site.device = site.new_device(type(QUICK)(least_window_s=60, spread_s=0, report_jitter=0))
    office.assign(releases.v2, window=((START - timedelta(hours=1), START + timedelta(seconds=59)),))
    site.settle(START + timedelta(hours=1))
    assert office.last().image == "v1"
    assert site.hardware.slots()["a"] == Slot()


def test_nothing_new_starts_under_an_expired_assignment(site: Site, office: Office, releases: Releases) -> None:
    opens = START + timedelta(hours=3)
    expires = START + timedelta(hours=1)
    office.assign(releases.v2, window=((opens, opens + timedelta(hours=1)),), expires_at=expires)
    site.settle(opens + timedelta(minutes=30))
    report = office.last()
    assert report.image == "v1"
    assert [item.code for item in report.refusals] == ["assignment-expired"]


def test_another_image_wanted_in_the_middle_replaces_the_work(site: Site, office: Office, releases: Releases) -> None:
    opens = START + timedelta(hours=3)
    office.assign(releases.bad, window=((opens, opens + timedelta(hours=1)),))
    site.settle(START + timedelta(hours=1))
    office.assign(releases.v2, window=((opens, opens + timedelta(hours=1)),))
    site.settle(opens + timedelta(minutes=5))
    assert (office.last().image, office.last().attempts) == ("v2", {})


def test_a_device_without_an_image_is_provisioned(
    new_site: Callable[..., Site], office: Office, releases: Releases
) -> None:
    bare = new_site(None)
    bare.settle()
    assert (office.last().image, office.last().health) == (None, "unknown")
    office.assign(releases.v2)
    bare.settle(START + timedelta(minutes=5))
    assert (office.last().image, office.last().previous, office.last().booted) == ("v2", None, "b")


def test_a_check_that_was_critical_before_is_not_held_against_the_release(
    site: Site, office: Office, releases: Releases
) -> None:
    (site.root / "faults" / "cameras").write_text("critical none answers")
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=5))
    assert (office.last().image, office.last().health, office.last().attempts) == ("v2", "critical", {})


def test_a_check_that_settles_in_time_is_not_held_against_it_either(
    site: Site, office: Office, releases: Releases
) -> None:
    office.assign(releases.v2)
    while site.device.agent.work.state is not State.REBOOTING:
        site.step()
    (site.root / "faults" / "docker").write_text("critical starting")
    site.settle(START + timedelta(seconds=15))
    assert site.device.agent.work.state is State.TRIAL
    (site.root / "faults" / "docker").unlink()
    site.settle(START + timedelta(minutes=2))
    assert (office.last().image, office.last().attempts) == ("v2", {})


def test_an_image_that_does_not_boot_falls_back_by_the_boot_loader_alone(
    site: Site, office: Office, keys: object, releases: Releases, tmp_path: object
) -> None:
    from tests.agent.world import pack

    folder = office.root / "artifacts" / "edge-golden-v9-20300101"
    broken = pack(b"\0" * 100_000, folder, "v9", office.keys, zstd=False)
    office.assign(broken)
    site.settle(START + timedelta(minutes=5))
    assert (office.last().image, office.last().attempts) == ("v1", {"v9": 1})
    assert site.hardware.flags().trial is None


# ---------------------------------------------------------------- configuration


def _config(digit: str, text: str = "#cloud-config\n") -> SiteConfig:
    return SiteConfig("sha256:" + digit * 64, {"user-data": text.encode(), "meta-data": b"instance-id: x\n"})


def test_configuration_is_fetched_applied_and_reported(site: Site, office: Office) -> None:
    office.config = _config("1", "#cloud-config\nsecret: hunter2\n")
    office.assign(config=office.config.digest)
    site.settle(START + timedelta(minutes=2))
    assert office.last().config == office.config.digest
    assert (site.root / "cidata" / "user-data").read_bytes() == office.config.files["user-data"]
    assert (site.root / "cidata" / "user-data").stat().st_mode & 0o077 == 0
    assert (site.root / "cidata").stat().st_mode & 0o077 == 0
    assert b"hunter2" not in (site.root / "agent" / "state.json").read_bytes()
    assert "configuring" in [item.phase for item in office.reports]


def test_configuration_that_makes_a_check_critical_is_put_back(site: Site, office: Office) -> None:
    office.config = _config("1")
    office.assign(config=office.config.digest)
    site.settle(START + timedelta(minutes=2))
    before = site.hardware.config_digest()
    office.config = _config("2")
    apply = site.hardware.apply_config

    def breaking(config: SiteConfig) -> None:
        apply(config)
        (site.root / "faults" / "vpn").write_text("critical no handshake")

    site.hardware.apply_config = breaking  # type: ignore[method-assign]
    restore = site.hardware.restore_config

    def mending(digest: str | None) -> None:
        (site.root / "faults" / "vpn").unlink()
        restore(digest)

    site.hardware.restore_config = mending  # type: ignore[method-assign]
    office.assign(config=office.config.digest)
    site.settle(START + timedelta(minutes=5))
    report = office.last()
    assert report.config == before
    assert (site.root / "cidata" / "digest").read_text().strip() == before
    assert [item.code for item in report.refusals] == ["health-worse"]
    assert report.attempts == {}


def test_configuration_of_another_digest_than_assigned_is_refused(site: Site, office: Office) -> None:
    office.config = _config("2")
    office.assign(config="sha256:" + "1" * 64)
    site.step()
    before = site.tree()
    site.settle(START + timedelta(minutes=2))
    assert [item.code for item in office.last().refusals] == ["config-mismatch"]
    after = site.tree()
    assert after == before


# ---------------------------------------------------------------- apps


def test_an_app_is_pulled_by_digest_and_restarted(site: Site, office: Office) -> None:
    first, second = office.push_app(b"one" * 1000), office.push_app(b"two" * 1000, version="2.9.0")
    office.assign(apps={"video-ingest": first})
    site.settle(START + timedelta(minutes=2))
    assert office.last().apps == {"video-ingest": first.digest}
    office.assign(apps={"video-ingest": second})
    site.settle(START + timedelta(minutes=4))
    assert office.last().apps == {"video-ingest": second.digest}
    office.requests.clear()
    office.assign(apps={"video-ingest": first})
    site.settle(START + timedelta(minutes=6))
    assert office.last().apps == {"video-ingest": first.digest}
    assert not any("blobs" in path for _, path, _ in office.requests), "the previous release is kept"
    assert "restarting" in [item.phase for item in office.reports]


def test_an_app_that_makes_a_check_worse_is_put_back_and_counted(site: Site, office: Office) -> None:
    first, second = office.push_app(b"one"), office.push_app(b"two", version="2.9.0")
    office.assign(apps={"video-ingest": first})
    site.settle(START + timedelta(minutes=2))
    run_app = site.hardware.run_app

    def running(app: str, digest: str | None) -> None:
        run_app(app, digest)
        fault = site.root / "faults" / "video-ingest"
        if digest == second.digest:
            fault.write_text("critical crashes")
        else:
            fault.unlink(missing_ok=True)

    site.hardware.run_app = running  # type: ignore[method-assign]
    office.assign(apps={"video-ingest": second})
    site.settle(START + timedelta(minutes=5))
    assert office.last().apps == {"video-ingest": first.digest}
    assert office.last().attempts == {"video-ingest@2.9.0": 1}
    assert office.last().health == "ok"


@pytest.mark.parametrize("what", ["manifests", "blobs"])
def test_an_app_whose_bytes_are_not_its_digest_is_refused(site: Site, office: Office, what: str) -> None:
    app = office.push_app(b"one" * 1000)
    for path in (office.root / "registry" / "video-ingest" / what).iterdir():
        path.write_bytes(path.read_bytes().replace(b"o", b"p").replace(b"{}", b"[]"))
    office.assign(apps={"video-ingest": app})
    site.settle(START + timedelta(minutes=2))
    assert [item.code for item in office.last().refusals] == ["app-digest"]
    assert office.last().apps == {}
    assert office.last().attempts == {}
    assert sorted((site.root / "apps" / "video-ingest").iterdir()) == []


def test_an_index_of_platforms_leads_to_this_machines_manifest(site: Site, office: Office) -> None:
    import hashlib
    import platform

    app = office.push_app(b"one")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    other = {"digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "sparc"}}
    mine = {"digest": app.digest, "platform": {"os": "linux", "architecture": machine}}
    index = json.dumps({"schemaVersion": 2, "manifests": [other, mine]}).encode()
    digest = hashlib.sha256(index).hexdigest()
    (office.root / "registry" / "video-ingest" / "manifests" / digest).write_bytes(index)
    office.assign(apps={"video-ingest": type(app)("video-ingest", "canary", f"sha256:{digest}", "2.8.0")})
    site.settle(START + timedelta(minutes=2))
    assert office.last().apps == {"video-ingest": f"sha256:{digest}"}


def test_the_registry_token_goes_to_the_registry_and_the_devices_token_to_the_server_alone(
    site: Site, office: Office, releases: Releases, keys: object
) -> None:
    from tests.agent.world import office_at

    with office_at(office.root, office.keys) as elsewhere:
        office.sources_of_image = [f"{elsewhere.url}/v1/artifacts/{releases.v2.folder.name}/"]
        office.assign(releases.v2)
        site.settle(START + timedelta(minutes=3))
        assert office.last().image == "v2"
        assert elsewhere.requests
        assert not any("Authorization" in headers for _, _, headers in elsewhere.requests)


def test_an_app_is_pulled_from_an_image_layout_on_disk(site: Site, office: Office) -> None:
    app = office.push_app(b"one" * 1000)
    blobs = office.root / "layouts" / "video-ingest" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for kind in ("manifests", "blobs"):
        for path in (office.root / "registry" / "video-ingest" / kind).iterdir():
            (blobs / path.name).write_bytes(path.read_bytes())
    site.transport.close()
    site.transport = HttpTransport(Server(office.url, TOKEN, allow_file_urls=True))
    site.device = site.new_device()
    office.registry = (office.root / "layouts").as_uri()
    office.assign(apps={"video-ingest": app})
    site.settle(START + timedelta(minutes=2))
    assert office.last().apps == {"video-ingest": app.digest}
    assert not any(path.startswith("/registry") for _, path, _ in office.requests)


def test_a_pull_that_breaks_off_keeps_what_it_has(site: Site, office: Office) -> None:
    app = office.push_app(b"layer" * 1000)
    asked: list[str] = []

    def away(request: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" in request.path:
            asked.append(request.path)
            if len(asked) == 2:
                send(request, 503, b"")
                return True
        return False

    office.before = away
    office.assign(apps={"video-ingest": app})
    site.settle(START + timedelta(minutes=4))
    assert office.last().apps == {"video-ingest": app.digest}
    assert len(asked) == 3, "the blob that was here is not fetched again"
    assert office.last().attempts == {}
