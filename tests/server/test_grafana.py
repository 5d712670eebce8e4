"""The dashboard for Grafana: well formed, and every query finds something in a real Prometheus that scrapes a fleet in motion."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from reconciler.ports import PublicKey, TransientError
from reconciler.protocol.report import DeviceClock
from reconciler.server import metrics_table as table
from reconciler.server.app import create_app
from reconciler.server.monitoring import alerts, dashboard
from reconciler.server.options import Options
from reconciler.server.run import HttpServer
from reconciler.server.tokens import hash_token, make_token
from tests.controller.harness import Bench, waves
from tests.server.service import report
from tests.support.system import need

BOARD: dict[str, Any] = json.loads(dashboard())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert BOARD["schemaVersion"] >= 39 and BOARD["uid"] and BOARD["title"] and "id" not in BOARD
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {one["name"]: one for one in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    for panel in PANELS:
        assert panel["title"] and panel["description"], panel["id"]
        assert panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
        for of in (panel, *panel["targets"]):
            assert of["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_its_queries_ask_for_metrics_that_there_are_and_for_no_device() -> None:
    known = {family.name: family for family in table.FAMILIES}
    asked = set()
    for title, query in QUERIES:
        assert '{job=~"$job"' in query, title
        for metric in re.findall(r"\breconciler_\w+", query):
            name = re.sub(r"_(bucket|count|sum)$", "", metric)
            assert name in known, f"{title}: {metric}"
            asked.add(name)
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query))
        assert labels <= set(table.LABELS) | {"job"}, title
    assert not {"device", "site"} & set(table.LABELS)
    rarely = {"reconciler_build_info", "reconciler_holds", "reconciler_wave_sites", "reconciler_report_batch_size"}
    assert {"reconciler_wave_state", "reconciler_tick_seconds", "reconciler_reports_total"} <= asked
    assert len(set(known) - asked - rarely) < 8


# ------------------------------------------------ a real Prometheus


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Prometheus on loopback that scrapes `target` more than twice a second, with our alert rules; a client for its API."""
    program = need("prometheus")
    folder.mkdir()
    (folder / "alerts.yaml").write_text(alerts(), encoding="utf-8")
    settings = {
        "global": {"scrape_interval": "400ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "reconciler", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    port = _free_port()
    log = (folder / "log").open("wb")
    options = ("--log.level=warn", f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder / 'data'}")
    running = subprocess.Popen(
        [program, f"--config.file={folder / 'prometheus.yml'}", *options], stdout=log, stderr=log, cwd=folder
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        running.terminate()
        running.wait(60)
        log.close()


def _until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


def _ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": query})
    assert answer.status_code == 200, f"{query}: {answer.text}"
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def _samples(client: httpx.Client, query: str) -> float:
    """The query's one value; 0 while Prometheus starts (nobody listens, or it answers 503)."""
    try:
        if client.get("/-/ready").status_code != 200:
            return 0.0
    except httpx.TransportError:
        return 0.0
    found = _ask(client, query)
    return float(found[0]["value"][1]) if found else 0.0


def in_motion(bench: Bench) -> None:
    """A soak in the lab, a device that failed, a build that is tried again and again, a head that is refused, keys that expire."""
    bench.run_fleet()
    image = bench.files()["images/v1.4.2.yaml"]
    assert isinstance(image, str)
    bench.repo.commit(
        "Raise the lab, and name a release",
        {"waves.yaml": waves(lab={"image": "v1.4.2"}), "images/v1.4.3.yaml": image.replace("v1.4.2", "v1.4.3")},
    )
    bench.builder.fail = TransientError("the disk is full")
    bench.poll()
    bench.report("LAB-1-1", image="v1.4.2", boot_id="boot-2")
    bench.report("SITE-1-1", health="critical")
    bench.poll()
    bench.repo.commit("Break", {"waves.yaml": "not: waves\n"})
    bench.poll()
    keys = [("release", PublicKey("A" * 40, "us", bench.clock.now() + timedelta(days=400)))]
    bench.parts.pulse.looked(0, keys)


@pytest.mark.system
@pytest.mark.slow
def test_every_panel_shows_something_of_a_fleet_in_motion(tmp_path: Path) -> None:
    need("prometheus")
    bench = Bench(tmp_path / "bench")
    in_motion(bench)
    parts, store = bench.parts, bench.store
    options = Options(
        store,
        bench.clock.now,
        store.access,
        boards=parts.boards,
        pulse=parts.pulse,
        notified=lambda: {("ops", "delivered"): 1},
        local=True,
    )  # type: ignore[attr-defined]
    token = make_token()
    store.add_token("SITE-2-1", hash_token(token), bench.clock.now())
    with (
        HttpServer(create_app(options), "127.0.0.1", 0) as server,
        httpx.Client(base_url=server.address, timeout=60, trust_env=False) as devices,
        prometheus(tmp_path / "prometheus", server.address.removeprefix("http://")) as client,
    ):
        said, sequence = {"Authorization": f"Bearer {token}"}, 1000

        def go_on() -> bool:
            """Devices report and the loop ticks while Prometheus looks."""
            nonlocal sequence
            sequence += 1
            clock = DeviceClock(bench.clock.now() - timedelta(seconds=3), synchronised=True)
            sent = report("SITE-2-1", sequence, clock=clock)
            assert devices.post("/v1/exchange", content=sent.to_bytes(), headers=said).status_code == 200
            devices.get("/v1/plan")
            bench.loop.tick()
            return _samples(client, 'sum_over_time(up{job="reconciler"}[1m])') >= 8

        _until(go_on, 200, "eight scrapes")
        empty = []
        for title, query in QUERIES:
            found = _ask(client, query.replace("$job", ".*").replace("$__rate_interval", "1m"))
            if not found or all(sample["value"][1] == "NaN" for sample in found):
                empty.append(f"{title}: {query}")
        assert not empty, "\n".join(empty)
        annotation = BOARD["annotations"]["list"][1]["expr"]
        _ask(client, annotation.replace("$job", ".*"))
        _until(lambda: _alerts_are_read(client), 60, "the rules are evaluated, and nothing is down")


def _alerts_are_read(client: httpx.Client) -> bool:
    """The same Prometheus evaluates the rules without an error, and sees what is wrong."""
    groups = client.get("/api/v1/rules").json()["data"]["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert not [rule["lastError"] for rule in rules.values() if rule.get("lastError")]
    # A scrape that came too late, on a machine with much to do, is a service that is down until the next one.
    awaited = {"ReconcilerHeadRefused": "pending", "ReconcilerStoreDown": "inactive", "ReconcilerDown": "inactive"}
    return {name: rules[name]["state"] for name in awaited} == awaited
