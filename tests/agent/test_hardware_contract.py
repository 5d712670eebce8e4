"""What the agent is promised of any machine: one suite, held against partitions, a folder, and the simulator's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.hardware import BootFlags, Hardware, HardwareError, ImageVersion
from reconciler.protocol.exchange import SiteConfig
from reconciler.protocol.report import Slot
from reconciler.simulate.hardware import MemoryHardware
from tests.agent.bench import BenchHardware
from tests.simulate.machines import Instant, digest

# An ext4 superblock's magic is where a boot loader looks for it.
IMAGE = b"\0" * 0x438 + b"\x53\xef" + b"an image"


@pytest.fixture(params=["partitions", "directory", "memory"])
def hardware(request: pytest.FixtureRequest, tmp_path: Path) -> Hardware:
    if request.param == "partitions":
        # Nobody boots it without an image.
        return BenchHardware(tmp_path / "device", slot_bytes=1 << 20, image=IMAGE)
    if request.param == "directory":
        return DirectoryHardware(tmp_path / "device", slot_bytes=1 << 20)
    return MemoryHardware("SITE-1-1", Instant())


def boot(hardware: Hardware) -> str:
    assert isinstance(hardware, (BenchHardware, DirectoryHardware, MemoryHardware))
    return hardware.boot()


def written(hardware: Hardware, slot: str, release: str = "v2", data: bytes = IMAGE) -> str:
    hardware.forget_slot(slot)
    writer = hardware.open_slot(slot, len(data))
    writer.write(data[:100])
    writer.write(data[100:])
    writer.finish()
    writer.abandon()
    hardware.record_slot(slot, release, digest(release), len(data))
    return slot


def read(hardware: Hardware, slot: str, end: int, start: int = 0) -> bytes:
    return b"".join(bytes(piece) for piece in hardware.read_slot(slot, end, start))


def test_a_bare_machine_runs_slot_a_and_has_nothing(hardware: Hardware) -> None:
    assert (hardware.booted(), hardware.flags()) == ("a", BootFlags("a"))
    assert dict(hardware.slots()) == {"a": Slot(), "b": Slot()}
    assert (hardware.version(), hardware.config_digest(), dict(hardware.apps())) == (ImageVersion(), None, {})
    # A slot that boots has a script, or it is one that is missing.
    assert hardware.healthcheck() == () or isinstance(hardware, BenchHardware)


def test_every_boot_has_another_id(hardware: Hardware) -> None:
    ids = {hardware.boot_id()}
    for _ in range(3):
        boot(hardware)
        ids.add(hardware.boot_id())
    assert len(ids) == 4


def test_an_armed_trial_boots_once(hardware: Hardware) -> None:
    written(hardware, "b")
    hardware.arm("b")
    assert hardware.flags() == BootFlags("a", "b", 1)
    assert boot(hardware) == "b"
    assert hardware.flags() == BootFlags("a", "b", 0)
    assert boot(hardware) == "a"
    hardware.disarm()
    assert hardware.flags() == BootFlags("a")
    assert boot(hardware) == "a"


def test_a_trial_that_holds_no_image_spends_its_try_and_the_old_slot_boots(hardware: Hardware) -> None:
    hardware.arm("b")
    assert boot(hardware) == "a"
    assert hardware.flags() == BootFlags("a", "b", 0)


def test_disarmed_before_its_boot_a_trial_is_not_tried(hardware: Hardware) -> None:
    written(hardware, "b")
    hardware.arm("b")
    hardware.disarm()
    assert boot(hardware) == "a"


def test_only_a_mark_changes_what_boots_by_default(hardware: Hardware) -> None:
    written(hardware, "b")
    hardware.arm("b")
    boot(hardware)
    hardware.set_version(ImageVersion("v2", "v1"))
    assert hardware.flags().default == "a"
    for _ in range(2):
        hardware.mark_good("b")
        assert hardware.flags() == BootFlags("b")
        assert hardware.slots()["b"] == Slot("v2", digest("v2"), True)
    assert boot(hardware) == "b"
    assert hardware.version() == ImageVersion("v2", "v1")


@pytest.mark.parametrize("act", ["forget", "open", "record"])
def test_neither_the_booted_nor_the_default_slot_is_written(hardware: Hardware, act: str) -> None:
    acts: dict[str, Callable[[str], object]] = {
        "forget": hardware.forget_slot,
        "open": lambda slot: hardware.open_slot(slot, 1),
        "record": lambda slot: hardware.record_slot(slot, "v2", digest("v2"), 1),
    }
    with pytest.raises(HardwareError):
        acts[act]("a")
    written(hardware, "b")
    hardware.arm("b")
    boot(hardware)
    # b runs on trial, a is what boots by default: neither may be touched.
    for slot in ("a", "b"):
        with pytest.raises(HardwareError):
            acts[act](slot)


def test_a_slot_is_forgotten_before_its_first_byte_changes(hardware: Hardware) -> None:
    written(hardware, "b")
    with pytest.raises(HardwareError):
        hardware.open_slot("b", 1)
    hardware.forget_slot("b")
    assert hardware.slots()["b"] == Slot()
    assert hardware.slot_size("b") == 0
    hardware.open_slot("b", 1).abandon()


def test_a_slot_gives_back_what_was_written(hardware: Hardware) -> None:
    written(hardware, "b")
    assert read(hardware, "b", len(IMAGE)) == IMAGE
    assert read(hardware, "b", 50) == IMAGE[:50]
    assert hardware.slot_size("b") == len(IMAGE)
    assert hardware.slots()["b"] == Slot("v2", digest("v2"), False)
    assert hardware.slot_bytes() >= len(IMAGE)


def test_configuration_outlives_boots_and_the_one_before_is_kept(hardware: Hardware) -> None:
    one, two = (SiteConfig(digest(word), {"user-data": b"x", "meta-data": b"y"}) for word in ("one", "two"))
    hardware.apply_config(one)
    hardware.restore_config(None)
    assert hardware.config_digest() is None
    hardware.apply_config(one)
    hardware.apply_config(one)
    hardware.apply_config(two)
    boot(hardware)
    assert hardware.config_digest() == two.digest
    hardware.restore_config(one.digest)
    hardware.restore_config(one.digest)
    assert hardware.config_digest() == one.digest
    with pytest.raises(HardwareError):
        hardware.restore_config(digest("three"))
    assert hardware.config_digest() == one.digest


def put_app(hardware: Hardware, release: str) -> str:
    if isinstance(hardware, MemoryHardware):
        hardware.keep_app("video-ingest", digest(release))
    else:
        (hardware.app_folder("video-ingest") / digest(release).removeprefix("sha256:")).mkdir()
    return digest(release)


def test_an_app_runs_what_is_on_the_device_and_the_release_before_stays(hardware: Hardware) -> None:
    with pytest.raises(HardwareError):
        hardware.run_app("video-ingest", digest("1.0"))
    first = put_app(hardware, "1.0")
    hardware.run_app("video-ingest", first)
    hardware.run_app("video-ingest", first)
    second = put_app(hardware, "2.0")
    hardware.run_app("video-ingest", second)
    assert dict(hardware.apps()) == {"video-ingest": second}
    boot(hardware)
    hardware.run_app("video-ingest", first)
    assert dict(hardware.apps()) == {"video-ingest": first}
    third = put_app(hardware, "3.0")
    hardware.run_app("video-ingest", third)
    # The one before is kept, an older one is not.
    with pytest.raises(HardwareError):
        hardware.run_app("video-ingest", second)
    hardware.run_app("video-ingest", None)
    assert dict(hardware.apps()) == {}


def test_a_machine_without_keys_says_so(hardware: Hardware) -> None:
    with pytest.raises(HardwareError, match="assignment"):
        hardware.keyring("assignment")


def test_a_life_may_begin_at_any_time_and_changes_nothing_that_is_right(hardware: Hardware) -> None:
    for _ in range(2):
        hardware.begin()
        assert hardware.flags() == BootFlags("a")
    written(hardware, "b")
    hardware.arm("b")
    hardware.begin()
    assert hardware.flags() == BootFlags("a", "b", 1)
    assert boot(hardware) == "b"
    hardware.begin()
    assert hardware.flags() == BootFlags("a", "b", 0)
    hardware.mark_good("b")
    hardware.set_version(ImageVersion("v2", "v1"))
    hardware.begin()
    assert (hardware.flags(), hardware.version()) == (BootFlags("b"), ImageVersion("v2", "v1"))
    assert hardware.slots()["b"] == Slot("v2", digest("v2"), True)


def test_what_is_recorded_needs_not_to_be_recognised(hardware: Hardware) -> None:
    written(hardware, "b")
    hardware.arm("b")
    boot(hardware)
    assert hardware.recognise() is None


def test_it_knows_its_clock(hardware: Hardware) -> None:
    assert hardware.clock().synchronised
    assert hardware.clock().skew_s == 0.0
