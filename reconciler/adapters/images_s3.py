"""The image store in an S3 bucket.

Rules and order of writes are `image_folders`'; this file is the bucket's half: one paginated listing, streams that go
on after a broken connection, create-only uploads, a compare-and-set of `index.json`, presigned addresses.

- A file of up to one part is one PutObject, a larger one a multipart upload (four parts at a time, each 16 MiB or
more). Both carry
  `If-None-Match: *`, so nothing that exists is ever overwritten. Interrupted uploads of the same key are aborted
  before a new one starts; a lifecycle rule `AbortIncompleteMultipartUpload` on the bucket catches the rest.
- What the store holds is known by reading it back, never by ETag (an ETag is an MD5 only for some objects). The ETag
  serves as an opaque version: `If-Match` when the index is written and when a broken download goes on.
- The index is last-writer-checked: a lost race (412, or 409 under load) is read and tried again, with backoff, eight
times.
- Permissions: s3:ListBucket on the bucket (without it S3 answers 403 for what is absent), s3:GetObject, s3:PutObject,
  s3:AbortMultipartUpload, s3:ListBucketMultipartUploads on the prefix. No delete: versioning and Object Lock may be on.
- Presigned addresses live at most 7 days, and never longer than the credentials that signed them (hours, for a role).
- An S3-compatible store must honour both conditional headers; without them (older MinIO, Ceph before Squid) two
writers can
  overwrite each other's index.

Dependency: boto3. Region, endpoint and time-outs are `aws.AwsSettings`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from reconciler.adapters.aws import Aws, code_of, status_of, translated
from reconciler.adapters.durable import CHUNK, os_errors
from reconciler.adapters.image_folders import FolderImageStore, utc_now
from reconciler.adapters.image_index import INDEX, SMALL, Index, Listing, Stored
from reconciler.ports import PortError, TerminalError, TransientError

_URL = re.compile(r"^s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[A-Za-z0-9._/-]*))?$")
_MOST_PARTS = 10_000
_WORKERS = 4
_RACES = 8
_RESUMES = 3
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_ABSENT = ("NoSuchKey", "404")


class S3ImageStore(FolderImageStore):
    """`ports.ImageStore` in `bucket` under `prefix`. The bucket is made by others.

    `part_size`: bytes of an upload's part, at least 5 MiB on AWS. `sleep` is replaced in tests.
    """

    def __init__(
        self,
        aws: Aws,
        bucket: str,
        prefix: str = "",
        *,
        family: str | None = None,
        now: Callable[[], datetime] = utc_now,
        part_size: int = 16 << 20,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(family=family, now=now)
        self._client = aws.client("s3")
        self._bucket, self._prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._part_size, self._sleep = part_size, sleep

    @classmethod
    def from_url(cls, aws: Aws, url: str, **options: Any) -> S3ImageStore:
        """From `Fleet.spec.images`, as `s3://bucket/prefix/`. TerminalError: not such an address."""
        match = _URL.match(url)
        if match is None or ".." in url:
            remedy = "write s3://BUCKET/ or s3://BUCKET/PREFIX/"
            raise TerminalError(f"{url!r} is not an S3 address", needed_for="the image store", remedy=remedy)
        return cls(aws, match["bucket"], match["prefix"] or "", **options)

    # ------------------------------------------------ reading

    def _listing(self) -> Listing:
        out: dict[str, dict[str, Stored]] = {}
        pages = self._client.get_paginator("list_objects_v2")
        remedy = "check that the bucket exists in this region"
        purpose = "knowing what the image store holds"
        with translated(f"list {self._where('')}", needed_for=purpose, remedy=remedy):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for row in page.get("Contents", ()):
                    folder, slash, name = row["Key"][len(self._prefix) :].partition("/")
                    if slash and name and "/" not in name:
                        out.setdefault(folder, {})[name] = Stored(row["Size"], row["ETag"])
        return out

    def _stream(self, folder: str, name: str) -> Iterator[bytes]:
        where, purpose = self._where(folder, name), f"reading {name} of {folder}"
        offset, etag, resumes = 0, "", 0
        while True:
            before, answered = offset, False
            try:
                with translated(f"read {where}", needed_for=purpose):
                    answer = self._get(folder, name, offset, etag)
                    etag, answered = answer["ETag"], True
                    with closing(answer["Body"]) as body:
                        for chunk in body.iter_chunks(CHUNK):
                            offset += len(chunk)
                            yield chunk
                return
            except TransientError:
                resumes = resumes + 1 if offset == before else 0
                # botocore has retried the request itself; only a transfer that broke off half-way is gone on with here.
                if not answered or resumes >= _RESUMES:
                    raise
                self._sleep(0.2 * 2**resumes)

    def _get(self, folder: str, name: str, offset: int, etag: str) -> Any:
        where, purpose = self._where(folder, name), f"reading {name} of {folder}"
        rest = {"Range": f"bytes={offset}-", "IfMatch": etag} if offset else {}
        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._key(folder, name), **rest)
        except ClientError as error:
            if code_of(error) in _ABSENT:
                remedy = "put it back, or ask for a file that is there"
                raise TerminalError(f"{where} is absent", needed_for=purpose, remedy=remedy) from None
            if code_of(error) in _LOST:
                raise TransientError(f"{where} was replaced while it was read", needed_for=purpose) from None
            raise

    def _index(self) -> Index:
        return self._index_at()[0]

    def _index_at(self) -> tuple[Index, str | None]:
        """The index and its ETag, None where there is none yet."""
        where = self._where("", INDEX)
        with translated(f"read {where}", needed_for="knowing which releases are published"):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + INDEX)
            except ClientError as error:
                if code_of(error) in _ABSENT:
                    return Index(), None
                raise
            with closing(answer["Body"]) as body:
                data = body.read(32 * SMALL)
        return Index.from_bytes(data, where=where), answer["ETag"]

    def _address(self, folder: str, name: str, expires_s: int) -> str:
        where = self._where(folder, name)
        with translated(f"sign an address of {where}", needed_for="a device's download"):
            return str(
                self._client.generate_presigned_url(
                    "get_object",
                    Params={"Bucket": self._bucket, "Key": self._key(folder, name)},
                    ExpiresIn=expires_s,
                )
            )

    # ------------------------------------------------ writing

    def _update_index(self, change: Callable[[Index], Index]) -> None:
        where, purpose = self._where("", INDEX), "updating the index of images"
        for race in range(_RACES):
            before, etag = self._index_at()
            after = change(before)
            if after == before:
                return
            condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
            with translated(f"write {where}", needed_for=purpose):
                try:
                    self._client.put_object(
                        Bucket=self._bucket,
                        Key=self._prefix + INDEX,
                        Body=after.to_bytes(),
                        ContentType="application/json",
                        CacheControl="no-cache",
                        **condition,
                    )
                    return
                except ClientError as error:
                    # 404: the index was there when it was read, and is gone now.
                    if code_of(error) not in (*_LOST, *_ABSENT):
                        raise
            # Our own write whose answer was lost ends here too: the next reading finds it done, and nothing changes.
            self._sleep(random.uniform(0.01, 0.05 * 2**race))  # noqa: S311 - jitter, not a secret
        raise TransientError(
            f"{where} was changed by others {_RACES} times while it was being updated",
            needed_for=purpose,
            remedy="look for a second reconciler on this bucket; it is tried again",
            retry_after_s=10,
        )

    def _replace(self, folder: str, name: str, data: bytes) -> None:
        with translated(f"write {self._where(folder, name)}", needed_for=f"writing {name} of {folder}"):
            self._client.put_object(Bucket=self._bucket, Key=self._key(folder, name), Body=data)

    def _create(self, folder: str, name: str, source: Path) -> None:
        where, purpose = self._where(folder, name), f"staging {folder}"
        with os_errors(f"read {source}", needed_for=purpose), translated(f"write {where}", needed_for=purpose):
            size = source.stat().st_size
            if size > self._part_size:
                self._upload_parts(self._key(folder, name), source, size, where, purpose)
                return
            with source.open("rb") as body, _already_there():
                self._client.put_object(
                    Bucket=self._bucket, Key=self._key(folder, name), Body=body, ContentLength=size, IfNoneMatch="*"
                )

    def _upload_parts(self, key: str, source: Path, size: int, where: str, purpose: str) -> None:
        self._abort_leftovers(key)
        part_size = max(self._part_size, -(-size // _MOST_PARTS))
        upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]
        of = {"Bucket": self._bucket, "Key": key, "UploadId": upload}

        def put(number: int) -> dict[str, Any]:
            with source.open("rb") as file:
                file.seek((number - 1) * part_size)
                answer = self._client.upload_part(**of, PartNumber=number, Body=file.read(part_size))
            sums = {name: answer[name] for name in answer if name.startswith("Checksum") and name != "ChecksumType"}
            return {"PartNumber": number, "ETag": answer["ETag"], **sums}

        try:
            with ThreadPoolExecutor(_WORKERS, thread_name_prefix="upload") as pool:
                parts = list(pool.map(put, range(1, -(-size // part_size) + 1)))
            with _already_there():
                self._client.complete_multipart_upload(**of, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
                return
            # Somebody was first, or our own completion was carried out and its answer lost: reading back will tell.
            if not self._is_there(key):
                remedy = "look for a second reconciler on this bucket; it is tried again"
                raise TransientError(f"the upload of {where} was aborted", needed_for=purpose, remedy=remedy)
            self._abort(of)
        except BaseException:
            self._abort(of)
            raise

    def _abort_leftovers(self, key: str) -> None:
        for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=key):
            for upload in page.get("Uploads", ()):
                if upload["Key"] == key:
                    self._abort({"Bucket": self._bucket, "Key": key, "UploadId": upload["UploadId"]})

    def _abort(self, upload: dict[str, str]) -> None:
        # Best effort: what stays behind costs storage until the lifecycle rule, and harms nothing.
        with suppress(PortError), translated("abort an upload", needed_for="tidying up"):
            self._client.abort_multipart_upload(**upload)

    def _is_there(self, key: str) -> bool:
        try:
            self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if status_of(error) == 404:
                return False
            raise
        return True

    # ------------------------------------------------ names

    def _key(self, folder: str, name: str) -> str:
        return f"{self._prefix}{folder}/{name}"

    def _where(self, folder: str, name: str = "") -> str:
        path = "/".join(part for part in (folder, name) if part)
        return f"s3://{self._bucket}/{self._prefix}{path}"


class _already_there:
    """Passes over a create-only write that lost to one before it; the caller reads back what is there."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, ClientError) and code_of(error) in (*_LOST, "NoSuchUpload")
