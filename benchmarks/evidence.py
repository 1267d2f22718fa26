"""What evidence costs, and whether it can be replayed: `python -m benchmarks.evidence CLIP...`.

Each clip is played as a camera would, with evidence of every verdict; its bundles are replayed.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from stream.analyse import open_analyser
from stream.assembly import connect, recent_packets
from stream.config import StreamConfig
from stream.decode.recent import RecentPackets
from stream.evidence.keeper import EvidenceKeeper
from stream.evidence.replay import replay
from stream.evidence.seal import broken_seals, make_keys
from stream.evidence.store import Store
from stream.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable


def timed(cls: type, name: str) -> list[float]:
    """Measure every call of a method; return the list that gets the seconds."""
    seconds: list[float] = []
    method: Callable[..., Any] = getattr(cls, name)

    def measured(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - began)

    setattr(cls, name, measured)
    return seconds


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(clips: tuple[Path, ...]) -> None:
    """Print what each bundle says, and the costs."""
    costs = {
        name: timed(cls, name)
        for cls, name in (
            (EvidenceKeeper, "watch"), (EvidenceKeeper, "_write"), (RecentPackets, "add"),
        )
    }  # fmt: skip
    for clip in clips:
        with tempfile.TemporaryDirectory() as folder:
            store, key = Path(folder) / "store", Path(folder) / "key"
            make_keys(key)
            config = StreamConfig.model_validate(
                {
                    "sources": [{"id": "cam", "uri": str(clip), "realtime": True}],
                    "sinks": [{"kind": "jsonl", "path": "/dev/null"}],
                    "evidence": {"folder": store, "key": key, "verdicts": ["attack", "bona_fide"]},
                }
            )
            stop = threading.Event()
            recent = recent_packets(config)
            source = Source(config.sources[0], config.decode, stop=stop, recent=recent)
            with open_analyser(config) as analyser:
                connect(config, [source], analyser, run="00000000", stop=stop).run()
            for kept in Store(store).bundles():
                again = replay(store / kept.name)
                print(
                    f"{clip.name}: {kept.size / 1e6:.2f} MB, seal "
                    f"{'whole' if not broken_seals(store / kept.name) else 'broken'}, "
                    f"{' | '.join(again.report().splitlines())}"
                )
    for name, seconds in costs.items():
        ms = np.array(seconds) * 1e3
        print(
            f"{name}: {len(ms)} calls, median {np.median(ms):.3f} ms, "
            f"p99 {np.quantile(ms, 0.99):.3f} ms, longest {ms.max():.1f} ms"
        )


if __name__ == "__main__":
    main()
