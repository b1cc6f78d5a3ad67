"""The one line of the log that each job leaves when it ends, however it ends."""

from __future__ import annotations

import logging
from typing import Any

from florence_daemon.engine.protocol import Done, Resized
from florence_daemon.errors import FlorenceError, PictureError, PromptError
from florence_daemon.logs import fields, printable
from florence_daemon.queue import Job

log = logging.getLogger(__name__)


def log_done(job: Job, done: Done, seconds: float) -> None:
    """An image has its sidecars, or a request its answer. seconds: from its turn on, with what waited in the engine."""
    stages = done.stages
    told = _told(
        job,
        "answered" if job.image is None else "captioned",
        seconds,
        decode_s=round(stages.decode_s, 3),
        vision_s=round(stages.vision_s, 3),
        text_s=round(stages.text_s, 3),
    )
    log.info(
        "%s: %s in %.2f s (decode %.3f, vision %.3f, text %.3f)",
        describe(job), " ".join(told["prompts"]), seconds, stages.decode_s, stages.vision_s, stages.text_s,
        extra=fields(**told),
    )  # fmt: skip


def log_failed(job: Job, error: FlorenceError, reason: str, seconds: float) -> None:
    """There is no answer. reason: the error in words, without the image's path."""
    told = _told(job, "failed", seconds, error=type(error).__name__, reason=reason)
    verb = "answered" if job.image is None else "captioned"
    # Whoever sends what is no picture is told so, and nobody here can act on it.
    is_theirs = job.image is None and isinstance(error, PictureError | PromptError)
    level = logging.INFO if is_theirs else logging.WARNING
    log.log(level, "%s: not %s: %s", describe(job), verb, reason, extra=fields(**told))


def describe(job: Job) -> str:
    """What a log line calls a job: the image's path, or the size of what was sent."""
    path = _path(job)
    content = job.picture.content if isinstance(job.picture, Resized) else job.picture
    return f"request of {len(content):,} bytes" if path is None else path


def _told(job: Job, outcome: str, seconds: float, **more: Any) -> dict[str, Any]:
    """What a line of JSON says of a job."""
    return {
        "event": "job",
        "path": _path(job),
        "kind": job.kind.name.lower(),
        "prompts": [ask.prompt for ask in job.asks],
        "outcome": outcome,
        "seconds": round(seconds, 3),
        **more,
    }


def _path(job: Job) -> str | None:
    if job.image is not None:
        return printable(job.image.path)
    return printable(job.picture) if isinstance(job.picture, str) else None
