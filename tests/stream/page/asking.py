"""Who asks a running page, as browsers and programs do."""

from __future__ import annotations

import http.client
import json
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.stream.running import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "correct horse battery"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Visitor:
    """Asks the page at an address."""

    def __init__(self, url: str) -> None:
        self.host = url.removeprefix("http://")

    @contextmanager
    def asked(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; headers are named with _ for -."""
        connection = http.client.HTTPConnection(self.host, timeout=WAIT_S)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body, sent = json.dumps(body), {"content-type": "application/json", **sent}
        try:
            connection.request(method, path, body, sent)
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        with self.asked(method, path, body, **headers) as answer:
            return Answer(answer.status, answer.headers, answer.read().decode("utf-8", "replace"))

    def tell(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Ask as a program that knows the secret."""
        return self.ask(method, path, body, authorization=f"Bearer {SECRET}", **headers)

    def log_in(self, secret: str = SECRET) -> Answer:
        form = {"content_type": "application/x-www-form-urlencoded"}
        return self.ask("POST", "/login", f"secret={secret.replace(' ', '+')}", **form)


def parts(answer: http.client.HTTPResponse) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Read the frames of the live stream."""
    while True:
        n_json, n_jpeg = struct.unpack(">II", answer.read(8))
        if n_json:
            yield json.loads(answer.read(n_json)), answer.read(n_jpeg)


def events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str, Any]]:
    """Read kind, id and data of server-sent events."""
    fields: dict[str, str] = {}
    for line in answer:
        name, _, value = line.decode().strip().partition(": ")
        if name:
            fields[name] = value
        elif "event" in fields:
            yield fields.pop("event"), fields["id"], json.loads(fields["data"])
