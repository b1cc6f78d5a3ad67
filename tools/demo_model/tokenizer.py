"""The demo model's tokenizer: a byte-level BPE of BART's kind with few entries, and Florence's 1024 added tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, processors

from florence_daemon.demo_answers import PROMPTS, true_answer
from florence_daemon.demo_chance import draw_picture
from florence_daemon.engine.tokenizer import ADDED_TOKENS
from florence_daemon.tasks import TASKS

BOS, PAD, EOS, UNK = 0, 1, 2, 3
_FIRST_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
_MAX_ENTRIES = 1000  # training ends earlier, when every word of the answers is one entry


def train_tokenizer(seed: int) -> Tokenizer:
    """Learn the merges from true answers and prompts; the same seed gives the same tokenizer."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(
        _corpus(seed), vocab_size=_MAX_ENTRIES, min_frequency=2, special_tokens=_FIRST_TOKENS, show_progress=False
    )
    learned = json.loads(learner.to_str())["model"]
    vocabulary = {**learned["vocab"], "<mask>": len(learned["vocab"])}
    return _assemble(vocabulary, [tuple(merge) for merge in learned["merges"]])


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files that fine-tunes of the original ship."""
    model = json.loads(tokenizer.to_str())["model"]
    added = {token: tokenizer.token_to_id(token) for token in ADDED_TOKENS}
    _write_json(directory / "vocab.json", model["vocab"])
    _write_json(directory / "added_tokens.json", added)
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    _write_json(directory / "special_tokens_map.json", {**_named_tokens(), "additional_special_tokens": list(added)})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def _corpus(seed: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer {seed}")
    for _ in range(1000):
        picture = draw_picture(rng, size_px=(96, 96))
        yield from (true_answer(prompt, picture) for prompt in PROMPTS if prompt != "<OD>")
        yield from (shape.name for shape in picture.shapes)
        yield from (task.feed_alone or task.feed for task in TASKS)


def _assemble(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS), add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=True) for token in _FIRST_TOKENS])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=True)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ADDED_TOKENS])
    return tokenizer


def _named_tokens() -> dict[str, str]:
    named = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    return {f"{name}_token": token for name, token in named.items()}


def _tokenizer_config() -> dict[str, object]:
    return {
        **_named_tokens(),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 1024,
        "tokenizer_class": "BartTokenizer",
        "trim_offsets": True,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
