"""The page's server: a thread with an event loop of its own."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Final

import uvicorn

from stream.closing import Closing
from stream.errors import ConfigError
from stream.page.access import Access
from stream.page.app import PageApp
from stream.priority import step_back

if TYPE_CHECKING:
    from typing import Any

    from stream.config import PageConfig
    from stream.control import Control
    from stream.page.app import Pictures
    from stream.page.board import Board

log = logging.getLogger(__name__)

_LEAVE_S: Final = 2  # for connections that are open at the end
_MOST_REQUESTS: Final = 200  # under way at a time; more are answered 503


class Page(Closing):
    """Serves the page until it is closed.

    Args:
        config: where, and to whom.
        board: what there is to see.
        control: what changes the sources.
        pictures: makes the JPEGs; closed with the page.

    Raises:
        ConfigError: the address is taken, or the certificate can't be used.
    """

    def __init__(
        self, config: PageConfig, board: Board[Any, Any], control: Control, pictures: Pictures
    ) -> None:
        secret = config.secret.get_secret_value() if config.secret else secrets.token_urlsafe(12)
        try:
            family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
            self._socket = socket.create_server((config.host, config.port), family=family)
        except OSError as error:
            raise ConfigError(
                f"page: can't listen on {config.host}:{config.port}: {error.strerror or error}; "
                "choose another by --page HOST:PORT"
            ) from error
        host = f"[{config.host}]" if ":" in config.host else config.host
        scheme = "https" if config.certificate else "http"
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"
        self._pictures = pictures
        self._app = PageApp(config, board, control, pictures, Access(secret))
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app.starlette(session_key=secrets.token_hex(32)),
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                limit_concurrency=_MOST_REQUESTS,
                timeout_graceful_shutdown=_LEAVE_S,
                ssl_certfile=config.certificate,
                ssl_keyfile=config.key,
            )
        )
        try:
            self._server.config.load()
        except OSError as error:  # an error of TLS is one
            self._socket.close()
            raise ConfigError(
                f"page: page.certificate and page.key can't be used: {error}; expected PEM files "
                "of one pair, and a key without a password"
            ) from error
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)
        self._thread.start()
        log.info("page: %s", self.url)
        if config.secret is None:
            log.info("page: page.secret is not set; log in with  %s", secret)

    def _serve(self) -> None:
        step_back()
        try:
            self._server.run(sockets=[self._socket])
        except Exception:
            log.exception("page: it is gone until the next start; the analysis goes on")

    def close(self) -> None:
        """Hang up on all viewers and end the threads."""
        self._app.hang_up()
        self._server.should_exit = True
        self._thread.join(_LEAVE_S + 3)
        self._pictures.close()
        self._socket.close()
