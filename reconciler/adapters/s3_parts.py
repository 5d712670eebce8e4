"""Puts one large file into a bucket, in parts: an upload that a kill cut off is gone on with. Called by `images_s3`.

- An upload under the file's key is continued where every part in it is this file's: in size, and in the SHA-256 that the
  store keeps of it, or else in its ETag (an MD5, where the bucket does not encrypt with KMS). So two that upload the same
  bytes work on one upload, and both find it done.
- One with a part of other bytes is somebody else's, who may be at work: it is left alone for a day, then aborted. Whoever
  completes first has the name (`If-None-Match: *`); with that all other uploads of the key are of no use, and are aborted.
- Each part is sent with its SHA-256, which the store compares; the whole is judged by the caller, who reads it back.
- A failure leaves the upload as it is, for the next try. A bucket's lifecycle rule `AbortIncompleteMultipartUpload` takes
  away what nobody comes back for.

Raises what boto3 raises, for the caller to translate, and TransientError where another ended the upload.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

from botocore.exceptions import ClientError

from reconciler.adapters.aws import code_of, status_of, translated
from reconciler.adapters.image_folders import Told
from reconciler.ports import PortError, TransientError

MOST_PARTS = 10_000
_WORKERS = 4
_STALE = timedelta(days=1)
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_ENDED = ("NoSuchUpload", "404")
_MIXED = ("InvalidPart", "InvalidPartOrder", "EntityTooSmall")


@dataclass(frozen=True, slots=True)
class PartedUpload:
    """One file on its way: `size` bytes of `source` to `key`. `where` and `purpose` are for messages, `told` for progress."""

    client: Any
    bucket: str
    key: str
    source: Path
    size: int
    least_part: int
    where: str
    purpose: str
    told: Told

    @property
    def part_size(self) -> int:
        """Bytes of each part but the last."""
        return max(self.least_part, -(-self.size // MOST_PARTS))

    def run(self) -> None:
        """Upload what is missing and complete it. Afterwards something is there under the key; what, is read back."""
        upload, had = self._begin()
        done, lock = sum(part["Size"] for part in had.values()), Lock()
        self.told(done)

        def put(number: int) -> dict[str, Any]:
            nonlocal done
            if number not in had:
                part = self._put(upload, number)
                with lock:
                    done += part["Size"]
                    self.told(done)
                return part
            return dict(had[number])

        numbers = range(1, -(-self.size // self.part_size) + 1)
        try:
            with ThreadPoolExecutor(_WORKERS, thread_name_prefix="upload") as pool:
                parts = list(pool.map(put, numbers))
            self._complete(upload, parts)
        except ClientError as error:
            code = code_of(error)
            if code in _MIXED:
                abort(self.client, self.bucket, self.key, upload)
            elif code not in (*_LOST, *_ENDED):
                raise
            # Somebody was first, or our own completion was carried out and its answer lost: reading back will tell.
            elif self._is_there():
                abort_all(self.client, self.bucket, self.key)
                return
            remedy = "look for a second reconciler on this bucket; it is tried again"
            raise TransientError(
                f"the upload of {self.where} was ended by another", needed_for=self.purpose, remedy=remedy
            ) from None
        abort_all(self.client, self.bucket, self.key)

    def _begin(self) -> tuple[str, Mapping[int, dict[str, Any]]]:
        """The upload to go on with, and its parts by number; a new one where there is none of these bytes."""
        found: tuple[str, Mapping[int, dict[str, Any]]] | None = None
        for upload in uploads(self.client, self.bucket, self.key):
            had = self._parts_of(upload["UploadId"]) if found is None else None
            if had is not None:
                found = upload["UploadId"], had
            elif datetime.now(UTC) - upload["Initiated"] > _STALE:
                abort(self.client, self.bucket, self.key, upload["UploadId"])
        if found is not None:
            return found
        made = self.client.create_multipart_upload(Bucket=self.bucket, Key=self.key, ChecksumAlgorithm="SHA256")
        return str(made["UploadId"]), {}

    def _parts_of(self, upload: str) -> dict[int, dict[str, Any]] | None:
        """The parts that an upload has by now, if each is this file's; None where one is not, or the upload is gone."""
        had: dict[int, dict[str, Any]] = {}
        try:
            pages = self.client.get_paginator("list_parts").paginate(Bucket=self.bucket, Key=self.key, UploadId=upload)
            for row in (row for page in pages for row in page.get("Parts", ())):
                data = self._read(row["PartNumber"])
                if len(data) != row["Size"] or not data or not _is_of(row, data):
                    return None
                had[row["PartNumber"]] = {
                    key: row[key] for key in ("PartNumber", "ETag", "Size", "ChecksumSHA256") if key in row
                }
        except ClientError as error:
            if code_of(error) in _ENDED:
                return None
            raise
        return had

    def _read(self, number: int) -> bytes:
        with self.source.open("rb") as file:
            file.seek((number - 1) * self.part_size)
            return file.read(self.part_size)

    def _put(self, upload: str, number: int) -> dict[str, Any]:
        data = self._read(number)
        sha256 = base64.b64encode(hashlib.sha256(data).digest()).decode()
        answer = self.client.upload_part(
            Bucket=self.bucket, Key=self.key, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=sha256
        )
        kept = {"ChecksumSHA256": sha256} if "ChecksumSHA256" in answer else {}
        return {"PartNumber": number, "ETag": answer["ETag"], "Size": len(data), **kept}

    def _complete(self, upload: str, parts: list[dict[str, Any]]) -> None:
        named = [{key: part[key] for key in part if key != "Size"} for part in parts]
        self.client.complete_multipart_upload(
            Bucket=self.bucket, Key=self.key, UploadId=upload, MultipartUpload={"Parts": named}, IfNoneMatch="*"
        )

    def _is_there(self) -> bool:
        try:
            self.client.head_object(Bucket=self.bucket, Key=self.key)
        except ClientError as error:
            if status_of(error) == 404:
                return False
            raise
        return True


def uploads(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """The uploads under a key, or below a prefix that ends with a slash, the oldest first."""
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    rows = [row for page in pages for row in page.get("Uploads", ())]
    for row in sorted(rows, key=lambda row: (row["Initiated"], row["UploadId"])):
        if row["Key"] == prefix or (prefix.endswith("/") and row["Key"].startswith(prefix)):
            yield row


def abort_all(client: Any, bucket: str, prefix: str) -> None:
    """Abort the uploads under a key, or below a prefix that ends with a slash. Best effort, as `abort`."""
    with suppress(PortError), translated("list uploads", needed_for="tidying up"):
        for row in uploads(client, bucket, prefix):
            abort(client, bucket, row["Key"], row["UploadId"])


def abort(client: Any, bucket: str, key: str, upload: str) -> None:
    """Abort one upload. Best effort: what stays behind costs storage until the lifecycle rule, and harms nothing."""
    with suppress(PortError), translated("abort an upload", needed_for="tidying up"):
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


def _is_of(row: Mapping[str, Any], data: bytes) -> bool:
    """Whether a part in the store has these bytes, by the best that the store tells of it."""
    if row.get("ChecksumSHA256"):
        return bool(row["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(data).digest()).decode())
    # Compared, not trusted: what was put together is read back and hashed whole.
    return bool(row["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest())
