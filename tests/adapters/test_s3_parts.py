"""A large file into a bucket: gone on with after a kill at any call, shared by two who upload it, never mixed with other bytes."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from moto.s3 import models

from reconciler.adapters import s3_parts
from reconciler.adapters.aws import Aws
from reconciler.adapters.images_s3 import S3ImageStore
from reconciler.ports import TerminalError, TransientError
from tests.adapters.artifacts import FOLDER, IMAGE, SIGNATURE, pack
from tests.adapters.conftest import aws_at
from tests.adapters.image_places import BucketPlace
from tests.support.faults import FaultProxy

# Many uploads of several mebibytes: for the whole suite, not for the inner loop.
pytestmark = pytest.mark.slow

PART = 5 << 20
BIG = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range((11 << 20) // 32))  # three parts, none like another
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"


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


def key(bucket: BucketPlace) -> str:
    return f"{bucket.prefix}{FOLDER}/{IMAGE}"


def uploads(bucket: BucketPlace) -> list[dict[str, Any]]:
    return list(bucket.client.list_multipart_uploads(Bucket=bucket.bucket).get("Uploads", ()))


def begun(bucket: BucketPlace, *parts: bytes) -> str:
    """An upload of the image's key that somebody else began, and did not end."""
    of = {"Bucket": bucket.bucket, "Key": key(bucket)}
    upload: str = bucket.client.create_multipart_upload(**of)["UploadId"]
    for number, data in enumerate(parts, 1):
        bucket.client.upload_part(**of, UploadId=upload, PartNumber=number, Body=data)
    return upload


def parts_sent(proxy: FaultProxy) -> int:
    return sum(method == "PUT" and "partNumber" in path for method, path in proxy.seen)


def whole(bucket: BucketPlace) -> bool:
    return bucket.content(f"{FOLDER}/{IMAGE}") == BIG and uploads(bucket) == []


def test_an_upload_that_a_kill_cut_off_is_gone_on_with(
    bucket: BucketPlace, proxy: FaultProxy, far: Aws, tmp_path: Path
) -> None:
    begun(bucket, BIG[:PART], BIG[PART : 2 * PART])
    told: list[tuple[str, int, int]] = []
    files = pack(tmp_path / "built", image=BIG)
    bucket.open_at(far).stage("v1.4.2", FOLDER, files, lambda *what: told.append(what))
    assert parts_sent(proxy) == 1 and whole(bucket)
    assert [done for name, done, size in told if name == IMAGE and size == len(BIG)] == [2 * PART, len(BIG), len(BIG)]


@pytest.mark.parametrize(
    "parts", [(BIG[:PART][::-1],), (BIG[: PART - 1],), (BIG[:PART], BIG[PART : 2 * PART], BIG[2 * PART :], b"more")]
)
def test_an_upload_of_other_bytes_is_neither_continued_nor_in_the_way(
    bucket: BucketPlace, proxy: FaultProxy, far: Aws, tmp_path: Path, parts: tuple[bytes, ...]
) -> None:
    begun(bucket, *parts)
    bucket.open_at(far).stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=BIG))
    # Once the name is taken, what else was begun under it is of no use.
    assert parts_sent(proxy) == 3 and whole(bucket)


