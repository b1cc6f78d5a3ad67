"""Who may ask: the request's host, the page that sends it, and its token, all judged by the head alone.

To listen on loopback is no fence. Any page in a browser can send requests there, and one whose name is made to resolve
to 127.0.0.1 (DNS rebinding) could read the answers too. So names and origins are checked against a list.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from florence_daemon.config import ServerConfig
from florence_daemon.config_checks import is_loopback
from florence_daemon.http.contract import PAGE_PATHS

# What a load balancer or a service manager asks, and has no token for; and the page before a person has signed in.
OPEN_PATHS = PAGE_PATHS | {"/health/live", "/health/ready", "/ping"}
AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]+))(?::\d{1,5})?")


@dataclass(frozen=True)
class Head:
    """A request before its body. headers: by name in capitals with underscores, `CONTENT_TYPE`.

    authority: the host in the address of the first line, empty in all requests but those meant for a proxy.
    """

    method: str
    path: str
    version: str
    headers: Mapping[str, str]
    authority: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a request is answered without being read: the status and the text for the client."""

    code: int
    reason: str
    body: str
    headers: tuple[tuple[str, str], ...] = ()


class Guards:
    """Judges requests by the configuration of the server."""

    def __init__(self, config: ServerConfig, machine_name: str | None = None) -> None:
        """machine_name: instead of what the system says."""
        self._token = config.required_token
        self._origins = frozenset(config.allowed_origins)
        self._serves_network = not is_loopback(config.host)
        self._names = {"localhost", config.host.lower(), *(name.lower() for name in config.allowed_hosts)}
        if self._serves_network:
            name = (machine_name or socket.gethostname()).lower()
            self._names |= {name, name.partition(".")[0], f"{name.partition('.')[0]}.local"}

    def refusal(self, head: Head) -> Refusal | None:
        """Why this request may not go on; None when it may."""
        refused = self._check_host(head) or self._check_page(head) or self._check_token(head)
        origin = head.headers.get("ORIGIN")
        if refused is None or origin not in self._origins:
            return refused
        # Without this the page could not read why.
        return Refusal(refused.code, refused.reason, refused.body, (*refused.headers, cors_header(origin)))

    def _check_host(self, head: Head) -> Refusal | None:
        host = head.headers.get("HOST")
        if host is None and head.version == "1.0" and not head.authority:
            return None  # A health check of a load balancer; a browser always names the host.
        if host is None:
            return Refusal(400, "Bad Request", "the header Host is missing")
        for named in (host, head.authority or host):
            if not self._is_ours(named):
                return _forbidden(f"{named[:100]} is not a name of this server; allow it with server.allowed_hosts")
        return None

    def _is_ours(self, authority: str) -> bool:
        match = AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name = (match["v6"] or match["name"]).lower().rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        # No foreign page has an address for its name, so every address leads here; from loopback there is one way in.
        return self._serves_network or address.is_loopback

    def _check_page(self, head: Head) -> Refusal | None:
        origin = head.headers.get("ORIGIN")
        if origin is not None:
            if origin in self._origins or _is_same(origin, head.headers.get("HOST", "")):
                return None
            return _forbidden(f"pages of {origin[:100]} may not use this server; server.allowed_origins allows them")
        if head.headers.get("SEC_FETCH_SITE") == "cross-site" and not _is_link(head):
            return _forbidden("pages of other sites may not use this server (Sec-Fetch-Site: cross-site)")
        return None

    def _check_token(self, head: Head) -> Refusal | None:
        # A browser asks by OPTIONS whether it may send a token at all, and that without one.
        if self._token is None or head.path in OPEN_PATHS or head.method == "OPTIONS":
            return None
        scheme, _, token = head.headers.get("AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(
            token.strip().encode("latin-1", "replace"), self._token.encode()
        ):
            return None
        text = "this server asks for its token: send the header Authorization: Bearer TOKEN (server.token)"
        return Refusal(401, "Unauthorized", text, (("WWW-Authenticate", 'Bearer realm="florence-daemon"'),))


def cors_header(origin: str) -> tuple[str, str]:
    """The header that lets a page of `origin` read an answer."""
    return ("Access-Control-Allow-Origin", origin)


def _forbidden(text: str) -> Refusal:
    return Refusal(403, "Forbidden", text)


def _is_same(origin: str, host: str) -> bool:
    """Tell whether the page came from this very server. (Behind a proxy the scheme may differ, the host does not.)"""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _is_link(head: Head) -> bool:
    """Tell whether a person followed a link: the other site learns nothing of what is shown then."""
    wanted = {"SEC_FETCH_MODE": "navigate", "SEC_FETCH_DEST": "document"}
    return head.method in ("GET", "HEAD") and all(head.headers.get(name) == value for name, value in wanted.items())
