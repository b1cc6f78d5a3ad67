"""What an engine of the cluster makes of a batch, whatever the store says meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from florence_daemon.cluster import plan
from florence_daemon.cluster.addresses import Store, open_store
from florence_daemon.cluster.answering import Answering
from florence_daemon.cluster.due import Errand
from florence_daemon.cluster.plan import Captioner, Plan, pack, unpack_outcomes
from florence_daemon.config import Config, ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.engine.protocol import Answer, Ask, Done, Stages
from florence_daemon.queue import Image

OUTPUTS = (OutputConfig(prompt="CAPTION", ext="txt"), OutputConfig(prompt="GENERATE_TAGS", ext="tag"))
CONFIG = Config(model=ModelConfig(name="demo"))


@pytest.fixture
def album() -> Iterator[Store]:
    """A picture in a store."""
    store = open_store("memory://album")
    store.write("/album/1.jpg", b"picture")
    yield store
    store.files.delete_dir("/album")


def errand(store: Store) -> Errand:
    return Errand(Image(store.address("/album/1.jpg"), OUTPUTS, None, "never"), 0)


def test_caption_that_comes_to_be_there_meanwhile_stays(album: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(self: Answering, picture: bytes, asks: tuple[Ask, ...]) -> Done:
        album.write("/album/1.txt", b"by hand")
        return Done(0, tuple(Answer(each.prompt, "a red circle") for each in asks), (8, 8), Stages())

    monkeypatch.setattr(Answering, "_answer", answer)
    answering = Answering(CONFIG, (album,), None, 2)
    try:
        (outcome,) = answering.caption([errand(album)])
    finally:
        answering.close()
    assert outcome.error is None
    assert (album.read("/album/1.txt"), album.read("/album/1.tag")) == (b"by hand", b"a red circle\n")


def test_error_of_a_stores_own_library_is_the_pictures(album: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bytes:
        raise LookupError("the library\nsays this")

    monkeypatch.setattr(Store, "read", fail)
    answering = Answering(CONFIG, (album,), None, 2)
    try:
        (outcome,) = answering.caption([errand(album)])
    finally:
        answering.close()
    assert (outcome.error, outcome.ends_it) == ("LookupError: the library says this", False)


def test_error_that_nobody_foresaw_ends_the_run_with_its_reason(album: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def caption(self, errands: Any) -> None:
            raise ZeroDivisionError("no such thing")

        def close(self) -> None:
            """Nothing is held."""

    monkeypatch.setattr(plan, "Answering", lambda *_: Broken())
    given = Captioner(Plan(CONFIG, (album,), None, 2))({"number": [7], "errands": [pack([errand(album)])]})
    (outcome,) = unpack_outcomes(given["outcomes"][0])
    assert (outcome.ends_it, given["number"]) == (True, [7])
    assert "ZeroDivisionError: no such thing" in str(outcome.error)
