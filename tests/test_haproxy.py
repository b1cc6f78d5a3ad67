"""Two real servers behind HAProxy as docs/haproxy.cfg has it: one is killed, stops, hangs, is full."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from florence_daemon.client import Client
from florence_daemon.engine.protocol import Ask
from tests.conftest import Figure, wait_for
from tests.haproxy import CONFIG, HAPROXY, HEADERS, NAME, TOKEN, Proxy, Said, Server, ask, caption, draw_pictures, load
from tests.pictures import CAPTION, jpeg

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="needs haproxy")

MAX_QUEUED = 8
CLIENTS = 6  # what one server has places for, when the other one is gone
LARGE = 9 * 2**20  # more than tune.bufsize


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Server], Proxy]]:
    homes = [tmp_path_factory.mktemp(name) for name in ("one", "two", "proxy")]
    with ThreadPoolExecutor(2) as pool:
        servers = list(pool.map(lambda home: Server(home, MAX_QUEUED), homes[:2]))
    proxy = Proxy(homes[2], [server.address for server in servers])
    yield servers, proxy
    proxy.stop()
    for server in servers:
        server.daemon.stop(signal.SIGKILL)


@pytest.fixture
def proxy(started: tuple[list[Server], Proxy]) -> Proxy:
    """HAProxy, with both servers up and their models loaded."""
    servers, proxy = started
    for server in servers:
        if server.daemon.process.poll() is not None:
            server.start_again()
        assert caption(server.address, jpeg()).json() == {"result": CAPTION}
    wait_for(lambda: proxy.is_up("one") and proxy.is_up("two"), what="both servers to be up")
    return proxy


@pytest.fixture
def servers(started: tuple[list[Server], Proxy], proxy: Proxy) -> list[Server]:
    return started[0]


@pytest.fixture(scope="module")
def pictures(started: tuple[list[Server], Proxy]) -> dict[bytes, str]:
    """Pictures that the servers, asked directly, agree about."""
    found = {}
    for picture in draw_pictures(12):
        answers = [caption(server.address, picture).json() for server in started[0]]
        assert answers[0] == answers[1]
        found[picture] = answers[0]["result"]
    assert len(set(found.values())) > 8
    return found


@pytest.fixture
def our_client(proxy: Proxy) -> Iterator[Client]:
    client = Client(proxy.address, TOKEN)
    yield client
    client.close()


@contextmanager
def held(*servers: Server) -> Iterator[None]:
    """Keep servers from answering about pictures: their engines stand still."""
    pids = [server.status()["model"]["pid"] for server in servers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # one whose daemon was killed
                os.kill(pid, signal.SIGCONT)


@contextmanager
def asking(address: str, count: int, servers: list[Server], picture: bytes) -> Iterator[list[Future[Said]]]:
    """Ask so often at once, and wait until all of that is at the servers, which are held."""
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(caption, address, picture) for _ in range(count)]
        wait_for(lambda: sum(server.at_work() for server in servers) == count, what="the servers to be asked")
        yield asked


def test_haproxy_has_nothing_to_say_against_the_file() -> None:
    found = subprocess.run([HAPROXY or "", "-c", "-f", str(CONFIG)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_no_request_fails_when_a_server_is_killed_and_when_it_comes_back(
    proxy: Proxy, servers: list[Server], pictures: dict[bytes, str], figure: Figure
) -> None:
    with load(proxy.address, pictures, CLIENTS) as found:
        found.wait_for_answers(20)
        before = proxy.servers()
        servers[1].daemon.stop(signal.SIGKILL)
        found.wait_for_answers(20)
        wait_for(lambda: not proxy.is_up("two"), what="HAProxy to notice")
        servers[1].start_again()
        wait_for(lambda: proxy.is_up("two"), what="HAProxy to notice that it is back")
        answered = int(proxy.servers()["two"]["hrsp_2xx"])
        wait_for(
            lambda: int(proxy.servers()["two"]["hrsp_2xx"]) > answered, 180, "an answer of the server that is back"
        )
    assert found.problems == {}
    assert all(int(before[name]["hrsp_2xx"]) > 0 for name in ("one", "two"))  # both had their share
    after = proxy.servers()["two"]
    assert int(after["wretr"]) + int(after["wredis"]) > int(before["two"]["wretr"]) + int(before["two"]["wredis"])
    figure(f"one of two servers killed under {CLIENTS} clients and started again: {found.answers} answers, 0 failed")


def test_no_request_fails_when_a_server_stops(proxy: Proxy, servers: list[Server], pictures: dict[bytes, str]) -> None:
    with load(proxy.address, pictures, CLIENTS) as found:
        found.wait_for_answers(20)
        assert servers[0].daemon.stop(signal.SIGTERM) == 0
        found.wait_for_answers(20)
    assert found.problems == {}


def test_a_server_that_hangs_is_left_out_and_what_it_held_goes_to_the_other_when_it_is_killed(
    proxy: Proxy, servers: list[Server], pictures: dict[bytes, str]
) -> None:
    with load(proxy.address, pictures, CLIENTS) as found:
        found.wait_for_answers(20)
        os.kill(servers[1].daemon.process.pid, signal.SIGSTOP)
        wait_for(lambda: not proxy.is_up("two"), what="HAProxy to notice")
        found.wait_for_answers(20)  # of those who had not asked it
        servers[1].daemon.stop(signal.SIGKILL)  # as a service manager's watchdog does
    assert found.problems == {}


def test_who_finds_all_servers_full_is_told_when_to_come_back_and_our_client_does(
    proxy: Proxy, servers: list[Server], our_client: Client, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with ThreadPoolExecutor(1) as pool, held(*servers):
        with asking(proxy.address, 2 * MAX_QUEUED, servers, jpeg()) as asked:
            refused = caption(proxy.address, jpeg())
            waiting = pool.submit(our_client.ask, str(tmp_path / "a.jpg"), [Ask("<CAPTION>")])
            wait_for(lambda: proxy.log.read_text().count(" 503 ") >= 2, what="our client to be refused as well")
            for server in servers:
                os.kill(server.status()["model"]["pid"], signal.SIGCONT)
        answer = waiting.result(180)[0]
    assert (refused.status, refused.headers["retry-after"]) == (503, "2")
    assert "server.max_queued" in refused.json()["detail"]
    assert [each.result().json() for each in asked] == [{"result": CAPTION}] * len(asked)
    assert answer.result == CAPTION


def test_a_full_server_is_passed_over_while_another_one_has_room(proxy: Proxy, servers: list[Server]) -> None:
    with held(servers[0]), asking(servers[0].address, MAX_QUEUED, servers[:1], jpeg()):
        assert [caption(proxy.address, jpeg()).json() for _ in range(4)] == [{"result": CAPTION}] * 4
        os.kill(servers[0].status()["model"]["pid"], signal.SIGCONT)


def test_without_any_server_clients_are_told_when_to_come_back_and_ours_does(
    proxy: Proxy, servers: list[Server], our_client: Client, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    for server in servers:
        server.daemon.stop(signal.SIGKILL)
    refused = caption(proxy.address, jpeg())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(our_client.ask, str(tmp_path / "a.jpg"), [Ask("<CAPTION>")])
        wait_for(lambda: not proxy.is_up("one") and not proxy.is_up("two"), what="HAProxy to notice")
        refused_later = caption(proxy.address, jpeg())
        servers[0].start_again()
        assert waiting.result(180)[0].result == CAPTION
    for said in (refused, refused_later):
        assert (said.status, said.headers["retry-after"]) == (503, "5")
        assert said.json()["detail"] == said.json()["error"]


def test_a_picture_too_large_to_be_held_is_answered_and_else_the_client_is_to_send_it_again(
    proxy: Proxy, servers: list[Server]
) -> None:
    large = jpeg() + bytes(LARGE)  # what follows a picture's end does no harm
    assert caption(proxy.address, large).json() == {"result": CAPTION}
    servers[0].daemon.stop(signal.SIGKILL)
    wait_for(lambda: not proxy.is_up("one"), what="HAProxy to notice")
    with held(servers[1]), asking(proxy.address, 1, servers[1:], large) as asked:
        servers[1].daemon.process.kill()
        said = asked[0].result(180)
    assert (said.status, said.headers["retry-after"]) == (503, "5")
    assert said.json()["detail"] == "the server died before it answered; send this again"


def test_a_client_that_hangs_up_leaves_the_queue_of_the_server(proxy: Proxy, servers: list[Server]) -> None:
    connections = []
    with held(*servers):
        for _ in range(2 * MAX_QUEUED):
            connections.append(HTTPConnection(proxy.address))
            connections[-1].request("POST", "/process_image?prompt=CAPTION", jpeg(), HEADERS)
        wait_for(
            lambda: sum(server.at_work() for server in servers) == len(connections), what="the servers to be asked"
        )
        assert sum(server.waiting() for server in servers) > 0
        for connection in connections:
            connection.close()
        wait_for(lambda: sum(server.waiting() for server in servers) == 0, what="the queues to be empty")


def test_token_and_host_reach_the_servers(proxy: Proxy) -> None:
    assert ask(proxy.address, "/model", Host=NAME).json() == "demo"
    assert ask(proxy.address, "/model", Host=NAME, Authorization="Bearer another").status == 401
    assert ask(proxy.address, "/model", Host="evil.example.com").status == 403
    assert ask(proxy.address, "/v1/models", Host=NAME).json()["data"][0]["id"] == "demo"


@pytest.mark.parametrize("path", ["/", "/status", "/overview", "/pictures", "/metrics", "/unload", "/v2", "/v1"])
def test_what_is_one_servers_own_is_not_to_be_had(proxy: Proxy, path: str) -> None:
    said = ask(proxy.address, path)
    assert said.status == 404
    assert "ask a server itself" in said.json()["detail"]
