"""One run of the pipeline for `benchmarks.cameras`, in a process of its own.

`python -m benchmarks.trial CONFIG SECONDS START_UP_S` prints one JSON object: processor time after
the start-up, and memory.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import torch

from benchmarks.held import Used, largest_rss_mib
from stream.analyse import open_analyser
from stream.config import load_config
from stream.messages import MessageWriter
from stream.pipeline import Pipeline
from stream.publish import open_sink
from stream.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream.config import StreamConfig
    from stream.records import SourceOutput
    from stream.sources import FatesOfFrames

_STAGGER_S: Final = 1.0  # the longest period there is: that of searching the whole frame


class _LaterSource(Source):
    """Opens after a delay."""

    delay_s = 0.0

    def events(self, fates: FatesOfFrames | None = None) -> Iterator[SourceOutput]:
        """See `Source.events`."""
        time.sleep(self.delay_s)
        yield from super().events(fates)


def run(config: StreamConfig, seconds: float, start_up_s: float) -> dict[str, float]:
    """Run as `run_stream.py` does, but let the sources begin at random moments of a second.

    Real cameras are not in step; files opened together would be, and every frame of every source
    would come due at the same moment.
    """
    torch.set_num_threads(1)
    random = Random(2026)
    stop = threading.Event()
    with open_analyser(config) as analyser:
        sources = [_LaterSource(source, config.decode, stop=stop) for source in config.sources]
        for source in sources:
            source.delay_s = random.uniform(0, _STAGGER_S)
        writer = MessageWriter(run="0" * 8, version="benchmark", models=())
        sinks = [open_sink(sink, run="0" * 8, heartbeat_s=1.0) for sink in config.sinks]
        pipeline = Pipeline(
            sources, analyser, writer, sinks, stop=stop, shutdown_s=config.shutdown_s
        )
        used = Used()
        timers = [threading.Timer(start_up_s, used.start), threading.Timer(seconds, stop.set)]
        for timer in timers:
            timer.start()
        try:
            pipeline.run()
        finally:
            for timer in timers:
                timer.cancel()
    return used.cores() | {
        "largest_rss_mib": largest_rss_mib(),
    }


if __name__ == "__main__":
    print(json.dumps(run(load_config(Path(sys.argv[1])), *map(float, sys.argv[2:]))))
