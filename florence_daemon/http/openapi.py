"""The API's description at `/openapi.json`, built from the limits and the tasks that the resources themselves use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import falcon

from florence_daemon import __version__
from florence_daemon.engine.member import MODEL_STATES
from florence_daemon.http import openapi_peer, openapi_v1, page_schemas
from florence_daemon.http.question import LIMITS, MAX_PROMPTS, MAX_TEXT, PRIORITIES
from florence_daemon.tasks import TASKS, prompt_tokens

Schema = dict[str, Any]

# Base64 with white space anywhere, alone or in a data URI.
_QUAD = r"([A-Za-z0-9+/]\s*){4}"
BASE64 = rf"^\s*({_QUAD})*({_QUAD}|([A-Za-z0-9+/]\s*){{3}}=|([A-Za-z0-9+/]\s*){{2}}=\s*=)\s*$"
REGION = r"^(<loc_[0-9]{1,3}>){4}$"
PHRASE = r"\S"
# A path of the machine that the daemon runs on.
ABSOLUTE = r"^([A-Za-z]:[\\/]|\\\\)[^\x00]*$" if os.name == "nt" else r"^/[^\x00]*$"

ERRORS = {
    "400": "The request, its prompt or its picture cannot be understood",
    "401": "The token is missing or wrong",
    "403": "The host is not this server's, or the page is another site's",
    "404": "Nothing is known of this path",
    "408": "The request did not arrive whole in time",
    "409": "The caption is not what the person saw who edits it, or this daemon has no model of its own to be asked",
    "413": "The request is larger than server.max_body_mb",
    "415": "Another Content-Type",
    "422": "A member is missing or out of range, or the picture brought the engine down three times",
    "431": "The headers are too large",
    "500": "The engine failed on this picture",
    "503": "Busy, stopping, or the model cannot be had; Retry-After says when to try again",
    "504": "No answer within server.request_timeout_s",
}
EVERYWHERE = ("400", "401", "403", "408", "413", "431")


class OpenApiResource:
    """`GET /openapi.json`."""

    def __init__(self, model_name: Callable[[], str]) -> None:
        self._model_name = model_name

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer."""
        resp.media = document(self._model_name())

    on_head = on_get


