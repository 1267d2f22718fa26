"""Pixels stay on the device that they were decoded to: only boxes and scores come to the host."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from stream.records import FaceCrop, Frame, TrackScore
from stream.stages.batch import batches, common_device
from trt_engines.backends.onnx_session import OnnxRuntimeBackend

if TYPE_CHECKING:
    from stream.analyse import Analyser
    from stream.records import Alert


@pytest.fixture(scope="module")
def frames(read_events, two_faces) -> list[Frame]:
    return [event for event in read_events(two_faces, "cam") if isinstance(event, Frame)][:8]


@pytest.fixture
def crossings(monkeypatch) -> list[int]:
    """Have tensors of the host behave as those of a GPU; return the sizes of what is fetched.

    A stand-in for a GPU: `numpy` refuses what did not come through `cpu`, as CUDA's does. What a
    back end for the CPU copies is its own affair.
    """
    fetched: list[int] = []
    in_backend = False
    real_cpu, real_numpy, real_tolist = (
        torch.Tensor.cpu,
        torch.Tensor.numpy,
        torch.Tensor.tolist,
    )
    real_infer = OnnxRuntimeBackend.infer

    def cpu(tensor):
        on_host = real_cpu(tensor).view(tensor.shape)
        on_host.fetched = True
        if not in_backend:
            fetched.append(tensor.numel() * tensor.element_size())
        return on_host

    def numpy(tensor):
        if not in_backend and not hasattr(tensor, "fetched"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return real_numpy(tensor)

    def tolist(tensor):
        fetched.append(tensor.numel() * tensor.element_size())
        return real_tolist(tensor)

    def infer(backend, images):
        nonlocal in_backend
        in_backend = True
        try:
            return real_infer(backend, images)
        finally:
            in_backend = False

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "numpy", numpy)
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    monkeypatch.setattr(OnnxRuntimeBackend, "infer", infer)
    return fetched


def say(analyser: Analyser, frames: list[Frame]) -> list[TrackScore | Alert]:
    said = [message for frame in frames for message in analyser.analyse([frame])]
    return said + analyser.finish("cam")


def test_from_frame_to_verdict_only_boxes_and_scores_come_to_the_host(
    open_analyser, frames, facts, request
):
    as_ever = say(open_analyser(), frames)
    fetched = request.getfixturevalue("crossings")
    said = say(open_analyser(), frames)
    assert facts(said) == facts(as_ever)
    assert any(isinstance(message, TrackScore) for message in said)
    assert 0 < sum(fetched) < sum(frame.image.numel() for frame in frames) / 50


def test_a_stage_that_reads_pixels_on_the_host_is_caught(frames, crossings):
    with pytest.raises(TypeError, match="can't convert cuda"):
        frames[0].image.numpy()


def test_pictures_of_several_sources_meet_on_the_gpu_if_one_is_there():
    host, device = torch.empty(3), torch.empty(3, device="meta")  # meta: stands for a GPU
    assert common_device([host, host]) == torch.device("cpu")
    assert common_device([host, device, host]) == torch.device("meta")
    assert common_device([]) == torch.device("cpu")


def test_crops_of_several_devices_make_one_batch_on_the_gpu():
    crops = [
        FaceCrop(sighting=None, detector=0, image=torch.empty(3, 8, 8, device=where))
        for where in ("cpu", "meta")
    ]
    (batch,) = batches(crops, 8)
    assert batch.images.device == torch.device("meta")
    assert len(batch.images) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_frames_on_a_gpu_give_the_verdicts_of_frames_on_the_host(open_analyser, frames):
    there = [dataclasses.replace(frame, image=frame.image.cuda()) for frame in frames]
    on_host, on_gpu = (
        [message for message in say(open_analyser(), pictures) if isinstance(message, TrackScore)]
        for pictures in (frames, there)
    )
    assert [score.verdict for score in on_gpu] == [score.verdict for score in on_host]
    for one, other in zip(on_host, on_gpu, strict=True):
        box, same = one.sighting.detection.box, other.sighting.detection.box
        np.testing.assert_allclose(same, box, atol=0.5)
        assert other.probability == pytest.approx(one.probability, abs=0.02)
