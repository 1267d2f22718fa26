"""The page's routes: HTML, live stream, news, the faces behind alerts, and the control API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qs

from pydantic import ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from models import one_line
from stream.config import SourceConfig
from stream.decode import SourceKind, source_kind
from stream.errors import ConfigError
from stream.page.access import Access, BrowserHeaders
from stream.page.board import GRID_WIDTH, SINGLE_WIDTH
from stream.redact import HIDDEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.types import Message, Send

    from stream.config import PageConfig
    from stream.control import Control, SourceView
    from stream.page.board import Board, Shown

STATIC: Final = Path(__file__).with_name("static")
_LARGEST_BODY: Final = 64 * 1024  # bytes
_ALIVE_S: Final = 5.0  # the live stream sends something at least so often
_STUCK_S: Final = 20.0  # a viewer that takes nothing for so long is hung up on
_MEASURE_S: Final = 1.0
_NOTHING: Final = bytes(8)  # a part of the live stream without header and picture


class Pictures(Protocol):
    """Makes JPEGs, or lets them be made."""

    async def part(self, shown: Shown[Any], width: int) -> bytes:
        """Return a frame as one part of the live stream: lengths, JSON, JPEG.

        Args:
            shown: the frame, and its faces.
            width: of the picture, pixels, at most.
        """
        ...

    async def face(self, event_id: str) -> bytes | None:
        """Return the JPEG of the face behind an alert; None: it is not kept any more."""
        ...

    async def evidence(self, event_id: str) -> bytes | None:
        """Return a JPEG with the evidence in red over that face; None: there is no map of it."""
        ...

    def forget(self) -> None:
        """Let go of what was made; nobody looks any more."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Bell:
    """Wakes all who wait for something new; for coroutines of one loop."""

    def __init__(self) -> None:
        self._rings = asyncio.Event()
        self.is_over = False

    def ring(self) -> None:
        """Wake all who wait now."""
        self._rings.set()
        self._rings = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait for the next ring, but not for longer."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._rings.wait(), seconds)

    def end(self) -> None:
        """Let all who wait leave."""
        self.is_over = True
        self.ring()


