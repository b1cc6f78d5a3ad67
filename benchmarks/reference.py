"""What people run today: transformers' Florence2ForConditionalGeneration and its `generate`, a picture at a time."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.contender import Answered, Job, Order
from florence_daemon.engine.checkpoint import open_checkpoint
from florence_daemon.engine.protocol import Ask
from florence_daemon.errors import EngineError


class Reference:
    """The network that from_pretrained gives, with the checkpoint's own generation_config.json.

    Pixels and prompts are made as Florence2Processor makes them, with Pillow and the checkpoint's tokenizer.
    """

    def __init__(self, order: Order) -> None:
        # A torchvision that was built for another torch fails on import; nothing here needs it.
        sys.modules["torchvision"] = cast(Any, None)
        import torch
        from transformers import Florence2ForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()

        self.device, self.precision = order.device, order.precision
        self._dtype = getattr(torch, order.precision)
        self._new_tokens = order.new_tokens
        self._checkpoint = open_checkpoint(Path(order.checkpoint))
        network: Any = Florence2ForConditionalGeneration.from_pretrained(order.checkpoint, dtype=self._dtype)
        self._network = network.to(order.device).eval()
        self._vision_s = self._generate_s = 0.0
        self._time_vision(network.model.vision_tower)

    def answer(self, job: Job) -> Answered:
        """Each prompt of each picture is a request of its own, which sees the picture anew."""
        self._vision_s = self._generate_s = 0.0
        answers = tuple(tuple(self._caption(file, prompt) for prompt in job.prompts) for file in job.pictures)
        if self.device != "cpu":  # a GPU works on while the clock has been read
            return Answered(0.0, answers)
        return Answered(0.0, answers, self._vision_s, self._generate_s - self._vision_s)

    def _caption(self, file: str, prompt: str) -> str:
        import torch

        layout = self._checkpoint.layout
        _, ids = self._checkpoint.encode_prompt(Ask(prompt))
        input_ids = torch.tensor([[layout.image_token_id] * layout.image_tokens + ids], device=self.device)
        pixels = torch.from_numpy(read_pixels(file, layout.image_side_px)).to(self.device, self._dtype)
        began_s = time.perf_counter()
        with torch.inference_mode():
            generated = self._network.generate(
                input_ids=input_ids, pixel_values=pixels[None], max_new_tokens=self._new_tokens
            )[0].tolist()
        self._generate_s += time.perf_counter() - began_s
        if len(generated) != 1 + self._new_tokens:
            raise EngineError(f"{file}: {len(generated) - 1} tokens instead of {self._new_tokens}: {generated}")
        return self._checkpoint.tokenizer.decode(generated).strip()

    def _time_vision(self, tower: Any) -> None:
        """Note how long the vision tower takes, from outside."""
        began_s = 0.0

        def begin(*_: object) -> None:
            nonlocal began_s
            began_s = time.perf_counter()

        def end(*_: object) -> None:
            self._vision_s += time.perf_counter() - began_s

        tower.register_forward_pre_hook(begin)
        tower.register_forward_hook(end)


def read_pixels(file: str, side_px: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read and resize as Florence-2's processor does, (3, side, side) float32, normalised."""
    from PIL import Image

    with Image.open(file) as opened:
        resized = opened.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.float32) / np.float32(255)
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))
