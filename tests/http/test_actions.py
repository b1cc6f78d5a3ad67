"""Retry, forget and rescan over HTTP: what they take, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.api import Api, error_of

COUNTED = {"/retry": "retried", "/forget": "forgotten", "/rescan": "rescanned"}


@pytest.mark.parametrize("path", COUNTED)
def test_action_takes_a_path_and_says_how_many(api: Api, path: str) -> None:
    assert api.http.post(path, json={"path": "/pictures"}).json() == {COUNTED[path]: 1}
    assert api.actions.told == [(path[1:], "/pictures")]


@pytest.mark.parametrize("path", ["/retry", "/rescan"])
@pytest.mark.parametrize("asking", [{}, {"json": {}}, {"json": {"path": None}}])
def test_action_without_a_path_means_all(api: Api, path: str, asking: dict[str, Any]) -> None:
    assert api.http.post(path, **asking).json() == {COUNTED[path]: 1}
    assert api.actions.told == [(path[1:], None)]


@pytest.mark.parametrize("asking", [{}, {"json": {}}])
def test_nothing_is_forgotten_without_a_path(api: Api, asking: dict[str, Any]) -> None:
    response = api.http.post("/forget", **asking)
    assert response.status_code == 422
    assert "path" in error_of(response)


@pytest.mark.parametrize("path", COUNTED)
def test_path_that_nothing_is_known_of_is_404(api: Api, path: str) -> None:
    response = api.http.post(path, json={"path": "/elsewhere"})
    assert response.status_code == 404
    assert error_of(response) == "/elsewhere: nothing is known of it"


@pytest.mark.parametrize("body", [b'{"paht": "/x"}', b'{"path": "x"}', b'{"path": 7}', b'{"path": "/\\u0000"}'])
def test_path_that_is_none_is_422(api: Api, body: bytes) -> None:
    response = api.http.post("/retry", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    error_of(response)
    assert api.actions.told == []


def test_name_that_is_not_utf_8_can_be_asked_for(api: Api) -> None:
    body = b'{"path": "/pictures/broken.jpg\\udcff"}'
    response = api.http.post("/retry", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 404
    assert error_of(response) == "/pictures/broken.jpg\udcff: nothing is known of it"


def test_form_of_a_page_is_not_an_action(api: Api) -> None:
    assert api.http.post("/retry", data={"path": "/pictures"}).status_code == 415
    assert api.http.get("/retry").status_code == 405
    assert api.actions.told == []
