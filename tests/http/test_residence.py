"""How long the model stays: `keep_alive` of requests, `/load` and `/unload`."""

from __future__ import annotations

from typing import Any

import pytest

from florence_daemon.http.keep_alive import read_keep_alive
from tests.http.api import PICTURE, Api, error_of


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (300, 300.0),
        (0, 0.0),
        (-1, -1.0),
        (0.5, 0.5),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        (" 10s ", 10.0),
        ("-1m", -60.0),
        ("300", 300.0),
        ("0", 0.0),
        ("-1", -1.0),
    ],
)
def test_keep_alive_is_read_as_ollama_reads_it(value: Any, seconds: float) -> None:
    assert read_keep_alive(value) == seconds


@pytest.mark.parametrize(
    "value", [True, None, "", "m", "5 minutes", "5d", "1e3", "inf", float("nan"), 10**400, [5], "٥m"]
)
def test_anything_else_is_no_duration(value: Any) -> None:
    with pytest.raises(ValueError, match="keep_alive"):
        read_keep_alive(value)


def test_keep_alive_comes_in_every_form_of_body(api: Api) -> None:
    assert api.process(keep_alive="5m").status_code == 200
    form = api.http.post("/process_image", data={"prompt": "CAPTION", "keep_alive": "-1"}, files={"image": PICTURE})
    assert form.status_code == 200
    query = {"prompt": "CAPTION", "keep_alive": "1h"}
    bare = api.http.post("/process_image", params=query, content=PICTURE, headers={"Content-Type": "image/png"})
    assert bare.status_code == 200
    assert api.chat(keep_alive=0).status_code == 200
    assert api.process().status_code == 200
    assert api.process(keep_alive=None).status_code == 200
    assert api.residence.told == [300.0, -1.0, 3600.0, 0.0]


def test_request_that_is_refused_changes_nothing(api: Api) -> None:
    refused = api.process(keep_alive="soon")
    assert refused.status_code == 422
    assert "keep_alive: 'soon'" in error_of(refused)
    assert api.process(keep_alive=7, prompt="NONE").status_code == 400
    assert api.residence.told == []


def test_model_is_loaded_and_unloaded_when_told_to(api: Api) -> None:
    assert api.http.post("/load").json() == {"state": "loaded"}
    assert api.http.post("/unload", json={}).json() == {"state": "unloaded"}
    assert api.http.post("/load", json={"keep_alive": "1h"}).json() == {"state": "loaded"}
    assert api.residence.told == ["load", "unload", "load", 3600.0]


def test_other_members_and_forms_are_no_action(api: Api) -> None:
    assert api.http.get("/load").status_code == 405
    assert api.http.post("/load", data={"keep_alive": "1h"}).status_code == 415
    assert "is the only one" in error_of(api.http.post("/load", json={"model": "other"}))
    assert "there are none" in error_of(api.http.post("/unload", json={"keep_alive": 5}))
    assert api.http.post("/load", json={"keep_alive": "x"}).status_code == 422
    assert api.residence.told == []


def test_ping_answers_pong(api: Api) -> None:
    answer = api.http.get("/ping")
    assert (answer.status_code, answer.text) == (200, "pong")
