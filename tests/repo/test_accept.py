"""Which heads come into force: each rule at its edge."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.repo.accept import Accepted, Head, Refusal, Refused, accept

OLD, NEW = "a" * 40, "b" * 40
KEY, OTHER = "1" * 39 + "A", "2" * 40


def judge(message: str = "Promote\n", signer: str | None = None, **changes: Any) -> Accepted | Refused:
    facts: dict[str, Any] = {
        "last_good": OLD,
        "is_ancestor": True,
        "signature_required": False,
        "allowed_signers": frozenset(),
        "sites_before": (),
        "sites_after": (),
    }
    return accept(Head(NEW, message, signer), **{**facts, **changes})


def sites(count: int) -> list[str]:
    return [f"SITE-{number:04d}" for number in range(count)]


def test_a_head_that_follows_is_accepted() -> None:
    assert judge() == Accepted()


def test_the_first_commit_needs_no_ancestor() -> None:
    assert judge(last_good=None, is_ancestor=False) == Accepted()


def test_the_commit_in_force_is_accepted_again() -> None:
    assert judge(last_good=NEW, is_ancestor=False) == Accepted()


def test_a_rewritten_branch_is_refused() -> None:
    found = judge(is_ancestor=False)
    assert isinstance(found, Refused) and found.reason is Refusal.REWRITTEN
    assert OLD[:12] in found.message and "git revert" in found.message


@pytest.mark.parametrize("signer", [None, OTHER])
def test_a_head_by_no_allowed_signer_is_refused_where_required(signer: str | None) -> None:
    found = judge(signer=signer, signature_required=True, allowed_signers={KEY})
    assert isinstance(found, Refused) and found.reason is Refusal.UNSIGNED
    assert judge(signer=signer, allowed_signers={KEY}) == Accepted()


def test_fingerprints_compare_in_any_case() -> None:
    assert judge(signer=KEY, signature_required=True, allowed_signers={KEY.lower()}) == Accepted()


def test_with_no_allowed_signer_nothing_is_accepted_where_required() -> None:
    assert isinstance(judge(signer=KEY, signature_required=True), Refused)


@pytest.mark.parametrize(
    ("before", "removed", "held"),
    [
        (100, 5, False),
        (100, 6, True),
        (20, 1, False),
        (19, 1, True),
        (1, 1, True),
        (52, 2, False),
        (52, 3, True),
        (0, 0, False),
    ],
)
def test_more_than_five_percent_of_the_sites_are_held(before: int, removed: int, held: bool) -> None:
    everything = sites(before)
    found = judge(sites_before=everything, sites_after=everything[removed:])
    if held:
        assert isinstance(found, Refused) and found.reason is Refusal.REMOVAL_UNCONFIRMED
        assert f"Confirm-Removed-Sites: {removed}" in found.message and f"{removed} of {before}" in found.message
    else:
        assert found == Accepted(tuple(everything[:removed]))


def test_added_sites_do_not_make_up_for_removed_ones() -> None:
    everything = sites(100)
    found = judge(sites_before=everything, sites_after=[*everything[6:], *(f"NEW-{n}" for n in range(50))])
    assert isinstance(found, Refused)


@pytest.mark.parametrize(
    "message",
    [
        "Close the south\n\nConfirm-Removed-Sites: 6\n",
        "Merge pull request 7\n\nClose the south\n\n  confirm-removed-sites:6\r\n\nSigned-off-by: A\n",
        "t\n\nConfirm-Removed-Sites: 6\nConfirm-Removed-Sites: 6\n",
    ],
)
def test_the_message_confirms_the_count(message: str) -> None:
    everything = sites(100)
    assert judge(message, sites_before=everything, sites_after=everything[6:]) == Accepted(tuple(everything[:6]))


@pytest.mark.parametrize(
    "message",
    [
        "t\n\nConfirm-Removed-Sites: 5\n",
        "t\n\nConfirm-Removed-Sites: 60\n",
        "t\n\nConfirm-Removed-Sites: six\n",
        "t\n\nConfirm-Removed-Sites:\n",
        "t\n\nConfirm-Removed-Sites: 6 or so\n",
        "t\n\nConfirm-Removed-Sites: 6\nConfirm-Removed-Sites: 7\n",
        "Confirm-Removed-Sites: 6",
        "t\n\nDo not write Confirm-Removed-Sites: 6 here\n",
        "t\n\nConfirm-Removed-Sites: ٦\n",
    ],
)
def test_anything_but_the_exact_count_confirms_nothing(message: str) -> None:
    everything = sites(100)
    found = judge(message, sites_before=everything, sites_after=everything[6:])
    assert isinstance(found, Refused) and found.reason is Refusal.REMOVAL_UNCONFIRMED


def test_many_removed_sites_are_named_in_short() -> None:
    found = judge(sites_before=sites(100), sites_after=())
    assert isinstance(found, Refused) and "SITE-0004 and 95 more" in found.message
