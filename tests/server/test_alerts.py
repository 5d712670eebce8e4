"""Alert rules: promtool takes them, each fires where it should and is quiet where it should not, each leads to what to do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.server import metrics_table as table
from reconciler.server.monitoring import PAGE, alerts
from tests.house.tree import ROOT
from tests.support.system import need

DAY = 86400
OF = 'job="reconciler",instance="a"'
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(alerts())["groups"] for rule in group["rules"]
}


@dataclass(frozen=True)
class Case:
    """Series (name with labels → promtool's notation, a sample a minute from 0) under which an alert fires at a time, or not."""

    alert: str
    fires: bool
    at: str
    series: dict[str, str]


def fires(alert: str, at: str, **series: str) -> Case:
    return Case(alert, True, at, _named(series))


def quiet(alert: str, at: str, **series: str) -> Case:
    return Case(alert, False, at, _named(series))


def _named(series: dict[str, str]) -> dict[str, str]:
    """`condition__type__GitReady="1x60"` → `reconciler_condition{type="GitReady"}`."""
    out = {}
    for key, values in series.items():
        name, *labels = key.split("__")
        pairs = [f'{label}="{value}"' for label, value in zip(labels[::2], labels[1::2], strict=True)]
        out[f"{name if name == 'up' else 'reconciler_' + name}{{{','.join([OF, *pairs])}}}"] = values
    return out


def condition(alert: str, kind: str, bad: str, minutes: int) -> list[Case]:
    """Fires where a condition has had its bad status for so long; not before, and not where it is unknown."""
    key = f"condition__type__{kind}__status__{bad}"
    return [
        fires(alert, f"{minutes + 1}m", **{key: f"1x{minutes + 5}"}),
        quiet(alert, f"{minutes - 1}m", **{key: f"1x{minutes + 5}"}),
        quiet(
            alert, f"{minutes + 1}m", **{key: f"0x{minutes + 5}", f"condition__type__{kind}__status__Unknown": "1x90"}
        ),
    ]


BUCKETS = "tick_seconds_bucket__le__"
SKEW = "device_clock_skew_seconds"
CASES = [
    fires("ReconcilerDown", "6m", up="0x10"),
    fires("ReconcilerDown", "6m"),
    quiet("ReconcilerDown", "6m", up="1x10"),
    quiet("ReconcilerDown", "4m", up="0x10"),
    fires("ReconcilerNotTicking", "16m", last_tick_timestamp_seconds="0x30", build_info="1x30"),
    fires("ReconcilerNotTicking", "6m", build_info="1x30"),
    quiet("ReconcilerNotTicking", "30m", last_tick_timestamp_seconds="0+60x30", build_info="1x30"),
    quiet("ReconcilerNotTicking", "14m", last_tick_timestamp_seconds="0x30", build_info="1x30"),
    fires("ReconcilerTicksFail", "10m", tick_failures_total="0+1x20"),
    quiet("ReconcilerTicksFail", "20m", tick_failures_total="0x10 1x20"),
    fires("ReconcilerTicksSlow", "40m", **{f"{BUCKETS}10.0": "0x60", f"{BUCKETS}30.0": "0+2x60", f"{BUCKETS}+Inf": "0+2x60"}),
    quiet("ReconcilerTicksSlow", "40m", **{f"{BUCKETS}10.0": "0+2x60", f"{BUCKETS}30.0": "0+2x60", f"{BUCKETS}+Inf": "0+2x60"}),
    fires("ReconcilerStoreDown", "3m", store_up="0x10"),
    quiet("ReconcilerStoreDown", "10m", store_up="1x3 0 1x10"),
    *condition("ReconcilerGitNotReady", "GitReady", "False", 30),
    *condition("ReconcilerStoresNotReady", "StoresReady", "False", 15),
    *condition("ReconcilerSigningNotReady", "SigningReady", "False", 15),
    *condition("ReconcilerForgeNotReady", "ForgeReady", "False", 60),
    *condition("ReconcilerNotificationsNotReady", "NotificationsReady", "False", 15),
    *condition("ReconcilerStalled", "Stalled", "True", 10),
    fires("ReconcilerHeadRefused", "11m", head_refused="1x20"),
    quiet("ReconcilerHeadRefused", "11m", head_refused="1x5 0x20"),
    fires("ReconcilerActionRetried", "11m", open_action_attempts__kind__build="5x20"),
    quiet("ReconcilerActionRetried", "11m", open_action_attempts__kind__build="4x20"),
    fires("ReconcilerActionOld", "6h30m", open_action_oldest_timestamp_seconds__kind__publish="0x400"),
    quiet("ReconcilerActionOld", "6h30m", open_action_oldest_timestamp_seconds__kind__publish="7200x400"),
    quiet("ReconcilerActionOld", "6h30m", open_action_oldest_timestamp_seconds__kind__sign="0x400"),
    fires("ReconcilerKeyExpiring", "1m", key_expiry_timestamp_seconds__purpose__release__fingerprint__AB=f"{20 * DAY}x5"),
    quiet("ReconcilerKeyExpiring", "1m", key_expiry_timestamp_seconds__purpose__release__fingerprint__AB=f"{31 * DAY}x5"),
    fires("ReconcilerKeyNearlyExpired", "1m", key_expiry_timestamp_seconds__purpose__assignment__fingerprint__AB=f"{DAY}x5"),
    fires("ReconcilerKeyNearlyExpired", "1m", key_expiry_timestamp_seconds__purpose__assignment__fingerprint__AB="-60x5"),
    quiet("ReconcilerKeyNearlyExpired", "1m", key_expiry_timestamp_seconds__purpose__release__fingerprint__AB=f"{20 * DAY}x5"),
    fires("ReconcilerAssignmentsExpiring", "121m", assignments_expiring="3x200"),
    quiet("ReconcilerAssignmentsExpiring", "121m", assignments_expiring="3x60 0x200"),
    fires("ReconcilerGateFailed", "1m", wave_state__wave__canary__track__image__state__failed="1x5"),
    quiet("ReconcilerGateFailed", "1m", wave_state__wave__canary__track__image__state__failed="0x5"),
    quiet("ReconcilerGateFailed", "1m", wave_state__wave__canary__track__image__state__soaking="1x5"),
    fires("ReconcilerGateUnresolved", "61m", wave_state__wave__canary__track__image__state__unresolved="1x90"),
    quiet("ReconcilerGateUnresolved", "61m", wave_state__wave__canary__track__image__state__unresolved="1x30 0x60"),
    fires("ReconcilerDevicesFlagged", "6m", flagged_devices="2x10"),
    quiet("ReconcilerDevicesFlagged", "6m", flagged_devices="0x10"),
    fires("ReconcilerDevicesSilent", "31m", state_devices__state__silent="6x60", state_devices__state__good="94x60"),
    quiet("ReconcilerDevicesSilent", "31m", state_devices__state__silent="5x60", state_devices__state__good="95x60"),
    quiet("ReconcilerDevicesSilent", "31m", state_devices__state__silent="0x60", state_devices__state__good="0x60"),
    fires("ReconcilerReportsStopped", "40m", reports_total__outcome__taken="0+5x5 25x60", state_devices__state__good="9x60"),
    quiet("ReconcilerReportsStopped", "40m", reports_total__outcome__taken="0+5x60", state_devices__state__good="9x60"),
    quiet("ReconcilerReportsStopped", "40m", reports_total__outcome__taken="0x60", **{"state_devices__state__never-seen": "9x60"}),
    fires("ReconcilerReportsRefused", "40m", reports_total__outcome__taken="0+9x60", reports_total__outcome__refused="0+1x60"),
    quiet("ReconcilerReportsRefused", "40m", reports_total__outcome__taken="0+99x60", reports_total__outcome__refused="0+1x60"),
    quiet("ReconcilerReportsRefused", "40m", reports_total__outcome__taken="0x60", reports_total__outcome__refused="0x60"),
    fires("ReconcilerClocksWrong", "70m", **{f"{SKEW}_bucket__le__60.0": "0+9x90", f"{SKEW}_count": "0+10x90"}),
    quiet("ReconcilerClocksWrong", "70m", **{f"{SKEW}_bucket__le__60.0": "0+99x90", f"{SKEW}_count": "0+100x90"}),
    fires("ReconcilerWaveStuck", "51h", wave_state__wave__half__track__image__state__rolling="1x4000",
          wave_on_release_devices__wave__half__track__image="7x4000"),
    quiet("ReconcilerWaveStuck", "51h", wave_state__wave__half__track__image__state__rolling="1x4000",
          wave_on_release_devices__wave__half__track__image="7x1500 8x2500"),
    quiet("ReconcilerWaveStuck", "51h", wave_state__wave__half__track__image__state__waiting="1x4000",
          wave_on_release_devices__wave__half__track__image="7x4000"),
    fires("ReconcilerRequestsFail", "30m", http_requests_total__status__200="0+9x60", http_requests_total__status__503="0+1x60"),
    quiet("ReconcilerRequestsFail", "30m", http_requests_total__status__200="0+99x60", http_requests_total__status__503="0+1x60"),
]  # fmt: skip

# What a person is told, with its numbers as they should be read.
TOLD = {
    "interval": "1m",
    "input_series": [
        {"series": f'reconciler_state_devices{{{OF},state="silent"}}', "values": "6x60"},
        {"series": f'reconciler_state_devices{{{OF},state="good"}}', "values": "94x60"},
    ],
    "alert_rule_test": [
        {
            "eval_time": "31m",
            "alertname": "ReconcilerDevicesSilent",
            "exp_alerts": [
                {
                    "exp_labels": {"severity": "warning", "job": "reconciler", "instance": "a"},
                    "exp_annotations": RULES["ReconcilerDevicesSilent"]["annotations"]
                    | {"description": "6% of the fleet has not reported for longer than `staleAfter`."},
                }
            ],
        }
    ],
}


def test_every_alert_is_tried_both_ways() -> None:
    for way in (True, False):
        assert {case.alert for case in CASES if case.fires is way} == set(RULES)


def test_every_alert_says_how_bad_what_and_what_to_do() -> None:
    for name, rule in RULES.items():
        assert name.startswith("Reconciler")
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert rule["annotations"]["summary"].endswith((".", ").")) and rule["annotations"]["description"].endswith(".")


def test_every_runbook_is_a_heading_with_something_to_do() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    parts = re.split(r"^#{2,4} (.+)$", text, flags=re.MULTILINE)
    said = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-"): body
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    for name, rule in RULES.items():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == PAGE and anchor in said, f"{name} leads to {anchor!r}, which is no heading of {PAGE}"
    own = {title for title in said if title.startswith("reconciler")}
    assert own == {rule["annotations"]["runbook_url"].partition("#")[2] for rule in RULES.values()} & own
    for title in own:
        assert len(said[title].split()) > 8, title


def test_alerts_and_dashboards_ask_for_metrics_that_there_are() -> None:
    known = {family.name for family in table.FAMILIES}
    for name, rule in RULES.items():
        for metric in re.findall(r"\breconciler_\w+", rule["expr"]):
            assert re.sub(r"_(bucket|count|sum)$", "", metric) in known, f"{name}: {metric}"


def test_the_runbook_is_where_the_reader_has_it() -> None:
    text = alerts("https://book.example/how-to/recover.html")
    assert PAGE + "#" not in text
    assert "runbook_url: https://book.example/how-to/recover.html#reconcilerdown\n" in text


@pytest.mark.system
def test_promtool_takes_the_rules_and_finds_them_true(tmp_path: Path) -> None:
    promtool = need("promtool", "prometheus")
    (tmp_path / "alerts.yaml").write_text(alerts(), encoding="utf-8")
    _run(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(tmp_path / "alerts.yaml"))
    # What takes days is looked at every quarter of an hour.
    for name, every, cases in (
        ("days", "15m", [case for case in CASES if "h" in case.at]),
        ("minutes", "1m", [case for case in CASES if "h" not in case.at]),
    ):
        tests = [*_tests(cases), *([TOLD] if name == "minutes" else [])]
        document = {"rule_files": ["alerts.yaml"], "evaluation_interval": every, "tests": tests}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        _run(promtool, "test", "rules", str(tmp_path / f"{name}.yaml"))


def _tests(cases: Sequence[Case]) -> list[dict[str, Any]]:
    return [
        {
            "interval": "1m",
            "name": f"{case.alert} {'fires' if case.fires else 'is quiet'}",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count by (alertname) (ALERTS{{alertname="{case.alert}",alertstate="firing"}})',
                    "eval_time": case.at,
                    "exp_samples": [{"labels": f'{{alertname="{case.alert}"}}', "value": 1}] if case.fires else [],
                }
            ],
        }
        for case in cases
    ]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
