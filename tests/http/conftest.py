"""An API for every test that needs no particular settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import FakeEngine
from tests.http.api import Api, serving


@pytest.fixture
def api(engine: FakeEngine) -> Iterator[Api]:
    with serving(engine, max_body_mb=1, max_queued=3, request_timeout_s=20) as running:
        yield running
