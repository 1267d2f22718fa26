"""Frames to faces: MTCNN's cascade (Zhang et al., 2016, arXiv:1604.02878) in vectorised form.

P-Net slides over a pyramid of shrunk copies and proposes squares, R-Net rejects most of them, O-Net
decides and places five landmarks. Weights, thresholds and arithmetic are facenet-pytorch's, so that
faces agree with its `MTCNN.detect`; tests/stream/stages/test_detect.py says how closely. Its second
NMS among proposals (0.7, over all levels) is left out: one step of the pyramid halves the area, so
proposals of two levels never overlap that much.

Known tracks need no pyramid. O-Net alone looks at their expected boxes, cut from the frame itself:
once to centre the box, once more to decide. On ten clips (2026-11-22) this found again 227 of 230
faces from their box 0.1 to 0.25 s earlier, and 202 of 205 from a box off by 20 % of its size
besides (one standard deviation); R-Net and O-Net with their thresholds found 222 and 130, R-Net
without its threshold and O-Net 228 and 197, O-Net once 225 and 177 with landmarks 1.5 and 3 times
as far off. Of 752 boxes without a face it took one for a face.

Inside the cascade pixels count from 1, as in facenet-pytorch: a box with x1 = 1 starts at the
picture's edge, and its width is x2 - x1 + 1. As to the continuous coordinates of `stream.records`,
mirroring 268 portraits showed that boxes are in place as they are (0.1 px too far left for faces of
20-60 px, 0.9 px for 150-220 px), and landmarks half a pixel too far right at either size: crops are
cut at whole pixels, rounded down. So landmarks are passed on less 0.5.
"""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from torch.nn import functional as F

from stream.closing import Closing
from stream.records import FaceDetection
from stream.stages.batch import common_device
from stream.stages.summed_areas import SummedAreas
from trt_engines.backends import open_backend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from stream.config import DetectConfig
    from trt_engines.backends import Backend, BackendConfig

    FloatArray = NDArray[np.float32]
    IntArray = NDArray[np.intp]

PYRAMID_STEP: Final = 0.709  # each level has half the area of the one before
CELL_PX: Final = 12  # what one output of P-Net sees of a level
STRIDE_PX: Final = 2  # from one output of P-Net to the next
RNET_PX: Final = 24
ONET_PX: Final = 48
PNET_NMS: Final = 0.5
RNET_NMS: Final = 0.7
ONET_NMS: Final = 0.7

# A crowd or a patterned wall must not set our time and memory: the best by probability stay.
# A 1920x1080 picture of a crowd needed 299, 358 and 39.
MAX_PER_LEVEL: Final = 1024
MAX_PROPOSALS: Final = 512  # per frame, into R-Net
MAX_REFINED: Final = 128  # per frame, into O-Net

MAX_FACE: Final = 1.5  # longer side of a face over the frame's
FAR_PX: Final = 2**20  # farther out than any picture reaches

WINDOW: Final = 2.0  # side of what is cut around an expected box, over the box's longer side
WINDOW_PX: Final = 192  # its width after shrinking, at most: the face has twice O-Net's input


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """What the cascade looks at: a frame or a window of it, perhaps shrunk."""

    frame: int
    pixels: Tensor  # (h, w, 3) uint8
    corner: tuple[int, int]  # x y of its top left corner, frame pixels
    scale: tuple[float, float]  # frame pixels per picture pixel, along x and y


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """Boxes that may hold a face."""

    picture: IntArray  # (N,)
    boxes: FloatArray  # (N, 4) x1 y1 x2 y2, picture pixels
    scores: FloatArray  # (N,) 0..1

    def __getitem__(self, index: IntArray | NDArray[np.bool_]) -> _Candidates:
        return _Candidates(self.picture[index], self.boxes[index], self.scores[index])


