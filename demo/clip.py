"""The demo's clip: a SIMULATION of a camera that films a person and a screen with a face on it.

Both faces come from one portrait, scikit-image's `astronaut()` (Eileen Collins, by NASA, in the
public domain). The bona fide one is cut out and stands in a room; the replay is shown on a tablet.
Neither is real footage: room, light and sensor noise are drawn here, too.

The screen is simulated for this clip alone, without `train.attacks`: what a detector says of the
kind of pictures it was trained on would prove little. The light of a display pixel, three stripes,
is blurred by lens and sensor aperture and then sampled once per camera pixel, so that moire comes
about as it does in a camera. The lens is a sharp one and the moire strong, for the demo is there to
show an alert: it says nothing of how good the detector is.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

import av
import numpy as np
import skimage.data
import torch
from av.video.reformatter import Colorspace
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch.nn import functional as F

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

WIDTH, HEIGHT, FPS = 1280, 720, 25
SECONDS: Final = 20.0
TITLE: Final = "SIMULATION: one portrait, as a person and as a replay on a screen"
BONA_FIDE: Final = "bona fide"
REPLAY: Final = "simulated replay"

# Pixels of the portrait, which is 512x512.
_FACE: Final = (180.0, 61.0, 268.0, 172.0)  # x1 y1 x2 y2, as MTCNN finds it
_SHOWN: Final = (108, 8, 348, 308)  # what the tablet shows, likewise
# Clockwise from the bottom left: arm, collar, hair, collar, arm, helmet.
_SILHOUETTE: Final = (
    (30, 512), (22, 470), (20, 420), (26, 360), (42, 296), (53, 264), (71, 239), (107, 211),
    (114, 204), (118, 190), (123, 179), (143, 157), (161, 151), (182, 148), (182, 141), (178, 132),
    (171, 120), (162, 111), (155, 100), (153, 82), (155, 68), (162, 54), (175, 42), (189, 32),
    (203, 23), (221, 17), (236, 16), (253, 19), (270, 28), (285, 41), (295, 57), (301, 82),
    (298, 100), (288, 118), (280, 130), (272, 137), (267, 139), (264, 154), (256, 173), (271, 180),
    (289, 200), (302, 221), (305, 236), (321, 245), (336, 257), (346, 278), (354, 296), (359, 330),
    (362, 352), (390, 346), (430, 350), (465, 375), (487, 412), (497, 455), (508, 470), (510, 512),
)  # fmt: skip

# Pixels of the tablet's display.
_DISPLAY_W, _DISPLAY_H, _BEZEL = 320, 400, 18
_SAMPLES: Final = 48  # along a side of one display pixel


class _Pose(NamedTuple):
    """Where a face stands in the frame."""

    x: float  # of its middle, px
    y: float
    scale: float  # frame px per px of the portrait or the display
    turn: float = 0.0  # clockwise, radians


def faces_at(pts_s: float) -> dict[str, NDArray[np.float32]]:
    """Return where the faces truly are: what each is -> (4,) x1 y1 x2 y2, px."""
    faces = {
        BONA_FIDE: (_person_pose(pts_s), _FACE),
        REPLAY: (_tablet_pose(pts_s), _face_on_tablet()),
    }
    return {name: _placed(pose, face) for name, (pose, face) in faces.items()}


def true_face(pts_s: float, x: float, y: float) -> str | None:
    """Return what the face at a point of the frame, px, is; None if there is no face."""
    for name, (x1, y1, x2, y2) in faces_at(pts_s).items():
        if x1 <= x <= x2 and y1 <= y <= y2:
            return name
    return None


def write_clip(path: Path, seconds: float = SECONDS) -> None:
    """Encode the clip: H.264, 1280x720, 25 frames a second, the word SIMULATION in every frame."""
    scene = _Scene()
    n, piece = round(seconds * FPS), FPS
    # "ultrafast" takes a third of the time of "veryfast", here and in every decoding.
    options = {"preset": "ultrafast", "crf": "22", "g": str(2 * FPS)}
    with av.open(str(path), "w") as container, ThreadPoolExecutor(2) as pool:
        container.metadata["title"] = TITLE
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.colorspace = Colorspace.ITU709
        for first in range(0, n, piece):  # piece by piece, so that pictures don't pile up in memory
            numbers = range(first, min(first + piece, n))
            for number, picture in zip(numbers, pool.map(scene.picture, numbers), strict=True):
                picture.pts, picture.time_base = number, Fraction(1, FPS)
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _person_pose(pts_s: float) -> _Pose:
    """Step nearer and away, and sway; the body always reaches the lower edge of the frame."""
    scale = 1.15 - 0.2 * _wave(pts_s, 17, 0.25)
    return _Pose(
        x=370 + 80 * _wave(pts_s, 12) + 10 * _wave(pts_s, 2.9),
        y=775 - 396 * scale + 7 * _wave(pts_s, 2.3),
        scale=scale,
    )


def _tablet_pose(pts_s: float) -> _Pose:
    """Be held up, moved and brought nearer."""
    return _Pose(
        x=1000 + 50 * _wave(pts_s, 8, 0.3),
        y=310 + 70 * _wave(pts_s, 10),
        scale=0.88 + 0.1 * _wave(pts_s, 15),
        turn=0.05 + 0.05 * _wave(pts_s, 6),
    )


def _wave(pts_s: float, period_s: float, shift: float = 0.0) -> float:
    return math.sin(2 * math.pi * (pts_s / period_s + shift))


class _Scene:
    """The room, the person, the tablet and the camera."""

    def __init__(self) -> None:
        random = np.random.default_rng(2026)
        self._room = _room(random)
        self._portrait = Image.fromarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]
        self._matte = _matte()
        self._tablet = _tablet(self._portrait)
        self._stripes = _stripes(pitch_px=_tablet_pose(0).scale)
        grain = ndimage.gaussian_filter(random.normal(0, 2.4, (HEIGHT + 64, WIDTH + 64)), 0.45)
        self._grain = np.rint(grain).astype(np.int16)
        self._caption = _caption()

    def picture(self, number: int) -> av.VideoFrame:
        """Draw one frame."""
        pts_s = number / FPS
        # The camera is held by hand: the room shifts a little.
        left, top = round(32 + 24 * _wave(pts_s, 9)), round(24 + 12 * _wave(pts_s, 7))
        picture = self._room.crop((left, top, left + WIDTH, top + HEIGHT))
        self._add_person(picture, _person_pose(pts_s))
        light = 0.85 + 0.15 * _wave(pts_s, 13)
        frame = np.array(picture.point([min(round(v * light), 255) for v in range(256)] * 3))
        self._add_tablet(torch.from_numpy(frame), _tablet_pose(pts_s), light)
        h, w, _ = self._caption.shape
        frame[24 : 24 + h, 24 : 24 + w] = self._caption
        return self._filmed(frame, number)

    def _add_person(self, picture: Image.Image, pose: _Pose) -> None:
        u, v = _middle(_FACE)
        left, top = pose.x - u * pose.scale, pose.y - v * pose.scale
        window = (
            max(math.ceil(left), 0),
            math.ceil(top),
            math.floor(left + self._portrait.width * pose.scale),
            HEIGHT,
        )
        corner = (left, top, left, top)
        x1, y1, x2, y2 = (
            (edge - start) / pose.scale for edge, start in zip(window, corner, strict=True)
        )
        size = (window[2] - window[0], window[3] - window[1])
        portrait, matte = (
            image.resize(size, Image.Resampling.BILINEAR, box=(x1, y1, x2, y2))
            for image in (self._portrait, self._matte)
        )
        picture.paste(portrait, window[:2], matte)

    def _add_tablet(self, frame: Tensor, pose: _Pose, light: float) -> None:
        """Film the tablet into the frame, (H, W, 3) uint8."""
        rows, columns = self._tablet.shape[2:]
        u0, v0 = _middle(_face_on_tablet())
        cos, sin = math.cos(pose.turn), math.sin(pose.turn)
        corners = np.array([(u, v) for u in (-u0, columns - u0) for v in (-v0, rows - v0)])
        corners = (pose.x, pose.y) + pose.scale * corners @ ((cos, sin), (-sin, cos))
        left, top = np.floor(corners.min(axis=0)).astype(int)
        right, bottom = np.ceil(corners.max(axis=0)).astype(int)
        window = frame[top:bottom, left:right]
        x = (torch.arange(left, right) + (0.5 - pose.x))[None, :] / pose.scale
        y = (torch.arange(top, bottom) + (0.5 - pose.y))[:, None] / pose.scale
        u, v = cos * x + sin * y + u0, cos * y - sin * x + v0  # px of the tablet
        grid = torch.stack([u * (2 / columns) - 1, v * (2 / rows) - 1], dim=-1)
        seen = F.grid_sample(self._tablet, grid[None], align_corners=False)[0].permute(1, 2, 0)
        colour, alpha, mirrored = seen[..., :3], seen[..., 3:4], seen[..., 4:]
        # Where in a display pixel each camera pixel looks.
        row, column = ((w.clamp(min=0).frac() * _SAMPLES).to(torch.int32) for w in (v, u))
        shining = colour * F.embedding(row * _SAMPLES + column, self._stripes)
        filmed = shining + mirrored * light + (1 - alpha) * window
        window.copy_(filmed.round_().clamp_(0, 255))

    def _filmed(self, frame: NDArray[np.uint8], number: int) -> av.VideoFrame:
        """Convert to YUV and add the sensor's noise, to the luma alone: that is fast."""
        rgb = av.VideoFrame.from_ndarray(frame)
        yuv = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709).to_ndarray()
        y, x = np.random.default_rng(number).integers(0, 64, 2)
        noisy = yuv[:HEIGHT] + self._grain[y : y + HEIGHT, x : x + WIDTH]
        yuv[:HEIGHT] = np.clip(noisy, 0, 255, out=noisy)
        return av.VideoFrame.from_ndarray(yuv, format="yuv420p")


