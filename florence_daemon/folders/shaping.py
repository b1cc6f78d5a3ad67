"""From answers to a sidecar's text: what is stripped, left out, limited and joined, by the output's options."""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from florence_daemon.config_output import OutputConfig

# Tags as short as these are faces, ^_^ and o_o, whose underscores are no blanks.
KAOMOJI_CHARACTERS = 3
# Behind these, lines are joined by a blank, else by a comma and a blank.
ENDS = ".,;:!?"
SENTENCE_ENDS = (".", "!", "?")
TAGS = "<GENERATE_TAGS>"
# Their answers are a caption, and tags on lines of their own.
MIXED = ("<MIXED_CAPTION>", "<MIXED_CAPTION_PLUS>")


@dataclass(frozen=True)
class Line:
    """A line of an answer, shaped; is_tags: it is a list of tags."""

    text: str
    is_tags: bool


def shape(output: OutputConfig, results: Sequence[str], known_tags: Collection[str] = ()) -> str:
    """The text of a sidecar, without the end of its last line; empty when nothing is left of the answers.

    results: one for each prompt of the output. known_tags: keys of tags that are left out, since the file has them.
    """
    answers = [
        shape_answer(output, token, result, known_tags)
        for (token, _), result in zip(output.asked, results, strict=True)
    ]
    if not any(answers):
        return ""
    if output.template is not None:
        return _fill(output.template, _parts(output, answers))
    return output.prefix + _join(output, [line.text for lines in answers for line in lines]) + output.suffix


