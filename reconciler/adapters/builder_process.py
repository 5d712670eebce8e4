"""Asks another process to build a release: a `ports.Builder` whose recipes run where no key and no credential is in reach.

The command (as `reconciler builder`, or the same through sudo as another user) gets on its standard input one line of
JSON and then the recipe's files as a tar, nothing else: no environment of ours, no folder that both must read. Standard
input stays open while it builds; its end tells the builder that nobody waits any more, so a killed controller takes its
build with it. It answers with one line of JSON on standard output: where the artifact lies, in a folder that this user
can read. Lines `progress: STAGE SECONDS` on standard error are progress, the last other line is the error. Exit codes
as everywhere: 1 the recipe or a check failed, 3 try again; killed by a signal: try again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from reconciler.model.desired import ImageSpec
from reconciler.model.scalars import format_instant
from reconciler.ports import Built, TerminalError, TransientError
from reconciler.protocol.canonical import Malformed
from reconciler.protocol.manifest import NAME, Manifest

PROGRESS = re.compile(r"progress: ([a-z][a-z-]{0,30}) (\d{1,9}(?:\.\d{1,3})?)")
ANSWER_LIMIT = 64 * 1024
RECIPE_LIMIT = 64 << 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SAID = 600
_GRACE_S = 15.0
_HEAR_S = 60.0


@dataclass(slots=True)
class _Heard:
    """What the builder has said so far. `last` is its last line that is no progress."""

    out: bytearray = field(default_factory=bytearray)
    last: str = ""
    stage: str = ""


class ProcessBuilder:
    """Runs `command` for every build. `options` are handed on as they are (type, mirrors, timeout of a script).

    `committed_at` gives a commit's date, which dates the artifact. `timeout_s` bounds the whole build. `progress` hears
    stage and seconds since the build began, from another thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        committed_at: Callable[[str], datetime],
        options: Mapping[str, Any],
        timeout_s: float,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self._command, self._options = list(command), dict(options)
        self._committed_at, self._timeout_s, self._progress = committed_at, timeout_s, progress

    def build(self, release: str, spec: ImageSpec, recipe: Path, commit: str) -> Built:
        """Build, check and pack (port). TransientError too: the builder was killed, or has no room or no mirror now."""
        purpose = f"building {release}"
        packed = pack_recipe(recipe, purpose)
        request = {
            "release": release,
            "spec": spec.model_dump(mode="json", by_alias=True),
            "commit": commit,
            "committedAt": format_instant(self._committed_at(commit)),
            "recipeBytes": len(packed),
            "builder": self._options,
        }
        data = json.dumps(request).encode("ascii") + b"\n" + packed
        try:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env={"PATH": _PATH, "LANG": "C.UTF-8"},
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise TerminalError(
                f"the builder {self._command[0]!r} cannot be run ({error.strerror})",
                needed_for=purpose,
                remedy="correct builder.command in the settings",
            ) from None
        heard, late = self._listen(child, data)
        if late:
            raise TransientError(
                f"the build did not end within {self._timeout_s:g} s (stage {heard.stage or 'none'})",
                needed_for=purpose,
                remedy="it is tried again; raise builder.timeout in the settings if it needs longer",
            )
        if child.returncode != 0:
            raise _failure(child.returncode, heard, purpose)
        return _built(bytes(heard.out), release, purpose)

    def _listen(self, child: subprocess.Popen[bytes], data: bytes) -> tuple[_Heard, bool]:
        """Send the request and hear the builder out; whether its time was up."""
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        heard, late, out = _Heard(), False, child.stdout.fileno()
        write = threading.Thread(target=_write, args=(child.stdin, data), name="builder-input", daemon=True)
        hear = threading.Thread(target=self._hear, args=(child.stderr, heard), name="builder-progress", daemon=True)
        poll = select.poll()
        poll.register(out, select.POLLIN | select.POLLHUP)
        deadline = time.monotonic() + self._timeout_s
        try:
            write.start()
            hear.start()
            while not (late and time.monotonic() >= deadline):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    # What runs as another user, whom we may not kill, ends by itself at the end of its input.
                    late, deadline = True, time.monotonic() + _GRACE_S
                    child.stdin.close()
                    continue
                if poll.poll(left_s * 1000):
                    chunk = os.read(out, 4096)
                    if not chunk:
                        break
                    heard.out += chunk if len(heard.out) <= ANSWER_LIMIT else b""
            if not late:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_GRACE_S)
            # Its last words are in the pipe, and say whether to try again: they are waited for, on a machine with much to do
            # too. What it left running would hold the pipe open.
            _kill(child)
            hear.join(_HEAR_S)
        finally:
            _kill(child)
            for stream in (child.stdin, child.stdout, child.stderr):
                with contextlib.suppress(OSError):
                    stream.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
        return heard, late

    def _hear(self, lines: IO[bytes], heard: _Heard) -> None:
        """Read standard error to its end: progress is told, the last other line is kept."""
        with contextlib.suppress(OSError, ValueError):
            while line := lines.readline(8192):
                text = "".join(letter if letter.isprintable() else " " for letter in line.decode("utf-8", "replace"))
                found = PROGRESS.fullmatch(text.strip())
                if found is None:
                    heard.last = text.strip()[:_SAID] or heard.last
                    continue
                heard.stage = found[1]
                if self._progress is not None:
                    self._progress(found[1], float(found[2]))


