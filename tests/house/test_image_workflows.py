"""The image's workflows, run step by step in bash: the monthly pull request, and from a merge to the image store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.tree import ROOT
from tests.propose.fleets import files, waves
from tests.support.actions import Runner
from tests.support.apt import Repository
from tests.support.aws import moto_server, use_test_credentials
from tests.support.github import GithubServer, Token
from tests.support.gitrepo import Repo
from tests.support.gpg import make_home
from tests.support.recipes import commit, recipe
from tests.support.system import need

pytestmark = [pytest.mark.slow, pytest.mark.system]

MONTHLY, BUILD = (
    yaml.safe_load((ROOT / f".github/workflows/{name}-image.yml").read_text())["jobs"] for name in ("monthly", "build")
)
JOB_TOKEN = "ghs_job"
SERVER = "https://github.example"
STORE = {
    "IMAGE_STORE": "s3://images/golden/",
    "IMAGE_STORE_REGION": "eu-central-1",
    "IMAGE_STORE_ROLE": "arn:aws:iam::123456789012:role/image-store",
}
IMAGE = """\
apiVersion: fleet/v1
kind: Image
metadata: {name: v1.2.0}
spec:
  recipe: golden/
  base: {distribution: debian, suite: bookworm, snapshot: 20251115T000000Z}
  packages: {docker-ce: 5:27.1.2-1}
"""
VARIANT = (
    "distribution: debian\nsuite: bookworm\nsources: [{mirror: main, suites: [bookworm], key: keys/archive.asc}]\n"
)


def clone(tmp_path: Path, more: Mapping[str, str | bytes | None]) -> Repo:
    """A checkout of a fleet repo, whose remote is a bare one."""
    repo = Repo(tmp_path / "checkout")
    repo.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"))
    commit(repo, "Begin", {**{f"fleet/{path}": data for path, data in files(waves=waves("v1.0.0")).items()}, **more})
    repo.git("remote", "add", "origin", str(tmp_path / "remote.git"))
    repo.git("push", "-q", "origin", "main")
    return repo


def runner(tmp_path: Path, repo: Repo, context: dict[str, Any], **variables: str) -> Runner:
    """A runner with the command in its place; of this machine it has nothing but PATH."""
    temp = tmp_path / f"runner-{len(list(tmp_path.iterdir()))}"
    (temp / "reconciler/bin").mkdir(parents=True)
    (temp / "home").mkdir()
    (temp / "reconciler/bin/reconciler").symlink_to(ROOT / ".venv/bin/reconciler")
    own = {"PATH": os.environ["PATH"], "HOME": str(temp / "home"), "LANG": "C.UTF-8"}
    github = {"server_url": SERVER, "token": JOB_TOKEN, "repository": "video-edge/fleet", "event": {"before": ""}}
    whole = {"github": github, "vars": {}, "secrets": {}, "inputs": {}}
    for key, value in context.items():
        whole[key] = {**whole.get(key, {}), **value}
    skip = frozenset({"Make the command", "Install what a build needs"})
    return Runner(repo.path, temp, whole, own | variables, ROOT, skip)


def told(run: Runner) -> str:
    """All that a run's steps wrote."""
    return "\n".join(f"{step.name}: {step.output}" for step in run.steps)


# ---------------------------------------------------------------- the monthly pull request


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Repository]:
    need("apt-get", "apt")
    with make_home() as home:
        made = Repository(tmp_path / "mirror", home)
        made.offer({"docker-ce": ["5:27.1.2-1", "5:28.0-1"]})
        yield made


def monthly(tmp_path: Path, repo: Repo, hub: GithubServer, mirrors: str, release: str = "") -> tuple[bool, Runner]:
    context = {"github": {"api_url": hub.url}, "vars": {"IMAGE_MIRRORS": mirrors}, "inputs": {"release": release}}
    run = runner(tmp_path, repo, context)
    done = run.job(MONTHLY["propose"])
    assert done is not None
    return done[0], run


def whole_day(enough_s: float = 100) -> date:
    """Today in UTC, with time enough left for a test: the next day's run has a newer snapshot to propose."""
    now = datetime.now(UTC)
    left_s = (now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1) - now).total_seconds()
    if left_s < enough_s:
        time.sleep(left_s + 1)
    return datetime.now(UTC).date()


def branches(repo: Repo) -> set[str]:
    return set(repo.git("ls-remote", "--heads", "origin").replace("refs/heads/", "").split()[1::2])


