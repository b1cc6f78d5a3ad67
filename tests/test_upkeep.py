"""Retry, forget, rescan and readiness, with the real daemon and the real commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from florence_daemon.http.openapi import document
from tests.conftest import RunningDaemon, run_command, wait_for
from tests.pictures import CAPTION, jpeg

TYPES: dict[str, Any] = {
    "string": str,
    "number": int | float,
    "integer": int,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}
StartDaemon = Callable[..., RunningDaemon]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def watching(*folders: Path) -> str:
    outputs = [{"prompt": "CAPTION", "ext": "txt"}]
    settings = [{"path": str(folder), "settle_s": 0.2, "outputs": outputs} for folder in folders]
    return json.dumps({"model": {"name": "demo"}, "folders": settings})


def check_described(status: dict[str, Any]) -> None:
    """Hold a real status to `/openapi.json`: every member is described, and is what it is described as."""
    described = document("demo")["components"]["schemas"]["Status"]
    schemas = [described, described["properties"]["model"], described["properties"]["queue"]]
    shown = [status, status["model"], status["queue"]]
    for name in ("folders", "failures"):
        schemas += [described["properties"][name]["items"]] * len(status[name])
        shown += status[name]
    assert len(shown) == 5
    for schema, members in zip(schemas, shown, strict=True):
        assert set(members) == set(schema["properties"]) == set(schema["required"])
        for member, value in members.items():
            kinds = schema["properties"][member].get("type", "string")
            assert any(isinstance(value, TYPES[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)), (
                member
            )


def test_failed_image_is_tried_again_and_forgotten_when_told(start_daemon: StartDaemon, folder: Path) -> None:
    image = folder / b"broken\xff.jpg".decode(errors="surrogateescape")
    image.write_bytes(b"this is no picture")
    daemon = start_daemon(config=watching(folder))
    (failure,) = wait_for(lambda: daemon.get("/status")["failures"], 180)
    assert failure["attempts"] == 1
    check_described(daemon.get("/status"))
    where = ("--server", daemon.url)
    # The name as /status shows it, escaped, since the name itself cannot be shown.
    told = run_command("retry", failure["path"], *where, home=folder.parent)
    assert told.stdout == "1 images are tried again\n"
    wait_for(lambda: daemon.text().count("not captioned") == 2, 180)
    (failure,) = wait_for(lambda: daemon.get("/status")["failures"], 180)
    told = run_command("forget", str(folder), "--json", *where, home=folder.parent)
    assert json.loads(told.stdout) == {"forgotten": 1}
    unknown = run_command("forget", str(folder / "nothing.jpg"), *where, home=folder.parent)
    assert unknown.returncode == 1
    assert "nothing is noted of it" in unknown.stderr


def test_rescan_looks_at_the_folder_that_is_named(start_daemon: StartDaemon, folder: Path) -> None:
    (folder / "a.jpg").write_bytes(jpeg())
    daemon = start_daemon(config=watching(folder))
    wait_for((folder / "a.txt").exists, 180)
    (folder / "a.txt").unlink()  # which is no event that asks for a caption
    told = run_command("rescan", str(folder / "a.jpg"), "--server", daemon.url, home=folder.parent)
    assert told.stdout == "1 folders are scanned\n"
    wait_for((folder / "a.txt").exists, 180)
    assert (folder / "a.txt").read_text() == CAPTION + "\n"
    elsewhere = run_command("rescan", "/nowhere", "--server", daemon.url, home=folder.parent)
    assert elsewhere.returncode == 1
    assert "no watched folder holds it" in elsewhere.stderr


def test_missing_folder_degrades_and_the_load_balancer_goes_on(start_daemon: StartDaemon, folder: Path) -> None:
    daemon = start_daemon(config=watching(folder, folder.parent / "missing"))
    ready = httpx.get(f"{daemon.url}/health/ready", timeout=60)
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded"
    assert "missing" in " ".join(ready.json()["reasons"])


def test_model_that_cannot_be_loaded_is_not_ready(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon("--model", str(tmp_path / "no-model"))
    asked = httpx.post(
        f"{daemon.url}/process_image?prompt=CAPTION", content=jpeg(), headers={"Content-Type": "image/jpeg"}, timeout=60
    )
    assert asked.status_code == 503
    assert asked.headers["retry-after"] == "30"
    ready = httpx.get(f"{daemon.url}/health/ready", timeout=60)
    assert ready.status_code == 503
    assert ready.json()["status"] == "failed"
    assert "no-model" in ready.json()["reasons"][0]
    assert 0 < daemon.get("/status")["model"]["refuses_for_s"] <= 30
