"""Schema of configs/stream/*.yaml. Defaults stand here only; a YAML holds what differs.

`python -m stream.config > docs/config.schema.json` writes the JSON Schema, by which editors
complete a YAML whose first line names it.

Each stage's options are one class, passed to that stage's constructor. Units are in the names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema

from models import lay_over, one_line
from stream.errors import ConfigError
from stream.redact import MIN_SECRET_CHARS, redact, secrets_of
from trt_engines.backends import BackendConfig, OnnxRuntimeConfig
from trt_engines.manifest import SHIPPED, check_thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence


# Letters, digits and `. _ -`, so that a name fits file names, Redis keys and message ids.
SOURCE_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
CONFIG_VERSION: Final = 1  # the next when a key that is in use changes its meaning or goes away
_LONGEST_S: Final = 1e9  # 30 years; the system's timers can't take much more


class Options(BaseModel):
    """Frozen and strict: unknown keys, infinity, NaN and endless durations are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _countable(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name.endswith("_s") and value is not None and value > _LONGEST_S:
                raise ValueError(f"{name} ({value:g}) must not exceed {_LONGEST_S:g} seconds")
        return self


class SourceConfig(Options):
    """One camera or file."""

    id: str = Field(pattern=SOURCE_ID, description="Name used in every message.")
    uri: SecretStr = Field(
        description="rtsp://, rtsps://, http(s):// (needs allow_http), a path, or a webcam device "
        "such as /dev/video0. May hold credentials, which never leave the process."
    )
    allow_http: bool = Field(False, description="Accept http:// and https:// for this source.")
    rtsp_transport: Literal["auto", "tcp", "udp"] = Field(
        "auto",
        description="How RTSP brings the video; auto: TCP, and UDP from a camera that refuses TCP.",
    )
    ca_file: FilePath | None = Field(
        None,
        description="PEM file of whom to trust with rtsps and https: the authority that signed "
        "the certificate, or the certificate itself; default: the system's authorities.",
    )
    fingerprint: str | None = Field(
        None,
        pattern=r"^(?:[0-9a-fA-F]{2}:?){32}$",
        description="SHA-256 of the one certificate to trust with rtsps and https, hex digits.",
    )
    insecure: bool = Field(
        False,
        description="Accept any certificate with rtsps and https: who answers gets the password.",
    )
    open_timeout_s: float = Field(
        5.0, gt=0, description="Longest time to connect and to find the video."
    )
    read_timeout_s: float = Field(5.0, gt=0, description="Longest wait for one packet.")
    stall_s: float = Field(10.0, gt=0, description="No decoded frame for so long: frozen.")
    key_frame_s: float = Field(
        60.0,
        gt=0,
        description="Longest wait, after joining a stream, for the key frame where decoding can "
        "start, while packets arrive.",
    )
    retry_first_s: float = Field(0.5, gt=0, description="Wait before the first reconnect.")
    retry_max_s: float = Field(30.0, gt=0, description="Cap of the exponential back-off.")
    retry_unauthorised_s: float = Field(
        60.0,
        gt=0,
        description="Seconds from a refused password to the next attempt; doubled with each "
        "further refusal, up to half an hour: cameras lock accounts.",
    )
    recovered_after_s: float = Field(
        10.0,
        ge=0,
        description="A source that was lost counts as recovered when it has given pictures for so "
        "many seconds; until then, back-off and patience go on as if it had not come back.",
    )
    give_up_s: float | None = Field(
        None,
        gt=0,
        description="End a live source that was away for so many seconds, in all, since it last "
        "recovered; default: never.",
    )
    heartbeat_s: float = Field(5.0, gt=0, description="SourceStatus at least so often.")
    pixel_aspect: float | None = Field(
        None,
        ge=0.25,
        le=4,
        description="Width of a stored pixel over its height, for cameras that do not tag it "
        "(1080N: 2.0); default: as tagged, else 1.",
    )
    idle: Literal["off", "keyframes"] | None = Field(
        None, description="As decode.idle, for this source; default: as decode.idle says."
    )
    realtime: bool = Field(
        False, description="Play a file at its own speed and drop frames under load, as a camera."
    )
    loop: bool = Field(False, description="Start a file again at its end, as a new session.")
    max_pixels: int = Field(
        4096 * 2304,
        gt=0,
        description="Width times height; larger pictures are refused, since they can exhaust "
        "memory.",
    )
    learned: FilePath | None = Field(
        None,
        description="What `run_stream.py --learn` wrote for this source: its own thresholds, which "
        "win over those of fuse, and what to compare with (docs/learn.md).",
    )

    watch_feed: bool = Field(
        True,
        description="Look for feed attacks, if `feed.enabled`; off for a camera that turns by "
        "itself, which shows other scenes and comes back to them.",
    )

    @field_validator("fingerprint")
    @classmethod
    def _plain(cls, fingerprint: str | None) -> str | None:
        return fingerprint and fingerprint.replace(":", "").lower()

    @model_validator(mode="after")
    def _one_trust(self) -> Self:
        if (self.ca_file is not None) + (self.fingerprint is not None) + self.insecure > 1:
            raise ValueError("ca_file, fingerprint and insecure exclude each other")
        return self

    @field_serializer("uri", when_used="json")
    def _shown(self, uri: SecretStr) -> str:
        return redact(uri.get_secret_value())


class DecodeConfig(Options):
    """Decoding, common to all sources."""

    kind: Literal["pyav", "sampled", "nvdec", "dali", "auto"] = Field(
        "pyav",
        description="`pyav` decodes every picture, on the CPU; `sampled` only what frames that are "
        "due need, see `pictures`: for recordings, since it gives them late by a group of "
        "pictures. `nvdec` decodes on an NVIDIA GPU, and the pixels stay there. So does `dali`, "
        "late by a group of pictures; without a GPU it decodes VP8, VP9 and MJPEG on the CPU. "
        "`auto` takes nvdec for each source that it can decode, pyav for the others, and logs why.",
    )
    pictures: Literal["due", "reference", "keyframes"] = Field(
        "reference",
        description="What `sampled` decodes. `due`: the pictures up to the last due one of each "
        "group that holds one; the frames are those of `pyav`. `reference`: of these, only those "
        "that others are made from; a frame is the first such picture at or after its time. "
        "`keyframes`: only pictures that need no other, at most `analyse_fps` a second.",
    )
    analyse_fps: float = Field(
        5.0,
        gt=0,
        description="Frames analysed per second of media time; the others are decoded only.",
    )
    spans: tuple[tuple[float, float], ...] | None = Field(
        None,
        description="Stretches of media time, first and last second: frames outside are not due; "
        "`sampled` decodes no group outside them. Default: all of it.",
    )
    threads: int = Field(1, ge=1, description="Decoder threads per source.")
    idle: Literal["off", "keyframes"] = Field(
        "off",
        description="`keyframes`: while a live source shows nobody, only its key frames are "
        "decoded and searched; a face there wakes it (docs/operate.md: what can be missed). By "
        "`pyav` alone.",
    )
    idle_after_s: float = Field(
        10.0, gt=0, description="A source is awake for so long after its last track ended."
    )


def idles(source: SourceConfig, decode: DecodeConfig) -> bool:
    """Return whether a live source is decoded at its key frames alone while it shows nobody."""
    return (source.idle or decode.idle) == "keyframes"


class DetectConfig(Options):
    """The MTCNN cascade."""

    engines: Path = Field(
        SHIPPED / "mtcnn", description="Folder with the manifests of P-, R- and O-Net."
    )
    detect_width: int = Field(
        640, ge=64, description="Detect on a copy of the frame no wider than this, pixels."
    )
    detect_every_s: float = Field(
        1.0,
        ge=0,
        description="Search the whole frame so often; between, only tracks are refreshed.",
    )
    search_lost: bool = Field(
        False,
        description="Search the whole frame at once, too, when a known face is not found again or "
        "none is known: for frames far apart.",
    )
    min_face_px: int = Field(
        40, ge=20, description="Smallest face to find, pixels of the detection copy."
    )
    pnet_threshold: float = Field(
        0.6, ge=0, le=1, description="Least confidence of a face in the first network, 0..1."
    )
    rnet_threshold: float = Field(0.7, ge=0, le=1, description="The same in the second network.")
    onet_threshold: float = Field(
        0.7,
        ge=0,
        le=1,
        description="The same in the third network: what is reported as a detection.",
    )


class TrackConfig(Options):
    """Association of detections over time."""

    high_confidence: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Confidence, 0..1, at or above which a detection opens a track and is matched"
        " first.",
    )
    match_distance: float = Field(
        1.5,
        gt=0,
        description="Farthest match from where a track is expected, in face sizes. On simulated "
        "walkers at 5 fps, 1.25 gives 10 % more tracks than people, 1.5 gives 2 %; on simulated "
        "neighbours who turn away at times, 1.5 lets 7 % inherit a track, 1.75 lets 19 %.",
    )
    match_distance_weak: float = Field(
        0.75, gt=0, description="The same for a detection below `high_confidence`."
    )
    confirm_s: float = Field(0.3, ge=0, description="A track is confirmed after so long...")
    confirm_hits: int = Field(3, ge=1, description="...and so many detections.")
    lost_after_s: float = Field(2.0, gt=0, description="Unseen for so long: the track ends.")


