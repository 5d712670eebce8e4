"""`GET /v1/observed`: the snapshot of a running service, whole, and for whom; and the command that fetches it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from reconciler.cli.main import cli
from reconciler.cli.snapshot import fetch_snapshot
from reconciler.model.access import Scope
from reconciler.model.observed import Artifact, ArtifactState, Snapshot
from reconciler.model.plan import Facts, VerdictFact
from reconciler.ports import Decision, Export, TransientError
from reconciler.repo.snapshot import load_snapshot
from reconciler.server.observed import Exporter, Spooled
from reconciler.server.options import Options
from reconciler.server.tokens import FileToken, hash_token, make_token
from tests.server.service import NOW, OTHER, Service, report, running

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

STORES = Snapshot(
    artifacts={"v1.4.1": Artifact(state=ArtifactState.PUBLISHED, digest=OTHER, size=4_200_000_000)},
    tags={"video-ingest": {"stable": OTHER}},
    secret_versions={"vpn/site-2847": "v7"},
)


class Serving:
    """A service with a reader and an operator, and something on record."""

    def __init__(self, service: Service, reader: str, operator: str, folder: Path) -> None:
        self.service, self.address = service, service.server.address
        self.reader = {"Authorization": f"Bearer {reader}"}
        self.operator = {"Authorization": f"Bearer {operator}"}
        self.token_file = folder / "reader.token"
        self.token_file.write_text(f"{reader}\n")

    def fill(self) -> None:
        store = self.service.store
        for device in ("SITE-2847-1", "SITE-0001-1"):
            self.service.send(report(device), self.service.enrol(device))
        proof = VerdictFact("canary", "v1.4.1", NOW)
        facts = Facts(proofs=(proof,), members={"v1.4.2": {"canary": ("SITE-2847",)}})
        store.record(store.begin_epoch(), Decision(NOW, "c0ffee", facts))


@pytest.fixture
def serving(tmp_path: Path):  # type: ignore[no-untyped-def]
    reader, operator = make_token(), make_token()
    known: dict[str, Service] = {}

    def export():  # type: ignore[no-untyped-def]
        return known["service"].store.export()

    # The service shares its standard output with the command that is tested here.
    with (
        capture_logs(),
        running(
            tmp_path,
            operators=lambda: (
                FileToken(hash_token(operator), frozenset({Scope.ALL}), "anna"),
                FileToken(hash_token(reader), frozenset({Scope.READ}), "checks"),
            ),
            export=export,
            stores=lambda: STORES,
        ) as service,
    ):
        known["service"] = service
        yield Serving(service, reader, operator, tmp_path)


def test_it_is_what_the_store_holds_with_what_the_loop_saw_in_the_stores(serving: Serving) -> None:
    serving.fill()
    answer = serving.service.client.get("/v1/observed", headers=serving.reader)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    found = load_snapshot(answer.content)
    update: dict[str, Any] = {
        "artifacts": STORES.artifacts,
        "tags": STORES.tags,
        "secret_versions": STORES.secret_versions,
    }
    update |= {"at": NOW, "api_version": "fleet/v1", "kind": "Observed"}
    assert found == serving.service.store.snapshot().model_copy(update=update)
    assert [device.name for device in found.devices] == ["SITE-0001-1", "SITE-2847-1"]
    assert answer.json()["artifacts"]["v1.4.1"] == {"state": "published", "digest": OTHER, "size": 4_200_000_000}


def test_an_empty_fleet_is_a_snapshot_too(serving: Serving) -> None:
    assert fetch_snapshot(serving.address, serving.token_file).devices == ()


def test_a_reader_reads_the_rollout_and_nothing_else(serving: Serving) -> None:
    client, store = serving.service.client, serving.service.store
    store.save_plan(store.begin_epoch(), "{}")
    for path in ("/v1/plan", "/v1/status", "/v1/observed"):
        assert client.get(path, headers=serving.reader).status_code == 200, path
        assert client.get(path, headers=serving.operator).status_code == 200, path
        assert client.get(path).status_code == 401, path
    assert client.get("/metrics", headers=serving.operator).status_code == 200
    refused = client.get("/metrics", headers=serving.reader)
    assert refused.status_code == 403 and "--scope" in refused.json()["remedy"]
    for path in ("/v1/config", "/v1/artifacts/x/y"):
        assert client.get(path, headers=serving.reader).status_code == 401, path
    device = serving.service.enrol("A-1")
    assert client.get("/v1/observed", headers=device).status_code == 401
    assert client.post("/v1/observed", headers=serving.reader).status_code == 405


def test_the_tag_stays_until_something_is_reported_or_decided(serving: Serving) -> None:
    client = serving.service.client
    first = client.get("/v1/observed", headers=serving.reader).headers["etag"]
    same = client.get("/v1/observed", headers=serving.reader | {"If-None-Match": f'"other", {first}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first)
    serving.fill()
    changed = client.get("/v1/observed", headers=serving.reader | {"If-None-Match": first})
    assert changed.status_code == 200 and changed.headers["etag"] != first


def test_before_the_first_tick_there_is_none(tmp_path: Path) -> None:
    reader = make_token()
    with running(
        tmp_path, operators=lambda: (FileToken(hash_token(reader), frozenset({Scope.READ}), "checks"),)
    ) as service:
        answer = service.client.get("/v1/observed", headers={"Authorization": f"Bearer {reader}"})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"


def test_a_large_fleet_is_not_held_in_memory() -> None:
    documents = (json.dumps({"name": f"SITE-{number:05}-1", "checksWorse": ["x" * 4000]}) for number in range(5000))

    @contextmanager
    def export() -> Iterator[Export]:
        yield Export(1, Snapshot(), documents)

    tracemalloc.start()
    try:
        answer = Exporter(
            Options(store=None, now=lambda: NOW, access=None, export=export, stores=lambda: STORES)
        ).answer("")  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(answer, Spooled)
    assert int(answer.headers["content-length"]) > 20_000_000
    assert peak < 5_000_000, peak
    assert len(load_snapshot(answer.file.read()).devices) == 5000
    answer.file.close()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["snapshot", *map(str, arguments)])


def test_the_command_writes_it_as_a_whole_or_not_at_all(serving: Serving, tmp_path: Path) -> None:
    serving.fill()
    out = tmp_path / "observed.json"
    done = run("--server", serving.address, "--token-file", serving.token_file, "--output", out)
    assert (done.exit_code, done.output) == (0, "")
    assert len(load_snapshot(out).devices) == 2
    assert json.loads(run("--server", serving.address + "/", "--token-file", serving.token_file).stdout)["at"]
    before = out.read_bytes()
    serving.token_file.write_text("edge_" + "x" * 43)
    failed = run("--server", serving.address, "--token-file", serving.token_file, "--output", out)
    assert isinstance(failed.exception, TransientError) and "--scope read" in str(failed.exception)
    assert "edge_" not in str(failed.exception)
    assert out.read_bytes() == before and len(list(tmp_path.glob("*observed*"))) == 1


def test_what_gives_no_snapshot_is_told(serving: Serving, tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"did not answer .ConnectError"):
        fetch_snapshot("http://127.0.0.1:1", serving.token_file)
    with pytest.raises(TransientError, match="answered 404"):
        fetch_snapshot(f"{serving.address}/elsewhere", serving.token_file)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--server", "http://reconciler.example", "--token-file", "T"], "not encrypted"),
        (["--server", "reconciler.example", "--token-file", "T"], "https://HOST"),
        (["--server", "https://[", "--token-file", "T"], "https://HOST"),
        (["--server", "https://127.0.0.1:1"], "go together"),
        (["--server", "https://127.0.0.1:1", "--token-file", "absent"], "cannot be read"),
        (["--server", "https://127.0.0.1:1", "--token-file", "empty"], "holds no token"),
        (["--server", "https://127.0.0.1:1", "--token-file", "T", "--config", "x"], "give one of them"),
        ([], "--config FILE, or --server URL"),
    ],
)
def test_wrong_usage_is_said_before_anybody_is_asked(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("T").write_text("edge_token")
    Path("empty").write_text("\n")
    done = run(*arguments)
    assert done.exit_code == 2 and said in done.output
