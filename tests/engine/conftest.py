"""Engine tests share a machine with whatever else runs: one thread each, since torch's spin while they wait.

Measured on two busy cores: 18 s for an answer with two threads, 0.4 s with one.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, cast

import pytest
import torch

# transformers imports torchvision where it finds it, which fails when that was built for another torch, as PyPI's is
# for one with CUDA. It asks once, here: `open_backend` does the same.
sys.modules["torchvision"] = cast(Any, None)
importlib.import_module("transformers.image_utils")
del sys.modules["torchvision"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
