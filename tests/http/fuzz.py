"""Requests that nobody should send: an endless, repeatable stream of them, and what may come back.

Shared by the tests (some hundreds) and by the soak (10,000). Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

PATHS = (
    *("/process_image", "/model", "/prompts", "/status", "/health/live", "/health/ready", "/openapi.json"),
    *(
        "/v1/models",
        "/v1/models/",
        "/v1/models/%ff",
        "/v1/chat/completions",
        "/metrics",
        "/ping",
        "/load",
        "/unload",
        "/ask",
    ),
    *("/retry", "/forget", "/rescan", "/", "/nothing", "//model", "/../etc/passwd", "/%2e%2e/%00", "/%ff%fe", "*"),
)
METHODS = (
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "BREW",
    "get",
    "G\0T",
    "",
    "PRI",
)
PROMPTS: tuple[Any, ...] = (
    "<CAPTION>",
    "caption",
    "<OD> cat",
    "<REGION_TO_OCR>",
    "DESCRIBE",
    "",
    "<",
    "\ud800",
    "\0",
    "é" * 3,
    None,
    7,
    [],
    {},
)
JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    10**400,
    "",
    "x",
    "\ud800\udfff",
    "\0",
    [],
    {},
    [[]],
    {"image": {}},
    "a" * 5000,
)


@dataclass(frozen=True)
class Case:
    """Bytes to send as they are. is_whole: the server must answer; else it may wait, and then close without a word."""

    kind: str
    raw: bytes
    is_whole: bool = True


def cases(seed: int) -> Iterator[Case]:
    """Every kind of bad request in turn, each time another one; the same seed gives the same."""
    chance = random.Random(seed)
    while True:
        for make in MAKERS:
            yield make(chance)


def send(address: tuple[str, int], case: Case, timeout_s: float = 120.0) -> list[int]:
    """Send a case on a connection of its own; return the statuses of all answers, in order.

    Raises: TimeoutError when a whole request gets neither an answer nor an end.
    """
    with socket.create_connection(address, timeout_s) as client:
        with contextlib.suppress(ConnectionError):  # It may be refused before it is out.
            client.sendall(case.raw)
        if not case.is_whole:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
        return _read_statuses(client, case)


def is_fair(case: Case, statuses: list[int]) -> bool:
    """Tell whether these answers are right: never the server's fault, and one to each request that is whole."""
    if any(status >= 500 or status < 200 for status in statuses):
        return False
    return bool(statuses) or not case.is_whole


