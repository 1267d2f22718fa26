"""Rows to the messages `scan.result`, which docs/messages.md explains."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from stream.messages import (
    FileResult,
    ModelId,
    Producer,
    Scan,
    ScanEvent,
    ScanMessage,
    ScannedFile,
    ScannedTrack,
)

if TYPE_CHECKING:
    from stream.scan.rows import FileRow

MOST_TRACKS: Final = 20


def scan_message(row: FileRow, run: str) -> ScanMessage:
    """Return the message about a scanned file.

    Args:
        row: of the file.
        run: of the producer, 8 hexadecimal digits.
    """
    facts = row.model_dump(mode="json", exclude={"tracks"})
    models = [name_and_digest.rpartition(":") for name_and_digest in row.models]
    return ScanMessage(
        event=ScanEvent(id=_event_id(row)),
        ts=row.at.replace("+00:00", "Z"),
        file=ScannedFile(**_some(facts, ScannedFile)),
        scan=Scan(**_some(facts, Scan)),
        verdict=FileResult(state=row.verdict.value, **_some(facts, FileResult)),
        tracks=tuple(
            ScannedTrack(
                number=track.track,
                state=track.verdict,
                **_some(track.model_dump(), ScannedTrack),
            )
            for track in row.tracks[:MOST_TRACKS]
        ),
        producer=Producer(
            version=row.version,
            run=run,
            decoder=row.decoder,
            models=tuple(ModelId(name=name, onnx_sha256=digest) for name, _, digest in models),
        ),
    )


def _event_id(row: FileRow) -> str:
    """Name a result: the same for the same content at the same path, judged in the same way."""
    content = row.sha256 or row.etag or [row.size, row.mtime_ns]
    about = json.dumps([row.raw_path.hex(), content, row.run_key])
    return f"scan-{hashlib.sha256(about.encode()).hexdigest()[:32]}"


def _some(facts: dict[str, Any], part: type[ScannedFile | Scan | FileResult | ScannedTrack]) -> Any:
    return {name: value for name, value in facts.items() if name in part.model_fields}
