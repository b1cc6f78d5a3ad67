"""The training itself: two processes that share the work, one step, the schedule, and what is shown while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional
from transformers import Florence2ForConditionalGeneration

from florence_daemon.demo_pictures import COLOURS, KINDS

from .lessons import BACKGROUNDS, Lesson, Question, draw_lesson, labels, padded
from .network import IMAGE_MEAN, IMAGE_STD, WIDTH, build_network
from .tokenizer import PAD

_TEXT_CHUNKS = 2  # questions sorted by length and split: less padding
_SHOWN_EVERY_STEPS = 50
_SAVED_EVERY_STEPS = 250  # a run that is stopped leaves something to look at


@dataclass(frozen=True)
class Plan:
    """How to train. helped_share: the share of the steps over which the help on the image features fades to nothing."""

    seed: int
    steps: int
    batch: int = 24  # pictures of each process at each step
    processes: int = 2  # of one thread each: twice as fast as one process of two threads
    peak_rate: float = 2e-3
    warmup_steps: int = 150
    weight_decay: float = 0.02
    helped_share: float = 0.7


class FeatureReader(nn.Module):
    """Reads colour, shape and box off each cell's token, and the background off the mean token, in training only.

    Without its loss the text loss stays near 0.6 while the picture is ignored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts = (len(COLOURS) + 1, len(KINDS) + 1, 4)
        self.read = nn.Linear(WIDTH, sum(self.parts))
        self.read_background = nn.Linear(WIDTH, len(BACKGROUNDS))

    def loss(self, features: Tensor, lesson: Lesson) -> Tensor:
        """features: (B, 1 + cells, WIDTH), the mean of the picture first."""
        colours, kinds, boxes = self.read(features[:, 1:]).split(self.parts, dim=-1)
        true_boxes = torch.from_numpy(lesson.boxes)
        is_there = ~true_boxes.isnan()
        box_loss = functional.l1_loss(boxes.sigmoid()[is_there], true_boxes[is_there])
        colour_loss = functional.cross_entropy(colours.transpose(1, 2), torch.from_numpy(lesson.colours))
        kind_loss = functional.cross_entropy(kinds.transpose(1, 2), torch.from_numpy(lesson.kinds))
        background_loss = functional.cross_entropy(
            self.read_background(features[:, 0]), torch.from_numpy(lesson.backgrounds)
        )
        # Kinds are learnt last, and a loss over all cells counts little beside one over the picture.
        return colour_loss + 3 * kind_loss + 2 * box_loss + 0.5 * background_loss


Save = Callable[[Florence2ForConditionalGeneration], None]


def train(tokenizer: Tokenizer, plan: Plan, save: Save) -> None:
    """Train from nothing and show the progress; `save` gets the network now and then, and at the end.

    The same plan gives the same model on the same machine. save: is called in another process, so it must be picklable.
    """
    with TemporaryDirectory() as meeting_place:
        arguments = (Path(meeting_place), tokenizer.to_str(), plan, save)
        multiprocessing.spawn(_train_share, arguments, nprocs=plan.processes)


def _train_share(rank: int, meeting_place: Path, tokenizer_json: str, plan: Plan, save: Save) -> None:
    """Train on this process's share of each batch. All processes start alike and apply the same mean gradient."""
    torch.set_num_threads(1)
    meeting_point = (meeting_place / "processes").as_uri()
    distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=plan.processes)
    torch.manual_seed(plan.seed)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    network, reader = build_network(tokenizer.get_vocab_size()).train(), FeatureReader()
    parameters = [*network.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.peak_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.98))
    progress = _Progress(plan.steps)
    for step in range(plan.steps):
        lesson = draw_lesson(tokenizer, f"lesson {plan.seed} {step} {rank}", plan.batch)
        losses = _add_gradients(network, reader, lesson, help_share(step, plan))
        _average_gradients(parameters, plan.processes)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plan.peak_rate * rate_share(step, plan)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if rank == 0:
            progress.show(step + 1, *losses)
            if (step + 1) % _SAVED_EVERY_STEPS == 0 or step + 1 == plan.steps:
                save(network)
    distributed.destroy_process_group()


