"""The ledger: it outlives processes, takes up what dead ones left, and is never worth more than the files."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.ledger_file import NAME, RETRY_S
from florence_daemon.folders.records import LONGEST_RETRY_S, Failure, Making, Written, retry_after_s
from florence_daemon.folders.settle import Stamp

STAMP = Stamp(-1, 10, 20, 30)  # an inode number that uses all 64 bits
OTHER = Stamp(1, 10, 21, 30)
MAKING = Making("demo", "<CAPTION>", "settings")


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def written(digest: bytes, suffix: str = ".txt") -> Written:
    return Written(suffix, digest, 10, 20, b"content", MAKING)


def die_with_claims(directory: Path, *names: str, begun: str = "") -> None:
    """A process claims images, perhaps begins with one, and is killed."""
    code = f"""
import os, signal
from pathlib import Path
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.settle import Stamp
ledger = Ledger(Path({str(directory)!r}))
ledger.claim([(name, Stamp(1, 10, 20, 30)) for name in {names!r}])
if {begun!r}:
    ledger.begun({begun!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


def test_failures_outlive_the_process_with_reason_attempts_and_next_try(tmp_path: Path, clock: Clock) -> None:
    ledger = Ledger(tmp_path, clock)
    assert ledger.failed("/a/1.jpg", "is truncated", STAMP, error="TruncatedPicture", heals=True) == retry_after_s(1)
    assert ledger.failed("/a/1.jpg", "is truncated", STAMP, error="TruncatedPicture", heals=True) == retry_after_s(2)
    assert ledger.failed("/a/0.jpg", "is no picture", STAMP) is None
    ledger.close()
    again = Ledger(tmp_path, clock)
    assert again.failures() == [
        Failure("/a/0.jpg", "is no picture", 1, STAMP, "", None),
        Failure("/a/1.jpg", "is truncated", 2, STAMP, "TruncatedPicture", clock.now_s + retry_after_s(2)),
    ]
    again.close()


def test_attempts_begin_again_when_the_file_has_changed() -> None:
    ledger = Ledger()
    ledger.failed("/a/1.jpg", "is truncated", STAMP)
    ledger.failed("/a/1.jpg", "is truncated", OTHER)
    assert [failure.attempts for failure in ledger.failures()] == [1]
    ledger.settled("/a/1.jpg")
    assert ledger.failures() == []
    ledger.close()


def test_wait_before_the_next_try_doubles_and_has_an_end() -> None:
    assert [retry_after_s(attempts) for attempts in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert retry_after_s(10_000) == LONGEST_RETRY_S


@pytest.mark.parametrize(("jump_s", "is_due"), [(0, False), (99, False), (100, True), (-86400 * 400, True)])
def test_failure_is_due_after_its_wait_or_when_the_clock_was_set_back(jump_s: float, is_due: bool) -> None:
    failure = Failure("/a/1.jpg", "is truncated", 1, STAMP, "", next_try_s=1_000_100.0)
    assert failure.is_due(1_000_000.0 + jump_s) is is_due


def test_what_was_written_is_known_by_image_and_by_directory(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.claim([("/a/1.jpg", STAMP), ("/b/1.jpg", STAMP)])
    ledger.writing("/a/1.jpg", [written(b"text"), written(b"tags", ".tag")])
    ledger.written("/a/1.jpg", [written(b"text"), written(b"tags", ".tag")])
    entry = ledger.entry("/a/1.jpg")
    assert entry is not None
    assert set(entry.written) == {written(b"text"), written(b"tags", ".tag")}
    assert ledger.known("/a") == {"1.jpg": entry}
    assert ledger.entry("/a/2.jpg") is None
    assert list(ledger.troubled("/b")) == ["1.jpg"], "claimed, and not ended"
    assert ledger.troubled("/a") == {}
    ledger.close()


def test_sidecar_of_an_image_that_nobody_claimed_is_known_too() -> None:
    """As a backfill writes it that asks a server elsewhere."""
    ledger = Ledger()
    ledger.writing("/p/a.jpg", [written(b"text")])
    ledger.written("/p/a.jpg", [written(b"text")])
    entry = ledger.entry("/p/a.jpg")
    assert entry is not None
    assert entry.written == (written(b"text"),)
    ledger.close()


def test_both_texts_count_as_ours_while_one_replaces_the_other() -> None:
    ledger = Ledger()
    for digest in (b"old", b"new"):
        ledger.claim([("/a/1.jpg", STAMP)])
        ledger.writing("/a/1.jpg", [written(digest)])
        if digest == b"old":
            ledger.written("/a/1.jpg", [written(digest)])
    entry = ledger.entry("/a/1.jpg")
    assert entry is not None
    assert {each.digest for each in entry.written} == {b"old", b"new"}
    ledger.written("/a/1.jpg", [written(b"new")])
    entry = ledger.entry("/a/1.jpg")
    assert entry is not None
    assert entry.written == (written(b"new"),)
    ledger.close()


def test_images_that_are_gone_are_forgotten_unless_all_are(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for name in ("1.jpg", "2.jpg"):
        ledger.claim([(f"/a/{name}", STAMP)])
        ledger.writing(f"/a/{name}", [written(b"text")])
        ledger.written(f"/a/{name}", [written(b"text")])
    ledger.forget_missing("/a", frozenset(["lost+found"]))
    assert sorted(ledger.known("/a")) == ["1.jpg", "2.jpg"], "an empty mount point"
    ledger.forget_missing("/a", frozenset(["2.jpg"]))
    assert sorted(ledger.known("/a")) == ["2.jpg"]
    ledger.close()


def test_names_are_bytes(tmp_path: Path) -> None:
    path = os.fsdecode(b"/a\xff/\xfe\n.jpg")
    ledger = Ledger(tmp_path)
    ledger.failed(path, "is truncated", STAMP)
    assert [failure.path for failure in ledger.failures()] == [path]
    assert list(ledger.troubled(os.fsdecode(b"/a\xff"))) == [os.fsdecode(b"\xfe\n.jpg")]
    ledger.close()


def test_claims_of_a_dead_process_are_taken_up_and_count_only_what_it_had_begun(tmp_path: Path) -> None:
    die_with_claims(tmp_path, "/a/1.jpg", "/a/2.jpg", begun="/a/2.jpg")
    ledger = Ledger(tmp_path)
    assert {name: entry.left for name, entry in ledger.troubled("/a").items()} == {"2.jpg": 1}
    assert ledger.failures() == []
    ledger.close()


def test_image_at_which_three_processes_died_is_set_aside_longer_and_longer(tmp_path: Path, clock: Clock) -> None:
    waits_s = []
    for deaths in range(1, 6):
        die_with_claims(tmp_path, "/a/1.jpg", begun="/a/1.jpg")
        ledger = Ledger(tmp_path, clock)
        failures = ledger.failures()
        ledger.close()
        if deaths < 3:
            assert failures == []
        else:
            assert failures[0].attempts == deaths
            assert f"the daemon ended {deaths} times while it worked on this picture" in failures[0].reason
            assert failures[0].next_try_s is not None
            waits_s.append(failures[0].next_try_s - clock.now_s)
    assert waits_s == [10, 20, 40]


def test_image_that_was_set_aside_has_a_clean_slate_once_it_has_changed(tmp_path: Path) -> None:
    for _ in range(3):
        die_with_claims(tmp_path, "/a/1.jpg", begun="/a/1.jpg")
    ledger = Ledger(tmp_path)
    ledger.claim([("/a/1.jpg", OTHER)])
    entry = ledger.entry("/a/1.jpg")
    assert entry is not None
    assert (entry.left, entry.failure) == (0, None)
    ledger.close()


def test_claims_of_a_living_process_are_left_alone(tmp_path: Path) -> None:
    one = Ledger(tmp_path)
    one.claim([("/a/1.jpg", STAMP)])
    one.begun("/a/1.jpg")
    other = Ledger(tmp_path)
    entry = other.entry("/a/1.jpg")
    assert entry is not None
    assert entry.left == 0
    one.close()
    other.close()
    third = Ledger(tmp_path)
    assert {name: entry.left for name, entry in third.troubled("/a").items()} == {"1.jpg": 1}
    third.close()


def test_two_processes_write_side_by_side(tmp_path: Path) -> None:
    code = """
import sys
import threading
from pathlib import Path
from florence_daemon.folders.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for number in range(200):
    ledger.failed(f"/{sys.argv[2]}/{number}.jpg", "is truncated", None)
ledger.close()
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [process.wait(300) for process in running] == [0, 0]
    ledger = Ledger(tmp_path)
    assert len(ledger.failures()) == 400
    ledger.close()


def test_new_ledger_that_another_process_is_opening_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself does not wait where a file that another is about to write is to be given its log."""
    other = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE its_own (number)")
    other.execute("BEGIN IMMEDIATE")
    ends = threading.Timer(0.5, other.execute, ["COMMIT"])
    ends.start()
    ledger = Ledger(tmp_path)
    assert ledger.health is None
    ledger.close()
    ends.join()
    other.close()


@pytest.mark.parametrize("damage", ["garbage", "cut off", "a page overwritten", "newer"])
def test_damaged_ledger_is_set_aside_with_a_message(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path)
    for number in range(500):
        ledger.written(f"/a/{number}.jpg", ())
        ledger.claim([(f"/a/{number}.jpg", STAMP)])
    ledger.close()
    file = tmp_path / NAME
    content = file.read_bytes()
    if damage == "newer":
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    else:
        middle = len(content) // 2
        file.write_bytes(
            {
                "garbage": b"this is no database" * 1000,
                "cut off": content[:middle],
                "a page overwritten": content[:4096] + b"x" * 8192 + content[12288:],
            }[damage]
        )
    again = Ledger(tmp_path)
    again.failed("/a/1.jpg", "is truncated", STAMP)
    assert [failure.path for failure in again.failures()] == ["/a/1.jpg"]
    assert again.health is None
    again.close()
    assert "is set aside as" in caplog.text
    assert [path.name for path in tmp_path.iterdir() if ".damaged-" in path.name]


def test_ledger_that_is_damaged_while_it_is_used_is_set_aside_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(2000):
        ledger.claim([(f"/a/{number}.jpg", STAMP)])
    ledger.close()
    ledger = Ledger(tmp_path)
    with open(tmp_path / NAME, "r+b") as file:
        file.seek(4096)
        file.write(b"x" * (os.path.getsize(tmp_path / NAME) - 4096))
    ledger.failed("/a/1.jpg", "is truncated", STAMP)
    assert [failure.path for failure in ledger.failures()] == ["/a/1.jpg"]
    ledger.close()


def test_ledger_that_is_taken_away_is_begun_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.failed("/a/1.jpg", "is truncated", STAMP)
    for path in list(tmp_path.iterdir()):
        path.unlink()
    ledger.failed("/a/2.jpg", "is truncated", STAMP)
    assert [failure.path for failure in ledger.failures()] == ["/a/2.jpg"]
    assert (tmp_path / NAME).exists()
    ledger.close()


def test_state_directory_that_cannot_be_had_is_stood_in_for_by_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    ledger = Ledger(tmp_path / "state")
    assert ledger.health is not None
    assert str(tmp_path / "state" / NAME) in ledger.health
    ledger.failed("/a/1.jpg", "is truncated", STAMP)
    (tmp_path / "state").unlink()
    assert len(ledger.failures()) == 1
    assert ledger.health is not None, "it is not tried at every step"
    monkeypatch.setattr("florence_daemon.folders.ledger_file.time.monotonic", lambda: 1e9 + RETRY_S)
    assert len(ledger.failures()) == 1, "what memory held is in the file now"
    assert ledger.health is None
    ledger.close()
    again = Ledger(tmp_path / "state")
    assert len(again.failures()) == 1
    again.close()


FULL_DISK = """
import sys
import threading
from pathlib import Path
from florence_daemon.folders.ledger import Ledger
state = Path(sys.argv[1])
ledger = Ledger(state)
ledger.failed("/a/before.jpg", "is truncated", None)
filler = state / "filler"
try:
    with filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
for number in range(300):
    ledger.failed(f"/a/{number}.jpg", "is truncated", None)
print("full:", ledger.health)
filler.unlink()
ledger._file._retry_s = 0.0
failures = ledger.failures()
print("free:", ledger.health, len(failures), "/a/before.jpg" in [failure.path for failure in failures])
ledger.close()
"""


def test_full_disk_turns_the_ledger_to_memory_and_back(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody have a mount of their own (unshare -Urm)")
    script = 'mount -t tmpfs -o size=600k none "$1" && exec "$2" -c "$3" "$1"'
    ended = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL_DISK],
        capture_output=True,
        text=True,
        check=False,
    )
    full, free = ended.stdout.splitlines()
    assert "database or disk is full" in full or "disk I/O error" in full
    assert free == "free: None 301 True", "some were noted on disk, the others in memory; all are there again"
