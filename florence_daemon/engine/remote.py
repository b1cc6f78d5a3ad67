"""The engine process that loads no model: it asks another daemon's, many questions at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from florence_daemon.connection import Unreachable
from florence_daemon.engine.parcel import resize
from florence_daemon.engine.patience import Patience
from florence_daemon.engine.preprocess import read_file
from florence_daemon.engine.protocol import (
    Alive,
    Ask,
    Begun,
    Done,
    EngineSettings,
    HasRead,
    Loaded,
    LoadFailed,
    Reply,
    Request,
    Resized,
    Source,
)
from florence_daemon.engine.work import failure
from florence_daemon.errors import FlorenceError, OtherSize, PictureError, ServerError
from florence_daemon.exchange import Offer, Question, pack_question
from florence_daemon.peer import Peer

# How JPEG and PNG begin, which every server reads: a small one is sent as it is, where it is smaller than its square.
READ_EVERYWHERE = (b"\xff\xd8\xff", b"\x89PNG")
# How a picture is called whose path is not known.
NAMELESS = "the picture"

# Seconds between two signs of life for the daemon, and between two looks whether a server that is at work lives.
ALIVE_S = 1.0
LOOK_S = 5.0
# A server that does not say for so long that it lives is gone: its machine sleeps, or the network is cut.
GONE_S = 30.0
# Seconds between two looks whether the server has loaded its model, where that must be known first.
LOADING_S = 0.5
# What a server may say that keeps it busy; 16 is what one with the usual `max_queued` says at most.
MOST_AT_ONCE = 64
# Pictures that are decoded at once, of those that are sent resized: each may take 600 MB for a moment.
READERS = 2


class Remote:
    """Asks one server, a thread for each request; how many there are at once is the daemon's decision.

    Whatever is the server's fault and lasts ends this process by a load that failed: what it had is the daemon's
    again, to be given to another or to wait. A picture's own errors are its own.
    """

    def __init__(self, settings: EngineSettings, reply: Callable[[Reply], None]) -> None:
        """reply: tells the daemon; threads share it."""
        self._settings = settings
        self._reply = reply
        self._lock = threading.Lock()
        self._side_lock = threading.Lock()  # one thread asks for the size, the others wait for it
        self._reading = threading.Semaphore(READERS)
        self._peer: Peer
        self._offer: Offer
        self._side_px: int | None = None
        self._under_way = 0
        self._has_left = False
        self._is_over = threading.Event()
        self._patience = Patience(str(settings.server), self._is_over)

    def open(self) -> bool:
        """Ask the server what it answers with, and tell the daemon; false when that failed, which is told too."""
        started_s = time.monotonic()
        try:
            self._peer = Peer(str(self._settings.server), self._settings.server_token)
            self._offer = self._peer.offer()
        except FlorenceError as error:
            self._reply(LoadFailed(str(error)))
            return False
        self._side_px = self._offer.side_px
        self._reply(
            Loaded(
                self._peer.server,
                time.monotonic() - started_s,
                self._at_once,
                side_px=self._offer.side_px,
                served=self._offer.served,
            )
        )
        return True

    @property
    def _at_once(self) -> int:
        """How many requests are worth having here; each is a thread, and a picture in memory."""
        return min(self._offer.at_once, MOST_AT_ONCE)

    def put(self, request: Request, reply: Callable[[Reply], None]) -> None:
        """Take a request, from any thread. reply: as at the start."""
        with self._lock:
            self._under_way += 1
        threading.Thread(target=self._answer, args=(request,), name="ask", daemon=True).start()

    def close(self) -> None:
        """Make `run` return; what is not answered is given up."""
        self._is_over.set()

    def run(self) -> None:
        """Show life, as long as the server does, until `close` or until it is gone."""
        threading.Thread(target=self._look_on, name="look", daemon=True).start()
        while not self._is_over.wait(ALIVE_S):
            if self._under_way:
                self._reply(Alive(in_flight=self._at_once))

    def _look_on(self) -> None:
        """Look whether the server lives, while it has something to do; a thread's whole job."""
        lived_s = time.monotonic()
        while not self._is_over.wait(LOOK_S):
            if not self._under_way or self._peer.is_alive():
                lived_s = time.monotonic()
            elif time.monotonic() - lived_s > GONE_S:
                self._leave(f"{self._peer.server}: it shows no life any more")

    def _leave(self, reason: str) -> None:
        """Give everything back, once."""
        with self._lock:
            if self._has_left or self._is_over.is_set():
                return
            self._has_left = True
        self._reply(LoadFailed(reason))
        self._is_over.set()  # last: the process ends upon it

    def _answer(self, request: Request) -> None:
        """Answer one request; a thread's whole job."""
        with suppress(BrokenPipeError):  # The daemon is gone.
            try:
                end: Reply = self._done(request)
            except BrokenPipeError:
                raise
            except ServerError as error:
                self._leave(str(error))
                return
            except Exception as error:  # Ended like one that a model fails on.
                end = failure(request.id, error)
            with self._lock:
                self._under_way -= 1
            self._reply(end)

    def _done(self, request: Request) -> Done:
        asks = tuple(self._with_settings(ask) for ask in request.asks)
        side_px = self._known_side_px() if self._settings.sends_resized else None
        self._reply(Begun(request.id))
        started_s = time.monotonic()
        picture, content = self._parcel(request.picture, asks, side_px)
        decode_s = time.monotonic() - started_s
        self._reply(HasRead(request.id))
        try:
            done = self._ask(Question(picture, asks, request.urgent))
        except OtherSize:  # The server has another model by now; it resizes the whole picture as it likes.
            self._side_px = None
            picture, content = self._parcel(request.picture, asks, None)
            done = self._ask(Question(picture, asks, request.urgent))
        except PictureError as error:
            raise type(error)(_with_name(str(error), request.picture)) from None
        stages = replace(done.stages, decode_s=done.stages.decode_s + decode_s)
        return replace(done, id=request.id, stages=stages, content=content)

    def _with_settings(self, ask: Ask) -> Ask:
        """Say what counts here where an ask says nothing: the server may have other settings."""
        beams = ask.num_beams or (1 if ask.temperature else self._settings.num_beams)
        return replace(ask, num_beams=beams, max_new_tokens=ask.max_new_tokens or self._settings.max_new_tokens)

    def _parcel(
        self, picture: Source, asks: tuple[Ask, ...], side_px: int | None
    ) -> tuple[bytes | Resized, bytes | None]:
        """The picture as it is sent, and the digest of its file. side_px: None sends the file as it is, if it may."""
        if isinstance(picture, Resized):
            return picture, None
        most_bytes = self._offer.max_body_bytes - len(pack_question(Question(b"", asks))[0])
        if side_px is None:
            content, digest = _whole(picture, most_bytes)
            if content is not None:
                return content, digest
            side_px = self._known_side_px()  # It is larger than the server takes; what its model sees of it is not.
        if side_px is None:
            name = picture if isinstance(picture, str) else NAMELESS
            raise PictureError(f"{name} is larger than {self._peer.server} takes, its server.max_body_mb")
        with self._reading:
            resized, digest = resize(picture, side_px, self._offer.served.fast_decode)
        content, digest_of_whole = _whole(picture, min(most_bytes, len(resized.content)))
        if content is not None and content.startswith(READ_EVERYWHERE):
            return content, digest_of_whole
        return resized, digest

    def _known_side_px(self) -> int | None:
        """The size that the server's model sees; it is loaded for that where it must be.

        None where it may not be loaded, as behind a proxy: the first answer tells. Raises: ServerError.
        """
        with self._side_lock:
            while self._side_px is None:
                try:  # each time: a daemon that was started anew meanwhile knows nothing of it
                    self._patience.ask(self._peer.load)
                except Unreachable:
                    raise
                except ServerError:
                    return None
                self._patience.pause(LOADING_S)
                self._take_offer(self._patience.ask(self._peer.offer))
                if self._side_px is None and self._offer.error is not None:
                    raise ServerError(f"{self._peer.server}: {self._offer.error}")
            return self._side_px

    def _ask(self, question: Question) -> Done:
        offer, done = self._patience.ask(lambda: self._peer.ask(question))
        self._take_offer(offer)
        return done

    def _take_offer(self, offer: Offer) -> None:
        """Take what the server offers by now. Raises: ServerError when it has another model, which is begun anew."""
        if offer.served != self._offer.served:
            raise ServerError(f"{self._peer.server}: its model has changed to {offer.served.name}")
        self._offer = offer
        self._side_px = offer.side_px or self._side_px


def _whole(picture: str | bytes, most_bytes: int) -> tuple[bytes | None, bytes | None]:
    """The file as it is, None where it is larger; and its digest. Raises: PictureError."""
    if isinstance(picture, str):
        return read_file(picture, most_bytes)
    return (picture if len(picture) <= most_bytes else None), None


def _with_name(text: str, picture: Source) -> str:
    """The server knows no path: put it where an engine of our own would have said it."""
    if isinstance(picture, str) and text.startswith(NAMELESS):
        return picture + text.removeprefix(NAMELESS)
    return text
