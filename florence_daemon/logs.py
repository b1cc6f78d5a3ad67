"""What goes to standard error: a line for each thing that happens, as text, as JSON, or as the journal wants it."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import IO, Any

log = logging.getLogger(__name__)

# Libraries that say at each turn what the program says itself, or what nobody can act on.
NOISY = ("httpx", "waitress.queue")
# The levels as a line of JSON names them.
LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}
# What journald takes off the beginning of a line, by logging's levels: <sd-daemon.h>.
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def set_up(form: str, level: str, stream: IO[str], environ: Mapping[str, str]) -> None:
    """Send everything that is logged to `stream`; call it once, at the start. form: text or json; level: a name."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(choose_formatter(form, to_journal=is_journal(stream, environ)))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    threading.excepthook = _log_thread


def choose_formatter(form: str, *, to_journal: bool) -> logging.Formatter:
    """The formatter for what a person asked for; journald knows the time itself, and wants priorities instead."""
    formatter = JsonFormatter() if form == "json" else TextFormatter(with_time=not to_journal)
    return JournalFormatter(formatter) if to_journal else formatter


def is_journal(stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Tell whether journald reads the stream: systemd says which one it gave to the service, as `device:inode`.

    The variable alone would not do: programs that a service starts inherit it, and may write elsewhere.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def printable(text: str) -> str:
    """Text that can be printed anywhere, on one line: bytes that are not UTF-8 and control characters are escaped."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def fields(**values: Any) -> dict[str, Any]:
    """What a line of JSON says besides its message: `log.info("…", extra=fields(path=path))`."""
    return {"fields": values}


class TextFormatter(logging.Formatter):
    """`2026-11-24 21:58:28 INFO message`; a traceback follows on lines of its own, indented."""

    def __init__(self, *, with_time: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(text)s" if with_time else "%(text)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Say it."""
        record.text = printable(record.getMessage())
        record.asctime = self.formatTime(record, self.datefmt)
        return "\n".join([self.formatMessage(record), *("    " + printable(line) for line in _traceback(record))])


class JsonFormatter(logging.Formatter):
    """One object a line: `ts` (UTC), `level`, `message`, what `fields` adds, and `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Say it. Only ASCII is written, so that no encoding of a terminal or a file can spoil it."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "ts": f"{when}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": printable(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        lines = _traceback(record)
        if lines:
            said["traceback"] = "\n".join(lines)
        return json.dumps(said)


class JournalFormatter(logging.Formatter):
    """Another formatter's lines, each with its priority: `<6>message`."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """Say it."""
        priority = PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in self._formatter.format(record).split("\n"))


def relay(stream: IO[bytes], prefix: str) -> None:
    """Log what another process writes to its standard error, until it ends: a thread's whole job.

    Our own processes write JSON there. All else, such as what a library in C prints, is logged as a warning.
    """
    with stream:
        for line in iter(lambda: stream.readline(2**16), b""):
            text = line.decode("utf-8", "backslashreplace").strip()
            if text:
                _log_again(text, prefix)


def _log_again(text: str, prefix: str) -> None:
    try:
        said = json.loads(text)
        level, message = LEVELS[said["level"]], said["message"]
        again = {"traceback": said.get("traceback", "").splitlines()}
    except (ValueError, LookupError, TypeError, AttributeError):
        level, message, again = logging.WARNING, text, {}
    log.log(level, "%s%s", prefix, message, extra=again)


def _traceback(record: logging.LogRecord) -> list[str]:
    if record.exc_info and record.exc_info[1] is not None:
        return "".join(traceback.format_exception(record.exc_info[1])).splitlines()
    return list(getattr(record, "traceback", []))


def _log_thread(arguments: threading.ExceptHookArgs) -> None:
    """A thread ended by an error that nobody caught: said in the form of everything else."""
    error = arguments.exc_value or sys.exc_info()[1]
    name = arguments.thread.name if arguments.thread else "?"
    log.critical("the thread %s ended: %r", name, error, exc_info=error)
