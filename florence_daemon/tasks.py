"""The tasks: prompt names, what each feeds to the model, and the parsing of what comes back.

An answer is text, or boxes, quadrilaterals or polygons in pixels of the upright picture. The model writes places as
location tokens, `cat<loc_52><loc_332><loc_932><loc_774>`, a thousand bins to each side of the picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from florence_daemon.errors import PromptError

Needs = Literal["nothing", "text", "region", "text or nothing"]
AnswerKind = Literal["text", "tags", "boxes", "proposals", "grounding", "quads", "polygons", "open vocabulary"]

BINS = 1000
"""Location tokens to each side of a picture: `<loc_0>` to `<loc_999>`."""


@dataclass(frozen=True)
class Task:
    """One thing a picture can be asked.

    token: its name as the API spells it, `<CAPTION>`.
    feed: the words fed to the model; `{text}` stands for the text or region.
    feed_alone: what a "text or nothing" task feeds when there is no text.
    """

    token: str
    feed: str
    needs: Needs = "nothing"
    answer: AnswerKind = "text"
    feed_alone: str = ""


def _as_it_stands(name: str) -> Task:
    return Task(f"<{name}>", feed=f"<{name}>")


TASKS: tuple[Task, ...] = (
    # PromptGen's seven come first, in this order: existing clients take the list as it is.
    Task("<GENERATE_TAGS>", feed="<GENERATE_TAGS>", answer="tags"),
    Task("<CAPTION>", "What does the image describe?"),
    Task("<DETAILED_CAPTION>", "Describe in detail what is shown in the image."),
    Task("<MORE_DETAILED_CAPTION>", "Describe with a paragraph what is shown in the image."),
    _as_it_stands("ANALYZE"),
    _as_it_stands("MIXED_CAPTION"),
    _as_it_stands("MIXED_CAPTION_PLUS"),
    Task("<OCR>", "What is the text in the image?"),
    Task("<OCR_WITH_REGION>", "What is the text in the image, with regions?", answer="quads"),
    # `<OD> cat` is an API convention, but the sentence of <OD> has no place for a word. It asks the open-vocabulary
    # sentence, which the model was trained to answer, and keeps the answer's form that a caller of <OD> reads.
    Task(
        "<OD>",
        "Locate {text} in the image.",
        needs="text or nothing",
        answer="boxes",
        feed_alone="Locate the objects with category name in the image.",
    ),
    Task("<DENSE_REGION_CAPTION>", "Locate the objects in the image, with their descriptions.", answer="boxes"),
    Task("<REGION_PROPOSAL>", "Locate the region proposals in the image.", answer="proposals"),
    Task("<CAPTION_TO_PHRASE_GROUNDING>", "Locate the phrases in the caption: {text}", "text", "grounding"),
    Task("<REFERRING_EXPRESSION_SEGMENTATION>", "Locate {text} in the image with mask", "text", "polygons"),
    Task("<REGION_TO_SEGMENTATION>", "What is the polygon mask of region {text}", "region", "polygons"),
    Task("<OPEN_VOCABULARY_DETECTION>", "Locate {text} in the image.", "text", "open vocabulary"),
    Task("<REGION_TO_CATEGORY>", "What is the region {text}?", "region"),
    Task("<REGION_TO_DESCRIPTION>", "What does the region {text} describe?", "region"),
    Task("<REGION_TO_OCR>", "What text is in the region {text}?", "region"),
)

_BY_NAME = {task.token.strip("<>"): task for task in TASKS}
_PROMPT = re.compile(r"\s*(?:<(?P<bracketed>\w+)>|(?P<bare>\w+)(?=[\s<]|$))(?P<rest>.*)", re.DOTALL | re.ASCII)
_REGION = re.compile(r"(?:<loc_\d{1,3}>){4}", re.ASCII)
_SHOWN_CHARACTERS = 80


def prompt_tokens() -> list[str]:
    """List the prompts with their brackets, PromptGen's seven first."""
    return [task.token for task in TASKS]


def split_prompt(prompt: str) -> tuple[Task, str | None]:
    """Find the task a prompt names, and the text after its token, without asking whether the two fit together.

    Raises:
        PromptError: no such task; the message lists those there are.
    """
    match = _PROMPT.fullmatch(prompt)
    name = (match["bracketed"] or match["bare"]).upper() if match else ""
    if match is None or name not in _BY_NAME:
        raise PromptError(f"Invalid prompt {_shown(prompt)}. The prompts are: {', '.join(prompt_tokens())}")
    return _BY_NAME[name], match["rest"].strip() or None


def find_task(prompt: str, text: str | None = None) -> tuple[Task, str | None]:
    """Find the task a prompt names in any case, with or without brackets, and the text it is asked with.

    `<OPEN_VOCABULARY_DETECTION> a red car` carries its text behind the token; `text` brings it apart from the prompt.
    The text comes back as the task takes it: trimmed, a region without blanks.

    Raises:
        PromptError: no such task; or its text or region is missing, malformed, given twice, or not wanted.
    """
    task, behind = split_prompt(prompt)
    apart = (text or "").strip() or None
    if behind is not None and apart is not None and behind != apart:
        raise PromptError(f"{task.token} has two texts, {_shown(behind)} behind the token and {_shown(apart)} apart")
    return task, _checked_text(task, behind or apart)


