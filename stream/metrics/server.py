"""`/metrics`, `/healthz` and `/readyz` by HTTP."""

from __future__ import annotations

import logging
import socket
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from stream.closing import Closing
from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry

    from stream.config import MetricsConfig
    from stream.metrics.standing import Standing, Trouble

log = logging.getLogger(__name__)

_POLL_S: Final = 0.1  # how soon the server notices its end
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class MetricsServer(Closing):
    """Answers in threads of its own, from its making until `close`.

    Args:
        config: where to listen.
        registry: of `/metrics`.
        standing: of `/healthz` and `/readyz`.

    Attributes:
        address: `http://HOST:PORT`.

    Raises:
        ConfigError: nothing can listen there.
    """

    def __init__(
        self, config: MetricsConfig, registry: CollectorRegistry, standing: Standing
    ) -> None:
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._standing = standing
        try:
            *_, (family, _, _, _, address) = socket.getaddrinfo(
                config.host, config.port, type=socket.SOCK_STREAM
            )
            self._server = _ThreadedServer((str(address[0]), int(address[1])), family)
        except OSError as error:
            raise ConfigError(
                f"metrics: can't listen on {config.host}:{config.port} ({error.strerror}); "
                "expected an address of this machine and a free port: --metrics HOST:PORT"
            ) from error
        self._server.set_app(self._answer)
        host, port = self._server.socket.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True
        )
        self._thread.start()
        log.info("metrics at %s/metrics", self.address)
        if config.host not in _LOOPBACK:
            log.warning(
                "metrics on %s have no password: whoever reaches that port reads the sources' ids "
                "and how often they alarm",
                self.address,
            )

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/healthz":
                return _say(self._standing.unhealthy(), start_response)
            case "/readyz":
                return _say(self._standing.unready(), start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"/metrics, /healthz or /readyz\n"]


class _ThreadedServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a client that does not hang up must not keep the process

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily) -> None:
        self.address_family = family
        super().__init__(address, _QuietHandler)

    def server_bind(self) -> None:
        """Bind, without asking the domain name system what we are called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "facewarden", self.server_address[1]
        self.setup_environ()


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds, for a client that says nothing

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name overridden
        """Say nothing."""


def _say(trouble: Trouble, start_response: StartResponse) -> list[bytes]:
    status = "503 Service Unavailable" if trouble else "200 OK"
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{trouble or 'ok'}\n".encode()]
