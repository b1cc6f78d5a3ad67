"""Every failure that the program was built against: what it does then, and which tests and long runs show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A failure. tests: files, or single tests of them. long: parts of benchmarks.soak. gap: what is not shown."""

    number: str
    failure: str
    remedy: str
    tests: tuple[str, ...]
    long: tuple[str, ...] = ()
    gap: str = ""


LIMITS = "tests/http/test_limits.py"

FOLDERS = (
    Row(
        "1",
        "The system drops events: its queue is full, and it says so to nobody",
        "Events are hints: every folder is scanned every 300 s ± 25 %, after bursts, and whenever events were lost",
        ("tests/faults/test_row_01_lost_events.py",),
        ("burst",),
    ),
    Row(
        "2",
        "The watcher is dead but looks alive; a folder is removed and made again, unmounted and mounted again",
        "Every 10 s the watchers and each folder's identity are checked; what is dead is built anew and scanned",
        ("tests/faults/test_row_02_dead_watcher.py",),
    ),
    Row(
        "3",
        "Files that are half written",
        "A file is read when nothing about it has changed for its settle time; cut-off pictures settle again; an "
        "answer about a file that has changed meanwhile is thrown away",
        ("tests/faults/test_row_03_half_written.py",),
    ),
    Row(
        "4",
        "Files that arrive without being closed: renamed, moved or linked in, in new folders",
        "Every kind of event counts; a new folder is scanned and watched",
        ("tests/faults/test_row_04_ways_of_arriving.py",),
    ),
    Row(
        "5",
        "Killed, or out of memory, at any moment",
        "What is begun is noted on disk before, what is done after the sidecar is on disk; the next start takes it up",
        ("tests/faults/test_row_05_kills.py",),
        ("kills", "calls"),
    ),
    Row(
        "6",
        "A picture that crashes, hangs or eats the memory of whatever decodes it",
        "Decoding is in the engine process, with limits of memory and time; after three deaths it is set aside",
        ("tests/faults/test_row_06_poison.py",),
    ),
    Row(
        "7",
        "Many events about one picture; the daemon's own sidecars",
        "One picture is in work once; content that is the same is the same; own files are no events",
        ("tests/faults/test_row_07_duplicates.py",),
        ("idle",),
    ),
    Row(
        "8",
        "Network shares, which send no events",
        "Folders on such file systems are polled",
        ("tests/faults/test_row_08_silent_shares.py",),
    ),
    Row(
        "9",
        "The system has no watches left",
        "The folder is polled instead, and health says `degraded` and why",
        ("tests/faults/test_row_09_inotify_limits.py",),
    ),
    Row(
        "10",
        "An unmount looks like a deletion",
        "What is absent is not deleted; nothing is written below an empty mount point",
        ("tests/faults/test_row_10_unmounts.py",),
    ),
    Row(
        "11",
        "The disk is full, read-only, or writing is forbidden",
        "The folder rests, says so, is tried again after 1 s, 2 s, 4 s … and goes on by itself; old sidecars stay",
        ("tests/faults/test_row_11_blocked_folders.py",),
        ("disk",),
    ),
    Row(
        "12",
        "`a.jpg` and `a.png` would share `a.txt`",
        "One has it, the other is listed; nothing is overwritten",
        ("tests/faults/test_row_12_shared_sidecar.py",),
    ),
    Row(
        "13",
        "Temporary names of browsers, editors and copy programs",
        "They are left alone until the file has its real name",
        ("tests/faults/test_row_13_temporary_names.py",),
    ),
    Row(
        "14",
        "Odd names: not UTF-8, 255 bytes long, newlines, combining characters",
        "Names are bytes; logs and status show them escaped; temporary files have short names of their own",
        ("tests/faults/test_row_14_names.py",),
        ("names",),
    ),
    Row(
        "15",
        "Symbolic links in a circle, or out of the folder",
        "Links are not followed",
        ("tests/faults/test_row_15_links.py",),
    ),
    Row(
        "16",
        "Old or future dates; the clock jumps",
        "Dates are compared for equality only; waits use a clock that cannot be set",
        ("tests/faults/test_row_16_clocks.py",),
    ),
    Row(
        "17",
        "Pictures deleted or renamed meanwhile",
        "Every step copes; no sidecar is written for a picture that is gone",
        ("tests/faults/test_row_17_gone_meanwhile.py",),
    ),
    Row(
        "18",
        "File systems that ignore case or have coarse dates",
        "What the folder lists decides whose sidecar a file is; a file that exists is not overwritten",
        ("tests/faults/test_row_18_blind_to_case.py",),
        gap="Shown on exFAT through FUSE; the kernel that it was measured on has no vfat.",
    ),
)

