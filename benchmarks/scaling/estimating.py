"""What `backfill --estimate` says, and how long the backfill then takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.faults.process import environment
from benchmarks.scaling.backfills import BackfillFailed, backfill
from benchmarks.scaling.engines import draw_pictures


def estimating(directory: Path, *, quick: bool) -> dict[str, Any]:
    """The demo model on drawn pictures."""
    tree = draw_pictures(directory / "tree", 12 if quick else 1500)
    home = directory / "home"
    variables = {} if quick else {"FLORENCE_DAEMON_MODEL__ENGINE": "auto"}
    asked = ["--model", "demo", "--prompt", "CAPTION", "--ext", "txt", "--estimate", "--json"]
    said = ""
    for _ in range(1 if quick else 2):  # the first one may compile the model, which the backfill then need not
        process = subprocess.run(
            [sys.executable, "-m", "florence_daemon", "backfill", str(tree), *asked],
            capture_output=True,
            text=True,
            env=environment(home, variables),
            check=False,
        )
        if process.returncode != 0:
            raise BackfillFailed(f"--estimate: exit code {process.returncode}: {process.stderr[-1000:]}")
        said = process.stdout
    took = backfill(home, [tree], more=variables)
    found = json.loads(said)
    return {"pictures": took.captioned, **found["here"], "took_s": round(took.whole_s, 1)}
