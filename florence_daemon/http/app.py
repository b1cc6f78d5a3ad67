"""The WSGI application: routes to resources, and every error to one form."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import falcon
import falcon.media

from florence_daemon import errors, exchange
from florence_daemon.http.actions import Actions, ForgetResource, RescanResource, RetryResource
from florence_daemon.http.asking import Asking
from florence_daemon.http.chat_request import Fetch
from florence_daemon.http.contract import error_body, to_json
from florence_daemon.http.health import LiveResource, PingResource, Readiness, ReadyResource, StatusResource
from florence_daemon.http.metrics import MetricsResource
from florence_daemon.http.openai import HEADERS, ChatResource, ModelsResource
from florence_daemon.http.openapi import OpenApiResource
from florence_daemon.http.page import OverviewResource, PageResource, TasksResource
from florence_daemon.http.peer import PeerResource
from florence_daemon.http.pictures import CaptionResource, Gallery, PictureResource, PicturesResource, ThumbnailResource
from florence_daemon.http.places import RETRY_AFTER_S, Places
from florence_daemon.http.residence import LoadResource, Residence, UnloadResource
from florence_daemon.http.vision import ModelResource, ProcessImageResource, PromptsResource
from florence_daemon.queue import JobQueue
from florence_daemon.tally import Reading

log = logging.getLogger(__name__)

# Where requests wait for the model, each in a place of its own.
QUEUED_PATHS = ("/process_image", "/v1/chat/completions", exchange.PATH)

# Domain errors as HTTP errors, most special first, with seconds for Retry-After where trying again helps.
STATUSES: tuple[tuple[type[errors.FlorenceError], Callable[..., falcon.HTTPError], int | None], ...] = (
    (errors.PromptError, falcon.HTTPBadRequest, None),
    (errors.PictureError, falcon.HTTPBadRequest, None),
    (errors.UnknownPath, falcon.HTTPNotFound, None),
    (errors.SidecarChanged, falcon.HTTPConflict, None),
    (errors.FolderBlocked, falcon.HTTPServiceUnavailable, 30),
    (errors.QueueFull, falcon.HTTPServiceUnavailable, RETRY_AFTER_S),
    (errors.Stopping, falcon.HTTPServiceUnavailable, 10),
    (errors.CheckpointError, falcon.HTTPServiceUnavailable, 30),
    (errors.MalformedAsk, falcon.HTTPBadRequest, None),
    (errors.PeerError, falcon.HTTPConflict, None),
    (errors.EngineCrashed, falcon.HTTPUnprocessableEntity, None),  # three times, with nothing else at work
    (errors.FlorenceError, falcon.HTTPInternalServerError, None),
)


def create_app(
    *,
    queue: JobQueue,
    places: Places,
    model_name: Callable[[], str],
    request_timeout_s: float,
    status: Callable[[], dict[str, Any]],
    overview: Callable[[], dict[str, Any]],
    readiness: Callable[[], Readiness],
    reading: Callable[[], Reading],
    actions: Actions,
    gallery: Gallery,
    residence: Residence,
    offer: Callable[[], exchange.Offer],
    fetch: Fetch | None = None,
    allowed_origins: Collection[str] = (),
) -> falcon.App[Any, Any]:
    """Wire the resources to what they need. reading: everything that is measured. offer: see `PeerResource`.

    fetch: see `ChatResource`.
    """
    cors: Any = falcon.CORSMiddleware(allowed_origins, expose_headers=HEADERS) if allowed_origins else None
    asking = Asking(queue, residence.keep_alive, request_timeout_s)
    app: falcon.App[Any, Any] = falcon.App(middleware=cors)
    app.set_error_serializer(_serialize)
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = falcon.media.JSONHandler(dumps=to_json)
    app.add_error_handler(Exception, _unforeseen)
    app.add_error_handler(errors.FlorenceError, _translate)
    app.req_options.keep_blank_qs_values = True
    app.add_route("/model", ModelResource(model_name))
    app.add_route("/prompts", PromptsResource())
    app.add_route("/process_image", ProcessImageResource(asking, places))
    models = ModelsResource(model_name)
    app.add_route("/v1/models", models)
    app.add_route("/v1/models/{name:path}", models, suffix="one")
    app.add_route("/v1/chat/completions", ChatResource(asking, places, model_name, fetch))
    app.add_route(exchange.PATH, PeerResource(asking, places, offer))
    app.add_route("/ping", PingResource())
    app.add_route("/health/live", LiveResource())
    app.add_route("/health/ready", ReadyResource(readiness))
    app.add_route("/status", StatusResource(status))
    app.add_route("/metrics", MetricsResource(reading))
    app.add_route("/load", LoadResource(residence))
    app.add_route("/unload", UnloadResource(residence))
    app.add_route("/retry", RetryResource(actions))
    app.add_route("/forget", ForgetResource(actions))
    app.add_route("/rescan", RescanResource(actions))
    app.add_route("/openapi.json", OpenApiResource(model_name))
    page = PageResource()
    app.add_route("/", page)
    app.add_route("/page/{name}", page)
    app.add_route("/overview", OverviewResource(overview))
    app.add_route("/tasks", TasksResource())
    app.add_route("/pictures", PicturesResource(gallery))
    app.add_route("/pictures/{id}", PictureResource(gallery))
    app.add_route("/pictures/{id}/thumbnail", ThumbnailResource(gallery))
    app.add_route("/pictures/{id}/caption", CaptionResource(gallery))
    return app


def _serialize(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    resp.content_type = falcon.MEDIA_JSON
    text = error.description or error.title or str(error.status)
    param, code = getattr(error, "param", None), getattr(error, "code_name", None)
    resp.data = error_body(text, req.path, error.status_code, param, code)


def _translate(req: falcon.Request, resp: falcon.Response, error: errors.FlorenceError, params: Any) -> None:
    """Raise the HTTP error that a domain error stands for."""
    kind, retry_after_s = next((http, after_s) for domain, http, after_s in STATUSES if isinstance(error, domain))
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    if req.path == exchange.PATH:  # The daemon that asks gives it to its own clients, or lists it.
        raise kind(description=str(error), headers=headers | {exchange.ERROR_HEADER: type(error).__name__})
    raise kind(description=_describe(error), headers=headers)


def _describe(error: errors.FlorenceError) -> str:
    text = str(error)
    if isinstance(error, errors.PictureError) and not text.startswith("Invalid image data"):
        return f"Invalid image data: {text}"
    if isinstance(error, errors.EngineError):
        return f"Error processing image: {text}"
    return text


def _unforeseen(req: falcon.Request, resp: falcon.Response, error: Exception, params: Any) -> None:
    """Log what nobody foresaw, once, with its traceback; the client gets no internals."""
    if isinstance(error, falcon.HTTPError | falcon.HTTPStatus):
        raise error
    log.exception("%s %s failed", req.method, req.path)
    raise falcon.HTTPInternalServerError(description=f"Error processing image: {type(error).__name__}; see the log")
