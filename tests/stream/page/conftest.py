"""A page that shows a real pipeline."""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from stream.config import PageConfig
from stream.page.board import Board
from stream.page.feed import Feed, LiveBoard
from stream.page.pictures import LivePictures
from stream.page.server import Page
from tests.stream.running import RUN, WAIT_S, Run, config_of
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "correct horse battery"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Served:
    """A running page, and who asks it."""

    def __init__(self, run: Run, board: LiveBoard, page: Page) -> None:
        self.run = run
        self.board = board
        self.page = page
        self.host = page.url.removeprefix("http://")

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


@pytest.fixture
def serve(open_analyser, two_faces, tiny_engine) -> Iterator[Callable[..., Served]]:
    """Return a function that starts a run with a camera `door`, and its page."""
    with ExitStack() as ends:

        def start(**options: Any) -> Served:
            config = config_of(
                {"id": "door", "uri": str(two_faces), "loop": True, "realtime": True}
            )
            board: LiveBoard = Board(RUN)
            feed = Feed(board, load_manifest(tiny_engine).input)
            run = Run(config, open_analyser(), feed)
            ends.enter_context(run.running())
            asked = PageConfig.model_validate({"port": 0, "secret": SECRET, **options})
            page = ends.enter_context(
                Page(asked, board, run.control, LivePictures(board, tiny_engine))
            )
            return Served(run, board, page)

        yield start
