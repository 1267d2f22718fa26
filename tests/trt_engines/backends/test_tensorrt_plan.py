"""The TensorRT back end; each test runs on stand-ins, and unchanged where there is a GPU.

The nine things that bite in back ends like this one (docs/decisions/0044) each have a test here.
"""

import hashlib
import logging
import shutil
import sys
import threading

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.trt_engines.backends.places import altered
from trt_engines.backends import OnnxRuntimeConfig, TensorRTConfig, open_backend
from trt_engines.backends.onnx_session import open_session
from trt_engines.backends.tensorrt_plan import (
    DTYPES,
    TensorRTBackend,
    open_tensorrt,
    signed_plans,
    this_machine,
)
from trt_engines.builder import messages_of
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.manifest import SHIPPED, Refinement, load_manifest, save_manifest
from trt_engines.plans import PlanPage, private_folder, write_plans

OUTPUTS = ("explanation", "probability")
PLAIN, GRAPHS = TensorRTConfig(), TensorRTConfig(cuda_graphs=2)
EVERY_WAY = pytest.mark.parametrize("config", [PLAIN, GRAPHS], ids=["plain", "cuda-graphs"])


def _graph(nodes, outputs, takes=TensorProto.UINT8):
    """An ONNX graph of images (N, 3, 4, 4), with a constant `scale` of 1/255."""
    images = helper.make_tensor_value_info("images", takes, ["N", 3, 4, 4])
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs]
    scale = numpy_helper.from_array(np.array(1 / 255, np.float32), "scale")
    graph = helper.make_graph(nodes, "graph", [images], values, [scale])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def detector():
    """A graph with the outputs of an attack detector."""
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        node("Mul", ["pixels", "scale"], ["light"]),
        node("Sigmoid", ["light"], ["explanation"]),
        node("GlobalAveragePool", ["explanation"], ["means"]),
        node("Flatten", ["means"], ["probability"]),
    ]
    outputs = [
        ("explanation", TensorProto.FLOAT, ["N", 3, 4, 4]),
        ("probability", TensorProto.FLOAT, ["N", 3]),
    ]
    return _graph(nodes, outputs)


@pytest.fixture
def open_plan(place, detector):
    """Open the detector's plan, with TensorRT's methods altered where named."""

    def open_plan(config=PLAIN, *, batches=(1, 2, 4), graph=detector, outputs=OUTPUTS, **methods):
        plan = place.plan(graph, N=batches)
        machine = altered(place.machine, **methods)
        return TensorRTBackend(plan, "tiny", outputs, config, machine)

    return open_plan


class Spy:
    """Notes what a method is called with, and calls it."""

    def __init__(self):
        self.calls = []

    def __call__(self, method, *args):
        self.calls.append(args)
        return method(*args)


def _images(n, place=None, seed=3):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return images.to(place.machine.device) if place else images


def _expected(graph, images):
    session = open_session(graph, threads=1)
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {"images": images.cpu().numpy()})
    return {name: torch.from_numpy(v) for name, v in zip(names, values, strict=True)}


def _check(found, graph, images):
    expected = _expected(graph, images)
    assert set(found) == set(expected)
    for name, values in found.items():
        assert values.device == images.device
        assert values.dtype == expected[name].dtype
        torch.testing.assert_close(values.cpu(), expected[name], rtol=0, atol=1e-3)


@EVERY_WAY
def test_outputs_are_what_the_graph_computes(place, open_plan, detector, config):
    backend = open_plan(config)
    assert backend.max_batch == 4
    for n in (1, 4, 3, 1, 4):
        images = _images(n, place, seed=n)
        _check(backend.infer(images), detector, images)


def test_images_on_the_host_get_outputs_on_the_host(open_plan, detector):
    images = _images(3)
    _check(open_plan().infer(images), detector, images)


def test_images_and_outputs_are_used_where_they_lie(place, open_plan):
    spy = Spy()
    images = _images(3, place)
    outputs = open_plan(set_tensor_address=spy).infer(images)
    assert dict(spy.calls) == {
        "images": images.data_ptr(),
        **{name: values.data_ptr() for name, values in outputs.items()},
    }


