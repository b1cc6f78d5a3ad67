"""Thumbnails for the page: kept in the state directory, made by a process that exists only while some are wanted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from florence_daemon.engine.handle import own_group
from florence_daemon.errors import PictureError, QueueFull
from florence_daemon.folders.atomic import Directory
from florence_daemon.logs import printable, relay

log = logging.getLogger(__name__)

# One picture may take so long; then the process is ended.
LIMIT_S = 20.0
# The process ends when nothing was asked of it for so long.
IDLE_S = 20.0
# So many threads wait for it at once, for so long; others are told to come again.
MOST_WAITING = 4
WAIT_S = 30.0
# Files that are kept, of 10 to 40 KB each; when there are more, those that were made first go, a quarter of them.
MOST_KEPT = 2000
# Pictures that are known to have no thumbnail, so that they are not tried at each look.
MOST_REFUSED = 500
# What a thumbnail may have: it comes from a process that reads untrusted pictures.
MOST_BYTES = 2**20
SUFFIX = ".webp"
# One that was ended gets so long to be gone.
STOP_S = 2.0
# An answer of the process: whether there is a thumbnail, and the length of what follows: that, or the reason in UTF-8.
# Not a pickle: whatever a fault of a decoder could make the process write must do nothing to the daemon that reads it.
ANSWER = struct.Struct("<?I")
# The process finds modules exactly where the daemon does.
BOOT = "import sys; sys.path[:] = sys.argv[1:]; from florence_daemon.engine.thumbnail import main; main()"


class Thumbnails:
    """Makes and keeps thumbnails. Threads may share it.

    directory: where they are kept; without one that can be written, each is made anew.
    """

    def __init__(self, directory: Path, command: Sequence[str] | None = None, limit_s: float = LIMIT_S) -> None:
        """command: starts the process that makes them, instead of ours. limit_s: for one of them."""
        self._directory = directory
        self._command = command or [sys.executable, "-c", BOOT, *sys.path]
        self._limit_s = limit_s
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)
        self._maker: _Maker | None = None
        self._idle = threading.Timer(IDLE_S, self._end_idle)
        self._refused: OrderedDict[str, str] = OrderedDict()
        self._kept: int | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The process that makes them, while there is one."""
        maker = self._maker
        return None if maker is None else maker.process.pid

    def get(self, key: str, root: str, path: str) -> bytes:
        """The thumbnail of a picture below the folder `root`, a WebP file.

        key: stands for this very picture, as letters and digits.
        Raises: PictureError when there can be none; QueueFull.
        """
        found = self._find(key)
        if found is not None:
            return found
        if not self._waiting.acquire(blocking=False):
            raise QueueFull(f"{MOST_WAITING} thumbnails are waited for already; try again in a moment")
        try:
            if not self._turn.acquire(timeout=WAIT_S):
                raise QueueFull("the thumbnails before this one take long; try again in a moment")
            try:
                return self._find(key) or self._make(key, root, path)
            finally:
                self._turn.release()
        finally:
            self._waiting.release()

    def close(self) -> None:
        """End the process at once."""
        self._is_closed = True
        self._idle.cancel()
        self._end()

    def _find(self, key: str) -> bytes | None:
        """Raises: PictureError when it is known that there is none."""
        reason = self._refused.get(key)
        if reason is not None:
            raise PictureError(reason)
        with contextlib.suppress(OSError):
            return (self._directory / f"{key}{SUFFIX}").read_bytes()
        return None

    def _make(self, key: str, root: str, path: str) -> bytes:
        try:
            content = self._ask(root, path)
        except PictureError as error:
            self._refused[key] = str(error)
            while len(self._refused) > MOST_REFUSED:
                self._refused.popitem(last=False)
            raise
        self._keep(key, content)
        return content

    def _ask(self, root: str, path: str) -> bytes:
        """Ask the process, starting it when there is none; the turn is held. Raises: PictureError, QueueFull."""
        if self._is_closed:
            raise QueueFull("the daemon is stopping")
        self._idle.cancel()
        try:
            self._maker = self._maker or _Maker(self._command)
            return self._maker.ask(root, path, self._limit_s)
        except OSError as error:
            raise QueueFull(f"the process that makes thumbnails could not be started: {error}") from None
        except _Ended as error:
            self._end()
            log.warning("%s: %s", printable(path), error)
            raise PictureError(str(error)) from None
        finally:
            self._idle = self._begin_timer()

    def _begin_timer(self) -> threading.Timer:
        timer = threading.Timer(IDLE_S, self._end_idle)
        timer.daemon = True
        timer.start()
        return timer

    def _end(self) -> None:
        maker, self._maker = self._maker, None
        if maker is not None:
            maker.end()

    def _end_idle(self) -> None:
        if not self._turn.acquire(blocking=False):  # It is not idle; whoever has the turn may begin no timer any more.
            self._idle = self._begin_timer()
            return
        try:
            self._end()
        finally:
            self._turn.release()

    def _keep(self, key: str, content: bytes) -> None:
        try:
            os.makedirs(self._directory, exist_ok=True)
            with Directory(os.fspath(self._directory)) as directory:
                directory.write(f"{key}{SUFFIX}", content, lambda: True)
            self._kept = self._count() if self._kept is None else self._kept + 1
            if self._kept > MOST_KEPT:
                self._drop_oldest()
        except OSError as error:
            log.debug("%s: thumbnails are not kept: %s", self._directory, error)

    def _count(self) -> int:
        return sum(1 for _ in self._directory.glob(f"*{SUFFIX}"))

    def _drop_oldest(self) -> None:
        found = sorted(self._directory.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in found[: max(0, len(found) - MOST_KEPT * 3 // 4)]:
            path.unlink(missing_ok=True)
        self._kept = self._count()


class _Ended(Exception):
    """The process gave no answer; the message says why."""


class _Maker:
    """One process. A thread reads its answers, since one that hangs in a dead share cannot even be ended."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises: OSError when it cannot be started."""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # which takes memory for each of its threads
            **own_group(),
        )
        self._answers: queue.SimpleQueue[tuple[bool, bytes] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read, args=[self.process.stdout], name="thumbnails", daemon=True),
            threading.Thread(
                target=relay, args=(self.process.stderr, "thumbnails: "), name="thumbnails-log", daemon=True
            ),
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, root: str, path: str, limit_s: float) -> bytes:
        """Have one made. Raises: PictureError, _Ended."""
        request = json.dumps({"root": root, "path": path}).encode("ascii") + b"\n"
        try:
            if self.process.stdin is not None:
                self.process.stdin.write(request)
                self.process.stdin.flush()
            answer = self._answers.get(timeout=limit_s)
        except queue.Empty:
            raise _Ended(f"to make a thumbnail of this picture takes more than {limit_s:g} s") from None
        except OSError:
            answer = None
        if answer is None:
            raise _Ended("the process that makes thumbnails ended at this picture")
        is_made, body = answer
        if not is_made:
            raise PictureError(body.decode("utf-8", "replace"))
        return body

    def end(self) -> None:
        """End it at once."""
        self.process.kill()
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        for thread in self._threads:
            thread.join(STOP_S)

    def _read(self, stream: IO[bytes]) -> None:
        """Take its answers until it ends, or says what no thumbnail is; a thread's whole job."""
        with stream:
            while len(head := stream.read(ANSWER.size)) == ANSWER.size:
                is_made, length_bytes = ANSWER.unpack(head)
                if length_bytes > MOST_BYTES:
                    break
                body = stream.read(length_bytes)
                if len(body) < length_bytes:
                    break
                self._answers.put((is_made, body))
        self._answers.put(None)
        self.process.kill()
        self.process.wait()
