"""What OpenAI's clients send and read, on the wire: a real server, the engine replaced."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from florence_daemon.engine.protocol import Answer, Done, Stages
from florence_daemon.errors import CheckpointError, EngineError, PictureError
from florence_daemon.http.chat_request import FREE_TEXT_TASK
from tests.conftest import FakeEngine, done, wait_for
from tests.http.api import DATA_URI, PICTURE, Api, serving

CHAT = "/v1/chat/completions"


def failure_of(response: httpx.Response) -> dict[str, Any]:
    """An error in OpenAI's form."""
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == ("invalid_request_error" if response.status_code < 500 else "server_error")
    return error


def events_of(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    data = [event.removeprefix("data: ") for event in events]
    assert data.pop() == "[DONE]"
    return [json.loads(each) for each in data]


def test_models_are_the_one_that_answers(api: Api) -> None:
    listed = api.http.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("some/model", "model", "some")
    assert api.http.get("/v1/models/some/model").json() == model
    assert api.http.get("/v1/models/some%2Fmodel").json() == model
    missing = api.http.get("/v1/models/gpt-4o")
    assert missing.status_code == 404
    assert failure_of(missing)["code"] == "model_not_found"
    assert "some/model" in failure_of(missing)["message"]


def test_answer_is_a_chat_completion(api: Api) -> None:
    response = api.chat("CAPTION", DATA_URI)
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "some/model"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "answer to CAPTION", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 582, "completion_tokens": 7, "total_tokens": 589}
    assert response.headers["x-florence-task"] == "<CAPTION>"
    assert "x-florence-free-text" not in response.headers
    assert "x-florence-flaw" not in response.headers
    (asked,) = api.engine.asked
    assert asked[0] == PICTURE
    assert asked[2], "people wait for it, so it is urgent"


@pytest.mark.parametrize(
    ("text", "prompt", "words"),
    [
        ("generate_tags", "<GENERATE_TAGS>", None),
        ("<od>", "<OD>", None),
        ("OD a cat", "<OD>", "a cat"),
        ("<CAPTION_TO_PHRASE_GROUNDING> a cat", "<CAPTION_TO_PHRASE_GROUNDING>", "a cat"),
        ("  ocr_with_region\n", "<OCR_WITH_REGION>", None),
    ],
)
def test_text_that_names_a_task_chooses_it(api: Api, text: str, prompt: str, words: str | None) -> None:
    response = api.chat(text, DATA_URI)
    assert response.headers["x-florence-task"] == prompt
    assert "x-florence-free-text" not in response.headers
    assert [(ask.prompt, ask.text) for ask in api.engine.asked[0][1]] == [(prompt, words)]


@pytest.mark.parametrize(
    "text", ["What is in this image?", "Caption this, please", "describe", "", "Ein Bild: <3", "<3", "< OD >"]
)
def test_free_text_asks_for_a_detailed_caption_and_a_header_says_so(api: Api, text: str) -> None:
    response = api.chat(text, DATA_URI)
    assert response.status_code == 200
    assert response.headers["x-florence-task"] == FREE_TEXT_TASK
    assert "GET /prompts" in response.headers["x-florence-free-text"]
    assert [ask.prompt for ask in api.engine.asked[0][1]] == [FREE_TEXT_TASK]


@pytest.mark.parametrize("text", ["<DESCRIBE>", "<CAPTION> this", "OPEN_VOCABULARY_DETECTION", "REGION_TO_OCR here"])
def test_task_that_is_meant_and_cannot_be_asked_is_refused(api: Api, text: str) -> None:
    response = api.chat(text, DATA_URI)
    assert response.status_code == 400
    failure_of(response)
    assert api.engine.asked == []


