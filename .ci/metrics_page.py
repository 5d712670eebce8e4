"""The reference page of metrics and alerts, from the table of metrics and the alert rules. Called by `docs.py`."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from reconciler.server import metrics_table as table
from reconciler.server.monitoring import PAGE, alerts

_HEAD = """# Metrics

What `GET /metrics` answers, beside the `process_…` of Prometheus' own library for Python. [Monitor](../how-to/monitor.md)
says how to scrape it, and how to use the alert rules below and the dashboard. Instants are Unix times in seconds. No label
names a device, a site or a commit: the number of series follows waves, apps and releases, and not the fleet's size.
"""

_ALERTS = """
## Alerts

Printed by `reconciler monitoring alerts`. *critical*: devices may suffer, or nobody would be told if they did. *warning*:
somebody should look at it today. Each leads to what to do.

| alert | severity | after | when |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The page, without the line that says that it is generated."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    yield _HEAD
    for about in table.About:
        yield f"\n## {about}\n\n| metric | kind | labels | says |\n| --- | --- | --- | --- |\n"
        for one in table.FAMILIES:
            if one.about is about:
                labels = ", ".join(f"`{label}`" for label in one.labels)
                yield f"| `{one.name}` | {one.kind} | {labels} | {one.says} |\n"
    yield "\n## Labels\n\n| label | values |\n| --- | --- |\n"
    for name, values in table.LABELS.items():
        yield f"| `{name}` | {values} |\n"
    yield _ALERTS
    for group in yaml.safe_load(alerts())["groups"]:
        for rule in group["rules"]:
            anchor = rule["annotations"]["runbook_url"].removeprefix(PAGE)
            summary = rule["annotations"]["summary"].replace("{{ $labels.", "*").replace(" }}", "*")
            after = rule.get("for", "at once")
            name = f"[`{rule['alert']}`](../how-to/recover.md{anchor})"
            yield f"| {name} | {rule['labels']['severity']} | {after} | {summary} |\n"