class QualityConfig(Options):
    """What a face must offer to be scored."""

    min_face_px: float = Field(48, ge=1, description="Longer side of the box, source pixels.")
    min_sharpness: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Least sharpness, 0..1. Real footage measured 0.06 and more, a blur of 6 % of"
        " the face's size 0.05.",
    )
    min_brightness: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Least mean brightness, 0..1; the darkest usable face of the real footage had"
        " 0.14.",
    )
    max_brightness: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Largest mean brightness, 0..1; the palest usable face of the real footage "
        "had 0.88.",
    )
    max_turn: float = Field(
        1.25,
        ge=0,
        description="Largest turn of the head: 0 frontal, 1 the nose is level with an eye; half "
        "profiles measured up to 1.2, profiles 1.4 to 2.",
    )
    min_window: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Least share of the window that a detector looks at which the frame must hold, "
        "by area; with less, that detector is not shown the face. An `inside` window of 4 times "
        "the face has then shrunk to 1.3 times; of 86 faces of real footage the worst had 0.127.",
    )


class EngineConfig(Options):
    """One attack detector."""

    manifest: Path = Field(description="The engine's manifest.")
    interval_s: float | None = Field(
        None,
        ge=0,
        description="Least media time between two of its scores of a track; default: "
        "score.interval_s.",
    )


