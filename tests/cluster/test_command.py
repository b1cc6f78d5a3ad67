"""What `backfill --ray` refuses and lists, before any cluster is joined."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from florence_daemon.cluster.addresses import Folder, Store
from florence_daemon.cluster.command import Wanted, run_on_cluster
from florence_daemon.cluster.plan import Plan, problem_here
from florence_daemon.config import Config, ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import ClusterError, UsageError
from tests.cluster.stores import Bucket
from tests.conftest import run_command

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")
CONFIG = Config(model=ModelConfig(name="demo"))


def caption(ray: str, *addresses: str | Path, dry_run: bool = False, **wanted: str) -> int:
    what = replace(Wanted(tuple(map(str, addresses)), (CAPTION,)), **wanted)  # type: ignore[arg-type]
    return run_on_cluster(what, CONFIG, ray, dry_run=dry_run, as_json=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("s3://bucket/photos",), "add --ray local"),
        ((".", "--to", "results"), "--to goes with --ray"),
        ((".", "--engine-cpus", "2"), "--engine-cpus goes with --ray"),
        ((".", "--ray", "local", "--format", "jsonl"), "--format goes with --to"),
        ((".", "--ray", "local", "--server", "http://127.0.0.1:1"), "do not go together"),
        ((".", "--ray", "local", "--to", "x", "--overwrite", "always"), "give a new place"),
        ((".", "--ray", "local", "--overwrite", "stale"), "leave out --ray, or give --overwrite never or always"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = run_command("backfill", *arguments, home=tmp_path)
    assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr


def test_cluster_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"--ray {address}: no cluster answers there"):
            caption(address, tmp_path)
    with pytest.raises(UsageError, match="give local, auto or host:port"):
        caption("ray://127.0.0.1:10001", tmp_path)


@pytest.mark.parametrize("library", ["ray", "pyarrow"])
def test_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    (tmp_path / "a.jpg").touch()
    monkeypatch.setitem(sys.modules, library, None)
    where = tmp_path if library == "ray" else "s3://pictures"
    with pytest.raises(UsageError, match=rf'needs {library}, .*pip install "florence-daemon\[ray\]"'):
        caption("local", where)


def test_dry_run_lists_without_a_cluster(bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").touch()
    for key in ("b.jpg", "b.png", "c.jpg", "c.txt"):
        bucket.put(key, b"x")
    assert caption("127.0.0.1:1", tmp_path, "s3://pictures", dry_run=True) == 0
    listed = capsys.readouterr()
    assert list(map(json.loads, listed.out.splitlines())) == [
        {"image": str(tmp_path / "a.jpg"), "sidecars": [str(tmp_path / "a.txt")]},
        {"image": "s3://pictures/b.jpg", "sidecars": ["s3://pictures/b.txt"]},
    ]
    assert "s3://pictures/b.png: its sidecar b.txt belongs to b.jpg" in listed.err
    assert "2 images would be captioned" in listed.err


def test_nothing_to_do_needs_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption("127.0.0.1:1", tmp_path) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert caption("127.0.0.1:1", tmp_path, to=str(tmp_path / "results")) == 0


def test_machine_that_cannot_take_part_says_why(tmp_path: Path) -> None:
    plan = Plan(CONFIG, (Folder(tmp_path),), None, 4)
    assert problem_here(plan) is None
    assert "install the same on all" in str(problem_here(replace(plan, version="0.0.1")))
    assert "does not see /nowhere/photos" in str(problem_here(replace(plan, trees=(Folder(Path("/nowhere/photos")),))))


def test_directory_that_cannot_be_listed_is_a_failure(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.put("a/1.jpg", b"x")
    bucket.put("a/1.txt", b"a caption")

    def fail(self: Store, directory: str) -> None:
        raise OSError("AWS Error SLOW_DOWN:\nreduce your request rate")

    monkeypatch.setattr(Store, "list", fail)
    report = tmp_path / "report.jsonl"
    assert caption("127.0.0.1:1", "s3://pictures/a", report=report) == 1  # type: ignore[arg-type]
    reason = "cannot be looked into: AWS Error SLOW_DOWN: reduce your request rate"
    assert json.loads(report.read_text()) == {"image": "s3://pictures/a", "error": reason}
    said = capsys.readouterr().err
    assert f"s3://pictures/a: {reason}" in said
    assert "nothing to do" not in said


def test_report_of_an_earlier_run_does_not_outlive_its_failures(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    report.write_text('{"image": "gone.jpg", "error": "was broken"}\n')
    assert caption("127.0.0.1:1", tmp_path, report=report) == 0  # type: ignore[arg-type]
    assert report.read_text() == ""


def test_interruption_while_pictures_are_listed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("florence_daemon.cluster.due.Due.errands", interrupt)
    assert caption("127.0.0.1:1", tmp_path) == 130
    assert "the same command takes up there" in capsys.readouterr().err
