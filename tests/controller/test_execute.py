"""What is taken, what stalls and until when: by hand-made faults on a real loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from reconciler.ports import TerminalError
from tests.controller.harness import Bench
from tests.controller.test_stored import INPUTS, artifact


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_somebody_else_has_staged_meanwhile_is_not_built_again(bench: Bench, tmp_path: Path) -> None:
    images: Any = bench.images
    folder = "edge-golden-v1.4.1-20251115"
    images.stage("v1.4.1", folder, artifact(tmp_path / "theirs", "v1.4.1"))
    known, answers = images.artifacts, [{}]
    images.artifacts = lambda: answers.pop() if answers else known()
    executor: Any = bench.executor
    executor._hands = dataclasses.replace(executor._hands, inputs=lambda *_: INPUTS)
    bench.settle()
    assert bench.builder.calls == 0
    (row,) = bench.journal("build")
    assert row["outcome"] == "done" and row["detail"] == f"{folder} is in the store already"
    assert known()["v1.4.1"].state.value == "published"
    bench.store.close()


@pytest.mark.slow
@pytest.mark.parametrize(("step", "hours"), [("build", 24), ("sign", 1)])
def test_a_stall_is_looked_at_again_after_a_while(bench: Bench, step: str, hours: int) -> None:
    error = TerminalError("not allowed", remedy="allow it")
    calls: list[int] = []
    if step == "build":
        bench.builder.fail = error
    else:
        # The signer of releases alone: without assignments the loop has other troubles.
        def refuse(release: str, commit: str) -> bytes:
            calls.append(1)
            if bench.builder.fail is None and len(calls) > 1:
                return b"signed " + release.encode()
            raise error

        bench.signer.sign_release = refuse  # type: ignore[method-assign]
    bench.settle()
    assert any("not allowed" in text for text in bench.loop.stalled.values())
    tried = bench.builder.calls + len(calls)
    bench.clock.step(3600 * hours - 120)
    bench.settle()
    assert bench.builder.calls + len(calls) == tried, "too early"
    bench.builder.fail = None
    bench.clock.step(200)
    bench.settle()
    assert not bench.loop.stalled
    assert bench.images.artifacts()["v1.4.1"].state.value == "published"
    bench.store.close()


def test_without_a_signer_the_condition_names_the_command_and_nothing_stalls(bench: Bench) -> None:
    executor: Any = bench.executor
    by_hand = "reconciler image sign {} --commit {}"
    executor._hands = dataclasses.replace(executor._hands, signer=None, by_hand=by_hand.format)
    bench.settle()
    assert bench.condition("SigningReady") == ("False", "AwaitingSignature")
    assert bench.condition("Stalled") == ("False", "NothingStalled")
    message = next(row.message for row in bench.parts.conditions.rows() if row.type == "SigningReady")
    assert message.endswith(f"; run: {by_hand.format('v1.4.1', bench.repo.head())}")
    assert not bench.journal("sign")
    bench.images.attach_signature("v1.4.1", b"signed v1.4.1")
    bench.poll()
    assert bench.images.artifacts()["v1.4.1"].state.value == "published"
    assert bench.condition("SigningReady") == ("True", "CanSign")
    bench.store.close()


def test_a_refused_signature_of_our_own_signer_is_made_anew(bench: Bench) -> None:
    made = iter([b"of a key that has expired since", b"signed v1.4.1"])
    bench.signer.sign_release = lambda release, commit: next(made)  # type: ignore[method-assign]
    bench.settle()
    assert bench.images.artifacts()["v1.4.1"].state.value == "published"
    assert bench.images.read("v1.4.1", "SHA256SUMS.gpg") == b"signed v1.4.1"
    bench.store.close()
