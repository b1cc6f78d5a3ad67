"""Where the reference results lie: beside the repository, and not in every clone of it."""

from __future__ import annotations

from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
TINY_A = REFERENCE / "tiny-a"
IMAGES = REFERENCE / "images"

needs_reference = pytest.mark.skipif(
    not TINY_A.is_dir(), reason="the reference results (../shared/reference beside the repository) are not here"
)
