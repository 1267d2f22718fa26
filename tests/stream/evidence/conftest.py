"""What makes bundles of evidence: a run of the stream over clips and cameras."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from stream.analyse import open_analyser
from stream.assembly import connect, recent_packets
from stream.config import StreamConfig
from stream.evidence.seal import make_keys
from stream.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stream.pipeline import Pipeline


@pytest.fixture(scope="session")
def evidence_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key; the public one lies beside it."""
    private: Path = tmp_path_factory.mktemp("key") / "evidence.key"
    make_keys(private)
    return private


class Run:
    """A run of the stream over one source, and what it left."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.store = folder / "store"
        self.config = StreamConfig.model_validate(
            {"sinks": [{"kind": "jsonl", "path": folder / "messages.jsonl"}]} | options
        )
        self._messages = folder / "messages.jsonl"
        self.stop = threading.Event()

    def go(self, watch: Callable[[Pipeline], None] = lambda pipeline: None) -> None:
        """Run to the end of the source, or until `watch`, which gets the pipeline, has had it."""
        with open_analyser(self.config) as analyser:
            sources = [
                Source(
                    source,
                    self.config.decode,
                    stop=threading.Event(),  # each of its own: one may be removed
                    recent=recent_packets(self.config),
                )
                for source in self.config.sources
            ]
            pipeline = connect(self.config, sources, analyser, run="0a1b2c3d", stop=self.stop)
            pipeline.run(lambda _: watch(pipeline), report_s=0.1)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._messages.read_text().splitlines()]

    @property
    def attacks(self) -> list[dict[str, Any]]:
        return [
            m
            for m in self.messages
            if m["event"]["type"] == "track.verdict" and m["verdict"]["state"] == "attack"
        ]

    @property
    def bundles(self) -> list[Path]:
        return sorted(self.store.iterdir())


@pytest.fixture(scope="session")
def run_of(tiny_engine: Path, evidence_key: Path) -> Callable[..., Run]:
    """Return the function that prepares a run over a source with the tiny engine."""

    def prepare(
        folder: Path, uri: object, *, evidence: dict[str, Any] | None = None, **options: Any
    ) -> Run:
        kept = {"folder": folder / "store", "key": evidence_key, "after_s": 0.4}
        return Run(
            folder,
            {
                "sources": [{"id": "cam1", "uri": str(uri)}],
                "score": {"engines": [{"manifest": tiny_engine}]},
                "evidence": kept | (evidence or {}),
            }
            | options,
        )

    return prepare


@pytest.fixture(scope="session")
def made_bundle(
    run_of: Callable[..., Run], two_faces: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run over a clip with an attack, which left one bundle; read only."""
    run = run_of(tmp_path_factory.mktemp("run"), two_faces)
    run.go()
    return run
