"""Our network and search against transformers': the same sequences over random networks, prompts and settings."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from florence_daemon.engine.layout import Layout
from florence_daemon.engine.model import Florence2, native_to_ours
from florence_daemon.engine.search import NEVER, Search, SearchSettings, forbid_repeated
from florence_daemon.engine.torch_backend import search_all
from florence_daemon.engine.transformers_backend import empty_network

PAD, START, END = 1, 2, 2
ENTRIES = 40
IMAGE_TOKENS = 5


def small_layout(width: int, layers: int) -> Layout:
    vision = {
        "embed_dim": [8, 16],
        "depths": [1, 1],
        "num_heads": [1, 2],
        "num_groups": [1, 2],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "window_size": 3,
        "projection_dim": width,
        "max_temporal_embeddings": 10,
        "max_position_embeddings": 20,
    }
    text = {
        "vocab_size": ENTRIES + 1,
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 64,
        "activation_function": "gelu",
        "scale_embedding": False,
        "pad_token_id": PAD,
    }
    return Layout(False, vision, text, ENTRIES + 1, ENTRIES, 16)


def twins(seed: int) -> tuple[Any, Florence2]:
    """transformers' network with lively random weights, and ours with the same."""
    torch.manual_seed(seed)
    layout = small_layout(width=16, layers=1 + seed % 2)
    theirs = empty_network(layout).to_empty(device="cpu").eval()
    for name, parameter in theirs.named_parameters():
        spread = 1.0 if "shared" in name else 0.35
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, spread)
    theirs.model.multi_modal_projector.visual_temporal_embed.pos_idx_to_embed.normal_()
    theirs.tie_weights()
    # As the backends do: the row of <image> is never generated.
    theirs.lm_head.register_forward_hook(_never_the_image)
    theirs.generation_config = GenerationConfig()  # what it takes from BART's defaults would add to the test's settings
    ours = Florence2(layout).eval().requires_grad_(False)
    known = ours.state_dict()
    state = {native_to_ours(name): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict({name: value for name, value in state.items() if name in known}, strict=True)
    return theirs, ours


def _never_the_image(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
    logits[..., ENTRIES] = NEVER
    return logits


def random_settings(chance: random.Random) -> SearchSettings:
    length = chance.choice([1, 2, 3, 5, 12, 25])
    return SearchSettings(
        start_id=START,
        end_id=END,
        num_beams=chance.randint(1, 5),
        max_new_tokens=length,
        min_new_tokens=chance.choice([0, 0, min(3, length)]),
        no_repeat_ngram_size=chance.choice([0, 1, 2, 3, 3]),
        early_stopping=chance.random() < 0.5,
        length_penalty=chance.choice([1.0, 1.0, 0.0, 2.0, 0.5]),
        forced_first_id=chance.choice([0, 0, None]),
        forced_last_id=chance.choice([END, END, None]),
    )


def generate_theirs(network: Any, features: torch.Tensor, prompt: list[int], settings: SearchSettings) -> list[int]:
    embedded = torch.cat([features, network.get_input_embeddings()(torch.tensor([prompt]))], dim=1)
    encoded = network.get_encoder()(inputs_embeds=embedded).last_hidden_state
    options: dict[str, Any] = {}
    if settings.num_beams > 1:
        options = {"early_stopping": settings.early_stopping, "length_penalty": settings.length_penalty}
    if settings.min_new_tokens:
        options["min_new_tokens"] = settings.min_new_tokens
    config = GenerationConfig(
        num_beams=settings.num_beams,
        max_new_tokens=settings.max_new_tokens,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        decoder_start_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        forced_bos_token_id=settings.forced_first_id,
        forced_eos_token_id=settings.forced_last_id,
        do_sample=False,
        **options,
    )
    outputs = BaseModelOutput(last_hidden_state=encoded)
    mask = torch.ones(encoded.shape[:2], dtype=torch.long)
    ids: list[int] = network.generate(encoder_outputs=outputs, attention_mask=mask, generation_config=config)[
        0
    ].tolist()
    return ids


def generate_ours(
    network: Florence2, features: torch.Tensor, prompts: list[list[int]], settings: SearchSettings
) -> list[list[int]]:
    longest = max(map(len, prompts))
    padded = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids in prompts])
    mask = torch.arange(longest) < torch.tensor([[len(ids)] for ids in prompts])
    memory = network.read(features, padded, mask)
    return search_all(network, memory, [Search(settings) for _ in prompts], never_id=ENTRIES)


@pytest.mark.parametrize("seed", range(20))
def test_sequences_are_those_of_transformers(seed: int) -> None:
    chance = random.Random(seed)
    theirs, ours = twins(seed)
    with torch.inference_mode():
        for _ in range(15):
            settings = random_settings(chance)
            prompts = [[chance.randrange(3, ENTRIES) for _ in range(chance.randint(1, 6))] for _ in range(3)]
            features = torch.randn(3, IMAGE_TOKENS, 16)
            expected = [
                generate_theirs(theirs, features[n : n + 1], prompt, settings) for n, prompt in enumerate(prompts)
            ]
            alone = [generate_ours(ours, features[n : n + 1], [p], settings)[0] for n, p in enumerate(prompts)]
            assert alone == expected, settings
            assert generate_ours(ours, features, prompts, settings) == expected, settings


def test_vision_is_that_of_transformers_at_any_size() -> None:
    theirs, ours = twins(3)
    with torch.inference_mode():
        for side_px in (16, 24, 56):
            pixels = torch.randn(2, 3, side_px, side_px)
            expected = theirs.get_image_features(pixels).pooler_output
            assert torch.allclose(ours.see(pixels), expected, atol=1e-4)


def test_repeated_ngram_is_taken_out() -> None:
    written = torch.tensor([[5, 6, 7, 5, 6], [5, 6, 7, 8, 9]])
    scores = forbid_repeated(torch.zeros(2, 10), written, 3)
    assert scores[0].tolist() == [0, 0, 0, 0, 0, 0, 0, NEVER, 0, 0]
    assert scores[1].tolist() == [0] * 10


def test_search_that_has_all_its_answers_ends_early() -> None:
    settings = SearchSettings(START, END, num_beams=2, forced_first_id=None)
    search = Search(settings)
    search.advance([-1.0, -2.0, -3.0, -4.0], [0, 0, 0, 0], [7, 8, 9, 10])
    search.advance([-1.1, -2.1, -2.2, -9.0], [0, 1, 0, 1], [END, END, 5, 6])
    assert search.is_done
    assert search.answer == [START, 7, END]
    patient = Search(replace(settings, early_stopping=False, length_penalty=2.0))
    patient.advance([-1.0, -2.0, -3.0, -4.0], [0, 0, 0, 0], [7, 8, 9, 10])
    patient.advance([-1.1, -2.1, -2.2, -9.0], [0, 1, 0, 1], [END, END, 5, 6])
    assert patient.is_done is (-2.2 / 4 <= -2.1 / 4)
