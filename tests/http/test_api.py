"""The API as its clients use it: a real server on a real socket, the engine replaced."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from florence_daemon.config import ModelConfig, ServerConfig
from florence_daemon.engine.protocol import Answer, Ask
from florence_daemon.errors import CheckpointError, ConfigError, EngineError, PictureError
from florence_daemon.http.health import Readiness
from florence_daemon.http.places import Places
from florence_daemon.http.server import HttpServer
from florence_daemon.tasks import prompt_tokens
from tests.conftest import FakeEngine, done, run_command, wait_for
from tests.http.api import BASE64, PICTURE, Api, error_of, serving


def test_model_is_a_bare_string(api: Api) -> None:
    response = api.http.get("/model")
    assert response.text == '"some/model"'
    assert response.headers["content-type"].startswith("application/json")


def test_prompts_are_an_array_with_promptgens_seven_first(api: Api) -> None:
    assert api.http.get("/prompts").json()[:7] == [
        "<GENERATE_TAGS>",
        "<CAPTION>",
        "<DETAILED_CAPTION>",
        "<MORE_DETAILED_CAPTION>",
        "<ANALYZE>",
        "<MIXED_CAPTION>",
        "<MIXED_CAPTION_PLUS>",
    ]


@pytest.mark.parametrize("prompt", ["<CAPTION>", "CAPTION", "caption", "<caption>"])
def test_prompt_is_taken_in_any_case_with_or_without_brackets(api: Api, prompt: str) -> None:
    assert api.process(prompt=prompt).json() == {"result": "answer to CAPTION"}
    assert api.engine.asked[0][0] == PICTURE


@pytest.mark.parametrize(
    "image",
    [
        "data:image/jpeg;base64," + BASE64,
        "data:;base64," + BASE64,
        "\r\n".join(BASE64[n : n + 20] for n in range(0, len(BASE64), 20)),
    ],
)
def test_data_uris_and_line_breaks_are_base64_too(api: Api, image: str) -> None:
    assert api.process(image=image).status_code == 200
    assert api.engine.asked[0][0] == PICTURE


@pytest.mark.parametrize("image", ["", "%%%", "AAA", "data:image/png,abc", "https://x/y.png", "é", 7, ["x"], "\ud800"])
def test_anything_else_is_no_image(api: Api, image: Any) -> None:
    body = json.dumps({"image": image, "prompt": "CAPTION"}).encode()
    response = api.http.post("/process_image", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert error_of(response).startswith("Invalid image data:")


def test_unknown_prompt_is_refused_with_the_list(api: Api) -> None:
    response = api.process(prompt="DESCRIBE")
    assert response.status_code == 400
    assert error_of(response).startswith("Invalid prompt")
    assert all(token in error_of(response) for token in prompt_tokens())
    assert api.engine.asked == []


@pytest.mark.parametrize("missing", ["image", "prompt"])
def test_missing_member_is_named(api: Api, missing: str) -> None:
    response = api.process(**{missing: None})
    assert response.status_code == 422
    assert missing in error_of(response)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"image": NaN', b"null"])
def test_malformed_json_is_a_clear_400(api: Api, body: bytes) -> None:
    response = api.http.post("/process_image", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert error_of(response).startswith("Invalid JSON")


def test_text_comes_as_a_member_or_after_the_prompt(api: Api) -> None:
    assert api.process(prompt="<CAPTION_TO_PHRASE_GROUNDING>", text="a cat").status_code == 200
    assert api.process(prompt="<CAPTION_TO_PHRASE_GROUNDING> a cat").status_code == 200
    assert [asks[0].text for _, asks, _ in api.engine.asked] == ["a cat", "a cat"]


def test_several_prompts_share_one_request(api: Api) -> None:
    response = api.process(prompts=["CAPTION", "GENERATE_TAGS"])
    assert response.json() == {
        "results": [
            {"prompt": "<CAPTION>", "result": "answer to CAPTION"},
            {"prompt": "<GENERATE_TAGS>", "result": "answer to GENERATE_TAGS"},
        ]
    }
    assert len(api.engine.asked) == 1


def test_answer_that_is_no_caption_is_given_and_says_so_beside_the_result(api: Api) -> None:
    api.engine.answer = lambda ask: Answer(ask.prompt, "a cat on a", 1024, is_cut=ask.prompt == "<CAPTION>")
    assert api.process(prompt="CAPTION").json() == {"result": "a cat on a", "flaw": "cut"}
    assert api.process(prompts=["CAPTION", "DETAILED_CAPTION"]).json() == {
        "results": [
            {"prompt": "<CAPTION>", "result": "a cat on a", "flaw": "cut"},
            {"prompt": "<DETAILED_CAPTION>", "result": "a cat on a"},
        ]
    }
    api.engine.answer = lambda ask: Answer(ask.prompt, "")
    assert api.process(prompt="CAPTION").json() == {"result": "", "flaw": "empty"}


def test_form_needs_no_base64(api: Api) -> None:
    response = api.http.post("/process_image", data={"prompt": "caption"}, files={"image": ("a.jpg", PICTURE * 9000)})
    assert response.json() == {"result": "answer to CAPTION"}
    assert api.engine.asked[0][0] == PICTURE * 9000


def test_bare_picture_needs_no_form(api: Api) -> None:
    headers = {"Content-Type": "image/png"}
    response = api.http.post("/process_image?prompt=caption&num_beams=1", content=PICTURE, headers=headers)
    assert response.json() == {"result": "answer to CAPTION"}
    assert api.engine.asked[0][0] == PICTURE
    assert api.engine.asked[0][1][0].num_beams == 1


def test_form_with_a_broken_body_is_a_clear_400(api: Api) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = api.http.post("/process_image", content=b"--y\r\nnothing", headers=headers)
    assert response.status_code == 400
    assert error_of(response).startswith("Invalid form")


def test_other_content_types_are_refused(api: Api) -> None:
    response = api.http.post("/process_image", content=b"x", headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert "text/plain" in error_of(response)


@pytest.mark.parametrize(
    "members",
    [
        {"num_beams": 0},
        {"num_beams": "many"},
        {"max_new_tokens": 10**9},
        {"priority": "first"},
        {"prompts": ["OD"] * 40},
    ],
)
def test_members_out_of_range_are_named(api: Api, members: dict[str, Any]) -> None:
    response = api.process(**members)
    assert response.status_code == 422
    assert next(iter(members)) in error_of(response)


def test_unknown_address_and_method_answer_in_the_same_form(api: Api) -> None:
    assert api.http.get("/nothing").status_code == 404
    error_of(api.http.get("/nothing"))
    assert api.http.get("/process_image").status_code == 405
    error_of(api.http.get("/process_image"))


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (PictureError("it is truncated"), 400, "Invalid image data: it is truncated"),
        (EngineError("out of memory"), 500, "Error processing image: out of memory"),
        (CheckpointError("no such model"), 503, "no such model"),
    ],
)
def test_errors_of_the_engine_become_statuses(api: Api, error: Exception, status: int, text: str) -> None:
    api.engine.error = error
    response = api.process()
    assert (response.status_code, error_of(response)) == (status, text)
    assert ("retry-after" in response.headers) == (status == 503)


def test_full_queue_answers_503_at_once_and_health_still_answers(api: Api) -> None:
    api.engine.holds_answers = True
    api.engine.in_flight = 1
    with ThreadPoolExecutor() as pool:
        accepted = [pool.submit(api.process) for _ in range(3)]
        wait_for(lambda: (counts := api.queue.counts())["running"] == 1 and counts["http"] == 2)
        refused = api.process()
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert api.http.get("/health/live").json() == {"status": "ok"}
        assert api.http.get("/status").json()["queue"]["http"] == 2
        for answered in range(3):
            wait_for(lambda answered=answered: len(api.engine.waiting) > answered)  # type: ignore[misc]
            api.engine.waiting[answered].set_result(done(api.engine.asked[answered][1]))
        assert [each.result(60).status_code for each in accepted] == [200, 200, 200]


def test_request_without_an_answer_in_time_is_given_up_with_504(engine: FakeEngine) -> None:
    engine.holds_answers = True
    with serving(engine, request_timeout_s=1) as api:
        response = api.process()
        assert response.status_code == 504
        assert "server.request_timeout_s" in error_of(response)
        # On a busy machine it may not even have come to its turn.
        for late in engine.waiting:
            late.set_result(done(()))
        engine.holds_answers = False
        assert api.process().status_code == 200


def test_readiness_ends_with_the_stop(api: Api) -> None:
    assert api.http.get("/health/ready").status_code == 200
    api.readiness = Readiness("stopping", ("the daemon takes no new work",))
    stopping = api.http.get("/health/ready")
    assert stopping.status_code == 503
    assert stopping.json() == {"status": "stopping", "reasons": ["the daemon takes no new work"]}


def test_port_in_use_says_what_to_do(api: Api) -> None:
    port = int(api.server.address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=r"cannot be listened on.*--host and --port"):
        HttpServer(None, ServerConfig(port=port), Places(1, ()))


def test_backfill_asks_a_server_once_more_for_what_is_no_caption(api: Api, tmp_path: Path) -> None:
    def say(ask: Ask) -> Answer:
        is_poor = ask.prompt == "<CAPTION>" and ask.max_new_tokens == ModelConfig().max_new_tokens
        return Answer(ask.prompt, "a cat on a" if is_poor else "a cat on a mat", 100, is_cut=is_poor)

    api.engine.answer = say
    (tmp_path / "a.png").write_bytes(PICTURE)
    command = ["backfill", ".", "--server", f"http://127.0.0.1:{api.port}", "--prompt", "CAPTION", "--ext", "txt"]
    result = run_command(*command, "--prompt", "DETAILED_CAPTION", "--ext", "long", home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [len(asks) for _, asks, _ in api.engine.asked] == [2, 1]
    assert (tmp_path / "a.txt").read_text() == "a cat on a mat\n"
    api.engine.answer = lambda ask: Answer(ask.prompt, "x", 100, is_cut=ask.prompt == "<CAPTION>")
    (tmp_path / "a.txt").unlink()
    result = run_command(*command, home=tmp_path)
    assert result.returncode == 1
    assert "<CAPTION> was cut off" in result.stderr
    assert not (tmp_path / "a.txt").exists()
