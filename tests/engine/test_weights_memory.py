"""What loading takes of memory: the weights once, and not a second time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from florence_daemon.engine.layout import read_layout
from florence_daemon.engine.names import native_name
from florence_daemon.engine.shapes import expected_shapes
from tests.engine.checkpoints import Tensors, change_json, change_tensors, copy_tiny
from tests.reference import needs_reference

pytestmark = [
    needs_reference,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads what Linux says of the highest memory"),
]

# Makes the MLPs of the small checkpoint 200 MB large.
HIDDEN = 100_000
# Beside the weights: a portion that is being copied, and what varies.
SPARE_BYTES = 60_000_000

CODE = """
import json, sys
from pathlib import Path
import torch
from florence_daemon.engine.checkpoint import open_checkpoint
from florence_daemon.engine.model import load_network

def highest_bytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def load(directory):
    network = load_network(open_checkpoint(Path(directory)), "cpu", torch.float32)
    return network, sum(float(weight.sum()) for weight in network.parameters())

load(sys.argv[1])  # imports everything
before = highest_bytes()
network, _ = load(sys.argv[2])
weights = sum(weight.nbytes for weight in network.parameters())
print(json.dumps({"taken": highest_bytes() - before, "weights": weights, "compiler": "torch._dynamo" in sys.modules}))
"""


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_loading_takes_the_memory_of_the_weights_once(stored: torch.dtype, tmp_path: Path) -> None:
    small, large = copy_tiny(tmp_path / "small", side_px=96), copy_tiny(tmp_path / "large", side_px=96)
    sizes = {"encoder_ffn_dim": HIDDEN, "decoder_ffn_dim": HIDDEN}
    change_json(large / "config.json", lambda content: content["text_config"].update(sizes))
    shapes = expected_shapes(read_layout(large))

    def enlarge(tensors: Tensors) -> None:
        for name in tensors:
            if ".fc" in name and name.startswith("language_model"):
                tensors[name] = torch.ones(shapes[native_name(name) or ""])
            tensors[name] = tensors[name].to(stored)

    change_tensors(large, enlarge)
    arguments = [sys.executable, "-c", CODE, str(small), str(large)]
    said = json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    assert said["weights"] > 200_000_000
    assert said["taken"] < said["weights"] + SPARE_BYTES
    assert not said["compiler"], "torch's compiler would take 100 MB and seconds"
