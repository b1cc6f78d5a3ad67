"""What an engine process may take of time and memory, and that it is ended when it takes more."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine import backend, handle, limits, rests
from florence_daemon.engine.backend import _free_bytes
from florence_daemon.engine.child import Replies
from florence_daemon.engine.handle import Child, Excess, Pending, taken_bytes
from florence_daemon.engine.limits import Limits, Overseer, memory_limit_bytes
from florence_daemon.engine.memory import all_ram_bytes
from florence_daemon.engine.pipe import read_message
from florence_daemon.engine.process import Engine
from florence_daemon.engine.protocol import Alive, Ask, EngineSettings, Loaded, Request
from florence_daemon.errors import CheckpointError, EngineCrashed
from tests.conftest import wait_for
from tests.engine.poisoned_child import BOOT

CAPTION = (Ask("<CAPTION>"),)
LIMITS = Limits(load_s=100, decode_s=10, request_s=50, memory_bytes=2**30)


class Setup:
    """An overseer of a process that has its model and two requests, at second 1000."""

    def __init__(self) -> None:
        self.child = Child(cast(Any, None), sign_s=1000.0, loaded=Loaded("cpu", 1.0, 4))
        self.first, self.second = (Pending(Request(number, "a.jpg", CAPTION), Future()) for number in (1, 2))
        self.child.pending = {1: self.first, 2: self.second}
        self.overseer = Overseer(LIMITS, self.child, 1000.0)
        self.now_s = 1000.0

    def look_until(self, now_s: float, taken_bytes: int | None = None) -> Excess | None:
        """Look every second, as nobody sleeps here."""
        while self.now_s < now_s:
            self.now_s += 1
            excess = self.overseer.look(self.now_s, taken_bytes)
            if excess is not None:
                return excess
        return None


def test_picture_that_takes_too_long_to_read_is_alone_to_blame() -> None:
    setup = Setup()
    setup.first.begun_s = 1005.0
    assert setup.look_until(1015) is None
    setup.second.begun_s = 1015.0
    assert setup.look_until(1016) == Excess(
        "to read the picture took longer than 10 s, model.decode_limit_s", frozenset({1})
    )


def test_model_that_shows_no_life_is_ended_whoever_it_was() -> None:
    setup = Setup()
    setup.first.begun_s, setup.first.read_s = 1100.0, 1101.0
    assert setup.look_until(1151) is None
    setup.child.sign_s = 1150.0
    assert setup.look_until(1200) is None
    assert setup.look_until(1201) == Excess("the model showed no life for 50 s, model.request_limit_s")


def test_process_without_work_may_be_silent() -> None:
    assert Setup().look_until(9000) is None


def test_process_that_takes_too_much_memory_is_ended() -> None:
    setup = Setup()
    assert setup.look_until(1001, 2**30) is None
    assert setup.look_until(1002, 2**30 + 1) == Excess(
        "it took 1,024 MB of memory, and model.memory_limit_mb allows 1,024"
    )


def test_loading_has_a_limit_of_its_own() -> None:
    setup = Setup()
    setup.child.loaded = None
    assert setup.look_until(1100) is None
    assert setup.look_until(1101) == Excess("loading took longer than 100 s, model.load_limit_s")


def test_time_that_the_machine_slept_does_not_count() -> None:
    setup = Setup()
    setup.first.begun_s = 1000.0
    assert setup.look_until(1009) is None
    assert setup.overseer.look(9000.0, None) is None
    setup.now_s = 9000.0
    assert setup.look_until(9001) is None
    assert setup.look_until(9002) is not None


def test_memory_limit_of_a_configuration_in_bytes() -> None:
    assert memory_limit_bytes(-1) is None
    assert memory_limit_bytes(100) == 100 * 2**20
    total = all_ram_bytes()
    assert total is not None
    assert memory_limit_bytes(0) == int(0.9 * total)


def test_process_that_not_even_the_kernel_can_end_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "STUCK_S", 0.05)

    class Undying:
        pid = os.getpid()

        def kill(self) -> None:
            pass

    child = Child(cast(Any, Undying()))
    assert not limits.oversee(child, Limits(load_s=5), iter([0.0, 1.0, 2.0, 3.0, 4.0, 5.1]).__next__, nullcontext())


def test_model_that_works_says_so_once_a_second() -> None:
    pipe = io.BytesIO()
    replies = Replies(pipe)
    replies.show_life("cpu")
    replies.show_life("cpu")
    pipe.seek(0)
    assert read_message(pipe) == Alive()
    assert pipe.read() == b""


def test_questions_side_by_side_fit_into_what_the_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    # This process' own memory is another at each look: threads of other tests end, and give theirs back.
    monkeypatch.setattr(backend, "taken_bytes", lambda pid: 2**30)
    assert _free_bytes("cpu", EngineSettings("demo", memory_limit_bytes=2**30 + 2**20)) == 2**20
    assert _free_bytes("cpu", EngineSettings("demo", memory_limit_bytes=2**30 - 1)) == 0


# With real processes.


@pytest.fixture
def start_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    monkeypatch.setattr(handle, "BOOT", BOOT)
    engines: list[Engine] = []

    def start(**limits: Any) -> Engine:
        settings = EngineSettings("demo", device="cpu", engine="torch", offline=True)
        engines.append(Engine(settings, -1, limits=Limits(**limits)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close(at_once=True)


def picture(colour: str = "white") -> bytes:
    return encode_picture(Image.new("RGB", (64, 64), colour))


def test_picture_that_makes_the_driver_hang_is_set_aside_and_the_others_answered(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rests, "BACKOFF_S", 0.01)
    engine = start_engine(request_s=4.0)
    magenta, white = engine.submit(picture("magenta"), CAPTION), engine.submit(picture("white"), CAPTION)
    error = magenta.exception(300)
    assert isinstance(error, EngineCrashed)
    assert "model showed no life for 4 s, model.request_limit_s" in str(error)
    assert white.exception(60) is None


def test_model_that_does_not_fit_into_the_memory_limit_is_said(start_engine: Callable[..., Engine]) -> None:
    error = start_engine(memory_bytes=20 * 2**20).submit(picture(), CAPTION).exception(60)
    assert isinstance(error, CheckpointError)
    assert "demo could not be loaded: it took " in str(error)
    assert "model.memory_limit_mb allows 20" in str(error)


def test_process_outlives_the_thread_that_asked_for_it_but_not_the_daemon(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine()
    thread = threading.Thread(target=lambda: engine.submit(picture(), CAPTION).result(60))
    thread.start()
    thread.join()
    pid = engine.state().pid
    assert pid is not None
    time.sleep(0.1)
    assert engine.submit(picture(), CAPTION).exception(60) is None
    assert engine.state().pid == pid
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 800


def test_stopped_process_ends_with_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """One that cannot run does not notice that its pipe has ended."""
    script = (
        "import time\n"
        "from florence_daemon.engine.process import Engine\n"
        "from florence_daemon.engine.protocol import Ask, EngineSettings\n"
        "engine = Engine(EngineSettings('demo', engine='torch', offline=True), -1)\n"
        f"engine.submit({picture()!r}, (Ask('<CAPTION>'),)).result()\n"
        "print(engine.state().pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
    wait_for(lambda: taken_bytes(pid) in (None, 0), 60, "the engine process to end")
