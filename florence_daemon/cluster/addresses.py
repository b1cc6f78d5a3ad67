"""Addresses of pictures: folders that every machine sees, and places in object stores, through pyarrow or fsspec."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from florence_daemon.errors import PictureError, UsageError
from florence_daemon.folders.atomic import PREFIX
from florence_daemon.folders.names import is_directory_name, is_image_name
from florence_daemon.folders.scan import Listing

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

# Two letters at least: C:\ is a drive.
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# name:password@ before the machine's name; host:22/me@home is none.
PASSWORD = re.compile(r"(://[^/:@\s]+):(?!\d+/)[^@\s]*@")
# What pyarrow takes behind an address, as in ?region=eu-west-1&scheme=http; any other ? belongs to a name.
OPTIONS = re.compile(r"\?[a-z_]+=[^/?#&]*(?:&[a-z_]+=[^/?#&]*)*\Z")
# What is written here appears whole or not at all; elsewhere a file is written under another name first.
WHOLE = ("s3", "gcs", "abfs", "py::fsspec+s3", "py::fsspec+gcs", "py::fsspec+abfs")
# No picture is larger, and all of a batch are in memory at once.
MOST_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Store:
    """A place in a store, as `s3://bucket/photos` names it.

    files: pyarrow's way to the store; it travels to other machines. path: the place in it. prefix: what makes an
    address of a path, `s3://`.
    """

    files: FileSystem
    path: str
    prefix: str

    def address(self, path: str) -> str:
        """What people call a path in the store."""
        return self.prefix + path

    def path_of(self, address: str) -> str:
        """The path in the store of what people call so."""
        return address.removeprefix(self.prefix)

    def look(self, path: str) -> FileInfo:
        """What is there, with its size and date. Raises: OSError."""
        return self.files.get_file_info(path)

    def list(self, directory: str) -> tuple[Listing, list[str]]:
        """What one directory holds, and those in it that are looked into. Raises: OSError."""
        from pyarrow.fs import FileSelector, FileType

        found = self.files.get_file_info(FileSelector(directory, recursive=False, allow_not_found=True))
        names = [each.base_name for each in found]
        images = [each.base_name for each in found if each.type == FileType.File and is_image_name(each.base_name)]
        deeper = [each.path for each in found if each.type == FileType.Directory and is_directory_name(each.base_name)]
        return Listing(directory, tuple(sorted(images)), frozenset(names)), sorted(deeper)

    def read(self, path: str, at_most_bytes: int = MOST_BYTES) -> bytes:
        """The bytes of a file. Raises: OSError, PictureError for a larger one."""
        with self.files.open_input_stream(path) as stream:
            content: bytes = stream.read(at_most_bytes + 1)
        if len(content) > at_most_bytes:
            raise PictureError(f"{self.address(path)}: is larger than {at_most_bytes:,} bytes")
        return content

    def write(self, path: str, content: bytes) -> None:
        """Put a file there, whole or not at all. Raises: OSError."""
        if self.files.type_name in WHOLE:
            self._put(path, content)
            return
        directory, _, _ = path.rpartition("/")
        temporary = f"{directory}/{PREFIX}{secrets.token_hex(6)}-{os.getpid()}"
        try:
            self._put(temporary, content)
            self.files.move(temporary, path)
        except BaseException:
            _remove(self.files, temporary)
            raise

    def make_directory(self) -> None:
        """Make the place; object stores have no directories, only names. Raises: OSError."""
        if self.files.type_name not in WHOLE:
            self.files.create_dir(self.path, recursive=True)

    def _put(self, path: str, content: bytes) -> None:
        with self.files.open_output_stream(path) as stream:
            stream.write(content)


@dataclass(frozen=True)
class Folder:
    """A folder or picture that every machine sees at this same path: a shared file system, or one machine alone."""

    path: Path


Tree = Store | Folder


def is_address(text: str) -> bool:
    """Tell whether it is no path of this machine: `s3://bucket/photos`."""
    return SCHEME.match(text) is not None


def open_trees(addresses: Sequence[str]) -> list[Tree]:
    """Where the pictures are; nothing is listed yet.

    Raises: PictureError when one is not there, or cannot be reached; UsageError without pyarrow.
    """
    return [_open_tree(address) for address in addresses]


def _open_tree(address: str) -> Tree:
    path = _path_here(address)
    if path is not None:
        return _folder(path)
    store = open_store(address)
    kind = _asking(address, lambda: store.look(store.path)).type.name
    if kind == "NotFound":
        raise PictureError(f"{without_password(address)}: there is no such picture or folder")
    return store


def _path_here(address: str) -> Path | None:
    """The path that an address is, if it is one of this machine's."""
    if not is_address(address):
        return Path(address)
    return Path(url2pathname(urlsplit(address).path)) if address.lower().startswith("file://") else None