class ScoreConfig(Options):
    """The attack detectors, and how often they look at a face."""

    engines: tuple[EngineConfig, ...] = Field(
        (EngineConfig(manifest=SHIPPED / "lgsc_presentation" / "lgsc.manifest.json"),),
        min_length=1,
        description="Detectors that judge every face together.",
    )
    interval_s: float = Field(
        0.4, ge=0, description="Least media time between two scores of a track by one detector."
    )
    still_interval_s: float = Field(
        1.6,
        ge=0,
        description="To which that doubles, look by look, for a face that keeps its place and "
        "whose verdict its latest scores agree with; 0: it stays.",
    )

    @model_validator(mode="after")
    def _no_engine_twice(self) -> Self:
        paths = [str(engine.manifest) for engine in self.engines]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise ValueError(f"an engine judges a face once; named twice: {', '.join(twice)}")
        return self

    def interval_of(self, engine: EngineConfig) -> float:
        """Return the least media time between two scores of a track by an engine, seconds."""
        return self.interval_s if engine.interval_s is None else engine.interval_s


class FuseConfig(Options):
    """From scores to verdicts."""

    correlation_s: float = Field(
        1.0, gt=0, description="Looks this far apart count 1 - 1/e of an independent one."
    )
    memory_s: float = Field(8.0, gt=0, description="Age at which evidence weighs 1/e.")
    prior_looks: float = Field(
        1.0, ge=0, description="Strength of the prior (evidence 0), in independent looks."
    )
    min_scores: int = Field(3, ge=1, description="No verdict before so many scores...")
    min_effective: float = Field(1.5, ge=0, description="...worth so many independent looks.")
    abstain_after_s: float = Field(
        2.0, ge=0, description="Abstain when a track is so old and no sighting passed the gate."
    )
    enter: float | None = Field(
        None,
        le=1,
        description="At or above: ATTACK; 0.5 or more. Default: the manifest's threshold; of "
        "several detectors, where theirs meet.",
    )
    leave: float | None = Field(
        None,
        ge=0,
        description="Below: BONA_FIDE; 0.5 or less. Default: the manifest's threshold; of several "
        "detectors, where theirs meet.",
    )
    reach_s: float = Field(
        5.0,
        gt=0,
        le=600,
        description="Thresholds that a track of sure looks does not reach in so many seconds of "
        "media time are refused.",
    )
    publish_every_s: float = Field(1.0, ge=0, description="Least time between scores of a track.")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        check_thresholds(self.enter, self.leave)
        return self


