"""How far two sets of answers to the same questions agree: texts, tags and places, and whether that is near enough.

A faster form of a model cannot be expected to write every text letter by letter as the usual one does: where two words
are about as likely, rounding decides. So each kind of answer is judged by what it is for: a text by how much of it
would have to be edited, tags as a set, since trainers shuffle them, and places by how far they cover each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from florence_daemon.tasks import find_task

Result = str | dict[str, Any]
"""An answer as `tasks.parse_answer` gives it."""
Box = tuple[float, float, float, float]

# With fewer pictures, one that goes wrong decides: a twentieth is what the means below leave room for.
MIN_PICTURES = 20
# Mean over the texts of a prompt: at most one letter in ten is another. A paragraph of ten clauses may have one of them
# in other words.
MIN_EDIT_SIMILARITY = 0.90
# Mean over the pictures: of twenty tags, at most three that only one of the two has.
MIN_TAG_OVERLAP = 0.85
# Mean over the pictures: a box may be a few bins off at its edges; one missing of seven is already too many.
MIN_BOX_IOU = 0.85


@dataclass(frozen=True)
class Agreement:
    """How far the answers to one prompt agree; every figure is a share from 0 to 1, and None where it says nothing.

    prompt: its token, and its text behind it. answers: how many were compared. same: identical ones.
    edit_similarity, worst_edit_similarity: of texts, the mean and the least. tag_overlap, box_iou: means.
    """

    prompt: str
    answers: int
    same: float
    edit_similarity: float | None = None
    worst_edit_similarity: float | None = None
    tag_overlap: float | None = None
    box_iou: float | None = None


def compare(prompt: str, usual: Sequence[Result], other: Sequence[Result]) -> Agreement:
    """Compare the answers to one prompt, at least one, picture by picture."""
    pairs: list[tuple[Any, Any]] = list(zip(usual, other, strict=True))
    kind = find_task(prompt)[0].answer
    same = fmean(one == another for one, another in pairs)
    if kind not in ("text", "tags"):
        return Agreement(prompt, len(pairs), same, box_iou=_mean(box_iou, pairs))
    edits = [edit_similarity(one, another) for one, another in pairs]
    overlap = _mean(tag_overlap, pairs) if kind == "tags" else None
    return Agreement(prompt, len(pairs), same, fmean(edits), min(edits), overlap)


def summarize(agreements: Sequence[Agreement]) -> Agreement:
    """Join several prompts' agreements into one, each by the number of its answers; `prompt` is empty."""

    def mean(figures: Iterable[tuple[float | None, int]]) -> float | None:
        known = [(figure, answers) for figure, answers in figures if figure is not None]
        return fmean([figure for figure, _ in known], [answers for _, answers in known]) if known else None

    worst = [each.worst_edit_similarity for each in agreements if each.worst_edit_similarity is not None]
    return Agreement(
        prompt="",
        answers=sum(each.answers for each in agreements),
        same=fmean([each.same for each in agreements], [each.answers for each in agreements]),
        edit_similarity=mean((each.edit_similarity, each.answers) for each in agreements),
        worst_edit_similarity=min(worst, default=None),
        tag_overlap=mean((each.tag_overlap, each.answers) for each in agreements),
        box_iou=mean((each.box_iou, each.answers) for each in agreements),
    )


def objections(agreements: Sequence[Agreement]) -> list[str]:
    """List what speaks against taking the one form for the other; nothing where they agree well enough.

    Every prompt must agree on its own: good tags do not make up for boxes that are elsewhere.
    """
    if not agreements:
        return ["no prompt was compared"]
    return [reason for each in agreements for reason in _objections_to(each)]


def _objections_to(agreement: Agreement) -> list[str]:
    reasons = []
    if agreement.answers < MIN_PICTURES:
        reasons.append(f"{agreement.prompt}: {agreement.answers} pictures were compared, {MIN_PICTURES} are needed")
    what, figure, needed = _judged_by(agreement)
    if not figure >= needed:  # not `<`: NaN is no agreement
        reasons.append(f"{agreement.prompt}: {what} is {figure:.3f}, {needed:.2f} is needed")
    return reasons


