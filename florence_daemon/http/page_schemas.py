"""What the page's requests and answers look like, as JSON schemas, and the limits that they are held to."""

from __future__ import annotations

from typing import Any

from florence_daemon.activity import MINUTES
from florence_daemon.tasks import TASKS

Schema = dict[str, Any]

# Pictures to an answer: as many as are asked for, within this.
PICTURES, MOST_PICTURES = 24, 240
# Characters of a caption; a trainer reads some hundreds.
MOST_CHARACTERS = 16000
# A caption's ending with its dot, what stands for its bytes, and for a picture.
EXTENSION = r'^\.[^\x00-\x1f\x7f/\\:*?"<>|]{1,64}$'
VERSION = r"^[0-9a-f]{32}$"
ID = r"^[A-Za-z0-9_-]+$"

_TEXT: Schema = {"type": "string"}
_UNKNOWN_TEXT: Schema = {"type": ["string", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def overview(status: Schema) -> Schema:
    """The status without its time, its failures cut at a number, and what was done in each of the last minutes."""
    members = {name: schema for name, schema in status["properties"].items() if name != "uptime_s"}
    activity = {"type": "array", "items": _COUNT, "minItems": MINUTES, "maxItems": MINUTES}
    return _object(members | {"failures_total": _COUNT, "activity": activity})


def tasks() -> Schema:
    """What a picture can be asked."""
    members = {name: {"enum": sorted({getattr(task, name) for task in TASKS})} for name in ("needs", "answer")}
    return {"type": "array", "items": _object({"prompt": {"enum": [task.token for task in TASKS]}, **members})}


def pictures() -> Schema:
    """The images captioned last."""
    return _object({"pictures": {"type": "array", "items": picture(), "maxItems": MOST_PICTURES}})


def picture() -> Schema:
    """An image and its captions."""
    members: Schema = dict.fromkeys(("id", "name", "path", "folder", "thumbnail"), _TEXT)
    seconds = {"type": ["number", "null"], "description": "since the epoch; null where one picture was asked for"}
    return _object(members | {"captioned_s": seconds, "captions": {"type": "array", "items": _caption()}})


def edit() -> Schema:
    """A person's text for a caption. version: of the caption that they saw; null when there was none."""
    version = {"anyOf": [{"type": "string", "pattern": VERSION}, {"type": "null"}]}
    text = {"type": "string", "pattern": r"\S", "maxLength": MOST_CHARACTERS}
    members = {"ext": {"type": "string", "pattern": EXTENSION}, "text": text, "version": version}
    return _object(members) | {"required": ["ext", "text"], "additionalProperties": False}


def _caption() -> Schema:
    return _object(
        {"ext": _TEXT, "text": _TEXT, "version": _UNKNOWN_TEXT, "by_person": {"type": "boolean"}, "problem": _TEXT}
    )


def _object(members: Schema) -> Schema:
    return {"type": "object", "properties": members, "required": list(members)}