def test_conversation_asks_the_last_text_about_the_last_picture(api: Api) -> None:
    other = "data:image/png;base64," + base64.b64encode(b"an earlier picture").decode()
    messages = [
        {"role": "system", "content": "You are a poet."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": other}}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA_URI}}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "GENERATE_TAGS"},
    ]
    assert api.http.post(CHAT, json={"messages": messages}).status_code == 200
    ((picture, asks, _),) = api.engine.asked
    assert (picture, asks[0].prompt) == (PICTURE, "<GENERATE_TAGS>")


def test_structured_answer_is_json_text(api: Api) -> None:
    boxes = {"bboxes": [[1, 2, 3, 4]], "labels": ["Kätzchen"]}
    with ThreadPoolExecutor() as pool:
        api.engine.holds_answers = True
        response = pool.submit(api.chat, "OD", DATA_URI)
        wait_for(lambda: api.engine.waiting)
        answer = Answer("<OD>", boxes, tokens=12, is_cut=True, prompt_tokens=580)
        api.engine.waiting[0].set_result(Done(1, (answer,), (10, 10), Stages()))
        (choice,) = response.result(60).json()["choices"]
    assert json.loads(choice["message"]["content"]) == boxes
    assert "Kätzchen" in choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert response.result().headers["x-florence-flaw"] == "cut"


def test_stream_is_chunks_and_ends_with_done(api: Api) -> None:
    said, ended = events_of(api.chat(stream=True))
    assert said["object"] == ended["object"] == "chat.completion.chunk"
    assert said["id"] == ended["id"]
    assert said["choices"][0]["delta"] == {"role": "assistant", "content": "answer to CAPTION", "refusal": None}
    assert said["choices"][0]["finish_reason"] is None
    assert ended["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert "usage" not in said


def test_stream_ends_with_usage_when_that_is_wanted(api: Api) -> None:
    *chunks, last = events_of(api.chat(stream=True, stream_options={"include_usage": True}))
    assert [chunk["usage"] for chunk in chunks] == [None, None]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 582, "completion_tokens": 7, "total_tokens": 589}


def test_stream_that_cannot_be_answered_has_an_error_and_its_status(api: Api) -> None:
    api.engine.error = PictureError("it is truncated")
    response = api.chat(stream=True)
    assert response.status_code == 400
    assert failure_of(response)["message"] == "Invalid image data: it is truncated"


def test_search_is_what_was_asked_for(api: Api) -> None:
    api.chat(max_tokens=20)
    api.chat(max_completion_tokens=30, max_tokens=20, temperature=0, seed=3)
    api.chat(max_tokens=10**6)
    api.chat(temperature=0.7, top_p=0.9, seed=-1, max_tokens=9.0)
    api.chat(top_p=0)
    asks = [asks[0] for _, asks, _ in api.engine.asked]
    assert [ask.max_new_tokens for ask in asks] == [20, 30, 4096, 9, None]
    assert [ask.temperature for ask in asks] == [0, 0, 0, 0.7, 1.0]
    assert asks[3].top_p == 0.9
    assert asks[3].seed == 2**64 - 1
    assert 0 < asks[4].top_p < 1e-6
    assert [ask.num_beams for ask in asks] == [None] * 5


def test_several_choices_are_drawn_each_for_itself(api: Api) -> None:
    answer = api.chat(n=3, temperature=1, seed=5).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [ask.seed for ask in api.engine.asked[0][1]] == [5, 6, 7]
    assert answer["usage"] == {"prompt_tokens": 582, "completion_tokens": 21, "total_tokens": 603}


def test_several_choices_without_a_temperature_are_the_same_best_answer(api: Api) -> None:
    answer = api.chat(n=2).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["answer to CAPTION"] * 2
    assert len(api.engine.asked[0][1]) == 1


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"seed": 2**64, "temperature": 1}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"stop": ["."]}, "stop"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"model": "gpt-4o"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "CAPTION"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x" * 4001}]}, "messages[0].content"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ],
)
def test_member_that_cannot_be_obeyed_is_named(api: Api, members: dict[str, Any], param: str) -> None:
    response = api.chat(**members)
    assert response.status_code == (404 if param == "model" else 400)
    assert failure_of(response)["param"] == param
    assert param.split("[")[0] in failure_of(response)["message"]
    assert api.engine.asked == []


