"""Parsing and building with TensorRT-RTX, which needs no GPU, and how TensorRT would be called."""

import sys

import pytest
from onnx import TensorProto, helper

from tests.trt_engines.tensorrt_calls import TABLES, CheckedTensorRT, WrongCallError
from trt_engines import builder
from trt_engines.builder import (
    TARGETS,
    Flavour,
    axes_for,
    build_plan,
    load_tensorrt,
    open_flavour,
    plan_key,
)
from trt_engines.errors import EngineError
from trt_engines.manifest import load_manifest, shipped_engines
from trt_engines.plans import load_plan


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra aot")


@pytest.fixture(scope="module")
def flavour(rtx):
    return Flavour("tensorrt_rtx", rtx, TARGETS)


@pytest.fixture
def on_gpu(rtx):
    """Stands for TensorRT on a machine with a GPU: no targets are named, every call is checked."""
    return Flavour("tensorrt", CheckedTensorRT(rtx), ("SM89",), "a GPU")


def _model(*kinds):
    nodes = [
        helper.make_node(kind, [f"x{i}"], [f"x{i + 1}"], name=f"node_{i}")
        for i, kind in enumerate(kinds)
    ]
    first = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N", 3, 8, 8])
    last = helper.make_tensor_value_info(f"x{len(kinds)}", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [first], [last])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.mark.parametrize("engine", shipped_engines(), ids=lambda e: e.label)
def test_shipped_engines_build(flavour, engine):
    manifest = load_manifest(engine.path)
    onnx_bytes = (engine.path.parent / manifest.onnx).read_bytes()
    axes = axes_for(manifest.max_batch)
    plan = build_plan(flavour, onnx_bytes, name=manifest.name, axes=axes).plan
    assert len(plan) > len(onnx_bytes) / 2


@pytest.mark.parametrize("kind", ["FooOp", "Det", "NonZero"])
def test_unsupported_node_is_named_with_its_operator(flavour, kind):
    with pytest.raises(EngineError, match=rf"tiny: .*{kind} \(node_1\)"):
        build_plan(flavour, _model("Relu", kind), name="tiny", axes={"N": (1, 2, 4)})


def test_file_that_is_no_graph_is_an_engine_error(flavour):
    with pytest.raises(EngineError, match="tiny: TensorRT does not support the graph"):
        build_plan(flavour, b"not a graph", name="tiny", axes={})


def test_dynamic_axis_without_sizes_is_named(flavour):
    with pytest.raises(EngineError, match="axis 0 of input 'x0', named 'N', is dynamic"):
        build_plan(flavour, _model("Relu"), name="tiny", axes={"H": (1, 2, 4)})


def test_sizes_out_of_order_are_refused_with_this_builds_messages_only(flavour):
    for _ in range(2):
        with pytest.raises(EngineError, match=r"tiny: sizes .*\(4, 2, 1\).* are refused") as caught:
            build_plan(flavour, _model("Relu"), name="tiny", axes={"N": (4, 2, 1)})
        assert str(caught.value).count("MIN<=OPT<=MAX") == 1


def test_target_that_this_version_does_not_know_is_named(rtx):
    with pytest.raises(EngineError, match="does not build for SM11"):
        flavour = Flavour("tensorrt_rtx", rtx, ("SM11",))
        build_plan(flavour, _model("Relu"), name="tiny", axes={"N": (1, 2, 4)})


@pytest.mark.parametrize(("name", "extra"), [("tensorrt_rtx", "aot"), ("tensorrt", "gpu")])
def test_missing_package_is_an_engine_error_that_says_what_to_install(monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=f"extra `{extra}`"):
        load_tensorrt(name)


