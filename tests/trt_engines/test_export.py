import copy
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import models
import trt_engines.export
from models import build_model, file_sha256
from trt_engines.errors import EngineError
from trt_engines.export import MAX_DIFFERENCE, export_engine, write_engine
from trt_engines.manifest import load_manifest


def test_manifest_describes_what_was_written(exported):
    manifest = load_manifest(exported / "tiny.manifest.json")
    assert sorted(path.name for path in exported.iterdir()) == [
        "tiny.manifest.json",
        "tiny.onnx",
        "tiny.safetensors",
    ]
    assert manifest.method == "tiny"
    assert manifest.options == {"width": 6}
    assert manifest.input.size_px == 16
    assert manifest.onnx_sha256 == file_sha256(exported / "tiny.onnx")
    assert manifest.weights_sha256 == file_sha256(exported / "tiny.safetensors")
    assert set(manifest.outputs) == {"probability", "explanation"}
    assert manifest.thresholds is not None
    assert manifest.onnx_torch_max_abs <= MAX_DIFFERENCE["fp32"]
    assert manifest.cost_ms is not None
    assert manifest.cost_ms > 0


def test_graph_takes_bytes_in_batches_of_any_size(exported):
    model = onnx.load(exported / "tiny.onnx")
    (images,) = model.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert sizes == ["N", 3, 16, 16]


METHODS = Path(__file__).parent / "methods"


@pytest.fixture(scope="module")
def traced_again(crops, kept_exports, tmp_path_factory):
    """Trace the network of `exported` once more: its folder, the network, what was logged."""
    folder = tmp_path_factory.mktemp("again")
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "__path__", [*models.__path__, str(METHODS)])
        torch.manual_seed(0)
        model = build_model("tiny", {"width": 6})
        model.train()
        before = copy.deepcopy(model.state_dict())
        patch.setattr(trt_engines.export, "to_onnx", kept_exports.real)
        patch.setattr(logging.getLogger(), "handlers", [handler])
        patch.setattr(logging.getLogger(), "level", logging.INFO)
        export_engine(
            model,
            method="tiny",
            options={"width": 6},
            examples=crops,
            folder=folder,
            licence="Apache-2.0",
            thresholds=None,
        )
        logging.getLogger("onnx_ir.passes").info("as before")
    return folder, model, before, [record.getMessage() for record in records]


def test_same_model_gives_the_same_bytes_without_this_machines_paths(exported, traced_again):
    onnx_bytes = (traced_again[0] / "tiny.onnx").read_bytes()
    assert onnx_bytes == (exported / "tiny.onnx").read_bytes()
    assert b".py" not in onnx_bytes


def test_exporting_says_nothing_of_every_node(traced_again):
    assert traced_again[3] == ["as before"]


def test_model_is_left_as_it_was(traced_again):
    _, model, before, _ = traced_again
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_an_engine_that_cannot_be_written_is_an_error_that_names_its_folder(exported, tmp_path):
    manifest = load_manifest(exported / "tiny.manifest.json")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match=r"file: can't write the engine: .*File exists"):
        write_engine(tmp_path / "file", manifest, b"graph", b"weights")
    (tmp_path / "out" / "tiny.safetensors").mkdir(parents=True)
    with pytest.raises(EngineError, match=r"out: can't write the engine: .*Is a directory"):
        write_engine(tmp_path / "out", manifest, b"graph", b"weights")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["tiny.onnx", "tiny.safetensors"]  # no manifest, so no engine


@pytest.mark.parametrize("flaw", ["looks_at_the_batch", "other_when_traced", "squeezes"])
def test_graph_that_differs_from_torch_is_refused_and_not_written(export, tmp_path, flaw):
    with pytest.raises(EngineError, match=r"tiny: ONNX"):
        export(tmp_path / "out", options={"flaw": flaw})
    assert not (tmp_path / "out").exists()


def test_refused_export_leaves_the_old_engine_in_place(export, engine):
    before = {path.name: path.read_bytes() for path in engine.parent.iterdir()}
    with pytest.raises(EngineError):
        export(engine.parent, options={"flaw": "looks_at_the_batch"})
    assert {path.name: path.read_bytes() for path in engine.parent.iterdir()} == before


def test_network_that_gives_no_number_is_refused(crops, tmp_path):
    model = build_model("tiny", {})
    with torch.no_grad():
        model.last.bias.fill_(np.nan)
    with pytest.raises(EngineError, match="differ"):
        export_engine(
            model,
            method="tiny",
            options={},
            examples=crops,
            folder=tmp_path,
            licence="none",
            thresholds=None,
        )


@pytest.mark.parametrize(
    "examples",
    [
        torch.zeros((1, 3, 16, 16), dtype=torch.uint8),
        torch.zeros((2, 3, 16, 16)),
        torch.zeros((2, 3, 20, 20), dtype=torch.uint8),
    ],
)
def test_unfit_examples_are_refused(export, tmp_path, examples):
    with pytest.raises(ValueError, match="examples must be"):
        export(tmp_path, examples=examples)
