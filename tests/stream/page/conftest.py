"""A page that shows a real pipeline."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from stream.config import PageConfig
from stream.page.board import Board
from stream.page.feed import Feed, LiveBoard
from stream.page.pictures import LivePictures
from stream.page.server import Page
from tests.stream.page.asking import SECRET, Visitor
from tests.stream.running import RUN, Run, config_of
from trt_engines.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Served(Visitor):
    """A running page, and who asks it."""

    def __init__(self, run: Run, board: LiveBoard, page: Page) -> None:
        super().__init__(page.url)
        self.run = run
        self.board = board
        self.page = page


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