def _read_statuses(client: socket.socket, case: Case) -> list[int]:
    """Read the answers until the server closes, or, where it keeps the connection, until the first one is whole."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := client.recv(65536):
            received += chunk
            if _has_first_answer(received, case):
                break
    lines = [line for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.")]
    return [int(line.split()[1]) for line in lines]


def _has_first_answer(received: bytes, case: Case) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or head.startswith(b"HTTP/1.1 100") or b"connection: close" in head.lower():
        return False
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    has_body = bool(lengths) and not case.raw.startswith(b"HEAD ")
    return not has_body or len(body) >= int(lengths[0].partition(b":")[2])


def _head(chance: random.Random, length: int, kind: str = "application/json", path: str = "/process_image") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {length}"]
    if chance.random() < 0.3:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _json_body(chance: random.Random, members: object, path: str = "/process_image") -> bytes:
    body = json.dumps(members).encode()
    return _head(chance, len(body), path=path) + body


def _first_line(chance: random.Random) -> Case:
    method, path = chance.choice(METHODS), chance.choice(PATHS)
    version = chance.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/9.9", "HTTP/1.1 x", "", "\xff"])
    line = f"{method} {path}{chance.choice(['', '?prompt=%zz', '?' + 'a=&' * 99, '#x'])} {version}"
    return Case("first line", line.encode("latin-1") + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")


def _address(chance: random.Random) -> Case:
    hosts = ["http://[::1", "http://evil.example", "//[", "http://localhost:99999999999", "localhost:80", "http://\xff"]
    return Case("address", f"GET {chance.choice(hosts)}/model HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1"))


def _headers(chance: random.Random) -> Case:
    odd = [
        *("Host: evil.example", "Host:", "Host: [", "Origin: null", "Origin: http://[", "Sec-Fetch-Site: cross-site"),
        *("Authorization: Bearer \xff", "Authorization", ": x", " folded", "A b: c", "X: \0", "X: \x0b", "X: \r"),
        *("Content-Length: -1", "Content-Length: 1e3", "Content-Length: 0x10", "Content-Length: " + "9" * 5000),
        *("Content-Length: 1\r\nContent-Length: 2", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked, identity"),
        *(
            "Transfer-Encoding: \x0bchunked",
            "Transfer_Encoding: chunked",
            "Expect: the impossible",
            "X: " + "y" * 40000,
        ),
        *(
            "Connection: upgrade\r\nUpgrade: h2c",
            "Content-Type: \xff",
            "Range: bytes=0-",
            "X-Forwarded-Host: a",
            "Cookie: \0",
        ),
    ]
    lines = ["GET /model HTTP/1.1", "Host: localhost", *chance.sample(odd, chance.randint(1, 3)), "Connection: close"]
    return Case("headers", "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n", is_whole=False)


def _both_framings(chance: random.Random) -> Case:
    head = b"POST /process_image HTTP/1.%d\r\nHost: localhost\r\nContent-Type: image/png\r\n" % chance.choice([0, 1])
    framings = [b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"]
    chance.shuffle(framings)
    body = b"0\r\n\r\nGET /model HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return Case("both framings", head + b"".join(framings) + b"Connection: close\r\n\r\n" + body)


def _chunks(chance: random.Random) -> Case:
    head = b"POST /process_image?prompt=CAPTION HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    bodies = [
        *(
            b"4\r\nabcd\r\n0\r\n\r\n",
            b"4\r\nabcdXX",
            b"g\r\nx",
            b"-1\r\n",
            b'4;x="\r\nabcd\r\n0\r\n\r\n',
            b"0x4\r\nabcd",
        ),
        *(
            b"f" * 100 + b"\r\n",
            b"4\r\nab",
            b"\r\n\r\n\r\n",
            b"1\r\nx\r\n" * 30_000,
            b"0\r\nX: y\r\n\r\n",
            b"4\nabcd\n0\n\n",
        ),
    ]
    return Case("chunks", head + b"Transfer-Encoding: chunked\r\n\r\n" + chance.choice(bodies), is_whole=False)


def _broken_json(chance: random.Random) -> Case:
    text = json.dumps({"image": "AAAA", "prompt": "<CAPTION>"}).encode()
    depth = chance.choice([100, 9_000, 200_000])
    body = chance.choice(
        [
            *(text[: chance.randrange(len(text))], text + text, b"\xff" + text, text.decode().encode("utf-16"), b"NaN"),
            *(b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth, b'{"image": ' + b"9" * 9_000 + b"}"),
            *(
                b'{"image": "\\ud800", "prompt": "\\udfff"}',
                b'"' + b"\\u0000" * 99 + b'"',
                b"\0" * 99,
                b"\xef\xbb\xbf{}",
            ),
        ]
    )
    return Case("broken JSON", _head(chance, len(body)) + body)


def _odd_json(chance: random.Random) -> Case:
    members = {"image": base64.b64encode(chance.randbytes(20)).decode(), "prompt": chance.choice(PROMPTS)}
    names = ["image", "prompt", "prompts", "text", "num_beams", "max_new_tokens", "priority", "keep_alive", "é"]
    members |= {chance.choice(names): chance.choice(JSON_VALUES) for _ in range(chance.randint(1, 4))}
    return Case("odd JSON", _json_body(chance, members))


def _odd_chat(chance: random.Random) -> Case:
    url = "data:image/png;base64," + base64.b64encode(chance.randbytes(20)).decode()
    picture: Any = {"type": "image_url", "image_url": {"url": url}}
    parts: list[Any] = [{"type": "text", "text": chance.choice(PROMPTS)}, picture]
    chance.choice(parts)[chance.choice(["type", "text", "image_url"])] = chance.choice(JSON_VALUES)
    message = {"role": "user", "content": parts}
    message |= {chance.choice(["role", "content", "name"]): chance.choice(JSON_VALUES)}
    names = ["messages", "model", "n", "stream", "stream_options", "temperature", "top_p", "seed", "stop", "tools"]
    members = {"messages": [message], chance.choice(names): chance.choice(JSON_VALUES)}
    return Case("odd chat", _json_body(chance, members, "/v1/chat/completions"))


def _odd_ask(chance: random.Random) -> Case:
    ask: Any = {"prompt": chance.choice(PROMPTS), "text": None, "temperature": 0.0, "top_p": 1.0, "seed": None}
    ask |= dict.fromkeys(("num_beams", "max_new_tokens", "no_repeat_ngram_size"))
    line: Any = {"version": 1, "urgent": False, "size_px": None, "asks": [ask]}
    odd = chance.choice([ask, line, line])
    odd[chance.choice([*odd, "more"])] = chance.choice(JSON_VALUES)
    bodies = [
        json.dumps(line).encode() + b"\n" + chance.randbytes(20),
        json.dumps(line).encode(),
        b"[" * 99_000 + b"\n",
    ]
    body = chance.choice([bodies[0], *bodies])
    return Case("odd ask", _head(chance, len(body), "application/octet-stream", "/ask") + body)


def _odd_base64(chance: random.Random) -> Case:
    good = base64.b64encode(chance.randbytes(30)).decode()
    prefixes = ["data:image/png;base64,", "data:,", "data:image/png;base64;base64,", "https://x/", "file:///"]
    image = chance.choice(
        [
            good[:-1],
            good + "=",
            "=" + good,
            good.replace("A", "-"),
            chance.choice(prefixes) + good,
            "é" + good,
            "\n" * 999,
        ]
    )
    return Case("odd base64", _json_body(chance, {"image": image, "prompt": "CAPTION"}))


def _odd_form(chance: random.Random) -> Case:
    boundary = chance.choice(["x", "", "x" * 200, '"x', "é", "x; charset=utf-99"])
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    fields = [b"image", b"prompt", b"num_beams", b"text", b"\xff\xfe", b'"', b"", b"prompt"]
    values = [b"CAPTION", b"\xff\xfe", b"", b"3" * 99, b"--x--", b"\r\n" * 9, b"x" * 99_000]
    parts = b"".join(part % (chance.choice(fields), chance.choice(values)) for _ in range(chance.randint(0, 90)))
    body = chance.choice(
        [parts + b"--x--\r\n", parts, parts[: len(parts) // 2], b"--x", b"", b"--x--", b"\r\n--x\r\n\r\n--x--"]
    )
    return Case("odd form", _head(chance, len(body), f"multipart/form-data; boundary={boundary}") + body)


def _odd_type(chance: random.Random) -> Case:
    kinds = [
        "",
        "text/plain",
        "application/xml",
        "image/",
        "image/svg+xml",
        "*/*",
        "application/x-www-form-urlencoded",
        ";",
    ]
    query = chance.choice(
        ["", "?prompt=CAPTION", "?prompt=%ff", "?prompt=&prompt=", "?num_beams=0&prompt=OD", "?prompt=OD%00"]
    )
    body = chance.randbytes(chance.randint(0, 99))
    return Case("odd type", _head(chance, len(body), chance.choice(kinds), "/process_image" + query) + body)


def _odd_action(chance: random.Random) -> Case:
    paths = ["", "relative", "/\0", "/\ud800", "/nowhere", "/" * 5000, "~", "C:\\x", *JSON_VALUES]
    members = chance.choice([{"path": chance.choice(paths)}, {"paht": "/x"}, [], "x", 1])
    return Case("odd action", _json_body(chance, members, chance.choice(["/retry", "/forget", "/rescan"])))


def _cut_short(chance: random.Random) -> Case:
    whole = _json_body(chance, {"image": "A" * 400, "prompt": "<CAPTION>"})
    return Case("cut short", whole[: chance.randrange(1, len(whole))], is_whole=False)


def _noise(chance: random.Random) -> Case:
    raw = chance.choice(
        [chance.randbytes(300), b"\x16\x03\x01\x02\x00\x01\x00", b"\r\n" * 50, b"\0" * 300, b"SSH-2.0-x\r\n"]
    )
    return Case("noise", raw, is_whole=False)


def _mutated(chance: random.Random) -> Case:
    raw = bytearray(_json_body(chance, {"image": "AAAA", "prompt": "<CAPTION>"}))
    for _ in range(chance.randint(1, 5)):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return Case("mutated", bytes(raw), is_whole=False)


MAKERS: tuple[Callable[[random.Random], Case], ...] = (
    *(_first_line, _address, _headers, _both_framings, _chunks, _broken_json, _odd_json, _odd_base64),
    _odd_chat,
    _odd_ask,
    *(_odd_form, _odd_type, _odd_action, _cut_short, _noise, _mutated),
)
