"""How many GPUs there are, without torch, which takes seconds and hundreds of megabytes to say so."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

# NVIDIA's driver is asked in a process of its own: it stays in memory where it was loaded once. It knows of
# CUDA_VISIBLE_DEVICES and of what a container was given, so its numbers are torch's.
ASK_CUDA = """
import ctypes, sys
driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
count = ctypes.c_int(0)
print(count.value if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value)
"""
ASK_S = 60.0
# AMD's driver lists processors here; those without SIMD units are no GPUs.
KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
# What hides some of AMD's GPUs from torch.
AMD_VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def count_gpus(environ: Mapping[str, str] = os.environ, nodes: Path = KFD_NODES) -> int:
    """Count the GPUs that torch would call `cuda:0`, `cuda:1`, …"""
    return _count_nvidia(environ) or _count_amd(environ, nodes)


def _count_nvidia(environ: Mapping[str, str]) -> int:
    try:
        asked = subprocess.run(
            [sys.executable, "-S", "-c", ASK_CUDA], capture_output=True, text=True, timeout=ASK_S, env=dict(environ)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("NVIDIA's driver could not be asked for its GPUs: %s", error)
        return 0
    return int(asked.stdout) if asked.returncode == 0 else 0


def _count_amd(environ: Mapping[str, str], nodes: Path) -> int:
    count = 0
    for properties in nodes.glob("*/properties"):
        try:
            lines = dict(line.split() for line in properties.read_text().splitlines())
        except (OSError, ValueError):
            continue
        count += lines.get("simd_count", "0") != "0"
    for name in AMD_VISIBLE:
        if environ.get(name):
            count = min(count, len(environ[name].split(",")))
    return count
