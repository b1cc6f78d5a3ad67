"""What a daemon is doing, as a person wants to read it: `status`, and `ps` like a list of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

# What a person sees at a glance: states of the model and of folders, and their colours on a terminal.
COLOURS = {
    "loaded": "green",
    "loading": "yellow",
    "restarting": "yellow",
    "unloaded": "dim",
    "failed": "bold red",
    "ok": "green",
    "degraded": "yellow",
}
LABEL_WIDTH = 10
HEAD = ("NAME", "STATE", "DEVICE", "SIZE", "UNTIL")


def print_lines(lines: Sequence[Text], *, to_stderr: bool = False) -> None:
    """Print: coloured on a terminal alone, and not where NO_COLOR is set; never wrapped or cut."""
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line)


def status_lines(status: dict[str, Any]) -> list[Text]:
    """`GET /status` as a person would want to read it."""
    model, folders, failures = status["model"], status["folders"], status["failures"]
    parts = {
        "model": [Text.assemble((model["name"], "bold"), "  ", _say_model(model))],
        "engines": _say_engines(model.get("engines") or []),
        "queue": [_say_queue(status["queue"])],
        "done": [_say_done(status["queue"], status["uptime_s"])],
        "config": _say_configuration(status.get("configuration") or {}),
        "folders": _columns([_folder_row(folder) for folder in folders]),
        "failures": [_say_failure(failure) for failure in failures],
    }
    return [line for label, lines in parts.items() for line in labelled(label, lines)]


def ps_lines(status: dict[str, Any]) -> list[Text]:
    """The model as a table of one line under its head, as `ollama ps` has it."""
    model = status["model"]
    row = (
        Text(model["name"], "bold"),
        Text(*_state(model["state"])),
        Text(model["device"] or "-"),
        Text(" + ".join(_sizes(model)) or "-"),
        _until(model),
    )
    return _columns([tuple(Text(title, "dim") for title in HEAD), row])


def say_time(seconds: float) -> str:
    """`4 s`, `4 min 50 s`, `3 h 12 min`, `2 d 4 h`: two units tell enough."""
    left = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next((at for at, (_, size) in enumerate(units) if left >= size), len(units) - 1)
    words: list[str] = []
    for name, size in units[first : first + 2]:
        count, left = divmod(left, size)
        if count or not words:
            words.append(f"{count} {name}")
    return " ".join(words)


def say_size(megabytes: float) -> str:
    """`382 MB`, `1.9 GB`: of 1024, as systems count memory."""
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def labelled(label: str, lines: Sequence[Text]) -> list[Text]:
    """The label stands before the first line alone."""
    labels = [label] + [""] * (len(lines) - 1)
    return [Text.assemble((each.ljust(LABEL_WIDTH), "dim"), line) for each, line in zip(labels, lines, strict=False)]


def _columns(rows: Sequence[Sequence[Text]]) -> list[Text]:
    """Rows whose cells stand below each other; a character of Chinese takes two places."""
    widths = [max(cell_len(cell.plain) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [cell + Text(" " * (width - cell_len(cell.plain))) for cell, width in zip(row, widths, strict=True)]
        line = Text("  ").join(padded)
        line.rstrip()
        lines.append(line)
    return lines


def _state(name: str) -> tuple[str, str]:
    """A state and its colour, as `Text` takes them."""
    return name, COLOURS.get(name, "")


def _sizes(model: dict[str, Any]) -> list[str]:
    """The engine process' main memory, and its GPU's."""
    sizes = [say_size(model["resident_mb"])] if model["resident_mb"] else []
    return [*sizes, f"{say_size(model['gpu_mb'])} GPU"] if model.get("gpu_mb") else sizes


def _say_model(model: dict[str, Any]) -> Text:
    state = model["state"]
    if state == "loaded":
        parts = [f" on {model['device']}", *_sizes(model)]
        if model["unloads_in_s"] is not None:
            parts.append(f"unloads in {say_time(model['unloads_in_s'])}")
        elif _stays(model):
            parts.append("stays loaded")
        return Text.assemble(_state(state), ", ".join(parts))
    if state == "unloaded":
        return Text.assemble(_state(state), (", loads with the next picture", "dim"))
    again = f" (tried again with the first picture in {say_time(wait)})" if (wait := model.get("refuses_for_s")) else ""
    return Text.assemble(_state(state), f": {model['error']}{again}" if model["error"] else again)


def _say_engines(engines: Sequence[dict[str, Any]]) -> list[Text]:
    """A line for each, where there are several."""
    return _columns([_engine_row(engine) for engine in engines]) if len(engines) > 1 else []


def _engine_row(engine: dict[str, Any]) -> tuple[Text, Text, Text]:
    notes = [f"{engine[name]:,} {name}" for name in ("running", "answered") if engine[name]] + _sizes(engine)
    if engine["error"]:
        wait = engine["retries_in_s"]
        notes.append(engine["error"] + (f" (tried again in {say_time(wait)})" if wait else ""))
    return Text(engine["name"]), Text(*_state(engine["state"])), Text(", ".join(notes), "dim")


def _stays(model: dict[str, Any]) -> bool:
    keep_alive_s = model.get("keep_alive_s", model["idle_unload_s"])
    return keep_alive_s is not None and keep_alive_s < 0


def _until(model: dict[str, Any]) -> Text:
    if model["state"] != "loaded":
        return Text("-")
    if model["unloads_in_s"] is not None:
        return Text(f"{say_time(model['unloads_in_s'])} from now")
    return Text("for ever" if _stays(model) else "working")


def _say_queue(queue: dict[str, int]) -> Text:
    kinds = [f"{queue[kind]} {kind}" for kind in ("http", "folder", "backfill") if queue[kind]]
    waiting = sum(queue[kind] for kind in ("http", "folder", "backfill"))
    parts = [f"{waiting:,} waiting ({', '.join(kinds)})"] if waiting else []
    parts += [f"{queue[name]:,} {name}" for name in ("running", "settling") if queue[name]]
    return Text(", ".join(parts)) if parts else Text("nothing to do", "dim")


def _say_done(queue: dict[str, int], uptime_s: float) -> Text:
    failed = (f"{queue['failed']:,} failed", "bold red" if queue["failed"] else "")
    return Text.assemble(f"{queue['captioned']:,} captioned, ", failed, f", in {say_time(uptime_s)}")


def _say_configuration(configuration: dict[str, Any]) -> list[Text]:
    """Nothing while the file that was read last is in force."""
    lines = [Text(configuration["error"], "red")] if configuration.get("error") else []
    if configuration.get("needs_restart"):
        changed = ", ".join(configuration["needs_restart"])
        lines.append(Text(f"{changed}: changed, and in force after a restart", "yellow"))
    return lines


def _folder_row(folder: dict[str, Any]) -> tuple[Text, Text, Text]:
    notes = [folder["reason"] or folder["watching"]]
    notes += ["scanning now"] if folder.get("scanning") else []
    notes += [f"{folder['settling']:,} settling"] if folder.get("settling") else []
    return Text(folder["path"]), Text(*_state(folder["health"])), Text("; ".join(notes), "dim")


def _say_failure(failure: dict[str, Any]) -> Text:
    """`/srv/inbox/a.jpg: is truncated (3 tries, the next in 4 s)`"""
    parts = [f"{failure['attempts']} tries"] if failure["attempts"] > 1 else []
    if failure["next_try_in_s"] is not None:
        parts.append(f"the next in {say_time(failure['next_try_in_s'])}")
    tries = f" ({', '.join(parts)})" if parts else ""
    return Text.assemble(f"{failure['path']}: ", (failure["reason"], "red"), (tries, "dim"))
