"""What the fold keeps of checks that got worse: only those, as they were and are, since when, and what a failed trial said."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from reconciler.model.observed import Attempt, CheckChange, DeviceObservation, Health, Snapshot
from reconciler.protocol.report import MAX_CHECKS, MESSAGE_CHARS, Check, Report
from tests.controller.test_observe import STALE_S, T0, at, marked, report, slots, told

WELL = (Check("disk", "ok", "60 % full"), Check("video", "ok", "25 frames a second"), Check("vpn", "critical", "down"))


def on_new(sequence: int, *checks: Check, **changes: Any) -> Report:
    """A report of v1.4.2, before which the device was `WELL`."""
    values: dict[str, Any] = {"image": "v1.4.2", "previous": "v1.4.1", "checks_before": WELL, "checks": checks}
    return report(sequence, **(values | {"health": "critical"} | changes))


def video(status: str = "critical", message: str = "no frames") -> Check:
    return Check("video", status, message)


def names(seen: DeviceObservation) -> list[str]:
    return [check.name for check in seen.checks]


def test_a_healthy_device_stores_nothing_more() -> None:
    seen = told((0, report(1, checks_before=WELL, checks=WELL)), (60, on_new(2, *WELL)))
    assert (seen.checks, seen.attempt) == ((), None)
    document = seen.model_dump_json(by_alias=True, exclude_defaults=True)
    assert '"checks"' not in document and '"attempt"' not in document


def test_a_worse_check_is_kept_as_it_was_and_is() -> None:
    seen = told((0, report(1)), (60, on_new(2, video(), Check("vpn", "critical", "down"), Check("disk", "warning"))))
    assert seen.checks == (
        CheckChange(name="video", before=Health.OK, now=Health.CRITICAL, message="no frames", since=at(60)),
    ), "critical before is not worse, and a warning is good"
    assert seen.checks_worse == ("video",)


def test_since_holds_on_while_the_status_does_and_the_message_is_the_last() -> None:
    seen = told((0, report(1)), (60, on_new(2, video())), (120, on_new(3, video(message="no frames for 60 s"))))
    assert [(each.message, each.since) for each in seen.checks] == [("no frames for 60 s", at(60))]
    seen = told((180, on_new(4, video("unknown"))), start=seen)
    assert [(each.now, each.since) for each in seen.checks] == [(Health.UNKNOWN, at(180))]
    seen = told((240, on_new(5, video("ok"))), (300, on_new(6, video())), start=seen)
    assert [each.since for each in seen.checks] == [at(300)], "it was well in between"


def test_since_survives_a_reboot_and_ends_with_silence_or_another_image() -> None:
    ill = told((0, report(1)), (60, on_new(2, video())))
    rebooted = told((120, on_new(3, video(), boot_id="boot-2")), start=ill)
    assert rebooted.checks[0].since == at(60)
    exactly = told((60 + STALE_S, on_new(3, video())), start=ill)
    assert exactly.checks[0].since == at(60)
    silent = told((61 + STALE_S, on_new(3, video())), start=ill)
    assert silent.checks[0].since == at(61 + STALE_S) == silent.health_since
    other = told((120, on_new(3, video(), image="v1.4.3")), start=ill)
    assert other.checks[0].since == at(120)


def test_the_update_that_is_coming_changes_nothing_yet() -> None:
    ill = told((0, report(1)), (60, on_new(2, video())))
    before = (Check("video", "critical", "no frames"),)
    writing = on_new(3, Check("disk", "critical"), phase="writing", target="v1.4.3", checks_before=before)
    seen = told((120, writing), start=ill)
    assert (seen.checks, seen.checks_worse) == (ill.checks, ("video",))


def test_without_checks_before_nothing_is_compared() -> None:
    seen = told((0, report(1)), (60, on_new(2, video(), checks_before=())))
    assert (seen.checks, seen.checks_worse) == ((), ())


def test_a_check_that_was_not_there_is_told_so() -> None:
    seen = told((0, report(1)), (60, on_new(2, Check("camera", "critical"))))
    assert seen.checks == (CheckChange(name="camera", now=Health.CRITICAL, since=at(60)),)


def test_what_is_kept_is_bounded_and_the_worst_comes_first() -> None:
    many = [Check(f"c{n:02}", "unknown" if n < 50 else "critical", "x\n" * 150) for n in range(MAX_CHECKS)]
    assert len(many[0].message) == MESSAGE_CHARS
    seen = told((0, report(1)), (60, on_new(2, *many)))
    assert names(seen) == [*(f"c{n}" for n in range(50, 64)), "c00", "c01"]
    assert {len(each.message) for each in seen.checks} == {200} and seen.checks[0].message.endswith("…")
    assert all("\n" not in each.message for each in seen.checks)
    assert len(seen.checks_worse) == MAX_CHECKS
    assert len(seen.model_dump_json(by_alias=True)) < 8_000
    text = Snapshot(devices=(seen,)).model_dump_json(by_alias=True)
    assert Snapshot.model_validate_json(text).devices == (seen,)


def test_null_is_no_checks() -> None:
    assert DeviceObservation.model_validate({"name": "A", "checks": None, "attempt": None}).checks == ()


# ---------------------------------------------------------------- attempts


def trial(sequence: int, *checks: Check, **changes: Any) -> Report:
    return on_new(sequence, *checks, **({"phase": "trial", "target": "v1.4.2", "boot_id": "boot-2"} | changes))


def back(sequence: int, failed: int, **changes: Any) -> Report:
    values: dict[str, Any] = {
        "boot_id": "boot-3",
        "attempts": {"v1.4.2": failed},
        "checks": WELL,
        "checks_before": WELL,
    }
    return report(sequence, slots=slots("v1.4.1", "v1.4.2", (True, False)), **(values | changes))


def flashing() -> DeviceObservation:
    return marked(told((0, report(1))), updating_to="v1.4.2", updating_since=T0)


def test_what_a_trial_said_outlives_its_fall_back() -> None:
    seen = told((60, trial(2, video(message="starting"))), (90, trial(3, video())), start=flashing())
    kept = Attempt(
        release="v1.4.2",
        checks=(CheckChange(name="video", before=Health.OK, now=Health.CRITICAL, message="no frames", since=at(60)),),
    )
    assert (seen.attempt, seen.checks, seen.image) == (kept, (), "v1.4.1")
    for before in (
        seen,
        told((95, returning(4)), start=seen),
        told((95, returning(4)), (98, returning(5)), start=seen),
    ):
        after = told((150, back(6, 1)), (210, back(7, 1)), start=before)
        assert (after.attempt, after.checks, after.failed_attempts) == (kept, (), {"v1.4.2": 1})


def returning(sequence: int) -> Report:
    """The trial was found worse and is counted; the reboot comes."""
    bad = slots("v1.4.1", "v1.4.2", (True, False))
    return trial(sequence, video(), phase="rebooting", booted="b", slots=bad, attempts={"v1.4.2": 1}, target=None)


def test_a_trial_that_is_heard_of_only_on_its_way_back_is_kept_too() -> None:
    seen = told((95, returning(4)), (150, back(5, 1)), start=flashing())
    assert seen.attempt is not None and seen.attempt.release == "v1.4.2"
    assert [(each.name, each.since) for each in seen.attempt.checks] == [("video", at(95))]


def test_the_next_trial_begins_anew_and_one_that_ends_well_leaves_nothing() -> None:
    seen = told((60, trial(2, video())), (150, back(3, 1)), start=flashing())
    again = told((600, trial(4, video(), boot_id="boot-4")), start=seen)
    assert again.attempt is not None and again.attempt.checks[0].since == at(600)
    well = told((700, on_new(5, *WELL, health="ok", boot_id="boot-4")), start=again)
    assert (well.image, well.attempt, well.checks) == ("v1.4.2", None, ())


def test_a_trial_that_is_worse_for_a_moment_leaves_nothing() -> None:
    seen = told((60, trial(2, video())), (90, trial(3, *WELL)), start=flashing())
    seen = told((120, on_new(4, *WELL, health="ok", boot_id="boot-2")), start=seen)
    assert seen.attempt is None
    # Where it falls back all the same, that moment is what is known of it.
    cut = told((60, trial(2, video())), (90, trial(3, *WELL)), (150, back(4, 1)), start=flashing())
    assert cut.attempt is not None and cut.attempt.checks[0].since == at(60)
    # Nor where the device gave up without failing, as when the update was called off.
    off = told((60, trial(2, video())), (150, back(3, 0)), start=flashing())
    assert off.attempt is None


def test_an_app_that_went_back_keeps_what_was_worse_with_it() -> None:
    key = "video-ingest@2.8.0"
    ill = Check("vpn2", "critical", "was ill before")
    start = told((0, report(1)), (60, on_new(2, ill)))
    seen = told((120, on_new(3, ill, video(), phase="restarting", target=key)), start=start)
    assert seen.attempt is not None and seen.attempt.release == key
    assert [(each.name, each.since) for each in seen.attempt.checks] == [("video", at(120)), ("vpn2", at(60))]
    # It goes back, and only then is it idle again.
    seen = told((180, on_new(4, ill, phase="restarting", target=key, attempts={key: 1})), start=seen)
    seen = told((240, on_new(5, ill, attempts={key: 1})), start=seen)
    assert seen.attempt is not None and [each.name for each in seen.attempt.checks] == ["video", "vpn2"]
    assert names(seen) == ["vpn2"]
    fine = told((120, on_new(3, video(), phase="restarting", target=key)), (180, on_new(4, *WELL)), start=start)
    assert fine.attempt is None


def test_late_reports_change_nothing_of_it() -> None:
    seen = told((0, report(1)), (60, on_new(3, video())))
    late = told((120, on_new(2, *WELL)), start=seen)
    assert late is seen
    assert seen.last_seen == T0 + timedelta(seconds=60)
