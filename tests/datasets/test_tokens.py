"""Tokens counted as the encoders do."""

from __future__ import annotations

import pytest

from florence_daemon.datasets.tokens import LIMITS, Tokens


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a photo of a cat", 5),  # 320 1125 539 320 2368 in CLIP's own paper code
        ("A  Photo\nof a CAT", 5),
        ("", 0),
        ("it's 2024", 6),  # it 's 2 0 2 4
    ],
)
def test_clip_counts_as_it_reads(tokens: Tokens, text: str, count: int) -> None:
    assert tokens.counts(text)["CLIP"] == count


GERMAN = "translate English to German: "
DOG = GERMAN + "Studies have shown that owning a dog is good for you"
# Texts whose T5 tokens, the end counted, are published in the tests of transformers, Bumblebee, hasktorch and others.
PUBLISHED_T5 = {
    "Transformers (formerly known as pytorch-transformers and pytorch-pretrained-bert) provides general-purpose "
    "architectures (BERT, GPT-2, RoBERTa, XLM, DistilBert, XLNet...) for Natural Language Understanding (NLU) and "
    "Natural Language Generation (NLG) with over 32+ pretrained models in 100+ languages and deep interoperability "
    "between Jax, PyTorch and TensorFlow.": 112,
    "BERT is designed to pre-train deep bidirectional representations from unlabeled text by jointly conditioning on "
    "both left and right context in all layers.": 33,
    "The quick brown fox jumps over the lazy dog.": 13,
    GERMAN + "The house is wonderful.": 11,
    GERMAN + "How old are you?": 11,
    GERMAN + "I love machine learning.": 11,
    DOG: 19,
    DOG + " and your dog.": 23,
    "The capital of France is Paris.": 8,
    "Hello, World! 42": 6,
}


def test_t5_is_estimated_near_what_is_published(tokens: Tokens) -> None:
    estimates = {text: tokens.counts(text)["T5"] for text in PUBLISHED_T5}
    assert sum(estimates.values()) == pytest.approx(sum(PUBLISHED_T5.values()), rel=0.02)
    for text, count in PUBLISHED_T5.items():
        assert abs(estimates[text] - count) <= max(2, 0.1 * count), text


@pytest.mark.parametrize("text", ["x" * 100_000, "\x00\ud7ff\U0010ffff", "a" + "\u0301" * 1000])
def test_no_text_is_too_odd_to_be_counted(tokens: Tokens, text: str) -> None:
    assert tokens.counts(text)["CLIP"] > 0


def test_limits_are_told_from_the_smallest_on() -> None:
    assert [limit.tokens for limit in LIMITS] == [75, 225, 512]
