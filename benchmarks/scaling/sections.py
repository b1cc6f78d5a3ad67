"""The sections of docs/scale.md: figures in tables, and in words. Whatever is a figure here comes from a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scaling.cluster import pays_from
from benchmarks.scaling.costs import GIGABIT_BYTES, HOUR_S, MILLION, Model, measured_models
from benchmarks.scaling.prose import say
from benchmarks.tables import NONE, table
from florence_daemon.cluster.command import Wanted
from florence_daemon.cluster.passes import AT_A_TIME

Figures = Mapping[str, Any]

# Pictures that a machine of a cluster is given at a time, unless --batch says otherwise.
GIVEN_AT_A_TIME = Wanted.batch // AT_A_TIME


def costs(models: Sequence[Model], machine: str) -> list[str]:
    """What a million pictures cost without a GPU."""
    head = ["model", "pictures/s", "a million takes", "that is"]
    rows = [[each.title, f"{each.per_s:g}", f"{each.hours:,.0f} h", f"{each.hours / 24:,.0f} days"] for each in models]
    return [*say("costs", machine=machine), "", *table(head, rows), "", *say("costs, after")]


def bounds(models: Sequence[Model], found: Mapping[str, Figures]) -> list[str]:
    """The parts that a picture goes through, and how far each of them reaches."""
    lines = []
    if decoded := found.get("decoding"):
        decode_s = 1 / decoded["careful_per_s"]
        rows = [[model.title, *_shares(decode_s, model.vision_s, model.text_s)] for model in models]
        lines += [*say("bounds"), "", *table(["model", "decoding", "looking", "writing"], rows), ""]
    rows = [each for each in (_decode_bound(found), _network_bound(found), _bookkeeping_bound(found)) if each]
    if rows:
        lines += [*say("bounds, after"), "", *table(["bound", "reaches", "*g* pictures/s need"], rows)]
    return lines or ["Not measured yet."]


def _shares(*parts_s: float) -> list[str]:
    return [f"{seconds:.2f} s, {100 * seconds / sum(parts_s):.0f} %" for seconds in parts_s]


def _decode_bound(found: Mapping[str, Figures]) -> list[str]:
    if not (figures := found.get("decoding")):
        return []
    careful, fast = figures["careful_per_s"], figures["fast_per_s"]
    reaches = f"{careful:.1f} pictures/s a core; {fast:.1f} with `fast_decode`"
    return ["decoding", reaches, f"*g* ÷ {careful:.1f} cores; *g* ÷ {fast:.1f} with `fast_decode`"]


def _network_bound(found: Mapping[str, Figures]) -> list[str]:
    if not (figures := found.get("decoding")):
        return []
    size = figures["file_bytes"]
    reaches = f"{GIGABIT_BYTES / size:.0f} pictures/s at 1 Gbit/s, {in_mb(size)} each"
    needs = f"*g* × {8 * size / 1e6:.0f} Mbit/s"
    if sent := found.get("servers"):
        small = sent["parcel_bytes"]
        reaches += f"; {GIGABIT_BYTES / small:.0f} with `send: resized`, {in_mb(small)} each"
        needs += f"; × {8 * small / 1e6:.0f} Mbit/s resized"
    return ["network, from where the pictures are", reaches, needs]


def _bookkeeping_bound(found: Mapping[str, Figures]) -> list[str]:
    if not (figures := found.get("ceiling")):
        return []
    per_s = figures["at_once"]["disk"]["per_s"]
    return ["one backfill", f"{per_s:,.0f} pictures/s", f"*g* ÷ {per_s:,.0f} backfills, each over a part of the tree"]


def engines(figures: Figures) -> list[str]:
    """One, two and four of them."""
    waiting, demo = figures["waiting"], figures["demo"]
    rows = [
        [f"stand-in of {in_ms(figures['slow_s'])} a picture: pictures/s", *_paces(waiting)],
        ["× one engine", *_times(waiting)],
        ["demo model on this processor: pictures/s", *_paces(demo)],
        ["× one engine", *_times(demo)],
    ]
    return [*say("engines"), "", *table(["engines", *waiting], rows)]


def _paces(found: Mapping[str, Figures]) -> list[str]:
    return [f"{each['per_s']:,.1f}" for each in found.values()]


def _times(found: Mapping[str, Figures]) -> list[str]:
    first = next(iter(found.values()))["per_s"]
    return [f"{each['per_s'] / first:.2f}" for each in found.values()]


def ceiling(figures: Figures) -> list[str]:
    """An engine that answers at once."""
    head = ["ledger, pictures and sidecars on", "pictures", "pictures/s", "its processor time a picture", "of one core"]
    rows = [
        [name, f"{each['pictures']:,}", f"{each['per_s']:,.0f}", *_processor(each)]
        for name, each in figures["at_once"].items()
    ]
    return [*say("ceiling"), "", *table(head, rows), "", *say("ceiling, after")]


def _processor(each: Figures) -> list[str]:
    if each["cpu_ms"] is None:
        return [NONE, NONE]
    return [f"{each['cpu_ms']:.2f} ms", f"{each['cpu_ms'] * each['per_s'] / 10:.0f} %"]


def decoding(figures: Figures) -> list[str]:
    """One core's rate."""
    rows = [
        [way, f"{figures[name]:.1f}", f"{MILLION / figures[name] / HOUR_S:,.0f}"]
        for way, name in (("as set by default", "careful_per_s"), ("`fast_decode: true`", "fast_per_s"))
    ]
    said = say(
        "decoding",
        photographs=str(figures["photographs"]),
        size=in_pixels(figures["size_px"]),
        file_mb=in_mb(figures["file_bytes"]),
        side=str(figures["side_px"]),
    )
    return [*said, "", *table(["", "pictures/s of one core", "core-hours for a million"], rows)]


