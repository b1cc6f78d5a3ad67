"""The vision tower beside timm's DaViT, which was written by others; the extra `reference` installs it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from florence_daemon.engine.davit import DaViT

# torchvision's operators are built for one torch; PyPI's with CUDA does not load them into one without. timm imports
# torchvision, which then misses these declarations; nothing calls them.
DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# Florence-2's own vision, narrower: (widths, depths, heads).
VISION = ((16, 32, 48, 64), (1, 1, 2, 1), (2, 4, 6, 8))
# timm's names and ours, in this order.
NAMES = (
    ("stem.", "convs.0."),
    (".downsample.", ".convs."),
    (".cpe1.proj.", ".conv1."),
    (".cpe2.proj.", ".conv2."),
    ("spatial_block.attn.", "spatial_block.window_attn."),
    ("channel_block.attn.", "channel_block.channel_attn."),
    (".mlp.", ".ffn."),
)


@pytest.fixture(scope="module")
def davit() -> Any:
    try:
        return importlib.import_module("timm.models.davit")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for declaration in DECLARATIONS:
            library.define(declaration)
        return importlib.import_module("timm.models.davit")
    except ImportError as error:
        pytest.skip(f"the extra `reference` is not installed: {error}")


def our_name(name: str) -> str:
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    if name.startswith("stages."):
        _, stage, kind, rest = name.split(".", 3)
        name = f"{kind}.{stage}.{rest}"
    return name


@pytest.mark.parametrize("side_px", [32, 96, 160])
def test_vision_tower_is_timms(davit: Any, side_px: int) -> None:
    widths, depths, heads = VISION
    torch.manual_seed(side_px)
    theirs = davit.DaVit(
        depths=depths,
        embed_dims=widths,
        num_heads=heads,
        window_size=12,
        down_kernel_size=3,
        channel_attn_v2=True,
        named_blocks=True,
        num_classes=0,
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    ours = DaViT(
        {
            "embed_dim": widths,
            "depths": depths,
            "num_heads": heads,
            "num_groups": heads,
            "patch_size": [7, 3, 3, 3],
            "patch_stride": [4, 2, 2, 2],
            "patch_padding": [3, 1, 1, 1],
            "patch_prenorm": [False, True, True, True],
            "window_size": 12,
        }
    ).eval()
    state = {our_name(name): tensor for name, tensor in theirs.state_dict().items() if not name.startswith("head.")}
    ours.load_state_dict(state, strict=True)
    pixels = torch.randn(2, 3, side_px, side_px)
    with torch.inference_mode():
        expected = theirs.forward_features(pixels).permute(0, 2, 3, 1)
        found = ours(pixels)
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
