"""Is an answer fit to be a caption? One that is empty, cut off, a loop, or holds the model's own tokens is not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from florence_daemon.config import ModelConfig
from florence_daemon.engine.protocol import Answer, Ask, Done, Stages
from florence_daemon.tasks import find_own_token, split_prompt

Kind = Literal["empty", "leak", "loop", "cut"]

# A phrase of up to so many words is a loop when it comes so often, one right behind the other, and fills so many words.
# People repeat themselves too, but less: "row after row after row", "a red car, a red car and a red car".
PHRASE_WORDS = 24
LOOP_TIMES = 4
LOOP_WORDS = 8
# A loop whose phrases vary a little shows in long texts: there each run of four words comes 2.5 times. A long caption
# of many alike things, three rows of coloured squares say, stays below two.
RUN_WORDS = 4
LONG_TEXT_WORDS = 60
LEAST_DISTINCT = 0.4
# What is written in a picture may well repeat itself.
READS = ("<OCR>", "<REGION_TO_OCR>")
# No caption has so many tokens; one that is cut off there would only go on and on.
RUNAWAY_TOKENS = 512
# The other try of an answer that was cut off may be so many times as long, and no longer than can be asked for.
LONGER = 4
MOST_TOKENS = 4096
# In the other try so many tokens in a row come once at most, as Florence-2 was published; and what was searched with
# several beams is searched with one, and the other way round. Of 636 answers of the demo model, which may repeat
# itself, to noise, blocks, collages and photographs, 16 were no captions: this mends all of 11 loops (the beams alone
# 3), both that went on and on (the beams alone none), and of 3 with tokens of its own the one that other beams mend.
NO_REPEAT = 3
OTHER_BEAMS = 3

# Chinese, Japanese and Korean are written without spaces: there each sign counts as a word.
_SIGNS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+")


@dataclass(frozen=True)
class Flaw:
    """What is wrong with an answer, for programs and for people."""

    kind: Kind
    reason: str


def flaw_of(answer: Answer) -> Flaw | None:
    """Tell what is wrong with an answer; None when it may be written.

    Boxes and polygons are judged by whether they are all there; none at all is an answer too.
    """
    task, _ = split_prompt(answer.prompt)
    what = f"the model's answer to {task.token}"
    if isinstance(answer.result, str):
        if not answer.result.strip():
            return Flaw("empty", f"{what} was empty")
        token = find_own_token(task, answer.result)
        if token is not None:
            return Flaw("leak", f"{what} holds {token}, a mark of the model's own and no word")
        phrase = _repeated(answer.result) if task.token not in READS else None
        if phrase is not None:
            return Flaw("loop", f"{what} repeats itself: {phrase!r:.80}")
        # Tags count once, however often they were written: where there are more tokens than letters, most were again.
        if task.answer == "tags" and answer.is_cut and answer.tokens > len(answer.result):
            return Flaw("loop", f"{what} repeats itself: {answer.result!r:.80}")
    if answer.is_cut:
        length = f" after {answer.tokens} tokens" if answer.tokens else ""
        return Flaw("cut", f"{what} was cut off{length}, before it came to its end")
    return None


def reasons_against(done: Done) -> str:
    """Tell what is wrong with the answers about a picture, for people; nothing where all may be written."""
    return "; ".join(flaw.reason for flaw in map(flaw_of, done.answers) if flaw is not None)


def other_asks(asks: Sequence[Ask], done: Done, model: ModelConfig) -> tuple[Ask, ...]:
    """What to ask once more, in which other way, of what got no good answer; in the order of the asks.

    model: what holds where an ask says nothing.
    """
    flaws = [flaw_of(answer) for answer in done.answers]
    return tuple(
        _other_way(ask, answer, flaw, model)
        for ask, answer, flaw in zip(asks, done.answers, flaws, strict=True)
        if flaw is not None
    )


def with_others(first: Done, second: Done) -> Done:
    """Put the answers of the second try in the place of those that were no good."""
    others = iter(second.answers)
    answers = tuple(answer if flaw_of(answer) is None else next(others) for answer in first.answers)
    one, other = first.stages, second.stages
    stages = Stages(one.decode_s + other.decode_s, one.vision_s + other.vision_s, one.text_s + other.text_s)
    # Of a file that changed between the two, no answer is worth anything: with no content only the stamp counts.
    content = first.content if first.content == second.content else None
    return replace(first, answers=answers, stages=stages, content=content)


def _other_way(ask: Ask, answer: Answer, flaw: Flaw, model: ModelConfig) -> Ask:
    """Search in another way: longer what was only cut off, everything else with other beams; both without loops."""
    beams, limit = ask.num_beams or model.num_beams, ask.max_new_tokens or model.max_new_tokens
    once = replace(ask, temperature=0.0, no_repeat_ngram_size=NO_REPEAT)
    if flaw.kind == "cut" and answer.tokens < RUNAWAY_TOKENS:
        return replace(once, max_new_tokens=min(limit * LONGER, MOST_TOKENS))
    return replace(once, num_beams=1 if beams > 1 else OTHER_BEAMS)


def _repeated(text: str) -> str | None:
    """The phrase that a text is a loop of, else None."""
    words = _WORD.findall(text.lower())
    for length in range(1, PHRASE_WORDS + 1):
        if (end := _end_of_loop(words, length)) is not None:
            return " ".join(words[end - length : end])
    runs = [tuple(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1)]
    if len(words) >= LONG_TEXT_WORDS and len(set(runs)) < LEAST_DISTINCT * len(runs):
        return " ".join(Counter(runs).most_common(1)[0][0])
    return None


def _end_of_loop(words: Sequence[str], length: int) -> int | None:
    """Where a phrase of so many words has come so often, one right behind the other, that it is a loop."""
    same = 0
    for at in range(length, len(words)):
        same = same + 1 if words[at] == words[at - length] else 0
        if same + length >= max(LOOP_TIMES * length, LOOP_WORDS):
            return at + 1
    return None
