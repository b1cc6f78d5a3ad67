"""JSON that another program sent: each member is what it must be, or `Wrong` says which one is not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from florence_daemon.tasks import CONTROL

Members = dict[str, Any]

# What no answer has, and a file or a terminal may take amiss: halves of characters cannot be written as UTF-8.
UNFIT = re.compile(rf"{CONTROL.pattern}|[\ud800-\udfff]")


class Wrong(ValueError):
    """A member is missing, or not what it must be."""


def parse(body: bytes, most_members: int) -> Members:
    """Read a JSON object. most_members: of brackets and commas, those in texts too.

    An empty list takes 28 times its bytes in memory.
    """
    if sum(map(body.count, (b"[", b"{", b","))) > most_members:
        raise Wrong(f"it has more than {most_members} members")
    try:
        members = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Wrong("it is no JSON") from None
    if not isinstance(members, dict):
        raise Wrong("it is no JSON object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _shown(value: Any) -> str:
    """A value for a message; lists within lists within lists cannot be written out."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else f"{value!a:.60}"


def member(members: Mapping[str, Any], name: str, kind: type) -> Any:
    """Read a member of exactly this type: a `bool` is no `int`."""
    value = members.get(name)
    if type(value) is not kind:
        raise Wrong(f"{name} is {_shown(value)}")
    return value


def mapping(members: Mapping[str, Any], name: str) -> Members:
    """Read an object."""
    value: Members = member(members, name, dict)
    return value


def items(members: Mapping[str, Any], name: str, most: int, *, least: int = 1) -> list[Any]:
    """Read a list."""
    value: list[Any] = member(members, name, list)
    if not least <= len(value) <= most:
        raise Wrong(f"{name} are {len(value)}; at least {least}, at most {most}")
    return value


def text(members: Mapping[str, Any], name: str, most: int, *, is_shown: bool = True) -> str:
    """Read a text. is_shown: it is written or shown to people, so nothing may be in it that is `UNFIT` for that."""
    value: str = member(members, name, str)
    if len(value) > most:
        raise Wrong(f"{name} has {len(value)} characters; at most {most}")
    if is_shown and UNFIT.search(value) is not None:
        raise Wrong(f"{name} holds what is no text: {_shown(value)}")
    return value


def whole(members: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """Read a whole number within these bounds."""
    value: int = member(members, name, int)
    if not low <= value <= high:
        raise Wrong(f"{name} is {_shown(value)}; from {low} to {high}")
    return value


def maybe_whole(members: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """Read a whole number, or null."""
    return None if members.get(name) is None else whole(members, name, low, high)


def number(members: Mapping[str, Any], name: str, low: float, high: float) -> float:
    """Read any number within these bounds."""
    value: Any = members.get(name)
    if type(value) not in (int, float) or not low <= value <= high:
        raise Wrong(f"{name} is {_shown(value)}; from {low:g} to {high:g}")
    return float(value)