def _average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(together)
    together /= processes
    parts = together.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def rate_share(step: int, plan: Plan) -> float:
    """Return the share of the peak learning rate: a linear rise, then half a cosine down to nothing."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def help_share(step: int, plan: Plan) -> float:
    """Return the weight of the loss on the image features: 1 at the start, 0 for good after `helped_share`."""
    return max(0.0, 1 - step / (plan.helped_share * plan.steps))


def _add_gradients(
    network: Florence2ForConditionalGeneration, reader: FeatureReader, lesson: Lesson, helped: float
) -> tuple[float, float]:
    """Add the gradients of one lesson; return the text loss and the loss on the image features."""
    features = network.get_image_features(_normalised(lesson)).pooler_output
    # The text part runs in chunks on a detached copy; its gradient is collected and sent through the vision tower once.
    seen = features.detach().requires_grad_()
    text_loss = _text_losses(network, seen, lesson.questions)
    assert seen.grad is not None
    if not helped:
        features.backward(seen.grad)
        return text_loss, 0.0
    feature_loss = reader.loss(features, lesson)
    torch.autograd.backward([features, helped * feature_loss], [seen.grad, None])
    return text_loss, float(feature_loss.detach())


def _normalised(lesson: Lesson) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (torch.from_numpy(lesson.pixels).float() / 255 - mean) / std


def _text_losses(network: Florence2ForConditionalGeneration, seen: Tensor, questions: list[Question]) -> float:
    ordered = sorted(questions, key=lambda question: len(question.answer_ids))
    size = math.ceil(len(ordered) / _TEXT_CHUNKS)
    all_tokens = sum(len(question.answer_ids) for question in ordered)
    total = 0.0
    for start in range(0, len(ordered), size):
        loss = _summed_loss(network, seen, ordered[start : start + size]) / all_tokens
        loss.backward()
        total += float(loss.detach())
    return total


def _summed_loss(network: Florence2ForConditionalGeneration, seen: Tensor, questions: list[Question]) -> Tensor:
    prompts = torch.from_numpy(padded([question.prompt_ids for question in questions]))
    pictures = torch.tensor([question.picture for question in questions])
    targets = torch.from_numpy(labels(questions))
    embeddings = torch.cat([seen[pictures], network.get_input_embeddings()(prompts)], dim=1)
    is_prompt = (prompts != PAD).long()
    mask = torch.cat([is_prompt.new_ones(len(questions), seen.shape[1]), is_prompt], dim=1)
    start = torch.full_like(targets[:, :1], network.config.text_config.decoder_start_token_id)
    shifted = torch.cat([start, targets[:, :-1].clamp(min=PAD)], dim=1)
    shifted[:, 1] = targets[:, 0]  # <s> is 0, below PAD
    logits = network(inputs_embeds=embeddings, attention_mask=mask, decoder_input_ids=shifted, use_cache=False).logits
    return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="sum")


class _Progress:
    """Prints rate and remaining time every so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.started_s = time.monotonic()
        self.text_loss = self.feature_loss = 0.0

    def show(self, step: int, text_loss: float, feature_loss: float) -> None:
        self.text_loss += text_loss / _SHOWN_EVERY_STEPS
        self.feature_loss += feature_loss / _SHOWN_EVERY_STEPS
        if step % _SHOWN_EVERY_STEPS:
            return
        per_step_s = (time.monotonic() - self.started_s) / step
        left_min = per_step_s * (self.steps - step) / 60
        print(
            f"step {step}/{self.steps}  text loss {self.text_loss:.4f}  feature loss {self.feature_loss:.4f}  "
            f"{1 / per_step_s:.2f} steps/s  {left_min:.1f} min left",
            flush=True,
        )
        self.text_loss = self.feature_loss = 0.0
