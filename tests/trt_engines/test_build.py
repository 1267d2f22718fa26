"""From a manifest to a signed plan, by TensorRT-RTX: what is built, kept, refused."""

import json
import os

import pytest
import torch

from trt_engines import build, lower
from trt_engines.backends import OnnxRuntimeConfig, onnx_session, open_backend
from trt_engines.build import build_engine, export_graph
from trt_engines.builder import Flavour, load_tensorrt
from trt_engines.drift import LIMITS, DriftError, Limits
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.faces import load_faces, save_faces, shown
from trt_engines.manifest import Engine, chosen_engines, load_manifest, shipped_engines
from trt_engines.plans import read_key, read_page, read_plans

KEY = b"k" * 32
# inside torch's exporter, and inside pybind11's of TensorRT-RTX
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LOOSE = Limits(1, 1, 1, -1, 1, 10)


@pytest.fixture
def flavour():
    pytest.importorskip("tensorrt_rtx", reason="needs the extra aot")
    return Flavour("tensorrt_rtx", load_tensorrt("tensorrt_rtx"), ("SM89",))


@pytest.fixture
def built(engine, flavour, faces, tmp_path, monkeypatch):
    """Build the tiny engine; arguments may be given. A dozen drawn faces say little of accuracy."""
    for precision in ("int8", "fp8"):
        monkeypatch.setitem(LIMITS, precision, LOOSE)
    threads = torch.get_num_threads()

    def built(precision="int8", *, max_batch=4, flavour=flavour):
        return build_engine(
            Engine(engine), precision, flavour, load_faces(faces), tmp_path / "out",
            max_batch=max_batch, signing_key=KEY,
        )  # fmt: skip

    yield built
    torch.set_num_threads(threads)  # the torch back end sets them


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_a_plan_is_built_with_its_graph_its_manifest_and_its_page(built, precision, flavour):
    outcome = built(precision)
    assert outcome.is_new
    manifest = load_manifest(outcome.path)
    assert manifest.precision == precision
    page, plans = read_plans(outcome.page, KEY, flavour)
    assert page.engine == manifest.model_copy(update={"max_batch": 4})
    assert page.profile["N"] == (1, 2, 4)
    assert [len(plan) > 1000 for plan in plans] == [True]
    assert outcome.page.parent.name == f"{precision}-tensorrt_rtx-SM89"
    if precision != "fp32":
        assert manifest.drift.reference == "torch"
        assert manifest.drift.scores == 12
        assert 0 < manifest.drift.largest <= manifest.onnx_torch_max_abs
        outputs = open_backend(outcome.path, OnnxRuntimeConfig()).infer(
            torch.zeros((2, 3, 16, 16), dtype=torch.uint8)
        )
        assert outputs["probability"].shape == (2,)


def test_only_what_changed_is_built_again(built, monkeypatch):
    first = built()
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_plan", None)  # a call would fail
        patch.setattr(build, "lowered", None)
        assert not built().is_new
    assert built(max_batch=5).is_new  # the plan alone: the graph is the same
    again = built(max_batch=5)
    assert (again.is_new, again.path) == (False, first.path)
    assert len(list(first.page.parent.glob("*.plan"))) == 1


def test_what_was_interrupted_or_damaged_is_built_again(built):
    outcome = built()
    (plan,) = outcome.page.parent.glob("*.plan")
    plan.write_bytes(b"half a plan")
    assert built().is_new
    outcome.page.unlink()
    assert built().is_new
    assert not built().is_new


def test_a_graph_that_drifts_too_far_fails_and_the_engine_before_stays(built, monkeypatch):
    outcome = built()
    before = {p.name: p.read_bytes() for p in outcome.page.parent.iterdir()}
    monkeypatch.setitem(LIMITS, "int8", Limits(0, 0, 0, 1, 0, 0))
    monkeypatch.setattr(lower, "_RECIPE", "another")  # so that there is something to build
    with pytest.raises(DriftError, match="tiny: int8 moves the results too far"):
        built()
    assert {p.name: p.read_bytes() for p in outcome.page.parent.iterdir()} == before


