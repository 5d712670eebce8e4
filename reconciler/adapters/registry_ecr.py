"""The container registry in Amazon ECR, over its own API (no docker login, no token).

A tag is moved by reading the manifest's exact bytes by digest (BatchGetImage) and putting the same bytes under the
tag (PutImage with the digest, so that ECR refuses other bytes), then reading the tag back. Multi-platform indexes
move as they are; the images they name are untouched. PutImage has no idempotency token and no compare-and-set:
repeating it is harmless (`ImageAlreadyExistsException` is success), and of two writers the last wins, which the
read-back and the next tick's `tags` show.

Limits: a repository with immutable tags refuses to move one (TerminalError with the remedy); BatchGetImage is limited
to about 2,000 requests a second, a retag takes two. Repositories, lifecycle rules and replication are made by others;
a lifecycle rule must spare what git names. Permissions: ecr:ListImages, ecr:BatchGetImage, ecr:PutImage on the
repositories.

Dependency: boto3. Called by the controller through `ports.Registry`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from reconciler.adapters.aws import Aws, code_of, translated
from reconciler.adapters.manifests import (
    MANIFEST_TYPES,
    check_digest,
    check_repository,
    check_tag,
    manifest_type,
    sha256_digest,
)
from reconciler.ports import TerminalError, TransientError

_READ_BACKS = 3
_REPOSITORY = "create the repository, or correct App.spec.repository"


class EcrRegistry:
    """`ports.Registry` of one account and region. `registry_id`: the account that holds it, if not the caller's own."""

    def __init__(
        self, aws: Aws, *, registry_id: str | None = None, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._client, self._sleep = aws.client("ecr"), sleep
        self._account = {"registryId": registry_id} if registry_id else {}

    def tags(self, repository: str) -> Mapping[str, str]:
        """Tag → digest. TerminalError: no such repository."""
        check_repository(repository)
        out: dict[str, str] = {}
        pages = self._client.get_paginator("list_images")
        with translated(f"list the tags of {repository}", needed_for="knowing the apps' tags", remedy=_REPOSITORY):
            for page in pages.paginate(
                repositoryName=repository,
                filter={"tagStatus": "TAGGED"},
                PaginationConfig={"PageSize": 1000},
                **self._account,
            ):
                out |= {row["imageTag"]: row["imageDigest"] for row in page["imageIds"] if "imageTag" in row}
        return out

    def exists(self, repository: str, digest: str) -> bool:
        """Whether the repository holds the manifest."""
        check_repository(repository)
        return self._image(repository, {"imageDigest": check_digest(digest)}) is not None

    def retag(self, repository: str, tag: str, digest: str) -> None:
        """Point `tag` at `digest` and read it back. TerminalError: not in the repository, or its tags are immutable."""
        check_repository(repository)
        check_tag(tag)
        purpose = f"pointing {repository}:{tag} at {check_digest(digest)}"
        image = self._image(repository, {"imageDigest": digest})
        if image is None:
            remedy = "push the app release first, or correct its digest in git"
            raise TerminalError(f"{repository} holds no manifest {digest}", needed_for=purpose, remedy=remedy)
        manifest: str = image["imageManifest"]
        if sha256_digest(manifest.encode()) != digest:
            remedy = "push the release again; ECR gave bytes that are not the digest's"
            raise TerminalError(f"the manifest of {digest} is not its bytes", needed_for=purpose, remedy=remedy)
        self._put(repository, tag, digest, manifest=manifest, purpose=purpose)
        self._read_back(repository, tag, digest, purpose)

    def _put(self, repository: str, tag: str, digest: str, *, manifest: str, purpose: str) -> None:
        # Needed only where the manifest does not name its own type, as an OCI one need not.
        media = manifest_type(manifest.encode())
        named = {"imageManifestMediaType": media} if media else {}
        with translated(f"move {repository}:{tag}", needed_for=purpose, remedy=_REPOSITORY):
            try:
                self._client.put_image(
                    repositoryName=repository,
                    imageManifest=manifest,
                    imageTag=tag,
                    imageDigest=digest,
                    **named,
                    **self._account,
                )
            except ClientError as error:
                if code_of(error) == "ImageTagAlreadyExistsException":
                    remedy = "make the repository's tags mutable, or exclude the waves' tags from immutability"
                    wrong = f"{repository} does not let the tag {tag} move"
                    raise TerminalError(wrong, needed_for=purpose, remedy=remedy) from None
                # The very tag on the very digest: an earlier attempt succeeded. The read-back has the last word.
                if code_of(error) != "ImageAlreadyExistsException":
                    raise

    def _read_back(self, repository: str, tag: str, digest: str, purpose: str) -> None:
        found = None
        for attempt in range(_READ_BACKS):
            image = self._image(repository, {"imageTag": tag})
            found = image["imageId"]["imageDigest"] if image else None
            if found == digest:
                return
            self._sleep(0.2 * 2**attempt)
        raise TransientError(
            f"{repository}:{tag} is {found or 'absent'} after it was set to {digest}",
            needed_for=purpose,
            remedy="look for another writer of this tag; it is tried again",
        )

    def _image(self, repository: str, image_id: dict[str, str]) -> dict[str, Any] | None:
        """BatchGetImage of one image, or None where the repository does not hold it."""
        what = next(iter(image_id.values()))
        with translated(f"read {what} of {repository}", needed_for=f"the apps of {repository}", remedy=_REPOSITORY):
            answer = self._client.batch_get_image(
                repositoryName=repository,
                imageIds=[image_id],
                acceptedMediaTypes=list(MANIFEST_TYPES),
                **self._account,
            )
        if images := answer.get("images"):
            return dict(images[0])
        codes = {failure.get("failureCode") for failure in answer.get("failures", ())}
        if codes <= {"ImageNotFound", "ImageTagDoesNotMatchDigest", "MissingDigestAndTag"}:
            return None
        raise TerminalError(
            f"{repository} cannot give {what}: {', '.join(sorted(map(str, codes)))}",
            needed_for=f"the apps of {repository}",
            remedy="look at the image in ECR; push the release again if it is damaged",
        )