def test_images_that_do_not_lie_in_order_are_put_in_order(place, open_plan, detector):
    images = _images(3, place).permute(0, 1, 3, 2)
    assert not images.is_contiguous()
    _check(open_plan().infer(images), detector, images)


@EVERY_WAY
def test_a_batch_below_the_least_is_filled_up_and_one_above_the_most_is_split(
    place, open_plan, detector, config
):
    spy = Spy()
    backend = open_plan(config, batches=(2, 3, 4), set_input_shape=spy)
    images = _images(9, place)
    _check(backend.infer(images), detector, images)
    assert {shape for _, shape in spy.calls} == {(4, 3, 4, 4), (2, 3, 4, 4)}


@EVERY_WAY
def test_pixels_that_the_callers_stream_still_computes_are_waited_for(
    place, open_plan, detector, config
):
    backend = open_plan(config)
    for seed in range(3):
        images = _images(4, place, seed=seed)
        _check(backend.infer(place.late(images)), detector, images)
        with place.cuda.stream(place.cuda.Stream()):
            late = place.late(images)
            found = backend.infer(late)
            _check(found, detector, images)


@EVERY_WAY
def test_work_goes_to_one_stream_that_is_not_the_default(place, open_plan, config):
    spy = Spy()
    backend = open_plan(config, execute_async_v3=spy)
    backend.infer(_images(1, place))
    backend.infer(_images(2, place))
    handles = {handle for (handle,) in spy.calls}
    assert len(handles) == 1
    assert 0 not in handles


@EVERY_WAY
def test_memory_is_kept_while_the_other_stream_uses_it(stand_ins, detector, config):
    plan = stand_ins.plan(detector, N=(1, 2, 4))
    backend = TensorRTBackend(plan, "tiny", OUTPUTS, config, stand_ins.machine)
    images = _images(3)
    outputs = backend.infer(images)
    caller = stand_ins.cuda.current_stream()
    recorded = [event[1:] for event in stand_ins.cuda.events if event[0] == "recorded"]
    whose = dict(recorded)
    assert whose.pop(images.data_ptr()) not in (caller, None)
    assert whose == {values.data_ptr(): caller for values in outputs.values()}


def test_the_host_never_waits_for_a_plain_run(stand_ins, detector):
    plan = stand_ins.plan(detector, N=(1, 2, 4))
    backend = TensorRTBackend(plan, "tiny", OUTPUTS, PLAIN, stand_ins.machine)
    backend.infer(_images(9))
    assert "synchronize" not in stand_ins.cuda.events


@EVERY_WAY
def test_results_belong_to_the_caller(place, open_plan, detector, config):
    backend = open_plan(config)
    images = [_images(2, place, seed=seed) for seed in range(4)]
    found = [backend.infer(some) for some in images]
    for some, outputs in zip(images, found, strict=True):
        _check(outputs, detector, some)


