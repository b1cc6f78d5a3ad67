"""One Windows for all tests of this directory that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.windows.wine import Windows, what_is_missing


@pytest.fixture(scope="session")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Windows]:
    missing = what_is_missing()
    if missing:
        pytest.skip(f"needs Wine: {missing}")
    machine = Windows(tmp_path_factory.mktemp("wine") / "prefix")
    yield machine
    machine.close()