class PageApp:
    """The endpoints, and what they share.

    Args:
        config: of the page.
        board: what there is to see.
        control: what changes the sources.
        pictures: makes the JPEGs.
        access: knows the secret.
    """

    def __init__(
        self,
        config: PageConfig,
        board: Board[Any, Any],
        control: Control,
        pictures: Pictures,
        access: Access,
    ) -> None:
        self._config = config
        self._board = board
        self._control = control
        self._pictures = pictures
        self._access = access
        self._viewers = {"live": 0, "events": 0}
        self._bell = Bell()
        self._loop: asyncio.AbstractEventLoop | None = None  # None: it does not run

    def starlette(self, session_key: str) -> Starlette:
        """Return the application."""
        guarded = self._access.guarded

        def route(path: str, endpoint: Callable[[Request], Any], *methods: str) -> Route:
            return Route(path, guarded(endpoint), methods=[*methods] or ["GET"])

        names = {"localhost", "127.0.0.1", "::1", "[::1]", self._config.host, *self._config.hosts}
        return Starlette(
            routes=[
                Route("/login", self._log_in, methods=["GET", "POST"]),
                Mount("/static", StaticFiles(directory=STATIC)),
                route("/", self._page),
                route("/logout", self._log_out, "POST"),
                route("/live", self._live),
                route("/events", self._events),
                route("/alerts/{event_id}/face.jpg", self._alert_face),
                route("/alerts/{event_id}/evidence.jpg", self._alert_evidence),
                route("/api/sources", self._list),
                route("/api/sources", self._add, "POST"),
                route("/api/sources/{id}", self._show),
                route("/api/sources/{id}", self._change, "PATCH"),
                route("/api/sources/{id}", self._remove, "DELETE"),
                route("/api/sources/{id}/pause", self._pause, "POST"),
                route("/api/sources/{id}/resume", self._resume, "POST"),
            ],
            middleware=[
                Middleware(BrowserHeaders),
                Middleware(TrustedHostMiddleware, allowed_hosts=sorted(names), www_redirect=False),
                Middleware(
                    SessionMiddleware,
                    secret_key=session_key,
                    session_cookie="facewarden",
                    max_age=round(self._config.session_s),
                    same_site="strict",
                    https_only=self._config.certificate is not None,
                ),
            ],
            exception_handlers={HTTPException: _as_json, ConfigError: _conflict},
            lifespan=self._lifespan,
        )

    def hang_up(self) -> None:
        """End what viewers listen to, which never ends by itself; any thread may ask."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed just now
                loop.call_soon_threadsafe(self._bell.end)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._loop = loop = asyncio.get_running_loop()
        measuring = loop.create_task(self._measure_now_and_then())

        def announce() -> None:
            if any(self._viewers.values()):
                with suppress(RuntimeError):  # the loop was closed just now
                    loop.call_soon_threadsafe(self._bell.ring)

        self._board.tell(announce)
        try:
            yield
        finally:
            self._board.tell(None)
            self._loop = None
            measuring.cancel()

    async def _measure_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_MEASURE_S)
            if any(self._viewers.values()):
                self._board.forget({view.config.id for view in self._control.sources()})
                self._board.measure()

    # --- logging in ---

    async def _log_in(self, request: Request) -> Response:
        if request.method == "GET":
            return _login_page("")
        fields = parse_qs((await _body(request)).decode("utf-8", "replace"))
        wait_s = self._access.try_secret(request, fields.get("secret", [""])[0])
        if wait_s is None:
            request.session["in"] = True
            return RedirectResponse("/", 303)
        if wait_s > 0:
            page = _login_page(f"Too many wrong secrets. Try again in {wait_s:.0f} seconds.")
            page.status_code = 429
            page.headers["retry-after"] = f"{wait_s:.0f}"
        else:
            page = _login_page("This is not the secret.")
            page.status_code = 401
        return page

    async def _log_out(self, request: Request) -> Response:
        request.session.clear()
        return RedirectResponse("/login", 303)

    async def _page(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    # --- what there is to see ---

    async def _live(self, request: Request) -> Response:
        self._make_room("live")
        names = request.query_params.getlist("source")
        width = SINGLE_WIDTH if len(names) == 1 else GRID_WIDTH
        return _Live(self._parts(names, width), media_type="application/octet-stream")

    async def _parts(self, names: list[str], width: int) -> AsyncIterator[bytes]:
        """Yield each frame as soon as there is one; who is slow gets fewer."""
        number = 0
        with self._board.viewed(names, width):
            self._viewers["live"] += 1
            try:
                yield _NOTHING
                while not self._bell.is_over:
                    newer = self._board.frames_after(number, names, width)
                    if not newer:
                        await self._bell.wait(_ALIVE_S)
                        if not self._board.frames_after(number, names, width):
                            yield _NOTHING
                        continue
                    # One at a time: while it is sent, the others may be overtaken.
                    shown = newer[0]
                    number = shown.number
                    yield await self._pictures.part(shown, width)
            finally:
                self._viewers["live"] -= 1
                if not self._viewers["live"]:
                    self._pictures.forget()

    async def _events(self, request: Request) -> Response:
        self._make_room("events")
        run, _, number = request.headers.get("last-event-id", "").partition("-")
        seen = int(number) if run == self._board.run and number.isdecimal() else 0
        return EventSourceResponse(self._news(seen), ping=15, send_timeout=_STUCK_S)

    async def _news(self, seen: int) -> AsyncIterator[ServerSentEvent]:
        self._viewers["events"] += 1
        try:
            while not self._bell.is_over:
                for news in self._board.news_after(seen):
                    seen = news.number
                    yield ServerSentEvent(
                        news.text, event=news.kind, id=f"{self._board.run}-{news.number}"
                    )
                await self._bell.wait(_ALIVE_S)
        finally:
            self._viewers["events"] -= 1

    def _make_room(self, of: str) -> None:
        if self._viewers[of] >= self._config.viewers:
            raise HTTPException(
                503,
                f"{self._config.viewers} pages are open, which is page.viewers: close one",
                {"retry-after": "10"},
            )

    async def _alert_face(self, request: Request) -> Response:
        jpeg = await self._pictures.face(request.path_params["event_id"])
        if jpeg is None:
            raise HTTPException(404, "the face behind this alert is not kept any more")
        return Response(jpeg, media_type="image/jpeg")

    async def _alert_evidence(self, request: Request) -> Response:
        jpeg = await self._pictures.evidence(request.path_params["event_id"])
        if jpeg is None:
            raise HTTPException(404, "there is no map of the evidence behind this alert")
        return Response(jpeg, media_type="image/jpeg")

    # --- the control API ---

    async def _list(self, _: Request) -> Response:
        return JSONResponse({"sources": [_view(each) for each in self._control.sources()]})

    async def _show(self, request: Request) -> Response:
        return JSONResponse(_view(self._known(request)))

    async def _add(self, request: Request) -> Response:
        fields = await _fields(request)
        if "id" not in fields or "uri" not in fields:
            raise HTTPException(422, "expected id and uri")
        source = _source(fields, fields)
        if any(view.config.id == source.id for view in self._control.sources()):
            raise HTTPException(409, f"source {source.id}: there is one of that name already")
        await asyncio.to_thread(self._control.add, source)
        return self._answer(source.id, 201)

    async def _change(self, request: Request) -> Response:
        known = self._known(request)
        fields = await _fields(request)
        if fields.get("id", known.config.id) != known.config.id:
            raise HTTPException(422, "an id can't be changed: add another source, remove this one")
        source = _source(known.config.model_dump() | fields, fields)
        await asyncio.to_thread(self._control.change, source)
        return self._answer(source.id, 200)

    async def _remove(self, request: Request) -> Response:
        source_id = self._known(request).config.id
        await asyncio.to_thread(self._control.remove, source_id)
        return Response(status_code=204)

    async def _pause(self, request: Request) -> Response:
        source_id = self._known(request).config.id
        await asyncio.to_thread(self._control.pause, source_id)
        return self._answer(source_id, 202)

    async def _resume(self, request: Request) -> Response:
        source_id = self._known(request).config.id
        await asyncio.to_thread(self._control.resume, source_id)
        return self._answer(source_id, 202)

    def _known(self, request: Request) -> SourceView:
        source_id = request.path_params["id"]
        for view in self._control.sources():
            if view.config.id == source_id:
                return view
        raise HTTPException(404, f"source {source_id}: there is none of that name")

    def _answer(self, source_id: str, status: int) -> Response:
        views = (view for view in self._control.sources() if view.config.id == source_id)
        return JSONResponse(next(map(_view, views), {}), status)


class _Live(StreamingResponse):
    """A stream that hangs up on who takes nothing."""

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), _STUCK_S)

        with suppress(TimeoutError):
            await super().stream_response(send_in_time)


def _view(view: SourceView) -> dict[str, Any]:
    """Return what may be told of a source: its address without credentials."""
    status = view.status
    return {
        **view.config.model_dump(mode="json"),
        "status": None
        if status is None
        else {
            "state": status.state,
            "code": status.code,
            "detail": status.detail,
            "frames_seen": status.frames_seen,
            "frames_due": status.frames_due,
            "frames_dropped": status.frames_dropped,
            "frames_failed": status.frames_failed,
        },
    }


def _source(values: Mapping[str, Any], said: Mapping[str, Any]) -> SourceConfig:
    """Check a source that a request describes.

    The network may name cameras alone: not this machine's files and devices, nor web addresses.

    Args:
        values: all of it.
        said: what of it the request says.
    """
    if unfit := sorted({"ca_file", "allow_http", "learned"} & said.keys()):
        raise HTTPException(422, f"{', '.join(unfit)}: only the configuration file may say that")
    try:
        source = SourceConfig.model_validate(dict(values))
    except ValidationError as error:
        raise HTTPException(422, one_line(error, SourceConfig)) from None
    uri = source.uri.get_secret_value()
    if "uri" in said and HIDDEN in uri:
        raise HTTPException(422, "uri: this is an address as it is shown, without its password")
    if "uri" in said and (uri[:5].lower() not in ("rtsp:", "rtsps") or not _is_camera(source)):
        raise HTTPException(
            422, "uri: expected rtsp:// or rtsps://; only the configuration file may name others"
        )
    return source


def _is_camera(source: SourceConfig) -> bool:
    return source_kind(source) is SourceKind.RTSP


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_BODY:
            raise HTTPException(413, f"expected at most {_LARGEST_BODY} bytes")
    return bytes(body)


async def _fields(request: Request) -> dict[str, Any]:
    """Read a JSON object."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected content-type: application/json")
    try:
        fields = json.loads(await _body(request))
    except ValueError as error:
        raise HTTPException(422, f"expected JSON: {error}") from None
    if not isinstance(fields, dict):
        raise HTTPException(422, "expected a JSON object")
    return fields


def _login_page(message: str) -> HTMLResponse:
    page = (STATIC / "login.html").read_text(encoding="utf-8")
    return HTMLResponse(page.replace("{message}", message))


async def _as_json(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _conflict(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)