class FeedConfig(Options):
    """Attacks on the feed of a live source: frozen, looped, covered, swapped, changed."""

    enabled: bool = Field(
        True, description="Look for them, in live sources and in files that are played as cameras."
    )
    frozen_after_s: float = Field(
        60.0,
        ge=5,
        description="Media time for which the picture must not change. More than the camera's "
        "longest time between key frames: between them, a still scene may be sent as unchanged.",
    )
    covered_after_s: float = Field(
        3.0, ge=1, description="Media time for which nothing must be seen."
    )
    swapped_after_s: float = Field(
        5.0, ge=1, description="Media time for which another scene must stay."
    )
    loop_window_s: float = Field(
        1800.0, ge=30, le=7200, description="Media time over which pictures are remembered."
    )
    loop_match_s: float = Field(
        8.0, ge=4, le=60, description="Media time that must have been shown before, in order."
    )
    cooldown_s: float = Field(
        60.0, ge=0, description="Least media time between two alerts of one kind of a source."
    )


class RedisSinkConfig(Options):
    """Redis streams, status hashes and a channel; see docs/messages.md."""

    kind: Literal["redis"] = "redis"
    url: SecretStr | None = Field(
        None, description="redis://, rediss:// or unix://; default: an embedded server."
    )
    namespace: str = Field(
        "facewarden",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?(\{[A-Za-z0-9._-]+\}[A-Za-z0-9._-]*)?$",
        min_length=1,
        max_length=64,
        description="First part of all keys; with a hash tag, as in {facewarden}, for a cluster.",
    )
    ca_file: Path | None = Field(None, description="CA that signed the server's certificate.")
    alerts_maxlen: int = Field(
        100_000, ge=1, description="Approximate length of the stream of verdicts."
    )
    sources_maxlen: int = Field(
        20_000, ge=1, description="Approximate length of the stream of source events."
    )
    feeds_maxlen: int = Field(
        20_000, ge=1, description="Approximate length of the stream of feed alerts."
    )
    tracks_maxlen: int = Field(
        20_000, ge=1, description="Approximate length of the stream of scores."
    )
    scans_maxlen: int = Field(
        100_000, ge=1, description="Approximate length of the stream of results of scans."
    )
    timeout_s: float = Field(2.0, gt=0, description="Longest wait for one reply.")
    queue_messages: int = Field(
        10_000, ge=1, description="Messages kept in memory while Redis is away."
    )
    spool: Path | None = Field(
        None,
        description="Folder for alerts, feed alerts and source events kept while Redis is "
        "away, one per process (workers make theirs in it); default: a private one, made when "
        "needed, which stays only if something is left in it.",
    )
    spool_alerts: int = Field(100_000, ge=1, description="Alerts kept on disk at most.")
    spool_sources: int = Field(10_000, ge=1, description="Source events kept on disk at most.")
    spool_feeds: int = Field(10_000, ge=1, description="Feed alerts kept on disk at most.")
    spool_scans: int = Field(100_000, ge=1, description="Results of scans kept on disk at most.")
    outage_limit_s: float = Field(
        600.0, gt=0, description="Redis away for longer: end with exit code 1; the spool stays."
    )


class JsonlSinkConfig(Options):
    """One message a line, appended to a file."""

    kind: Literal["jsonl"] = "jsonl"
    path: Path = Field(description="File to append to, in a folder that exists.")


