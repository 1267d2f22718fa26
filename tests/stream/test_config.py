from pathlib import Path

import pytest

from stream.config import JsonlSinkConfig, RedisSinkConfig, load_config
from stream.errors import ConfigError
from trt_engines.backends import AutoConfig

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("sources", [{"id": "cam", "uri": "clip.mp4"}])


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "stream").glob("*.yaml")), ids=str)
def test_every_shipped_configuration_loads(path):
    assert load_config(path).sources


def test_defaults_need_only_a_source():
    config = load_config(None, [SOURCES])
    assert config.decode.analyse_fps == 5
    assert isinstance(config.sinks[0], RedisSinkConfig)


def test_an_override_wins_over_the_file_and_a_later_one_over_an_earlier(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("track: {lost_after_s: 9}\nsources: [{id: a, uri: x.mp4}]\n")
    overrides = [("track.lost_after_s", 3), ("track.lost_after_s", 4)]
    assert load_config(path).track.lost_after_s == 9
    assert load_config(path, overrides).track.lost_after_s == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("track.lost_aftr_s", 3), "track.lost_aftr_s: unknown key; did you mean 'lost_after_s'?"),
        (("sinks", [{"kind": "redis", "urll": "x"}]), "did you mean 'url'?"),
        (("sources", [{"id": "a", "url": "x"}]), "did you mean 'uri'?"),
        (("trakc.confirm_s", 3), "trakc: unknown key; did you mean 'track'?"),
        (("track.zzzzqqqq", 3), "known keys: "),
        (("track.lost_after_s", -1), "track.lost_after_s: Input should be greater than 0"),
        (("track.lost_after_s", "soon"), "track.lost_after_s: Input should be a valid number"),
        (("backend.kind", "onxruntime"), "backend: Input tag 'onxruntime'"),
        (("backend", "onxruntime"), "backend: Input tag 'onxruntime'"),
        (("backend", {"kind": "tensorrt", "cuda_graph": 2}), "did you mean 'cuda_graphs'?"),
        (
            ("backend", {"kind": "torch", "device": "gpu"}),
            "backend.torch.device: String should match",
        ),
        (("fuse", {"enter": 0.4}), "fuse: enter is 0.4, expected 0.5 or more: a track of which"),
        (("fuse", {"enter": 0.7, "leave": 0.6}), "fuse: leave is 0.6, expected 0.5 or less"),
        (("sources.deeper", 1), "sources.deeper: sources is a value and has no keys"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_to_do(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [SOURCES, override])
    assert message in str(caught.value)


def test_a_back_end_may_be_named_by_its_kind_alone():
    assert load_config(None, [SOURCES, ("backend", "auto")]).backend == AutoConfig()
    assert load_config(None, [SOURCES, ("backend", {"kind": "auto"})]).backend == AutoConfig()


def test_two_sources_of_one_id_are_refused():
    twice = [{"id": "a", "uri": "x"}, {"id": "a", "uri": "y"}]
    with pytest.raises(ConfigError, match="used twice: a"):
        load_config(None, [("sources", twice)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- just\n- a list\n", "expected keys and values, found a list"),
        ("a: [unclosed\n", "can't read the configuration"),
        ("", "sources"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as caught:
        load_config(path)
    assert message in str(caught.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_secrets_are_not_printed():
    config = load_config(
        None,
        [
            ("sources", [{"id": "a", "uri": "rtsp://user:s3cret@host/path"}]),
            ("sinks", [{"kind": "redis", "url": "redis://:s3cret@host"}]),
        ],
    )
    shown = config.model_dump_json() + repr(config)
    assert "s3cret" not in shown
    assert "rtsp://host/path" in shown


def test_a_sink_is_chosen_by_its_kind():
    config = load_config(None, [SOURCES, ("sinks", [{"kind": "jsonl", "path": "out.jsonl"}])])
    assert isinstance(config.sinks[0], JsonlSinkConfig)
