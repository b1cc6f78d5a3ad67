"""What a setting's value may be, and the error that says what is wrong with one."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

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


def device_names(_: Any, attribute: attrs.Attribute[Any], value: str | tuple[str, ...]) -> None:
    """Accept a device, or several: `auto` and `all` stand alone, and no GPU is given twice."""
    if isinstance(value, str):
        _check_device(
            attribute.name, value, r"auto|all|cpu|mps|cuda(:(0|[1-9]\d*))?", "auto, cpu, cuda, cuda:1, … mps, or all"
        )
        return
    if not value:
        raise BadSetting(attribute.name, "must not be empty; leave the line out to get the default")
    for name in value:
        _check_device(
            attribute.name, name, r"cpu|mps|cuda:(0|[1-9]\d*)", "of several devices cpu, cuda:0, cuda:1, … or mps each"
        )
    twice = next((name for name in value if name != "cpu" and value.count(name) > 1), None)
    if twice is not None:
        raise BadSetting(attribute.name, f"{twice!r} is given twice; a GPU is kept busy by one engine")


def _check_device(setting: str, name: str, pattern: str, known: str) -> None:
    if not re.fullmatch(pattern, name):
        raise BadSetting(setting, f"{name!r} is not known; give {known}")


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


def server_addresses(_: Any, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for server in value:
        try:
            parts = urlsplit(server)
            has_secret = "@" in parts.netloc
            is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_right = has_secret = False
        if has_secret:  # The address itself stays out of the message, which goes to logs.
            raise BadSetting(attribute.name, "an address holds a name or password; give model.server_token instead")
        if not is_right or parts.query or parts.fragment or any(letter.isspace() for letter in server):
            raise BadSetting(attribute.name, f"{server!r} is not a server's address; give one as http://gpu-box:54880")
    if len({server.rstrip("/") for server in value}) < len(value):
        raise BadSetting(attribute.name, "names a server twice")


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
