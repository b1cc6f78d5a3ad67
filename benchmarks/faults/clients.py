"""Many clients at once for a long time, with the real engine and the demo model: errors, waits, memory, descriptors."""

from __future__ import annotations

import base64
import http.client
import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.faults.process import DaemonProcess, NotInTime, wait_for
from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture

CONFIG = json.dumps({"model": {"name": "demo", "idle_unload_s": -1}})
PROMPT = "<CAPTION>"
SIZE_PX = (256, 192)
PICTURES = 16
SAMPLE_S = 5.0
# A job ends a moment after its answer, on a busy machine a long one.
LEFT_S = 60.0


@dataclass(frozen=True)
class Load:
    """How it went. answers: right captions; wrong: captions of another picture than was sent.

    asked_to_wait: 503 with Retry-After, after which the client waited and tried again; errors: anything else, by name.
    p50_s, p99_s: of answered requests, from sending to the whole answer. Memory and descriptors are the daemon's own:
    the median of the second tenth of the time, and of the last one. queue_left: jobs that were there long after.
    """

    clients: int
    seconds: float
    answers: int
    wrong: int
    asked_to_wait: int
    errors: dict[str, int]
    p50_s: float
    p99_s: float
    early_mb: float
    late_mb: float
    early_descriptors: float
    late_descriptors: float
    queue_left: int


@dataclass
class _Tally:
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)

    def count(self, what: str, took_s: float | None = None) -> None:
        with self.lock:
            self.seen[what] += 1
            if took_s is not None:
                self.took_s.append(took_s)


def load_with_clients(
    directory: Path, clients: int, seconds: float, say: Callable[[str], None] = lambda text: None
) -> Load:
    """Let so many clients ask for captions for so long, in every form that the API takes."""
    until_s = 0.0

    def begin() -> None:
        nonlocal until_s
        until_s = time.monotonic() + seconds

    with DaemonProcess(directory / "home", CONFIG) as daemon:
        return ask_together(
            daemon, clients, lambda: time.monotonic() >= until_s, min(SAMPLE_S, seconds / 20), say, on_begin=begin
        )


def ask_together(
    daemon: DaemonProcess,
    clients: int,
    is_over: Callable[[], bool],
    sample_s: float = SAMPLE_S,
    say: Callable[[str], None] = lambda text: None,
    on_begin: Callable[[], None] = lambda: None,
) -> Load:
    """Let so many clients ask, each for one picture after the other, until it is over.

    on_begin: called once what each picture's answer should be is known, and the clients begin.
    """
    drawn = [draw_picture(random.Random(number), SIZE_PX) for number in range(PICTURES)]
    pictures = [encode_picture(each.image, "PNG") for each in drawn]
    expected = _expected(daemon, pictures)
    on_begin()
    tally, began_s = _Tally(), time.monotonic()
    threads = [
        threading.Thread(target=_ask, args=(daemon.url, number, is_over, pictures, expected, tally))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    samples = [(daemon.resident_mb(), daemon.descriptors())]
    while not is_over():
        time.sleep(sample_s)
        samples.append((daemon.resident_mb(), daemon.descriptors()))
        say(f"{tally.seen['answer']:,} answers")
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - began_s
    with suppress(NotInTime):
        wait_for(lambda: _left(daemon) == 0, LEFT_S, "the last jobs to end")
    return _judge(clients, took_s, tally, samples, _left(daemon))


def _left(daemon: DaemonProcess) -> int:
    queue = daemon.status()["queue"]
    return int(queue["http"] + queue["running"])


def _expected(daemon: DaemonProcess, pictures: list[bytes]) -> list[str]:
    """What the engine says about each picture when it is asked alone."""
    found = []
    for content in pictures:
        with closing(_connect(daemon.url, 120)) as connection:
            status, _, body = _post(connection, "raw", content)
        if status != 200:
            raise AssertionError(f"the engine does not answer: {status} {body[:200]!r}")
        found.append(json.loads(body)["result"])
    return found


def _connect(url: str, timeout_s: float = 60) -> http.client.HTTPConnection:
    place = urlsplit(url)
    return http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout_s)


def _post(connection: http.client.HTTPConnection, form: str, content: bytes) -> tuple[int, str | None, bytes]:
    """Send a picture in one of the forms; return status, Retry-After and body."""
    path, kind, body = "/process_image", "application/json", b""
    if form == "json":
        body = json.dumps({"image": base64.b64encode(content).decode(), "prompt": PROMPT}).encode()
    elif form == "raw":
        path, kind, body = f"{path}?prompt=CAPTION", "image/png", content
    else:
        kind = "multipart/form-data; boundary=xyz"
        head = b'--xyz\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n<CAPTION>\r\n'
        file = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        body = head + file + content + b"\r\n--xyz--\r\n"
    connection.request("POST", path, body, {"Content-Type": kind})
    response = connection.getresponse()
    return response.status, response.getheader("Retry-After"), response.read()


def _ask(
    url: str, number: int, is_over: Callable[[], bool], pictures: list[bytes], expected: list[str], tally: _Tally
) -> None:
    """One client: keeps its connection, waits when it is told to."""
    chance = random.Random(number)
    connection = _connect(url)
    while not is_over():
        which = chance.randrange(len(pictures))
        began_s = time.monotonic()
        try:
            status, retry_after, body = _post(connection, chance.choice(("json", "raw", "form")), pictures[which])
        except (OSError, http.client.HTTPException) as error:
            tally.count(type(error).__name__)
            connection.close()
            continue
        if status == 200:
            is_right = json.loads(body).get("result") == expected[which]
            tally.count("answer" if is_right else "wrong", time.monotonic() - began_s)
        elif status == 503 and retry_after is not None:
            tally.count("wait")
            time.sleep(float(retry_after) * chance.uniform(0.5, 1))
        else:
            tally.count(f"HTTP {status}")
    connection.close()


def _judge(clients: int, seconds: float, tally: _Tally, samples: list[tuple[float, int]], left: int) -> Load:
    tenth = max(1, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth] or samples, samples[-tenth:]
    seen = tally.seen
    took = sorted(tally.took_s) or [0.0]
    return Load(
        clients=clients,
        seconds=seconds,
        answers=seen["answer"],
        wrong=seen["wrong"],
        asked_to_wait=seen["wait"],
        errors={what: count for what, count in seen.items() if what not in ("answer", "wrong", "wait")},
        p50_s=statistics.median(took),
        p99_s=took[min(len(took) - 1, int(0.99 * len(took)))],
        early_mb=statistics.median(each[0] for each in early),
        late_mb=statistics.median(each[0] for each in late),
        early_descriptors=statistics.median(each[1] for each in early),
        late_descriptors=statistics.median(each[1] for each in late),
        queue_left=left,
    )