class FaceDetector(Closing):
    """Finds faces in whole frames, and refreshes known ones where they are expected."""

    def __init__(self, pnet: Backend, rnet: Backend, onet: Backend, config: DetectConfig) -> None:
        self._pnet = pnet
        self._rnet = rnet
        self._onet = onet
        self._config = config

    @np.errstate(over="ignore", invalid="ignore")  # what comes of it is left out
    def detect(
        self, images: Sequence[Tensor], expected: Sequence[FloatArray | None]
    ) -> list[list[FaceDetection]]:
        """Return the faces of each frame, best first.

        Args:
            images: frames, (H, W, 3) uint8 RGB; sizes may differ. The cascade runs where they
                are; beside frames of a GPU those of the host go there, shrunk.
            expected: per frame, None to search all of it, or (M, 4) boxes x1 y1 x2 y2 in its
                pixels: then only these are looked at, and one without a face yields nothing.

        Raises:
            ValueError: an image or an array of boxes has another shape or type.
        """
        whole, windows = [], []
        known = [np.empty((0, 4), np.float32)]  # the expected box of each window
        for frame, (image, boxes) in enumerate(zip(images, expected, strict=True)):
            _check(image, boxes)
            height, width = image.shape[:2]
            if boxes is None:
                whole.append(_cut(frame, image, (0, 0, width, height), self._config.detect_width))
                continue
            for box in boxes:
                extent = _window(box, width, height)
                if extent is not None:
                    windows.append(_cut(frame, image, extent, WINDOW_PX))
                    known.append(_into(windows[-1], box))
        pictures = [*whole, *windows]
        device = common_device(images)
        areas = SummedAreas([picture.pixels.to(device) for picture in pictures], device)
        candidates = [
            self._reject(areas, _joined(list(self._propose(areas, len(whole))))),
            self._centre(areas, len(whole), np.vstack(known)),
        ]
        faces: list[list[FaceDetection]] = [[] for _ in images]
        sizes = np.array([(image.shape[1], image.shape[0]) for image in images]).reshape(-1, 2)
        for frame, face in self._decide(areas, pictures, sizes, _joined(candidates)):
            faces[frame].append(face)
        return faces

    def close(self) -> None:
        """Release the engines."""
        for backend in (self._pnet, self._rnet, self._onet):
            backend.close()

    def _propose(self, areas: SummedAreas, n_whole: int) -> Iterator[_Candidates]:
        """Run P-Net over the pyramids of the first pictures, those of one size together."""
        by_size = defaultdict(list)
        for picture, size in enumerate(areas.sizes[:n_whole].tolist()):
            by_size[tuple(size)].append(picture)
        for (width, height), members in by_size.items():
            for group in _chunks(np.array(members), self._pnet.max_batch):
                extents = np.tile((0, 0, width, height), (len(group), 1))
                levels = []
                for scale in _scales(min(width, height), self._config.min_face_px):
                    size = int(height * scale + 1), int(width * scale + 1)
                    level = self._search(areas.resized(group, extents, *size), scale)
                    levels.append(_Candidates(group[level.picture], level.boxes, level.scores))
                proposals = _joined(levels)
                yield proposals[_best(proposals, MAX_PROPOSALS)]

    def _search(self, level: Tensor, scale: float) -> _Candidates:
        """Run P-Net over one level of some pictures, (N, 3, h, w); `picture` is the index in it."""
        outputs = self._pnet.infer(level)
        likely = (outputs["probability"] >= self._config.pnet_threshold).nonzero(as_tuple=True)
        scores = outputs["probability"][likely].cpu().numpy()
        offsets = outputs["offsets"].permute(0, 2, 3, 1)[likely].cpu().numpy()
        picture, row, column = (index.cpu().numpy() for index in likely)
        first = np.column_stack([column, row]).astype(np.float32) * STRIDE_PX + 1
        cells = np.hstack([first, first + (CELL_PX - 1)]) / np.float32(scale)
        hits = _Candidates(picture, np.floor(cells), scores)
        kept = _best(hits, MAX_PER_LEVEL)
        kept = kept[_nms(hits.picture[kept], hits.boxes[kept], hits.scores[kept], PNET_NMS)]
        hits, offsets = hits[kept], offsets[kept]
        sides = np.tile(hits.boxes[:, 2:] - hits.boxes[:, :2], 2)
        return _Candidates(hits.picture, _squared(hits.boxes + offsets * sides), hits.scores)

    def _reject(self, areas: SummedAreas, proposals: _Candidates) -> _Candidates:
        """Run R-Net on proposals and keep the likely ones, shifted to where it sees the face."""
        seen, offsets, _ = _look(self._rnet, RNET_PX, areas, proposals)
        kept = np.flatnonzero(seen.scores > self._config.rnet_threshold)
        kept = kept[_nms(seen.picture[kept], seen.boxes[kept], seen.scores[kept], RNET_NMS)]
        moved = _shifted(seen[kept], offsets[kept])
        return moved[_best(moved, MAX_REFINED)]

    def _centre(self, areas: SummedAreas, first: int, boxes: FloatArray) -> _Candidates:
        """Shift expected boxes, one per picture from `first` on, to where O-Net sees the face."""
        pictures = np.arange(first, first + len(boxes))
        expected = _Candidates(pictures, _squared(boxes), np.ones(len(boxes), np.float32))
        seen, offsets, _ = _look(self._onet, ONET_PX, areas, expected)
        return _shifted(seen, offsets)

    def _decide(
        self,
        areas: SummedAreas,
        pictures: Sequence[_Picture],
        sizes: IntArray,
        candidates: _Candidates,
    ) -> Iterator[tuple[int, FaceDetection]]:
        """Run O-Net; yield each face with its frame, a frame's best first.

        The networks' offsets have no bounds, and a picture can be made that turns a box inside
        out. What can't be a face is left out.
        """
        seen, offsets, points = _look(self._onet, ONET_PX, areas, candidates)
        kept = seen.scores > self._config.onet_threshold
        seen, offsets, points = seen[kept], offsets[kept], points[kept]
        origin = [pictures[picture] for picture in seen.picture]
        frame = np.array([picture.frame for picture in origin], np.intp)
        corner = np.array([picture.corner for picture in origin], np.float32).reshape(-1, 2)
        scale = np.array([picture.scale for picture in origin], np.float32).reshape(-1, 2)
        sides = _sides(seen.boxes)
        boxes = (seen.boxes + offsets * sides) * np.tile(scale, 2) + np.tile(corner, 2)
        points = points.reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None, :2]
        points += seen.boxes[:, None, :2] - 1.5  # 1 pixel to count from 0, half one as said above
        landmarks = points * scale[:, None] + corner[:, None]
        sound = np.flatnonzero(_sound(boxes, landmarks, sizes[frame]))
        frame, boxes, landmarks, seen = frame[sound], boxes[sound], landmarks[sound], seen[sound]
        for index in _nms(frame, boxes, seen.scores, ONET_NMS, over="smaller"):
            yield (
                int(frame[index]),
                FaceDetection(
                    box=boxes[index],
                    landmarks=landmarks[index],
                    confidence=float(seen.scores[index]),
                ),
            )


