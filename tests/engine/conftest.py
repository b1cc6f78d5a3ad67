"""Engine tests share a machine with whatever else runs: one thread each, since torch's spin while they wait.

Measured on two busy cores: 18 s for an answer with two threads, 0.4 s with one.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
