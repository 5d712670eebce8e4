"""Wakes the loop when a branch of a repository on this machine may have moved; others are polled.

It only wakes: what the branch holds is asked by `git_source`, and a wake without a change costs one fetch. Missed
events do no harm either, since the loop polls as well. Watches `HEAD`, `packed-refs`, `refs/heads/` and `reftable/` of
a bare repository, a work tree, or a linked work tree. Called by the controller's bootstrap. Source:
gitrepository-layout(5), gitdir and commondir of git-worktree(1).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reconciler.ports import TerminalError

_DEBOUNCE_S = 0.05


def refs_folder(repository: Path) -> Path:
    """The folder that holds a repository's shared refs: itself where bare, `.git`, or what a `.git` file points to.

    TerminalError: no repository there.
    """
    git = repository / ".git"
    if git.is_file():
        text = git.read_text(encoding="utf-8", errors="replace").strip()
        if text.startswith("gitdir: "):
            git = (repository / text.removeprefix("gitdir: ")).resolve()
    folder = git if git.is_dir() else repository
    common = folder / "commondir"
    if common.is_file():
        folder = (folder / common.read_text(encoding="utf-8").strip()).resolve()
    if not (folder / "HEAD").is_file() or not (folder / "objects").is_dir():
        raise TerminalError(
            f"there is no git repository at {repository}",
            needed_for="watching the fleet repo",
            remedy="correct the remote in the settings, or create it",
        )
    return folder


class RefWatch:
    """Watches one repository and calls `wake` from a thread of its own, at most once every `debounce_s` seconds.

    A burst of events (a push writes several files) ends in one wake, `debounce_s` after its first event, so that a
    steady stream of events cannot keep the loop asleep.
    """

    def __init__(self, repository: Path, wake: Callable[[], None], *, debounce_s: float = _DEBOUNCE_S) -> None:
        self._folder = refs_folder(repository)
        self._wake = wake
        self._debounce_s = debounce_s
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._observer: Any = None
        self._handler: Any = None
        self._watched: dict[str, tuple[int, Any]] = {}
        self._covering = threading.Lock()

    def start(self) -> None:
        """Begin to watch. TerminalError: the system grants no watches."""
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        watch = self

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.event_type in ("opened", "closed_no_write"):
                    return
                paths = [Path(str(path)) for path in (event.src_path, event.dest_path) if path]
                if any(watch.concerns(path) for path in paths):
                    if event.is_directory:
                        watch.cover()
                    watch.ring()

        self._handler = Handler()
        self._observer = Observer()
        self.cover()
        try:
            self._observer.start()
        except OSError as error:
            self._observer = None
            raise TerminalError(
                f"{self._folder} cannot be watched ({error.strerror or error})",
                needed_for="waking at a new commit",
                remedy="raise fs.inotify.max_user_watches and max_user_instances; polling goes on meanwhile",
            ) from None

    def cover(self) -> None:
        """Watch every folder that there is now. Each by itself: branches like `team/x` make folders come and go."""
        with self._covering:
            observer = self._observer
            if observer is None:
                return
            present = dict(self._folders())
            for path in [path for path, (inode, _) in self._watched.items() if present.get(path) != inode]:
                with contextlib.suppress(KeyError, OSError):
                    observer.unschedule(self._watched[path][1])
                del self._watched[path]
            for path, inode in present.items():
                if path not in self._watched:
                    with contextlib.suppress(OSError):  # gone already, or no watches left: polling covers it
                        self._watched[path] = (inode, observer.schedule(self._handler, path, recursive=False))

    def _folders(self) -> Iterator[tuple[str, int]]:
        """The repository's folder, and every folder of branches, with their inodes."""
        tops = (self._folder, self._folder / "refs", self._folder / "reftable", self._folder / "refs" / "heads")
        below = (Path(path) for path, _, _ in os.walk(self._folder / "refs" / "heads"))
        for path in dict.fromkeys((*tops, *below)):
            with contextlib.suppress(OSError):
                yield str(path), path.stat().st_ino

    def concerns(self, path: Path) -> bool:
        """Whether a changed file can mean that a branch moved.

        Lock files alone never do: they are renamed to what they lock.
        """
        if path.name.endswith(".lock"):
            return False
        try:
            parts = path.relative_to(self._folder).parts
        except ValueError:
            return False
        if parts[:1] == ("refs",):
            return len(parts) < 2 or parts[1] == "heads"
        return parts[:1] == ("reftable",) or parts in (("HEAD",), ("packed-refs",))

    def ring(self) -> None:
        """Wake after the debounce, unless a wake is due already."""
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(self._debounce_s, self._fire)
                self._timer.daemon = True
                self._timer.start()

    def _fire(self) -> None:
        with self._lock:
            self._timer = None
        self._wake()

    def stop(self) -> None:
        """End watching; no wake comes after it returned, but for one already begun."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()
        self._watched.clear()
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def __enter__(self) -> RefWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
