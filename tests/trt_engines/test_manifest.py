import json

import pytest

from models import file_sha256
from trt_engines.errors import EngineError, EngineMismatchError
from trt_engines.manifest import (
    SHIPPED,
    DecisionThresholds,
    load_manifest,
    save_manifest,
    verified_file,
)


def test_manifest_read_back_is_the_one_written(engine, tmp_path):
    manifest = load_manifest(engine)
    copy = tmp_path / "copy.manifest.json"
    save_manifest(copy, manifest)
    assert load_manifest(copy) == manifest
    assert copy.read_bytes() == engine.read_bytes()


def test_a_manifest_of_before_there_were_families_is_read(engine, tmp_path):
    content = json.loads(engine.read_text(encoding="utf-8"))
    old = tmp_path / "old.manifest.json"
    old.write_text(json.dumps({k: v for k, v in content.items() if k != "family"}))
    assert "family" in content
    assert load_manifest(old).family is None


def test_saving_leaves_no_temporary_file(engine, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    save_manifest(folder / "a.manifest.json", load_manifest(engine))
    assert [path.name for path in folder.iterdir()] == ["a.manifest.json"]


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"no\.manifest\.json: can't read"):
        load_manifest(tmp_path / "no.manifest.json")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "Invalid JSON"),
        ("[]", "valid"),
        ("{}", "name"),
        (b"\xff\xfe\x00garbage", "Invalid JSON"),
    ],
)
def test_malformed_manifest_is_refused_with_the_reason(tmp_path, content, complaint):
    path = tmp_path / "bad.manifest.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EngineError, match=complaint):
        load_manifest(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("onnx_sha256", "0" * 63),
        ("schema_version", 2),
        ("max_batch", 0),
        ("thresholds", {"enter": 1.5, "leave": 0.1, "source": ""}),
        ("nonsense", 1),
        ("onnx", "../elsewhere/model.onnx"),
        ("weights", "/etc/hostname"),
    ],
)
def test_manifest_with_a_wrong_field_names_it(engine, field, value):
    data = json.loads(engine.read_text())
    engine.write_text(json.dumps({**data, field: value}))
    with pytest.raises(EngineError, match=field):
        load_manifest(engine)


def test_file_with_another_content_is_a_mismatch(engine):
    manifest = load_manifest(engine)
    path = engine.parent / manifest.onnx
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineMismatchError, match=r"tiny\.onnx: expected sha256"):
        verified_file(engine, manifest.onnx, manifest.onnx_sha256)


def test_missing_file_is_named(engine):
    manifest = load_manifest(engine)
    (engine.parent / manifest.onnx).unlink()
    with pytest.raises(EngineError, match=r"tiny\.onnx: missing"):
        verified_file(engine, manifest.onnx, manifest.onnx_sha256)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.manifest.json")), ids=lambda p: p.name)
def test_every_shipped_engine_is_the_one_its_manifest_describes(path):
    manifest = load_manifest(path)
    assert file_sha256(path.parent / manifest.onnx) == manifest.onnx_sha256
    if manifest.weights is not None:
        assert file_sha256(path.parent / manifest.weights) == manifest.weights_sha256


def test_thresholds_that_decide_on_a_track_of_which_nothing_is_known_are_refused():
    with pytest.raises(ValueError, match=r"leave is 0.8, expected 0.5 or less"):
        DecisionThresholds(enter=0.7, leave=0.8, source="test")
    with pytest.raises(ValueError, match=r"enter is 0.45, expected 0.5 or more: a track of which"):
        DecisionThresholds(enter=0.45, leave=0.4, source="test")