@pytest.mark.parametrize("method", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
@EVERY_WAY
def test_what_tensorrt_refuses_is_an_error(place, open_plan, config, method):
    backend = open_plan(config, **{method: lambda *_: False})
    with pytest.raises(EngineError, match="tiny: the plan"):
        backend.infer(_images(2, place))


@EVERY_WAY
def test_the_error_says_what_tensorrt_said(place, open_plan, config):
    log = messages_of(place.machine.trt).log
    error = place.machine.trt.ILogger.ERROR

    def fail(*_):
        log(error, "Error Code 1: Cask (no kernel)")
        return False

    with pytest.raises(EngineError, match=r"Cask \(no kernel\)$"):
        open_plan(config, execute_async_v3=fail).infer(_images(2, place))


def test_a_shape_that_the_plan_is_not_built_for_is_named_with_those_it_is(place, open_plan):
    images = torch.zeros((2, 3, 4, 5), dtype=torch.uint8, device=place.machine.device)
    with pytest.raises(EngineError, match=r"\(1, 3, 4, 4\) to \(4, 3, 4, 4\).*\(2, 3, 4, 5\)"):
        open_plan().infer(images)


def test_a_context_that_can_not_be_made_is_an_error(open_plan):
    with pytest.raises(EngineError, match="execution context"):
        open_plan(create_execution_context=lambda *_: None)


def test_a_gpu_that_can_not_hold_a_plan_is_an_engine_error(place, open_plan):
    log = messages_of(place.machine.trt).log
    error = place.machine.trt.ILogger.ERROR

    def refuse(*_):
        log(error, "Error Code 2: OutOfMemory (no further information)")

    with pytest.raises(EngineError, match=r"can't be loaded onto .*OutOfMemory"):
        open_plan(create_execution_context=refuse)


def test_a_size_that_depends_on_the_pixels_is_an_error(place, open_plan):
    backend = open_plan(get_tensor_shape=lambda *_: (-1, 3))
    with pytest.raises(EngineError, match="depends on the pixels"):
        backend.infer(_images(2, place))
    with pytest.raises(EngineError, match="depends on the pixels"):
        open_plan(infer_shapes=lambda _: ["images"]).infer(_images(2, place))


def test_bytes_that_are_no_plan_are_a_mismatch_with_what_tensorrt_said(place):
    with pytest.raises(EngineMismatchError, match=r"can't load the plan: .*rror.*build it again"):
        TensorRTBackend(b"not a plan", "tiny", OUTPUTS, PLAIN, place.machine)


def test_a_plan_of_another_version_is_a_mismatch(stand_ins, detector):
    plan = stand_ins.plan(detector, N=(1, 2, 4)).replace(b"11.4.0.106", b"10.16.1.11")
    with pytest.raises(EngineMismatchError, match="Version tag mismatch"):
        TensorRTBackend(plan, "tiny", OUTPUTS, PLAIN, stand_ins.machine)


def test_a_plan_may_not_run_code_of_its_own_on_the_host(open_plan):
    runtimes = []

    def make(runtime, *args):
        runtimes.append(runtime(*args))
        return runtimes[-1]

    open_plan(Runtime=make)
    assert [runtime.engine_host_code_allowed for runtime in runtimes] == [False]


def test_other_outputs_than_promised_are_a_mismatch(open_plan):
    with pytest.raises(EngineMismatchError, match=r"\['mood'\].*\['explanation', 'probability'\]"):
        open_plan(outputs=["mood"])


@pytest.mark.parametrize("kind", ["BOOL", "FLOAT", "HALF", "INT32", "INT64"])
def test_outputs_have_the_type_that_the_plan_gives(place, open_plan, kind):
    onnx_kinds = {"BOOL": "BOOL", "FLOAT": "FLOAT", "HALF": "FLOAT16", "INT32": "INT32"}
    code = TensorProto.DataType.Value(onnx_kinds.get(kind, kind))
    graph = _graph(
        [helper.make_node("Cast", ["images"], ["values"], to=code)],
        [("values", code, ["N", 3, 4, 4])],
    )
    images = _images(2, place)
    found = open_plan(graph=graph, outputs=["values"]).infer(images)
    _check(found, graph, images)
    assert found["values"].dtype == DTYPES[kind]


@pytest.mark.parametrize("kind", ["INT4", "FP4"])
def test_a_type_that_torch_has_not_is_named(place, open_plan, kind):
    dtype = getattr(place.machine.trt.DataType, kind)
    with pytest.raises(EngineError, match=f"'images' is {kind}"):
        open_plan(get_tensor_dtype=lambda *_: dtype)


def test_a_tensor_on_the_host_or_of_shapes_is_refused(place, open_plan):
    host = place.machine.trt.TensorLocation.HOST
    with pytest.raises(EngineError, match="'images' is UINT8 on the host"):
        open_plan(get_tensor_location=lambda *_: host)
    with pytest.raises(EngineError, match="'images' is UINT8; expected pixels"):
        open_plan(is_shape_inference_io=lambda *_: True)


def test_images_of_another_type_are_refused(place, open_plan):
    with pytest.raises(
        ValueError, match=r"takes one or more images, torch\.uint8, got 2, torch\.f"
    ):
        open_plan().infer(_images(2, place).float())


def test_no_images_are_refused(place, open_plan):
    with pytest.raises(ValueError, match="one or more images"):
        open_plan().infer(_images(0, place))


@EVERY_WAY
def test_an_output_of_nothing_has_an_address_all_the_same(place, open_plan, config):
    starts = numpy_helper.from_array(np.array([3], np.int64), "three")
    axes = numpy_helper.from_array(np.array([1], np.int64), "one")
    model = onnx.load_from_string(
        _graph(
            [helper.make_node("Slice", ["images", "three", "three", "one"], ["values"])],
            [("values", TensorProto.UINT8, ["N", 0, 4, 4])],
        )
    )
    model.graph.initializer.extend([starts, axes])
    backend = open_plan(config, graph=model.SerializeToString(), outputs=["values"])
    assert backend.infer(_images(2, place))["values"].shape == (2, 0, 4, 4)


@EVERY_WAY
def test_another_device_may_be_the_current_one(place, open_plan, detector, config):
    images = _images(3, place)
    with place.another_device():
        backend = open_plan(config)
        _check(backend.infer(images), detector, images)
        backend.close()


def test_each_shape_has_a_graph_and_a_context_of_its_own(place, open_plan):
    contexts, runs = Spy(), Spy()
    backend = open_plan(GRAPHS, create_execution_context=contexts, execute_async_v3=runs)
    for n in (1, 2, 1, 2, 2):
        backend.infer(_images(n, place))
    assert len(contexts.calls) == 1 + 2
    assert len(runs.calls) == 2 * 2  # to warm up, and to capture


def test_the_graph_unused_for_longest_gives_way(place, open_plan, detector):
    contexts = Spy()
    backend = open_plan(GRAPHS, create_execution_context=contexts)
    for n, made in ((1, 2), (2, 3), (1, 3), (3, 4), (1, 4), (2, 5)):
        images = _images(n, place)
        _check(backend.infer(images), detector, images)
        assert len(contexts.calls) == made, n


def test_a_refusal_within_a_graph_is_an_error(place, open_plan):
    calls = []

    def refuse_second(method, handle):
        calls.append(handle)
        return method(handle) and len(calls) != 2

    backend = open_plan(GRAPHS, execute_async_v3=refuse_second)
    with pytest.raises(EngineError, match="fails in a CUDA graph"):
        backend.infer(_images(2, place))
    assert len(backend.infer(_images(2, place))["probability"]) == 2  # a new attempt


def test_what_can_not_be_captured_is_an_error_that_says_what_to_set(stand_ins, detector):
    plan = stand_ins.plan(detector, N=(1, 2, 4))

    def compute_too(method, handle):
        torch.zeros(1)
        return method(handle)

    machine = altered(stand_ins.machine, execute_async_v3=compute_too)
    with pytest.raises(EngineError, match=r"can't be captured.*`cuda_graphs` to 0"):
        TensorRTBackend(plan, "tiny", OUTPUTS, GRAPHS, machine).infer(_images(2))


@EVERY_WAY
def test_back_ends_in_several_threads_do_not_disturb_each_other(place, open_plan, detector, config):
    problems = []

    def work(seed):
        try:
            backend = open_plan(config)
            for n in (1, 2, 3, 4, 2, 1):
                images = _images(n, place, seed=seed)
                _check(backend.infer(images), detector, images)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


class Greedy:
    """Asks for more scratch space than there is, for batches above a size."""

    def __init__(self, fits):
        self.fits = fits
        self.sizes = []

    def set_input_shape(self, method, name, shape):
        self.sizes.append(shape[0])
        return method(name, shape)

    def update_device_memory_size_for_shapes(self, method):
        return method() if self.sizes[-1] <= self.fits else 1 << 60

    def methods(self):
        return {
            name: getattr(self, name)
            for name in ("set_input_shape", "update_device_memory_size_for_shapes")
        }


@EVERY_WAY
def test_out_of_memory_halves_the_batch_for_good_and_says_so(
    place, open_plan, detector, config, caplog
):
    greedy = Greedy(fits=2)
    backend = open_plan(config, batches=(1, 4, 8), **greedy.methods())
    images = _images(8, place)
    with caplog.at_level(logging.WARNING):
        _check(backend.infer(images), detector, images)
    (first, second) = [record.getMessage() for record in caplog.records]
    assert first.startswith("tiny: 8 images don't fit the GPU's memory; from now on at most 4 at")
    assert second.startswith("tiny: 4 images don't fit the GPU's memory; from now on at most 2 at")
    greedy.sizes.clear()
    _check(backend.infer(images), detector, images)
    assert set(greedy.sizes) <= {2}
    assert len(caplog.records) == 2


@EVERY_WAY
def test_tensorrts_own_lack_of_memory_halves_the_batch_too(
    place, open_plan, detector, config, caplog
):
    log = messages_of(place.machine.trt).log
    error = place.machine.trt.ILogger.ERROR
    greedy = Greedy(fits=4)

    def execute(method, handle):
        if greedy.sizes[-1] > 2:
            log(error, "[virtualMemoryBuffer.cpp::resizePhysical::151] Error Code 2: OutOfMemory")
            return False
        return method(handle)

    backend = open_plan(config, execute_async_v3=execute, **greedy.methods())
    images = _images(4, place)
    with caplog.at_level(logging.WARNING):
        _check(backend.infer(images), detector, images)
    assert "Error Code 2: OutOfMemory" in caplog.text


def test_captured_graphs_give_their_memory_back_when_there_is_none(place, open_plan):
    contexts = Spy()
    greedy = Greedy(fits=2)
    backend = open_plan(GRAPHS, create_execution_context=contexts, **greedy.methods())
    backend.infer(_images(1, place))
    backend.infer(_images(4, place))
    made = len(contexts.calls)
    backend.infer(_images(1, place))
    assert len(contexts.calls) == made + 1


def test_a_single_image_that_does_not_fit_is_an_error(place, open_plan):
    backend = open_plan(**Greedy(fits=0).methods())
    with pytest.raises(EngineError, match="tiny: 1 images don't fit the GPU's memory"):
        backend.infer(_images(4, place))


def test_the_least_batch_is_not_halved(place, open_plan):
    greedy = Greedy(fits=0)
    backend = open_plan(batches=(2, 3, 4), **greedy.methods())
    with pytest.raises(EngineError, match="tiny: 2 images don't fit"):
        backend.infer(_images(4, place))
    assert greedy.sizes == [4, 2]


def test_an_error_of_cudas_is_an_engines(place, open_plan):
    def broken(*_):
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(EngineError, match="tiny: the GPU fails: CUDA error: unspecified"):
        open_plan(execute_async_v3=broken).infer(_images(2, place))


@EVERY_WAY
def test_closing_twice_is_harmless(place, open_plan, config):
    backend = open_plan(config)
    backend.infer(_images(2, place))
    backend.close()
    backend.close()


@pytest.mark.parametrize("name", ["pnet", "rnet", "onet"])
def test_the_detectors_networks_agree_with_onnxruntime(place, name):
    path = SHIPPED / "mtcnn" / f"{name}.manifest.json"
    size = {"pnet": 40, "rnet": 24, "onet": 48}[name]
    images = torch.rand((3, 3, size, size), generator=torch.Generator().manual_seed(2)) * 255
    graph = (path.parent / load_manifest(path).onnx).read_bytes()
    plan = place.plan(graph, N=(1, 2, 2), H=(12, 40, 64), W=(12, 40, 64))
    backend = open_tensorrt(path, PLAIN, lambda *_: [plan], place.machine)
    expected = open_backend(path, OnnxRuntimeConfig()).infer(images)
    found = backend.infer(images.to(place.machine.device))
    found = {name: values.cpu() for name, values in found.items()}
    torch.testing.assert_close(found, dict(expected), rtol=0, atol=1e-2)


def test_an_engine_with_a_refinement_has_two_plans(place, detector, tmp_path):
    rnet = load_manifest(SHIPPED / "mtcnn" / "rnet.manifest.json")
    second = Refinement(
        onnx="x", onnx_sha256="0" * 64, lower=0.0, upper=1.0, onnx_torch_max_abs=0.0
    )
    outputs = dict.fromkeys(("probability", "feature"), "")
    update = {"name": "tiny", "outputs": outputs, "refinement": second}
    save_manifest(tmp_path / "tiny.manifest.json", rnet.model_copy(update=update))
    node = helper.make_node
    first_graph = _graph(
        [
            node("Cast", ["images"], ["feature"], to=TensorProto.FLOAT),
            node("ReduceMean", ["feature"], ["mean"], axes=[1, 2, 3], keepdims=0),
            node("Sigmoid", ["mean"], ["probability"]),
        ],
        [
            ("feature", TensorProto.FLOAT, ["N", 3, 4, 4]),
            ("probability", TensorProto.FLOAT, ["N"]),
        ],
    )
    second_graph = _graph(
        [
            node("Mul", ["images", "scale"], ["light"]),
            node("ReduceMean", ["light"], ["probability"], axes=[1, 2, 3], keepdims=0),
        ],
        [("probability", TensorProto.FLOAT, ["N"])],
        takes=TensorProto.FLOAT,
    )
    plans = [place.plan(first_graph, N=(1, 2, 4)), place.plan(second_graph, N=(1, 1, 2))]
    backend = open_tensorrt(tmp_path / "tiny.manifest.json", PLAIN, lambda *_: plans, place.machine)
    images = _images(4, place)
    expected = images.float().mean(dim=(1, 2, 3)) / 255  # all are undecided
    torch.testing.assert_close(backend.infer(images)["probability"], expected)


def test_a_plan_that_is_refused_never_reaches_tensorrt(place):
    path = SHIPPED / "mtcnn" / "rnet.manifest.json"

    def refuse(*asked):
        assert asked == (path, load_manifest(path))
        raise EngineMismatchError("signed by nobody")

    spy = Spy()
    machine = altered(place.machine, Runtime=spy)
    with pytest.raises(EngineMismatchError, match="signed by nobody"):
        open_tensorrt(path, PLAIN, refuse, machine)
    assert spy.calls == []


@pytest.fixture
def signed(stand_ins, tmp_path, monkeypatch):
    """The manifest of R-Net with a signed plan beside it, as `build` lays them."""
    key = "0123456789abcdef" * 4
    monkeypatch.setenv("FACEWARDEN_ENGINE_KEY", key)
    folder = tmp_path / "fp32-tensorrt-SM89"
    private_folder(folder)
    for path in (SHIPPED / "mtcnn").glob("rnet.*"):
        shutil.copy(path, folder)
    manifest = load_manifest(folder / "rnet.manifest.json")
    plan = stand_ins.plan((folder / manifest.onnx).read_bytes(), N=(1, 2, 4))
    page = PlanPage(
        engine=manifest.model_copy(update={"max_batch": 4}),
        flavour="tensorrt",
        version=stand_ins.machine.trt.__version__,
        targets=("SM89",),
        gpu="a GPU",
        profile={"N": (1, 2, 4)},
        plan="rnet.plan",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        key="of no meaning here",
        build_s=0.0,
    )
    write_plans(folder, page, {"rnet.plan": plan}, key.encode())
    return folder / "rnet.manifest.json"


def test_a_plan_that_was_built_here_is_loaded(stand_ins, signed):
    plans = signed_plans(None, stand_ins.machine)
    backend = open_tensorrt(signed, PLAIN, plans, stand_ins.machine)
    assert backend.max_batch == 4
    assert backend.infer(torch.zeros((2, 3, 24, 24)))["probability"].shape == (2,)


def test_a_plan_that_was_changed_is_not_loaded(stand_ins, signed):
    path = signed.with_name("rnet.plan")
    path.write_bytes(path.read_bytes() + b" ")
    plans = signed_plans(None, stand_ins.machine)
    with pytest.raises(EngineMismatchError, match="expected sha256"):
        open_tensorrt(signed, PLAIN, plans, stand_ins.machine)


def test_a_plan_of_another_gpu_is_not_loaded(stand_ins, signed):
    stand_ins.cuda.get_device_name = lambda device: "another GPU"
    plans = signed_plans(None, stand_ins.machine)
    with pytest.raises(EngineMismatchError, match="built for a GPU, found another GPU"):
        open_tensorrt(signed, PLAIN, plans, stand_ins.machine)


def test_a_plan_of_another_engine_is_not_loaded(stand_ins, signed):
    manifest = load_manifest(signed)
    save_manifest(signed, manifest.model_copy(update={"onnx_sha256": "0" * 64}))
    plans = signed_plans(None, stand_ins.machine)
    with pytest.raises(EngineMismatchError, match="of another engine"):
        open_tensorrt(signed, PLAIN, plans, stand_ins.machine)


def test_missing_tensorrt_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="extra `gpu`"):
        this_machine("cuda")
