"""An estimate over addresses: counted by listing, a sample fetched and captioned here, nothing written anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.faults.fake_engine import FakeSettings
from tests.cluster.stores import Bucket
from tests.conftest import clean_environment, wait_for
from tests.pictures import jpeg


def estimate(*arguments: str, bucket: Bucket, home: Path) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", "florence_daemon", "backfill", *arguments, "--model", "demo", "--estimate", "--json"],
        capture_output=True,
        text=True,
        env=clean_environment(home) | bucket.environment,
        cwd=home,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_pictures_of_a_store_are_counted_fetched_and_left_as_they_are(bucket: Bucket, tmp_path: Path) -> None:
    for key in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        bucket.put(key, jpeg())
    bucket.put("a/bad.jpg", b"nothing like a picture")
    for ending in ("txt", "tag"):
        bucket.put(f"b/3.{ending}", b"a caption")
    (tmp_path / "here.jpg").write_bytes(jpeg())
    before = bucket.list()
    found = estimate(bucket.address, "here.jpg", bucket=bucket, home=tmp_path)
    assert (found["pictures"], found["due"], found["refused"]) == (5, 4, 0)
    sample = found["sample"]
    assert [each["path"] for each in sample["failures"]] == [f"{bucket.address}/a/bad.jpg"]
    assert sample["fetch_s"] > 0
    assert min(sample["picture"].values()) > 0
    assert found["here"]["likely_s"] > 0
    assert bucket.list() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".txt", ".tag"))]


def test_what_has_its_results_in_another_place_is_not_due(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("a/1.jpg", jpeg())
    bucket.put("a/1.txt", b"a caption that does not count")
    found = estimate(bucket.address, "--ray", "auto", "--to", "out", bucket=bucket, home=tmp_path)
    assert (found["pictures"], found["due"]) == (1, 1)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_waits_for_no_picture_that_was_fetched(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(4):
        bucket.put(f"{number}.jpg", jpeg())
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    gate.touch()
    fake = FakeSettings(gate=str(gate), log=str(begun))
    command = [sys.executable, "-m", "benchmarks.faults.fake_engine", "backfill", bucket.address, "--estimate"]
    variables = clean_environment(tmp_path) | bucket.environment | fake.as_environment()
    with subprocess.Popen([*command, "--model", "demo"], env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(begun.exists, 120, "the first picture")
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == "stopped; nothing was written"
