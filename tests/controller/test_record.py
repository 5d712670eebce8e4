"""What the loop writes down for whoever asks: the plan, as often as that is little of its work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, cast

from reconciler.controller.pace import Backoff
from reconciler.controller.record import Recorder


class Written:
    """A plan that takes something to be written, and counts how often it is."""

    def __init__(self, takes: Callable[[], object]) -> None:
        self.takes, self.times = takes, 0

    def to_json(self) -> str:
        self.times += 1
        self.takes()
        return f"{{\n{self.times}"


def recorder() -> Recorder:
    unused: Any = None
    return Recorder(unused, 1, Backoff(5, 900), random.Random(0), lambda *_, **__: None)


def test_a_plan_that_is_much_work_to_write_is_written_seldom() -> None:
    def work() -> None:
        ends = time.thread_time() + 0.06
        while time.thread_time() < ends:
            pass

    recording, plan, began = recorder(), cast(Any, Written(work)), time.monotonic()
    recording._text_of(plan)
    assert recording._next_text >= began + 20 * 0.06, "after twenty times as long"
    recording._next_text = began + 600
    recording._text_of(plan)
    assert plan.times == 1


def test_one_that_the_machine_held_up_is_written_by_the_next_tick_too() -> None:
    recording, plan = recorder(), cast(Any, Written(lambda: time.sleep(0.06)))
    for _ in range(3):
        recording._text_of(plan)
    assert plan.times == 3
