"""A report is proof of the form beside it, and of no other."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from florence_daemon.engine.agreement import Agreement
from florence_daemon.engine.proof import FILE_NAME, Difference, Form, Report, forget_report, is_proof, write_report

GOOD = Agreement("<CAPTION>", 50, 0.9, 0.97, 0.4)
REPORT = Report(
    "demo",
    usual=Form("float32", 768, 6.0, 2.0, 3.9),
    other=Form("int8", 768, 3.0, 1.0, 1.9),
    agreements=(GOOD, Agreement("<OD>", 50, 0.8, box_iou=0.95)),
    differences=(Difference("a.jpg", "<CAPTION>", "a cat", "a kitten"),),
)


@pytest.fixture
def form(tmp_path: Path) -> Path:
    directory = tmp_path / "demo-128-abc"
    directory.mkdir()
    return directory


def test_a_good_report_proves_the_form_it_lies_beside(form: Path) -> None:
    assert not is_proof(form, 768)
    write_report(REPORT, form)
    assert is_proof(form, 768)
    assert [path.name for path in form.iterdir()] == [FILE_NAME]


def test_a_bad_report_proves_nothing_but_is_kept(form: Path) -> None:
    bad = replace(REPORT, agreements=(GOOD, Agreement("<OD>", 50, 0.2, box_iou=0.5)))
    kept = json.loads(write_report(bad, form).read_text())
    assert not is_proof(form, 768)
    assert (kept["is_good"], kept["objections"]) == (False, ["<OD>: box IoU is 0.500, 0.85 is needed"])


def test_a_form_that_says_the_same_but_is_slower_is_not_proved(form: Path) -> None:
    kept = json.loads(write_report(replace(REPORT, other=replace(REPORT.other, picture_s=8.0)), form).read_text())
    assert not is_proof(form, 768)
    assert kept["objections"] == ["it is slower here: 8.00 s a picture, not 6.00 s"]
    write_report(replace(REPORT, other=replace(REPORT.other, picture_s=6.5)), form)
    assert is_proof(form, 768)


def test_a_report_about_another_picture_size_or_precision_proves_nothing(form: Path) -> None:
    write_report(REPORT, form)
    assert not is_proof(form, 576)
    write_report(replace(REPORT, other=replace(REPORT.other, precision="float32")), form)
    assert not is_proof(form, 768)


def test_a_report_that_was_copied_from_another_form_proves_nothing(form: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "demo-128-def"
    elsewhere.mkdir()
    (elsewhere / FILE_NAME).write_bytes(write_report(REPORT, form).read_bytes())
    assert not is_proof(elsewhere, 768)


def test_figures_are_judged_by_the_thresholds_of_today(form: Path) -> None:
    path = write_report(REPORT, form)
    kept = json.loads(path.read_text())
    kept["agreements"][0]["edit_similarity"] = 0.5
    path.write_text(json.dumps(kept))
    assert kept["is_good"]
    assert not is_proof(form, 768)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 1}',
        b'{"agreements": [{"prompt": 3}]}',
        b"[" * 100_000,
    ],
)
def test_an_unreadable_report_proves_nothing_and_says_so(
    form: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (form / FILE_NAME).write_bytes(content)
    assert not is_proof(form, 768)
    assert "repeat florence-daemon quantize" in caplog.text


@pytest.mark.parametrize("changed", ["format", "openvino", "processor"])
def test_what_was_measured_under_other_circumstances_proves_nothing(
    form: Path, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_report(REPORT, form)
    kept = json.loads(path.read_text())
    kept["circumstances"][changed] = "another"
    path.write_text(json.dumps(kept))
    assert not is_proof(form, 768)
    assert "was measured otherwise" in caplog.text


def test_a_forgotten_report_is_gone_also_twice(form: Path) -> None:
    write_report(REPORT, form)
    forget_report(form)
    forget_report(form)
    assert not is_proof(form, 768)


def test_reading_a_proof_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "openvino", "transformers")
    code = f"import sys, florence_daemon.engine.proof; print(*set({heavy!r}) & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
