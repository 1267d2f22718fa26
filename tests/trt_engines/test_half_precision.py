"""Float16 graphs: how close they stay to float32, and what they compute in float32 all the same."""

import copy
import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from models import crop_faces, method_names
from trt_engines.backends import TorchConfig, open_backend
from trt_engines.backends.onnx_session import open_session
from trt_engines.builder import TARGETS, Flavour, axes_for, build_plan
from trt_engines.errors import EngineError
from trt_engines.export import MAX_DIFFERENCE, export_engine
from trt_engines.graphs import AttackGraph
from trt_engines.half_precision import TensorCores
from trt_engines.manifest import load_manifest
from trt_engines.variants import seeded_model

PORTRAITS = Path(__file__).resolve().parents[3] / "shared" / "data" / "faces" / "faces_bonafide.zip"
PROBABILITY_DIFFERENCE = 1e-2  # a tenth of that is usual
HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
# Those of few and small operators, for tracing takes long; one size for what is not listed.
SMALL = {
    "fghv": {"size_px": 64, "backbone": "resnet18", "hypotheses": 8, "refinement_steps": 2},
    "highfreq": {"size_px": 64, "encoder": "efficientnet_lite0"},
    "minifasnet": {},
    "udr": {
        "size_px": 64,
        "trunk": "resnet18",
        "pruned": [f"trunk.layer{layer}.{block}.conv2" for layer in (2, 3) for block in (0, 1)],
    },
}
# Kinds of nodes that a method's specification wants in float32, all of them.
EXACT = {
    "fghv": {"Log", "ReduceSum"},
    "highfreq": {"Softmax"},
    "lgsc": {"InstanceNormalization"},
    "minifasnet": {"Softmax"},  # of the explanation
    "recce": {"Softmax"},
    "udr": {"InstanceNormalization"},
}


def _faces(spec):
    """Return eight crops of one face: shifted, mirrored, brighter and darker, coloured, noisy."""
    image = torch.from_numpy(astronaut())
    rng = np.random.default_rng(0)
    crops = []
    for number in range(8):
        box = np.array([[170, 60, 275, 195]]) + rng.uniform(-12, 12, (1, 4))
        (crop,) = crop_faces(image, box.astype(np.float32), spec)
        noise = torch.from_numpy(rng.normal(0, 6, crop.shape))
        colours = torch.from_numpy(rng.uniform(0.6, 1.3, (3, 1, 1)))
        crop = crop.flip(2) if number % 2 else crop
        crops.append((crop * colours + noise).clamp(0, 255).to(torch.uint8))
    return torch.stack(crops)


def _portraits(spec, n=4):
    if not PORTRAITS.is_file():
        pytest.skip("needs ../shared/data/faces")
    crops = []
    with zipfile.ZipFile(PORTRAITS) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        for name in names[:: len(names) // n][:n]:
            image = np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            height, width = image.shape[:2]
            box = np.array([[0.2 * width, 0.1 * height, 0.8 * width, 0.7 * height]], np.float32)
            crops.append(crop_faces(torch.from_numpy(image), box, spec)[0])
    return torch.stack(crops)


class _Exported:
    def __init__(self, name, folder):
        self.name = name
        options = SMALL.get(name, {"size_px": 64})
        self.model = seeded_model(name, options, _faces)
        self.manifest = export_engine(
            self.model,
            method=name,
            options=options,
            examples=_faces(self.model.input_spec),
            folder=folder,
            licence="random weights",
            thresholds=None,
            precision="fp16",
            with_weights=False,
        )
        self.bytes = (folder / self.manifest.onnx).read_bytes()
        self.onnx = onnx.shape_inference.infer_shapes(onnx.load_from_string(self.bytes))
        graph = self.onnx.graph
        self.types = {v.name: v.data_type for v in graph.initializer}
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.types[value.name] = value.type.tensor_type.elem_type

    def float_types(self, node):
        """Return the floating-point types of a node's inputs."""
        return {self.types[name] for name in node.input if self.types.get(name) in (HALF, FLOAT)}


@pytest.fixture(scope="module", params=method_names())
def exported(request, tmp_path_factory):
    """One small network of each method as a float16 engine."""
    return _Exported(request.param, tmp_path_factory.mktemp(request.param))


# raised inside torch's exporter
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("pictures", [_faces, _portraits])
def test_outputs_stay_within_the_bound(exported, pictures):
    crops = pictures(exported.model.input_spec)
    half = AttackGraph(copy.deepcopy(exported.model), "fp16")
    with torch.no_grad():
        wanted = AttackGraph(exported.model)(crops)
        with TensorCores():
            rounded = half(crops)
    session = open_session(exported.bytes, threads=1)
    graph = [torch.from_numpy(o) for o in session.run(None, {"images": crops.numpy()})]
    for found in (rounded, tuple(graph)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=MAX_DIFFERENCE["fp16"])
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=PROBABILITY_DIFFERENCE)


def test_the_manifest_says_how_far_float16_is_from_float32(exported):
    assert exported.manifest.precision == "fp16"
    assert 1e-6 < exported.manifest.onnx_torch_max_abs <= MAX_DIFFERENCE["fp16"]


def test_bytes_go_in_and_float32_comes_out(exported):
    (images,) = exported.onnx.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {o.type.tensor_type.elem_type for o in exported.onnx.graph.output} == {FLOAT}


def test_convolutions_are_half_precision(exported):
    convolutions = [
        exported.float_types(n) for n in exported.onnx.graph.node if n.op_type == "Conv"
    ]
    assert convolutions.count({HALF}) > 0.8 * len(convolutions)


def test_marked_parts_compute_in_float32(exported):
    marked = [n for n in exported.onnx.graph.node if n.op_type in EXACT.get(exported.name, ())]
    assert {node.op_type for node in marked} == EXACT.get(exported.name, set())
    assert [node.name for node in marked if exported.float_types(node) != {FLOAT}] == []


def test_the_graph_builds_for_tensorrt(exported):
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra aot")
    flavour, axes = Flavour("tensorrt_rtx", trt, TARGETS), axes_for(exported.manifest.max_batch)
    assert build_plan(flavour, exported.bytes, name=exported.name, axes=axes).plan


def test_the_torch_back_end_computes_in_half_precision_too(export, crops, tmp_path):
    export(tmp_path, precision="fp16")
    path = tmp_path / "tiny.manifest.json"
    half = open_backend(path, TorchConfig()).infer(crops)["probability"]
    path.write_text(path.read_text().replace('"fp16"', '"fp32"'))
    full = open_backend(path, TorchConfig()).infer(crops)["probability"]
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0, atol=1e-2)


def test_a_network_that_overflows_in_float16_is_refused(export, tmp_path):
    export(tmp_path / "fp32", options={"large_sum": "plain"})
    with pytest.raises(EngineError, match="float16 moves an output"):
        export(tmp_path / "fp16", options={"large_sum": "plain"}, precision="fp16")
    assert not (tmp_path / "fp16").exists()


def test_a_part_marked_float32_does_not_overflow(export, tmp_path):
    export(tmp_path, options={"large_sum": "float32"}, precision="fp16")
    assert load_manifest(tmp_path / "tiny.manifest.json").precision == "fp16"


def test_tensor_cores_add_up_wide_and_round_the_result():
    ones = torch.ones(1, 5001, dtype=torch.float16)
    large = torch.full((1, 1), 300.0, dtype=torch.float16)
    with torch.no_grad(), TensorCores():
        total, square = ones @ ones.T, large @ large
    assert total.dtype == torch.float16
    assert total == 5000  # float16 has steps of 4 there, and would stop at 2048 adding ones
    assert square.isinf()
