"""Pictures by their https: addresses: from hosts that are allowed, and never from inside the network."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from florence_daemon.errors import PictureError
from florence_daemon.http.fetch import Fetcher, is_public

URL = "https://images.example.org/a.jpg?size=large"
PUBLIC = "93.184.215.14"


class Site:
    """A site behind the fetcher; notes what it was asked."""

    def __init__(self, *chunks: bytes, status: int = 200, error: Exception | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self._chunks = chunks or (b"a picture",)
        self._status = status
        self._error = error

    def transport(self) -> httpx.BaseTransport:
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self._error is not None:
            raise self._error
        return httpx.Response(
            self._status, headers={"Location": "https://169.254.169.254/"}, content=iter(self._chunks)
        )


def fetcher(site: Site, *, addresses: list[str] | None = None, **options: Any) -> Fetcher:
    options = {"hosts": ["images.example.org"], "max_bytes": 100} | options
    return Fetcher(lookup=lambda host: addresses or [PUBLIC], transport=site.transport, **options)


def test_picture_is_fetched_from_the_address_that_was_looked_up() -> None:
    site = Site()
    assert fetcher(site)(URL) == b"a picture"
    (request,) = site.requests
    assert str(request.url) == f"https://{PUBLIC}/a.jpg?size=large"
    assert request.headers["host"] == request.extensions["sni_hostname"] == "images.example.org"


def test_any_public_host_is_asked_where_all_are_allowed() -> None:
    site = Site()
    assert fetcher(site, hosts=["*"], addresses=["2606:2800:21f:cb07:6820:80da:af6b:8b2c"])("https://other.example")
    assert site.requests[0].url.host == "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
    assert site.requests[0].url.path == "/"


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.org/a.jpg",
        "https://images.example.org:8443/a.jpg",
        "https://me:secret@images.example.org/a.jpg",
        "https://evil.example/a.jpg",
        "https://images.example.org.evil.example/a.jpg",
        "https://images.example.org@evil.example/",
        "https://images.example.org\\@evil.example/",
        "https://[::1]/a.jpg",
        "https://images.example.org/a b",
        "https://images.example.org/" + "a" * 2000,
        "https:///a.jpg",
        "file:///etc/passwd",
    ],
)
def test_address_of_another_form_or_host_is_refused(url: str) -> None:
    site = Site()
    with pytest.raises(PictureError):
        fetcher(site)(url)
    assert site.requests == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1"),
        *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "ff02::1"),
    ],
)
def test_name_that_leads_into_the_network_is_refused(address: str) -> None:
    assert not is_public(address)
    site = Site()
    for addresses in ([address], [PUBLIC, address]):
        with pytest.raises(PictureError, match="not a public one"):
            fetcher(site, hosts=["*"], addresses=addresses)("https://rebound.example/a.jpg")
    assert site.requests == []


def test_name_without_an_address_is_said() -> None:
    def unknown(host: str) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(PictureError, match="has no address"):
        Fetcher(["*"], 100, lookup=unknown)("https://nowhere.example/")


def test_redirect_is_not_followed() -> None:
    site = Site(status=302)
    with pytest.raises(PictureError, match=r"answered 302; redirects are not followed"):
        fetcher(site)(URL)
    assert len(site.requests) == 1


def test_picture_that_is_too_large_is_left() -> None:
    with pytest.raises(PictureError, match="max_body_mb"):
        fetcher(Site(b"x" * 100, b"x"))(URL)
    assert len(fetcher(Site(b"x" * 50, b"x" * 50))(URL)) == 100


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
def test_host_that_does_not_answer_is_said(error: Exception) -> None:
    with pytest.raises(PictureError, match=type(error).__name__):
        fetcher(Site(error=error))(URL)


class Elsewhere(httpx.HTTPTransport):
    """Connects to a server on this machine, whatever the address is."""

    def __init__(self, port: int, certificate: Path) -> None:
        super().__init__(verify=ssl.create_default_context(cafile=str(certificate)))
        self._port = port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return super().handle_request(request)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for images.example.org, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    path, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    name = ["-subj", "/CN=images.example.org", "-addext", "subjectAltName=DNS:images.example.org"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*made, *name, "-keyout", str(key), "-out", str(path)], check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/drips"):
                self.drip(b"HTTP/1.1 200 OK\r\n" + (b"X: " if self.path == "/drips/head" else b"\r\n"))
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.headers['Host']}{self.path}".encode())

        def drip(self, beginning: bytes) -> None:
            """Begin an answer, and go on by a byte now and then for as long as anybody listens."""
            with contextlib.suppress(OSError):
                self.wfile.write(beginning)
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_certificate_must_be_the_names_and_not_the_addresses(port: int, certificate: Path) -> None:
    fetch = Fetcher(["*"], 100, lookup=lambda host: [PUBLIC], transport=lambda: Elsewhere(port, certificate))
    assert fetch("https://images.example.org/a.jpg") == b"images.example.org/a.jpg"
    with pytest.raises(PictureError, match="ConnectError"):
        fetch("https://other.example/a.jpg")


@pytest.mark.parametrize("where", ["head", "body"])
def test_picture_that_drips_is_left(port: int, certificate: Path, where: str) -> None:
    fetch = Fetcher(
        ["*"], 10**9, lookup=lambda host: [PUBLIC], transport=lambda: Elsewhere(port, certificate), limit_s=1.0
    )
    with pytest.raises(PictureError, match="did not arrive within 1 s"):
        fetch(f"https://images.example.org/drips/{where}")