def _judged_by(agreement: Agreement) -> tuple[str, float, float]:
    """The figure that decides. Tags have an edit similarity too, but their order does not matter."""
    if agreement.tag_overlap is not None:
        return "tag overlap", agreement.tag_overlap, MIN_TAG_OVERLAP
    if agreement.box_iou is not None:
        return "box IoU", agreement.box_iou, MIN_BOX_IOU
    return "edit similarity", agreement.edit_similarity or 0.0, MIN_EDIT_SIMILARITY


def _mean(measure: Callable[[Any, Any], float], pairs: Sequence[tuple[Any, Any]]) -> float:
    return fmean(measure(one, another) for one, another in pairs)


# Texts


def edit_similarity(one: str, another: str) -> float:
    """1 less the share of letters to insert, delete or replace: `cat` and `cart` are 0.75, two empty texts 1."""
    longer = max(len(one), len(another))
    return 1 - edit_distance(one, another) / longer if longer else 1.0


def edit_distance(one: str, another: str) -> int:
    """Count the letters to insert, delete or replace (Levenshtein).

    One column of the table at a time, a bit for each cell: whether it is one more, or one less, than the cell above it.
    Two texts of 4000 letters take 35 ms. Source: Myers 1999, A fast bit-vector algorithm for approximate string
    matching, in the form of Hyyrö 2001 for the distance of whole texts.
    """
    if not one:
        return len(another)
    places: dict[str, int] = {}
    for at, letter in enumerate(one):
        places[letter] = places.get(letter, 0) | 1 << at
    all_bits, last_bit = (1 << len(one)) - 1, 1 << len(one) - 1
    more, less, distance = all_bits, 0, len(one)
    for letter in another:
        match = places.get(letter, 0)
        equal = ((match & more) + more ^ more) | match | less
        more_aside, less_aside = less | ~(equal | more), equal & more
        distance += bool(more_aside & last_bit) - bool(less_aside & last_bit)
        more_aside, less_aside = more_aside << 1 | 1, less_aside << 1
        more = (less_aside | ~(equal | more_aside)) & all_bits
        less = more_aside & equal & all_bits
    return distance


def tag_overlap(one: str, another: str) -> float:
    """The share of all their tags that both have (Jaccard), whatever the order: `a, b` and `b, c` are 1/3."""
    first, second = _tags(one), _tags(another)
    return len(first & second) / len(first | second) if first | second else 1.0


def _tags(text: str) -> set[str]:
    return {tag for tag in (part.strip() for part in text.split(",")) if tag}


# Places


def box_iou(one: dict[str, Any], another: dict[str, Any]) -> float:
    """How far the places of two answers cover each other: the mean IoU of pairs, where one without a partner counts 0.

    Pairs have the same label; those that cover each other best find each other first. Quadrilaterals and polygons
    count as the boxes around them. Two answers without any place agree.
    """
    first, second = _places(one), _places(another)
    if not first and not second:
        return 1.0
    overlaps = [
        (_iou(box, other_box), number, other)
        for number, (label, box) in enumerate(first)
        for other, (other_label, other_box) in enumerate(second)
        if label == other_label
    ]
    paired, paired_other, total = set(), set(), 0.0
    for overlap, number, other in sorted(overlaps, reverse=True):
        if number not in paired and other not in paired_other:
            paired.add(number)
            paired_other.add(other)
            total += overlap
    return total / max(len(first), len(second))


def _places(result: dict[str, Any]) -> list[tuple[str, Box]]:
    """Read labels and boxes from an answer of any form that `tasks.parse_answer` gives."""
    found: list[tuple[str, Box]] = []
    for kind in ("bboxes", "quad_boxes", "polygons"):
        labels = result.get(f"{kind}_labels", result.get("labels", []))
        found += [(label, _bounds(shape)) for label, shape in zip(labels, result.get(kind, []), strict=False)]
    return found


def _bounds(shape: Sequence[Any]) -> Box:
    """The box around coordinates x, y, x, y, …, or around several outlines of such."""
    values = [value for outline in shape for value in outline] if isinstance(shape[0], list) else shape
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _iou(one: Box, another: Box) -> float:
    if one == another:  # also boxes without an area
        return 1.0
    width = min(one[2], another[2]) - max(one[0], another[0])
    height = min(one[3], another[3]) - max(one[1], another[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (_area(one) + _area(another) - shared) if shared else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