def test_a_new_threshold_reaches_the_plan_s_page(built, engine):
    built()
    data = json.loads(engine.read_text())
    data["thresholds"]["enter"] = 0.8
    engine.write_text(json.dumps(data))
    assert read_page(built().page, KEY).engine.thresholds.enter == 0.8


def test_a_lower_precision_needs_faces(engine, tmp_path):
    with pytest.raises(EngineError, match="name a face file with --faces"):
        export_graph(Engine(engine), "int8", "onnxruntime", None, tmp_path / "out")


def test_an_engine_that_is_not_in_float32_is_no_source(built, faces, tmp_path):
    made = Engine(built("fp16").path)
    with pytest.raises(EngineError, match="in fp16; name the engine in fp32"):
        export_graph(made, "int8", "onnxruntime", load_faces(faces), tmp_path / "again")


@pytest.mark.parametrize("which", [e.label for e in shipped_engines() if e.folder == "mtcnn"])
def test_the_detectors_networks_are_engines_too(which, faces, tmp_path, monkeypatch):
    monkeypatch.setitem(LIMITS, "int8", LOOSE)  # drawn faces say nothing of accuracy
    threads = torch.get_num_threads()
    (engine,) = chosen_engines([which])
    outcome = export_graph(engine, "int8", "onnxruntime", load_faces(faces), tmp_path)
    torch.set_num_threads(threads)
    assert outcome.path.name == engine.path.name  # the folder is one for DetectConfig.engines
    assert outcome.manifest.drift.mean < 0.1


def test_each_network_is_shown_what_it_is_given_in_the_stream(faces):
    faces = load_faces(faces)
    for engine in shipped_engines():
        manifest = load_manifest(engine.path)
        batches = shown(manifest, faces)
        assert all(len(batch) <= manifest.max_batch for batch in batches)
        sizes = {tuple(batch.shape[1:]) for batch in batches}
        if engine.label == "mtcnn/pnet":
            assert len(sizes) > 1
        else:
            assert sizes == {(3, manifest.input.size_px, manifest.input.size_px)}
        assert {str(batch.dtype) for batch in batches} == {f"torch.{manifest.input.dtype}"}


def test_engines_are_chosen_by_label_folder_name_or_path(engine):
    assert {e.folder for e in chosen_engines(["mtcnn"])} == {"mtcnn"}
    assert [e.label for e in chosen_engines(["mtcnn/rnet", "rnet"])] == ["mtcnn/rnet"]
    assert [e.path for e in chosen_engines([str(engine)])] == [engine]
    assert chosen_engines([]) == shipped_engines()
    with pytest.raises(EngineError, match=r"no engine is called 'udr18'; expected one of .*mtcnn"):
        chosen_engines(["udr18"])


@pytest.mark.parametrize("content", [b"not a face file", None])
def test_a_file_that_holds_no_faces_is_an_engine_error(tmp_path, content):
    path = tmp_path / "faces.safetensors"
    if content is None:
        save_faces(path, torch.zeros(3, 8, 8), torch.zeros(3, 4))
    else:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"faces\.safetensors: .*benchmarks\.engine_faces"):
        load_faces(path)


# Plans are programs


def test_a_plan_of_another_key_is_not_believed(built, flavour):
    with pytest.raises(EngineMismatchError, match=r"not signed with this key.*: rebuild it with"):
        read_plans(built().page, b"x" * 32, flavour)


def test_a_changed_page_or_plan_is_refused_and_the_error_names_the_command(built, flavour):
    path = built("fp32").page
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"SM89"', b'"SM86"'))
    command = r"rebuild it with `python -m trt_engines build --models tiny"
    with pytest.raises(EngineMismatchError, match=f"not signed.*{command}"):
        read_plans(path, KEY, flavour)
    path.write_bytes(content)
    (plan,) = path.parent.glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-1] + b"!")
    with pytest.raises(EngineMismatchError, match=f"expected sha256.*{command} --precision fp32"):
        read_plans(path, KEY, flavour)
    plan.unlink()
    with pytest.raises(EngineError, match=f"can't read the plan.*{command}"):
        read_plans(path, KEY, flavour)


