"""Media for the tests of `demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from demo.clip import write_clip

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def demo_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first second of the demo's clip; read only."""
    path = tmp_path_factory.mktemp("demo") / "clip.mp4"
    write_clip(path, seconds=1.0)
    return path
