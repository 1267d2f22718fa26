"""The pictures of a listed video, as the streaming path would see them."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image, ImageOps

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder
from stream.decode.media_time import DueFrames
from stream.errors import StreamError
from stream.records import Frame, FrameStamp
from train.data.datasets._tree import is_picture, printable, some
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from train.data.datasets._sample import ListedVideo

_16_TO_8_BIT: Final = 65535 / 255
_UNREADABLE: Final = (OSError, EOFError, KeyError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


class VideoFrames:
    """The frames of a listed video that the streaming path would analyse; iterate once.

    Pictures that carry no time (a folder without a frame rate) are all taken.

    Attributes:
        damage: what could not be read, once the frames are through; None: nothing.
    """

    def __init__(self, video: ListedVideo, root: Path, analyse_fps: float) -> None:
        """Take a video.

        Args:
            video: as listed by its data set.
            root: folder of the data set.
            analyse_fps: most frames per second of media; a single picture is one frame.
        """
        self.damage: str | None = None
        self._video = video
        self._path = root / video.path
        self._name = printable(str(self._path if video.member is None else root / video.path))
        if video.member is not None:
            self._name = f"{self._name}//{printable(video.member)}"
        self._analyse_fps = analyse_fps
        self._digest = hashlib.sha256()  # of pictures, as they are read
        self._pictures = _pictures_of(video, self._path) if video.kind in _PICTURED else None

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, in order.

        Raises:
            TrainError: absent, or no picture in it can be read.
        """
        first, past = self._video.frames or (0, None)
        readers = {"video": self._decoded, "hdf5": self._recorded}
        for frame in readers.get(self._video.kind, self._opened)():
            if past is not None and frame.stamp.index >= past:
                return
            if frame.stamp.index >= first:
                yield frame

    def sha256(self) -> str:
        """Return the SHA-256 of a file, of a picture, or of the pictures of a folder in order.

        Raises:
            TrainError: it can't be read.
        """
        try:
            if self._pictures is None:
                with self._path.open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            for _, content in self._pictures:  # those that no frame was made of
                self._take(content)
        except _UNREADABLE as error:
            if self.damage is None:
                raise TrainError(f"{self._name}: can't be read: {error}") from error
        return self._digest.hexdigest()

    def _take(self, content: bytes) -> None:
        single = self._video.kind == "image"
        self._digest.update(content if single else hashlib.sha256(content).digest())

    def _decoded(self) -> Iterator[Frame]:
        if not self._path.is_file():
            raise TrainError(f"{self._name}: listed, but absent")
        source = SourceConfig.model_validate({"id": "video", "uri": str(self._path.absolute())})
        config = DecodeConfig(analyse_fps=self._analyse_fps)
        seen = 0
        try:
            decoder = open_decoder(source, config, session=0)
            try:
                for frame in decoder.frames():
                    if frame is not None:
                        seen += 1
                        yield frame
            finally:
                decoder.close()
        except StreamError as error:
            if not seen:
                raise TrainError(f"{self._name}: can't be decoded: {error}") from error
            self.damage = str(error)

    def _opened(self) -> Iterator[Frame]:
        """Yield pictures; those that can't be read are left out and told."""
        assert self._pictures is not None
        fps = self._video.fps
        due = DueFrames(self._analyse_fps) if fps else None
        lost: list[str] = []
        index, read = -1, 0
        try:
            for index, (name, content) in enumerate(self._pictures):
                self._take(content)
                if due is not None and fps and not due.take(index / fps):
                    continue
                try:
                    picture = read_picture(content)
                except TrainError as error:
                    lost.append(f"{name}: {error}")
                    continue
                read += 1
                yield _frame(picture, index, index / (fps or self._analyse_fps))
        except _UNREADABLE as error:
            lost.append(f"{self._name}: can't be read: {error}")
        if not read:
            raise TrainError(lost[0] if lost else f"{self._name}: no picture in it")
        if lost:
            self.damage = f"{len(lost)} of {index + 1} pictures can't be read: {some(lost)}"

    def _recorded(self) -> Iterator[Frame]:
        """Yield the colour pictures of a recording: groups `Frame_<k>` with `array` (3, H, W)."""
        import h5py

        fps = self._video.fps
        due = DueFrames(self._analyse_fps) if fps else None
        lost: list[str] = []
        names: list[str] = []
        read = 0
        try:
            with h5py.File(self._path) as recording:
                names = sorted(
                    (name for name in recording if re.fullmatch(r"Frame_\d+", name)),
                    key=lambda name: int(name[6:]),
                )
                for index, name in enumerate(names):
                    if due is not None and fps and not due.take(index / fps):
                        continue
                    try:
                        planes = np.asarray(recording[name]["array"])
                    except (OSError, KeyError) as error:
                        lost.append(f"{name}: {error}")
                        continue
                    if planes.ndim != 3 or planes.shape[0] != 3 or planes.dtype != np.uint8:
                        raise TrainError(
                            f"{self._name}: {name}/array: expected (3, H, W) uint8, found "
                            f"{planes.shape} {planes.dtype}"
                        )
                    read += 1
                    picture = np.ascontiguousarray(planes.transpose(1, 2, 0))
                    yield _frame(picture, index, index / (fps or self._analyse_fps))
        except OSError as error:
            raise TrainError(f"{self._name}: can't read the recording: {error}") from error
        if not read:
            raise TrainError(f"{self._name}: {lost[0] if lost else 'no picture in it'}")
        if lost:
            self.damage = f"{len(lost)} of {len(names)} frames can't be read: {some(lost)}"


