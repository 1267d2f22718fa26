"""A receiver of webhooks."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Receiver)
        self.server.requests.append((self.path, dict(self.headers), body))
        status, headers = self.server.answer(len(self.server.requests))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Receiver(http.server.ThreadingHTTPServer):
    """Takes webhooks; `answer` says how, by the number of the request."""

    daemon_threads = True

    def __init__(self, port=0, tls=None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Callable[[int], tuple[int, dict[str, str]]] = lambda _: (204, {})
        self.port = self.server_address[1]
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def ids(self):
        """Event ids of what was received, once each."""
        return list(dict.fromkeys(json.loads(b)["event"]["id"] for _, _, b in self.requests))

    def wait_for(self, count):
        """Wait for so many requests; the time limit of the test is the only one."""
        while len(self.requests) < count:
            time.sleep(0.005)

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()
