"""Ask several questions at once, until a person cancels."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait

from .server import Answer, Question

# The model answers several together faster than one by one.
AT_ONCE = 4
# How soon a person's Cancel is noticed.
LOOK_S = 0.2

Ask = Callable[[Question, threading.Event], Answer]


def ask_all(ask: Ask, questions: Sequence[Question], check: Callable[[], None]) -> Iterator[Answer]:
    """Give the answers in order, as they come. ask: its event says that nobody waits any more.

    check: called again and again; raises when a person has cancelled. Raises: what `ask` and `check` raise.
    """
    futures: list[Future[Answer]] = [Future() for _ in questions]
    todo, stopped = deque(zip(questions, futures, strict=True)), threading.Event()

    def work() -> None:
        while todo and not stopped.is_set():
            try:
                question, future = todo.popleft()
            except IndexError:
                return  # another thread was quicker
            try:
                future.set_result(ask(question, stopped))
            except BaseException as error:
                future.set_exception(error)

    for _ in range(min(AT_ONCE, len(questions))):
        # A daemon, so that a request under way holds up neither a Cancel nor the end of ComfyUI.
        threading.Thread(target=work, name="florence-daemon", daemon=True).start()
    try:
        for future in futures:
            check()
            while not wait([future], LOOK_S).done:
                check()
            yield future.result()
    finally:
        stopped.set()
