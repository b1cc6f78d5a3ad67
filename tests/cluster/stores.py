"""An S3 server on this machine, and the settings with which pyarrow finds it."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server. environment: what a program needs to reach it."""

    url: str
    name: str

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    @property
    def address(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes) -> None:
        with self._files().open_output_stream(f"{self.name}/{key}") as stream:
            stream.write(content)

    def get(self, key: str) -> bytes:
        with self._files().open_input_stream(f"{self.name}/{key}") as stream:
            return bytes(stream.read())

    def list(self) -> list[str]:
        """The keys of all that is in it."""
        from pyarrow.fs import FileSelector, FileType

        found = self._files().get_file_info(FileSelector(self.name, recursive=True))
        return sorted(each.path.partition("/")[2] for each in found if each.type == FileType.File)

    def _files(self) -> Any:
        from pyarrow.fs import S3FileSystem

        keys = {"access_key": "test", "secret_key": "test", "region": "us-east-1"}
        return S3FileSystem(**keys, endpoint_override=self.url)


@contextmanager
def serve(name: str = "pictures") -> Iterator[Bucket]:
    """A server with one bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    bucket = Bucket(f"http://{host}:{port}", name)
    try:
        # What it keeps is the process's, not the server's.
        _ask(f"{bucket.url}/moto-api/reset", "POST")
        _ask(f"{bucket.url}/{name}", "PUT")
        yield bucket
    finally:
        server.stop()


def _ask(url: str, method: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60).close()
