"""Which model counts where servers answer: the first one's, until none is in use that said so."""

from __future__ import annotations

from dataclasses import replace

import attrs
import pytest

from florence_daemon.config import ModelConfig, ServerConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.engine.member import EngineState
from florence_daemon.engine.protocol import Loaded, Served
from florence_daemon.errors import PeerError
from florence_daemon.folders.records import making_of
from florence_daemon.served import Models, offer_of

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")
HERE = ModelConfig(server=("http://a:1", "http://b:2"), num_beams=2)
SERVED = Served("some/model", "main", "int8", 576, True)


def loaded(server: str, served: Served | None = SERVED) -> Loaded:
    return Loaded(server, 0.1, 4, served=served)


class Fixture:
    def __init__(self, model: ModelConfig = HERE) -> None:
        self.in_use: set[str] = set()
        self.changes = 0
        self.models = Models(model, self.note)
        self.models.watch(lambda: self.in_use)

    def note(self) -> None:
        self.changes += 1

    def admit(self, server: str, served: Served = SERVED) -> str | None:
        refusal = self.models.admit(loaded(server, served))
        if refusal is None:
            self.in_use.add(server)
        return refusal


def test_model_of_our_own_counts_where_there_is_no_server() -> None:
    models = Models(ModelConfig(name="demo"))
    assert models.name == "demo"
    assert models.admit(loaded("cpu", None)) is None
    assert models.making_of(CAPTION) == making_of(ModelConfig(name="demo"), CAPTION)


def test_text_is_made_as_the_server_itself_would_make_it() -> None:
    setup = Fixture()
    assert setup.admit("http://a:1") is None
    there = ModelConfig("some/model", revision="main", precision="int8", image_size=576, fast_decode=True, num_beams=2)
    assert setup.models.making_of(CAPTION) == making_of(there, CAPTION)
    assert setup.models.name == "some/model"
    assert setup.changes == 1


def test_model_that_no_server_has_told_yet_makes_nothing_outdated() -> None:
    setup = Fixture()
    before = making_of(ModelConfig("any/model"), CAPTION)
    assert setup.models.making_of(CAPTION).is_same(before)
    assert before.is_same(setup.models.making_of(CAPTION))
    assert setup.models.name == "the model of http://a:1, http://b:2"
    setup.admit("http://a:1")
    assert not setup.models.making_of(CAPTION).is_same(before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "other"}, "model.name is 'other', and must be 'some/model'"),
        ({"revision": None}, "model.revision is None, and must be 'main'"),
        ({"precision": "auto"}, "model.precision is 'auto', and must be 'int8'"),
        ({"image_size": None}, "model.image_size is None, and must be 576"),
        ({"fast_decode": False}, "model.fast_decode is False, and must be True"),
    ],
)
def test_server_that_differs_is_left_out_while_another_is_in_use(change: dict[str, object], told: str) -> None:
    setup = Fixture()
    other = replace(SERVED, **change)  # type: ignore[arg-type]
    assert setup.admit("http://a:1") is None
    assert setup.admit("http://b:2", other) == f"http://b:2: its {told}, unlike http://a:1"
    assert setup.changes == 1
    setup.in_use.clear()  # unloaded, or gone; or not yet begun
    assert setup.admit("http://b:2", other) is not None
    setup.models._admitted_s.clear()
    assert setup.admit("http://b:2", other) is None
    assert setup.changes == 2
    assert setup.admit("http://a:1") is not None


def test_same_server_may_come_back_with_another_model() -> None:
    setup = Fixture()
    setup.admit("http://a:1")
    assert setup.admit("http://a:1", replace(SERVED, name="newer")) is None
    assert setup.models.name == "newer"


def test_configuration_that_has_no_server_any_more_counts_at_once() -> None:
    setup = Fixture()
    setup.admit("http://a:1")
    setup.models.renew(ModelConfig(name="demo"))
    assert setup.models.name == "demo"
    setup.models.renew(HERE)
    assert setup.models.name == "some/model"


class FakeAsked:
    in_flight = 40

    def __init__(self, state: EngineState) -> None:
        self._state = state

    def state(self) -> EngineState:
        return self._state


def test_offer_leaves_half_of_the_places_to_others_and_tells_what_decides_a_text() -> None:
    model = ModelConfig("some/model", revision="main", precision="int8", image_size=576, fast_decode=True)
    offer = offer_of(model, FakeAsked(EngineState("loaded", side_px=576, error="of another engine")), ServerConfig())
    assert offer.served == SERVED
    assert (offer.at_once, offer.side_px, offer.max_body_bytes, offer.error) == (16, 576, 32 * 2**20, None)
    failed = offer_of(model, FakeAsked(EngineState("failed", error="no memory")), ServerConfig(max_queued=1))
    assert (failed.at_once, failed.side_px, failed.error) == (1, None, "no memory")


def test_daemon_that_asks_others_offers_nothing() -> None:
    with pytest.raises(PeerError, match=r"no model of its own; name what it asks itself in model\.server: http://a:1"):
        offer_of(attrs.evolve(HERE, name="demo"), FakeAsked(EngineState("unloaded")), ServerConfig())