def test_without_a_gpu_tensorrt_rtx_builds_ahead_of_time(rtx, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert open_flavour("auto") == Flavour("tensorrt_rtx", rtx, TARGETS)


def test_tensorrt_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(builder, "load_tensorrt", lambda name: None)
    with pytest.raises(EngineError, match=r"torch sees none; see `python -m trt_engines doctor`"):
        open_flavour("tensorrt")


def test_fp8_is_built_for_gpus_that_can_compute_so(flavour):
    assert flavour.for_precision("fp8").targets == ("SM89", "SM120")
    assert flavour.for_precision("int8").targets == TARGETS
    with pytest.raises(EngineError, match="SM86 can't compute in fp8"):
        Flavour("tensorrt_rtx", flavour.module, ("SM86",)).for_precision("fp8")


@pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX")
def test_a_timing_cache_comes_out_and_goes_into_the_next_build(on_gpu):
    axes = {"N": (1, 2, 4)}
    first = build_plan(on_gpu, _model("Relu"), name="tiny", axes=axes)
    assert first.timing_cache
    for cache in (first.timing_cache, b"of another GPU"):
        again = build_plan(on_gpu, _model("Relu"), name="tiny", axes=axes, timing_cache=cache)
        assert again.timing_cache == first.timing_cache


def test_the_key_of_a_plan_depends_on_all_that_makes_it(flavour, rtx):
    def key(flavour=flavour, sha256="0", most=8):
        return plan_key(flavour, sha256, axes_for(most))

    others = [
        Flavour("tensorrt", rtx, TARGETS),
        Flavour("tensorrt_rtx", rtx, ("SM86",)),
        Flavour("tensorrt_rtx", rtx, TARGETS, "a GPU"),
        Flavour("tensorrt_rtx", CheckedTensorRT(rtx, "12.0"), TARGETS),
    ]
    keys = [key(), key(sha256="1"), key(most=9), *(key(flavour=other) for other in others)]
    assert len(set(keys)) == len(keys)
    assert key() == key()


# How TensorRT would be called


def test_both_versions_were_recorded():
    assert [table["version"].split(".")[0] for table in TABLES] == ["10", "11"]


@pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX")
def test_every_call_of_a_build_is_one_that_tensorrt_10_and_11_take(on_gpu):
    built = build_plan(on_gpu, _model("Relu"), name="tiny", axes={"N": (1, 2, 4)})
    assert built.plan
    assert {"Builder.create_network", "IBuilderConfig.clear_flag"} <= set(on_gpu.module.calls)


def test_the_calls_after_an_error_are_checked_as_well(on_gpu):
    with pytest.raises(EngineError, match=r"Det \(node_1\)"):
        build_plan(on_gpu, _model("Relu", "Det"), name="tiny", axes={"N": (1, 2, 4)})
    assert "ParserError.node_operator" in on_gpu.module.calls


def test_a_plan_that_tensorrt_refuses_is_an_error_with_its_reason(on_gpu):
    # There is no driver, or the bytes are no plan: the answer is None either way.
    with pytest.raises(EngineError, match=r"tiny: TensorRT can't load the plan: .+; see `python"):
        load_plan(on_gpu, b"not a plan", "tiny")
    assert on_gpu.module.calls == ["Runtime.deserialize_cuda_engine"]


def test_networks_are_strongly_typed_in_tensorrt_10_too(rtx):
    asked = []

    class Builder:
        def create_network(self, flags):
            asked.append(flags)

    builder._network(rtx, Builder())
    assert asked == [1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)]


def test_what_tensorrt_does_not_take_is_found(on_gpu):
    trt = on_gpu.module
    made = trt.Builder(builder.messages_of(trt))
    config = made.create_builder_config()
    with pytest.raises(WrongCallError, match="num_compute_capabilities is not recorded"):
        config.num_compute_capabilities = 1
    with pytest.raises(WrongCallError, match=r"no BuilderFlag\.FP16"):
        _ = trt.BuilderFlag.FP16
    with pytest.raises(WrongCallError, match="add_optimization_profile takes"):
        config.add_optimization_profile()
    with pytest.raises(WrongCallError, match="create_timing_cache takes"):
        config.create_timing_cache("text")
    with pytest.raises(WrongCallError, match="set_memory_pool_limit takes"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1)
    with pytest.raises(WrongCallError, match="ComputeCapability"):
        _ = trt.ComputeCapability.SM89
    with pytest.raises(WrongCallError, match="int8_calibrator"):
        _ = config.int8_calibrator
