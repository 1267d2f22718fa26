"""The version of a configuration, and the JSON Schema by which editors complete one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from stream.config import CONFIG_VERSION, config_schema, load_config
from stream.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "configs" / "stream").glob("*.yaml"))
SCHEMA = json.loads((DOCS / "config.schema.json").read_text("utf-8"))


def write(tmp_path, text):
    path = tmp_path / "cameras.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_stored_schema_is_that_of_the_code():
    assert config_schema() == SCHEMA, "make schema"


def test_the_schema_names_no_path_of_this_machine():
    assert str(ROOT) not in json.dumps(SCHEMA)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_fits_the_schema_and_leads_an_editor_to_it(path):
    text = path.read_text(encoding="utf-8")
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(text))
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert (path.parent / found[1]).resolve() == DOCS / "config.schema.json"


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"sources": [{"id": "a", "uri": "x", "stal_s": 3}]}, "stal_s"),
        ({"backend": "onnx"}, "onnx"),
        ({"version": 2}, "2"),
        ({"metrics": {"port": 70000}}, "70000"),
    ],
)
def test_the_schema_refuses_what_the_program_refuses(wrong, where):
    with pytest.raises(jsonschema.ValidationError, match=where):
        jsonschema.Draft202012Validator(SCHEMA).validate(wrong)


@pytest.mark.parametrize("backend", ["auto", {"kind": "torch", "device": "cuda"}])
def test_the_schema_takes_a_backend_by_its_kind_or_with_its_options(backend):
    jsonschema.Draft202012Validator(SCHEMA).validate({"backend": backend})


def test_a_file_without_a_version_is_read_as_one_of_the_first(tmp_path):
    sources = "sources: [{id: a, uri: a.mp4}]\n"
    assert load_config(write(tmp_path, sources)).version == 1
    assert load_config(write(tmp_path, f"version: 1\n{sources}")).version == 1


def test_a_file_of_a_newer_version_is_refused_with_what_to_do(tmp_path):
    newer = CONFIG_VERSION + 1
    path = write(tmp_path, f"version: {newer}\nsources: [{{id: a, uri: a.mp4}}]\n")
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    says = str(refused.value)
    assert f"of version {newer}" in says
    assert f"reads up to {CONFIG_VERSION}" in says
    assert "install the newer one" in says


@pytest.mark.parametrize("version", ["0", "yes", "'1'x"])
def test_what_is_no_version_is_refused(tmp_path, version):
    with pytest.raises(ConfigError):
        load_config(write(tmp_path, f"version: {version}\nsources: [{{id: a, uri: a.mp4}}]\n"))
