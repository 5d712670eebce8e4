"""Where image stores keep their files in the contract suite: a directory, and a bucket on moto. A place can open its store
anew (a restart), and change files behind its back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from reconciler.adapters.aws import Aws
from reconciler.adapters.image_folders import FolderImageStore
from reconciler.adapters.images_dir import DirectoryImageStore
from reconciler.adapters.images_s3 import S3ImageStore

_bucket_numbers = itertools.count()


class Place(Protocol):
    """What the suite needs beyond the port."""

    def open(self, **options: Any) -> FolderImageStore: ...
    def tamper(self, path: str, data: bytes) -> None: ...
    def remove(self, path: str) -> None: ...
    def content(self, path: str) -> bytes: ...
    def paths(self) -> list[str]: ...


class DirectoryPlace:
    """A directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, **options: Any) -> DirectoryImageStore:
        return DirectoryImageStore(self.root, **options)

    def tamper(self, path: str, data: bytes) -> None:
        (self.root / path).parent.mkdir(exist_ok=True)
        (self.root / path).write_bytes(data)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def content(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def paths(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self._files() if not path.name.startswith("."))

    def _files(self) -> Iterator[Path]:
        return (path for path in self.root.rglob("*") if path.is_file())


class BucketPlace:
    """A fresh bucket, under a prefix, with a stranger's object beside it."""

    prefix = "releases/golden/"

    def __init__(self, aws: Aws) -> None:
        self.aws, self.client = aws, aws.client("s3")
        self.bucket = f"edge-images-{next(_bucket_numbers)}"
        self.client.create_bucket(Bucket=self.bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        self.client.put_object(Bucket=self.bucket, Key="releases/other", Body=b"not ours")

    def open(self, **options: Any) -> S3ImageStore:
        return self.open_at(self.aws, **options)

    def open_at(self, aws: Aws, **options: Any) -> S3ImageStore:
        return S3ImageStore.from_url(
            aws, f"s3://{self.bucket}/{self.prefix}", sleep=lambda _: None, part_size=5 << 20, **options
        )

    def tamper(self, path: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + path, Body=data)

    def remove(self, path: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + path)

    def content(self, path: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)["Body"].read()
        return data

    def paths(self) -> list[str]:
        answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix)
        return sorted(row["Key"].removeprefix(self.prefix) for row in answer.get("Contents", ()))