def _write(to: IO[bytes], data: bytes) -> None:
    """Send everything, and leave the pipe open. A builder that has ended early says why by its exit code."""
    with contextlib.suppress(OSError, ValueError):
        rest = memoryview(data)
        while rest:
            rest = rest[to.write(rest) :]


def pack_recipe(recipe: Path, purpose: str) -> bytes:
    """A recipe's folder as a tar with plain modes. TerminalError: anything in it but files and folders, or too much."""
    into, total = io.BytesIO(), 0
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(recipe.rglob("*")):
            entry = tarfile.TarInfo(path.relative_to(recipe).as_posix())
            if path.is_dir() and not path.is_symlink():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
                continue
            if path.is_symlink() or not path.is_file():
                raise TerminalError(
                    f"recipe file {entry.name} is not a regular file",
                    needed_for=purpose,
                    remedy="make links in setup.sh",
                )
            entry.size = path.stat().st_size
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            total += entry.size
            if total > RECIPE_LIMIT:
                raise TerminalError(
                    f"the recipe has more than {RECIPE_LIMIT >> 20} MiB",
                    needed_for=purpose,
                    remedy="keep large files out of the fleet repo; install them as packages",
                )
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return into.getvalue()


def _failure(status: int, heard: _Heard, purpose: str) -> TerminalError | TransientError:
    """The error that an exit code means. Its own three slots are on one line (`ports.PortError`)."""
    wrong, _, rest = heard.last.removeprefix("error: ").partition("; needed for ")
    remedy = rest.partition("; ")[2]
    where = f" in stage {heard.stage!r}" if heard.stage else ""
    told = heard.last.startswith("error: ")
    if told and status == 1:
        return TerminalError(wrong, needed_for=purpose, remedy=remedy)
    if told and status == 3:
        return TransientError(wrong, needed_for=purpose, remedy=remedy)
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        return TransientError(
            f"the builder was killed by signal {number}{where}",
            needed_for=purpose,
            remedy="it is tried again; where it repeats, see whether this machine has enough memory",
        )
    # No builder at all, or one that broke (sudo without the right, a traceback): may be mended there.
    return TransientError(
        f"the builder failed with {status}{where} ({heard.last or 'no reason given'})",
        needed_for=purpose,
        remedy="it is tried again; correct builder.command in the settings, or the builder's installation",
    )


def _built(data: bytes, release: str, purpose: str) -> Built:
    """The answer, believed only as far as the artifact's own manifest bears it out."""
    try:
        answer = json.loads(data) if len(data) <= ANSWER_LIMIT else None
        if not isinstance(answer, dict):
            raise ValueError("no answer")
        name, folder, digest = (str(answer[key]) for key in ("name", "folder", "digest"))
        place = Path(folder)
        manifest = Manifest.from_bytes((place / NAME).read_bytes())
    except (ValueError, KeyError, Malformed):
        raise TerminalError(
            "the builder's answer is not an artifact's name, folder and digest",
            needed_for=purpose,
            remedy="let builder.command run `reconciler builder` of this version",
        ) from None
    except OSError as error:
        raise TerminalError(
            f"cannot read what the builder made in {folder} ({error.strerror})",
            needed_for=purpose,
            remedy="give this user the right to read the builder's --work folder",
        ) from None
    if manifest.release != release or manifest.digest != digest or place.name != name:
        raise TerminalError(
            f"the builder answered with {name} ({digest}), and its manifest names {manifest.release} ({manifest.digest})",
            needed_for=purpose,
            remedy="remove the builder's finished artifacts of this release; it is built again",
        )
    return Built(release, name, place, digest)


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