_PICTURED: Final = ("image", "frames")


def file_state(video: ListedVideo, root: Path) -> str:
    """Return what changes when the file of a video, or how it is read, does; costs no reading.

    After a bar stands what the disk says of it (number, sizes, times): where that alone differs,
    the content may still be the same.
    """
    path = root / video.path
    read_as = f"{video.kind} {video.fps or ''}"
    try:
        entries = [path]
        if path.is_dir():
            entries = sorted(entry for entry in path.iterdir() if is_picture(entry.name))
        about = hashlib.sha256()
        for entry in entries:
            stat = entry.stat()
            line = f"{printable(entry.name)} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
            about.update(line.encode())
    except OSError:
        return f"{read_as}|absent"
    return f"{read_as}|{len(entries)} {about.hexdigest()[:32]}"


def _pictures_of(video: ListedVideo, path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of a picture, or of the pictures of a folder in order.

    Raises:
        TrainError: absent.
    """
    if video.member is None and not path.exists():
        raise TrainError(f"{printable(str(path))}: listed, but absent")
    if video.member is None:
        entries = [path]
        if video.kind == "frames":
            entries = [entry for entry in path.iterdir() if is_picture(entry.name)]
        for entry in sorted(entries, key=_by_number):
            yield printable(str(entry)), entry.read_bytes()
    elif video.kind == "image":
        with zipfile.ZipFile(path) as archive:
            yield printable(video.member), archive.read(video.member)
    else:
        with tarfile.open(path) as archive:
            yield from _packed(archive, video.member)


def _packed(archive: tarfile.TarFile, folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield the pictures of a folder in an archive; if some can't be read, raise in the end."""
    members: list[tarfile.TarInfo] = []
    failure = None
    try:
        members.extend(archive)
    except _UNREADABLE as error:  # it ends too early; what came before is in the list
        failure = error
    pictures = [
        member
        for member in members
        if member.isfile()
        and PurePosixPath(member.name).is_relative_to(folder)  # also of `./folder/...`
        and is_picture(PurePosixPath(member.name).name)
    ]
    for member in sorted(pictures, key=lambda m: _by_number(Path(m.name))):
        try:
            content = archive.extractfile(member)
            assert content is not None  # a regular file
            read = content.read()
        except _UNREADABLE as error:
            failure = error
            continue
        yield printable(member.name), read
    if failure is not None:
        raise failure


def read_picture(content: bytes) -> NDArray[np.uint8]:
    """Return an upright picture (H, W, 3) RGB, of any depth.

    Raises:
        TrainError: it can't be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                upright = ImageOps.exif_transpose(picture)
                if upright.mode.startswith("I") or upright.mode == "F":
                    return _scaled(np.asarray(upright))
                return np.array(upright.convert("RGB"))
    # What Pillow's decoders raise on damaged files is of a dozen types, SyntaxError among them.
    except Exception as error:
        raise TrainError(
            f"can't read the picture: {type(error).__name__}: {error}".replace("\n", " ")
        ) from error


def _scaled(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return (H, W, 3) of grey levels that are 16-bit whole numbers, or 0..1 or 0..255."""
    levels = grey.astype(np.float64)
    if np.issubdtype(grey.dtype, np.integer):
        levels = levels / _16_TO_8_BIT
    elif levels.max(initial=0) <= 1:
        levels = levels * 255
    if not (
        np.isfinite(levels).all() and levels.min(initial=0) >= 0 and levels.max(initial=0) < 256
    ):
        raise ValueError("grey levels are neither 16-bit nor 0..1 nor 0..255")
    return np.repeat(np.rint(levels).astype(np.uint8)[..., None], 3, axis=2)


def _frame(image: NDArray[np.uint8], index: int, pts_s: float) -> Frame:
    height, width = image.shape[:2]
    stamp = FrameStamp(
        source_id="video",
        session=0,
        index=index,
        pts_s=pts_s,
        captured_at=0.0,
        width=width,
        height=height,
        decoder="pillow",
    )
    return Frame(stamp=stamp, image=torch.from_numpy(image))


def _by_number(path: Path) -> tuple[int, str]:
    """Sort frame 10 after frame 9, whether or not the names are padded."""
    number = re.search(r"(\d+)(?=\D*$)", path.stem)
    return int(number[1]) if number else -1, path.name
