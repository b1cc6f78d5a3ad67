"""What tests and long runs found, kept in docs/reliability.json, so that each part can be measured at its own time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import describe_machine

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "reliability.json"


@dataclass(frozen=True)
class Finding:
    """What was seen. outcome: held, failed, or skipped, then figure is the reason. machine: in words."""

    outcome: str
    figure: str
    date: str
    machine: str

    @classmethod
    def now(cls, outcome: str, figure: str) -> Finding:
        """Something that was seen just now on this machine."""
        processor, memory, system = describe_machine("cpu")[:3]
        words = f"{processor.split(':')[0]}, {memory}, {system}"
        return cls(outcome, figure, time.strftime("%Y-%m-%d"), words)


def load_findings() -> dict[str, Finding]:
    """Everything that was found so far, by the name of the part or test."""
    if not KEPT.exists():
        return {}
    return {name: Finding(**found) for name, found in json.loads(KEPT.read_text(encoding="utf-8")).items()}


def keep_findings(found: Mapping[str, Finding]) -> None:
    """Add these to what was found before; two soaks that share a machine may both do so."""
    together = load_findings() | dict(found)
    lines = [
        f"{json.dumps(name)}: {json.dumps(asdict(each), ensure_ascii=False)}" for name, each in sorted(together.items())
    ]
    text = "{\n" + ",\n".join(lines) + "\n}"
    handle, temporary = tempfile.mkstemp(dir=KEPT.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    os.chmod(temporary, 0o644)
    os.replace(temporary, KEPT)


def run_tests(names: Sequence[str]) -> dict[str, Finding]:
    """Run these tests and return what each found, by its name; a test says it as the property `figure`."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        own = [f"--basetemp={directory}/tests", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *own, *names]
        longer = os.environ | {"FLORENCE_TESTS_AWAY_S": "60"}  # row 10: how long the disk is away
        subprocess.run(command, cwd=ROOT, env=longer, check=False, stdout=sys.stderr)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return dict(_finding_of(case) for case in cases)


def _finding_of(case: ElementTree.Element) -> tuple[str, Finding]:
    name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
    skipped = case.find("skipped")
    if skipped is not None:
        return name, Finding.now("skipped", skipped.get("message", ""))
    if case.find("failure") is not None or case.find("error") is not None:
        return name, Finding.now("failed", "")
    figures = [each.get("value", "") for each in case.iter("property") if each.get("name") == "figure"]
    return name, Finding.now("held", "; ".join(figures))
