"""Imports OpenVINO without the package by which it, and NNCF, report their use over the network; the one owner of both.

Without a decision by the person, that package sends; where it cannot be imported, both go on without it.
"""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any, cast

sys.modules["openvino_telemetry"] = cast(Any, None)

import openvino as ov  # noqa: E402 - only after that


def load_nncf() -> ModuleType:
    """Import NNCF, which quantizes. Raises: ImportError, it is not installed."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.WARNING)  # it names hundreds of nodes
    return nncf


__all__ = ["load_nncf", "ov"]
