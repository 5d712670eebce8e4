"""The contract of `ports.Doorbell`, over files and over Run Command's protocol (a stand-in of our own)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from reconciler.adapters.aws import Aws
from reconciler.adapters.doorbell_local import LocalDoorbell
from reconciler.adapters.doorbell_ssm import Bell, SsmDoorbell
from reconciler.ports import Doorbell, TerminalError, TransientError
from tests.adapters.conftest import aws_at
from tests.support.ssm import Node, SsmStandIn

BELL = Bell("EdgeCallIn", "3", parameters={"reason": ["assignment"]})


class Place(Protocol):
    """A doorbell, devices that hear it, and one that cannot be reached."""

    doorbell: Doorbell

    def install(self, *devices: str) -> None: ...
    def break_bell(self, device: str) -> None: ...
    def rung(self, device: str) -> int: ...


class FilePlace:
    def __init__(self, folder: Path) -> None:
        self.doorbell = LocalDoorbell(folder)
        self._rung: dict[str, int] = {}

    def install(self, *devices: str) -> None:
        for device in devices:
            self.doorbell.listen(device, self._heard)

    def break_bell(self, device: str) -> None:
        def fail(device: str) -> None:
            raise RuntimeError("no agent here")

        self.doorbell.listen(device, fail)

    def rung(self, device: str) -> int:
        return self._rung.get(device, 0)

    def _heard(self, device: str) -> None:
        self._rung[device] = self._rung.get(device, 0) + 1


class SsmPlace:
    def __init__(self, server: SsmStandIn, aws: Aws) -> None:
        self.server, self.doorbell = server, SsmDoorbell(aws, BELL, sleep=lambda _: None)

    def install(self, *devices: str) -> None:
        start = len(self.server.nodes)
        self.server.nodes += [Node(f"mi-{start + n:017x}", device) for n, device in enumerate(devices)]

    def break_bell(self, device: str) -> None:
        for node in self.server.nodes:
            if node.computer_name == device:
                node.states = [("TimedOut", "DeliveryTimedOut")]

    def rung(self, device: str) -> int:
        ids = {node.id for node in self.server.nodes if node.computer_name == device}
        return sum(bool(ids & set(request["InstanceIds"])) for request in self.server.sent)


@pytest.fixture(scope="module")
def ssm_server() -> Iterator[SsmStandIn]:
    with SsmStandIn([]) as server:
        yield server


@pytest.fixture
def ssm(ssm_server: SsmStandIn) -> SsmStandIn:
    ssm_server.reset()
    return ssm_server


@pytest.fixture(scope="module")
def ssm_aws(ssm_server: SsmStandIn) -> Iterator[Aws]:
    clients = aws_at(ssm_server.url, attempts=2)
    yield clients
    clients.close()


@pytest.fixture(params=["files", "ssm"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "files":
        return FilePlace(tmp_path / "bells")
    return SsmPlace(request.getfixturevalue("ssm"), request.getfixturevalue("ssm_aws"))


def test_devices_are_rung_and_strangers_are_unknown(place: Place) -> None:
    place.install("SITE-0001-1", "SITE-0002-1")
    states = place.doorbell.ring(["SITE-0002-1", "SITE-0001-1", "SITE-9999-1"])
    assert states == {"SITE-0001-1": "delivered", "SITE-0002-1": "delivered", "SITE-9999-1": "unknown"}
    assert (place.rung("SITE-0001-1"), place.rung("SITE-0002-1")) == (1, 1)


def test_one_device_that_cannot_be_reached_does_not_spoil_the_others(place: Place) -> None:
    place.install("SITE-0001-1", "SITE-0002-1")
    place.break_bell("SITE-0001-1")
    assert place.doorbell.ring(["SITE-0001-1", "SITE-0002-1"]) == {
        "SITE-0001-1": "timed-out",
        "SITE-0002-1": "delivered",
    }


def test_ringing_nobody_and_twice_is_harmless(place: Place) -> None:
    place.install("SITE-0001-1")
    assert place.doorbell.ring([]) == {}
    assert place.doorbell.ring(["SITE-0001-1", "SITE-0001-1"]) == {"SITE-0001-1": "delivered"}
    assert place.doorbell.ring(["SITE-0001-1"]) == {"SITE-0001-1": "delivered"}
    assert place.rung("SITE-0001-1") == 2


def test_odd_names_are_unknown(place: Place) -> None:
    assert place.doorbell.ring(["../x", "", "a b"]) == {"../x": "unknown", "": "unknown", "a b": "unknown"}


# ---------------------------------------------------------------- files alone


def test_a_bell_is_a_file_whose_time_changes_at_every_ring(tmp_path: Path) -> None:
    doorbell = LocalDoorbell(tmp_path)
    bell = doorbell.listen("SITE-0001-1")
    times = [bell.stat().st_mtime_ns]
    for _ in range(5):
        doorbell.ring(["SITE-0001-1"])
        times.append(bell.stat().st_mtime_ns)
    assert len(set(times)) == 6
    with pytest.raises(ValueError, match="not a device"):
        doorbell.listen("../x")


# ---------------------------------------------------------------- Run Command alone


def many(count: int, start: int = 0) -> tuple[list[Node], list[str]]:
    names = [f"SITE-{number:04}-1" for number in range(start, start + count)]
    return [Node(f"mi-{number:017x}", name) for number, name in enumerate(names, start)], names


def bell_of(ssm_aws: Aws, **options: Any) -> SsmDoorbell:
    return SsmDoorbell(ssm_aws, BELL, **{"sleep": lambda _: None, **options})


def test_more_devices_than_fifty_take_several_calls_and_every_page_is_read(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(120)
    ssm.page = 7
    states = bell_of(ssm_aws).ring(names)
    assert states == dict.fromkeys(names, "delivered")
    assert [len(request["InstanceIds"]) for request in ssm.sent] == [50, 50, 20]
    assert ssm.calls["DescribeInstanceInformation"] == 18


def test_a_ring_runs_the_pinned_document(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(1)
    doorbell = SsmDoorbell(ssm_aws, Bell("EdgeCallIn", "3", "a" * 64, {"reason": ["tick"]}), sleep=lambda _: None)
    doorbell.ring(names)
    sent = ssm.sent[0]
    assert (sent["DocumentName"], sent["DocumentVersion"], sent["DocumentHash"]) == ("EdgeCallIn", "3", "a" * 64)
    assert (sent["DocumentHashType"], sent["Parameters"], sent["TimeoutSeconds"]) == (
        "Sha256",
        {"reason": ["tick"]},
        60,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bell("EdgeCallIn", "$LATEST"),
        lambda: Bell("EdgeCallIn", ""),
        lambda: Bell("x y", "3"),
        lambda: Bell("EdgeCallIn", "3", "abc"),
        lambda: Bell("EdgeCallIn", "3", parameters={"reason": ["a; reboot"]}),
        lambda: Bell("EdgeCallIn", "3", parameters={"reason": ["$(reboot)"]}),
        lambda: Bell("EdgeCallIn", "3", parameters={"reason": "word"}),
        lambda: Bell("EdgeCallIn", "3", parameters={"no-name": ["a"]}),
        lambda: Bell("EdgeCallIn", "3", parameters={"reason": ["a\nb"]}),
    ],
)
def test_what_is_not_pinned_or_not_plain_is_refused(make: Callable[[], Bell]) -> None:
    with pytest.raises(TerminalError):
        make()


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ([("Pending", "Pending"), ("InProgress", "InProgress"), ("Success", "Success")], "delivered"),
        ([("Pending", "Pending"), ("Failed", "Failed")], "delivered"),
        ([("TimedOut", "ExecutionTimedOut")], "delivered"),
        ([("TimedOut", "DeliveryTimedOut")], "timed-out"),
        ([("Failed", "Undeliverable")], "timed-out"),
        ([("Cancelled", "Cancelled")], "timed-out"),
        ([("Delayed", "Delayed")], "pending"),
    ],
)
def test_states_of_an_invocation(ssm: SsmStandIn, ssm_aws: Aws, states: list[tuple[str, str]], says: str) -> None:
    ssm.nodes = [Node("mi-" + "0" * 17, "SITE-0001-1", states=states)]
    time = iter(range(100))
    assert bell_of(ssm_aws, clock=lambda: next(time) / 2).ring(["SITE-0001-1"]) == {"SITE-0001-1": says}


def test_a_pending_ring_is_looked_up_and_not_sent_again_until_it_timed_out(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes = [Node("mi-" + "0" * 17, "SITE-0001-1", states=[("Pending", "Pending")])]
    now = [0.0]
    doorbell = bell_of(ssm_aws, wait_s=0, clock=lambda: now[0])
    for now[0] in (0, 10, 59):
        assert doorbell.ring(["SITE-0001-1"]) == {"SITE-0001-1": "pending"}
    assert len(ssm.sent) == 1
    now[0] = 61
    doorbell.ring(["SITE-0001-1"])
    assert len(ssm.sent) == 2


def test_a_node_that_is_gone_is_unknown_and_the_rest_of_its_batch_is_rung(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(50)
    for number in (7, 31):
        ssm.nodes[number].gone = True
    states = bell_of(ssm_aws).ring(names)
    assert [name for name in names if states[name] != "delivered"] == [names[7], names[31]]
    assert {states[names[7]], states[names[31]]} == {"unknown"}


def test_throttling_passes_and_lasting_throttling_is_transient(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(60)
    ssm.throttle["SendCommand"] = 1
    assert set(bell_of(ssm_aws).ring(names).values()) == {"delivered"}
    ssm.throttle["SendCommand"] = 50
    with pytest.raises(TransientError, match="ThrottlingException"):
        bell_of(ssm_aws).ring(names)


def test_what_was_not_sent_when_aws_stopped_answering_half_way_is_timed_out(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(150)
    doorbell = bell_of(ssm_aws)
    ssm.throttle_after_sends = 1
    states = doorbell.ring(names)
    assert [states[name] for name in names] == ["delivered"] * 50 + ["timed-out"] * 100


def test_states_that_cannot_be_read_stay_pending(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(2)
    ssm.throttle["ListCommandInvocations"] = 50
    assert bell_of(ssm_aws, wait_s=0).ring(names) == dict.fromkeys(names, "pending")


def test_a_missing_right_or_document_is_terminal_and_says_which(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(1)
    ssm.documents = {"EdgeCallIn": "4"}
    with pytest.raises(TerminalError, match="InvalidDocumentVersion") as caught:
        bell_of(ssm_aws).ring(names)
    assert "EdgeCallIn version 3" in caught.value.remedy
    ssm.deny = {"SendCommand"}
    with pytest.raises(TerminalError, match="AccessDenied") as caught:
        bell_of(ssm_aws).ring(names)
    assert "allow SendCommand" in caught.value.remedy


def test_the_map_of_nodes_is_cached_and_read_again_for_a_new_device(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(2)
    now = [0.0]
    doorbell = bell_of(ssm_aws, clock=lambda: now[0])
    for now[0] in (0, 100, 200):
        doorbell.ring(names)
    assert ssm.calls["DescribeInstanceInformation"] == 1
    ssm.nodes += many(1, 2)[0]
    now[0] = 230
    assert doorbell.ring(["SITE-0002-1"]) == {"SITE-0002-1": "delivered"}
    for now[0] in (231, 232):
        assert doorbell.ring(["SITE-9999-1"]) == {"SITE-9999-1": "unknown"}
    assert ssm.calls["DescribeInstanceInformation"] == 2


def test_of_two_nodes_with_one_name_the_one_seen_last_is_rung(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    old, new = "mi-" + "f" * 17, "mi-" + "0" * 17
    ssm.nodes = [Node(new, "SITE-0001-1", last_ping=2e9), Node(old, "SITE-0001-1", last_ping=1e9)]
    bell_of(ssm_aws).ring(["SITE-0001-1"])
    assert ssm.sent[0]["InstanceIds"] == [new]


def test_a_tag_narrows_the_nodes_and_the_activation_name_can_name_them(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes = [
        Node("mi-" + "0" * 17, "host-a", name="SITE-0001-1", tags={"fleet": "edge"}),
        Node("mi-" + "1" * 17, "host-b", name="SITE-0002-1"),
    ]
    doorbell = bell_of(ssm_aws, name_field="Name", only_tag=("fleet", "edge"))
    assert doorbell.ring(["SITE-0001-1", "SITE-0002-1"]) == {"SITE-0001-1": "delivered", "SITE-0002-1": "unknown"}


def test_threads_may_ring_at_once(ssm: SsmStandIn, ssm_aws: Aws) -> None:
    ssm.nodes, names = many(8)
    doorbell = bell_of(ssm_aws)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda name=name: results.append(doorbell.ring([name]))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(name for result in results for name in result) == names
    assert ssm.calls["DescribeInstanceInformation"] == 1


def test_the_stand_in_refuses_what_awss_model_refuses(ssm: SsmStandIn) -> None:
    ids = [f"mi-{number:017x}" for number in range(51)]
    too_many = {"InstanceIds": ids, "DocumentName": "EdgeCallIn", "DocumentVersion": "3"}
    assert ssm.answer("SendCommand", too_many)[1]["__type"] == "ValidationException"
    assert ssm.answer("SendCommand", {"InstanceIds": ids[:1]})[1]["__type"] == "ValidationException"
    assert ssm.answer("DescribeInstanceInformation", {"MaxResults": 3})[1]["__type"] == "ValidationException"
