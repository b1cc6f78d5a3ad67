"""Another Florence Daemon, as one without a model of its own asks it."""

from __future__ import annotations

from collections.abc import Sequence

from florence_daemon import errors
from florence_daemon.connection import Connection, Response, error_text, pause_s
from florence_daemon.engine.protocol import Done
from florence_daemon.errors import (
    EngineError,
    FlorenceError,
    MalformedAsk,
    PictureError,
    PromptError,
    ServerError,
    UnreadablePicture,
)
from florence_daemon.exchange import (
    ERROR_HEADER,
    MEDIA_TYPE,
    PATH,
    Offer,
    Question,
    pack_question,
    unpack_answer,
    unpack_offer,
)
from florence_daemon.logs import printable

# Seconds within which a daemon says what it answers with, or that it lives; the model has no part in that.
SAY_S = 10.0
# What a picture or a question has to answer for itself; any other refusal is about the server.
OWN_ERRORS = (PictureError, PromptError, EngineError)


class Busy(ServerError):
    """The server has no place, or no time, for this now. after_s: when to ask again."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class Peer:
    """One server. Threads may share it."""

    def __init__(self, server: str, token: str | None = None, *, setting: str = "model.server") -> None:
        """setting: where the address was given. Raises: ServerError when it is no address."""
        self._connection = Connection(server, token, setting=setting)
        self.server = self._connection.server

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def offer(self) -> Offer:
        """What it answers with. Raises: ServerError; Unreachable, Busy for now."""
        response = self._checked(self._connection.send("GET", PATH, read_s=SAY_S))
        return unpack_offer(response.content, self.server)

    def ask(self, question: Question) -> tuple[Offer, Done]:
        """Its answers, and what it offers by then.

        Raises: PictureError, PromptError, EngineError (this picture alone failed); ServerError as `offer`.
        """
        pieces = pack_question(question)
        headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(sum(map(len, pieces)))}
        response = self._connection.send("POST", PATH, content=pieces, headers=headers)
        return unpack_answer(self._checked(response).content, self.server, question.asks)

    def load(self) -> None:
        """Have it load its model now. Raises: ServerError as `offer`."""
        self._checked(self._connection.send("POST", "/load", read_s=SAY_S))

    def is_alive(self) -> bool:
        """Tell whether it answers at all."""
        try:
            return self._connection.send("GET", "/health/live", read_s=SAY_S).is_success
        except ServerError:
            return False

    def _checked(self, response: Response) -> Response:
        if response.is_success:
            return response
        text, after_s = error_text(response), pause_s(response)
        kind = getattr(errors, response.headers.get(ERROR_HEADER, ""), None)
        if isinstance(kind, type) and issubclass(kind, OWN_ERRORS):
            raise kind(text)
        if kind is MalformedAsk:  # Each server would say so: it is about what is asked, not about who is asked.
            raise PromptError(f"{self.server} cannot be asked this: {text}")
        if response.status_code == 408:
            raise UnreadablePicture(
                f"it did not reach {self.server} in time: {text}; let it be less: model.send: resized"
            )
        if response.status_code == 413:
            raise PictureError(f"it cannot be sent to {self.server}: {text}; let it send less: model.send: resized")
        if response.status_code == 504 or (after_s is not None and not self._is_out_of_service(kind)):
            raise Busy(f"{self.server}: {text}", after_s or 1.0)
        raise ServerError(f"{self.server}: {self._said(response, text)}")

    @staticmethod
    def _is_out_of_service(kind: object) -> bool:
        """Whether a server that could be asked again says that another one had better be asked."""
        return kind in (errors.CheckpointError, errors.Stopping)

    @staticmethod
    def _said(response: Response, text: str) -> str:
        status = response.status_code
        if response.is_redirect:
            place = printable(response.headers.get("Location", "")[:200])
            return f"it sends to {place}, and is not followed there; give that address as model.server if it is right"
        if status == 401:
            return (
                "it wants its token (its server.token): give model.server_token, or FLORENCE_DAEMON_TOKEN with --server"
            )
        if status in (404, 405):
            return "it cannot be asked by another daemon; it is no Florence Daemon, or an older one: update it"
        return f"{status}: {text}"


def first_offer(servers: Sequence[str], token: str | None) -> Offer:
    """Ask one server after the other until one says what it answers with.

    Raises: ServerError when none does, with the reason of each.
    """
    reasons = []
    for server in servers:
        peer = Peer(server, token)
        try:
            return peer.offer()
        except FlorenceError as error:
            reasons.append(str(error))
        finally:
            peer.close()
    raise ServerError("; ".join(reasons))
