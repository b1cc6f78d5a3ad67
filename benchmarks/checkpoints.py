"""Full-size Florence-2 checkpoints with random weights, made once: the real shapes, and answers that never end early.

A random network must be as well-behaved as a trained one: activations of a scale of 1 to 5, a clear choice among the
next tokens, an answer that depends on the picture. Each token that it writes is a word of its own, so that whoever has
an answer's text can count its tokens.
"""

from __future__ import annotations

import json
import tempfile
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_daemon.engine.checkpoint import DEMO_DIRECTORY
from florence_daemon.engine.layout import Layout, read_layout
from florence_daemon.engine.names import SHARED_EMBEDDING
from florence_daemon.engine.shapes import Shape, expected_shapes
from florence_daemon.engine.tokenizer import ADDED_TOKENS

if TYPE_CHECKING:
    from torch import Generator, Tensor

# Raised when what is written changes, so that nobody measures an old one.
_REVISION = 1
_WORDS = 50265
_IMAGE_TOKEN_ID = _WORDS + len(ADDED_TOKENS)
# Scale of the embedding: the logits get a spread of 5.5 (base), so that the likeliest token stands out as it does in a
# trained network, and rounding does not choose among the beams.
_EMBEDDING_SCALE = 0.2
# Lowers a token's logit below any that is chosen, without drowning the rest of its embedding where it is read.
_FORBIDDEN = -40 * _EMBEDDING_SCALE

# Widths of vision, heads, depths, width of BART, its layers and heads, side of the picture. `tiny` is for tests.
SIZES: dict[str, dict[str, Any]] = {
    "base": {"widths": [128, 256, 512, 1024], "heads": [4, 8, 16, 32], "deep": 9, "text": (768, 6, 12), "side": 768},
    "large": {
        "widths": [256, 512, 1024, 2048],
        "heads": [8, 16, 32, 64],
        "deep": 9,
        "text": (1024, 12, 16),
        "side": 768,
    },
    "tiny": {"widths": [16, 32, 48, 64], "heads": [1, 2, 3, 4], "deep": 1, "text": (64, 2, 4), "side": 64},
}


def make_checkpoint(size: str, cache: Path) -> Path:
    """Give the directory of a checkpoint in the native layout, float16 as it is published; make it if need be."""
    directory = cache / f"florence-2-{size}-random-{_REVISION}"
    if not directory.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            _write(size, Path(unfinished) / "checkpoint")
            (Path(unfinished) / "checkpoint").rename(directory)
    return directory


def _write(size: str, directory: Path) -> None:
    from safetensors.torch import save_file

    directory.mkdir()
    for name, content in _configuration(size).items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    vocabulary = _write_tokenizer(directory)
    layout = read_layout(directory)
    may_write = [id_ for word, id_ in vocabulary.items() if _is_made_up(word)]
    save_file(_weights(layout, may_write), directory / "model.safetensors", metadata={"format": "pt"})


def _configuration(size: str) -> dict[str, dict[str, Any]]:
    shape = SIZES[size]
    width, layers, _ = shape["text"]
    sides = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _side(*shape["text"]).items()
    }
    search = {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "num_beams": 3,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
    }
    tokens = {name: search[name] for name in search if name.endswith("_id")}
    text = {
        "model_type": "bart",
        "vocab_size": _IMAGE_TOKEN_ID + 1,
        "d_model": width,
        "num_hidden_layers": layers,
        "max_position_embeddings": 1024 if size != "tiny" else 128,
        "is_encoder_decoder": True,
    }
    vision = {
        "model_type": "florence_vision",
        "embed_dim": shape["widths"],
        "depths": [1, 1, shape["deep"], 1],
        "num_heads": shape["heads"],
        "num_groups": shape["heads"],
        "window_size": 12,
        "projection_dim": width,
    }
    side = {"height": shape["side"], "width": shape["side"]}
    return {
        "config.json": {
            "architectures": ["Florence2ForConditionalGeneration"],
            "model_type": "florence2",
            "image_token_id": _IMAGE_TOKEN_ID,
            "is_encoder_decoder": True,
            "tie_word_embeddings": True,
            "dtype": "float16",
            "text_config": text | sides | tokens,
            "vision_config": vision,
        },
        "generation_config.json": search,
        "preprocessor_config.json": {
            "size": side,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    }


def _side(width: int, layers: int, heads: int) -> dict[str, int]:
    return {"layers": layers, "attention_heads": heads, "ffn_dim": 4 * width}


def _write_tokenizer(directory: Path) -> dict[str, int]:
    """The demo model's bytes and merges, which make prompts of a real length, and made-up words up to BART's 50265."""
    known = json.loads((DEMO_DIRECTORY / "vocab.json").read_text(encoding="utf-8"))
    frame = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [*frame, *(word for word in known if word not in (*frame, "<mask>"))]
    words += [_made_up(number) for number in range(_WORDS - len(words) - 1)]
    vocabulary = {word: id_ for id_, word in enumerate([*words, "<mask>"])}
    added = {token: _WORDS + number for number, token in enumerate((*ADDED_TOKENS, "<image>"))}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (directory / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    (directory / "merges.txt").write_bytes((DEMO_DIRECTORY / "merges.txt").read_bytes())
    return vocabulary


_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxz", "aeiou"


def _made_up(number: int) -> str:
    """A word with a space before it (`Ġ`), of an open syllable for each two digits, and a `q` that no real word has."""
    syllables = [
        _CONSONANTS[digits // 5] + _VOWELS[digits % 5]
        for digits in (number // 100**2, number // 100 % 100, number % 100)
    ]
    return f"Ġ{''.join(syllables)}q"


def _is_made_up(word: str) -> bool:
    return word.startswith("Ġ") and word.endswith("q") and len(word) == 8


def _weights(layout: Layout, may_write: list[int]) -> dict[str, Tensor]:
    import torch

    chance = torch.Generator().manual_seed(2026)
    weights = {name: _random(name, shape, chance) for name, shape in expected_shapes(layout).items()}
    # The decoder's output is always 1 in its first place, so the embedding's first column is a bias of the logits.
    last_norm = f"model.language_model.decoder.layers.{layout.text['decoder_layers'] - 1}.final_layer_norm"
    weights[f"{last_norm}.weight"][0] = 0.0
    weights[f"{last_norm}.bias"][0] = 1.0
    embedding = weights[SHARED_EMBEDDING]
    embedding[:, 0] = _FORBIDDEN
    embedding[may_write, 0] = 0.0
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in weights.items()}


def _random(name: str, shape: Shape, chance: Generator) -> Tensor:
    """Draw a tensor that keeps the size of what passes through it."""
    import torch

    drawn = torch.randn(shape, generator=chance)
    if name == SHARED_EMBEDDING:
        return drawn * _EMBEDDING_SCALE
    if "norm" in name:
        return drawn * 0.1 + (1.0 if name.endswith(".weight") else 0.0)
    if len(shape) == 1:
        return drawn * 0.02
    if "embed" in name:
        return drawn * _EMBEDDING_SCALE
    return drawn * prod(shape[1:]) ** -0.5 * _strength(name)


def _strength(name: str) -> float:
    """Keep BART's answers as varied as a trained network's; otherwise they are three words in all orders."""
    if "language_model" not in name:
        return 1.0
    if "q_proj" in name or "k_proj" in name:
        return 2.0  # looks at some places more than at others, so that the picture matters
    # Its norms come after its sums: branches at full strength would leave nothing of the word that was read.
    return 0.5 if "out_proj" in name or "fc2" in name else 1.0
