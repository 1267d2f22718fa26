"""Still pictures: a file to one frame, upright as its EXIF data say."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from stream.errors import SourceError
from stream.records import Frame, FrameStamp, SourceCode
from stream.redact import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_still(content: bytes, *, source_id: str, max_pixels: int) -> Frame:
    """Return the only frame of a picture, at media time 0.

    Args:
        content: of the file.
        source_id: for the frame's stamp.
        max_pixels: width times height, as stored; a larger one is refused before it is decoded.

    Raises:
        SourceError: it is too large, or no picture that can be read.
    """
    try:
        import pillow_heif
    except ImportError:
        pass  # HEIC can't be read then, and says so
    else:
        pillow_heif.register_heif_opener()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                _check_size(picture, max_pixels)
                image = _rgb(ImageOps.exif_transpose(picture))
    except (SourceError, MemoryError):
        raise
    # What Pillow's decoders raise on damaged files is of a dozen types, SyntaxError among them.
    except Exception as error:
        what = printable(f"{type(error).__name__}: {error}")
        raise SourceError(
            SourceCode.INVALID_DATA, f"{what}; damaged, or not a picture that can be read"
        ) from error
    stamp = FrameStamp(
        source_id=source_id,
        session=0,
        index=0,
        pts_s=0.0,
        captured_at=0.0,
        width=image.shape[1],
        height=image.shape[0],
        decoder="pillow",
    )
    return Frame(stamp=stamp, image=torch.from_numpy(image))


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise SourceError(
            SourceCode.TOO_LARGE,
            f"{width}x{height} exceeds {max_pixels} pixels; raise still_pixels",
        )


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Return (H, W, 3); what has 16 bits a pixel loses the lower ones, what is clear is white."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture, np.uint32)
        levels = (grey >> 8 if grey.max(initial=0) > 255 else grey).clip(0, 255).astype(np.uint8)
        return np.repeat(levels[..., None], 3, axis=2)
    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return np.array(picture.convert("RGB"))