def fed_text(task: Task, text: str | None = None) -> str:
    """Write out the words that are fed to the model for a task.

    Raises:
        PromptError: the text or region is missing, malformed or not wanted.
    """
    text = _checked_text(task, text)
    if text is None:
        return task.feed_alone or task.feed
    return task.feed.replace("{text}", text)


def _checked_text(task: Task, text: str | None) -> str | None:
    text = (text or "").strip() or None
    if task.needs == "nothing":
        if text is not None:
            raise PromptError(f"{task.token} takes no text, but got {_shown(text)}: leave it out")
        return None
    if text is None:
        if task.needs != "text or nothing":
            raise PromptError(f"{task.token} needs a {task.needs}: send it as text, or write {_example(task)}")
        return None
    if task.needs == "region":
        return _checked_region(task, text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"the text for {task.token} is not valid Unicode: {_shown(text)}") from None
    return text


def _example(task: Task) -> str:
    return f'"{task.token}{"<loc_52><loc_332><loc_932><loc_774>" if task.needs == "region" else " a red car"}"'


def _checked_region(task: Task, text: str) -> str:
    region = "".join(text.split())
    if not _REGION.fullmatch(region):
        raise PromptError(
            f"{task.token} needs a region <loc_x1><loc_y1><loc_x2><loc_y2> with whole numbers from 0 to {BINS - 1}, "
            f"not {_shown(text)}"
        )
    return region


def _shown(value: str) -> str:
    """Show what came from outside: escaped, and no longer than a line."""
    return ascii(value) if len(value) <= _SHOWN_CHARACTERS else ascii(value[:_SHOWN_CHARACTERS]) + "…"


# What comes back.

# Control characters but tab and line feed: a model's alphabet has all bytes, and no caption has any of these.
CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")
_FRAME = re.compile(r"<pad>|</?s>")
# Everything of Florence-2's own that can stand between words; a location token of four digits or more is nobody's.
_MARK = re.compile(
    r"<loc_(?P<bin>\d+)>|</?(?:od|ocr|cap|ncap|dcap|grounding|seg|region_cap|region_to_desciption|proposal)>"
    r"|<(?P<part>sep|poly|/poly|and)>",
    re.ASCII,
)
# What stands for nothing that could be read aloud: the frame, places and marks, and the names of the tasks.
_OWN = re.compile("|".join([_FRAME.pattern, r"<(?:unk|mask|image)>", *prompt_tokens(), _MARK.pattern]), re.ASCII)
# Words that the original never grounds, since they name nothing to be seen (its list of phrases it filters out).
# fmt: off
_NAMES_NOTHING = frozenset({
    "a", "a group", "a set", "all", "an", "another", "any", "anybody", "anyone", "anything", "each", "each other",
    "everybody", "everyone", "everything", "few", "he", "her", "hers", "herself", "him", "himself", "his", "I",
    "image", "images", "it", "its", "itself", "lots", "many", "me", "mine", "myself", "nobody", "none", "one",
    "one another", "oneself", "other objects", "our", "ours", "ourselves", "several", "she", "some", "somebody",
    "someone", "something", "that", "the", "the image", "their", "theirs", "them", "themselves", "these", "they",
    "this", "those", "us", "we", "what", "which", "who", "whom", "whose", "you", "your", "yours", "yourself",
    "yourselves",
})
# fmt: on


@dataclass(frozen=True)
class _Place:
    """A label and the bins that follow it, in runs that `<sep>` ends, in instances that `<poly>` encloses."""

    label: str
    instances: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def bins(self) -> list[int]:
        return [bin_ for runs in self.instances for run in runs for bin_ in run]


def find_own_token(task: Task, text: str) -> str | None:
    """Find a token of the model's own in an answer that should be words; None when there is none.

    Who asks about a region gets that region back behind the words, as from the original.
    """
    found = (match[0] for match in _OWN.finditer(text))
    return next((token for token in found if not (task.needs == "region" and token.startswith("<loc_"))), None)


def parse_answer(task: Task, generated_text: str, size_px: tuple[int, int]) -> str | dict[str, Any]:
    """Read the model's words as the task's answer; whatever cannot be read is dropped, nothing raises.

    Text tasks give a string; tags come separated by ", ", each once. The others give a dict in the original's form,
    coordinates as floats in pixels of a picture of size_px (width, height): bboxes [x1, y1, x2, y2] and labels;
    quad_boxes [x1, y1, … x4, y4] and labels; polygons, for each instance a list of outlines [x1, y1, x2, y2, …], and
    labels; or all of bboxes, bboxes_labels, polygons and polygons_labels.
    """
    text = _without_frame(generated_text)
    return _READERS[task.answer](text, size_px)


