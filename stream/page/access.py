"""Who may see the page: one secret, sessions in signed cookies, and what browsers are told.

A program sends the secret with each request (`Authorization: Bearer`); a browser logs in once. So
may a reverse proxy that has its own login, as for OIDC: it adds that header (docs/page.md).
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    Endpoint = Callable[[Request], Awaitable[Response]]

# So many wrong secrets are heard from one address, and from all, within so many seconds.
MOST_WRONG: Final = 5
MOST_WRONG_OF_ALL: Final = 50
WITHIN_S: Final = 60.0
_MOST_ADDRESSES: Final = 1000
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(slots=True)
class Limit:
    """How many wrong secrets are heard; times are monotonic seconds."""

    monotonic: Callable[[], float] = time.monotonic
    _of_all: deque[float] = field(default_factory=deque)
    _by_address: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def wait_s(self, address: str) -> float:
        """Return for how long nothing is heard from an address, seconds; 0: it is."""
        now = self.monotonic()
        heard = self._by_address.get(address, deque())
        return max(_left_s(heard, MOST_WRONG, now), _left_s(self._of_all, MOST_WRONG_OF_ALL, now))

    def wrong(self, address: str) -> None:
        """Note a wrong secret."""
        now = self.monotonic()
        heard = self._by_address.setdefault(address, deque(maxlen=MOST_WRONG))
        self._by_address.move_to_end(address)
        while len(self._by_address) > _MOST_ADDRESSES:
            self._by_address.popitem(last=False)
        heard.append(now)
        self._of_all.append(now)
        while len(self._of_all) > MOST_WRONG_OF_ALL:
            self._of_all.popleft()


def _left_s(heard: deque[float], most: int, now: float) -> float:
    return max(0.0, heard[-most] + WITHIN_S - now) if len(heard) >= most else 0.0


class Access:
    """Lets in who knows the secret.

    Args:
        secret: what must be known.
        limit: of guesses.
    """

    def __init__(self, secret: str, limit: Limit | None = None) -> None:
        self._digest = _digest(secret)
        self._limit = limit or Limit()

    def try_secret(self, request: Request, secret: str) -> float | None:
        """Return None if the secret is right, else how long to wait before another try, seconds."""
        address = request.client.host if request.client else ""
        wait_s = self._limit.wait_s(address)
        if wait_s > 0:
            return wait_s
        if hmac.compare_digest(_digest(secret), self._digest):
            return None
        self._limit.wrong(address)
        return self._limit.wait_s(address)

    def guarded(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that answers only who may see, and only to what they meant to do."""

        async def answer(request: Request) -> Response:
            kind, _, token = request.headers.get("authorization", "").partition(" ")
            if kind.lower() == "bearer":
                wait_s = self.try_secret(request, token)
                if wait_s is not None:
                    return refused(wait_s)
            elif not request.session.get("in"):
                if request.method == "GET" and request.url.path == "/":
                    return RedirectResponse("/login", 303)
                return refused(0)
            if request.method not in ("GET", "HEAD") and not _is_meant(request):
                return JSONResponse({"error": "this request comes from another site"}, 403)
            return await endpoint(request)

        return answer


def refused(wait_s: float) -> Response:
    """Return the answer to who did not say the secret."""
    if wait_s > 0:
        text = f"too many wrong secrets; try again in {wait_s:.0f} s"
        return JSONResponse({"error": text}, 429, {"retry-after": f"{wait_s:.0f}"})
    text = "log in at /login, or send the secret: Authorization: Bearer ..."
    return JSONResponse({"error": text}, 401, {"www-authenticate": "Bearer"})


def _is_meant(request: Request) -> bool:
    """Return whether a request that changes something does not come from another site's page.

    Browsers say where it comes from; a program has to send the secret itself.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is not None:
        return urlsplit(origin).netloc == request.headers.get("host")
    return "authorization" in request.headers


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


class BrowserHeaders:
    """Tells browsers, with every answer, what the page will never do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, with more headers."""

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
                own = {name for name, _ in message["headers"]}
                message["headers"] += [(name, value) for name, value in more if name not in own]
            await send(message)

        await self._app(scope, receive, send_more)