def open_detector(config: DetectConfig, backend: BackendConfig) -> FaceDetector:
    """Load the cascade's three engines.

    Raises:
        EngineError: an engine or its manifest is missing, damaged or unusable.
    """
    with ExitStack() as opened:
        networks = []
        for name in ("pnet", "rnet", "onet"):
            networks.append(open_backend(config.engines / f"{name}.manifest.json", backend))
            opened.callback(networks[-1].close)
        opened.pop_all()
    pnet, rnet, onet = networks
    return FaceDetector(pnet, rnet, onet, config)


def _check(image: Tensor, boxes: FloatArray | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8 or not image.numel():
        raise ValueError(
            f"expected an image (H, W, 3) uint8, got {tuple(image.shape)} {image.dtype}"
        )
    if boxes is not None and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"expected boxes (M, 4), got {boxes.shape}")


def _window(box: FloatArray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Return the whole pixels x1 y1 x2 y2 around a box, or None if no part is in the frame."""
    x1, y1, x2, y2 = box.tolist()
    if not (np.isfinite(box).all() and x1 < x2 and y1 < y2):
        return None
    if not (x1 < width and y1 < height and x2 > 0 and y2 > 0):
        return None
    reach = WINDOW / 2 * max(x2 - x1, y2 - y1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return (
        math.floor(max(x - reach, 0)),
        math.floor(max(y - reach, 0)),
        math.ceil(min(x + reach, width)),
        math.ceil(min(y + reach, height)),
    )


def _cut(frame: int, image: Tensor, extent: tuple[int, int, int, int], limit: int) -> _Picture:
    """Cut the whole pixels x1 y1 x2 y2 out, and shrink them to a width of at most `limit`."""
    x1, y1, x2, y2 = extent
    part = image[y1:y2, x1:x2]
    height, width = part.shape[:2]
    if width > limit:
        size = max(1, round(height * limit / width)), limit
        # As a batch before as planes: by its strides torch then knows the channels to lie last.
        planes = part[None].permute(0, 3, 1, 2)
        part = F.interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    scale = width / part.shape[1], height / part.shape[0]
    return _Picture(frame, part, (x1, y1), scale)


def _into(picture: _Picture, box: FloatArray) -> FloatArray:
    """Turn a box of the frame into one of the picture."""
    corner, scale = (np.tile(np.array(v, np.float32), 2) for v in (picture.corner, picture.scale))
    return (box - corner) / scale


def _scales(shorter_side: int, min_face_px: int) -> Iterator[float]:
    """Yield the scales of the pyramid, from the one that makes the smallest faces fill a cell."""
    scale = CELL_PX / min_face_px
    while shorter_side * scale >= CELL_PX:
        yield scale
        scale *= PYRAMID_STEP


def _chunks(items: IntArray, size: int) -> Iterator[IntArray]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _look(
    network: Backend, size: int, areas: SummedAreas, candidates: _Candidates
) -> tuple[_Candidates, FloatArray, FloatArray]:
    """Return what lies in its picture, with new scores, offsets (N, 4) and points (N, 10)."""
    candidates = candidates[np.flatnonzero(np.isfinite(candidates.boxes).all(axis=1))]
    ends = candidates.boxes.clip(-FAR_PX, FAR_PX).astype(np.intp)
    first = np.maximum(ends[:, :2], 1) - 1
    last = np.minimum(ends[:, 2:], areas.sizes[candidates.picture])
    inside = np.flatnonzero((first < last).all(axis=1))
    candidates, windows = candidates[inside], np.hstack([first, last])[inside]
    n = len(windows)
    scores, offsets, points = (np.empty(shape, np.float32) for shape in (n, (n, 4), (n, 10)))
    for rows in _chunks(np.arange(n), network.max_batch):
        crops = areas.resized(candidates.picture[rows], windows[rows], size, size)
        outputs = network.infer(crops)
        scores[rows] = outputs["probability"].cpu().numpy()
        offsets[rows] = outputs["offsets"].cpu().numpy()
        if "landmarks" in outputs:
            points[rows] = outputs["landmarks"].cpu().numpy()
    return _Candidates(candidates.picture, candidates.boxes, scores), offsets, points


def _joined(parts: Sequence[_Candidates]) -> _Candidates:
    """Return all candidates as one, also of no parts."""
    return _Candidates(
        np.concatenate([np.empty(0, np.intp), *(part.picture for part in parts)]),
        np.concatenate([np.empty((0, 4), np.float32), *(part.boxes for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(part.scores for part in parts)]),
    )


def _sound(boxes: FloatArray, landmarks: FloatArray, sizes: IntArray) -> NDArray[np.bool_]:
    """Return (N,) True where a face of a frame of `sizes`, (N, 2) width and height, can be.

    It is finite, shows at least a pixel in the frame, and is not much larger than it.
    """
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(landmarks).all(axis=(1, 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    shown = np.minimum(boxes[:, 2:], sizes) - np.maximum(boxes[:, :2], 0)
    small = sides.max(axis=1, initial=0) <= MAX_FACE * sizes.max(axis=1, initial=0)
    return np.asarray(finite & (shown >= 1).all(axis=1) & small, bool)


def _sides(boxes: FloatArray) -> FloatArray:
    """Return (N, 4) width, height, width, height."""
    return np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _shifted(candidates: _Candidates, offsets: FloatArray) -> _Candidates:
    """Move the boxes' edges by offsets in box sizes, and make them square again."""
    boxes = candidates.boxes + offsets * _sides(candidates.boxes)
    return _Candidates(candidates.picture, _squared(boxes), candidates.scores)


def _squared(boxes: FloatArray) -> FloatArray:
    """Stretch the shorter side of each box to the longer one, about its middle."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(axis=1, keepdims=True)
    first = boxes[:, :2] + sides * 0.5 - longer * 0.5
    return np.hstack([first, first + longer])


def _best(candidates: _Candidates, limit: int) -> IntArray:
    """Return the indices of the best `limit` candidates of each picture."""
    if len(candidates.scores) <= limit:
        return np.arange(len(candidates.scores))
    order = np.argsort(-candidates.scores, kind="stable")
    picture = candidates.picture[order]
    return np.concatenate([order[picture == p][:limit] for p in np.unique(picture)])


def _nms(
    groups: IntArray,
    boxes: FloatArray,
    scores: FloatArray,
    threshold: float,
    over: Literal["union", "smaller"] = "union",
) -> IntArray:
    """Return the indices of the boxes that no better kept box of their group covers, best first.

    A box covers another if their common area exceeds `threshold` times the area of their union, or
    of the smaller one.
    """
    kept = [np.empty(0, np.intp)]
    for group in np.unique(groups):
        order = np.flatnonzero(groups == group)
        if len(order) > 1:
            order = order[np.argsort(-scores[order], kind="stable")]
            order = order[_uncovered(boxes[order], threshold, over)]
        kept.append(order)
    return np.concatenate(kept)


def _uncovered(
    boxes: FloatArray, threshold: float, over: Literal["union", "smaller"]
) -> NDArray[np.bool_]:
    """Do NMS on boxes in order of score: (N,) True to keep."""
    x1, y1, x2, y2 = boxes.T
    common = (np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)).clip(min=0)
    common *= (np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)).clip(min=0)
    area = (x2 - x1) * (y2 - y1)
    smaller = np.minimum(area[:, None], area)
    whole = smaller if over == "smaller" else area[:, None] + area - common
    covers = np.triu(common > threshold * whole, k=1)  # (N, N): row is better and covers column
    kept = np.ones(len(boxes), bool)
    while True:
        # Each pass settles at least the best box still open; a few passes settle all, because
        # boxes that cover a box that covers a box ... soon lie apart.
        now = ~covers[kept].any(axis=0)
        if (now == kept).all():
            return kept
        kept = now