def _without_frame(text: str) -> str:
    """Take control characters, `<s>`, `</s>` and `<pad>` out, also those that taking one out puts together."""
    text = CONTROL.sub("", text)
    while True:
        text, found = _FRAME.subn("", text)
        if not found:
            return text.strip()


def _places(text: str) -> Iterator[_Place]:
    """Cut an answer into labels and the location tokens behind each."""
    label, end = "", 0
    instances: list[list[list[int]]] = [[[]]]
    for mark in _MARK.finditer(text):
        if words := text[end : mark.start()]:
            yield from _place(label, instances)
            label, instances = words, [[[]]]
        end = mark.end()
        if mark["bin"] is not None and len(mark["bin"]) <= len(str(BINS - 1)):
            instances[-1][-1].append(int(mark["bin"]))
        elif mark["part"] == "sep":
            instances[-1].append([])
        elif mark["part"] in ("poly", "/poly"):
            instances.append([[]])
        else:
            yield from _place(label, instances)
            label, instances = "", [[[]]]
    yield from _place(label, instances)


def _place(label: str, instances: list[list[list[int]]]) -> Iterator[_Place]:
    kept = tuple(tuple(tuple(run) for run in runs if run) for runs in instances)
    if any(kept):
        yield _Place(label, tuple(runs for runs in kept if runs))


def _read_text(text: str, size_px: tuple[int, int]) -> str:
    return text


def _read_tags(text: str, size_px: tuple[int, int]) -> str:
    """`a, b,a ,` is `a, b`: a tag counts once, however often the model repeats it, and for every trainer."""
    return ", ".join(dict.fromkeys(tag for tag in (part.strip() for part in text.split(",")) if tag))


def _read_boxes(text: str, size_px: tuple[int, int]) -> dict[str, Any]:
    found = [(box, place.label.strip()) for place in _places(text) if place.label for box in _boxes(place, size_px)]
    return {"bboxes": [box for box, _ in found], "labels": [label for _, label in found]}


def _read_proposals(text: str, size_px: tuple[int, int]) -> dict[str, Any]:
    boxes = [box for place in _places(text) for box in _boxes(place, size_px)]
    return {"bboxes": boxes, "labels": [""] * len(boxes)}


def _read_grounding(text: str, size_px: tuple[int, int]) -> dict[str, Any]:
    answer = _read_boxes(text, size_px)
    kept = [pair for pair in zip(answer["bboxes"], answer["labels"], strict=True) if pair[1] not in _NAMES_NOTHING]
    return {"bboxes": [box for box, _ in kept], "labels": [label for _, label in kept]}


def _read_quads(text: str, size_px: tuple[int, int]) -> dict[str, Any]:
    found = [(place.bins[:8], place.label.strip()) for place in _places(text) if place.label and len(place.bins) >= 8]
    return {"quad_boxes": [_pixels(bins, size_px) for bins, _ in found], "labels": [label for _, label in found]}


def _read_polygons(text: str, size_px: tuple[int, int]) -> dict[str, Any]:
    found = [polygons for place in _places(text) for polygons in _polygons(place, size_px)]
    return {"polygons": found, "labels": [""] * len(found)}


def _read_open_vocabulary(text: str, size_px: tuple[int, int]) -> dict[str, Any]:
    answer: dict[str, Any] = {"bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": []}
    for place in _places(text):
        if not place.label:
            continue
        what = "polygons" if "<poly>" in text else "bboxes"
        shapes: list[Any] = _polygons(place, size_px) if what == "polygons" else _boxes(place, size_px)
        answer[what] += shapes
        answer[what + "_labels"] += [place.label.strip()] * len(shapes)
    return answer


_READERS: dict[AnswerKind, Callable[[str, tuple[int, int]], str | dict[str, Any]]] = {
    "text": _read_text,
    "tags": _read_tags,
    "boxes": _read_boxes,
    "proposals": _read_proposals,
    "grounding": _read_grounding,
    "quads": _read_quads,
    "polygons": _read_polygons,
    "open vocabulary": _read_open_vocabulary,
}


def _boxes(place: _Place, size_px: tuple[int, int]) -> list[list[float]]:
    """Four bins make a box; a rest of fewer is an answer that was cut off."""
    bins = place.bins
    return [_pixels(bins[at : at + 4], size_px) for at in range(0, len(bins) - 3, 4)]


def _polygons(place: _Place, size_px: tuple[int, int]) -> list[list[list[float]]]:
    """One list of polygons for each instance. As in the original, a last bin without its partner is left out, and
    fewer than four bins are not an outline."""
    instances = [[run[: len(run) // 2 * 2] for run in runs if len(run) >= 4] for runs in place.instances]
    return [[_pixels(run, size_px) for run in runs] for runs in instances if runs]


def _pixels(bins: list[int] | tuple[int, ...], size_px: tuple[int, int]) -> list[float]:
    """Put bins x, y, x, y, … at their centres: `<loc_0>` of a picture 1000 wide is at 0.5."""
    return [(bin_ + 0.5) * size_px[at % 2] / BINS for at, bin_ in enumerate(bins)]
