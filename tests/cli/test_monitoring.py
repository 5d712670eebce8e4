"""`reconciler monitoring`: what it prints is what comes with the program, wherever it is installed."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from reconciler.cli.main import cli


def said(*words: str) -> str:
    done = CliRunner().invoke(cli, ["monitoring", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_prints_the_alert_rules() -> None:
    rules = [rule for group in yaml.safe_load(said("alerts"))["groups"] for rule in group["rules"]]
    assert len(rules) > 20
    assert rules[0]["annotations"]["runbook_url"] == "docs/how-to/recover.md#reconcilerdown"


def test_runbooks_lead_where_people_read_them() -> None:
    address = "https://book.example/how-to/recover.html"
    for group in yaml.safe_load(said("alerts", "--runbook", address))["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["runbook_url"].startswith(address + "#")


@pytest.mark.parametrize(
    "address", ["recover.html", "https://a.example/#x", "https://a.example/ b", 'https://a"b', "ftp://a"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    done = CliRunner().invoke(cli, ["monitoring", "alerts", "--runbook", address])
    assert done.exit_code == 2 and "is not an address" in done.stderr


def test_it_prints_the_dashboard() -> None:
    assert json.loads(said("grafana"))["title"] == "Reconciler"
