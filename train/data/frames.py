"""The pictures of a listed video, as the streaming path would see them."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder
from stream.decode.media_time import DueFrames
from stream.errors import StreamError
from stream.records import Frame, FrameStamp
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from train.data.datasets._sample import ListedVideo

FOLDER_FPS: Final = 25.0  # of folders of frames, which carry no time
_PICTURES: Final = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def frames_of(video: ListedVideo, root: Path, analyse_fps: float) -> Iterator[Frame]:
    """Yield the frames of a video that the streaming path would analyse, in order.

    Args:
        video: as listed by its data set.
        root: folder of the data set.
        analyse_fps: most frames per second of media; a single picture is one frame.

    Raises:
        TrainError: absent, or no picture in it can be read.
    """
    first, past = video.frames or (0, None)
    for frame in _READERS[video.kind](video, root, analyse_fps):
        if past is not None and frame.stamp.index >= past:
            return
        if frame.stamp.index >= first:
            yield frame


def source_sha256(video: ListedVideo, root: Path) -> str:
    """Return the SHA-256 of a video's file or archive, of a picture, or of a folder's files."""
    if video.kind == "image":
        return hashlib.sha256(_picture(video, root)).hexdigest()
    return _sha256(root / video.path.partition("!")[0])


@lru_cache(maxsize=8)  # many videos of one archive follow each other
def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _video(video: ListedVideo, root: Path, analyse_fps: float) -> Iterator[Frame]:
    path = root / video.path
    if not path.is_file():
        raise TrainError(f"{path}: listed, but absent")
    source = SourceConfig.model_validate({"id": "video", "uri": str(path.absolute())})
    try:
        decoder = open_decoder(source, DecodeConfig(analyse_fps=analyse_fps), session=0)
        try:
            yield from (frame for frame in decoder.frames() if frame is not None)
        finally:
            decoder.close()
    except StreamError as error:
        raise TrainError(f"{path}: can't be decoded: {error}") from error


def _image(video: ListedVideo, root: Path, _analyse_fps: float) -> Iterator[Frame]:
    yield _frame(_decoded(_picture(video, root), str(root / video.path)), 0)


def _picture(video: ListedVideo, root: Path) -> bytes:
    """Return a picture file's content, which may lie in a zip: `a.zip!member`."""
    archive, _, member = video.path.partition("!")
    path = root / archive
    try:
        if not member:
            return path.read_bytes()
        with zipfile.ZipFile(path) as pictures:
            return pictures.read(member)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise TrainError(f"{root / video.path}: can't read it: {error}") from error


def _folder(video: ListedVideo, root: Path, analyse_fps: float) -> Iterator[Frame]:
    archive, _, inner = video.path.partition("!")
    files = _archived(root / archive, inner) if inner else _files(root / archive)
    due = DueFrames(analyse_fps)
    for index, (name, content) in enumerate(files):
        if due.take(index / FOLDER_FPS):
            yield _frame(_decoded(content, name), index)


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    if not folder.is_dir():
        raise TrainError(f"{folder}: listed, but absent")
    for path in sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in _PICTURES), key=lambda p: _by_number(p)
    ):
        yield str(path), path.read_bytes()


def _archived(path: Path, inner: str) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            members = [
                member
                for member in archive.getmembers()
                if member.isfile()
                and Path(member.name).suffix.lower() in _PICTURES
                and f"{member.name}/".startswith(inner.rstrip("/") + "/")
            ]
            for member in sorted(members, key=lambda m: _by_number(Path(m.name))):
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                yield f"{path}!{member.name}", content.read()
    except (OSError, tarfile.TarError) as error:
        raise TrainError(f"{path}: can't read the archive: {error}") from error


def _hdf5(video: ListedVideo, root: Path, analyse_fps: float) -> Iterator[Frame]:
    """Yield the colour pictures of a recording: groups `Frame_<k>` with `array` (3, H, W) RGB."""
    import h5py

    path = root / video.path
    due = DueFrames(analyse_fps)
    try:
        with h5py.File(path) as recording:
            names = [name for name in recording if re.fullmatch(r"Frame_\d+", name)]
            for index, name in enumerate(sorted(names, key=lambda n: int(n[6:]))):
                if due.take(index / FOLDER_FPS):
                    planes = np.asarray(recording[name]["array"])
                    if planes.ndim != 3 or planes.shape[0] != 3 or planes.dtype != np.uint8:
                        raise TrainError(
                            f"{path}: {name}/array: expected (3, H, W) uint8, found "
                            f"{planes.shape} {planes.dtype}"
                        )
                    yield _frame(np.ascontiguousarray(planes.transpose(1, 2, 0)), index)
    except (OSError, KeyError) as error:
        raise TrainError(f"{path}: can't read the recording: {error}") from error


_READERS: Final = {"video": _video, "image": _image, "frames": _folder, "hdf5": _hdf5}


def _decoded(content: bytes, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise TrainError(f"{name}: can't read the picture: {error}") from error


def _frame(image: NDArray[np.uint8], index: int) -> Frame:
    height, width = image.shape[:2]
    stamp = FrameStamp(
        source_id="video",
        session=0,
        index=index,
        pts_s=index / FOLDER_FPS,
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
