"""The image store in an S3 bucket.

Rules and order of writes are `image_folders`'; this file is the bucket's half: one paginated listing, streams that go on
after a broken connection, create-only uploads, a compare-and-set of `index.json`, presigned addresses.

- A file of up to one part is one PutObject, a larger one a multipart upload (`s3_parts`: resumed after a kill, four parts
  at a time, each 16 MiB or more). Both carry `If-None-Match: *`, so nothing that exists is ever overwritten.
- What the store holds is known by reading it back, never by ETag (an ETag is an MD5 only for some objects). The ETag serves
  as an opaque version: `If-Match` when the index is written and when a broken download goes on.
- The index is last-writer-checked: a lost race (412, or 409 under load) is read and tried again, with backoff, eight times.
- Permissions: s3:ListBucket on the bucket (without it S3 answers 403 for what is absent), s3:GetObject, s3:PutObject,
  s3:AbortMultipartUpload, s3:ListMultipartUploadParts on the prefix, s3:ListBucketMultipartUploads on the bucket. Only
  `image prune` needs s3:DeleteObject. Versioning may be on.
- Presigned addresses live at most 7 days, and never longer than the credentials that signed them (hours, for a role).
- An S3-compatible store must honour both conditional headers; without them (older MinIO, Ceph before Squid) two writers
  can overwrite each other's index.

Dependency: boto3. Region, endpoint and time-outs are `aws.AwsSettings`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from reconciler.adapters.aws import Aws, code_of, translated
from reconciler.adapters.durable import CHUNK, os_errors
from reconciler.adapters.image_folders import FolderImageStore, Told, utc_now
from reconciler.adapters.image_index import INDEX, SMALL, Index, Listing, Stored
from reconciler.adapters.s3_parts import PartedUpload, abort_all
from reconciler.ports import TerminalError, TransientError

_URL = re.compile(r"^s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[A-Za-z0-9._/-]*))?$")
_RACES = 8
_RESUMES = 3
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_ABSENT = ("NoSuchKey", "404")


class S3ImageStore(FolderImageStore):
    """`ports.ImageStore` in `bucket` under `prefix`. The bucket is made by others.

    `part_size`: bytes of an upload's part, more where a file would have more than 10,000 of them. AWS takes 5 MiB at least.
    `sleep` is replaced in tests.
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

    def _create(self, folder: str, name: str, source: Path, told: Told) -> None:
        where, purpose = self._where(folder, name), f"staging {folder}"
        key = self._key(folder, name)
        with os_errors(f"read {source}", needed_for=purpose), translated(f"write {where}", needed_for=purpose):
            size = source.stat().st_size
            if size > self._part_size:
                PartedUpload(self._client, self._bucket, key, source, size, self._part_size, where, purpose, told).run()
                return
            with source.open("rb") as body:
                try:
                    self._client.put_object(
                        Bucket=self._bucket, Key=key, Body=body, ContentLength=size, IfNoneMatch="*"
                    )
                except ClientError as error:
                    # Somebody was first; the caller reads back what is there.
                    if code_of(error) not in _LOST:
                        raise

    def _delete(self, folder: str, name: str) -> None:
        where, purpose = self._where(folder, name), f"removing {folder}"
        with translated(f"remove {where}", needed_for=purpose, remedy="see that no Object Lock holds it"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(folder, name))

    def _delete_folder(self, folder: str) -> None:
        where = self._where(folder, "")
        with translated(f"end the uploads below {where}", needed_for=f"removing {folder}"):
            abort_all(self._client, self._bucket, self._key(folder, ""))

    # ------------------------------------------------ names

    def _key(self, folder: str, name: str) -> str:
        return f"{self._prefix}{folder}/{name}"

    def _where(self, folder: str, name: str = "") -> str:
        path = "/".join(part for part in (folder, name) if part)
        return f"s3://{self._bucket}/{self._prefix}{path}"
