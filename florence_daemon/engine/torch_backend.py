"""Runs our own Florence-2 in torch: all prompts of a picture share its vision part, and each step of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from florence_daemon.engine.bart import Memory
from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.decoder import LIKELIEST, Continuations
from florence_daemon.engine.model import Florence2, load_network
from florence_daemon.engine.preprocess import Picture, to_pixels
from florence_daemon.engine.protocol import Answer, Ask, EngineSettings, Stages
from florence_daemon.engine.search import NEVER, Search, SearchSettings
from florence_daemon.tasks import parse_answer

# Tokens that an answer has room for at first; doubled when one is longer.
ROOM = 128


class TorchBackend:
    """Our network with a checkpoint's weights."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype, settings: EngineSettings) -> None:
        self.device = device
        self.precision = str(dtype).removeprefix("torch.")
        self.tokenizer = checkpoint.tokenizer
        self._checkpoint = checkpoint
        self._network = load_network(checkpoint, device, dtype)
        self._dtype = dtype
        self._layout = checkpoint.layout
        self._defaults = checkpoint.search
        self._settings = settings

    def answer(self, picture: Picture, asks: Sequence[Ask]) -> tuple[list[Answer], Stages]:
        """Answer all asks about a picture; see `Backend.answer`."""
        prompts = [self._checkpoint.encode_prompt(ask) for ask in asks]
        started_s = perf_counter()
        pixels = torch.from_numpy(to_pixels(picture, self._layout.image_side_px))
        features = self.encode_image(pixels.unsqueeze(0))
        seen_s = perf_counter()
        found = self._generate_all(features, [ids for _, ids in prompts], [self.search_settings(ask) for ask in asks])
        answers = [
            Answer(task.token, parse_answer(task, self.tokenizer.decode(ids), picture.size_px))
            for (task, _), ids in zip(prompts, found, strict=True)
        ]
        return answers, Stages(vision_s=seen_s - started_s, text_s=perf_counter() - seen_s)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Run the vision part: pixels (1, 3, side, side) float32 to features (1, image tokens, width)."""
        with torch.inference_mode():
            features = self._network.see(pixels.to(self.device, self._dtype))
        self._wait()
        return features

    def generate(self, features: Tensor, prompts: Sequence[list[int]], settings: SearchSettings) -> list[list[int]]:
        """Search for the best answer to each prompt about one picture, all in step; ids with the start token first."""
        longest = max(map(len, prompts))
        pad = self._defaults.pad_token_id
        padded = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in prompts], device=self.device)
        lengths = torch.tensor([[len(ids)] for ids in prompts], device=self.device)
        mask = torch.arange(longest, device=self.device) < lengths if len(prompts) > 1 else None
        with torch.inference_mode():
            memory = self._network.read(features.expand(len(prompts), -1, -1), padded, mask)
            return search_all(self._network, memory, [Search(settings) for _ in prompts], self._layout.image_token_id)

    def search_settings(self, ask: Ask) -> SearchSettings:
        """Join what is asked, the settings and the checkpoint's defaults.

        The decoder reads its start token and all new tokens but the last, so the position table holds as many new
        tokens as it has positions: a longer answer is ended there, by the forced end token.
        """
        wanted = ask.max_new_tokens or self._settings.max_new_tokens
        return SearchSettings(
            start_id=self._defaults.decoder_start_token_id,
            end_id=self._defaults.eos_token_id,
            num_beams=ask.num_beams or self._settings.num_beams,
            max_new_tokens=min(wanted, self._layout.max_positions),
            no_repeat_ngram_size=self._defaults.no_repeat_ngram_size,
            early_stopping=self._defaults.early_stopping,
            length_penalty=self._defaults.length_penalty,
            forced_first_id=self._defaults.forced_bos_token_id,
            forced_last_id=self._defaults.forced_eos_token_id,
        )

    def _generate_all(
        self, features: Tensor, prompts: Sequence[list[int]], settings: Sequence[SearchSettings]
    ) -> list[list[int]]:
        """Generate for prompts whose settings may differ: those that share them go together."""
        found: dict[int, list[int]] = {}
        for shared in dict.fromkeys(settings):
            members = [number for number, each in enumerate(settings) if each == shared]
            found |= zip(members, self.generate(features, [prompts[number] for number in members], shared), strict=True)
        return [found[number] for number in range(len(prompts))]

    def _wait(self) -> None:
        """Let the GPU finish, so that each stage is charged with its own seconds."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        elif self.device == "mps":
            torch.mps.synchronize()


def search_all(network: Florence2, memory: Memory, searches: list[Search], never_id: int) -> list[list[int]]:
    """Decode step by step until every search is done; one that is leaves its rows. never_id: is never generated."""
    active = searches
    cache = network.new_cache(len(searches) * searches[0].settings.num_beams, ROOM)
    at = 0
    while active:
        cache.make_room(at + 1)
        last = [token for search in active for token in search.last_ids]
        logits = network.write(torch.tensor(last, device=cache.keys.device), cache, at, memory).float()
        logits[:, never_id] = NEVER
        offers = likeliest(logits)
        at += 1
        order: list[int] = []
        first = 0
        for search in active:
            rows = range(first, first + len(search.beams))
            parents = search.advance(offers, rows)
            order += [] if search.is_done else [rows[parent] for parent in parents]
            first = rows.stop
        cache.reorder(order, at)
        going = [number for number, search in enumerate(active) if not search.is_done]
        if len(going) < len(active):
            active, memory = [active[number] for number in going], memory.select(going)
    return [search.answer for search in searches]


def likeliest(logits: Tensor) -> Continuations:
    """Bring the best of the logits (R, V) to the CPU; all of them are fetched only when they are asked for."""
    best, ids = logits.topk(min(LIKELIEST, logits.shape[1]))
    log_norm = logits.logsumexp(dim=-1)
    return Continuations(
        best.cpu().numpy(), ids.cpu().numpy(), log_norm.cpu().numpy(), lambda rows: logits[list(rows)].cpu().numpy()
    )
