"""What a monitoring system is given beside the metrics: alert rules for Prometheus, and a dashboard for Grafana.

Texts that come with the package, since whoever installed it has no other part of the project. Called by `reconciler monitoring`.
"""

from __future__ import annotations

from importlib.resources import files

PAGE = "docs/how-to/recover.md"
"""What the alerts' runbooks lead to, unless somebody says where they have that page."""


def alerts(runbook: str = PAGE) -> str:
    """The alert rules (YAML), with the address of the page "Recover" in their `runbook_url`."""
    return _text("alerts.yaml").replace(f"runbook_url: {PAGE}#", f"runbook_url: {runbook}#")


def dashboard() -> str:
    """The dashboard (JSON), as Grafana imports it."""
    return _text("grafana.json")


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
