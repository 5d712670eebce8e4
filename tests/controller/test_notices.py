"""The words of notifications, and where they lead; what they ask of the settings."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from reconciler.controller.notices import PAGES, Asked, trial, worded
from reconciler.controller.settings import load_settings
from reconciler.controller.settings_notify import TOLD, WebhookTarget
from reconciler.model.events import Event, EventKind
from reconciler.model.notices import Batch
from reconciler.repo.problem import InvalidInput
from reconciler.server.access import ROUTES
from tests.support.settings import write_settings

AT = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
BASE = "https://fleet.example/"


def event(kind: EventKind, number: int = 1, **of: Any) -> Event:
    values = {"commit": "c0ffee", "wave": "all", "device": f"D-{number}", "release": "v1.4.2", "reason": "why"} | of
    return Event(number, AT, kind, str(number), message=f"sentence {number}", **values)


@pytest.mark.parametrize("kind", EventKind)
def test_every_event_has_a_title_a_reason_a_link_and_a_command(kind: EventKind) -> None:
    one = worded(Batch.of([event(kind)]), BASE)
    many = worded(Batch.of([event(kind, number) for number in range(1, 8)]), BASE)
    bare = worded(Batch.of([Event(1, AT, kind, "1")]), None)
    for message in (one, many, bare):
        assert message.reason and message.command and message.text and message.title
        assert "{" not in message.title and "None" not in message.title + message.command + (message.link or "")
    assert one.link is not None and re.fullmatch(r"https://fleet\.example/[a-z/]*(c0ffee|D-1)?", one.link)
    assert "7" in many.title and many.count == 7 and bare.link is None
    assert Batch.from_dict(json.loads(json.dumps(Batch.of([event(kind)]).to_dict()))) == Batch.of([event(kind)])


def test_links_are_quoted() -> None:
    hostile = worded(Batch.of([event(EventKind.DEVICE_FLAGGED, device="a/../b?c")]), BASE)
    assert hostile.link == "https://fleet.example/devices/a%2F..%2Fb%3Fc"


def test_links_lead_to_pages_that_are_served() -> None:
    served = {re.sub(r"\{[^}]+\}", "{}", route.rpartition(" ")[2]) for route in ROUTES}
    linked = {re.sub(r"\{[^}]+\}", "{}", page) for pages in PAGES.values() for page in pages}
    assert "/v1/devices/{}" in served
    # A service without a front page has no dashboard.
    assert "/" not in served or linked <= served


def test_many_events_of_several_waves_name_the_first_few() -> None:
    flags = [event(EventKind.DEVICE_FLAGGED, number, wave=f"w{number}") for number in range(1, 7)]
    message = worded(Batch.of(flags), None)
    assert message.title == "6 devices flagged in waves w1, w2, w3, … on v1.4.2"
    assert message.command == "reconciler status"
    waves = [event(EventKind.WAVE_OPENED, number, wave=f"w{number}", release=f"v{number}") for number in (1, 2)]
    assert worded(Batch.of(waves), None).title == "2 waves opened"


def test_a_test_says_that_it_is_one() -> None:
    message = trial("ops", None, AT)
    assert message.kind == "test" and "ops" in message.text and message.link is None


def test_the_choice_of_waves_lets_pass_what_concerns_none() -> None:
    asked = Asked("ops", TOLD, ("canary",))
    kinds = (EventKind.WAVE_OPENED, EventKind.WAVE_SOAKING)
    assert [asked.takes(event(kind, wave="canary")) for kind in kinds] == [True, False]
    assert not asked.takes(event(EventKind.WAVE_OPENED))
    assert asked.takes(event(EventKind.COMMIT_REFUSED, wave=None))


# ---------------------------------------------------------------- settings

CHAT = {"name": "ops", "type": "slack", "urlSecret": "notify/ops"}
HOOK = {"name": "svc", "type": "webhook", "url": "https://svc.example/x?y=1", "secret": "notify/key", "ca": "ca.pem"}


def test_targets_with_their_defaults(tmp_path: Path) -> None:
    chat, hook = load_settings(write_settings(tmp_path, notifications=[CHAT, HOOK])).notifications
    assert (chat.events, chat.waves, chat.url) == (TOLD, (), None)
    assert isinstance(hook, WebhookTarget) and hook.ca == tmp_path / "ca.pem"
    assert load_settings(write_settings(tmp_path)).notifications == ()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"url": "https://hooks.example/hush"}, "has to say one of `url` and `urlSecret`"),
        ({"urlSecret": None}, "has to say one of `url` and `urlSecret`"),
        (
            {"urlSecret": None, "url": "http://hooks.example/hush"},
            r"notifications\.0\.url`: would be read in clear text",
        ),
        ({"urlSecret": None, "url": "hooks.example/hush"}, r"notifications\.0\.url`: is not an address"),
        ({"urlSecret": None, "url": "https://u:hush@hooks.example/"}, "neither a user nor a fragment"),
        ({"urlSecret": None, "url": "https://hooks.example:hush/"}, "is not an address"),
        ({"events": ["wave-opend"]}, r"notifications\.0\.events\.0` is 'wave-opend'.*'wave-opened'"),
        ({"events": []}, r"notifications\.0\.events"),
        ({"type": "teams"}, r"notifications\.0\.type` is missing or unknown; write one of 'slack', 'webhook'"),
        ({"type": "webhook"}, r"notifications\.0\.secret` is missing"),
        ({"secret": "a"}, "unknown key `notifications.0.secret`"),
        ({"name": "two words"}, r"notifications\.0\.name"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_no_address(tmp_path: Path, target: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_settings(write_settings(tmp_path, notifications=[CHAT | target]))
    text = str(caught.value)
    assert re.search(rf"reconciler\.yaml:\d+:\d+: .*{says}", text), text
    assert "hush" not in text


def test_two_targets_have_two_names(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="two targets called 'ops'"):
        load_settings(write_settings(tmp_path, notifications=[CHAT, CHAT]))
