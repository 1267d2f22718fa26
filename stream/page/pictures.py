"""Frames and faces to JPEG, in a thread that comes after the analysis."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from PIL import Image

from stream.closing import Closing
from stream.priority import step_back
from stream.scan.crops import overlaid
from trt_engines.backends import OnnxRuntimeConfig, open_backend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from stream.page.board import Shown
    from stream.page.feed import LiveBoard, Scored
    from trt_engines.backends import Backend

_LENGTHS: Final = struct.Struct(">II")  # bytes of the JSON, and of the JPEG, which follow
_Made = TypeVar("_Made")


class Darkroom(Closing):
    """Makes JPEGs, in whichever thread asks; one at a time.

    Args:
        manifest: of the first detector, which is asked where it saw its evidence. It is loaded when
            somebody asks first.
    """

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest
        self._detector: Backend | None = None

    def part(self, scored: Scored, width: int) -> bytes:
        """Return a frame as one part of the live stream; see `app.Pictures.part`."""
        stamp = scored.frame.stamp
        picture = Image.fromarray(scored.frame.image.cpu().numpy())
        if picture.width > width:
            height = max(1, round(picture.height * width / picture.width))
            picture = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=1.5)
        header = json.dumps(
            {
                "source": stamp.source_id,
                "session": stamp.session,
                "pts_s": round(stamp.pts_s, 3),
                "captured_at": stamp.captured_at,
                "width": stamp.width,
                "height": stamp.height,
                "faces": scored.faces,
            }
        ).encode()
        jpeg = _jpeg(picture)
        return _LENGTHS.pack(len(header), len(jpeg)) + header + jpeg

    def face(self, look: Tensor) -> bytes:
        """Return the JPEG of what a detector was shown, (3, S, S) uint8 RGB."""
        return _jpeg(Image.fromarray(look.cpu().permute(1, 2, 0).numpy()))

    def evidence(self, look: Tensor) -> bytes | None:
        """Return a JPEG with the evidence in red over a face; None: the detector has no map."""
        if self._detector is None:
            self._detector = open_backend(self._manifest, OnnxRuntimeConfig(threads=1))
        found = self._detector.infer(look.cpu()[None].contiguous()).get("explanation")
        if found is None:
            return None
        picture = look.cpu().permute(1, 2, 0).numpy()
        return _jpeg(Image.fromarray(overlaid(picture, found[0, 0].numpy())))

    def close(self) -> None:
        """Let go of the detector."""
        if self._detector is not None:
            self._detector.close()
            self._detector = None


class LivePictures(Closing):
    """Makes each picture of this process once, for however many viewers; see `app.Pictures`.

    Args:
        board: has the frames, and the faces behind alerts.
        manifest: see `Darkroom`.
    """

    def __init__(self, board: LiveBoard, manifest: Path) -> None:
        self._board = board
        self._darkroom = Darkroom(manifest)
        self._worker = ThreadPoolExecutor(1, "page-pictures", initializer=step_back)
        self._latest: dict[tuple[str, int], tuple[int, asyncio.Future[bytes]]] = {}

    async def part(self, shown: Shown[Scored], width: int) -> bytes:
        """See `app.Pictures.part`."""
        key = shown.source_id, width
        number, part = self._latest.get(key, (0, None))
        if part is None or number != shown.number:
            part = self._made(self._darkroom.part, shown.picture, width)
            self._latest[key] = shown.number, part
        return await asyncio.shield(part)  # others may wait for it, too

    def forget(self) -> None:
        """See `app.Pictures.forget`."""
        self._latest.clear()

    async def face(self, event_id: str) -> bytes | None:
        """See `app.Pictures.face`."""
        look = self._board.look_of(event_id)
        return None if look is None else await self._made(self._darkroom.face, look)

    async def evidence(self, event_id: str) -> bytes | None:
        """See `app.Pictures.evidence`."""
        look = self._board.look_of(event_id)
        return None if look is None else await self._made(self._darkroom.evidence, look)

    def _made(self, make: Callable[..., _Made], *of: object) -> asyncio.Future[_Made]:
        return asyncio.get_running_loop().run_in_executor(self._worker, partial(make, *of))

    def close(self) -> None:
        """Let go of thread and detector."""
        self._worker.shutdown(cancel_futures=True)
        self._darkroom.close()


def _jpeg(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return data.getvalue()
