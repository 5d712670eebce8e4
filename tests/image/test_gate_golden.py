"""The sysprep gate over the real golden image: no false alarm in a whole distribution, and still no fault is missed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from reconciler.image.gate import inspect
from tests.support import golden
from tests.support.gate_images import RSA_KEY, debugfs

pytestmark = pytest.mark.vm


def test_the_golden_image_passes_in_seconds() -> None:
    image, key = golden.image(), golden.key().fingerprint
    before = time.process_time()  # not the clock on the wall: the machine may have more to do
    assert inspect(image, allowed=[key]) == ()
    assert time.process_time() - before < 15


def test_what_is_planted_into_it_is_found(tmp_path: Path) -> None:
    copy, key = tmp_path / "image", tmp_path / "key"
    shutil.copyfile(golden.image(), copy)
    key.write_text(RSA_KEY)
    debugfs(
        copy,
        f"write {key} usr/share/doc/apt/planted.txt",
        f"write {key} etc/ssh/ssh_host_rsa_key",
        f"write {key} usr/lib/python3/dist-packages/planted.py",
    )
    found = {(fault.path, fault.rule) for fault in inspect(copy, allowed=[golden.key().fingerprint])}
    assert found == {
        ("/usr/share/doc/apt/planted.txt", "private-key"),
        ("/etc/ssh/ssh_host_rsa_key", "private-key"),
        ("/etc/ssh/ssh_host_rsa_key", "ssh-host-key"),
        ("/usr/lib/python3/dist-packages/planted.py", "private-key"),
    }
