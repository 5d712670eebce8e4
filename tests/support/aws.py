"""moto in server mode, in this process on a free port, and a fault proxy before it.

What moto proves and what it does not: docs/explanation/aws.md. Its ECR gives digests that are not the manifests' hashes, so the one
method that makes them is replaced by the true rule; everything about digests is proven on a real registry besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def moto_server(watched: Callable[[Any], Any] | None = None) -> Iterator[str]:
    """The URL of a fresh moto server. `watched` puts something before its WSGI application."""
    from moto.ecr import models
    from moto.server import ThreadedMotoServer

    def true_digest(self: models.Image) -> str:
        return "sha256:" + hashlib.sha256(self.image_manifest.encode()).hexdigest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.Image, "get_image_digest", true_digest)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        if watched is not None:
            assert server._server is not None
            server._server.app = watched(server._server.app)
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()


def use_test_credentials(patch: pytest.MonkeyPatch) -> None:
    """Credentials that no AWS account knows, and no trace of the developer's own."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test-key-of-no-account")
    patch.setenv("AWS_CONFIG_FILE", "/dev/null")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
