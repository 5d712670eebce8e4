"""What goes wrong between us and AWS: translation of errors, and S3 behind a proxy that breaks requests (moto behind it)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as foreign

from reconciler.adapters.aws import Aws, AwsSettings, translate, translated
from reconciler.adapters.secrets_aws import SecretsManager
from reconciler.ports import TerminalError, TransientError
from tests.adapters.artifacts import FOLDER, IMAGE, SIGNATURE, pack
from tests.adapters.conftest import aws_at
from tests.adapters.image_places import BucketPlace, DirectoryPlace
from tests.support.faults import FaultProxy

# Many runs, waits or processes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

SENTINEL = "sentinel-5521-password"
SLOW_DOWN = {
    "status": 503,
    "headers": {"Retry-After": "7", "Content-Type": "application/xml"},
    "body": b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>",
}


def service_error(code: str, status: int, message: str = "said so") -> foreign.ClientError:
    answer: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "3"}},
    }
    return foreign.ClientError(answer, "PutObject")


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (service_error("SlowDown", 503), TransientError, "tried again"),
        (service_error("ThrottlingException", 400), TransientError, "tried again"),
        (service_error("InternalError", 500), TransientError, "tried again"),
        (service_error("Whatever", 502), TransientError, "tried again"),
        (service_error("ExpiredToken", 400), TransientError, "expired"),
        (service_error("RequestTimeTooSkewed", 403), TransientError, "clock"),
        (service_error("AccessDenied", 403), TerminalError, "allow PutObject"),
        (service_error("InvalidAccessKeyId", 403), TerminalError, "credentials"),
        (service_error("UnrecognizedClientException", 400), TerminalError, "credentials"),
        (service_error("NoSuchBucket", 404), TerminalError, "make it"),
        (foreign.NoCredentialsError(), TerminalError, "AWS identity"),
        (foreign.NoRegionError(), TerminalError, "region"),
        (foreign.ProfileNotFound(profile="x"), TerminalError, "profile"),
        (foreign.ParamValidationError(report=SENTINEL), TerminalError, "make it"),
        (foreign.EndpointConnectionError(endpoint_url=f"http://x/?{SENTINEL}"), TransientError, "network"),
        (foreign.ReadTimeoutError(endpoint_url=f"http://x/?{SENTINEL}"), TransientError, "network"),
        (foreign.SSLError(endpoint_url=f"http://x/?{SENTINEL}", error="x"), TerminalError, "certificate"),
        (foreign.IncompleteReadError(actual_bytes=1, expected_bytes=2), TransientError, "network"),
    ],
)
def test_every_foreign_error_becomes_one_of_ours_with_its_advice(error: Exception, kind: type, advice: str) -> None:
    ours = translate(error, "write x", needed_for="the test", remedy="make it")
    assert type(ours) is kind
    assert ours.wrong.startswith("cannot write x") and ours.needed_for == "the test"
    assert advice in ours.remedy and SENTINEL not in str(ours)
    if isinstance(error, foreign.ClientError) and isinstance(ours, TransientError):
        assert ours.retry_after_s == 3


def test_a_requests_parameters_are_in_no_message_and_in_no_printed_trace(aws: Aws) -> None:
    with pytest.raises(TerminalError) as caught, translated("put it", needed_for="the test"):
        aws.client("s3").put_object(Bucket="x", Key=SENTINEL, Body=[SENTINEL])
    assert SENTINEL not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(TerminalError) as caught:
        SecretsManager(aws).value("")
    assert caught.value.remedy


def test_no_credentials_is_terminal_and_says_what_to_give(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = SecretsManager(aws_at(moto))
    with pytest.raises(TerminalError, match="no AWS credentials"):
        store.value("x")
    with pytest.raises(TerminalError, match="no AWS region"):
        Aws(AwsSettings()).client("secretsmanager")
    with pytest.raises(TerminalError, match="profile"):
        Aws(AwsSettings(region="x", profile="nobody")).client("s3")


def test_clients_have_timeouts_and_standard_retries() -> None:
    client = Aws(AwsSettings(region="eu-central-1")).client("s3")
    config = client.meta.config
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (5, 30, 32)
    assert config.retries == {"mode": "standard", "total_max_attempts": 5}
    client.close()


# ---------------------------------------------------------------- S3 behind a proxy that breaks requests


@pytest.fixture
def bucket(aws: Aws) -> BucketPlace:
    return BucketPlace(aws)


@pytest.fixture
def proxy(moto: str) -> Iterator[FaultProxy]:
    with FaultProxy(moto) as running:
        yield running


@pytest.fixture
def far(proxy: FaultProxy) -> Iterator[Aws]:
    clients = aws_at(proxy.url, attempts=2)
    yield clients
    clients.close()


BIG = bytes(range(256)) * 4096 * 6  # 6 MiB: two parts


def test_passing_faults_during_staging_and_publishing_are_ridden_out(
    bucket: BucketPlace, proxy: FaultProxy, far: Aws, tmp_path: Path
) -> None:
    store = bucket.open_at(far)
    for do, method, path in (
        ("answer", "PUT", "manifest.json"),
        ("lost", "PUT", "packages.txt"),
        ("lost", "PUT", "partNumber=2"),
        ("lost", "POST", "uploadId="),
        ("drop", "GET", IMAGE),
        ("answer", "GET", "list-type=2"),
        ("lost", "PUT", "index.json"),
    ):
        proxy.next(do, method, path, **(SLOW_DOWN if do == "answer" else {}))
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=BIG))
    store.attach_signature("v1.4.2", SIGNATURE)
    store.publish("v1.4.2")
    assert proxy.left == 0
    assert store.artifacts()["v1.4.2"].state == "published"
    assert bucket.content(f"{FOLDER}/{IMAGE}") == BIG
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.bucket).get("Uploads", [])
    assert uploads == []


def test_a_download_that_breaks_off_goes_on_where_it_was(
    bucket: BucketPlace, proxy: FaultProxy, far: Aws, tmp_path: Path
) -> None:
    bucket.open().stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=BIG))
    proxy.next("drop", "GET", IMAGE, times=3)
    bucket.open_at(far).download("v1.4.2", IMAGE, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == BIG and proxy.left == 0


def test_a_file_replaced_during_a_download_is_never_stitched_together(
    bucket: BucketPlace, proxy: FaultProxy, far: Aws, tmp_path: Path
) -> None:
    bucket.open().stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=BIG))
    proxy.next("drop", "GET", IMAGE)
    stream = bucket.open_at(far)._stream(FOLDER, IMAGE)
    next(stream)
    bucket.tamper(f"{FOLDER}/{IMAGE}", BIG[::-1])
    with pytest.raises(TransientError, match="replaced while it was read"):
        list(stream)


def test_wrong_bytes_from_the_wire_are_refused(
    bucket: BucketPlace, proxy: FaultProxy, far: Aws, tmp_path: Path
) -> None:
    bucket.open().stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    proxy.next("wrong", "GET", IMAGE, times=9)
    with pytest.raises((TerminalError, TransientError)):
        bucket.open_at(far).download("v1.4.2", IMAGE, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("do", ["answer", "hang"])
def test_a_store_that_stays_down_is_transient_and_changes_nothing(
    bucket: BucketPlace, proxy: FaultProxy, tmp_path: Path, do: str
) -> None:
    bucket.open().stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    bucket.open().attach_signature("v1.4.2", SIGNATURE)
    before = bucket.paths()
    proxy.next(do, "", "", times=20, **(SLOW_DOWN if do == "answer" else {}))
    impatient = aws_at(proxy.url, read_timeout_s=0.3 if do == "hang" else 60, attempts=2)
    with pytest.raises(TransientError) as caught:
        bucket.open_at(impatient).publish("v1.4.2")
    impatient.close()
    assert caught.value.retry_after_s == (7 if do == "answer" else None)
    assert bucket.paths() == before


def test_an_index_that_others_keep_changing_is_given_up_for_now(
    bucket: BucketPlace, proxy: FaultProxy, far: Aws, tmp_path: Path
) -> None:
    bucket.open().stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
    bucket.open().attach_signature("v1.4.2", SIGNATURE)
    lost = b"<Error><Code>PreconditionFailed</Code><Message>no</Message></Error>"
    proxy.next("answer", "PUT", "index.json", times=8, status=412, body=lost)
    with pytest.raises(TransientError, match="changed by others 8 times"):
        bucket.open_at(far).publish("v1.4.2")
    assert bucket.open().artifacts()["v1.4.2"].state == "signed"


def test_a_bucket_that_is_not_there_or_not_ours_is_terminal(far: Aws, bucket: BucketPlace, proxy: FaultProxy) -> None:
    store = bucket.open_at(far)
    denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    proxy.next("answer", "GET", "", status=403, body=denied)
    with pytest.raises(TerminalError, match="AccessDenied") as caught:
        store.artifacts()
    assert "allow GetObject" in caught.value.remedy
    bucket.remove("../other")
    bucket.client.delete_object(Bucket=bucket.bucket, Key="releases/other")
    bucket.client.delete_bucket(Bucket=bucket.bucket)
    with pytest.raises(TerminalError, match="NoSuchBucket"):
        store.artifacts()


@pytest.mark.parametrize("url", ["https://x/", "s3://", "s3://UP/", "s3://bucket/../x", "s3://bucket/a b"])
def test_an_address_that_is_no_buckets_is_refused(aws: Aws, url: str) -> None:
    from reconciler.adapters.images_s3 import S3ImageStore

    with pytest.raises(TerminalError, match="not an S3 address"):
        S3ImageStore.from_url(aws, url)


def test_leftovers_of_a_killed_upload_are_aborted(bucket: BucketPlace, tmp_path: Path) -> None:
    files = pack(tmp_path / "built", image=BIG)
    key = f"{bucket.prefix}{FOLDER}/{IMAGE}"
    upload = bucket.client.create_multipart_upload(Bucket=bucket.bucket, Key=key)["UploadId"]
    bucket.client.upload_part(Bucket=bucket.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"old")
    bucket.open().stage("v1.4.2", FOLDER, files)
    assert bucket.client.list_multipart_uploads(Bucket=bucket.bucket).get("Uploads", []) == []
    assert bucket.content(f"{FOLDER}/{IMAGE}") == BIG


KILLED = """
import os, signal, sys
from pathlib import Path
from reconciler.adapters import image_folders, images_dir, images_s3
from reconciler.adapters.aws import Aws, AwsSettings
from tests.adapters.artifacts import FOLDER, SIGNATURE, pack
kind, place, url, step, built = sys.argv[1:]
cls = images_dir.DirectoryImageStore if kind == "directory" else images_s3.S3ImageStore
left = [int(step)]
def deadly(name):
    plain = getattr(cls, name)
    def call(self, *args):
        for moment in ("before", "after"):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            if moment == "before":
                result = plain(self, *args)
        return result
    setattr(cls, name, call)