class WebhookSinkConfig(Options):
    """Signed POSTs to one address, by the Standard Webhooks specification."""

    kind: Literal["webhook"] = "webhook"
    url: SecretStr = Field(
        description="https://host/path, which may hold a token; who receives the messages."
    )
    secret: SecretStr | None = Field(
        None,
        description="What the receiver verifies messages by: whsec_ and 24 to 64 bytes as base64; "
        "default: the environment's FACEWARDEN_WEBHOOK_SECRET.",
    )
    messages: tuple[Literal["alerts", "feeds", "sources", "tracks"], ...] = Field(
        ("alerts", "feeds", "sources"),
        min_length=1,
        description="Kinds that are sent: verdicts, attacks on feeds, events of sources, scores.",
    )
    allow_private: bool = Field(
        False,
        description="Send to addresses of this machine and of private networks, too: whoever may "
        "write the configuration can then make this process call what is there.",
    )
    allow_http: bool = Field(False, description="Accept http://: anyone on the way may read along.")
    ca_file: FilePath | None = Field(
        None, description="PEM file of the CA to trust; default: the system's authorities."
    )
    timeout_s: float = Field(5.0, gt=0, description="Longest wait for a connection, an answer.")
    retry_max_s: float = Field(60.0, gt=0, description="Cap of the exponential back-off.")
    spool: Path | None = Field(
        None,
        description="Folder for messages that wait, one per process (workers make theirs in it): "
        "each lies there before it is sent. Default: a private one, made when the receiver is "
        "away, which stays only if something is left in it.",
    )
    spool_messages: int = Field(
        10_000, ge=1, description="Messages of each kind but scores kept on disk at most."
    )
    queue_messages: int = Field(
        1_000, ge=1, description="Messages kept in memory while the receiver is away."
    )
    close_s: float = Field(
        3.0, gt=0, description="Longest time to deliver what waits when the program ends."
    )

    @property
    def secrets(self) -> frozenset[str]:
        """What no log may show: the secret, and what comes after the host, which may be one."""
        url = self.url.get_secret_value()
        after_host = url.partition("://")[2].partition("/")[2]
        own = set() if self.secret is None else {self.secret.get_secret_value()}
        return secrets_of(url) | {s for s in {after_host, *own} if len(s) >= MIN_SECRET_CHARS}


SinkConfig = Annotated[
    RedisSinkConfig | JsonlSinkConfig | WebhookSinkConfig, Field(discriminator="kind")
]


class MetricsConfig(Options):
    """Measured values, for Prometheus, and health, by HTTP; see docs/operate.md."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. There is no password: another than the loopback is for "
        "a network whose every machine may read this.",
    )
    port: int = Field(9464, ge=0, le=65535, description="TCP; 0: any that is free, see the log.")


class EvidenceConfig(Options):
    """Bundles of evidence, one for each verdict of a kind; see docs/evidence.md."""

    folder: Path = Field(
        description="Where bundles are kept; made if it is missing, for the user who runs this "
        "alone."
    )
    key: FilePath = Field(
        description="Private key that signs them, of `python -m stream.evidence keygen`."
    )
    verdicts: tuple[Literal["attack", "bona_fide", "abstain"], ...] = Field(
        ("attack",), min_length=1, description="Changes to these verdicts make a bundle."
    )
    before_s: float = Field(
        10.0,
        ge=0,
        le=60,
        description="Seconds of video before the verdict, and up to the key frame before them; "
        "kept in memory, for every source, all the time.",
    )
    after_s: float = Field(2.0, ge=0, le=60, description="Seconds of video after it.")
    cut_mb: int = Field(
        16,
        ge=1,
        le=1024,
        description="MB of video before the verdict that are kept in memory for a source at most, "
        "and as much again in a bundle after it.",
    )
    keep_days: float = Field(7.0, gt=0, description="Older bundles are deleted.")
    keep_gb: float = Field(
        5.0, gt=0, description="Where all take more, in GB, the oldest are deleted."
    )


class PageConfig(Options):
    """The live page and the control API; see docs/page.md."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8765, ge=0, le=65535, description="Port to listen on; 0: any that is free.")
    secret: SecretStr | None = Field(
        None,
        min_length=12,
        description="What people and programs must know to see anything; default: "
        "$FACEWARDEN_PAGE_SECRET, or else one that is made up and logged at the start.",
    )
    certificate: FilePath | None = Field(
        None,
        description="PEM file of the server's certificate and what signed it: the page is https.",
    )
    key: FilePath | None = Field(None, description="PEM file of the certificate's private key.")
    hosts: tuple[str, ...] = Field(
        (), description="Names by which browsers may call the page, beside `host` and localhost."
    )
    insecure: bool = Field(
        False,
        description="Listen on an address that is not this machine's own without a secret or a "
        "certificate, as behind a reverse proxy on another machine: who listens in sees all.",
    )
    viewers: int = Field(8, ge=1, description="Most pages that are open at a time.")
    session_s: float = Field(12 * 3600.0, gt=0, description="A login lasts so long, seconds.")

    @model_validator(mode="after")
    def _whole_pair(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key come together, or not at all")
        return self


class StreamConfig(Options):
    """All of a run of `run_stream.py`."""

    version: int = Field(
        CONFIG_VERSION,
        strict=True,
        ge=1,
        le=CONFIG_VERSION,
        description="Of this schema: 1. A file without it is read as 1.",
    )
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="Cameras and files.")
    decode: DecodeConfig = DecodeConfig()
    detect: DetectConfig = DetectConfig()
    track: TrackConfig = TrackConfig()
    quality: QualityConfig = QualityConfig()
    score: ScoreConfig = ScoreConfig()
    fuse: FuseConfig = FuseConfig()
    backend: BackendConfig = Field(OnnxRuntimeConfig(), description="Runtime of the networks.")
    sinks: tuple[SinkConfig, ...] = Field(
        (RedisSinkConfig(),), description="Where messages go, one or more."
    )
    shutdown_s: float = Field(10.0, gt=0, description="Longest time to drain after a stop request.")
    feed: FeedConfig = FeedConfig()
    metrics: MetricsConfig | None = Field(
        None, description="Serve measured values and health; default: do not."
    )
    evidence: EvidenceConfig | None = Field(
        None, description="Keep evidence of verdicts; default: nothing is kept."
    )
    page: PageConfig | None = Field(None, description="Live page and control API; default: none.")

    def look_every_s(self, engine: EngineConfig) -> float:
        """Return the least media time between two looks of an engine at a track, seconds."""
        return max(self.score.interval_of(engine), 1 / self.decode.analyse_fps)

    @field_validator("version", mode="before")
    @classmethod
    def _known_version(cls, version: object) -> object:
        if isinstance(version, int) and version > CONFIG_VERSION:
            raise ValueError(
                f"this file is of version {version}, and this facewarden reads up to "
                f"{CONFIG_VERSION}: install the newer one that it was written for, or rewrite the "
                "file by docs/config.schema.json of this one"
            )
        return version

    def with_sources(self, sources: tuple[SourceConfig, ...]) -> StreamConfig:
        """Return the configuration with other sources, or with none.

        Raises:
            ConfigError: they can't be watched together, or not with the other options.
        """
        if not sources:
            return self.model_copy(update={"sources": ()})
        values = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            return type(self)(**values | {"sources": sources})
        except ValidationError as error:
            raise ConfigError(one_line(error, type(self))) from None

    @model_validator(mode="after")
    def _idle_by_pyav(self) -> Self:
        idle = [source.id for source in self.sources if idles(source, self.decode)]
        if idle and self.decode.kind != "pyav":
            raise ValueError(
                f"idle: keyframes is for decode.kind: pyav, found {self.decode.kind}, for "
                f"{', '.join(idle)}"
            )
        return self

    @model_validator(mode="after")
    def _unique_ids(self) -> Self:
        ids = [source.id for source in self.sources]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"source ids must differ; used twice: {', '.join(twice)}")
        return self