def document(model_name: str) -> Schema:
    """The whole description, as OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Florence Daemon", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": _paths(_operations(model_name)),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "server.token"}},
            "schemas": {
                "Error": _error(),
                "Picture": page_schemas.picture(),
                "Result": _result(),
                "Status": _status(),
            },
            "responses": {code: _error_response(code) for code in ERRORS},
        },
    }


def _paths(operations: list[tuple[str, str, Schema]]) -> Schema:
    paths: Schema = {}
    for path, method, operation in operations:
        paths.setdefault(path, {})[method] = operation
    return paths


def _operations(model_name: str) -> list[tuple[str, str, Schema]]:
    name = {"type": "string", "minLength": 1}
    state = {"enum": ["ok", "degraded", "failed", "stopping"]}
    reasons = {"type": "array", "items": {"type": "string"}}
    ready = _object({"status": state, "reasons": reasons})
    alive = _object({"status": {"const": "ok"}})
    return [
        ("/process_image", "post", _process_image()),
        ("/model", "get", _get("model", "The model's name", name)),
        ("/prompts", "get", _get("prompts", "The prompts", {"type": "array", "items": {"enum": prompt_tokens()}})),
        ("/status", "get", _get("status", "Model, queue, folders, failures", {"$ref": "#/components/schemas/Status"})),
        *openapi_v1.operations(model_name),
        ("/health/live", "get", _get("live", "The process answers", alive, is_open=True)),
        ("/health/ready", "get", _ready(ready)),
        ("/ping", "get", _text("ping", "`pong`", is_open=True)),
        ("/metrics", "get", _text("metrics", "What is measured, in Prometheus' text format")),
        *_page_operations(),
        ("/ask", "get", _offer()),
        ("/ask", "post", _ask()),
        ("/openapi.json", "get", _get("openapi", "This description", {"type": "object"})),
        ("/retry", "post", _action("retry", "Try failed images again, all or those at or below path", "retried")),
        ("/forget", "post", _action("forget", "Drop what is noted of the images at or below path", "forgotten", True)),
        ("/rescan", "post", _action("rescan", "Look at the folders now, all or those of path", "rescanned")),
        ("/load", "post", _state_action("load", "Load the model now", {"keep_alive": openapi_v1.KEEP_ALIVE})),
        ("/unload", "post", _state_action("unload", "Unload the model once nothing is asked of it", {})),
    ]


def _offer() -> Schema:
    operation = _get("offer", "What other daemons may ask of this one", openapi_peer.offer())
    operation["responses"] |= _errors("409")
    return operation


def _ask() -> Schema:
    answer = openapi_peer.answer({"$ref": "#/components/schemas/Result"})
    return {
        "operationId": "ask",
        "summary": "Answer for another daemon (model.server), which has no model of its own",
        "requestBody": openapi_peer.question(),
        "responses": {"200": _json("The answers", answer), **_errors("409", "415", "422", "500", "503", "504")},
    }


def _page_operations() -> list[tuple[str, str, Schema]]:
    """What the page at `/` uses; each answers 304 to a client that has the answer already."""
    overview = page_schemas.overview(_status())
    limit = _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": page_schemas.MOST_PICTURES})
    version = _parameter("v", "query", {"type": "string", "description": "the picture's thumbnail: changes with it"})
    id = _parameter("id", "path", {"type": "string", "pattern": page_schemas.ID}) | {"required": True}
    picture = {"$ref": "#/components/schemas/Picture"}
    thumbnail = _get("thumbnail", "A captioned picture made small", {}) | {"parameters": [id, version]}
    thumbnail["responses"] |= {
        "200": {"description": "The picture", "content": {"image/webp": {}}},
        **_errors("404", "503"),
    }
    one = _get("picture", "A captioned picture", picture) | {"parameters": [id]}
    one["responses"] |= _errors("404", "503")
    latest = _get("pictures", "The pictures captioned last", page_schemas.pictures()) | {"parameters": [limit]}
    latest["responses"] |= _errors("422", "503")
    edit = {
        "operationId": "edit_caption",
        "summary": "Write a person's text into a caption's file, if that is still as the person saw it",
        "parameters": [id],
        "requestBody": {"required": True, "content": {"application/json": {"schema": page_schemas.edit()}}},
        "responses": {"200": _json("The picture", picture), **_errors("404", "409", "415", "422", "503")},
    }
    operations = [
        ("/overview", "get", _get("overview", "What the page shows of the daemon's work", overview)),
        ("/tasks", "get", _get("tasks", "What a picture can be asked", page_schemas.tasks())),
        ("/pictures", "get", latest),
        ("/pictures/{id}", "get", one),
        ("/pictures/{id}/thumbnail", "get", thumbnail),
    ]
    for _, _, operation in operations:
        operation["responses"]["304"] = {"description": "The client has it: If-None-Match"}
    return [*operations, ("/pictures/{id}/caption", "put", edit)]


def _parameter(name: str, where: str, schema: Schema) -> Schema:
    return {"name": name, "in": where, "schema": schema}


def _get(name: str, summary: str, schema: Schema, *, is_open: bool = False) -> Schema:
    operation: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _json("The answer", schema), **_errors()},
    }
    return operation | ({"security": []} if is_open else {})


def _text(name: str, summary: str, *, is_open: bool = False) -> Schema:
    operation = _get(name, summary, {}, is_open=is_open)
    content = {"text/plain": {"schema": {"type": "string"}}}
    operation["responses"]["200"] = {"description": "The answer", "content": content}
    return operation


def _state_action(name: str, summary: str, members: Schema) -> Schema:
    members = {member: {"anyOf": [schema, {"type": "null"}]} for member, schema in members.items()}
    body = _object(members, required=[]) | {"additionalProperties": False}
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": False, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": _json("The model's state right afterwards", _object({"state": {"enum": list(MODEL_STATES)}})),
            **_errors("415", "422", "503"),
        },
    }


def _ready(schema: Schema) -> Schema:
    operation = _get("ready", "Whether work is taken: 200 while ok or degraded", schema, is_open=True)
    operation["responses"]["503"] = _json("failed (the model cannot be loaded) or stopping", schema)
    return operation


def _action(name: str, summary: str, counted: str, needs_path: bool = False) -> Schema:
    path: Schema = {"type": "string", "pattern": ABSOLUTE, "description": "absolute, on the daemon's machine"}
    body = _object({"path": path if needs_path else {"anyOf": [path, {"type": "null"}]}})
    body |= {"required": ["path"] if needs_path else [], "additionalProperties": False}
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": needs_path, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": _json("How many", _object({counted: {"type": "integer", "minimum": 0}})),
            **_errors("404", "415", "422"),
        },
    }


def _process_image() -> Schema:
    told = {"result": {"$ref": "#/components/schemas/Result"}, "flaw": _flaw()}
    one = _object(told, required=["result"])
    each = _object({"prompt": {"enum": prompt_tokens()}} | told, required=["prompt", "result"])
    answer = {"anyOf": [one, _object({"results": {"type": "array", "items": each}})]}
    base64 = {"type": "string", "pattern": BASE64, "description": "base64, or a data URI with it"}
    binary = {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1}
    content = {
        "application/json": {"schema": {"anyOf": [*_one_prompt(base64, knows_null=True), _several_prompts(base64)]}},
        "multipart/form-data": {"schema": {"anyOf": _one_prompt(binary, knows_null=False)}},
    }
    return {
        "operationId": "process_image",
        "summary": "Ask about a picture",
        "description": "Prompts may be in any case, with or without their brackets, with their text behind them. The "
        "body may also be the bare picture (Content-Type: image/*), the other members in the query.",
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _json("The answer", answer), **_errors("415", "422", "500", "503", "504")},
    }


def _flaw() -> Schema:
    return {
        "enum": ["empty", "leak", "loop", "cut"],
        "description": "Only where the answer is not fit to be a caption: it is empty, holds the model's own tokens, "
        "repeats itself, or was cut off at the limit of tokens",
    }


def _one_prompt(picture: Schema, *, knows_null: bool) -> list[Schema]:
    """A picture and a prompt, with the text that the prompt needs."""
    text: Schema = {"type": "string", "maxLength": MAX_TEXT}
    texts = {"text": text | {"pattern": PHRASE}, "region": {"type": "string", "pattern": REGION}}
    branches = []
    for need in ("nothing", "text or nothing", "text", "region"):
        prompt = {"prompt": {"enum": [task.token for task in TASKS if task.needs == need]}}
        needed = {"text": texts[need]} if need in texts else {}
        optional = {"text": text if need == "text or nothing" else False}
        branches.append(_asking({"image": picture, **prompt, **needed}, optional, knows_null))
    return branches


def _several_prompts(picture: Schema) -> Schema:
    plain = {"enum": [task.token for task in TASKS if task.needs == "nothing"]}
    prompts = {"type": "array", "items": plain, "minItems": 1, "maxItems": MAX_PROMPTS}
    return _asking({"image": picture, "prompts": prompts}, {"text": False}, knows_null=True)


def _asking(needed: Schema, optional: Schema, knows_null: bool) -> Schema:
    """A request's members; knows_null: in JSON, null is a member that is left out."""
    numbers = {name: {"type": "integer", "minimum": low, "maximum": high} for name, (low, high) in LIMITS.items()}
    keep_alive = openapi_v1.KEEP_ALIVE if knows_null else openapi_v1.DURATION
    others: Schema = optional | numbers | {"priority": {"enum": sorted(PRIORITIES)}, "keep_alive": keep_alive}
    if knows_null:
        others = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in others.items()}
    return _object(others | needed, required=list(needed))


