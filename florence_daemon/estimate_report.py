"""An estimate in words: what was found, what the sample took and where, how long all of it would take."""

from __future__ import annotations

from florence_daemon.estimate import Estimate, Measured, Span
from florence_daemon.status_text import say_time


def estimate_lines(estimate: Estimate, gpus: int | None) -> list[str]:
    """The estimate as a person would want to read it. gpus: say it for so many of them too."""
    count, measured = estimate.count, estimate.measured
    lines = [f"{_pictures(count.pictures)}, {count.due:,} of them to be captioned"]
    if count.refused:
        lines.append(f"{count.refused:,} more cannot be: backfill --dry-run lists them with the reason")
    if measured is None:
        return [*lines, "nothing to do"]
    lines += _sample(estimate, measured)
    here = estimate.span()
    if here is None:
        return [*lines, "none of the sample could be captioned, so nothing can be said of the rest"]
    here_is = f"through {_many_of(measured)}" if measured.kind == "server" else "this machine"
    lines += ["", f"{here_is}: {_say(here)}"]
    if gpus is not None:
        lines += _many(estimate, measured, gpus)
    return lines


def _sample(estimate: Estimate, measured: Measured) -> list[str]:
    mean = measured.mean
    whole_s = max(mean.decode_s + mean.vision_s + mean.text_s, 1e-9)
    parts = zip(("decoding", "looking", "writing"), (mean.decode_s, mean.vision_s, mean.text_s), strict=True)
    lines = [
        f"{_pictures(measured.pictures)} tried with {measured.model} on {measured.device or 'no engine'}, "
        f"{_times(measured.passes)} each, in {say_seconds(measured.seconds)}: {say_pace(measured.per_s)}"
    ]
    if measured.stages:
        words = ", ".join(f"{part} {1000 * s:.0f} ms ({100 * s / whole_s:.0f} %)" for part, s in parts)
        if measured.fetch_s:
            words += f"; fetched in {1000 * measured.fetch_s:.0f} ms, several at a time"
        lines.append(f"one picture: {words}; loading the model, once: {say_seconds(measured.load_s)}")
    if measured.failures:
        failed = f"{len(measured.failures)} of {measured.pictures}"
        lines.append(f"{failed} failed; of all of them about {estimate.failing:,} would")
    return lines


def _many(estimate: Estimate, measured: Measured, gpus: int) -> list[str]:
    span = estimate.span(gpus)
    if span is None:
        return []
    if measured.kind == "machine":
        return [f"{gpus} machines such as this one, which has no GPU: {_say(span)}"]
    lines = [f"{gpus} such {measured.kind}s: {_say(span)}"]
    decoding_s = estimate.decoding_span_s()
    if measured.kind == "GPU" and decoding_s is not None and decoding_s > span.likely_s:
        lines.append(
            f"not in one machine such as this: its {measured.cores} cores take {say_time(decoding_s)} to decode alone"
        )
    return lines


def _many_of(measured: Measured) -> str:
    return "this server" if measured.engines == 1 else f"these {measured.engines} servers"


def _say(span: Span) -> str:
    likely, least, most = say_time(span.likely_s), say_time(span.least_s), say_time(span.most_s)
    return likely if least == most else f"{likely} (likely between {least} and {most})"


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _times(passes: int) -> str:
    return "once" if passes == 1 else f"{passes} times"


def say_pace(per_s: float) -> str:
    """`23.1 pictures/s`, or `8.2 s a picture`."""
    return f"{per_s:.1f} pictures/s" if per_s >= 1 else f"{1 / per_s:.1f} s a picture"


def say_seconds(seconds: float) -> str:
    """`1.4 s`, and from a minute on as other times are said."""
    return f"{seconds:.1f} s" if seconds < 60 else say_time(seconds)