def test_a_strangers_upload_is_left_alone_while_it_is_young(
    bucket: BucketPlace, far: Aws, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may be at work on it: it is not ended before this one is complete, unless it is a day old."""
    stranger = begun(bucket, BIG[:PART][::-1])
    # moto dates every upload into the year 2010.
    monkeypatch.setattr(s3_parts, "_STALE", timedelta(days=36500))
    proxy.next("answer", "PUT", "partNumber=3", times=9, status=503, body=SLOW_DOWN)
    files = pack(tmp_path / "built", image=BIG)
    with pytest.raises(TransientError):
        bucket.open_at(far).stage("v1.4.2", FOLDER, files)
    assert stranger in [each["UploadId"] for each in uploads(bucket)] and len(uploads(bucket)) == 2

    monkeypatch.undo()
    with pytest.raises(TransientError):
        bucket.open_at(far).stage("v1.4.2", FOLDER, files)
    assert stranger not in [each["UploadId"] for each in uploads(bucket)] and len(uploads(bucket)) == 1


@pytest.mark.parametrize("down", ["refused", "500", "slow-down"])
def test_a_store_that_goes_down_during_an_upload_is_transient_and_the_next_try_sends_the_rest(
    bucket: BucketPlace, proxy: FaultProxy, far: Aws, tmp_path: Path, down: str
) -> None:
    files = pack(tmp_path / "built", image=BIG)
    store = bucket.open_at(far)
    if down == "refused":
        proxy.next("lost", "PUT", "partNumber=3", times=9)
    else:
        body = SLOW_DOWN if down == "slow-down" else b"<Error><Code>InternalError</Code></Error>"
        proxy.next("answer", "PUT", "partNumber=3", times=9, status=503 if down == "slow-down" else 500, body=body)
    with pytest.raises(TransientError) as caught:
        store.stage("v1.4.2", FOLDER, files)
    assert IMAGE in str(caught.value) and "staging" in str(caught.value)
    assert bucket.open().artifacts() == {} and not any(IMAGE in path for path in bucket.paths())
    left, sent = proxy.left, parts_sent(proxy)
    assert left < 9, "the fault was met"
    with proxy._lock:
        proxy._faults.clear()
    bucket.open_at(far).stage("v1.4.2", FOLDER, files)
    # Parts one and two are there from the first try, and so is the third where only its answer was lost.
    assert parts_sent(proxy) - sent == (0 if down == "refused" else 1) and whole(bucket)


def test_a_store_that_refuses_every_connection_is_transient(bucket: BucketPlace, tmp_path: Path) -> None:
    closed = aws_at("http://127.0.0.1:1", attempts=1)
    try:
        with pytest.raises(TransientError, match="did not answer"):
            bucket.open_at(closed).stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=BIG))
    finally:
        closed.close()


def test_every_part_carries_its_sha256(
    bucket: BucketPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws: Aws
) -> None:
    store, sent = bucket.open(), {}
    client = store._client
    plain = client.upload_part

    def watched(**named: Any) -> Any:
        sent[named["PartNumber"]] = named["ChecksumSHA256"], bytes(named["Body"])
        return plain(**named)

    monkeypatch.setattr(client, "upload_part", watched)
    store.stage("v1.4.2", FOLDER, pack(tmp_path / "built", image=BIG))
    assert b"".join(sent[number][1] for number in sorted(sent)) == BIG
    assert all(base64.b64decode(said) == hashlib.sha256(data).digest() for said, data in sent.values())


def test_a_part_is_known_by_its_sha256_where_the_store_keeps_it_and_else_by_its_md5() -> None:
    data = b"a part"
    sha256 = base64.b64encode(hashlib.sha256(data).digest()).decode()
    md5 = f'"{hashlib.md5(data).hexdigest()}"'
    assert s3_parts._is_of({"ETag": '"of a bucket with KMS"', "ChecksumSHA256": sha256}, data)
    assert not s3_parts._is_of({"ETag": md5, "ChecksumSHA256": sha256}, b"other")
    assert s3_parts._is_of({"ETag": md5}, data)
    assert not s3_parts._is_of({"ETag": '"of a bucket with KMS"'}, data)


def test_two_publishers_of_one_artifact_both_find_it_published(bucket: BucketPlace, moto: str, tmp_path: Path) -> None:
    files, errors = pack(tmp_path / "built", image=BIG), []
    start = threading.Barrier(2)

    def publish() -> None:
        clients = aws_at(moto)
        try:
            store = bucket.open_at(clients)
            start.wait(60)
            # As the loop does: what another's work ended for now is tried again.
            for attempt in range(4):
                try:
                    store.stage("v1.4.2", FOLDER, files)
                    break
                except TransientError:
                    assert attempt < 3
            store.attach_signature("v1.4.2", SIGNATURE)
            store.publish("v1.4.2")
        except BaseException as error:
            errors.append(error)
        finally:
            clients.close()

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)
    assert errors == [] and whole(bucket)
    assert bucket.open().artifacts()["v1.4.2"].state == "published"


def test_of_two_publishers_of_other_bytes_one_has_the_name_and_the_other_is_refused(
    bucket: BucketPlace, tmp_path: Path
) -> None:
    ours = pack(tmp_path / "ours", image=BIG)
    theirs = pack(tmp_path / "theirs", image=BIG[::-1])
    bucket.open().stage("v1.4.2", FOLDER, ours)
    with pytest.raises(TerminalError, match="holds other bytes"):
        bucket.open().stage("v1.4.2", FOLDER, theirs)
    assert whole(bucket)
    # Faster by one call: theirs was begun before ours had the name.
    bucket.remove(f"{FOLDER}/{IMAGE}")
    bucket.remove(f"{FOLDER}/SHA256SUMS")
    store = bucket.open()
    plain = store._client.complete_multipart_upload

    def late(**named: Any) -> Any:
        bucket.tamper(f"{FOLDER}/{IMAGE}", BIG[::-1])
        return plain(**named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._client, "complete_multipart_upload", late)
        with pytest.raises(TerminalError, match="holds other bytes"):
            store.stage("v1.4.2", FOLDER, ours)
    assert bucket.content(f"{FOLDER}/{IMAGE}") == BIG[::-1] and uploads(bucket) == []


# ---------------------------------------------------------------- killed between any two calls


class Killed(BaseException):
    """Power off."""


class Deadly:
    """A client whose power goes off before or after its call of a given number, and stays off."""

    def __init__(self, client: Any, number: int, after: bool) -> None:
        self._client, self._left, self._after, self._lock = client, number, after, threading.Lock()
        self.off = False

    def _step(self) -> bool:
        with self._lock:
            if self.off:
                raise Killed
            self._left -= 1
            self.off = self._left < 0
        if self.off and not self._after:
            raise Killed
        return self.off

    def __getattr__(self, name: str) -> Any:
        plain = getattr(self._client, name)
        if name in ("meta", "generate_presigned_url"):
            return plain

        def call(*arguments: Any, **named: Any) -> Any:
            last = False if name == "get_paginator" else self._step()
            result = plain(*arguments, **named)
            if last:
                raise Killed
            return Pages(self, result) if name == "get_paginator" else result

        return call


class Pages:
    def __init__(self, deadly: Deadly, paginator: Any) -> None:
        self._deadly, self._paginator = deadly, paginator

    def paginate(self, **named: Any) -> Any:
        self._deadly._step()
        return self._paginator.paginate(**named)


def run(store: S3ImageStore, files: list[Path]) -> None:
    store.stage("v1.4.2", FOLDER, files)
    store.attach_signature("v1.4.2", SIGNATURE)
    store.publish("v1.4.2")


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_call_nothing_half_is_shown_and_the_next_run_completes(
    aws: Aws, tmp_path: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small parts, since many: the store that stands in for S3 runs in this process.
    monkeypatch.setattr(models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    image = BIG[:40_000]
    files = pack(tmp_path / "built", image=image)
    names = {path.name for path in files}

    def opened() -> S3ImageStore:
        store = bucket.open()
        store._part_size = 16_384
        return store

    for number in range(80):
        bucket = BucketPlace(aws)
        store = opened()
        deadly = Deadly(store._client, number, after)
        store._client = deadly
        with suppress(Killed):
            run(store, files)
        artifact = bucket.open().artifacts().get("v1.4.2")
        there = {path.rpartition("/")[2] for path in bucket.paths()}
        if artifact is not None:
            assert names <= there and bucket.content(f"{FOLDER}/{IMAGE}") == image
            assert artifact.state == (
                "published" if "index.json" in there else "signed" if "SHA256SUMS.gpg" in there else "built"
            )
        run(opened(), files)
        assert bucket.open().artifacts()["v1.4.2"].state == "published"
        assert bucket.content(f"{FOLDER}/{IMAGE}") == image and uploads(bucket) == []
        if not deadly.off:
            break
    assert 20 < number < 79
