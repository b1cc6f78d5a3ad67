"""A stand-in for the engine process behind the same pipe: no model, it answers with a digest of the picture's bytes.

    python -m benchmarks.faults.fake_engine run --config FILE …

is `florence-daemon` with this engine. It imports nothing but the standard library and the protocol. The environment
variable FAKE_ENGINE holds its settings as JSON, all of them optional; `FakeSettings` says what they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from florence_daemon.engine import handle
from florence_daemon.engine.pipe import read_message, write_message
from florence_daemon.engine.protocol import (
    Answer,
    Begun,
    Done,
    EngineSettings,
    Failed,
    Loaded,
    Request,
    Resized,
    Stages,
)

VARIABLE = "FAKE_ENGINE"
BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; from benchmarks.faults.fake_engine import answer_requests; "
    "answer_requests()"
)
# Pictures whose bytes hold one of these do it to the engine process.
DIES = b"KILLS THE ENGINE"
HANGS = b"HANGS THE ENGINE"


@dataclass(frozen=True)
class FakeSettings:
    """How the stand-in behaves.

    log: a file that gets a line for each inference (see `Inference`). slow_s: what a picture takes. gate: while this
    file exists, no answer is given. in_flight: how many requests keep it busy. load_s: what loading takes.
    answer_bytes: answers are made this long, so that a torn one would show. broken_part: of several engines on the
    processor, the one that dies of every picture. helpless_part: the one that can answer none, and says so.
    """

    log: str | None = None
    slow_s: float = 0.0
    gate: str | None = None
    in_flight: int = 4
    load_s: float = 0.0
    answer_bytes: int = 0
    broken_part: int | None = None
    helpless_part: int | None = None

    def as_environment(self) -> dict[str, str]:
        """The variable that carries these settings to the engine process."""
        return {VARIABLE: json.dumps(vars(self))}


@dataclass(frozen=True)
class Inference:
    """A line of the log. picture: the path, or None for bytes. digest: of what was read. end: begun, done, failed."""

    end: str
    digest: str
    size_bytes: int
    picture: str | None


def read_log(path: Path) -> list[Inference]:
    """Everything that the stand-in was asked so far, in order; a line that is being written does not count yet."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="ascii").rpartition("\n")
    return [Inference(**json.loads(line)) for line in whole.splitlines()]


def digest_of(content: bytes) -> str:
    """What answers call these bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def answer_to(prompt: str, content: bytes, at_least_bytes: int = 0) -> str:
    """What the stand-in says to `prompt` about a picture of these bytes."""
    words = f"{prompt.strip('<>').lower()} of {digest_of(content)}"
    while len(words) < at_least_bytes:  # each word another: what repeats itself would not be written as a caption
        words += " " + digest_of(f"{len(words)} {words[:60]}".encode())
    return words


def is_whole(content: bytes) -> bool:
    """Tell whether a JPEG or PNG has its end; what is neither counts as whole."""
    if content.startswith(b"\xff\xd8"):
        return content.endswith(b"\xff\xd9")
    if content.startswith(b"\x89PNG"):
        return content.endswith(b"IEND\xaeB`\x82")
    return bool(content)


def answer_requests() -> None:
    """Serve requests from standard input until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    engine: EngineSettings = read_message(requests)
    settings = FakeSettings(**json.loads(os.environ.get(VARIABLE, "{}")))
    inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    time.sleep(settings.load_s)
    try:
        write_message(replies, Loaded("stand-in", settings.load_s, settings.in_flight))
        while (request := inbox.get()) is not None:
            write_message(replies, Begun(request.id))
            if engine.part == settings.broken_part:
                os.kill(os.getpid(), signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
            if engine.part == settings.helpless_part:
                write_message(replies, Failed(request.id, "EngineError", "the model failed on this picture"))
                continue
            write_message(replies, _answer(request, settings))
    except BrokenPipeError:
        os._exit(1)


def _receive(requests: object, inbox: queue.SimpleQueue[Request | None]) -> None:
    """Take what comes in; at the end of the pipe the daemon is gone, and nobody wants the rest."""
    try:
        while True:
            inbox.put(read_message(requests))  # type: ignore[arg-type]
    except (EOFError, OSError):
        inbox.put(None)
    time.sleep(5)
    os._exit(1)


def bytes_of(picture: bytes | Resized) -> bytes:
    """What was sent of a picture."""
    return picture.content if isinstance(picture, Resized) else picture


def _answer(request: Request, settings: FakeSettings) -> Done | Failed:
    try:
        content = Path(request.picture).read_bytes() if isinstance(request.picture, str) else bytes_of(request.picture)
    except OSError as error:
        return Failed(request.id, "PictureError", f"{request.picture!r}: cannot be read: {error.strerror}")
    _note(settings, "begun", request, content)
    time.sleep(settings.slow_s)
    while settings.gate is not None and os.path.exists(settings.gate):
        time.sleep(0.01)
    if DIES in content:
        os.kill(os.getpid(), signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    if HANGS in content:
        time.sleep(3600)
    if not is_whole(content):
        _note(settings, "failed", request, content)
        return Failed(request.id, "TruncatedPicture", f"{request.picture!r}: is truncated: the end is missing")
    answers = tuple(Answer(ask.prompt, answer_to(ask.prompt, content, settings.answer_bytes)) for ask in request.asks)
    _note(settings, "done", request, content)
    return Done(request.id, answers, (32, 24), Stages(), hashlib.blake2b(content, digest_size=16).digest())


def _note(settings: FakeSettings, end: str, request: Request, content: bytes) -> None:
    """Add a line to the log in one write, so that engine processes after each other can share it."""
    if settings.log is None:
        return
    picture = request.picture if isinstance(request.picture, str) else None
    line = json.dumps({"end": end, "digest": digest_of(content), "size_bytes": len(content), "picture": picture})
    handle_ = os.open(settings.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle_, line.encode("ascii") + b"\n")
    finally:
        os.close(handle_)


def main() -> None:
    """Be `florence-daemon` with this engine."""
    from florence_daemon.cli import main as real_main

    handle.BOOT = BOOT
    os.environ.pop("LD_PRELOAD", None)  # a clock that is set for the daemon is not the engine's
    real_main()


if __name__ == "__main__":
    main()
