"""Who is let in: hosts, origins and tokens, at a real server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from florence_daemon.config import ServerConfig
from florence_daemon.http.guards import Guards, Head
from tests.conftest import FakeEngine, Figure
from tests.http.api import BASE64, Api, error_of, serving

ASKING = {"image": BASE64, "prompt": "CAPTION"}
TOKEN = "correct-horse-battery"
SITE = "https://site.example"


@pytest.fixture
def guarded(engine: FakeEngine) -> Iterator[Api]:
    with serving(engine, token=TOKEN, allowed_hosts=("photos.example",), allowed_origins=(SITE,)) as api:
        yield api


FOREIGN_HOSTS = """
evil.example evil.example:54880 localhost.evil.example localhost@evil.example localhost:x localhost,localhost
192.168.1.5 0.0.0.0 2130706433 127.1 [::1 photos.example
"""


@pytest.mark.parametrize("host", ["", *FOREIGN_HOSTS.split()])
def test_name_that_an_attacker_made_resolve_to_this_machine_is_refused(api: Api, host: str, figure: Figure) -> None:
    for response in (
        api.http.get("/status", headers={"Host": host}),
        api.http.get("/health/live", headers={"Host": host}),
        api.http.post("/process_image", headers={"Host": host}, json=ASKING),
    ):
        assert response.status_code == 403
        assert "server.allowed_hosts" in error_of(response)
    assert api.engine.asked == []


def test_every_host_that_a_request_names_must_be_ours(api: Api, figure: Figure) -> None:
    absolute = b"GET http://evil.example/model HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert api.send(absolute).status == 403
    twice = b"GET /model HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert api.send(twice).status == 403
    assert api.send(b"GET http://localhost/model HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 200
    names = 1 + len(FOREIGN_HOSTS.split())
    figure(f"{names} foreign names, 6 foreign origins and 6 wrong tokens: each refused by the head")


def test_host_may_be_missing_only_where_the_protocol_has_none(api: Api) -> None:
    missing = api.send(b"GET /model HTTP/1.1\r\n\r\n")
    assert (missing.status, missing.error) == (400, "the header Host is missing")
    assert api.send(b"GET /health/ready HTTP/1.0\r\n\r\n").status == 200


def test_configured_name_is_served(guarded: Api) -> None:
    headers = {"Host": "Photos.Example", "Authorization": f"Bearer {TOKEN}"}
    assert guarded.http.get("/model", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["box:54880", "box.lan", "box.local", "10.0.0.7:80", "[2001:db8::1]", "localhost"])
def test_server_of_the_network_answers_to_addresses_and_to_the_machines_name(host: str) -> None:
    guards = Guards(ServerConfig(host="0.0.0.0", token="none"), machine_name="Box.lan")
    assert guards.refusal(Head("GET", "/model", "1.1", {"HOST": host})) is None


@pytest.mark.parametrize("host", ["evil.example", "box.evil.example", "box.lan.evil.example", ""])
def test_server_of_the_network_answers_to_no_other_name(host: str) -> None:
    guards = Guards(ServerConfig(host="0.0.0.0", token="none"), machine_name="Box.lan")
    refusal = guards.refusal(Head("GET", "/model", "1.1", {"HOST": host}))
    assert refusal is not None
    assert refusal.code == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "file://", "http://[", "x"]
)
def test_page_of_another_site_is_refused(api: Api, origin: str) -> None:
    response = api.http.post("/process_image", headers={"Origin": origin}, json=ASKING)
    assert response.status_code == 403
    assert "server.allowed_origins" in error_of(response)
    assert "access-control-allow-origin" not in response.headers
    for path in ("/retry", "/forget", "/rescan"):
        assert api.http.post(path, headers={"Origin": origin}, json={"path": "/"}).status_code == 403
    assert api.engine.asked == api.actions.told == []


def test_page_of_this_server_is_served(api: Api) -> None:
    for host, scheme in ((f"127.0.0.1:{api.port}", "http"), (f"localhost:{api.port}", "https")):
        headers = {"Host": host, "Origin": f"{scheme}://{host}", "Sec-Fetch-Site": "same-origin"}
        assert api.http.post("/process_image", headers=headers, json=ASKING).status_code == 200


def test_request_that_another_site_makes_is_refused_and_a_link_there_is_followed(api: Api) -> None:
    crossing = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert api.http.get("/status", headers=crossing).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert api.http.get("/status", headers=link).status_code == 200
    assert api.http.post("/retry", headers=link).status_code == 403
    assert api.http.get("/status", headers={"Sec-Fetch-Site": "none"}).status_code == 200


def test_no_site_may_read_answers_unless_configured(api: Api) -> None:
    preflight = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
    assert api.http.options("/process_image", headers=preflight).status_code == 403


def test_configured_site_may_use_the_api_from_a_browser(guarded: Api) -> None:
    site = {"Origin": SITE, "Sec-Fetch-Site": "cross-site"}
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = guarded.http.options("/process_image", headers=site | asking)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == SITE
    assert allowed.headers["access-control-allow-headers"] == "authorization"
    answered = guarded.http.post("/process_image", headers=site | {"Authorization": f"Bearer {TOKEN}"}, json=ASKING)
    refused = guarded.http.post("/process_image", headers=site, json=ASKING)
    assert (answered.status_code, refused.status_code) == (200, 401)
    for response in (answered, refused):
        assert response.headers["access-control-allow-origin"] == SITE


@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
@pytest.mark.parametrize("path", ["/model", "/status", "/openapi.json", "/retry", "//health/live", "/nothing"])
def test_without_the_token_nothing_is_told(guarded: Api, path: str, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    response = guarded.http.request("POST" if path == "/retry" else "GET", path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert "server.token" in error_of(response)
    assert guarded.actions.told == []


def test_token_that_is_not_ascii_is_just_wrong(guarded: Api) -> None:
    raw = b"GET /model HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer caf\xe9\r\n\r\n"
    assert guarded.send(raw).status == 401


def test_token_opens_everything_and_health_needs_none(guarded: Api) -> None:
    assert guarded.http.get("/health/live").status_code == 200
    assert guarded.http.get("/health/ready").status_code == 200
    guarded.http.headers["Authorization"] = f"bearer {TOKEN}"
    assert guarded.process().status_code == 200
    assert guarded.http.get("/status").status_code == 200
    assert guarded.http.post("/retry").status_code == 200


def test_picture_without_the_token_is_refused_before_it_is_sent(guarded: Api) -> None:
    head = b"POST /process_image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n"
    assert guarded.send(head).status == 401


def test_real_clients_read_the_refusal_of_a_large_upload(guarded: Api) -> None:
    large = {"image": b"x" * 20_000_000}
    response = httpx.post(f"http://127.0.0.1:{guarded.port}/process_image", files=large, timeout=60)
    assert response.status_code == 401
