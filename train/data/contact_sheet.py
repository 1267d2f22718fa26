"""A look at prepared faces: some of each type, cut as they will be learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw

from models import whole_file
from train.data.datasets._sample import BONA_FIDE_TYPE
from train.data.shards import open_shards

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from train.data.shards import Shards

CONTACT_SHEET: Final = "contact-sheet.png"
_COLUMNS: Final = 10
_CELL_PX: Final = 112
_TITLE_PX: Final = 20
_CAPTION_PX: Final = 13  # each of two lines
_GAP_PX: Final = 4
_LETTERS: Final = 18  # fit below a face


def write_contact_sheet(folder: Path) -> None:
    """Draw faces of a prepared folder, `contact-sheet.png` in it: a row for each type.

    The same folder gives the same picture. Above a row stand the type and its counts, below each
    face its split, its size in the frame and the end of the video's name.

    Raises:
        TrainError: as `open_shards` and `Shards.crop`.
    """
    shards = open_shards(folder)
    types = sorted(set(shards.videos["attack_type"].to_pylist()), key=lambda kind: kind or "")
    bands = [_band(shards, kind) for kind in types]
    with whole_file(folder / CONTACT_SHEET) as path:
        Image.fromarray(np.concatenate(bands)).save(path, "PNG")


def _band(shards: Shards, attack_type: str | None) -> NDArray[np.uint8]:
    rows = shards.rows(attack_type=attack_type)
    videos = np.unique(shards.video[rows])
    # Videos spread over the folder, of each the middle face; with few videos, more of each.
    picked = [shards.first[v] + (shards.first[v + 1] - shards.first[v]) // 2 for v in videos]
    chosen = picked if len(picked) >= _COLUMNS else rows.tolist()
    places = np.linspace(0, len(chosen) - 1, min(_COLUMNS, len(chosen))).round().astype(int)
    step = _CELL_PX + _GAP_PX
    band = Image.new("RGB", (_COLUMNS * step, _TITLE_PX + _CELL_PX + 2 * _CAPTION_PX), "white")
    draw = ImageDraw.Draw(band)
    title = f"{attack_type or BONA_FIDE_TYPE}: {len(rows)} faces of {len(videos)} videos"
    draw.text((4, 4), _ascii(title), "black")
    for column, place in enumerate(places):
        row = int(chosen[place])
        record = shards.records[row]
        face = Image.fromarray(shards.crop(row)).resize((_CELL_PX, _CELL_PX))
        band.paste(face, (column * step, _TITLE_PX))
        left, below = column * step, _TITLE_PX + _CELL_PX
        about = f"{record.split or 'no split'}, {record.face_px:.0f} px"
        draw.text((left, below), about, "black")
        draw.text((left, below + _CAPTION_PX), _ascii(record.video_id)[-_LETTERS:], "black")
    return np.asarray(band)


def _ascii(text: str) -> str:
    """Return what the built-in font can draw."""
    return text.encode("ascii", errors="replace").decode("ascii")
