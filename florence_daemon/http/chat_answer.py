"""Write answers as OpenAI's clients read them: a chat completion, or the same as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from florence_daemon.engine.protocol import Answer

Media = dict[str, Any]


def completion(envelope: Media, answers: list[Answer]) -> Media:
    """The whole answer. envelope: id, created and model."""
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": _content(answer), "refusal": None},
            "logprobs": None,
            "finish_reason": _finish_reason(answer),
        }
        for number, answer in enumerate(answers)
    ]
    return envelope | {"object": "chat.completion", "choices": choices, "usage": usage(answers)}


def events(envelope: Media, answers: list[Answer], *, with_usage: bool) -> Iterator[bytes]:
    """The answer in chunks: who speaks and the text, then why it ended, for each choice.

    The text comes whole: which of several beams is the answer is known only when all of them have ended.
    """
    envelope = envelope | {"object": "chat.completion.chunk"}
    unknown: Media = {"usage": None} if with_usage else {}
    for number, answer in enumerate(answers):
        said = {"role": "assistant", "content": _content(answer), "refusal": None}
        for delta, reason in ((said, None), ({}, _finish_reason(answer))):
            choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}
            yield _event(envelope | {"choices": [choice]} | unknown)
    if with_usage:
        yield _event(envelope | {"choices": [], "usage": usage(answers)})
    yield b"data: [DONE]\n\n"


def usage(answers: list[Answer]) -> dict[str, int]:
    """Tokens read and written. All choices share what was read, so that counts once."""
    read, written = answers[0].prompt_tokens, sum(answer.tokens for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _content(answer: Answer) -> str:
    """Text as it is; places as JSON."""
    return answer.result if isinstance(answer.result, str) else json.dumps(answer.result, ensure_ascii=False)


def _finish_reason(answer: Answer) -> str:
    return "length" if answer.is_cut else "stop"


def _event(media: Media) -> bytes:
    return b"data: " + json.dumps(media).encode("ascii") + b"\n\n"
