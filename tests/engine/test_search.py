"""Our network and search against transformers': the same sequences over random networks, prompts and settings."""

from __future__ import annotations

import platform
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper
from transformers.modeling_outputs import BaseModelOutput

from florence_daemon.engine.decoder import LIKELIEST, Continuations
from florence_daemon.engine.layout import Layout
from florence_daemon.engine.model import Florence2, fused_names, native_to_ours
from florence_daemon.engine.names import TIED_TO_SHARED
from florence_daemon.engine.products import ONEDNN, linear
from florence_daemon.engine.runners import Eager
from florence_daemon.engine.search import NEVER, Search, SearchSettings, repeating_ids, token_chances
from florence_daemon.engine.torch_decoder import TorchDecoder
from florence_daemon.engine.transformers_backend import empty_network
from florence_daemon.errors import EngineError, PromptError
from tests.engine.decoding import Asked, decode

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
    ours.load_state_dict(our_state(theirs.state_dict(), layout), strict=True)
    return theirs, ours


def our_state(state: dict[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
    """The same weights under our names, as `read_weights` gives them."""
    joined = fused_names(layout)
    parts = {part for names in joined.values() for part in names} | set(TIED_TO_SHARED)
    left = {name: tensor for name, tensor in state.items() if name not in parts}
    fused = {name: torch.cat([state[part] for part in names]) for name, names in joined.items()}
    return {native_to_ours(name): tensor for name, tensor in (left | fused).items()}


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


def new_decoder(network: Florence2, *, is_static: bool = False) -> TorchDecoder:
    layout = small_layout(width=16, layers=len(network.decoder.layers))
    return TorchDecoder(network, layout, Eager(), is_static=is_static)


def random_question(chance: random.Random, joins_at: int = 0) -> Asked:
    prompt = [chance.randrange(3, ENTRIES) for _ in range(chance.randint(1, 6))]
    return Asked(torch.randn(IMAGE_TOKENS, 16), prompt, random_settings(chance), joins_at)


@pytest.mark.parametrize("seed", range(20))
def test_sequences_are_those_of_transformers(seed: int) -> None:
    chance = random.Random(seed)
    theirs, ours = twins(seed)
    with torch.inference_mode():
        for _ in range(15):
            asked = random_question(chance)
            expected = generate_theirs(theirs, asked.features[None], list(asked.prompt), asked.settings)
            assert decode(new_decoder(ours), [asked]) == [expected], asked.settings


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_answer_is_the_same_alone_and_among_others_that_come_and_go(seed: int, is_static: bool) -> None:
    chance = random.Random(100 + seed)
    _, ours = twins(seed)
    asked = [random_question(chance, joins_at=chance.choice([0, 0, 3, 7, 20, 60])) for _ in range(17)]
    alone = [decode(new_decoder(ours), [replace(each, joins_at=0)])[0] for each in asked]
    assert decode(new_decoder(ours, is_static=is_static), asked) == alone


def test_decoder_can_be_used_again_when_all_have_left() -> None:
    _, ours = twins(1)
    chance = random.Random(1)
    first, second = random_question(chance), random_question(chance)
    decoder = new_decoder(ours)
    before = decode(decoder, [first, second])
    assert decode(decoder, [second, first]) == before[::-1]


def test_question_that_leaves_early_does_not_change_the_others() -> None:
    _, ours = twins(2)
    chance = random.Random(2)
    asked = [random_question(chance) for _ in range(4)]
    decoder, fewer = new_decoder(ours), new_decoder(ours)
    for each in asked:
        decoder.join(each.features, each.prompt, 1)
    for each in (asked[1], asked[3]):
        fewer.join(each.features, each.prompt, 1)
    decoder.step([0] * 4, [START] * 4)
    fewer.step([0] * 2, [START] * 2)
    decoder.leave([0, 2])
    offers, expected = (each.step([0, 0], [7, 8]) for each in (decoder, fewer))
    np.testing.assert_allclose(offers.logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(offers.all_logits([1, 0]), expected.all_logits([1, 0]), atol=1e-5)
    assert np.isneginf(offers.all_logits([0])[0, ENTRIES])


def test_offers_are_what_all_logits_say() -> None:
    _, ours = twins(4)
    decoder = new_decoder(ours)
    each = random_question(random.Random(4))
    decoder.join(each.features, each.prompt, 2)
    offers = decoder.step([0, 1], [START, 9])
    whole = offers.all_logits([0, 1])
    assert offers.logits.shape == (2, LIKELIEST)
    np.testing.assert_array_equal(np.take_along_axis(whole, offers.ids, axis=1), offers.logits)
    np.testing.assert_allclose(offers.log_norm, np.log(np.exp(whole.astype(np.float64)).sum(axis=1)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 2), (5, 1), (1, 577)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_linear_is_torchs_for_any_number_of_rows(shape: tuple[int, int], is_turned: bool) -> None:
    layer = torch.nn.Linear(48, 72)
    with torch.inference_mode():
        tokens = torch.randn(48, *shape).permute(1, 2, 0) if is_turned else torch.randn(*shape, 48)
        for bias in (layer.bias, None):
            expected = torch.nn.functional.linear(tokens, layer.weight, bias)
            assert torch.allclose(linear(tokens, layer.weight, bias), expected, atol=1e-5)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere torch's own product is taken")
def test_torch_has_the_quicker_product() -> None:
    """A torch that has not would be slower, not wrong: nobody would notice."""
    assert ONEDNN is not None


def test_vision_is_that_of_transformers_at_any_size() -> None:
    theirs, ours = twins(3)
    with torch.inference_mode():
        for side_px in (16, 24, 56):
            pixels = torch.randn(2, 3, side_px, side_px)
            expected = theirs.get_image_features(pixels).pooler_output
            assert torch.allclose(ours.see(pixels), expected, atol=1e-4)


def offer(rows: Sequence[dict[int, float]], likeliest: int = LIKELIEST, entries: int = ENTRIES) -> Continuations:
    """What a decoder offers whose rows have these probabilities, and almost none for the other tokens."""
    logits = np.full((len(rows), entries), -40.0, np.float32)
    for number, row in enumerate(rows):
        logits[number, list(row)] = np.log(list(row.values()))
    return offer_logits(logits, likeliest)


def offer_logits(logits: NDArray[np.float32], likeliest: int = LIKELIEST) -> Continuations:
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :likeliest]
    log_norm = np.log(np.exp(logits).sum(axis=1))
    return Continuations(np.take_along_axis(logits, ids, 1), ids, log_norm, lambda rows: logits[list(rows)])


def test_token_that_would_repeat_an_ngram_is_found() -> None:
    assert repeating_ids([5, 6, 7, 5, 6], 3) == {7}
    assert repeating_ids([5, 6, 7, 8, 9], 3) == set()
    assert repeating_ids([5, 6], 3) == set()
    assert repeating_ids([5, 6, 5], 1) == {5, 6}
    assert repeating_ids([5, 6, 5, 7, 5], 2) == {6, 7}


def test_search_that_has_all_its_answers_ends_early() -> None:
    first = [{7: 0.4, 8: 0.3, 9: 0.3}] * 2
    steps = [first, [{END: 0.9, 5: 0.1}, {END: 0.1, 6: 0.9}], [{END: 0.55, 5: 0.45}, {5: 1.0}]]
    hasty = Search(SearchSettings(START, END, num_beams=2))
    patient = Search(replace(hasty.settings, early_stopping=False, length_penalty=2.0))
    for search in (hasty, patient):
        parents = [search.advance(offer(rows), range(2)) for rows in steps]
        assert parents[:2] == [[0, 0], [1, 0]]
        assert len(search.finished) == 2
    assert hasty.is_done
    assert hasty.answer == [START, 7, END]
    assert not patient.is_done, "what is written still counts more than the first finished answer"


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("likeliest", [1, 3, 9])
def test_few_offers_give_the_same_steps_as_many(beams: int, likeliest: int) -> None:
    chance = np.random.default_rng(beams * 10 + likeliest)
    settings = SearchSettings(START, END, num_beams=beams, max_new_tokens=30, no_repeat_ngram_size=1)
    many, few = Search(settings), Search(settings)
    while not many.is_done:
        logits = chance.integers(0, 6, (beams, ENTRIES)).astype(np.float32)  # with many equals among them
        parents = many.advance(offer_logits(logits, ENTRIES), range(beams))
        assert few.advance(offer_logits(logits, likeliest), range(beams)) == parents
        assert few.beams == many.beams
    assert few.is_done
    assert few.answer == many.answer


def test_of_equals_the_lower_beam_and_token_goes_first() -> None:
    search = Search(SearchSettings(START, END, num_beams=1, no_repeat_ngram_size=0))
    search.advance(offer_logits(np.zeros((1, ENTRIES), np.float32), likeliest=3), range(1))
    assert search.last_ids == [0]
    search = Search(SearchSettings(START, END, num_beams=2, no_repeat_ngram_size=0))
    search.advance(offer_logits(np.zeros((2, ENTRIES), np.float32)), range(2))
    assert search.last_ids == [0, 1]
    assert search.advance(offer_logits(np.zeros((2, ENTRIES), np.float32)), range(2)) == [0, 0]


def test_a_search_reads_its_own_rows_only() -> None:
    search = Search(SearchSettings(START, END, num_beams=2))
    search.advance(offer([{5: 1.0}, {6: 1.0}, {7: 0.6, 8: 0.4}, {9: 1.0}, {4: 1.0}]), range(2, 4))
    assert search.last_ids == [7, 8]


def test_network_that_gives_no_numbers_is_named() -> None:
    search = Search(SearchSettings(START, END))
    with pytest.raises(EngineError, match=r"NaN.*model\.precision"):
        search.advance(offer_logits(np.full((3, ENTRIES), np.nan, np.float32)), range(3))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 1, "temperature": -1.0}, "temperature is -1.0"),
        ({"num_beams": 1, "temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"num_beams": 3, "temperature": 0.7}, "temperature 0.7 with num_beams 3"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(PromptError, match=named):
        SearchSettings(START, END, **wrong)


SAMPLING = SearchSettings(START, END, num_beams=1, no_repeat_ngram_size=0, temperature=0.8, top_p=0.9)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_chances_are_those_of_transformers_warpers(temperature: float, top_p: float) -> None:
    logits = np.random.default_rng(7).normal(0, 3, (5, 1000)).astype(np.float32)
    logits[:, 3] = NEVER
    warped = TemperatureLogitsWarper(temperature)(cast(torch.LongTensor, None), cast(Any, torch.from_numpy(logits)))
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(cast(torch.LongTensor, None), warped)
    for row, expected in zip(logits, warped.softmax(dim=-1).numpy(), strict=True):
        chances = token_chances(row, temperature, top_p)
        assert chances is not None
        assert ((chances > 0) == (expected > 0)).all()
        np.testing.assert_allclose(chances, expected, atol=1e-6)


def draw(settings: SearchSettings, logits: NDArray[np.float32]) -> int:
    search = Search(settings)
    search.advance(offer_logits(logits), range(1))
    return search.last_ids[0]


def test_tokens_are_drawn_as_often_as_their_chances_say() -> None:
    logits = np.random.default_rng(1).normal(0, 1.5, (1, ENTRIES)).astype(np.float32)
    draws = 4000
    counts = np.bincount([draw(replace(SAMPLING, seed=seed), logits) for seed in range(draws)], minlength=ENTRIES)
    chances = token_chances(logits[0], SAMPLING.temperature, SAMPLING.top_p)
    assert chances is not None
    possible = chances > 0
    assert counts[~possible].sum() == 0
    expected = chances[possible] * draws
    misfit = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    assert misfit < freedom + 4 * (2 * freedom) ** 0.5, "chi squared, four standard deviations"


def test_forbidden_tokens_are_not_drawn() -> None:
    settings = replace(SAMPLING, no_repeat_ngram_size=1, min_new_tokens=20, top_p=1.0, seed=3)
    search = Search(settings)
    logits = np.zeros((1, ENTRIES), np.float32)
    for _ in range(20):
        search.advance(offer_logits(logits), range(1))
    written = search.beams[0].ids
    assert len(set(written)) == len(written) == 21


def test_same_seed_draws_the_same_and_none_draws_anew() -> None:
    logits = np.zeros((1, 10_000), np.float32)
    assert len({draw(replace(SAMPLING, seed=5), logits) for _ in range(5)}) == 1
    assert len({draw(SAMPLING, logits) for _ in range(5)}) > 1
