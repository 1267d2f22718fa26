"""Pixels on their way from the process that decodes a file."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from stream.config import DecodeConfig, SourceConfig
from stream.decode import open_decoder
from stream.records import Frame
from stream.scan import child, reading
from stream.scan.policy import ScanLimits

if TYPE_CHECKING:
    from pathlib import Path

FORK = multiprocessing.get_context("fork")


def read(path: Path) -> tuple[list[Frame], reading.ReadEnd]:
    decode = DecodeConfig(kind="sampled", pictures="keyframes", analyse_fps=1)
    task = child.Task(bytes(path), "file", False, False, None, decode, ScanLimits())
    frames = []
    with ThreadPoolExecutor(1) as listeners:
        its = reading.Reading(task, FORK, listeners)  # type: ignore[arg-type]
        try:
            while not isinstance(heard := its.take(), reading.ReadEnd):
                frames += [heard] if heard is not None else []
        finally:
            its.close()
    return frames, heard


def test_frames_larger_than_a_pipe_arrive_to_the_bit(write_clip, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", n=5, size=(640, 360))
    frames, end = read(path)
    source = SourceConfig.model_validate({"id": "file", "uri": str(path)})
    decode = DecodeConfig(kind="sampled", pictures="keyframes", analyse_fps=1)
    wanted = [f for f in open_decoder(source, decode, session=0).frames() if f is not None]
    assert end.status == "ok"
    assert len(frames) == len(wanted) == 1
    assert all(torch.equal(f.image, w.image) for f, w in zip(frames, wanted, strict=True))


def test_a_process_that_dies_within_a_frame_has_crashed(write_clip, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", n=5, size=(640, 360))

    def half(pipe, frame, seen):
        stamp = frame.stamp
        about = {"width": stamp.width, "height": stamp.height, "decoder": stamp.decoder}
        child._tell(pipe, "frame", seen=seen, **about)
        os.write(pipe.fileno(), bytes(1000))
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(child, "_send", half)
    frames, end = read(path)
    assert frames == []
    assert (end.status, end.may_retry) == ("crashed", True)
    assert "SIGKILL" in (end.reason or "")
