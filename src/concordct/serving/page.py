"""The page: what waits, what runs, what failed and why; before and after of each series; metrics and health.

Everything is served from here, under a content security policy that allows nothing else; `access.py` says to whom.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from jinja2 import Environment, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.serving import views
from concordct.serving.access import COOKIE, SESSION_S, Access, Session, may
from concordct.serving.config import Page
from concordct.serving.log import say
from concordct.serving.stow import store

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_ASSETS = {"service.css": "text/css", "service.js": "text/javascript"}
#: A form holds a token or a name, never more.
_FORM_BYTES = 4096
#: News go out at most so often, and a sign of life at least so often, s.
_NEWS_S, _ALIVE_S = 0.5, 15.0


class _Strict:
    """Headers that forbid, on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode())
                    for name, value in {**_HEADERS, "content-security-policy": POLICY}.items()
                    if name.encode() not in present
                ]
            await send(message)

        await self._app(scope, receive, sent if scope["type"] == "http" else send)


class PageServer(threading.Thread):
    """The page of a service, on a thread of its own.

    Parameters
    ----------
    service : what it shows; its queue, inbox, metrics, health and configuration are read.
    """

    def __init__(self, service: Any, page: Page) -> None:
        super().__init__(name="page", daemon=True)
        self._service, self._page = service, page
        self._access = Access(page)
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(_asset("page.html.j2"))
        self._login = environment.from_string(_asset("login.html.j2"))
        settings = uvicorn.Config(
            self.application(), host=page.host, port=page.port, log_config=None, access_log=False, lifespan="off",
            server_header=False, date_header=False, timeout_keep_alive=5, limit_concurrency=64,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._failed: str | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ConcordctError : the address is taken or not ours.
        """
        super().start()
        while not self._server.started:
            if not self.is_alive():
                where = f"{self._page.host}:{self._page.port}"
                raise ConcordctError(f"{where}: expected an address for the page to listen at, found it taken")
            time.sleep(0.01)
        say("page", host=self._page.host, port=self._page.port)

    def run(self) -> None:
        with contextlib.suppress(SystemExit):
            self._server.run()

    def stop(self) -> None:
        """Close it; streams of news end."""
        self._server.should_exit = self._server.force_exit = True
        self.join(timeout=5)

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/", self._index),
                Route("/login", self._log_in, methods=["POST"]),
                Route("/logout", self._log_out, methods=["POST"]),
                Route("/events", self._events),
                Route("/series/{series}/view", self._view),
                Route("/series/{series}/requeue", self._requeue, methods=["POST"]),
                Route("/assets/{name}", self._asset),
                Route("/favicon.ico", self._no_icon),
                Route("/metrics", self._metrics),
                Route("/healthz", self._health),
                Route("/dicom-web/studies", self._store, methods=["POST"]),
                Route("/dicom-web/studies/{study}", self._store, methods=["POST"]),
            ],
            middleware=[Middleware(_Strict)],
        )

    # ---- pages -----------------------------------------------------------------------------------------------------

    def _session(self, request: Request) -> Session | None:
        return self._access.session(request.cookies.get(COOKIE))

    async def _index(self, request: Request) -> Response:
        session = self._session(request)
        if session is None:
            return HTMLResponse(self._login.render(wrong=False))
        state = await run_in_threadpool(views.state, self._service)
        return HTMLResponse(
            self._template.render(state=state, session=session, version=__version__, columns=views.COLUMNS)
        )

    async def _log_in(self, request: Request) -> Response:
        form = await _form(request)
        if not self._access.same_origin(request.headers.get("origin"), request.headers.get("host")):
            return PlainTextResponse("a request from another page", status_code=403)
        key = self._access.open(form.get("token", ""))
        if key is None:
            say("login refused", level="warning", address=request.client.host if request.client else None)
            return HTMLResponse(self._login.render(wrong=True), status_code=403)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            COOKIE, key, httponly=True, samesite="strict", secure=self._page.secure, path="/", max_age=int(SESSION_S)
        )
        return answer

    async def _log_out(self, request: Request) -> Response:
        session, form = self._session(request), await _form(request)
        if session is None or form.get("secret") != session.secret:
            return PlainTextResponse("not logged in", status_code=403)
        self._access.close(request.cookies.get(COOKIE))
        answer = RedirectResponse("/", status_code=303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    async def _requeue(self, request: Request) -> Response:
        session, form = self._session(request), await _form(request)
        ours = self._access.same_origin(request.headers.get("origin"), request.headers.get("host"))
        if session is None or not ours or not may(session, form.get("secret", "")):
            return PlainTextResponse("not allowed", status_code=403)
        series = request.path_params["series"]
        done = await run_in_threadpool(self._service.queue.requeue, series)
        if done:
            say("series requeued", series=series, role=session.role)
        return RedirectResponse("/", status_code=303) if done else PlainTextResponse("nothing to do", status_code=409)

    async def _view(self, request: Request) -> Response:
        if self._session(request) is None:
            return PlainTextResponse("not logged in", status_code=403)
        page = await run_in_threadpool(views.viewer, self._service, request.path_params["series"])
        if page is None:
            return PlainTextResponse("nothing to look at yet", status_code=404)
        return HTMLResponse(page, headers={"content-security-policy": views.policy_of(page)})

    async def _events(self, request: Request) -> Response:
        if self._session(request) is None:
            return PlainTextResponse("not logged in", status_code=403)
        return StreamingResponse(self._news(request), media_type="text/event-stream")

    async def _news(self, request: Request) -> AsyncIterator[str]:
        shown, said = -1, 0.0
        while not self._server.should_exit and not await request.is_disconnected():
            version = self._service.queue.version
            if version != shown:
                shown, said = version, time.monotonic()
                state = await run_in_threadpool(views.state, self._service)
                yield f"data: {json.dumps(state)}\n\n"
            elif time.monotonic() - said > _ALIVE_S:
                said = time.monotonic()
                yield ": alive\n\n"
            await asyncio.sleep(_NEWS_S)

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            return PlainTextResponse("no such file", status_code=404)
        return Response(_asset(name), media_type=_ASSETS[name])

    async def _no_icon(self, request: Request) -> Response:
        return Response(status_code=204)

    # ---- machines --------------------------------------------------------------------------------------------------

    async def _metrics(self, request: Request) -> Response:
        if self._access.bearer(request.headers.get("authorization")) is None and self._session(request) is None:
            return PlainTextResponse("expected a bearer token", status_code=401)
        text = await run_in_threadpool(self._service.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _health(self, request: Request) -> Response:
        found = await run_in_threadpool(self._service.healthy)
        return JSONResponse({"healthy": all(found.values())}, status_code=200 if all(found.values()) else 503)

    async def _store(self, request: Request) -> Response:
        if self._access.bearer(request.headers.get("authorization")) not in ("sender", "operator"):
            return PlainTextResponse("expected a bearer token of a sender", status_code=401)
        limit = self._service.config.node.object_mb * 10**6
        return await store(request, self._service.inbox, limit=limit, study=request.path_params.get("study"))


async def _form(request: Request) -> dict[str, str]:
    """A small URL-encoded form; anything else is none."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def _asset(name: str) -> str:
    return resources.files("concordct.serving").joinpath("assets", name).read_text(encoding="utf-8")
