"""How many tokens a caption is to the text encoders of image models, which read no further than their limit."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, Literal

Encoder = Literal["CLIP", "T5"]


@dataclass(frozen=True)
class Limit:
    """What a trainer takes of a caption. CLIP's start and end are not counted, T5's end is: so the trainers do."""

    tokens: int
    encoder: Encoder
    meaning: str


LIMITS = (
    Limit(75, "CLIP", "the rest is cut off, unless the trainer takes more (kohya: --max_token_length)"),
    Limit(225, "CLIP", "the rest is cut off at kohya's longest --max_token_length"),
    Limit(512, "T5", "estimated; the rest is cut off (Flux, SD 3.5)"),
)
_VOCABULARIES = "florence_daemon.datasets.vocabularies"
# T5's own vocabulary does not come along. It cuts words finer than CLIP's, and the word "a" is two tokens to it. Over
# ten texts whose T5 tokens are published (tests/datasets/test_tokens.py), the estimate is 1 % above them together.
_T5_PER_CLIP = 1.15


class Tokens:
    """Counts with CLIP's own vocabulary, which is read when it is needed; T5's tokens are estimated from that."""

    def counts(self, text: str) -> dict[Encoder, int]:
        """Count a caption's tokens for each encoder: "a photo of a cat" are 5 to CLIP."""
        clip = len(self._clip.encode(text, add_special_tokens=False).ids)
        return {"CLIP": clip, "T5": 1 + round(_T5_PER_CLIP * clip) + len(re.findall(r"\ba\b", text))}

    @cached_property
    def _clip(self) -> Any:
        """Byte-pair encoding of lower-case words, each of which ends in `</w>`."""
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        merges: list[Any] = [tuple(line.split(" ")) for line in _read("clip_merges.txt.gz").splitlines()]
        # In the order of CLIP's ids, which nobody asks for here: a count needs only that each has one.
        letters = pre_tokenizers.ByteLevel.alphabet()
        pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
        vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>"))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return tokenizer


def _read(name: str) -> str:
    content = (resources.files(_VOCABULARIES) / name).read_bytes()
    return gzip.decompress(content).decode()
