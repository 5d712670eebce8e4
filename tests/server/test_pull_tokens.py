"""The registry token that devices are given: kept, renewed beside the requests, and no exchange's concern when it fails."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from reconciler.model.desired import Desired, FleetSpec, WavesSpec
from reconciler.ports import TransientError
from reconciler.protocol.assignment import AppTarget, Assignment
from reconciler.protocol.exchange import Answer, RegistryToken
from reconciler.server.pull_tokens import PullTokens
from reconciler.server.serving import Serving
from tests.server.service import DIGEST, NOW, OTHER, assign, report, running

ADDRESS, DEVICE = "https://1.dkr.ecr.example", "SITE-2847-1"


class Source:
    """Tokens `AWS:sentinel-1`, `-2`, …, each of an hour, on a clock in the hand; away while `down`."""

    def __init__(self) -> None:
        self.now, self.asked, self.down = NOW, 0, False
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self) -> RegistryToken:
        assert self.gate.wait(60)
        self.asked += 1
        if self.down:
            raise TransientError("ECR is away", needed_for="devices", remedy="wait")
        return RegistryToken(ADDRESS, f"AWS:sentinel-{self.asked}", self.now + timedelta(hours=1))

    def at(self, tokens: PullTokens, minutes: float) -> str | None:
        """What is handed out so many minutes after the start, once a renewal under way has ended."""
        self.now = NOW + timedelta(minutes=minutes)
        tokens.current()
        tokens.settle(60)
        held = tokens.current()
        return held.secret if held is not None else None


def kept(source: Source) -> PullTokens:
    tokens = PullTokens(source, lambda: source.now)
    tokens.settle(60)
    return tokens


def test_a_token_is_kept_until_half_of_its_life_and_then_renewed() -> None:
    source = Source()
    tokens = kept(source)
    found = [source.at(tokens, minutes) for minutes in (0, 10, 29.9, 30, 59)]
    assert found == ["AWS:sentinel-1"] * 3 + ["AWS:sentinel-2"] * 2
    assert source.asked == 2


def test_while_it_cannot_be_renewed_the_old_one_is_given_as_long_as_it_holds() -> None:
    source = Source()
    with capture_logs() as log:
        tokens = kept(source)
        source.down = True
        found = [source.at(tokens, minutes) for minutes in (31, 31.2, 54, 56, 70)]
        asked = source.asked
        source.down = False
        assert source.at(tokens, 80) == f"AWS:sentinel-{asked + 1}"
    assert found == ["AWS:sentinel-1"] * 3 + [None] * 2
    assert asked == 5  # not within half a minute of the last failure
    assert [line["event"] for line in log] == ["no new registry token for devices", "registry token renewed"]
    assert "ECR is away" in log[0]["cause"] and "sentinel" not in str(log)


def test_nobody_waits_for_a_registry_that_hangs() -> None:
    source = Source()
    source.gate.clear()
    tokens = PullTokens(source, lambda: source.now)
    assert [tokens.current() for _ in range(50)] == [None] * 50
    source.gate.set()
    tokens.settle(60)
    assert tokens.current() is not None and source.asked == 1


def test_a_token_without_an_end_is_read_again() -> None:
    found = iter(["edge:one", "edge:two"])
    now = [NOW]

    class Secret:
        def fetch(self) -> RegistryToken:
            return RegistryToken(ADDRESS, next(found), None)

    tokens = PullTokens(Secret(), lambda: now[0])
    tokens.settle(60)
    now[0] += timedelta(minutes=11)
    tokens.current()
    tokens.settle(60)
    held = tokens.current()
    assert held is not None and held.secret == "edge:two"


# ---------------------------------------------------------------- what a device is given


def serving(tokens: PullTokens | None, registry_at: str | None = None, desired: Desired | None = None) -> Serving:
    unused: Any = None
    return Serving(lambda: desired, unused, unused, artifacts_at=ADDRESS, registry_at=registry_at, tokens=tokens)


def assigned(**apps: AppTarget) -> Assignment:
    return Assignment(
        device=DEVICE, serial=(1, 1), issued_at=NOW, expires_at=NOW + timedelta(hours=1), image=None, apps=apps
    )


APP = AppTarget("edge/video-ingest", "stable", DIGEST, "2.8.0")


def test_the_token_goes_with_its_own_registry_to_who_is_assigned_an_app() -> None:
    source = Source()
    given = serving(kept(source), "https://elsewhere.example")
    sources = given.sources(assigned(app=APP))
    assert (sources.addresses, sources.registry_token) == ({"registry": (ADDRESS,)}, "AWS:sentinel-1")
    assert given.sources(assigned()).registry_token is None
    source.down = True
    source.at(given._tokens, 61)  # type: ignore[arg-type]
    sources = given.sources(assigned(app=APP))
    assert (sources.addresses, sources.registry_token) == ({}, None)


@pytest.mark.parametrize(
    ("registry", "expected"),
    [("1.dkr.ecr.example", {"registry": (ADDRESS,)}), ("registry.invalid", {}), ("example/with/path", {})],
)
def test_without_a_token_the_address_is_the_settings_or_else_the_fleets(
    registry: str, expected: dict[str, tuple[str, ...]]
) -> None:
    desired = Desired(FleetSpec(registry=registry), WavesSpec.model_construct(), {}, {}, {})
    assert serving(None, None, desired).sources(assigned(app=APP)).addresses == expected
    assert serving(None, "https://own.example", desired).sources(assigned(app=APP)).addresses == {
        "registry": ("https://own.example",)
    }


def test_over_http_a_device_that_runs_its_app_is_given_none_and_no_log_shows_it(tmp_path: Path) -> None:
    given = serving(kept(Source()))
    with capture_logs() as log, running(tmp_path, sources=given.sources) as service:
        headers = service.enrol(DEVICE)
        assign(service.store, DEVICE, app=OTHER)
        lacking = Answer.from_bytes(service.send(report(), headers).content)
        running_it = Answer.from_bytes(service.send(report(sequence=2, apps={"video-ingest": OTHER}), headers).content)
    assert (lacking.registry_token, dict(lacking.sources)) == ("AWS:sentinel-1", {"registry": (ADDRESS,)})
    assert running_it.registry_token is None
    assert "sentinel" not in str(log)
