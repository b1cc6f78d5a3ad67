"""Row 2: the watcher is dead but looks alive. Three ways to kill it at once; each is found and seen to within 15 s."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import jpeg, write_jpegs
from benchmarks.faults.process import DaemonProcess, wait_for, watching
from tests.conftest import Figure
from tests.faults.spaces import after, inside, needs_namespace

# Each folder is looked at every 10 s; its rescan_s of 300 s would find the pictures too.
RECOVERY_S = 15.0
# Let an event whose name says so raise, once in our handler and once in watchdog's own thread.
SABOTAGE = """
from florence_daemon.folders import events
from watchdog.observers.api import EventEmitter

note, queue_event = events.Inbox._note, EventEmitter.queue_event

def raise_in_handler(self, event):
    if "handler-raises" in str(event.src_path):
        raise RuntimeError("injected into the handler")
    note(self, event)

def raise_in_emitter(self, event):
    if "emitter-raises.jpg" in str(event.src_path):
        raise RuntimeError("injected into the emitter")
    queue_event(self, event)

events.Inbox._note, EventEmitter.queue_event = raise_in_handler, raise_in_emitter
"""


@needs_namespace
def test_unmounted_recreated_and_raising_watchers_recover(tmp_path: Path, figure: Figure) -> None:
    mounted, remade, raising, sabotage = (tmp_path / name for name in ("mounted", "remade", "raising", "sabotage"))
    for folder in (mounted, remade, raising, sabotage):
        folder.mkdir()
    (sabotage / "sitecustomize.py").write_text(SABOTAGE)
    folders = [json.loads(watching(folder))["folders"][0] for folder in (mounted, remade, raising)]
    with DaemonProcess(
        tmp_path / "home",
        json.dumps({"model": {"name": "demo"}, "folders": folders}),
        fake=FakeSettings(),
        prefix=after(f"mount -t tmpfs none '{mounted}'"),
        more={"PYTHONPATH": os.pathsep.join([str(sabotage), str(Path(__file__).parents[2])])},
    ) as daemon:
        wait_for(lambda: all(each["health"] == "ok" for each in daemon.status()["folders"]), 60, "all folders watched")
        write_jpegs(raising, [1])
        wait_for((raising / "00001.txt").exists, 60, "the first caption")

        write_jpegs(raising, [2])
        os.rename(raising / "00002.jpg", raising / "handler-raises.jpg")
        write_jpegs(raising, [3])
        wait_for((raising / "00003.txt").exists, 60, "a caption after the handler raised")
        (raising / "emitter-raises.jpg").write_bytes(jpeg(4))
        shutil.rmtree(remade)
        remade.mkdir()
        inside(daemon.pid, f"umount '{mounted}'; mount -t tmpfs none '{mounted}'")
        began_s = time.monotonic()
        write_jpegs(remade, [5])
        write_jpegs(raising, [6])
        (tmp_path / "7.jpg").write_bytes(jpeg(7))
        inside(daemon.pid, f"cp '{tmp_path}/7.jpg' '{mounted}'")

        expected = [remade / "00005.txt", raising / "00006.txt", raising / "emitter-raises.txt"]
        wait_for(lambda: all(path.exists() for path in expected), RECOVERY_S, "captions of what was missed")
        names = f"ls '{mounted}'"
        wait_for(lambda: "7.txt" in inside(daemon.pid, names), RECOVERY_S, "a caption on the new mount", every_s=0.2)
        took_s = time.monotonic() - began_s
        assert took_s <= RECOVERY_S

        # It is the events that are back, not a scan alone.
        write_jpegs(remade, [8])
        write_jpegs(raising, [9])
        wait_for((remade / "00008.txt").exists, 60, "an event of the folder that was made anew")
        wait_for((raising / "00009.txt").exists, 60, "an event after the thread had died")
        assert "injected into the handler" in daemon.text()
        assert "injected into the emitter" in daemon.text()
        figure(f"raising handler, dead thread, recreated root and remount: all seen after {took_s:.1f} s, 0 missed")