def servers(figures: Figures) -> list[str]:
    """Pace and bytes."""
    waiting = figures["waiting"]
    paces = [["pictures/s", *_paces(waiting)], ["× one server", *_times(waiting)]]
    sent = [
        [f"`send: {name}`", in_mb(each["bytes"]), f"{each['bytes'] * MILLION / 1e12:.2f} TB", f"{each['per_s']:.1f}"]
        for name, each in figures["sent"].items()
    ]
    return [
        *say("servers", slow=in_ms(figures["slow_s"])),
        "",
        *table(["servers", *waiting], paces),
        "",
        *say("servers, sent", size=in_pixels(figures["size_px"])),
        "",
        *table(["", "sent of each", "of a million", "pictures/s"], sent),
        "",
        *say("servers, after", side=str(figures["side_px"]), parcel_mb=in_mb(figures["parcel_bytes"])),
    ]


def ray(figures: Figures) -> list[str]:
    """With and without it."""
    rows = []
    for each in figures["runs"]:
        extra_ms = 1000 * (each["ray_s"] - each["plain_s"]) / each["pictures"]
        rows.append(
            [f"{each['pictures']:,}", f"{each['plain_s']:.1f} s", f"{each['ray_s']:.1f} s", f"{extra_ms:.1f} ms"]
        )
    machines = str(figures["machines"])
    pays = [[model.title, _pays_from(figures, model)] for model in measured_models()]
    return [
        *say("ray"),
        "",
        *table(["pictures", "without Ray", "with Ray", "Ray's share of each picture"], rows),
        "",
        *say("ray, after", machines=machines, at_a_time=str(GIVEN_AT_A_TIME)),
        "",
        *table(["model", f"{machines} machines with Ray are faster from"], pays),
    ]


def _pays_from(figures: Figures, model: Model) -> str:
    count = pays_from(figures["runs"], 1 / model.per_s, figures["machines"], GIVEN_AT_A_TIME)
    return "never" if count is None else f"{count:,} pictures"


FAULTS = {
    "server": "one of two servers",
    "engine": "an engine of a Ray node",
    "worker": "a Ray worker and its engine",
    "node": "one of two Ray nodes",
    "driver": "the command itself, on Ray; given again",
}


def faults(figures: Figures) -> list[str]:
    """What was lost and what was done twice."""
    rows = []
    for name, each in figures["faults"].items():
        if "error" in each:
            rows.append([FAULTS[name], f"could not be tried: {each['error']}", NONE, NONE, NONE])
            continue
        lost = "0" if each["lost"] == 0 else f"**{each['lost']}**"
        twice = str(each["twice"]) if each["twice"] <= each["allowed"] else f"**{each['twice']}**"
        counts = [lost, twice, str(each["allowed"])]
        rows.append([FAULTS[name], f"{each['pictures']:,}", *counts])
    head = ["killed (SIGKILL)", "pictures", "lost", "done twice", "what it had at that moment, at most"]
    return [*say("faults"), "", *table(head, rows)]


def estimate(figures: Figures) -> list[str]:
    """What was said, and what it took."""
    likely, least, most, took = (f"{figures[name]:.0f} s" for name in ("likely_s", "least_s", "most_s", "took_s"))
    said = f"{likely} (likely between {least} and {most})"
    return say("estimate", pictures=f"{figures['pictures']:,}", said=said, took=took)


def in_mb(count: float) -> str:
    """`2.41 MB`, of a million bytes."""
    return f"{count / 1e6:.2f} MB"


def in_ms(seconds: float) -> str:
    """`40 ms`"""
    return f"{1000 * seconds:.0f} ms"


def in_pixels(size_px: Sequence[int]) -> str:
    """`4000 × 3000`"""
    return f"{size_px[0]} × {size_px[1]}"
