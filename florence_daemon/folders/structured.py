"""The sidecar of places: one JSON object with all that a program needs to find them in the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from florence_daemon.engine.protocol import Ask
from florence_daemon.folders.names import is_utf8


def render_json(
    image_name: str, size_px: tuple[int, int], asks: Sequence[Ask], results: Sequence[str | dict[str, Any]]
) -> str:
    """Write the answers to some asks about a picture as one object.

    size_px: (width, height) of the upright picture, in whose pixels places are.

        >>> render_json("a.jpg", (640, 480), [Ask("<CAPTION>")], ["a cat"])
        '{"image": "a.jpg", "width": 640, "height": 480, "results": [{"prompt": "<CAPTION>", "result": "a cat"}]}'
    """
    answered = []
    for ask, result in zip(asks, results, strict=True):
        asked = {"prompt": ask.prompt} if ask.text is None else {"prompt": ask.prompt, "text": ask.text}
        answered.append({**asked, "result": result})
    width, height = size_px
    said = {"image": image_name, "width": width, "height": height, "results": answered}
    # A name that is not UTF-8 can be escaped in ASCII, and cannot be written otherwise.
    return json.dumps(said, ensure_ascii=not is_utf8(image_name))
