"""Watch several folders, each on a thread of its own, so that a share that hangs holds up no other folder."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable, Sequence

from florence_daemon.config import FolderConfig
from florence_daemon.folders.health import Health, overall
from florence_daemon.folders.root import CHECK_S, Intake, RootWatcher
from florence_daemon.liveness import SHOW_S

log = logging.getLogger(__name__)

# A folder that was not looked at for so long hangs in a call to its file system: each look is due after 10 s.
HANGS_S = 60.0


class Watcher:
    """Feeds an intake with the pictures of several folders. `tick` is one step of all; `run` repeats each one's."""

    def __init__(
        self,
        folders: Sequence[FolderConfig],
        intake: Intake,
        clock: Callable[[], float],
        show_life: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """show_life: called by `run` itself, which no folder can hold up. jitter: 0 to 1."""
        self._intake = intake
        self._clock = clock
        self._show_life = show_life
        self._jitter = jitter
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._threads: dict[RootWatcher, threading.Thread] = {}
        self._is_running = False
        self.roots: list[RootWatcher] = []
        self.renew(folders)

    def renew(self, folders: Sequence[FolderConfig]) -> None:
        """Watch these folders from now on; what has not changed goes on undisturbed. From any thread."""
        paths = [os.fspath(folder.path) for folder in folders]
        with self._lock:
            left, roots = list(self.roots), []
            for folder, path in zip(folders, paths, strict=True):
                inner = frozenset(other for other in paths if is_inside(other, path))
                root = next((each for each in left if (each.folder, each.inner) == (folder, inner)), None)
                if root is not None:
                    left.remove(root)
                roots.append(root or RootWatcher(folder, self._intake, self._clock, inner=inner, jitter=self._jitter))
            self.roots = roots
            for root in left:
                self._let_go(root)
            if self._is_running:
                self._start()

    def _let_go(self, root: RootWatcher) -> None:
        """End the watching of a folder; one that hangs notices when it hangs no more."""
        root.is_over.set()
        root.wake.set()
        if not self._threads.pop(root, None):
            root.close()
        self._intake.left(root.folder)

    @property
    def settling(self) -> int:
        """How many files are being waited for."""
        return sum(root.settling for root in self.roots)

    def touch(self, path: str, delay_s: float = 0.0) -> None:
        """Look at `path` again after `delay_s`, as if an event had named it; from any thread."""
        root = self._root_of(path)
        if root is not None:
            root.touch(path, delay_s)

    def pause(self, path: str, reason: str) -> None:
        """Submit nothing of the root of `path` until it can be written again; from any thread.

        Where the root itself can be written, only the directory of `path` stays paused.
        """
        root = self._root_of(path)
        if root is not None:
            root.pause(path, reason)

    def is_paused(self, path: str) -> bool:
        """Tell whether `path` must wait until its folder can be written again, or answers again; from any thread."""
        root = self._root_of(path)
        return root is not None and (root.pauses.holds(path) or self._silent_s(root) > HANGS_S)

    def rescan(self, path: str | None = None) -> int:
        """Scan the root of `path`, or all, now; return how many there are to scan. From any thread."""
        roots = self.roots if path is None else [root for root in self.roots if root is self._root_of(path)]
        for root in roots:
            root.rescan()
        return len(roots)

    def health(self) -> Health:
        """How all folders together are doing."""
        return overall((root.path, self.health_of(root)) for root in self.roots)

    def health_of(self, root: RootWatcher) -> Health:
        """How one of `roots` is doing; asked from outside, since a folder that hangs cannot tell."""
        silent_s = self._silent_s(root)
        if silent_s > HANGS_S:
            return Health("failed", f"its file system has not answered for {silent_s:.0f} s; the others go on")
        return root.health()

    def _silent_s(self, root: RootWatcher) -> float:
        """For how long the folder's thread has been in one step, or asleep."""
        return 0.0 if root.ticked_s is None else self._clock() - root.ticked_s

    def run(self) -> None:
        """Watch until `stop`."""
        with self._lock:
            self._is_running = True
            self._start()
        self._show_life()
        while not self._stopped.wait(SHOW_S):
            self._show_life()
        with self._lock:
            self._is_running = False
            threads = list(self._threads.values())
            for root in self.roots:
                root.wake.set()
        for thread in threads:
            # One that hangs in a dead share is left behind; it holds nothing that a stop waits for.
            thread.join(timeout=5.0 / len(threads))

    def _start(self) -> None:
        """Give each folder that has none a thread; the lock is held."""
        for root in self.roots:
            if root not in self._threads:
                self._threads[root] = threading.Thread(target=self._run_root, args=[root], daemon=True)
                self._threads[root].start()

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""
        self._stopped.set()

    def tick(self, now_s: float) -> float:
        """Do one step of every folder, for tests; return when the next is due."""
        return min((root.tick(now_s) for root in self.roots), default=now_s + CHECK_S)

    def close(self) -> None:
        """End what `tick` began."""
        for root in self.roots:
            root.close()

    def _run_root(self, root: RootWatcher) -> None:
        while not (self._stopped.is_set() or root.is_over.is_set()):
            try:
                due_s = root.tick(self._clock())
            except Exception:
                log.exception("%s: watching failed; it goes on in %g s", root.path, CHECK_S)
                due_s = self._clock() + CHECK_S
            root.wake.wait(max(0.0, due_s - self._clock()))
            root.wake.clear()
        root.close()

    def _root_of(self, path: str) -> RootWatcher | None:
        """The root whose settings count for `path`: the innermost of those that contain it."""
        inside = [root for root in self.roots if path == root.path or is_inside(path, root.path)]
        return max(inside, key=lambda root: len(root.path), default=None)


def is_inside(path: str, directory: str) -> bool:
    """Tell whether `path` is below `directory`, going by the names, in which Windows ignores case."""
    return os.path.normcase(path).startswith(os.path.normcase(os.path.join(directory, "")))
