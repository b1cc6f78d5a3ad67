"""What a measurement was made on: the processor, its memory, the GPU, and the versions of what computes."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

# What decides how fast matrices are: flags as Linux names them.
_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX",
    "asimd": "NEON",
    "asimddp": "dot products",
    "i8mm": "I8MM",
}
_LIBRARIES = ("torch", "transformers", "openvino", "nncf", "numpy", "pillow")


def describe_machine(device: str) -> list[str]:
    """Describe the machine, a line each for what is known."""
    lines = [_describe_cpu(), _describe_memory(), f"{platform.system()}, Python {platform.python_version()}"]
    if device.startswith("cuda"):
        lines.insert(0, _describe_gpu())
    return [line for line in lines if line]


def find_versions() -> dict[str, str]:
    """The versions of this program and of the libraries that compute."""
    found = {}
    for name in ("florence-daemon", *_LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _describe_cpu() -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs"
    text = path.read_text()
    model = _field(text, "model name") or platform.machine()
    family = f" (family {_field(text, 'cpu family')}, model {_field(text, 'model')})" if "cpu family" in text else ""
    flags = set((_field(text, "flags") or _field(text, "Features")).split())
    has = [name for flag, name in _FLAGS.items() if flag in flags]
    lacks = [_FLAGS[flag] for flag in ("avx512f", "avx512_vnni", "amx_int8") if flag not in flags and "avx2" in flags]
    without = f"; without {', '.join(lacks)}" if lacks else ""
    return f"{model}{family}, {_count_cores(text)}: {', '.join(has) or 'no vector flags known'}{without}"


def _count_cores(text: str) -> str:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = set(zip(re.findall(r"physical id\s*: (\d+)", text), re.findall(r"core id\s*: (\d+)", text), strict=False))
    return f"{cpus} CPUs on {len(cores)} cores" if cores else f"{cpus} CPUs"


def _describe_memory() -> str:
    path = Path("/proc/meminfo")
    if not path.exists():
        return ""
    kb = int(re.findall(r"MemTotal:\s+(\d+)", path.read_text())[0])
    return f"{kb / 2**20:.0f} GiB of memory"


def _describe_gpu() -> str:
    wanted = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(wanted, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "a GPU that nvidia-smi does not describe"


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""