def _matte() -> Image.Image:
    """Return what of the portrait is the person: 0..255, soft at the edge."""
    mask = Image.new("L", (4 * 512, 4 * 512))
    ImageDraw.Draw(mask).polygon([(4 * x, 4 * y) for x, y in _SILHOUETTE], fill=255)
    alpha = np.asarray(mask.resize((512, 512), Image.Resampling.BOX), np.float32)
    # Soft to the inside only: the backdrop must not come along as a halo.
    soft = 2 * ndimage.gaussian_filter(alpha, 1.5) - 255
    return Image.fromarray(np.clip(soft, 0, 255).astype(np.uint8))


def _tablet(portrait: Image.Image) -> Tensor:
    """Return a display in a black frame.

    Args:
        portrait: is shown.

    Returns:
        (1, 5, h, w) float32, channels last: red, green and blue times alpha, 0..255; alpha, 0..1;
        what the glass mirrors, 0..255.
    """
    size = (_DISPLAY_W, _DISPLAY_H)
    picture = portrait.resize(size, Image.Resampling.BICUBIC, box=_SHOWN)
    light = (np.asarray(picture) / 255) ** 2.2
    light = 0.02 + 0.98 * light * (0.92, 0.98, 1.08)  # black still glows, white is bluish
    width, height = _DISPLAY_W + 2 * _BEZEL, _DISPLAY_H + 2 * _BEZEL
    colour = np.full((height, width, 3), 14.0)
    colour[_BEZEL:-_BEZEL, _BEZEL:-_BEZEL] = 255 * np.clip(light, 0, 1) ** (1 / 2.2)
    shape = Image.new("L", (width, height))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, width - 1, height - 1), _BEZEL, fill=255)
    alpha = ndimage.gaussian_filter(np.asarray(shape) / 255, 0.7)[..., None]
    y, x = np.mgrid[:height, :width]
    veil = 26 * np.clip((0.55 * height - y - 0.35 * x) / (0.6 * height), 0, 1)
    lamp = 60 * np.exp(-(np.hypot(x - 0.83 * width, y - 0.86 * height) ** 2) / (2 * 22**2))
    planes = np.dstack([colour * alpha, alpha, (veil + lamp)[..., None] * alpha])
    return torch.from_numpy(planes).float().permute(2, 0, 1)[None]


