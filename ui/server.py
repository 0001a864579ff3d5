"""What the app serves beside its pages: uploads, health; and what every answer and every request must have."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.runtime.pages_manager import PagesManager

from probes.errors import ProbeError
from ui import bench
from ui.state import jobs, uploads
from ui.text import as_text
from workspace.process import die_with_starter
from workspace.uploads import UploadError

OWN_HOSTS = ("127.0.0.1", "localhost", "::1")
CLOSED = ("/_stcore/upload_file", "/_stcore/metrics")  # nothing here uses them
TOKEN_HEADER = "x-upload-token"  # noqa: S105
SWEEP_SECONDS = 600
LONGEST_DECLARATION = 1 << 16
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'self'",
            "script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob:",  # components are blobs
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    ),
}

_log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[dict[str, Any]]]


class Guard:
    """Let only requests for our own host in, keep unused doors shut, and send the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif host_of(Headers(scope=scope).get("host", "")) not in allowed_hosts():
            await _refuse(scope, receive, send, 421, "This name of the server is not allowed (THEODOLITE_HOSTS).")
        elif scope["path"].startswith(CLOSED):
            await _refuse(scope, receive, send, 403, "This door is shut.")
        else:
            await self.app(scope, receive, _with_headers(send))


def allowed_hosts() -> set[str]:
    """Return the names by which this server may be called: the local ones and THEODOLITE_HOSTS (commas)."""
    given = os.environ.get("THEODOLITE_HOSTS", "").split(",")
    return {*OWN_HOSTS, *(each.strip().lower() for each in given if each.strip())}


def host_of(text: str) -> str:
    """Return the name in a Host header, without the port; "" when there is none."""
    try:
        return (urlsplit(f"//{text}").hostname or "").lower()
    except ValueError:
        return ""


async def begin(request: Request) -> dict[str, Any]:
    """POST /upload: declare a file."""
    if int(request.headers.get("content-length") or 0) > LONGEST_DECLARATION:
        raise UploadError(413, "The declaration of an upload is too long.")
    try:
        about = await request.json()
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise UploadError(400, "The declaration of an upload must be a JSON object.")
    return await uploads().begin(_token(request), about)


async def receive(request: Request) -> dict[str, Any]:
    """PUT /upload/<id>?offset=N: one chunk."""
    offset = request.query_params.get("offset", "")
    if not offset.isdecimal():
        raise UploadError(400, "The offset of the chunk is missing.")
    token, id = _token(request), request.path_params["id"]
    reply = await uploads().receive(token, id, int(offset), request.stream())
    if reply.get("done"):
        await asyncio.to_thread(bench.take_upload, uploads().subject_of(token), reply["sha256"])
    return reply


async def cancel(request: Request) -> dict[str, Any]:
    """DELETE /upload/<id>: drop what is here."""
    uploads().cancel(_token(request), request.path_params["id"])
    return {"cancelled": True}


async def health(_request: Request) -> dict[str, Any]:
    """GET /health: whether the app and its worker live."""
    alive = await asyncio.to_thread(jobs().worker_alive)
    return {"app": "ok", "worker": "ok" if alive else "not running"}


def say(error: Exception) -> bool:
    """Show what the user can mend as its sentence; leave everything else to Streamlit (which shows no details)."""
    if isinstance(error, ProbeError):
        st.error(as_text(error))
    return isinstance(error, ProbeError)


def routes() -> list[Route]:
    """Return the routes of the app."""
    return [
        Route("/upload", _upload(begin), methods=["POST"]),
        Route("/upload/{id}", _upload(receive), methods=["PUT"]),
        Route("/upload/{id}", _upload(cancel), methods=["DELETE"]),
        Route("/health", _json(health), methods=["GET"]),
    ]


def middleware() -> list[Middleware]:
    """Return what every request goes through."""
    return [Middleware(Guard)]


@contextlib.asynccontextmanager
async def lifespan(_app: object) -> AsyncIterator[None]:
    """Sweep unfinished uploads at the start and every ten minutes."""
    # Else a first visit that does not begin at the root runs a file of pages/ by itself, without `st.navigation`.
    PagesManager.uses_pages_directory = False
    die_with_starter()
    sweeping = asyncio.create_task(_sweep())
    try:
        yield
    finally:
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping


async def _sweep() -> None:
    while True:
        try:
            await asyncio.to_thread(lambda: uploads().sweep())
        except (ProbeError, OSError):
            _log.exception("Unfinished uploads could not be swept")
        await asyncio.sleep(SWEEP_SECONDS)


def _upload(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def checked(request: Request) -> dict[str, Any]:
        if urlsplit(request.headers.get("origin", "")).netloc != request.headers.get("host"):
            raise UploadError(403, "This upload does not come from a page of this app.")
        return await handler(request)

    return _json(checked)


def _json(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return JSONResponse(await handler(request))
        except UploadError as error:
            return JSONResponse({"detail": str(error), **error.about}, status_code=error.status)
        except ProbeError as error:
            return JSONResponse({"detail": str(error)}, status_code=400)
        except ClientDisconnect:
            return Response(status_code=400)

    return answer


def _token(request: Request) -> str:
    return str(request.headers.get(TOKEN_HEADER, ""))


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, sentence: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": sentence})
    else:
        await PlainTextResponse(sentence, status)(scope, receive, _with_headers(send))
