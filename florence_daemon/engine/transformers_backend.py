"""Runs Florence-2 with transformers' own native network and search; the reference for other backends."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from time import perf_counter
from typing import Any

# Before transformers is imported: it advises, counts and asks its hub for things that nobody wants from a daemon.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import torch
from transformers import BartConfig, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.florence2.configuration_florence2 import Florence2Config, Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2ForConditionalGeneration

from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.layout import Layout
from florence_daemon.engine.names import SHARED_EMBEDDING, TIED_TO_SHARED
from florence_daemon.engine.preprocess import Picture, to_pixels
from florence_daemon.engine.protocol import Answer, Ask, EngineSettings, Stages
from florence_daemon.tasks import parse_answer

# generate() warns about flags that go without each other; a daemon's log would get that line for every picture.
logging.getLogger("transformers").setLevel(logging.ERROR)


class TransformersBackend:
    """transformers' Florence2ForConditionalGeneration with a checkpoint's weights."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype, settings: EngineSettings) -> None:
        self.device = device
        self.precision = str(dtype).removeprefix("torch.")
        self.model = load_network(checkpoint, device, dtype)
        self._dtype = dtype
        self.tokenizer = checkpoint.tokenizer
        self._checkpoint = checkpoint
        self._layout = checkpoint.layout
        self._search = checkpoint.search
        self._settings = settings

    @property
    def side_px(self) -> int:
        """The side of the square that the model sees."""
        return self._layout.image_side_px

    def answer(self, picture: Picture, asks: Sequence[Ask]) -> tuple[list[Answer], Stages]:
        """Answer all asks about a picture; see `Backend.answer`."""
        prompts = [self._checkpoint.encode_prompt(ask) for ask in asks]
        started = perf_counter()
        pixels = torch.from_numpy(to_pixels(picture, self._layout.image_side_px)).unsqueeze(0)
        features = self.encode_image(pixels)
        self._wait()
        seen = perf_counter()
        answers = []
        for ask, (task, ids) in zip(asks, prompts, strict=True):
            generated = self.generate(features, ids, ask.num_beams, ask.max_new_tokens, ask.no_repeat_ngram_size)
            result = parse_answer(task, self.tokenizer.decode(generated), picture.size_px)
            tokens = len(generated) - 1
            is_cut = tokens >= self._limit(ask.max_new_tokens)
            answers.append(Answer(task.token, result, tokens, is_cut, features.shape[1] + len(ids)))
        return answers, Stages(vision_s=seen - started, text_s=perf_counter() - seen)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the vision part: pixels (1, 3, side, side) float32 to features (1, image tokens, width)."""
        with torch.inference_mode():
            outputs: Any = self.model.get_image_features(pixels.to(self.device, self._dtype))
            features: torch.Tensor = outputs.pooler_output
            return features

    def encode_prompt(self, features: torch.Tensor, prompt_ids: list[int]) -> torch.Tensor:
        """Run the encoder over the picture's tokens and the prompt's behind them: (1, image tokens + prompt, width)."""
        with torch.inference_mode():
            ids = torch.tensor([prompt_ids], device=self.device)
            embedded = torch.cat([features, self.model.get_input_embeddings()(ids)], dim=1)
            encoder: Any = self.model.get_encoder()
            encoded: torch.Tensor = encoder(inputs_embeds=embedded).last_hidden_state
            return encoded

    def generate(
        self,
        features: torch.Tensor,
        prompt_ids: list[int],
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        no_repeat_ngram_size: int | None = None,
    ) -> list[int]:
        """Search for the best answer to a prompt. The ids begin with the decoder's start token."""
        encoded = self.encode_prompt(features, prompt_ids)
        model: Any = self.model
        with torch.inference_mode():
            generated = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                attention_mask=torch.ones(encoded.shape[:2], dtype=torch.long, device=self.device),
                generation_config=self._generation_config(num_beams, max_new_tokens, no_repeat_ngram_size),
            )
        ids: list[int] = generated[0].tolist()
        return ids

    def _limit(self, max_new_tokens: int | None) -> int:
        """How many tokens an answer may have.

        The decoder reads its start token and all new tokens but the last, so the position table holds as many new
        tokens as it has positions: a longer answer is ended there, by the forced end token.
        """
        return min(max_new_tokens or self._settings.max_new_tokens, self._layout.max_positions)

    def _generation_config(
        self, num_beams: int | None, max_new_tokens: int | None, no_repeat_ngram_size: int | None
    ) -> GenerationConfig:
        """Join what is asked, the settings and the checkpoint's defaults."""
        search = self._search
        beams = num_beams or self._settings.num_beams
        options: dict[str, Any] = {
            "num_beams": beams,
            "do_sample": False,
            "max_new_tokens": self._limit(max_new_tokens),
            "no_repeat_ngram_size": (
                search.no_repeat_ngram_size if no_repeat_ngram_size is None else no_repeat_ngram_size
            ),
            "decoder_start_token_id": search.decoder_start_token_id,
            "forced_bos_token_id": search.forced_bos_token_id,
            "forced_eos_token_id": search.forced_eos_token_id,
            "bos_token_id": search.bos_token_id,
            "eos_token_id": search.eos_token_id,
            "pad_token_id": search.pad_token_id,
        }
        if beams > 1:
            options |= {"early_stopping": search.early_stopping, "length_penalty": search.length_penalty}
        return GenerationConfig(**options)

    def _wait(self) -> None:
        """Let the GPU finish, so that each stage is charged with its own seconds."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        elif self.device == "mps":
            torch.mps.synchronize()


def load_network(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> Florence2ForConditionalGeneration:
    """Build the network without memory of its own, and give it the checkpoint's weights.

    Raises:
        CheckpointError: a tensor is unknown, missing or misshapen, or a file is broken.
    """
    weights = checkpoint.read_weights(dtype, device)
    model = empty_network(checkpoint.layout)
    tied = dict.fromkeys(TIED_TO_SHARED, weights[SHARED_EMBEDDING])
    model.load_state_dict({**weights, **tied}, strict=True, assign=True)
    model.tie_weights()
    _never_generate(model, checkpoint.layout.image_token_id)
    return model.eval().requires_grad_(False)


def empty_network(layout: Layout) -> Florence2ForConditionalGeneration:
    """Build the network on the meta device: shapes alone."""
    config = Florence2Config(
        vision_config=Florence2VisionConfig(**layout.vision).to_dict(),
        text_config=BartConfig(**layout.text).to_dict(),
        image_token_id=layout.image_token_id,
    )
    with torch.device("meta"):
        return Florence2ForConditionalGeneration(config)


def _never_generate(model: Florence2ForConditionalGeneration, token_id: int) -> None:
    """Take `<image>` out of every choice.

    Before the softmax, so that the others' probabilities are what they are in the original, which has no such row.
    """

    def mask(_: torch.nn.Module, __: Any, logits: torch.Tensor) -> torch.Tensor:
        logits[..., token_id] = float("-inf")
        return logits

    model.lm_head.register_forward_hook(mask)
