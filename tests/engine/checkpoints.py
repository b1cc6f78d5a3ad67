"""Checkpoints for tests: tiny-a with something changed, made in a directory of the test's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.reference import TINY_A

Tensors = dict[str, torch.Tensor]


def copy_tiny(directory: Path, *, without: tuple[str, ...] = (), side_px: int | None = None) -> Path:
    """Copy tiny-a, some files left out. A smaller side makes a faster model, with fewer image tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in TINY_A.iterdir():
        if file.name not in (*without, "expected.json", "expected.npz"):
            shutil.copyfile(file, directory / file.name)
    if side_px is not None:
        size = {"height": side_px, "width": side_px}
        change_json(directory / "preprocessor_config.json", lambda content: content.update(size=size))
    return directory


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def tiny_tensors() -> Tensors:
    return load_file(TINY_A / "model.safetensors")


def change_tensors(directory: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")


def write_shards(directory: Path, tensors: Tensors, ending: str) -> None:
    """Write the weights as two shards and their index; ending: safetensors or bin."""
    stem = "model" if ending == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"{stem}-{number:05}-of-00002.{ending}"
        shard = {name: tensors[name] for name in names}
        save_file(shard, directory / file) if ending == "safetensors" else torch.save(shard, directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
