"""The log: lines that nothing can break, in the form that was asked for, by whichever process."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from florence_daemon.logs import choose_formatter, fields, is_journal, printable, relay
from tests.conftest import RunningDaemon, wait_for
from tests.pictures import jpeg

StartDaemon = Callable[..., RunningDaemon]

IMAGE = {"Content-Type": "image/jpeg"}
ODD = "line\nbreak\r\x1b[31m\udcff\u2028.jpg"


def say(form: str, *, to_journal: bool = False, message: str = "%s: captioned", error: Any = None, **more: Any) -> str:
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, message, (ODD,), None)
    record.exc_info = None if error is None else (type(error), error, error.__traceback__)
    record.__dict__.update(more)
    return choose_formatter(form, to_journal=to_journal).format(record)


def raised() -> Exception:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        return error


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("to_journal", [False, True])
def test_no_name_breaks_a_line(form: str, to_journal: bool) -> None:
    line = say(form, to_journal=to_journal)
    assert len(line.splitlines()) == 1
    assert line.isprintable()


def test_text_has_time_and_level() -> None:
    time, _, rest = say("text").partition(" WARNING ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", time)
    assert rest == r"line\nbreak\r\x1b[31m\udcff\u2028.jpg: captioned"


def test_journal_gets_priorities_and_no_time() -> None:
    assert say("text", to_journal=True) == r"<4>line\nbreak\r\x1b[31m\udcff\u2028.jpg: captioned"
    lines = say("text", to_journal=True, error=raised()).splitlines()
    assert len(lines) > 3
    assert {line[:3] for line in lines} == {"<4>"}


def test_json_says_what_it_is_about() -> None:
    said = json.loads(say("json", error=raised(), **fields(path="a.jpg", outcome="captioned")))
    assert said["ts"].endswith("Z")
    assert (said["level"], said["path"], said["outcome"]) == ("warning", "a.jpg", "captioned")
    assert said["message"] == printable(ODD) + ": captioned"
    assert said["traceback"].endswith("ValueError: two\nlines")


def test_journal_is_known_by_the_file_that_systemd_names() -> None:
    with tempfile.TemporaryFile("w") as file:
        status = os.fstat(file.fileno())
        assert is_journal(file, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not is_journal(file, {"JOURNAL_STREAM": "8:12345"})
        assert not is_journal(file, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "8:12345"})


def test_what_the_engine_writes_is_logged_in_the_same_form(caplog: pytest.LogCaptureFixture) -> None:
    written = [
        '{"level": "error", "message": "it failed", "traceback": "Traceback\\n  in f\\nValueError"}',
        "libpng warning: iCCP: known incorrect sRGB profile",
        "",
        '{"level": 3}',
        '{"level": "trace", "message": "a library\'s own"}',
    ]
    with caplog.at_level(logging.INFO):
        relay(io.BytesIO("\n".join(written).encode() + b"\n\xff half a line"), "engine: ")
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("ERROR", "engine: it failed"),
        ("WARNING", "engine: libpng warning: iCCP: known incorrect sRGB profile"),
        ("WARNING", 'engine: {"level": 3}'),
        ("WARNING", 'engine: {"level": "trace", "message": "a library\'s own"}'),
        ("WARNING", "engine: \\xff half a line"),
    ]
    formatted = json.loads(choose_formatter("json", to_journal=False).format(caplog.records[0]))
    assert formatted["traceback"] == "Traceback\n  in f\nValueError"


def test_thread_that_ends_by_an_error_is_logged_like_everything_else() -> None:
    script = (
        "import sys, threading, warnings\n"
        "from florence_daemon import logs\n"
        "logs.set_up('json', 'info', sys.stderr, {})\n"
        "warnings.warn('careful')\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='worker')\n"
        "thread.start(); thread.join()\n"
    )
    lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    careful, ended = (json.loads(line) for line in lines.splitlines())
    assert "careful" in careful["message"]
    assert (ended["level"], ended["message"][:26]) == ("critical", "the thread worker ended: Z")
    assert "in <lambda>" in ended["traceback"]


def test_every_job_leaves_one_line_whatever_its_outcome(start_daemon: StartDaemon, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "two\nlines.jpg").write_bytes(jpeg())
    (folder / "text.jpg").write_bytes(b"no picture")
    daemon = start_daemon("--watch", str(folder), "--log-format", "json")
    httpx.post(f"{daemon.url}/process_image?prompt=CAPTION", content=jpeg(), headers=IMAGE, timeout=60)
    httpx.post(f"{daemon.url}/process_image?prompt=CAPTION", content=b"nothing", headers=IMAGE, timeout=60)
    wait_for(lambda: daemon.text().count('"event": "job"') >= 4, 180)
    assert daemon.stop() == 0
    said = [json.loads(line) for line in daemon.text().splitlines()]
    jobs = sorted((job for job in said if job.get("event") == "job"), key=lambda job: (job["kind"], job["outcome"]))
    assert [(job["kind"], job["outcome"], job["level"]) for job in jobs] == [
        ("folder", "captioned", "info"),
        ("folder", "failed", "warning"),
        ("http", "answered", "info"),
        ("http", "failed", "info"),
    ]
    captioned, failed, answered, refused = jobs
    assert captioned["path"] == str(folder / r"two\nlines.jpg")
    assert captioned["prompts"] == ["<MORE_DETAILED_CAPTION>", "<GENERATE_TAGS>"]
    assert captioned["seconds"] >= captioned["decode_s"] + captioned["text_s"] > 0
    assert (failed["path"], failed["error"]) == (str(folder / "text.jpg"), "PictureError")
    assert failed["message"] == f"{failed['path']}: not captioned: {failed['reason']}"
    assert answered["path"] is None
    assert answered["message"].startswith(f"request of {len(jpeg()):,} bytes: <CAPTION> in ")
    assert "is not a picture" in refused["reason"]
