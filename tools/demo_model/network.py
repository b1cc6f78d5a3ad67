"""The demo model's shape, and its weights and configuration in the original layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Florence2Config, Florence2ForConditionalGeneration

from florence_daemon.engine.names import TIED_TO_SHARED, TRANSPOSED, original_name

IMAGE_SIDE_PX = 128
GRID_SIDE = IMAGE_SIDE_PX // 32  # the vision tower halves the side five times
IMAGE_TOKENS = GRID_SIDE**2 + 1
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
WIDTH = 128

# What both layouts call by the same name. Window 4 divides every stage's side (32, 16, 8, 4): nothing is padded.
_VISION = {
    "depths": [1, 1, 1, 1],
    "patch_size": [7, 3, 3, 3],
    "patch_stride": [4, 2, 2, 2],
    "patch_padding": [3, 1, 1, 1],
    "patch_prenorm": [False, True, True, True],
    "num_heads": [1, 2, 4, 6],
    "num_groups": [1, 2, 4, 6],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "projection_dim": WIDTH,
}
_VISION_WIDTHS = [32, 64, 128, 192]
_TEXT = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 4 * WIDTH,
    "decoder_ffn_dim": 4 * WIDTH,
    "max_position_embeddings": 1024,
    "activation_function": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "scale_embedding": False,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "is_encoder_decoder": True,
}
_SEARCH = {
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "num_beams": 3,
    # The model is so sure of its sentences that the second and third best beam are ones that break off anywhere:
    # early stopping would take three of those and end before the whole sentence does.
    "early_stopping": False,
    "no_repeat_ngram_size": 0,  # "at the top left" may come three times
}


def build_network(entries: int) -> Florence2ForConditionalGeneration:
    """Build the untrained network. entries: of the vocabulary, with the added tokens and without `<image>`."""
    config = Florence2Config(
        vision_config={**_VISION, "embed_dim": _VISION_WIDTHS},
        text_config={**_TEXT, "model_type": "bart", "vocab_size": entries},
        image_token_id=entries,
    )
    network = Florence2ForConditionalGeneration(config)
    network.model.vision_tower.apply(_spread)
    _look_for_edges(network.model.vision_tower.convs[0].conv)
    return network


def _spread(module: nn.Module) -> None:
    """Start so that signals keep their size: with the usual 0.02, narrow layers learn to tell shapes apart later."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")


def _look_for_edges(first: nn.Conv2d) -> None:
    """Start three quarters of the first filters blind to even colour.

    Without this, brightness drowns faint edges: after 1000 steps the network had no idea of textures.
    """
    with torch.no_grad():
        filters = first.weight[first.out_channels // 4 :]
        filters -= filters.mean(dim=(2, 3), keepdim=True)
        filters *= 2.5  # what is left is faint


def original_weights(network: Florence2ForConditionalGeneration) -> dict[str, Tensor]:
    """Return the weights, float16, under the names and in the forms of the original layout."""
    weights = {}
    for name, value in network.state_dict().items():
        if name in TIED_TO_SHARED:
            continue
        value = value.detach().T if name == TRANSPOSED else value.detach()
        weights[original_name(name)] = value.to(torch.float16).contiguous()
    entries = network.config.text_config.vocab_size
    weights["language_model.final_logits_bias"] = torch.zeros(1, entries, dtype=torch.float16)
    return weights


def write_network(network: Florence2ForConditionalGeneration, directory: Path) -> None:
    """Write weights and configuration as `microsoft/Florence-2-*` ships them."""
    save_file(original_weights(network), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # it is written for its owner alone, and a package is for everybody
    write_configuration(network.config.text_config.vocab_size, directory)


def write_configuration(entries: int, directory: Path) -> None:
    """Write the JSON beside the weights. entries: of the vocabulary, as for `build_network`."""
    _write_json(directory / "config.json", _original_config(entries))
    _write_json(directory / "generation_config.json", _SEARCH)
    _write_json(directory / "preprocessor_config.json", _preprocessor_config())


def _original_config(entries: int) -> dict[str, Any]:
    vision = {
        **_VISION,
        "model_type": "davit",
        "dim_embed": _VISION_WIDTHS,
        "enable_checkpoint": False,
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    }
    return {
        "architectures": ["Florence2ForConditionalGeneration"],
        "model_type": "florence2",
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "ignore_index": -100,
        "is_encoder_decoder": True,
        "projection_dim": WIDTH,
        "vocab_size": entries,
        "torch_dtype": "float16",
        "text_config": {
            **_TEXT,
            "model_type": "florence2_language",
            "vocab_size": entries,
            "num_hidden_layers": _TEXT["encoder_layers"],
            **{name: _SEARCH[name] for name in ("num_beams", "early_stopping", "no_repeat_ngram_size")},
        },
        "vision_config": vision,
    }


def _preprocessor_config() -> dict[str, Any]:
    side = {"height": IMAGE_SIDE_PX, "width": IMAGE_SIDE_PX}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "Florence2Processor",
        "image_seq_length": IMAGE_TOKENS,
        "do_resize": True,
        "size": side,
        "resample": 3,
        "do_center_crop": False,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "do_convert_rgb": None,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
