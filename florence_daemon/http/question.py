"""Read what a request asks: a picture and prompts, sent as JSON, as a form, or as the bare picture."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import falcon

from florence_daemon.engine.protocol import Ask
from florence_daemon.errors import PictureError, PromptError
from florence_daemon.http.keep_alive import read_keep_alive
from florence_daemon.queue import Kind
from florence_daemon.tasks import find_task, prompt_tokens

# Members besides the picture and the prompt that a request may have, with the numbers they may hold.
LIMITS = {"num_beams": (1, 16), "max_new_tokens": (1, 4096)}
# Several prompts about one picture share its decoding and its vision part; more than there are tasks is a mistake.
MAX_PROMPTS = 32
# Far more than a request has; commas in a text count too.
MAX_JSON_MEMBERS = 10_000
# The longest phrase that a task takes, in characters; the model's own limit is about a thousand tokens.
MAX_TEXT = 4000
PRIORITIES = {"interactive": Kind.HTTP, "backfill": Kind.BACKFILL}
# No two parts of it may match the same letters: over a text of megabytes that takes hours, and nothing else runs.
DATA_URI = re.compile(r"data:[\w.+-]*(/[\w.+-]*)?(;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A request, checked. is_list: several prompts were asked for, so the answer is a list too.

    keep_alive_s: how long the model is to stay without work; None leaves that as it is.
    """

    picture: bytes
    asks: tuple[Ask, ...]
    kind: Kind
    is_list: bool
    keep_alive_s: float | None = None


@dataclass
class _Members:
    """A request's members before they are checked, whichever way they came."""

    picture: bytes | None = None
    prompts: list[Any] = field(default_factory=list)
    is_list: bool = False
    others: dict[str, Any] = field(default_factory=dict)


def read_question(req: falcon.Request) -> Question:
    """Read a request of any of the three forms.

    Raises: PromptError, PictureError (both 400), falcon.HTTPError (400, 413, 415, 422).
    """
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return _check(_from_json(req))
    if kind == "multipart/form-data":
        return _check(_from_form(req))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return _check(_from_body(req))
    raise falcon.HTTPUnsupportedMediaType(
        description=f"Content-Type {kind or 'is missing'}: send application/json, multipart/form-data or image/*"
    )


def read_json(req: falcon.Request) -> dict[str, Any]:
    """Read a body that must be a JSON object. Raises: falcon.HTTPBadRequest."""
    body = req.bounded_stream.read()
    # Each empty list in a text of 32 MB takes 28 times its three bytes; a picture in base64 holds none of these.
    if sum(map(body.count, (b"[", b"{", b","))) > MAX_JSON_MEMBERS:
        raise falcon.HTTPBadRequest(description=f"Invalid JSON: it has more than {MAX_JSON_MEMBERS} members")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise falcon.HTTPBadRequest(description=f"Invalid JSON: {error}") from None
    if not isinstance(data, dict):
        raise falcon.HTTPBadRequest(description="Invalid JSON: an object with members is expected")
    return data


def _from_json(req: falcon.Request) -> _Members:
    data = read_json(req)
    members = _Members(others={name: value for name, value in data.items() if value is not None})
    if members.others.get("image") is not None:
        members.picture = decode_base64(members.others["image"])
    if "prompts" in members.others:
        members.prompts, members.is_list = members.others["prompts"], True
    elif "prompt" in members.others:
        members.prompts = [members.others["prompt"]]
    return members


def _from_form(req: falcon.Request) -> _Members:
    members = _Members()
    try:
        for part in req.get_media():
            if part.name == "image":
                members.picture = part.stream.read()
            elif part.name == "prompt":
                members.prompts.append(part.get_text())
            elif part.name is not None:
                members.others[part.name] = part.get_text()
    except (falcon.MediaMalformedError, falcon.MultipartParseError, UnicodeError, ValueError) as error:
        reason = getattr(error, "description", None) or str(error)
        raise falcon.HTTPBadRequest(description=f"Invalid form: {reason}") from None
    members.is_list = len(members.prompts) > 1
    return members


def _from_body(req: falcon.Request) -> _Members:
    prompts = req.get_param_as_list("prompt") or []
    others = {name: value for name, value in req.params.items() if name != "prompt" and isinstance(value, str)}
    return _Members(req.bounded_stream.read(), prompts, len(prompts) > 1, others)


def decode_base64(text: Any) -> bytes:
    """Decode base64 or a base64 data URI; white space between the characters is allowed, nothing else.

    Raises: PictureError.
    """
    if not isinstance(text, str):
        raise PictureError(f"Invalid image data: base64 text is expected, not {type(text).__name__}")
    uri = DATA_URI.match(text)
    body = re.sub(r"\s+", "", text[uri.end() :] if uri else text)
    try:
        picture = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"Invalid image data: this is not base64: {error}") from None
    return picture


def _check(members: _Members) -> Question:
    if members.picture is None:
        raise falcon.HTTPUnprocessableEntity(description="the member image is missing: the picture, as base64 in JSON")
    if not isinstance(members.prompts, list) or not members.prompts:
        names = ", ".join(prompt_tokens())
        raise falcon.HTTPUnprocessableEntity(description=f"the member prompt is missing: give one of {names}")
    if len(members.prompts) > MAX_PROMPTS:
        raise falcon.HTTPUnprocessableEntity(description=f"{len(members.prompts)} prompts; at most {MAX_PROMPTS}")
    if not members.picture:
        raise PictureError("Invalid image data: it is empty")
    asks = tuple(_ask(prompt, members.others) for prompt in members.prompts)
    return Question(members.picture, asks, _kind(members.others), members.is_list, keep_alive_of(members.others))


def _ask(prompt: Any, others: Mapping[str, Any]) -> Ask:
    text = others.get("text")
    if not isinstance(prompt, str) or not isinstance(text, str | None):
        raise PromptError(f"Invalid prompt: {prompt!r:.80} with text {text!r:.80}: both must be strings")
    if max(len(prompt), len(text or "")) > MAX_TEXT:
        raise falcon.HTTPUnprocessableEntity(description=f"prompt and text may have {MAX_TEXT} characters each")
    task, inline = find_task(prompt, text)
    numbers = {name: _number(name, others[name]) for name in LIMITS if name in others}
    return Ask(task.token, inline, **numbers)


def _number(name: str, value: Any) -> int:
    low, high = LIMITS[name]
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9:
        value = int(value)
    elif type(value) is float and value.is_integer():
        value = int(value)  # JSON has one kind of number
    if type(value) is not int or not low <= value <= high:
        raise falcon.HTTPUnprocessableEntity(description=f"{name}: {value!r:.80} is not a number from {low} to {high}")
    return value


def keep_alive_of(others: Mapping[str, Any]) -> float | None:
    """The member `keep_alive` in seconds, None when there is none. Raises: falcon.HTTPUnprocessableEntity."""
    if others.get("keep_alive") is None:
        return None
    try:
        return read_keep_alive(others["keep_alive"])
    except ValueError as error:
        raise falcon.HTTPUnprocessableEntity(description=str(error)) from None


def _kind(others: Mapping[str, Any]) -> Kind:
    priority = others.get("priority", "interactive")
    if not isinstance(priority, str) or priority not in PRIORITIES:
        raise falcon.HTTPUnprocessableEntity(
            description=f"priority: {priority!r:.80} is not known; give one of {', '.join(PRIORITIES)}"
        )
    return PRIORITIES[priority]