def test_the_month_brings_one_pull_request_and_the_next_run_none(tmp_path: Path, mirror: Repository) -> None:
    today = f"{whole_day():%Y%m%d}T000000Z"
    more = {"fleet/images/v1.2.0.yaml": IMAGE, "fleet/images/golden/debian-12.yaml": VARIANT}
    repo = clone(tmp_path, {**more, "fleet/images/golden/keys/archive.asc": mirror.key.read_text()})
    where = f"other=https://mirror.example/{{snapshot}}\nmain={mirror.address}\n"
    with GithubServer(tokens={JOB_TOKEN: Token("github-actions", app=True)}) as hub:
        hub.push("image/v1.2.1")
        for _ in range(2):
            passed, run = monthly(tmp_path, repo, hub, where)
            assert passed, told(run)
        (pull,) = hub.pulls
        assert pull["title"] == "Add release v1.2.1" and pull["base"]["ref"] == "main"
        assert "| `docker-ce` | `5:27.1.2-1` | `5:28.0-1` |" in pull["body"]
        assert f"| `snapshot` | `20251115T000000Z` | `{today}` |" in pull["body"]
        assert branches(repo) == {"main", "image/v1.2.1"}
        assert "Add release v1.2.1" in run.summary and f"pull request {pull['number']}" in run.summary
        assert "+++ b/" not in run.summary and JOB_TOKEN not in told(run)
        author = repo.git("log", "-1", "--format=%an", "refs/remotes/origin/image/v1.2.1")
        assert author.strip() == "github-actions[bot]"

        repo.git("push", "-q", "origin", "refs/remotes/origin/image/v1.2.1:refs/heads/main")
        repo.git("push", "-q", "origin", ":refs/heads/image/v1.2.1")
        passed, run = monthly(tmp_path, repo, hub, where)
        assert passed and "nothing is newer than what v1.2.1 holds" in run.summary
        assert len(hub.pulls) == 1 and branches(repo) == {"main"}

        mirror.offer({"docker-ce": ["5:29.0-1"]})
        hub.push("image/v2.0.0")
        passed, run = monthly(tmp_path, repo, hub, where, "v2.0.0")
        assert passed and hub.pulls[1]["title"] == "Add release v2.0.0"


def test_a_mirror_that_cannot_be_trusted_fails_the_run_and_proposes_nothing(tmp_path: Path, mirror: Repository) -> None:
    more = {"fleet/images/v1.2.0.yaml": IMAGE, "fleet/images/golden/debian-12.yaml": VARIANT}
    repo = clone(tmp_path, {**more, "fleet/images/golden/keys/archive.asc": mirror.key.read_text()})
    mirror.offer({"docker-ce": ["5:28.0-1"]}, signed_by="")
    with GithubServer(tokens={JOB_TOKEN: Token("github-actions", app=True)}) as hub:
        passed, run = monthly(tmp_path, repo, hub, f"main={mirror.address}")
        assert not passed and "is not signed" in told(run)
        assert hub.pulls == [] and branches(repo) == {"main"}


def test_git_gets_the_jobs_token_from_the_environment_and_keeps_none(tmp_path: Path) -> None:
    repo = clone(tmp_path, {})
    run = runner(tmp_path, repo, {})
    (step,) = [step for step in MONTHLY["propose"]["steps"] if step.get("name", "").startswith("Say who commits")]
    assert run.job({"steps": [step]}) == (True, {})
    assert JOB_TOKEN not in (repo.path / ".git/config").read_text()
    for host, known in (("github.example", True), ("elsewhere.example", False)):
        asked = subprocess.run(
            ["git", "credential", "fill"], cwd=repo.path, input=f"protocol=https\nhost={host}\n\n", capture_output=True,
            text=True, check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GITHUB_TOKEN": JOB_TOKEN, "GIT_TERMINAL_PROMPT": "0"},
        )  # fmt: skip
        assert (f"username=x-access-token\npassword={JOB_TOKEN}\n" in asked.stdout) is known


# ---------------------------------------------------------------- from a merge to the image store


class Identity(BaseHTTPRequestHandler):
    """Says who a job is, as GitHub does, to who has the job's request token."""

    def do_GET(self) -> None:
        fits = self.headers["Authorization"] == "bearer request-token" and "audience=sts.amazonaws.com" in self.path
        body = json.dumps({"value": "who-we-are"}).encode() if fits else b"{}"
        self.send_response(200 if fits else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def identity() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Identity)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/token?api-version=1"
    server.shutdown()
    server.server_close()
    thread.join()