def _folder(path: Path) -> Folder:
    if not path.exists():
        raise PictureError(f"{path}: there is no such file or folder")
    if path.is_file() and not is_image_name(path.name):
        raise PictureError(f"{path}: this is not a picture's name; give pictures or folders of pictures")
    return Folder(path.absolute())


def open_store(address: str) -> Store:
    """The store of an address, or a folder as one: s3 and gs through pyarrow, others through fsspec if that knows them.

    Raises: PictureError when it cannot be reached; UsageError without pyarrow.
    """
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.fs import FileSystem, LocalFileSystem
    except ModuleNotFoundError as error:
        raise missing(f"{without_password(address)}: reading this", error) from None
    here = _path_here(address)
    if here is not None:
        return Store(LocalFileSystem(), here.absolute().as_posix(), "")

    def open_it() -> tuple[FileSystem, str]:
        try:
            return FileSystem.from_uri(_as_uri(address))
        except ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            return _through_fsspec(address)

    files, path = _asking(address, open_it)
    path = path.rstrip("/")
    return Store(files, path, _prefix(without_password(address), path))


def _as_uri(address: str) -> str:
    """An address as pyarrow reads it: in a URI a space, a # and the like are written otherwise than in names."""
    options = OPTIONS.search(address)
    end = options.start() if options else len(address)
    scheme, _, rest = address[:end].partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority}{slash}{quote(path)}{address[end:]}"


def _prefix(address: str, path: str) -> str:
    """What comes before a path of the store in an address; the machine too, where that is no part of the path."""
    scheme = address[: address.index("://") + 3]
    machine = address.rstrip("/").removesuffix(path)
    return machine if path.startswith("/") and machine.startswith(scheme) else scheme


def without_password(text: str) -> str:
    """The same, with no password or secret key in an address that it holds; messages go to logs."""
    return PASSWORD.sub(r"\1:***@", text)


def missing(what: str, error: ModuleNotFoundError) -> UsageError:
    """The error for a library that is not installed."""
    return UsageError(f'{what} needs {error.name}, which is not installed: pip install "florence-daemon[ray]"')


def one_line(error: BaseException) -> str:
    """What an error says, in one line: stores and Ray say much in many."""
    return " ".join(str(error).split()) or type(error).__name__


def _through_fsspec(address: str) -> tuple[FileSystem, str]:
    from fsspec.core import url_to_fs
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    files, path = url_to_fs(address)
    return PyFileSystem(FSSpecHandler(files)), path


def _asking(address: str, ask: Callable[[], Any]) -> Any:
    """Raises: PictureError with what the store says, in one line."""
    try:
        return ask()
    except (OSError, ValueError, ImportError) as error:
        said = one_line(error).replace(_as_uri(address), address)
        raise PictureError(without_password(f"{address}: cannot be reached: {said}")) from None


def _remove(files: FileSystem, path: str) -> None:
    try:
        files.delete_file(path)
    except OSError:
        return
