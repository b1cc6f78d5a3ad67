"""The description at /openapi.json is true: schemathesis makes requests of it, and finds the answers it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from florence_daemon.http.app import STATUSES
from florence_daemon.http.openapi import document
from tests.conftest import FakeEngine
from tests.http.api import serving


def test_server_does_what_the_description_says(engine: FakeEngine, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
    with serving(engine) as api:
        url = f"http://127.0.0.1:{api.port}/openapi.json"
        run = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            url,
            "--seed",
            "1",
            "--no-shrink",
            "--max-examples",
            "25",
        ]
        result = subprocess.run(run, capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path)
        assert result.returncode == 0, result.stdout[-6000:]
        assert len(engine.asked) > 10, "the requests were not such that the engine was asked"


def test_every_address_is_described_and_every_error_documented() -> None:
    described = document("some/model")
    assert set(described["paths"]) == {
        *("/process_image", "/model", "/prompts", "/status", "/health/live", "/health/ready", "/openapi.json"),
        *("/retry", "/forget", "/rescan", "/load", "/unload", "/ping", "/metrics", "/ask"),
        *("/v1/models", "/v1/models/{id}", "/v1/chat/completions"),
        *("/overview", "/tasks", "/pictures", "/pictures/{id}", "/pictures/{id}/thumbnail", "/pictures/{id}/caption"),
    }
    codes = {kind().status[:3] for _, kind, _ in STATUSES}
    assert codes <= set(described["components"]["responses"])
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert [path for path in described["paths"] if path not in page] == []
    assert [code for code in described["components"]["responses"] if f"| {code}" not in page] == []
