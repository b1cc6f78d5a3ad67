"""The real `openai` client against the real daemon with the demo model: at once, async, in a stream, and refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningDaemon, wait_for
from tests.pictures import CAPTION, DETAILED, TAGS, jpeg

openai = pytest.importorskip("openai", reason="what the openai client wants needs Python 3.11")

TOKEN = "let-me-in"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    home = tmp_path_factory.mktemp("openai")
    running = RunningDaemon(home, config=f"model: {{name: demo}}\nserver: {{token: {TOKEN}}}\n")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(daemon: RunningDaemon) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=TOKEN, max_retries=0) as opened:
        yield opened


def asking(text: str, picture: bytes | None = None) -> Any:
    url = "data:image/jpeg;base64," + base64.b64encode(picture or jpeg()).decode()
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": "demo", "messages": [{"role": "user", "content": parts}]}


def test_models_are_listed_and_retrieved(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "florence-daemon"
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.models.retrieve("gpt-4o")


def test_text_chooses_the_task(client: Any) -> None:
    answer = client.chat.completions.create(**asking("CAPTION"))
    assert answer.choices[0].message.content == CAPTION
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "demo"
    tags = client.chat.completions.create(**asking("<generate_tags>"))
    assert tags.choices[0].message.content == TAGS
    boxes = client.chat.completions.create(**asking("OD"))
    assert json.loads(str(boxes.choices[0].message.content))["labels"] == ["red circle", "blue square"]


def test_free_text_gets_a_detailed_caption_and_says_so(client: Any) -> None:
    answer = client.chat.completions.with_raw_response.create(**asking("What do you see?"))
    assert answer.parse().choices[0].message.content == DETAILED
    assert answer.headers["x-florence-task"] == "<MORE_DETAILED_CAPTION>"
    assert "names no task" in answer.headers["x-florence-free-text"]


def test_usage_is_counted_and_an_answer_at_its_limit_says_length(client: Any) -> None:
    whole = client.chat.completions.create(**asking("CAPTION"))
    assert whole.usage is not None
    longer = client.chat.completions.create(**asking("MORE_DETAILED_CAPTION"))
    assert longer.usage is not None
    assert longer.usage.completion_tokens > whole.usage.completion_tokens > 5
    assert longer.usage.total_tokens == longer.usage.prompt_tokens + longer.usage.completion_tokens
    cut = client.chat.completions.create(**asking("CAPTION"), max_tokens=4)
    assert cut.usage is not None
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 4)
    assert CAPTION.startswith(str(cut.choices[0].message.content))
    assert cut.usage.prompt_tokens == whole.usage.prompt_tokens


def test_stream_gives_the_same_text_and_its_usage(client: Any) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asking("CAPTION"), stream=True, stream_options=options))
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == CAPTION
    assert [each.choices[0].finish_reason for each in chunks if each.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5


def test_async_clients_are_answered_side_by_side(daemon: RunningDaemon) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key=TOKEN, max_retries=0) as client:
            create = client.chat.completions.create
            answers = await asyncio.gather(*(create(**asking(text)) for text in ("CAPTION", "GENERATE_TAGS")))
            streamed = await create(**asking("CAPTION"), stream=True)
            said = [chunk.choices[0].delta.content or "" async for chunk in streamed]
            return [*(answer.choices[0].message.content for answer in answers), "".join(said)]

    assert asyncio.run(ask()) == [CAPTION, TAGS, CAPTION]


def test_drawn_answers_are_the_same_with_the_same_seed(client: Any) -> None:
    drawn: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "seed": 11, "n": 2}
    first, again = (client.chat.completions.create(**asking("CAPTION"), **drawn) for _ in range(2))
    assert len(first.choices) == 2
    assert [each.message.content for each in first.choices] == [each.message.content for each in again.choices]


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (lambda: asking("<NOTHING>"), openai.BadRequestError, "Invalid prompt"),
        (lambda: asking("CAPTION", b"not a picture"), openai.BadRequestError, "Invalid image data"),
        (lambda: asking("CAPTION") | {"model": "gpt-4o"}, openai.NotFoundError, "gpt-4o"),
        (lambda: asking("CAPTION") | {"stop": "."}, openai.BadRequestError, "stop is not offered"),
        (lambda: asking("CAPTION", b"not a picture") | {"stream": True}, openai.BadRequestError, "Invalid image"),
    ],
)
def test_errors_are_those_of_the_client(
    client: Any, request_: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        client.chat.completions.create(**request_())
    assert caught.value.type == "invalid_request_error"


def test_wrong_token_is_an_authentication_error(daemon: RunningDaemon) -> None:
    with (
        openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_keep_alive_of_a_request_unloads_the_model_at_once(client: Any, daemon: RunningDaemon) -> None:
    def model() -> Any:
        status: Any = client.get(f"{daemon.url}/status", cast_to=object)
        return status["model"]

    client.chat.completions.create(**asking("CAPTION"), extra_body={"keep_alive": "1h"})
    assert model()["keep_alive_s"] == 3600
    client.chat.completions.create(**asking("CAPTION"), extra_body={"keep_alive": 0})
    wait_for(lambda: model()["state"] == "unloaded")
    assert model()["keep_alive_s"] == 300


def test_readme_example_works(daemon: RunningDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "openai.md").read_text(encoding="utf-8")
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert code in readme
    (tmp_path / "cat.jpg").write_bytes(jpeg())
    monkeypatch.chdir(tmp_path)
    said: list[object] = []
    code = code.replace("http://127.0.0.1:54880", daemon.url).replace('api_key="none"', f'api_key="{TOKEN}"')
    exec(code, {"print": said.append})
    assert said == [CAPTION]