for name in ("_create", "_replace", "_update_index"):
    deadly(name)
if kind == "directory":
    store = cls(Path(place))
else:
    store = cls.from_url(Aws(AwsSettings(region="eu-central-1", endpoint_url=url)), place)
store.stage("v1.4.2", FOLDER, pack(Path(built)))
store.attach_signature("v1.4.2", SIGNATURE)
store.publish("v1.4.2")
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_killed_at_any_write_the_same_steps_complete(kind: str, moto: str, aws: Aws, tmp_path: Path) -> None:
    seen = []
    for step in range(40):
        place = DirectoryPlace(tmp_path / f"images-{step}") if kind == "directory" else BucketPlace(aws)
        where = str(place.root) if isinstance(place, DirectoryPlace) else f"s3://{place.bucket}/{place.prefix}"
        command = [sys.executable, "-c", KILLED, kind, where, moto, str(step), str(tmp_path / "killed")]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], env=dict(os.environ), timeout=120, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        artifact = place.open().artifacts().get("v1.4.2")
        seen.append(artifact.state.value if artifact else "absent")
        store = place.open()
        store.stage("v1.4.2", FOLDER, pack(tmp_path / "built"))
        store.attach_signature("v1.4.2", SIGNATURE)
        store.publish("v1.4.2")
        assert place.open().artifacts()["v1.4.2"].state == "published"
    # Four files, the signature, the index: before and after each.
    assert seen == ["absent"] * 7 + ["built"] * 2 + ["signed"] * 2 + ["published"]
