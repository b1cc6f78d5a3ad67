"""Fetch a picture by its https: address, from hosts that the configuration names, and never from inside the network.

Who may ask us could ask what only we can reach: a router's page, a cloud's metadata. So the host's name is looked up
once, every address that it has must be a public one, and the connection goes to one of those, whatever the name
resolves to a moment later; its certificate must still be the name's. Redirects are not followed.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from florence_daemon.errors import PictureError

if TYPE_CHECKING:
    import httpx

# Any public host.
ANY = "*"
# Seconds for the whole of it, and for each wait within.
FETCH_S = 30.0
WAIT_S = 10.0
ADDRESS = re.compile(r"https://(?P<host>[A-Za-z0-9.-]+)(?::443)?(?P<path>[/?][!-~]*)?", re.IGNORECASE)
MAX_ADDRESS = 2000
# All that is routed to everybody in IPv6. The rest has ways back into the network: mapped and translated addresses.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def lookup(host: str) -> list[str]:
    """The addresses that a name has now. Raises: OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def is_public(text: str) -> bool:
    """Tell whether an address belongs to the public network, and leads nowhere else."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        is_tunnel = address.sixtofour is not None or address.teredo is not None
        return address in GLOBAL_UNICAST and address.is_global and not is_tunnel
    return address.is_global and not address.is_multicast


class Fetcher:
    """Fetches pictures. Threads may share it."""

    def __init__(
        self,
        hosts: Collection[str],
        max_bytes: int,
        *,
        lookup: Callable[[str], list[str]] = lookup,
        transport: Callable[[], httpx.BaseTransport | None] = lambda: None,
        limit_s: float = FETCH_S,
    ) -> None:
        """hosts: those allowed, in any case; `*` allows every one. transport: makes what connects.

        limit_s: seconds for the whole of it.
        """
        self._hosts = frozenset(host.lower() for host in hosts)
        self._max_bytes = max_bytes
        self._lookup = lookup
        self._transport = transport
        self._limit_s = limit_s

    def __call__(self, url: str) -> bytes:
        """Get the bytes at an address. Raises: PictureError."""
        match = ADDRESS.fullmatch(url) if len(url) <= MAX_ADDRESS else None
        if match is None:
            raise PictureError(f"{url!r:.80} is no address of the form https://HOST/PATH")
        host = match["host"].lower()
        if host not in self._hosts and ANY not in self._hosts:
            raise PictureError(f"pictures from {host:.100} are not fetched; server.image_hosts allows hosts")
        return self._get(host, self._public_address(host), match["path"] or "/")

    def _public_address(self, host: str) -> str:
        try:
            addresses = self._lookup(host)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise PictureError(f"{host:.100} has no address")
        if not all(map(is_public, addresses)):
            raise PictureError(f"{host:.100} is not fetched from: its address is not a public one")
        return addresses[0]

    def _get(self, host: str, address: str, path: str) -> bytes:
        import httpx  # 15 MB that a daemon which fetches nothing need not have

        place = f"[{address}]" if ":" in address else address
        path = path if path.startswith("/") else f"/{path}"
        deadline = _Deadline(self._limit_s)
        try:
            with (
                deadline,
                httpx.Client(trust_env=False, timeout=WAIT_S, transport=self._transport()) as client,
                client.stream(
                    "GET",
                    f"https://{place}{path}",
                    headers={"Host": host, "Accept": "image/*", "Accept-Encoding": "identity"},
                    extensions={"sni_hostname": host, "trace": deadline.note},
                ) as response,
            ):
                content = self._read(host, response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if not deadline.is_over:
                reason = f"the picture could not be fetched from {host}: {type(error).__name__}"
                raise PictureError(reason) from None
        if deadline.is_over:  # What came may look whole: where no length was told, the end is where it broke off.
            raise PictureError(f"the picture at {host} did not arrive within {self._limit_s:g} s")
        return content

    def _read(self, host: str, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            hint = "; redirects are not followed" if response.is_redirect else ""
            raise PictureError(f"{host} answered {response.status_code}{hint}")
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > self._max_bytes:
                raise PictureError(f"the picture at {host} is larger than server.max_body_mb")
        return bytes(content)


class _Deadline:
    """Breaks a connection off when its time is over: who sends a byte now and then would outlast every single wait."""

    def __init__(self, limit_s: float) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(limit_s, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Hear from httpx what it does: remember the connection, with TLS once it has that."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self.is_over:
                self._end()

    def _end(self) -> None:
        self.is_over = True
        if self._socket is not None:
            with suppress(OSError):
                # Past TLS, which has a word of its own to say and waits for another.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