def load_config(path: Path | None, overrides: Sequence[tuple[str, Any]] = ()) -> StreamConfig:
    """Read a YAML file and lay overrides over it.

    Args:
        path: YAML file; None starts from the defaults.
        overrides: dotted key and value, e.g. `("track.lost_after_s", 2)`; a later one wins.

    Raises:
        ConfigError: the file can't be read, or a key or value is not one of the schema's; the
            message names the key and, for an unknown one, the nearest known.
    """
    data = {} if path is None else _read_yaml(path)
    try:
        lay_over(data, overrides)
        return StreamConfig.model_validate(data)
    except ValidationError as error:
        says = one_line(error, StreamConfig)
    except ValueError as error:  # of `lay_over`
        says = str(error)
    where = (
        "" if path is None else f"{path} with what is laid over it: " if overrides else f"{path}: "
    )
    raise ConfigError(where + says)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # YAML's own errors are several lines long; a wrong encoding or date is a ValueError.
        says = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"{path}: can't read the configuration: {says}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, found a {type(data).__name__}")
    return data


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of a YAML for `run_stream.py`, with paths as in a checkout."""
    schema = StreamConfig.model_json_schema(mode="validation")
    schema.pop("required")  # sources may be on the command line
    text = json.dumps({"$schema": GenerateJsonSchema.schema_dialect, **schema})
    in_checkout = text.replace(str(SHIPPED), str(SHIPPED.relative_to(SHIPPED.parents[1])))
    found: dict[str, Any] = json.loads(in_checkout)
    return found


if __name__ == "__main__":
    json.dump(config_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
