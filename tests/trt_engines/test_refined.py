"""From a method that asks for a second graph to a back end that runs it where it is needed."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch

import models
from models import build_model, file_sha256
from stream.records import CropBatch, FaceCrop
from stream.stages.infer import open_classifier
from trt_engines.__main__ import _verified
from trt_engines.backends import OnnxRuntimeConfig, TorchConfig, open_backend
from trt_engines.backends.refined import RefinedBackend
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.export import export_engine
from trt_engines.manifest import DecisionThresholds, Refinement, load_manifest

CONFIGS = [OnnxRuntimeConfig(), TorchConfig()]
METHODS = Path(__file__).parent / "methods"


def _export(folder, crops, **options):
    torch.manual_seed(0)
    model = build_model("tiny_refined", options).eval()
    export_engine(
        model,
        method="tiny_refined",
        options=options,
        examples=crops,
        folder=folder,
        licence="none",
        thresholds=DecisionThresholds(enter=0.7, leave=0.4, source="made up"),
        max_batch=8,
    )


def _probabilities(crops):
    """Of both looks at each crop, in torch."""
    torch.manual_seed(0)
    model = build_model("tiny_refined", {}).eval()
    with torch.inference_mode():
        outputs = model(model.normalise(crops))
        first = torch.sigmoid(model.attack_logit(outputs))
        return first, torch.sigmoid(model.refine(model.refinement_features(outputs)))


@pytest.fixture(scope="module")
def exported_refined(tmp_path_factory, crops):
    """Folder with an engine that leaves two of the five crops undecided; not to be written to."""
    folder = tmp_path_factory.mktemp("refined")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "__path__", [*models.__path__, str(METHODS)])
        p = _probabilities(crops)[0].sort().values.tolist()
        _export(folder, crops, band=[(p[0] + p[1]) / 2, (p[2] + p[3]) / 2])
    return folder


@pytest.fixture
def engine(tmp_path, exported_refined):
    """Path of the manifest of a private copy of that engine."""
    shutil.copytree(exported_refined, tmp_path, dirs_exist_ok=True)
    return tmp_path / "tiny_refined.manifest.json"


def test_the_manifest_describes_the_second_graph(engine):
    manifest = load_manifest(engine)
    refinement = manifest.refinement
    assert [refinement.lower, refinement.upper] == manifest.options["band"]
    assert refinement.onnx == "tiny_refined.refinement.onnx"
    assert refinement.onnx_sha256 == file_sha256(engine.parent / refinement.onnx)
    assert refinement.onnx_torch_max_abs <= 1e-4
    assert refinement.cost_ms is not None
    assert list(manifest.outputs) == ["probability", "explanation", "feature"]
    graph = onnx.load(engine.parent / refinement.onnx).graph
    assert [value.name for value in graph.input] == ["feature"]
    assert [value.name for value in graph.output] == ["probability"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_undecided_faces_alone_are_refined(engine, crops, config):
    threads = torch.get_num_threads()
    outputs = open_backend(engine, config).infer(crops)
    torch.set_num_threads(threads)
    first, second = _probabilities(crops)
    ranks = first.argsort().argsort()
    expected = torch.where((ranks == 1) | (ranks == 2), second, first)
    torch.testing.assert_close(outputs["probability"], expected, rtol=0, atol=1e-5)
    assert (first - second).abs().min() > 0.1


def test_streaming_gets_the_refined_probability_without_knowing(engine, crops):
    batch = CropBatch(
        crops=tuple(FaceCrop(sighting=None, detector=0, image=c) for c in crops), images=crops
    )
    with open_classifier(engine, OnnxRuntimeConfig()) as classifier:
        found = [score.probability for score in classifier.score(batch)]
    outputs = open_backend(engine, OnnxRuntimeConfig()).infer(crops)
    assert found == outputs["probability"].tolist()
    assert found != pytest.approx(_probabilities(crops)[0].tolist(), abs=0.1)


class _Stored:
    """A back end that gives stored outputs and counts what it was asked."""

    max_batch = 4

    def __init__(self, **outputs):
        self.outputs = {name: torch.tensor(values) for name, values in outputs.items()}
        self.asked = []
        self.closed = False

    def infer(self, images):
        self.asked.append(images)
        return self.outputs

    def close(self):
        self.closed = True


def _refinement(lower, upper):
    return Refinement(
        onnx="r.onnx", onnx_sha256="0" * 64, lower=lower, upper=upper, onnx_torch_max_abs=0
    )


def test_the_band_includes_its_ends_and_the_order_of_faces_is_kept():
    first = _Stored(
        probability=[0.9, 0.25, 0.5, 0.1, 0.75], feature=[[9.0], [2.0], [5.0], [1.0], [7.0]]
    )
    second = _Stored(probability=[0.02, 0.05, 0.07])
    found = RefinedBackend(first, second, _refinement(0.25, 0.75)).infer(torch.empty(5))
    assert second.asked[0].flatten().tolist() == [2, 5, 7]
    assert found["probability"].tolist() == pytest.approx([0.9, 0.02, 0.05, 0.1, 0.07])
    assert first.outputs["probability"].tolist() == pytest.approx([0.9, 0.25, 0.5, 0.1, 0.75])


def test_the_second_graph_rests_while_every_face_is_decided():
    first = _Stored(probability=[0.9, 0.1], feature=[[9.0], [1.0]])
    second = _Stored(probability=[])
    backend = RefinedBackend(first, second, _refinement(0.25, 0.75))
    assert backend.infer(torch.empty(2))["probability"].tolist() == pytest.approx([0.9, 0.1])
    assert second.asked == []


def test_closing_closes_both():
    first, second = _Stored(), _Stored()
    RefinedBackend(first, second, _refinement(0, 1)).close()
    assert first.closed
    assert second.closed


def test_a_damaged_or_missing_second_graph_is_refused(engine):
    path = engine.parent / "tiny_refined.refinement.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineMismatchError, match=r"refinement\.onnx: expected sha256"):
        open_backend(engine, OnnxRuntimeConfig())
    path.unlink()
    with pytest.raises(EngineError, match=r"refinement\.onnx: missing"):
        open_backend(engine, OnnxRuntimeConfig())


def test_a_second_graph_that_differs_from_torch_is_refused_and_nothing_is_written(crops, tmp_path):
    with pytest.raises(EngineError, match=r"tiny_refined\.refinement: ONNX and torch differ"):
        _export(tmp_path / "out", crops, flawed=True)
    assert not (tmp_path / "out").exists()


def _change_band(engine, lower, upper):
    data = json.loads(engine.read_text())
    data["refinement"] |= {"lower": lower, "upper": upper}
    engine.write_text(json.dumps(data))


def test_verify_runs_the_second_graph_whatever_the_first_says(engine):
    _change_band(engine, 1, 1)
    assert "refined probability (1,)" in _verified(engine)


def test_a_band_upside_down_is_refused(engine):
    _change_band(engine, 0.8, 0.2)
    with pytest.raises(EngineError, match=r"lower \(0.8\) must not exceed upper \(0.2\)"):
        load_manifest(engine)


def test_a_method_without_refinement_has_one_graph(exported):
    assert load_manifest(exported / "tiny.manifest.json").refinement is None
    assert not isinstance(
        open_backend(exported / "tiny.manifest.json", OnnxRuntimeConfig()), RefinedBackend
    )