def planned(tmp_path: Path, repo: Repo, before: str, release: str = "") -> list[str]:
    run = runner(
        tmp_path, repo, {"github": {"event": {"before": before}}, "inputs": {"release": release}, "vars": STORE}
    )
    done = run.job(BUILD["plan"])
    assert done is not None and done[0], told(run)
    found: list[str] = json.loads(done[1]["releases"])
    return found


def test_what_a_push_brings_is_planned(tmp_path: Path) -> None:
    repo = clone(tmp_path, {})
    before = repo.head()
    assert planned(tmp_path, repo, before) == []
    repo.commit("Add", {"fleet/images/v1.3.0.yaml": IMAGE.replace("v1.2.0", "v1.3.0")})
    assert planned(tmp_path, repo, before) == ["v1.3.0"]
    # What a forced push replaced is not here.
    assert planned(tmp_path, repo, "1" * 40) == planned(tmp_path, repo, "0" * 40) == ["v1.3.0"]
    assert planned(tmp_path, repo, "", "v1.2.0") == ["v1.2.0"]
    # No release, or no store: nothing is built.
    run = runner(tmp_path, repo, {})
    assert run.job(BUILD["plan"]) is None and run.job(MONTHLY["propose"]) is None
    assert run.job(BUILD["build"], {"plan": {"releases": "[]"}}) is None


def test_a_release_is_built_without_a_credential_and_uploaded_unsigned(
    tmp_path: Path, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("mke2fs", "e2fsprogs")
    with make_home() as home:
        golden = recipe(home, [home.generate("release key")], "fleet/images/golden")
    repo = clone(tmp_path, {**golden, "fleet/images/v1.3.0.yaml": IMAGE.replace("v1.2.0", "v1.3.0")})
    context = {"matrix": {"release": "v1.3.0"}, "vars": {"IMAGE_MIRRORS": "main=https://mirror.example/"}}
    run = runner(tmp_path, repo, context)
    # The same command with a builder that needs no distribution: how it is called is what is looked at.
    command = run.temp / "reconciler/bin/reconciler"
    command.unlink()
    command.write_text(f'#!/bin/sh\nexec "{ROOT}/.venv/bin/reconciler" "$@" --type files\n')
    command.chmod(0o755)
    done = run.job(BUILD["build"], {"plan": {"releases": '["v1.3.0"]'}})
    assert done is not None and done[0], told(run)
    (place,) = (run.temp / "build/artifacts").iterdir()
    (folder,) = place.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["release"], manifest["commit"]) == ("v1.3.0", repo.head())
    assert list((run.temp / "build/logs").iterdir())
    outputs = BUILD["build"]["steps"][-1]["with"]["path"]
    assert outputs == "${{ steps.build.outputs.place }}"

    use_test_credentials(monkeypatch)
    with moto_server() as aws:
        import boto3

        client = boto3.client("s3", endpoint_url=aws, region_name="eu-central-1")
        client.create_bucket(Bucket="images", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        given = {"ACTIONS_ID_TOKEN_REQUEST_URL": identity, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "request-token",
                 "AWS_ENDPOINT_URL": aws, "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
        for said in ("is in the image store, built", "is in the image store, built"):
            run = runner(tmp_path, repo, {"matrix": {"release": "v1.3.0"}, "vars": STORE}, **given)
            shutil.copytree(place, run.temp / "image")
            done = run.job(BUILD["upload"])
            assert done is not None and done[0], told(run)
            assert said in run.summary and "who-we-are" not in told(run) and "request-token" not in told(run)
        assert (run.temp / "identity").stat().st_mode & 0o077 == 0
        names = {each["Key"] for each in client.list_objects_v2(Bucket="images")["Contents"]}
        assert {f"golden/{folder.name}/{path.name}" for path in folder.iterdir()} <= names
        assert not [name for name in names if name.endswith(".gpg")]

        # Somebody who is not the job gets no identity, and nothing is uploaded.
        run = runner(tmp_path, repo, {"matrix": {"release": "v1.3.0"}, "vars": STORE},
                     **given | {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "stolen"})  # fmt: skip
        done = run.job(BUILD["upload"])
        assert done is not None and not done[0] and "401" in told(run)
