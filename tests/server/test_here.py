"""Where pages ask for no token: what a request must not show to be taken for one of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.server.limits import network_of
from tests.server.inside import PAGE, Inside, inside

OPEN = ("/account", "/metrics")


def asked(world: Inside, **headers: str) -> set[int]:
    browser = world.browser(peer="127.0.0.1")
    return {browser.get(path, headers=PAGE | headers).status_code for path in OPEN}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> object:
    with inside(tmp_path_factory.mktemp("here"), local=True) as made:
        yield made


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8470", "127.0.0.1", "localhost:8470", "LocalHost", "[::1]:8470", "127.1.2.3"]
)
def test_a_name_of_this_machine_is_enough(world: Inside, host: str) -> None:
    assert asked(world, Host=host) == {200}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8470",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0:8470",
        "[::ffff:192.0.2.1]",
        # What the framework cannot read it takes for the address that it listens on; browsers send such names.
        "ev{il.example:8470",
        "ev`il.example",
        'ev"il.example',
        "evil.example:99999",
        "user@127.0.0.1",
        "evil.example/127.0.0.1",
        "",
    ],
)
def test_a_page_whose_name_was_pointed_here_gets_nothing(world: Inside, host: str) -> None:
    assert asked(world, Host=host) == {303, 401}


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "X-Forwarded-Host", "X-Forwarded-Proto"]
)
def test_what_a_proxy_passed_on_is_not_of_this_machine(world: Inside, name: str) -> None:
    assert asked(world, **{name: "127.0.0.1"}) == {303, 401}


def test_another_sites_page_may_lead_here_and_take_nothing(world: Inside) -> None:
    for site in ("cross-site", "same-site"):
        image = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert world.browser().get("/metrics", headers=image).status_code == 401
        assert world.browser().get("/events/stream", headers=image).status_code == 401
        link = PAGE | {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
        assert world.browser().get("/account", headers=link).status_code == 200
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert world.browser().get("/metrics", headers=own).status_code == 200


def test_no_answer_repeats_the_name_that_a_request_was_sent_to(tmp_path: Path) -> None:
    with inside(tmp_path) as world:
        for path in ("/devices/", "/v1/plan/", "/login/", "/nowhere"):
            answer = world.browser().get(path, headers={"Host": "evil.example"})
            assert answer.status_code == 404 and "location" not in answer.headers
            assert "evil.example" not in answer.text


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("64:ff9b::192.0.2.7", "64:ff9b::c000:207"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_who_has_one_address_of_a_network_has_all_of_them(address: str, counted: str) -> None:
    assert network_of(address) == counted