def captions_and_tags(output: OutputConfig, results: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The caption of several answers, and their tags, each once: for a file that keeps them apart."""
    lines = [
        line
        for (token, _), result in zip(output.asked, results, strict=True)
        for line in shape_answer(output, token, result)
    ]
    tags = (tag for line in lines if line.is_tags for tag in split_tags(line.text))
    return _join(output, [line.text for line in lines if not line.is_tags]), tuple(dict.fromkeys(tags))


def shape_answer(output: OutputConfig, token: str, result: str, known_tags: Collection[str] = ()) -> tuple[Line, ...]:
    """The lines of one answer, shaped; those that nothing is left of are gone."""
    lines = [line for line in (" ".join(line.split()) for line in result.splitlines()) if line]
    is_tags = [_is_tags(token, number, line) for number, line in enumerate(lines)]
    words = output.max_words or sys.maxsize
    tags = output.max_tags or sys.maxsize
    shaped = []
    for line, holds_tags in zip(lines, is_tags, strict=True):
        if holds_tags:
            found = _shape_tags(output, split_tags(line), known_tags)[:tags]
            tags -= len(found)
            text = ", ".join(found)
        else:
            text = _first_words(_stripped(line, output.strip), words)
            words -= len(text.split())
            text = _cased(output, text)
        if text:
            shaped.append(Line(_with_parentheses(output, text), holds_tags))
    return tuple(shaped)


def split_tags(text: str) -> list[str]:
    """The tags of a text, between its commas."""
    return [tag for tag in (" ".join(part.split()) for part in re.split(r"[,\n]", text)) if tag]


def key_of_tag(tag: str) -> str:
    r"""What two spellings of a tag have in common: `Cat_(animal)` and `cat \(animal\)`."""
    return _plain(tag).replace("_", " ").casefold()


def _is_tags(token: str, number: int, line: str) -> bool:
    """Tell whether a line of an answer is tags: with MIXED prompts, what follows the caption and is no sentence."""
    return token == TAGS or (token in MIXED and number > 0 and not line.endswith(SENTENCE_ENDS))


def _shape_tags(output: OutputConfig, tags: Iterable[str], known_tags: Collection[str]) -> list[str]:
    others = {key_of_tag(tag): other for tag, other in output.replace_tags}
    first = [key_of_tag(tag) for tag in output.first_tags]
    excluded = _any_of(output.exclude_tags)
    shaped: dict[str, str] = {}
    seen = set(known_tags)
    for tag in (part for each in tags for part in split_tags(others.get(key_of_tag(each), each))):
        key = key_of_tag(tag)
        is_new = key not in seen
        seen.add(key)
        if is_new and not excluded.match(key):
            is_face = len(_plain(tag)) <= KAOMOJI_CHARACTERS
            text = tag if output.underscores == "keep" or is_face else " ".join(tag.replace("_", " ").split())
            shaped[key] = text.lower() if output.case == "lower" else text
    ranks = {key: rank for rank, key in reversed(list(enumerate(first)))}
    return [shaped[key] for key in sorted(shaped, key=lambda key: ranks.get(key, len(first)))]


@lru_cache(maxsize=64)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """What the keys of tags match that any of these patterns stands for: one expression, tried once for a tag."""
    return re.compile("|".join(translate(key_of_tag(pattern)) for pattern in patterns) or "(?!)")


def _stripped(caption: str, phrases: Collection[str]) -> str:
    """The caption without its opening; what is behind one may be another: "The image shows a photo of"."""
    while True:
        opening = max((phrase for phrase in phrases if _opens(caption, phrase)), key=len, default="")
        if not opening:
            return caption
        caption = caption[len(opening) :].lstrip(" ,;:")


def _opens(caption: str, phrase: str) -> bool:
    """Tell whether a caption begins with these words, and not with longer ones."""
    if caption[: len(phrase)].casefold() != phrase.casefold():
        return False
    return not (phrase[-1:].isalnum() and caption[len(phrase) : len(phrase) + 1].isalnum())


def _first_words(caption: str, count: int) -> str:
    words = caption.split()
    return caption if len(words) <= count else " ".join(words[: max(0, count)]).rstrip(" ,;:-")


def _cased(output: OutputConfig, caption: str) -> str:
    if output.case == "lower":
        return caption.lower()
    return caption[:1].upper() + caption[1:] if output.case == "sentence" else caption


def _with_parentheses(output: OutputConfig, text: str) -> str:
    if output.parentheses == "keep":
        return text
    plain = _plain(text)
    return re.sub(r"([()])", r"\\\1", plain) if output.parentheses == "escape" else plain


def _plain(text: str) -> str:
    """The text without backslashes before parentheses."""
    return re.sub(r"\\+([()])", r"\1", text)


def _join(output: OutputConfig, lines: Sequence[str]) -> str:
    """Join lines, or leave each its own."""
    joined = ""
    for line in lines:
        joined += (separator(output, joined) if joined else "") + line
    return joined


def separator(output: OutputConfig, before: str) -> str:
    """What is put behind `before` when more follows."""
    if output.join is not None:
        return output.join
    if output.lines == "several":
        return "\n"
    return " " if before[-1:] in ENDS else ", "


def separators(output: OutputConfig) -> tuple[str, ...]:
    """All that `separator` may give for this output."""
    return (separator(output, "."), separator(output, "a"))


def _parts(output: OutputConfig, answers: Sequence[Sequence[Line]]) -> dict[str, str]:
    """What the names of a template stand for."""
    tokens = [token for token, _ in output.asked]
    lines = [(token, line) for token, answer in zip(tokens, answers, strict=True) for line in answer]
    parts = {token.strip("<>"): _join(output, [line.text for each, line in lines if each == token]) for token in tokens}
    # {caption} and {tags} are those of the first prompt that has any.
    for name, is_tags in (("caption", False), ("tags", True)):
        first = next((token for token, line in lines if line.is_tags is is_tags), None)
        parts[name] = _join(output, [line.text for token, line in lines if token == first and line.is_tags is is_tags])
    return parts | {"prefix": output.prefix, "suffix": output.suffix}


def _fill(template: str, parts: dict[str, str]) -> str:
    """Put the parts into a template. A part that is empty takes along what joins it to its neighbour: the words before
    it, or, when no answer stands there yet, those behind it."""
    text, has_answer, skips = "", False, False
    for literal, name, _, _ in string.Formatter().parse(template):
        words = "" if skips else literal
        skips = False
        if name is None:
            text += words
        elif parts[name]:
            text += words + parts[name]
            has_answer = has_answer or name not in ("prefix", "suffix")
        elif not has_answer:
            text += words
            skips = True
    return text
