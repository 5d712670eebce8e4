"""PostgreSQL for tests: one cluster a test session, in a folder of its own, reached by a socket alone; a database for each test.

What a commit promises is not kept over a power cut here (fsync is off): it is the SQL that is tested. Debian's package
`postgresql`; skipped visibly where it is missing, failed in CI.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

_NOBODY = 65534
_NUMBERS = itertools.count(1)


class Cluster:
    """A running cluster. Addresses of databases are as the settings have them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready: str | None = None

    def run(self, sql: str) -> None:
        """A statement, outside of any transaction."""
        import psycopg2  # type: ignore[import-untyped]

        connection = psycopg2.connect(host=str(self._folder), user="tests", dbname="postgres")
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
        finally:
            connection.close()

    def url(self, like: str | None = None) -> str:
        """An empty database, or a copy of the one at an address."""
        name = f"store{next(_NUMBERS)}"
        # Copying files would wait for a checkpoint.
        self.run(f"CREATE DATABASE {name} TEMPLATE {_name(like) if like else 'template1'} STRATEGY wal_log")
        return f"postgresql+psycopg2://tests@/{name}?host={self._folder}"

    def store_url(self) -> str:
        """A store that is up to date: the migrations run once for all of them."""
        if self._ready is None:
            from reconciler.adapters.sql import open_store

            self._ready = self.url()
            open_store(self._ready).close()
        return self.url(like=self._ready)

    def drop(self, url: str) -> None:
        """The database of an address, and whoever is connected to it."""
        self.run(f"DROP DATABASE IF EXISTS {_name(url)} WITH (FORCE)")


def _name(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def _missing(message: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def _programs() -> Path:
    """The folder of the newest version's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        _missing("needs postgres: apt-get install postgresql")
    return found[-1].parent


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run one, as nobody where the tests run as root, which it refuses."""
    programs = _programs()
    # A socket's path may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    as_root = os.geteuid() == 0
    who: dict[str, Any] = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if as_root else {}
    if as_root:
        os.chown(folder, _NOBODY, _NOBODY)
    data, log = folder / "data", folder / "log"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
    try:
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
            check=True, capture_output=True, env=environment, cwd=folder, **who,
        )  # fmt: skip
        options = (
            f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c synchronous_commit=off"
            " -c full_page_writes=off -c max_connections=200 -c autovacuum=off"
        )
        # Of another process group, so that an interrupt of the tests leaves it to what stops it below.
        subprocess.run(
            [programs / "pg_ctl", "-D", data, "-l", log, "-w", "-t", "60", "-o", options, "start"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd=folder,
            start_new_session=True, **who,
        )  # fmt: skip
        try:
            yield Cluster(folder)
        finally:
            subprocess.run(
                [programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"],
                check=True, capture_output=True, env=environment, cwd=folder, **who,
            )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
