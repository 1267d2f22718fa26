"""What analyses files, opened when a kind of look is first needed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from stream.analyse import open_analyser
from stream.closing import Closing
from stream.errors import ConfigError
from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stream.analyse import Analyser
    from stream.config import StreamConfig
    from stream.scan.policy import Look


class Analysers(Closing):
    """Opens an analyser per kind of look, once.

    Args:
        configs: by kind of look.
    """

    def __init__(self, configs: Mapping[Look, StreamConfig]) -> None:
        self._configs = configs
        self._opened: dict[Look, Analyser] = {}
        self._resources = ExitStack()

    def of(self, look: Look) -> Analyser:
        """Return what analyses a kind of look.

        Raises:
            ConfigError: an engine can't be used.
        """
        if look not in self._opened:
            try:
                opened = open_analyser(self._configs[look])
            except EngineError as error:
                raise ConfigError(str(error)) from error
            self._opened[look] = self._resources.enter_context(opened)
        return self._opened[look]

    def close(self) -> None:
        """Close those that were opened."""
        self._resources.close()
