"""Which pictures of a store lack which sidecars: told by listing its directories, without reading what is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from florence_daemon.cluster.addresses import Store, one_line
from florence_daemon.config import FolderConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import ConfigError, FlorenceError, PictureError, SidecarError
from florence_daemon.folders.inherited import MAX_BYTES
from florence_daemon.folders.names import SETTINGS_NAME, is_image_name
from florence_daemon.folders.needs import shared_sidecar
from florence_daemon.folders.scan import Listing
from florence_daemon.folders.sidecars import sidecar_path, stem_of
from florence_daemon.overrides import Override, Settings
from florence_daemon.queue import Image

Found = tuple[Image, FlorenceError | None]
"""A picture, and why it cannot have what it lacks."""


class Objects:
    """The pictures at one place in a store."""

    def __init__(
        self,
        store: Store,
        above: Settings,
        *,
        inherits: bool,
        rewrites: bool,
        on_unreadable: Callable[[OSError], None],
    ) -> None:
        """above: what counts where no `.florence.yaml` says otherwise; inherits: whether these are read.

        rewrites: what is there counts as not there.
        """
        self._store = store
        self._above = above
        self._inherits = inherits
        self._rewrites = rewrites
        self._on_unreadable = on_unreadable
        self.found = 0

    def images(self) -> Iterator[Found]:
        """The images that lack something; one directory is in memory at a time."""
        for listing, here in self._directories():
            yield from self._images_of(listing, here)

    def _directories(self) -> Iterator[tuple[Listing, Settings | ConfigError]]:
        """Each directory with what counts there, in the order of their names."""
        pending: list[tuple[str, Settings | ConfigError]] = [(self._store.path, self._above)]
        while pending:
            directory, above = pending.pop()
            try:
                listing, deeper = self._list(directory)
            except OSError as error:
                # Once it has a name, it tells nothing but this and that.
                error.strerror = error.strerror or one_line(error)
                error.filename = error.filename or self._store.address(directory)
                self._on_unreadable(error)
                continue
            here = self._settings(listing, above)
            yield listing, here
            pending.extend((each, here) for each in reversed(deeper))

    def _list(self, directory: str) -> tuple[Listing, list[str]]:
        if directory != self._store.path or self._store.look(directory).type.name != "File":
            return self._store.list(directory)
        parent, _, name = directory.rpartition("/")
        listing, _ = self._store.list(parent)
        return Listing(parent, (name,) if is_image_name(name) else (), listing.names), []

    def _settings(self, listing: Listing, above: Settings | ConfigError) -> Settings | ConfigError:
        """What counts in a directory; what is wrong with its file, or one above, where one is wrong."""
        if not self._inherits or SETTINGS_NAME not in listing.names or isinstance(above, ConfigError):
            return above
        path = f"{listing.directory}/{SETTINGS_NAME}"
        try:
            # Patterns count from the directory of the file, as those of a path.
            return Override(f"/{path}", self._store.read(path, MAX_BYTES)).over(above)
        except ConfigError as error:
            return ConfigError("; ".join(str(error).splitlines()).replace(f"/{path}", self._store.address(path)))
        except (OSError, PictureError) as error:
            return ConfigError(f"{self._store.address(path)}: cannot be read: {one_line(error)}")

    def _images_of(self, listing: Listing, here: Settings | ConfigError) -> Iterator[Found]:
        if isinstance(here, ConfigError):
            for name in listing.images:
                self.found += 1
                yield self._image(listing, name, self._above.outputs), here
            return
        stems: dict[str, list[str]] = defaultdict(list)
        for name in listing.names:
            if is_image_name(name) and here.takes(f"/{listing.directory}/{name}"):
                stems[stem_of(name)].append(name)
        for name in listing.images:
            if not here.takes(f"/{listing.directory}/{name}"):
                continue
            self.found += 1
            owner = min(stems[stem_of(name)])
            due = self._due(name, here.outputs, listing.names) if owner == name else here.outputs
            if due:
                image = self._image(listing, name, due)
                yield image, self._reason_against(image, name, owner)

    def _due(self, name: str, outputs: Collection[OutputConfig], names: Collection[str]) -> tuple[OutputConfig, ...]:
        return tuple(
            each for each in outputs if self._rewrites or sidecar_path(name, each, names.__contains__) not in names
        )

    def _image(self, listing: Listing, name: str, outputs: tuple[OutputConfig, ...]) -> Image:
        address = self._store.address(f"{listing.directory}/{name}")
        return Image(address, outputs, None, "always" if self._rewrites else "never")

    def _reason_against(self, image: Image, name: str, owner: str) -> FlorenceError | None:
        if owner != name:
            return shared_sidecar(name, owner, image.outputs)
        xmp = next((each for each in image.outputs if each.is_xmp), None)
        if xmp is not None:
            return SidecarError(f"{xmp.ending} is merged into files on disk; it cannot be written into a store")
        return None


def settings_of(
    store: Store, outputs: tuple[OutputConfig, ...], options: dict[str, object], fixed: Collection[str]
) -> Settings:
    """What counts at a place of a store unless a `.florence.yaml` says otherwise."""
    base = FolderConfig(path=Path(f"/{store.path}"), outputs=outputs, overwrite="never")
    return Settings(base, options=options, fixed=frozenset(fixed) | {"overwrite"})