def test_members_that_ask_for_nothing_are_taken(api: Api) -> None:
    nothing = {"n": 1, "stop": None, "tools": [], "logit_bias": {}, "presence_penalty": 0, "logprobs": False}
    members = nothing | {"response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}}
    assert api.chat(**members).status_code == 200


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://example.org/a.jpg", "server.image_hosts"),
        ("http://example.org/a.jpg", "server.image_hosts"),
        ("data:image/png,abc", "send the picture itself"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:image/png;base64,", "empty"),
    ],
)
def test_picture_that_is_not_there_is_refused(api: Api, url: str, text: str) -> None:
    response = api.chat("CAPTION", url)
    assert response.status_code == 400
    assert failure_of(response)["param"] == "image_url"
    assert text in failure_of(response)["message"]


def test_two_pictures_in_one_message_are_refused(api: Api) -> None:
    response = api.chat("CAPTION", DATA_URI, DATA_URI)
    assert response.status_code == 400
    assert "one at a time" in failure_of(response)["message"]


def test_address_is_fetched_where_the_configuration_lets_it(engine: FakeEngine) -> None:
    with serving(engine, fetch=lambda url: url.encode()) as api:
        assert api.chat("CAPTION", "https://images.example.org/a.jpg").status_code == 200
        assert engine.asked[0][0] == b"https://images.example.org/a.jpg"
        assert api.chat("CAPTION", "http://images.example.org/a.jpg").status_code == 400


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PictureError("it is truncated"), 400, None),
        (EngineError("out of memory"), 500, None),
        (CheckpointError("no such model"), 503, "unavailable"),
    ],
)
def test_errors_of_the_engine_have_openais_form(api: Api, error: Exception, status: int, code: str | None) -> None:
    api.engine.error = error
    response = api.chat()
    assert response.status_code == status
    assert failure_of(response)["code"] == code
    assert ("retry-after" in response.headers) == (status == 503)


def test_guards_and_limits_speak_openais_form_there_too(engine: FakeEngine) -> None:
    with serving(engine, token="secret", max_body_mb=0.01) as api:
        refused = api.chat()
        assert refused.status_code == 401
        assert failure_of(refused)["code"] == "invalid_api_key"
        headers = {"Authorization": "Bearer secret"}
        assert api.http.get("/v1/models", headers=headers).status_code == 200
        large = api.http.post(CHAT, json={"messages": "x" * 20_000}, headers=headers)
        assert (large.status_code, failure_of(large)["code"]) == (413, "request_too_large")
        foreign = api.http.get("/v1/models", headers=headers | {"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        failure_of(foreign)
        assert failure_of(api.http.get("/v1/nothing", headers=headers))["code"] == "not_found"
        assert api.http.get(CHAT, headers=headers).status_code == 405
        text = api.http.post(CHAT, content=b"x", headers=headers | {"Content-Type": "text/plain"})
        assert text.status_code == 415
        failure_of(text)
        broken = api.http.post(CHAT, content=b"{", headers=headers | {"Content-Type": "application/json"})
        assert broken.status_code == 400
        failure_of(broken)


def test_full_queue_is_said_in_openais_form_with_retry_after(engine: FakeEngine) -> None:
    engine.holds_answers = True
    with serving(engine, max_queued=1) as api, ThreadPoolExecutor() as pool:
        pool.submit(api.chat)
        wait_for(lambda: engine.waiting)
        refused = api.chat()
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert failure_of(refused)["code"] == "unavailable"
        engine.waiting[0].set_result(done(engine.asked[0][1]))


def test_page_of_an_allowed_site_may_read_the_headers(engine: FakeEngine) -> None:
    with serving(engine, allowed_origins=("https://photos.example.org",)) as api:
        response = api.http.get("/v1/models", headers={"Origin": "https://photos.example.org"})
        assert "X-Florence-Task" in response.headers["access-control-expose-headers"]
