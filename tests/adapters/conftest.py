"""Stand-ins that are started once for all suites of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.adapters.aws import Aws, AwsSettings
from tests.support.aws import moto_server, use_test_credentials
from tests.support.postgres import Cluster, cluster


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """URL of moto in server mode. Tests use buckets, repositories and secrets of their own names."""
    with moto_server() as url:
        yield url


@pytest.fixture(scope="session", autouse=True)
def _credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_test_credentials(patch)
        yield


@pytest.fixture(scope="session")
def aws(moto: str) -> Iterator[Aws]:
    """Clients of moto, shared, since making one takes longer than most tests."""
    clients = aws_at(moto)
    yield clients
    clients.close()


def aws_at(url: str, read_timeout_s: float = 60, attempts: int = 3) -> Aws:
    """Clients of a server at `url`."""
    return Aws(AwsSettings(region="eu-central-1", endpoint_url=url, read_timeout_s=read_timeout_s, attempts=attempts))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server. Tests use databases of their own."""
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store may be: a file, and a database that is up to date."""
    if request.param == "sqlite":
        yield str(tmp_path / "store.db")
        return
    server: Cluster = request.getfixturevalue("postgres")
    url = server.store_url()
    yield url
    server.drop(url)
