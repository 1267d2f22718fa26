import pytest
import torch

from trt_engines.backends import OnnxRuntimeConfig, open_backend
from trt_engines.errors import EngineError
from trt_engines.export import checked_difference
from trt_engines.export_mtcnn import export_mtcnn
from trt_engines.manifest import SHIPPED, load_manifest
from trt_engines.mtcnn import PARTS, load_network


@pytest.mark.slow
def test_export_reproduces_the_shipped_files_graphs(tmp_path):
    paths = export_mtcnn(tmp_path)
    assert [path.name for path in paths] == [f"{name}.manifest.json" for name in PARTS]
    for path in paths:
        new, shipped = load_manifest(path), load_manifest(SHIPPED / "mtcnn" / path.name)
        # The bytes change with the version of torch, what they compute does not.
        assert new.outputs == shipped.outputs
        assert new.input == shipped.input
        assert new.max_batch == shipped.max_batch
        assert new.onnx_torch_max_abs < 1e-5
        assert b".py" not in (tmp_path / new.onnx).read_bytes()


@pytest.mark.parametrize("name", PARTS)
def test_shipped_graph_computes_what_facenet_pytorch_does_where_it_is_unsure(name):
    # Pure noise saturates the probabilities; smooth patches of colour do not.
    sides = {"pnet": (61, 44), "rnet": (24, 24), "onet": (48, 48)}[name]
    generator = torch.Generator().manual_seed(3)
    patches = torch.rand((16, 3, 4, 4), generator=generator) * 255
    images = torch.nn.functional.interpolate(patches, sides, mode="bicubic").clamp(0, 255)
    network = load_network(name)
    assert 0.001 < network(images)[1].max() < 1
    graph = (SHIPPED / "mtcnn" / f"{name}.onnx").read_bytes()
    assert checked_difference(graph, network, [images], name=name) < 1e-5


def test_pnet_sees_twelve_pixels_at_each_second_one():
    backend = open_backend(SHIPPED / "mtcnn" / "pnet.manifest.json", OnnxRuntimeConfig())
    for height, width, rows, columns in ((12, 12, 1, 1), (13, 12, 2, 1), (30, 21, 10, 6)):
        outputs = backend.infer(torch.zeros((2, 3, height, width)))
        assert outputs["probability"].shape == (2, rows, columns)
        assert outputs["offsets"].shape == (2, 4, rows, columns)


def test_unknown_network_is_refused():
    with pytest.raises(EngineError, match="pnet, rnet, onet"):
        load_network("qnet")
