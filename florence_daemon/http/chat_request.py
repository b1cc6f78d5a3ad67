"""Read a chat completion's request: one picture, and the text that chooses what is asked about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import falcon

from florence_daemon.engine.protocol import Ask
from florence_daemon.errors import FlorenceError, PromptError
from florence_daemon.http.keep_alive import read_keep_alive
from florence_daemon.http.question import DATA_URI, LIMITS, MAX_TEXT, decode_base64, read_json
from florence_daemon.tasks import find_task, split_prompt

# What is asked where the text names no task.
FREE_TEXT_TASK = "<MORE_DETAILED_CAPTION>"
MAX_CHOICES = 16
MAX_MESSAGES, MAX_PARTS = 256, 32
IN_BRACKETS = re.compile(r"\s*<\w+>", re.ASCII)
ROLES = ("user", "system", "developer", "assistant", "tool", "function")
# Members that would change the answer if anything here could obey them, and the values that ask for nothing.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "stop": ([], ""),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}

Fetch = Callable[[str], bytes]
"""Gives the picture at an https: address. Raises: FlorenceError."""


class ChatError(falcon.HTTPBadRequest):
    """A request that OpenAI's clients would be told of in the same words. param: the member that is wrong."""

    def __init__(self, param: str | None, text: str, code: str | None = None) -> None:
        super().__init__(description=text)
        self.param = param
        self.code_name = code


class UnknownModel(falcon.HTTPNotFound):
    """Another model is asked for than the one that answers here."""

    param = "model"
    code_name = "model_not_found"


@dataclass(frozen=True)
class ChatQuestion:
    """A request, checked.

    asks: one for each choice that may differ, else one for all. free_text: why the text chose no task; None if it did.
    """

    picture: bytes
    asks: tuple[Ask, ...]
    choices: int
    is_stream: bool
    wants_usage: bool
    keep_alive_s: float | None
    free_text: str | None


def check_model(wanted: Any, name: str) -> None:
    """Raises: UnknownModel unless it is this one that is wanted."""
    if wanted != name:
        raise UnknownModel(description=f"the model {wanted!r:.200} is not here, only {name!r}")


def read_chat(req: falcon.Request, model_name: str, fetch: Fetch | None) -> ChatQuestion:
    """Read and check a request. fetch: gets pictures by their addresses; None refuses them.

    Raises: FlorenceError, falcon.HTTPError (400, 404, 415).
    """
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise falcon.HTTPUnsupportedMediaType(description=f"Content-Type {kind or 'is missing'}: send application/json")
    members = {name: value for name, value in read_json(req).items() if value is not None}
    check_model(members.get("model", model_name), model_name)
    _check_not_offered(members)
    text, url = _read_messages(members.get("messages"))
    prompt, words, free_text = choose_task(text)
    choices = _whole(members, "n", 1, MAX_CHOICES) or 1
    asks = _asks(members, prompt, words, choices)
    keep_alive_s = _keep_alive(members)
    options = _typed(members, "stream_options", dict, {})
    is_stream = _typed(members, "stream", bool, False)
    wants_usage = _typed(options, "include_usage", bool, False)
    return ChatQuestion(_picture(url, fetch), asks, choices, is_stream, wants_usage, keep_alive_s, free_text)


def choose_task(text: str) -> tuple[str, str | None, str | None]:
    """Find the task that a text names, the words that go with it, and why it names none if it does not.

    "OD", "<od>" and "OPEN_VOCABULARY_DETECTION a red car" name theirs; "Caption this" and "What is it?" are free text.
    Who puts its first word into brackets means a task, and gets an error when there is none such.

    Raises: PromptError.
    """
    if not text.strip():
        return FREE_TEXT_TASK, None, "there is no text"
    if not IN_BRACKETS.match(text):
        try:
            task, behind = split_prompt(text)
        except PromptError:
            return FREE_TEXT_TASK, None, "the text names no task"
        if behind is not None and task.needs == "nothing":
            return FREE_TEXT_TASK, None, f"{task.token} takes no text"
    task, words = find_task(text)
    return task.token, words, None


def _check_not_offered(members: dict[str, Any]) -> None:
    for name, harmless in NOT_OFFERED.items():
        if name in members and members[name] not in harmless:
            raise ChatError(name, f"{name} is not offered here: leave it out", "unsupported_parameter")


