"""What a setting's value may be, and the error that says what is wrong with one."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import attrs


class BadSetting(ValueError):
    """A value that its own setting refuses; carries the setting's name up to where file and line are known."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(problem)
        self.setting = setting


class MissingToken(BadSetting):
    """The network is let in, and nothing says who of it."""


def between(low: float, high: float, also: float | None = None) -> Any:
    """Accept numbers from `low` to `high`, and the special value `also`."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: float) -> None:
        if value == also or low <= value <= high:
            return
        special = "" if also is None else f", or {also}"
        raise BadSetting(attribute.name, f"{value!r} is out of range; give {low:g} to {high:g}{special}")

    return check


def multiple_of(step: int, low: int, high: int) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: int) -> None:
        if not low <= value <= high or value % step:
            raise BadSetting(attribute.name, f"{value!r} is not possible; give a multiple of {step}, {low} to {high}")

    return check


def one_of(*choices: str) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in choices:
            raise BadSetting(attribute.name, f"{value!r} is not known; give one of {', '.join(choices)}")

    return check


def device_name(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise BadSetting(attribute.name, f"{value!r} is not known; give auto, cpu, cuda, cuda:1, … or mps")


def not_empty(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not value:
        raise BadSetting(attribute.name, "must not be empty; leave the line out to get the default")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`; of names, localhost alone is trusted, none is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def bearer_token(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    # What RFC 6750 allows in a header. The token itself stays out of the message, which goes to logs.
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", value):
        raise BadSetting(attribute.name, "holds what a header cannot carry; give letters, digits and any of ._~+/-")


def host_names(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for name in value:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+", name):
            raise BadSetting(attribute.name, f"{name!r} is not a host's name; give it alone, as in photos.example.org")


def image_hosts(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for name in value:
        if name != "*" and not re.fullmatch(r"[A-Za-z0-9.-]+", name):
            raise BadSetting(attribute.name, f"{name!r} is not a host's name; give one as in images.example.org, or *")


def origin_addresses(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for origin in value:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+", origin):
            raise BadSetting(
                attribute.name, f"{origin!r} is not an origin; give one such as https://photos.example.org"
            )
