"""The lint command: findings by kind with their counts, or one JSON object for each."""

from __future__ import annotations

import json
from collections.abc import Iterable

from florence_daemon.datasets.lint import KINDS, Finding, Lint
from florence_daemon.datasets.tokens import LIMITS
from florence_daemon.errors import UsageError
from florence_daemon.logs import printable

EXIT_FOUND = 1
# Of each kind so many are listed for a person.
LISTED = 10


def check_limit(max_tokens: int) -> None:
    """Raises: UsageError when no trainer has such a limit."""
    known = [limit.tokens for limit in LIMITS]
    if max_tokens not in known:
        raise UsageError(f"--max-tokens {max_tokens}: give one of {', '.join(map(str, known))}")


def run_lint(lint: Lint, *, as_json: bool) -> int:
    """Look everything over and print what was found; return the exit code."""
    counts = _print_lines(lint.findings()) if as_json else _print_groups(lint.findings())
    if not as_json:
        tally = lint.tally
        print(f"pictures: {tally.pictures}, captions: {tally.captions}, findings: {sum(counts.values())}")
    return EXIT_FOUND if counts else 0


def _print_lines(findings: Iterable[Finding]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
        print(json.dumps({"kind": finding.kind, "path": finding.path, "detail": finding.detail}))
    return counts


def _print_groups(findings: Iterable[Finding]) -> dict[str, int]:
    """Only what is listed is kept: a large folder may have a million findings."""
    counts: dict[str, int] = {}
    listed: dict[str, list[str]] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
        lines = listed.setdefault(finding.kind, [])
        if len(lines) < LISTED:
            detail = f": {printable(finding.detail)}" if finding.detail else ""
            lines.append(f"  {printable(finding.path)}{detail}")
    for kind in (kind for kind in KINDS if kind in counts):
        print(f"{kind} ({counts[kind]}): {KINDS[kind]}")
        print("\n".join(listed[kind]))
        if counts[kind] > LISTED:
            print(f"  … and {counts[kind] - LISTED} more; --json lists them all")
        print()
    return counts
