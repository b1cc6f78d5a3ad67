"""What other daemons ask at `/ask`, in OpenAPI's words."""

from __future__ import annotations

import re
from typing import Any

from florence_daemon.engine.protocol import Ask
from florence_daemon.exchange import MEDIA_TYPE, Question, pack_question
from florence_daemon.tasks import TASKS

Schema = dict[str, Any]


def offer() -> Schema:
    """What `GET /ask` answers with."""
    text, unknown_text, count = {"type": "string"}, {"type": ["string", "null"]}, {"type": "integer", "minimum": 1}
    unknown_count = {"type": ["integer", "null"], "minimum": 1}
    served = {
        "name": text,
        "revision": unknown_text,
        "precision": text,
        "image_size": unknown_count,
        "fast_decode": {"type": "boolean"},
    }
    members: Schema = {
        "version": {"const": 1},
        "served": _object(served),
        "at_once": count | {"description": "questions at once that keep it busy"},
        "side_px": unknown_count | {"description": "of the square that the model sees; null until it was loaded once"},
        "max_body_bytes": count,
        "error": unknown_text | {"description": "why the model cannot be had, as it was last seen"},
    }
    return _object(members)


def answer(result: Schema) -> Schema:
    """What `POST /ask` answers with. result: the schema of one."""
    count = {"type": "integer", "minimum": 0}
    each = {
        "prompt": {"type": "string"},
        "result": result,
        "tokens": count,
        "is_cut": {"type": "boolean"},
        "prompt_tokens": count,
    }
    seconds = {"type": "number", "minimum": 0}
    members = {
        "offer": offer(),
        "answers": {"type": "array", "items": _object(each)},
        "size_px": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "stages": _object(dict.fromkeys(("decode_s", "vision_s", "text_s"), seconds)),
    }
    return _object(members)


def question() -> Schema:
    """The body of `POST /ask`, as this program writes it for one prompt that needs no text."""
    line = pack_question(Question(b"", (Ask("<CAPTION>"),)))[0].decode().rstrip("\n")
    prompts = "|".join(task.token for task in TASKS if task.needs == "nothing")
    pattern = "^" + re.sub('"<CAPTION>"', f'"({prompts})"', re.escape(line).replace(r"\ ", " ")) + r"\n[\s\S]+$"
    schema = {
        "type": "string",
        "pattern": pattern,
        "description": "A line of JSON (version, urgent, size_px, asks), and behind it the picture's bytes",
    }
    return {"required": True, "content": {MEDIA_TYPE: {"schema": schema}}}


def _object(members: Schema) -> Schema:
    return {"type": "object", "properties": members, "required": list(members)}
