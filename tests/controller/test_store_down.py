"""The image store goes away while a release is uploaded: told, tried again, completed; nothing is visible half-way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.controller.pipeline import FPR, Keys, Pipeline, run_command
from tests.support.aws import moto_server, use_test_credentials
from tests.support.faults import FaultProxy
from tests.support.gpg import make_home
from tests.support.system import need

pytestmark = [pytest.mark.system, pytest.mark.slow]
DOWN = {
    "status": 503,
    "headers": {"Content-Type": "application/xml"},
    "body": b"<Error><Code>ServiceUnavailable</Code><Message>Please come back</Message></Error>",
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    need("mke2fs", "e2fsprogs")
    with make_home() as release, make_home() as assignment:
        yield Keys(release, assignment)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, moto_server() as url:
        use_test_credentials(patch)
        yield url


class Bucket:
    """A fresh bucket on moto, and a proxy before it that breaks what it is told to."""

    def __init__(self, url: str, proxy: FaultProxy) -> None:
        self.name, self.proxy = f"images-{next(_numbers)}", proxy
        self._client: Any = boto3.client("s3", endpoint_url=url, region_name="eu-central-1")
        self._client.create_bucket(Bucket=self.name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

    def names(self) -> list[str]:
        return [row["Key"] for row in self._client.list_objects_v2(Bucket=self.name).get("Contents", ())]

    def index(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._client.get_object(Bucket=self.name, Key="index.json")["Body"].read())
        return found


@pytest.fixture
def bucket(moto: str) -> Iterator[Bucket]:
    with FaultProxy(moto) as proxy:
        yield Bucket(moto, proxy)


def pipeline(root: Path, keys: Keys, bucket: Bucket, kind: str = "key") -> Pipeline:
    images = {
        "type": "s3", "url": f"s3://{bucket.name}/", "region": "eu-central-1", "endpoint": bucket.proxy.url
    }  # fmt: skip
    # The signer's own process would look for an AWS identity of its own user.
    home = {"home": str(keys.release.path)} if kind == "key" else {}
    return Pipeline(root, keys, signer={"type": kind, FPR: keys.key, **home}, images=images)


@pytest.mark.parametrize("path", [".img", "SHA256SUMS", "manifest.json"])
def test_a_store_that_is_down_during_the_upload_is_tried_again_and_completed(
    tmp_path: Path, keys: Keys, bucket: Bucket, path: str
) -> None:
    line = pipeline(tmp_path, keys, bucket)
    bucket.proxy.next("answer", "PUT", path, times=50, **DOWN)
    line.settle()
    status, reason, message = line.condition("Progressing")
    assert (status, reason) == ("False", "Retrying"), line.conditions()
    assert "build image=v1 failed" in message and "ServiceUnavailable" in message and "tried again" in message
    assert line.condition("Stalled")[0] == "False"
    assert not any(name.endswith(("SHA256SUMS", "SHA256SUMS.gpg", "index.json")) for name in bucket.names())
    assert line.state == "absent"
    bucket.proxy.mend()
    line.later()
    assert line.state == "published" and [entry["release"] for entry in bucket.index()["releases"]] == ["v1"]
    assert line.condition("Progressing")[1] != "Retrying"
    line.close()


def test_a_store_that_is_down_altogether_keeps_its_last_answer_and_resumes(
    tmp_path: Path, keys: Keys, bucket: Bucket
) -> None:
    line = pipeline(tmp_path, keys, bucket)
    program = line.start()
    program.loop.tick()  # the store has answered once, and is gone from here on
    bucket.proxy.next("answer", times=500, **DOWN)
    line.later(30)
    status, reason, message = line.condition("StoresReady")
    assert (status, reason) == ("False", "NotAnswering") and "image store" in message, line.conditions()
    before = bucket.names()
    line.later(30)
    assert bucket.names() == before and "index.json" not in before
    bucket.proxy.mend()
    line.later()
    line.later()
    assert line.condition("StoresReady")[:2] == ("True", "AllAnswer")
    assert line.state == "published"
    line.close()


def test_an_answer_that_is_lost_half_way_is_no_second_upload(tmp_path: Path, keys: Keys, bucket: Bucket) -> None:
    line = pipeline(tmp_path, keys, bucket)
    bucket.proxy.next("lost", "PUT", ".img", times=1)
    bucket.proxy.next("lost", "PUT", "index.json", times=1)
    line.settle()
    line.later()
    assert line.state == "published" and line.condition("Stalled")[0] == "False"
    line.close()


def test_the_command_that_is_shown_signs_in_a_bucket(tmp_path: Path, keys: Keys, bucket: Bucket) -> None:
    line = pipeline(tmp_path, keys, bucket, "offline")
    line.settle()
    command = line.condition("SigningReady")[2].partition("; run: ")[2]
    assert f"--store s3://{bucket.name}/ --region eu-central-1 --endpoint {bucket.proxy.url}" in command
    done = run_command(command, keys.release, "--yes")
    assert done.returncode == 0, done.stderr
    line.later(61)
    assert line.state == "published" and line.condition("SigningReady")[:2] == ("True", "CanSign")
    line.close()
