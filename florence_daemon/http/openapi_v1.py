"""The description of what OpenAI's clients ask, `/v1/…`, for `/openapi.json`."""

from __future__ import annotations

from typing import Any

from florence_daemon.http.chat_request import MAX_CHOICES, MAX_MESSAGES, MAX_PARTS
from florence_daemon.http.keep_alive import MOST_S
from florence_daemon.http.question import MAX_TEXT
from florence_daemon.tasks import TASKS

Schema = dict[str, Any]

DURATION: Schema = {
    "description": "Unload the model after so long without work: seconds, or 5m; 0 at once, negative for never",
    "type": "string",
    "pattern": r"^-?([0-9]{1,9}|([0-9]{1,9}(ms|s|m|h)){1,4})$",
}
KEEP_ALIVE: Schema = {"anyOf": [DURATION, {"type": "number", "minimum": -MOST_S, "maximum": MOST_S}]}
DATA_URI = r"^data:image/(jpeg|png|webp|gif);base64,([A-Za-z0-9+/]{4})+$"
ERRORS = {
    "400": "The request, its text or its picture cannot be understood",
    "401": "The token is missing or wrong",
    "403": "The host is not this server's, or the page is another site's",
    "404": "The model is not here",
    "408": "The request did not arrive whole in time",
    "413": "The request is larger than server.max_body_mb",
    "415": "Another Content-Type than application/json",
    "422": "The picture brought the engine down three times",
    "431": "The headers are too large",
    "500": "The engine failed on this picture",
    "503": "Busy, stopping, or the model cannot be had; Retry-After says when to try again",
    "504": "No answer within server.request_timeout_s",
}
EVERYWHERE = ("400", "401", "403", "408", "413", "431")


def operations(model_name: str) -> list[tuple[str, str, Schema]]:
    """Paths, methods and what they do."""
    model = _object(
        {"id": {"const": model_name}, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT}
    )
    models = _object({"object": {"const": "list"}, "data": {"type": "array", "items": model}})
    name = {"name": "id", "in": "path", "required": True, "schema": {"enum": [model_name]}}
    one = _operation("v1_model", "The model, if that is its name", _json(model), "404")
    return [
        ("/v1/models", "get", _operation("v1_models", "The one model that there is", _json(models))),
        ("/v1/models/{id}", "get", one | {"parameters": [name]}),
        ("/v1/chat/completions", "post", _chat(model_name)),
    ]


def _chat(model_name: str) -> Schema:
    event = _object({"data": {"type": "string"}}) | {"description": "An event: a chat.completion.chunk, or [DONE]"}
    stream = {"text/event-stream": {"schema": event}}
    answer = _json(_completion(model_name)) | stream
    operation = _operation("v1_chat", "Ask about a picture", answer, "404", "415", "422", "500", "503", "504")
    return operation | {
        "description": "The text of the last user's message chooses the task: a task's name with its text behind it, "
        "else a detailed caption; a first word in <> must be a task's name. Content may be a string too, and a picture "
        "come with an earlier message of a user; what others said is not read.",
        "requestBody": {"required": True, "content": _json(_request(model_name))},
    }


def _request(model_name: str) -> Schema:
    names = [task.token.strip("<>") for task in TASKS if task.needs in ("nothing", "text or nothing")]
    text = {"anyOf": [{"enum": names}, {"type": "string", "maxLength": MAX_TEXT}]}
    picture = _object({"type": {"const": "image_url"}, "image_url": _object({"url": _string(DATA_URI)})})
    words = _object({"type": {"const": "text"}, "text": text})
    content = {"type": "array", "prefixItems": [picture], "items": words, "minItems": 1, "maxItems": MAX_PARTS}
    message = _object({"role": {"const": "user"}, "content": content})
    flag = {"type": "boolean"}
    optional: Schema = {
        "model": {"enum": [model_name]},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "max_tokens": {"type": "integer", "minimum": 1},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
        "seed": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "stream": flag,
        "stream_options": {"type": "object", "properties": {"include_usage": _or_null(flag)}},
        "keep_alive": KEEP_ALIVE,
    }
    messages = {"type": "array", "items": message, "minItems": 1, "maxItems": MAX_MESSAGES}
    members = {"messages": messages} | {name: _or_null(schema) for name, schema in optional.items()}
    return _object(members, required=["messages"])


def _completion(model_name: str) -> Schema:
    count = {"type": "integer", "minimum": 0}
    message = _object({"role": {"const": "assistant"}, "content": {"type": "string"}})
    choice = _object({"index": count, "message": message, "finish_reason": {"enum": ["stop", "length"]}})
    return _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": count,
            "model": {"const": model_name},
            "choices": {"type": "array", "items": choice, "minItems": 1},
            "usage": _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), count)),
        }
    )


def _operation(name: str, summary: str, content: Schema, *codes: str) -> Schema:
    responses = {code: _error_response(code) for code in sorted({*EVERYWHERE, *codes})}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "The answer", "content": content}} | responses,
    }


def _error_response(code: str) -> Schema:
    text = {"type": ["string", "null"]}
    error = _object({"error": _object({"message": _TEXT, "type": _TEXT, "param": text, "code": text})})
    header = {"401": "WWW-Authenticate", "503": "Retry-After"}.get(code)
    headers = {"headers": {header: {"schema": {"type": "string"}}}} if header else {}
    return {"description": ERRORS[code], "content": _json(error)} | headers


_TEXT: Schema = {"type": "string", "minLength": 1}


def _string(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _object(members: Schema, required: list[str] | None = None) -> Schema:
    return {"type": "object", "properties": members, "required": list(members) if required is None else required}