def test_a_plan_for_another_version_gpu_or_flavour_is_refused(built, flavour):
    path = built("fp32").page
    rtx = flavour.module

    class Newer:
        __version__ = "99.0"

    others = {
        r"found tensorrt_rtx 99\.0": Flavour("tensorrt_rtx", Newer, ("SM89",)),
        "found tensorrt 1": Flavour("tensorrt", rtx, ("SM89",), "a GPU"),
        "built for SM89, found SM120": Flavour("tensorrt_rtx", rtx, ("SM120",)),
    }
    for found, other in others.items():
        with pytest.raises(EngineMismatchError, match=found):
            read_plans(path, KEY, other)


def test_a_plan_without_its_page_or_from_a_url_is_never_loaded(tmp_path, flavour):
    with pytest.raises(EngineError, match="a plan is not loaded without it"):
        read_plans(tmp_path / "tiny.plan.manifest", KEY, flavour)
    with pytest.raises(EngineError, match="never loaded from elsewhere"):
        read_plans(type(tmp_path)("https://host/tiny.plan.manifest"), KEY, flavour)


def test_what_others_may_write_to_is_not_trusted(built, flavour):
    outcome = built("fp32")
    (plan,) = outcome.page.parent.glob("*.plan")
    for path in (outcome.page.parent, outcome.page, plan):
        mode = path.stat().st_mode
        path.chmod(mode | 0o022)
        with pytest.raises(EngineError, match=rf"{path.name}: others may change it .*chmod go-w"):
            read_plans(outcome.page, KEY, flavour)
        path.chmod(mode)
    outcome.page.parent.chmod(0o777)
    with pytest.raises(EngineError, match="others may change it"):
        built("fp32")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to another user")
def test_what_belongs_to_somebody_else_is_not_trusted(built, flavour):
    outcome = built("fp32")
    os.chown(outcome.page, 12345, -1)
    with pytest.raises(EngineError, match="belongs to user 12345"):
        read_plans(outcome.page, KEY, flavour)


def test_plans_are_written_for_their_owner_alone(built):
    for path in [folder := built("fp32").page.parent, *folder.glob("*.plan*")]:
        assert path.stat().st_mode & 0o077 == 0


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    file.chmod(0o600)
    assert read_key(file) == KEY
    monkeypatch.setenv("FACEWARDEN_ENGINE_KEY", "e" * 40)
    assert read_key(None) == b"e" * 40
    monkeypatch.setenv("FACEWARDEN_ENGINE_KEY_FILE", str(file))
    assert read_key(None) == KEY


def test_a_key_that_is_missing_short_or_readable_by_others_is_refused(tmp_path, monkeypatch):
    for name in ("FACEWARDEN_ENGINE_KEY", "FACEWARDEN_ENGINE_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EngineError, match=r"there is no key: .*openssl rand"):
        read_key(None)
    file = tmp_path / "key"
    with pytest.raises(EngineError, match="can't read the key"):
        read_key(file)
    file.write_bytes(KEY)
    file.chmod(0o640)
    with pytest.raises(EngineError, match="others may read or change the key"):
        read_key(file)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(EngineError, match="expected a key of 32 bytes or more, found 5"):
        read_key(file)


@pytest.mark.parametrize(("runtime", "as_written"), [("onnxruntime", False), ("tensorrt", True)])
def test_a_cpu_computes_int8_for_tensorrt_as_written(
    runtime, as_written, engine, faces, tmp_path, monkeypatch
):
    monkeypatch.setitem(LIMITS, "int8", LOOSE)
    outcome = export_graph(Engine(engine), "int8", runtime, load_faces(faces), tmp_path / "out")
    asked = []
    real = onnx_session.open_session

    def note(model, threads, *, as_written):
        asked.append(as_written)
        return real(model, threads, as_written=as_written)

    monkeypatch.setattr(onnx_session, "open_session", note)
    open_backend(outcome.path, OnnxRuntimeConfig())
    assert asked == [as_written]