def _result() -> Schema:
    numbers = {"type": "array", "items": {"type": "number"}}
    places = {
        "bboxes": {"type": "array", "items": numbers},
        "quad_boxes": {"type": "array", "items": numbers},
        "polygons": {"type": "array", "items": {"type": "array", "items": numbers}},
    }
    labels = {"type": "array", "items": {"type": "string"}}
    names = dict.fromkeys(("labels", "bboxes_labels", "polygons_labels"), labels)
    return {
        "description": "Text, or places in pixels of the upright picture",
        "anyOf": [{"type": "string"}, _object(places | names, required=[])],
    }


def _status() -> Schema:
    text, count, seconds = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": ["number", "null"]}
    unknown_text, unknown_count = {"type": ["string", "null"]}, {"type": ["integer", "null"]}
    model: Schema = {
        "name": text,
        "state": {"enum": list(MODEL_STATES)},
        "pid": unknown_count,
        "device": unknown_text,
        "load_s": seconds,
        "unloads_in_s": seconds,
        "error": unknown_text,
        "refuses_for_s": seconds,
        "resident_mb": unknown_count,
        "gpu_mb": unknown_count,
        "keep_alive_s": {"type": "number"},
        "side_px": unknown_count,
        "idle_unload_s": {"type": "number"},
        "engines": {"type": "array", "minItems": 1, "items": _engine(text, count, seconds)},
    }
    queue = dict.fromkeys(("http", "folder", "backfill", "running", "settling", "captioned", "failed"), count)
    health = {"enum": ["ok", "degraded", "failed"]}
    watching = {"watching": text, "scanning": {"type": "boolean"}, "settling": count}
    folder = _object({"path": text, "health": health, "reason": text, **watching})
    failure = _object({"path": text, "reason": text, "attempts": count, "next_try_in_s": seconds})
    members: Schema = {
        "version": text,
        "uptime_s": {"type": "number", "minimum": 0},
        "model": _object(model),
        "queue": _object(queue),
        "folders": {"type": "array", "items": folder},
        "failures": {"type": "array", "items": failure},
        "configuration": _object(
            {"file": unknown_text, "error": unknown_text, "needs_restart": {"type": "array", "items": text}}
        ),
    }
    return _object(members)


