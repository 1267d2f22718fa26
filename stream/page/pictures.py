"""Frames and faces to JPEG, in a thread that comes after the analysis."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from PIL import Image

from stream.closing import Closing
from stream.priority import step_back
from stream.scan.crops import overlaid
from trt_engines.backends import OnnxRuntimeConfig, open_backend

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from stream.page.feed import Shown
    from trt_engines.backends import Backend

GRID_WIDTH: Final = 640  # px, of a picture among others
SINGLE_WIDTH: Final = 1280
_LENGTHS: Final = struct.Struct(">II")  # bytes of the JSON, and of the JPEG, which follow


class Pictures(Closing):
    """Makes each picture once, for however many viewers.

    Args:
        manifest: of the first detector, which is asked where it saw its evidence. It is loaded when
            somebody asks first.
    """

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest
        self._detector: Backend | None = None
        self._worker = ThreadPoolExecutor(1, "page-pictures", initializer=step_back)
        self._latest: dict[tuple[str, int], tuple[int, asyncio.Future[bytes]]] = {}

    async def part(self, shown: Shown, width: int) -> bytes:
        """Return a frame as one part of the live stream: lengths, JSON, JPEG.

        Args:
            shown: the frame, and its faces.
            width: of the picture, pixels, at most.
        """
        key = shown.frame.stamp.source_id, width
        number, part = self._latest.get(key, (0, None))
        if part is None or number != shown.number:
            loop = asyncio.get_running_loop()
            part = loop.run_in_executor(self._worker, _part, shown, width)
            self._latest[key] = shown.number, part
        return await asyncio.shield(part)  # others may wait for it, too

    def forget(self) -> None:
        """Let go of what was made; nobody looks any more."""
        self._latest.clear()

    async def face(self, crop: Tensor) -> bytes:
        """Return the JPEG of what a detector was shown, (3, S, S) uint8 RGB."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, _face, crop)

    async def explanation(self, crop: Tensor) -> bytes | None:
        """Return a JPEG with the evidence in red over a face; None: the detector has no map."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._explanation, crop)

    def _explanation(self, crop: Tensor) -> bytes | None:
        if self._detector is None:
            self._detector = open_backend(self._manifest, OnnxRuntimeConfig(threads=1))
        found = self._detector.infer(crop.cpu()[None].contiguous()).get("explanation")
        if found is None:
            return None
        picture = crop.cpu().permute(1, 2, 0).numpy()
        return _jpeg(Image.fromarray(overlaid(picture, found[0, 0].numpy())))

    def close(self) -> None:
        """Let go of thread and detector."""
        self._worker.shutdown(cancel_futures=True)
        if self._detector is not None:
            self._detector.close()
            self._detector = None


def _part(shown: Shown, width: int) -> bytes:
    stamp = shown.frame.stamp
    picture = Image.fromarray(shown.frame.image.cpu().numpy())
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
            "faces": shown.faces,
        }
    ).encode()
    jpeg = _jpeg(picture)
    return _LENGTHS.pack(len(header), len(jpeg)) + header + jpeg


def _face(crop: Tensor) -> bytes:
    return _jpeg(Image.fromarray(crop.cpu().permute(1, 2, 0).numpy()))


def _jpeg(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return data.getvalue()
