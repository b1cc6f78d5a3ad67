"""The rooms: imports go downward only, each outside library has one owner, and the daemon stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "florence_daemon"

# Every room and its layer: a room may import rooms of lower layers only.
LAYERS = {
    "errors": 0,
    "signals": 0,
    "notify": 0,
    "logs": 0,
    "liveness": 1,
    "tasks": 1,
    "folders.settle": 1,
    "folders.pauses": 3,
    "demo_pictures": 2,
    "demo_chance": 3,
    "demo_answers": 3,
    "engine.protocol": 2,
    "engine.files": 2,
    "engine.agreement": 3,
    "engine.names": 2,
    "engine.colours": 2,
    "engine.jpeg": 2,
    "engine.preprocess": 3,
    "config_checks": 0,
    "config_output": 2,
    "config": 3,
    "config_file": 4,
    "current": 4,
    "overrides": 5,
    "reload": 5,
    "folders.health": 0,
    "folders.inotify": 0,
    "folders.mounts": 0,
    "folders.names": 4,
    "folders.inherited": 6,
    "folders.scan": 5,
    "folders.scans": 6,
    "folders.events": 5,
    "folders.listening": 6,
    "folders.root": 7,
    "folders.atomic": 2,
    "folders.exiftool": 0,
    "folders.xml_places": 0,
    "folders.xmp_packet": 1,
    "folders.xmp": 2,
    "folders.xmp_sidecar": 3,
    "folders.sidecars": 3,
    "folders.asking": 3,
    "folders.shaping": 3,
    "folders.contents": 6,
    "folders.structured": 5,
    "folders.needs": 7,
    "folders.holder": 0,
    "folders.records": 4,
    "folders.ledger_file": 3,
    "folders.ledger_rows": 5,
    "folders.ledger": 6,
    "folders.watch": 8,
    "engine.layout": 3,
    "engine.shapes": 4,
    "engine.tokenizer": 4,
    "engine.weights": 5,
    "engine.checkpoint": 6,
    "engine.proof": 8,
    "engine.decoder": 2,
    "engine.search": 3,
    "engine.products": 1,
    "engine.davit": 2,
    "engine.bart": 3,
    "engine.runners": 2,
    "engine.slot_tables": 4,
    "engine.model": 7,
    "engine.torch_decoder": 8,
    "engine.torch_backend": 9,
    "engine.transformers_backend": 8,
    "engine.memory": 0,
    "engine.work": 7,
    "engine.reading": 8,
    "engine.slots": 8,
    "engine.one_by_one": 8,
    "engine.batching": 9,
    "engine.openvino_form": 7,
    "engine.openvino_quiet": 0,
    "engine.openvino_run": 8,
    "engine.openvino_decoder": 9,
    "engine.openvino_export": 9,
    "engine.openvino_backend": 10,
    "engine.backend": 11,
    "engine.pipe": 0,
    "engine.idle": 0,
    "engine.handle": 3,
    "untrusted": 2,
    "exchange": 3,
    "connection": 1,
    "peer": 4,
    "served": 7,
    "engine.parcel": 4,
    "engine.patience": 5,
    "engine.remote": 8,
    "engine.thumbnail": 5,
    "thumbnails": 4,
    "activity": 0,
    "engine.suspects": 4,
    "engine.limits": 4,
    "engine.loads": 5,
    "engine.member": 5,
    "engine.custody": 6,
    "engine.rests": 0,
    "engine.succession": 7,
    "engine.process": 8,
    "engine.seats": 6,
    "engine.pool": 9,
    "engine.devices": 0,
    "engine.sharing": 0,
    "engines": 10,
    "engine.child": 12,
    "quality": 4,
    "queue": 4,
    "job_log": 5,
    "sidecar_writer": 8,
    "tally": 7,
    "worker": 9,
    "intake": 9,
    "status": 10,
    "gallery": 9,
    "upkeep": 9,
    "client": 5,
    "reporting": 5,
    "status_text": 1,
    "banner": 5,
    "http.contract": 5,
    "http.guards": 6,
    "http.places": 7,
    "http.keep_alive": 0,
    "http.question": 5,
    "http.asking": 6,
    "http.chat_request": 6,
    "http.chat_answer": 3,
    "http.fetch": 1,
    "http.openai": 8,
    "http.residence": 8,
    "http.metrics": 8,
    "http.health": 6,
    "http.actions": 7,
    "http.openapi_v1": 7,
    "http.openapi": 8,
    "http.page": 6,
    "http.page_schemas": 6,
    "http.pictures": 7,
    "http.vision": 8,
    "http.peer": 8,
    "http.openapi_peer": 4,
    "http.app": 9,
    "http.channel": 8,
    "http.server": 9,
    "daemon": 11,
    "backfill": 12,
    "estimate": 3,
    "estimate_report": 4,
    "estimate_trial": 12,
    "estimate_command": 14,
    "labels": 1,
    "drawing": 2,
    "drawing_files": 4,
    "caption_command": 12,
    "datasets.captions": 3,
    "datasets.samples": 6,
    "datasets.targets": 3,
    "datasets.formats": 7,
    "datasets.shards": 7,
    "datasets.export": 8,
    "datasets.tokens": 1,
    "datasets.lint": 7,
    "export_command": 9,
    "lint_command": 8,
    "quantize": 11,
    "quantize_command": 12,
    "bench": 6,
    "bench_report": 7,
    "bench_command": 12,
    "demo": 12,
    "service_paths": 0,
    "service_unit": 0,
    "service_plan": 5,
    "systemd": 1,
    "service": 11,
    "nssm": 5,
    "backfill_command": 13,
    "cluster.addresses": 7,
    "cluster.objects": 8,
    "cluster.due": 13,
    "cluster.forms": 8,
    "cluster.parts": 9,
    "cluster.answering": 14,
    "cluster.plan": 15,
    "cluster.passes": 16,
    "cluster.pool": 17,
    "cluster.report": 1,
    "cluster.command": 18,
    "init_command": 12,
    "command_line": 6,
    "cli_backfill": 19,
    "cli_pictures": 13,
    "cli_server": 13,
    "cli": 20,
    "__main__": 21,
}

# Outside libraries and the rooms that alone may import them.
OWNERS = {
    "watchdog": {"folders.events"},
    "xml": {"folders.xml_places"},
    "sqlite3": {"folders.ledger", "folders.ledger_file", "folders.ledger_rows"},
    "httpx": {"connection", "http.fetch"},
    "prometheus_client": {"http.metrics"},
    "waitress": {"http.channel", "http.server"},
    "falcon": {
        "http.actions",
        "http.app",
        "http.asking",
        "http.chat_request",
        "http.health",
        "http.metrics",
        "http.openai",
        "http.openapi",
        "http.peer",
        "http.question",
        "http.residence",
        "http.page",
        "http.pictures",
        "http.vision",
    },
    "yaml": {"config_file"},
    "cattrs": {"config_file"},
    "typer": {"cli", "cli_backfill", "cli_pictures", "cli_server", "command_line"},
    "rich": {"banner", "reporting", "status_text"},
    "PIL": {"engine.colours", "engine.jpeg", "engine.preprocess", "demo_chance", "demo_pictures", "drawing", "labels"},
    "pillow_heif": {"engine.preprocess"},
    "huggingface_hub": {"engine.checkpoint"},
    "safetensors": {"engine.weights"},
    "tokenizers": {"datasets.tokens", "engine.tokenizer"},
    "transformers": {"engine.transformers_backend", "engine.checkpoint"},
    "torch": {
        "engine.backend",
        "engine.bart",
        "engine.checkpoint",
        "engine.davit",
        "engine.model",
        "engine.openvino_export",
        "engine.products",
        "engine.runners",
        "engine.slot_tables",
        "engine.torch_backend",
        "engine.torch_decoder",
        "engine.transformers_backend",
        "engine.weights",
    },
    "nncf": {"engine.openvino_quiet"},
    "openvino": {"engine.openvino_export", "engine.openvino_quiet"},
    "ray": {"cluster.passes", "cluster.pool"},
    "pyarrow": {"cluster.addresses", "cluster.forms", "cluster.pool"},
    "fsspec": {"cluster.addresses"},
    "torchvision": set(),
    "timm": set(),
}

HEAVY = (
    "torch",
    "transformers",
    "torchvision",
    "numpy",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "PIL",
    "openvino",
    "pydantic",
    "prometheus_client",
    "pyarrow",
    "ray",
)


def rooms() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.name != "__init__.py":
            found[room] = path
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def rooms_imported(path: Path) -> set[str]:
    inside = {name.removeprefix("florence_daemon.") for name in imports(path) if name.startswith("florence_daemon.")}
    return inside & set(rooms())


def test_every_room_has_a_layer() -> None:
    assert set(rooms()) == set(LAYERS)


@pytest.mark.parametrize("room", sorted(rooms()))
def test_imports_go_downward(room: str) -> None:
    upward = {other for other in rooms_imported(rooms()[room]) if LAYERS[other] >= LAYERS[room]}
    assert not upward, f"{room} (layer {LAYERS[room]}) imports {upward}"


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_outside_library_is_used_by_its_owners_only(library: str) -> None:
    users = {room for room, path in rooms().items() if any(name.split(".")[0] == library for name in imports(path))}
    assert users <= OWNERS[library]


@pytest.mark.parametrize("room", sorted(rooms()))
def test_first_line_says_what_the_room_is_for(room: str) -> None:
    docstring = ast.get_docstring(ast.parse(rooms()[room].read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].endswith(".")


@pytest.mark.parametrize("module", ["florence_daemon.daemon", "florence_daemon.cli", "florence_daemon.backfill"])
def test_daemon_process_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == []


def test_command_line_that_is_read_imports_nothing_heavy() -> None:
    code = f"""
import sys
from florence_daemon.cli import app
app(["check-config", "--help"], standalone_mode=False)
app(["check-config", {str(ROOT / "config" / "florence-daemon.yaml")!r}], standalone_mode=False)
print("heavy:", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.splitlines()[-1].split() == ["heavy:"]


def test_nothing_asks_for_remote_code_or_an_unsafe_pickle() -> None:
    for room, path in rooms().items():
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, room
        assert text.count("torch.load(") == text.count("weights_only=True"), room