def _stripes(pitch_px: float) -> Tensor:
    """Return the light of one display pixel, as lens and sensor aperture pass it on.

    Args:
        pitch_px: camera pixels from one display pixel to the next.

    Returns:
        (`_SAMPLES`**2, 3) float32, row by row; the mean is 1.
    """
    middle = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    row = np.abs(middle - 0.5) < 0.44  # a dark line between the rows
    camera_px = _SAMPLES / pitch_px
    planes = []
    for stripe in range(3):
        column = np.abs(middle - (stripe + 0.5) / 3) < 0.14
        light = np.outer(row, column).astype(np.float32)
        light = ndimage.uniform_filter(light, round(0.7 * camera_px), mode="wrap")
        light = ndimage.gaussian_filter(light, 0.18 * camera_px, mode="wrap")
        planes.append(light.ravel() / light.mean())
    return torch.from_numpy(np.stack(planes, axis=1))


def _room(random: np.random.Generator) -> Image.Image:
    """Return a wall, a door, a picture and books out of focus, a little larger than the frame."""
    width, height = WIDTH + 64, HEIGHT + 64
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    room = np.array([206.0, 196, 190]) * (1.04 - 0.22 * y - 0.16 * x)[..., None]
    room += ndimage.zoom(random.normal(0, 6, (10, 16)), (height / 10, width / 16))[..., None]
    room[90:, 590:600] = room[90:, 770:780] = room[90:100, 590:780] = (168, 158, 150)
    room[100:, 600:770] = (150, 136, 124)
    room[70:250, 880:1120] = (214, 212, 206)
    room[90:230, 900:1100] = ndimage.zoom(random.uniform(90, 180, (7, 10, 3)), (20, 20, 1))
    room[600:, 820:] = (106, 90, 76)
    for left in range(850, width - 40, 34):
        tone = random.uniform(70, 170) + random.normal(0, 14, 3)
        room[490 + int(random.integers(40)) : 600, left : left + 30] = tone
    room = ndimage.gaussian_filter(room, (8, 8, 0))
    return Image.fromarray(np.clip(room, 0, 255).astype(np.uint8))


def _caption() -> NDArray[np.uint8]:
    """Return the label that every frame bears, (h, w, 3)."""
    image = Image.new("RGB", (208, 40), (20, 20, 20))
    font = ImageFont.load_default(28)
    ImageDraw.Draw(image).text((104, 20), "SIMULATION", (255, 255, 255), font, anchor="mm")
    return np.asarray(image)


def _face_on_tablet() -> tuple[float, float, float, float]:
    """Return x1 y1 x2 y2, pixels of the display, frame included."""
    scale = _DISPLAY_W / (_SHOWN[2] - _SHOWN[0])
    x1, y1, x2, y2 = ((v - _SHOWN[i % 2]) * scale + _BEZEL for i, v in enumerate(_FACE))
    return x1, y1, x2, y2


def _middle(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _placed(pose: _Pose, face: tuple[float, float, float, float]) -> NDArray[np.float32]:
    half = np.array([face[2] - face[0], face[3] - face[1]]) / 2 * pose.scale
    middle = np.array([pose.x, pose.y])
    return np.concatenate([middle - half, middle + half]).astype(np.float32)
