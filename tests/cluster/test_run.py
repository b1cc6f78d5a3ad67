"""The command on a real cluster: the same captions as on one machine, from folders and stores, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.pictures import count_sidecars, write_drawings
from benchmarks.faults.process import wait_for
from benchmarks.faults.ray_nodes import Node, descendants, kill, one_node
from tests.cluster import stores

ASKS = ("--model", "demo", "--prompt", "CAPTION", "--ext", "txt", "--prompt", "OD", "--ext", "json")


@pytest.fixture(scope="module")
def bucket() -> Iterator[stores.Bucket]:
    with stores.serve() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, bucket: stores.Bucket) -> Iterator[Node]:
    """A cluster of this machine, whose workers know the store."""
    with one_node(tmp_path_factory.mktemp("ray"), cpus=2, variables=bucket.environment) as node:
        yield node


def write_pictures(folder: Path, count: int) -> None:
    """Some of them in a directory with settings of its own."""
    (folder / "sub").mkdir(parents=True)
    write_drawings(folder, count)
    for number, path in enumerate(sorted(folder.glob("*.jpg"))):
        if number % 3:
            path.rename(folder / "sub" / path.name)
    (folder / "sub" / ".florence.yaml").write_text("prefix: 'ohwx, '\n")


def texts_below(folder: Path) -> dict[str, bytes]:
    found = (path for ending in ("txt", "json") for path in folder.rglob(f"*.{ending}"))
    return {os.path.relpath(path, folder): path.read_bytes() for path in found}


def run(node: Node, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "florence_daemon", "backfill", *arguments],
        capture_output=True,
        text=True,
        env=node.environment,
        cwd=cwd,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, node: Node) -> Path:
    """Pictures with the captions that a backfill of one machine gives them."""
    folder = tmp_path_factory.mktemp("alone") / "pictures"
    write_pictures(folder, 10)
    ended = run(node, str(folder), *ASKS, cwd=folder.parent)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_captions_are_those_of_one_machine_and_bad_pictures_are_reported(
    node: Node, alone: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "pictures", 10)
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "pictures" / "bad.png").write_bytes(b"shares its sidecars")
    command = ("pictures", *ASKS, "--ray", node.address, "--batch", "4", "--report", "report.jsonl", "--json")
    ended = run(node, *command, cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert texts_below(tmp_path / "pictures") == texts_below(alone)
    shared, failed = map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines())
    assert "belongs to bad.jpg" in shared["error"]
    assert failed == {"image": str(tmp_path / "pictures" / "bad.jpg"), "error": failed["error"]}
    assert "is not a picture" in failed["error"]
    assert f"bad.jpg: {failed['error']}" in ended.stderr
    assert len(ended.stdout.splitlines()) == 12
    assert {tuple(json.loads(line)) for line in ended.stdout.splitlines()} == {("image", "results"), ("image", "error")}
    for name in ("bad.jpg", "bad.png"):
        (tmp_path / "pictures" / name).unlink()
    again = run(node, *command, cwd=tmp_path)
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True), again.stderr


def test_captions_in_a_store_are_those_of_one_machine(
    node: Node, bucket: stores.Bucket, alone: Path, tmp_path: Path
) -> None:
    for path in alone.rglob("*"):
        if path.suffix in (".jpg", ".yaml"):
            bucket.put(f"photos/{os.path.relpath(path, alone)}", path.read_bytes())
    mine = {"photos/00000.txt": b"mine\n"}
    bucket.put("photos/00000.txt", mine["photos/00000.txt"])
    ended = run(node, "s3://pictures/photos", *ASKS, "--ray", node.address, "--batch", "8", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    written = {key: bucket.get(key) for key in bucket.list() if key.endswith((".txt", ".json"))}
    assert written == {f"photos/{name}": content for name, content in texts_below(alone).items()} | mine


def test_results_in_one_place_are_those_of_one_machine(node: Node, alone: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    pictures = sorted((alone / "sub").glob("*.jpg"))
    command = (*map(str, pictures), "--model", "demo", "--prompt", "CAPTION", "--ext", "txt", "--ray", node.address)
    ended = run(node, *command, "--to", "results", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = {row["image"]: row["txt"] for row in parquet.read_table(tmp_path / "results").to_pylist()}
    # What a directory says of its sidecars is not for results elsewhere.
    expected = {str(path): path.with_suffix(".txt").read_text().strip().removeprefix("ohwx, ") for path in pictures}
    assert rows == expected
    again = run(node, *command, "--to", "results", cwd=tmp_path)
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True), again.stderr


def test_run_whose_driver_was_killed_is_taken_up_by_the_same_command(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_drawings(folder, 80)
    command = ("backfill", str(folder), *ASKS[:6], "--ray", node.address, "--engine-cpus", "1", "--batch", "8")
    driver = node.run(*command, log=tmp_path / "driver.log")
    wait_for(lambda: count_sidecars(folder) >= 3 or driver.poll() is not None, 300, "some captions")
    for pid in [driver.pid, *descendants(driver.pid)]:
        kill(pid)
    driver.wait()
    left = 80 - count_sidecars(folder)
    assert left > 0, (tmp_path / "driver.log").read_text()
    again = run(node, *command[1:], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert count_sidecars(folder) == 80
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_model_that_cannot_be_loaded_ends_the_run_with_its_reason(node: Node, tmp_path: Path) -> None:
    write_drawings(tmp_path, 1)
    ended = run(node, "00000.jpg", "--model", str(tmp_path / "model"), "--ray", node.address, cwd=tmp_path)
    assert ended.returncode == 1
    assert str(tmp_path / "model") in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("mode", "said"), [(None, "set RAY_AUTH_MODE=token here too"), ("token", "no authentication token was found")]
)
def test_cluster_that_asks_for_a_token_says_what_to_do(node: Node, tmp_path: Path, mode: str | None, said: str) -> None:
    write_drawings(tmp_path, 1)
    variables = {name: value for name, value in node.environment.items() if not name.startswith("RAY_AUTH")}
    ended = subprocess.run(
        [sys.executable, "-m", "florence_daemon", "backfill", str(tmp_path), "--ray", node.address],
        capture_output=True,
        text=True,
        env={**variables, "HOME": str(tmp_path), **({"RAY_AUTH_MODE": mode} if mode else {})},
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