HTTP = (
    Row(
        "H1",
        "Bodies that are too large",
        "413 beyond `max_body_mb`, at the header or as soon as a chunked body exceeds it",
        (
            f"{LIMITS}::test_default_limit",
            f"{LIMITS}::test_too_large_body",
            f"{LIMITS}::test_client_that_asks_first",
            f"{LIMITS}::test_chunked_body",
            f"{LIMITS}::test_body_of_exactly",
            f"{LIMITS}::test_real_clients_read_the_413",
            f"{LIMITS}::test_body_in_crumbs",
            f"{LIMITS}::test_head_that_is_too_large",
            f"{LIMITS}::test_json_that_would_fill",
        ),
    ),
    Row(
        "H2",
        "More requests than can be answered",
        "503 with Retry-After beyond `max_queued`, before the picture is decoded; accepted ones are answered",
        (
            f"{LIMITS}::test_request_beyond_the_places",
            f"{LIMITS}::test_flood_is_answered",
            "tests/faults/test_http_hang_ups.py::test_flood",
        ),
        ("clients",),
    ),
    Row(
        "H3",
        "Clients that send slowly or not at all",
        "A deadline for the whole request; health and status always have threads of their own",
        (
            f"{LIMITS}::test_sender_that_stops",
            f"{LIMITS}::test_sender_that_drips",
            f"{LIMITS}::test_connection_that_is_idle",
            "tests/faults/test_http_slow_senders.py",
        ),
    ),
    Row(
        "H4",
        "Clients that hang up before their turn",
        "Their requests cost no inference",
        (
            f"{LIMITS}::test_client_that_hangs_up",
            f"{LIMITS}::test_places_of_clients",
            "tests/faults/test_http_hang_ups.py::test_clients",
        ),
    ),
    Row(
        "H5",
        "Web pages that send requests to this machine (DNS rebinding, foreign origins)",
        "Host and Origin are checked; no CORS; a token is needed once it listens beyond this machine",
        ("tests/http/test_guards.py",),
    ),
    Row(
        "H6",
        "Decompression bombs and formats that nobody asked for",
        "Formats are on a list; pixels, frames and time are limited",
        (
            "tests/faults/test_row_06_poison.py",
            "tests/engine/test_preprocess.py::test_a_huge_picture",
            "tests/engine/test_preprocess.py::test_further_frames",
            "tests/engine/test_preprocess.py::test_a_file_beyond_the_limit",
            "tests/engine/test_preprocess.py::test_formats_beyond_the_list",
            "tests/http/test_pictures.py",
        ),
    ),
    Row(
        "H7",
        "Malformed requests",
        "A 4xx with a clear text; never a 5xx, never a traceback",
        ("tests/http/test_fuzzed.py",),
        ("requests",),
    ),
    Row(
        "H8",
        "Many clients for a long time",
        "Memory and descriptors stay as they are",
        ("tests/faults/test_many_clients.py",),
        ("clients",),
    ),
)

STOPPING = (
    Row(
        "S1",
        "Stopped while it works",
        "Ready turns 503, nothing new is begun, what runs is finished and synced, exit 0 within 60 s",
        (
            "tests/faults/test_stopping.py::test_stop_in_a_backlog",
            "tests/faults/test_stopping.py::test_nothing_new_is_taken",
            "tests/test_daemon.py::test_stop_finishes",
        ),
    ),
    Row(
        "S2",
        "Stopped twice, in a hurry, or while something hangs",
        "It ends within seconds; the next start takes up what was begun",
        ("tests/faults/test_stopping.py::test_second_signal", "tests/faults/test_stopping.py::test_engine_that_stands"),
    ),
    Row(
        "S3",
        "The ledger is damaged, lost or cannot be written",
        "It is set aside with a message and made anew from the files; without one, work goes on and health says so",
        ("tests/test_restarts.py", "tests/folders/test_ledger.py"),
    ),
    Row(
        "S4",
        "As a systemd service: killed, hanging, wrongly configured",
        "Ready is told, the watchdog is fed only while every part shows life, a wrong configuration is not tried again",
        ("tests/services/test_systemd.py", "tests/test_liveness.py"),
    ),
    Row(
        "S5",
        "Somebody gets into the service through a picture or a request",
        "The units let it at its folders and nothing else: exposure at most 1.0 without a GPU, 1.5 with one",
        ("tests/services/test_service_unit.py",),
    ),
    Row(
        "S6",
        "As a Windows service: killed, stopped, wrongly configured",
        "NSSM starts it again, stops it in order within 90 s, and does not try a wrong configuration again",
        ("tests/windows",),
    ),
    Row(
        "S7",
        "A million files in ten thousand folders",
        "Scans hold a window in memory; a rescan that finds nothing new opens no file",
        ("tests/test_trees.py",),
        ("trees",),
    ),
)

SEVERAL = (
    Row(
        "M1",
        "One of several engines in a machine dies, hangs, or fails at every picture; its GPU is not there",
        "It is left out and tried again, the others do its work, health says `degraded` and which",
        ("tests/test_engines.py", "tests/engine/test_pool_processes.py", "tests/engine/test_pool.py"),
        gap="Engines on several GPUs: none was to be had; shown with several engines on the processor.",
    ),
    Row(
        "M2",
        "A server that a daemon or a backfill asks is down, hangs, is full, has another model, or refuses the token",
        "It is left out and tried again, the others do its work; while none answers, pictures wait and health says why",
        (
            "tests/test_remote_engine.py",
            "tests/engine/test_remote.py",
            "tests/test_exchange.py",
            "tests/test_served.py",
        ),
    ),
    Row(
        "M3",
        "A server behind HAProxy is killed, stops, hangs or is full",
        "HAProxy asks another one; clients that find all full or none there are told when to come back",
        ("tests/test_haproxy.py",),
        gap="TLS in HAProxy was not tried.",
    ),
    Row(
        "M4",
        "An engine, a worker, a machine or the command itself is killed while a Ray cluster captions",
        "What was with it is given to others; what a killed command left is taken up by the same one",
        ("tests/cluster/test_nodes.py", "tests/cluster/test_run.py"),
        ("cluster",),
        gap="Both Ray nodes were on one machine, in network namespaces; real machines were not to be had.",
    ),
)

TABLES = {
    "Folders": FOLDERS,
    "HTTP": HTTP,
    "Stopping, starting, size": STOPPING,
    "Several engines and machines": SEVERAL,
}
ROWS = (*FOLDERS, *HTTP, *STOPPING, *SEVERAL)