def _read_messages(messages: Any) -> tuple[str, str]:
    """The text of the last message of a user, and the address of the last picture that users sent."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise ChatError("messages", f"messages: a list of 1 to {MAX_MESSAGES} messages is expected")
    text, url = None, None
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ChatError(where, f"{where}: an object is expected whose role is one of {', '.join(ROLES)}")
        if message["role"] == "user":
            text, urls = _read_content(message.get("content"), f"{where}.content")
            if len(urls) > 1:
                raise ChatError(f"{where}.content", f"{where}.content: {len(urls)} pictures; one at a time")
            url = urls[0] if urls else url
    if text is None or url is None:
        lacks = "a message of role user" if text is None else "a part of type image_url"
        raise ChatError("messages", f"messages: {lacks} is missing; one picture is asked about")
    return text, url


def _read_content(content: Any, where: str) -> tuple[str, list[str]]:
    """A user's words, those of several parts in lines, and the addresses of pictures."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not 1 <= len(content) <= MAX_PARTS:
        raise ChatError(where, f"{where}: a string, or a list of 1 to {MAX_PARTS} parts is expected")
    texts, urls = [], []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            urls.append(part["image_url"].get("url"))
        else:
            shapes = '{"type": "text", "text": …} or {"type": "image_url", "image_url": {"url": …}}'
            raise ChatError(f"{where}[{number}]", f"{where}[{number}]: {shapes} is expected")
    if any(len(text) > MAX_TEXT for text in texts):
        raise ChatError(where, f"{where}: a text may have {MAX_TEXT} characters")
    return "\n".join(texts), urls


def _picture(url: Any, fetch: Fetch | None) -> bytes:
    try:
        if isinstance(url, str) and url[:8].lower() == "https://" and fetch is not None:
            return fetch(url)
        if not isinstance(url, str) or not DATA_URI.match(url):
            raise ChatError("image_url", f"image_url.url: {url!r:.80}: {_EXPECTED}", "invalid_image_url")
        picture = decode_base64(url)
    except FlorenceError as error:
        raise ChatError("image_url", str(error), "invalid_image") from None
    if not picture:
        raise ChatError("image_url", "Invalid image data: it is empty", "invalid_image")
    return picture


_EXPECTED = (
    "send the picture itself, data:image/jpeg;base64,…; https: addresses are fetched only from server.image_hosts"
)


def _asks(members: dict[str, Any], prompt: str, words: str | None, choices: int) -> tuple[Ask, ...]:
    """What is asked: the best answer, the same for every choice; or, with a temperature, one drawn for each."""
    newer, older = (_whole(members, name) for name in ("max_completion_tokens", "max_tokens"))
    tokens = newer or older
    most = None if tokens is None else min(tokens, LIMITS["max_new_tokens"][1])
    top_p = _number(members, "top_p", 1.0)
    temperature = _number(members, "temperature", 2.0)
    if temperature is None:
        temperature = 0.0 if top_p in (None, 1.0) else 1.0
    seed = _whole(members, "seed", -(2**63), 2**63 - 1)
    if temperature == 0.0:
        return (Ask(prompt, words, max_new_tokens=most),)
    return tuple(
        Ask(
            prompt,
            words,
            max_new_tokens=most,
            temperature=temperature,
            top_p=1.0 if top_p is None else max(top_p, 1e-9),  # 0 is the likeliest alone
            seed=None if seed is None else (seed + number) % 2**64,
        )
        for number in range(choices)
    )


def _whole(members: dict[str, Any], name: str, low: int = 1, high: int | None = None) -> int | None:
    value = members.get(name)
    if type(value) is float and value.is_integer():
        value = int(value)  # JSON has one kind of number
    if value is None or (type(value) is int and low <= value and (high is None or value <= high)):
        return value
    to = "" if high is None else f" to {high}"
    raise ChatError(name, f"{name}: {value!r:.80} is not a whole number from {low}{to}")


def _number(members: dict[str, Any], name: str, high: float) -> float | None:
    value = members.get(name)
    if value is None or (type(value) in (int, float) and 0 <= value <= high):
        return value
    raise ChatError(name, f"{name}: {value!r:.80} is not a number from 0 to {high:g}")


def _typed(members: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = members.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise ChatError(name, f"{name}: {value!r:.80} is not {'true or false' if kind is bool else 'an object'}")
    return value


def _keep_alive(members: dict[str, Any]) -> float | None:
    try:
        return read_keep_alive(members["keep_alive"]) if "keep_alive" in members else None
    except ValueError as error:
        raise ChatError("keep_alive", str(error)) from None