def _engine(text: Schema, count: Schema, seconds: Schema) -> Schema:
    unknown_text, unknown_count = {"type": ["string", "null"]}, {"type": ["integer", "null"]}
    return _object(
        {
            "name": text,
            "state": {"enum": list(MODEL_STATES)},
            **dict.fromkeys(("running", "answered"), count),
            **dict.fromkeys(("device", "error"), unknown_text),
            **dict.fromkeys(("load_s", "unloads_in_s", "retries_in_s"), seconds),
            **dict.fromkeys(("pid", "resident_mb", "gpu_mb"), unknown_count),
        }
    )


def _error() -> Schema:
    text = {"type": "string", "minLength": 1}
    return _object({"detail": text, "error": text}) | {"description": "The same text twice"}


def _errors(*codes: str) -> Schema:
    return {code: {"$ref": f"#/components/responses/{code}"} for code in sorted({*EVERYWHERE, *codes})}


def _error_response(code: str) -> Schema:
    response = _json(ERRORS[code], {"$ref": "#/components/schemas/Error"})
    header = {"401": "WWW-Authenticate", "503": "Retry-After"}.get(code)
    return response | ({"headers": {header: {"schema": {"type": "string"}}}} if header else {})


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(members: Schema, required: list[str] | None = None) -> Schema:
    return {"type": "object", "properties": members, "required": list(members) if required is None else required}
