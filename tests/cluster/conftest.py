"""A bucket for each test, and none of the person's own keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import stores


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[stores.Bucket]:
    with stores.serve() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        yield bucket
