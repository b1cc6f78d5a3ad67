"""What other daemons ask, which have no model of their own: `GET /ask` says what there is, `POST /ask` answers."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from florence_daemon.exchange import MEDIA_TYPE, Offer, pack_answer, pack_offer, unpack_question
from florence_daemon.http.asking import Asking
from florence_daemon.http.places import Places
from florence_daemon.queue import Kind
from florence_daemon.tasks import find_task


class PeerResource:
    """`/ask`: a picture and all that is asked about it in, the answers and what decided them out."""

    def __init__(self, asking: Asking, places: Places, offer: Callable[[], Offer]) -> None:
        """offer: what this daemon answers with, now; raises PeerError where it has no model of its own."""
        self._asking = asking
        self._places = places
        self._offer = offer

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the offer; the model need not be loaded for it."""
        resp.media = pack_offer(self._offer())

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Wait for the answers and give them, with the offer as it is then."""
        with self._places.take():
            self._offer()
            kind = (req.content_type or "").partition(";")[0].strip().lower()
            if kind != MEDIA_TYPE:
                raise falcon.HTTPUnsupportedMediaType(description=f"Content-Type {kind or 'is missing'}: {MEDIA_TYPE}")
            asked = unpack_question(req.bounded_stream.read())
            for ask in asked.asks:
                find_task(ask.prompt, ask.text)  # here: no model need be loaded to say that there is no such task
            done = self._asking.ask(req, Kind.HTTP if asked.is_urgent else Kind.BACKFILL, asked.picture, asked.asks)
            resp.media = pack_answer(self._offer(), done)
