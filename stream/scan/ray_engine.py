"""Files spread over the machines of a Ray cluster; the driver alone writes results.

Ray Data hands the files to a pool of actors, one file per task. Each actor scans its file as the
local engine does, in a disposable child process, and returns the row. No frame passes through Ray.

Ray begins a task anew without end when its actor dies. So each attempt is counted, before it
begins, by a ledger that no file can kill; see docs/decisions/0059.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import secrets
import shutil
import signal
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from stream.errors import ConfigError, StreamError
from stream.processors import processors
from stream.scan.analysers import Analysers
from stream.scan.child import ReadStatus
from stream.scan.crops import CropSender, write_crop
from stream.scan.reading import reading_context
from stream.scan.rows import FileRow
from stream.scan.scanner import ScanProgress, scan_one
from stream.signals import STOP_SIGNALS
from trt_engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from models import InputSpec
    from stream.config import StreamConfig
    from stream.scan.inputs import Item
    from stream.scan.journal import Finished
    from stream.scan.policy import Look
    from stream.scan.scanner import ScanPlan

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 2
_POLL_S: Final = 0.5
_STORE_BYTES: Final = 100_000_000  # of a cluster of our own: only rows and small pictures lie there
_PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What every actor must know."""

    plan: ScanPlan
    configs: Mapping[Look, StreamConfig]
    crops: tuple[InputSpec, float] | None  # what `CropSender` takes; None: none are kept
    here: str  # the driver's folder, which paths are relative to


class Ledger:
    """Counts attempts that did not end; lives in a process of its own, on the driver's machine."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Note that a file is begun; return how often it was begun, this time included."""
        self._begun[number] += 1
        return self._begun[number]

    def end(self, number: int) -> None:
        """Note that it ended. What Ray loses of a result afterwards is no fault of the file."""
        del self._begun[number]


class FileScanner:
    """Scans a file per call; an actor of Ray Data.

    Args:
        setup: how.
        ledger: handle of a `Ledger`.
    """

    def __init__(self, setup: Setup, ledger: Any) -> None:
        import torch

        torch.set_num_threads(1)  # as in the local engine
        with suppress(OSError):  # it need not be there, if all paths are absolute
            os.chdir(setup.here)
        # Each child imports our main module, which is Ray's: once, before it is forked.
        reading_context("ray._private.workers.default_worker")
        forkserver.ensure_running()
        self._setup = setup
        self._ledger = ledger
        self._analysers = Analysers(setup.configs)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Scan the only file of a batch, a table of `_orders`; return one of `_result`."""
        import ray

        (number,) = batch.column("number").to_pylist()
        item, known = pickle.loads(batch.column("order")[0].as_py())
        attempt = ray.get(self._ledger.begin.remote(number))
        sender = None if self._setup.crops is None else CropSender(*self._setup.crops)
        row, problem = None, None
        try:
            row = self.scan(number, item, known, sender, attempt)
        except (EngineError, StreamError) as error:
            problem = str(error)
        ray.get(self._ledger.end.remote(number))
        return _result(number, row, {} if sender is None else sender.pictures, problem)

    def scan(
        self,
        number: int,
        item: Item,
        known: Finished | None,
        sender: CropSender | None,
        attempt: int,
    ) -> FileRow | None:
        """Return the row of a file; None: its content is that which is known."""
        folder = self._setup.plan.folder / str(number)
        plan = replace(self._setup.plan, folder=folder)
        if attempt > _ATTEMPTS:
            shutil.rmtree(folder, ignore_errors=True)
            reason = f"the worker that scanned it died, {_ATTEMPTS} times"
            row = scan_one(plan, self._analysers.of, replace(item, problem=reason))
            assert row is not None
            return row.model_copy(update={"status": ReadStatus.CRASHED, "attempts": _ATTEMPTS})
        row = scan_one(plan, self._analysers.of, item, sender, known)
        return row and row.model_copy(update={"attempts": max(row.attempts, attempt)})


def _orders(due: Iterable[tuple[Item, Finished | None]]) -> list[pa.Table]:
    """Return a table per file: a task of Ray Data takes one, and is repeated as a whole."""
    return [
        pa.table({"number": [number], "order": pa.array([pickle.dumps(order)], pa.binary())})
        for number, order in enumerate(due)
    ]


def _result(
    number: int, row: FileRow | None, crops: Mapping[str, bytes], problem: str | None
) -> pa.Table:
    """Return what became of a file: no row if it is known from before."""
    return pa.table(
        {
            "number": [number],
            "row": pa.array([row and row.model_dump_json()], pa.string()),
            "names": pa.array([list(crops)], pa.list_(pa.string())),
            "pictures": pa.array([list(crops.values())], pa.list_(pa.binary())),
            "problem": pa.array([problem], pa.string()),
        }
    )


def scan_on_ray(
    setup: Setup,
    items: Iterable[Item],
    finished: Mapping[bytes, Finished],
    deliver: Callable[[FileRow], None],
    crops_folder: Path,
    *,
    address: str | None,
    actors: int | None,
    stop: threading.Event,
    report: Callable[[ScanProgress], None],
) -> ScanProgress:
    """Scan what is not finished yet, one row each.

    Args:
        setup: how; what is fetched from object stores goes to each machine's own disk.
        items: to scan.
        finished: by path, what is known of files that are finished.
        deliver: gets the row of each file.
        crops_folder: where pictures of faces are written, before their row is delivered.
        address: of the cluster; None: that of $RAY_ADDRESS, or one of our own on this machine.
        actors: files that are scanned at a time; None: the number of processors of the cluster.
        stop: once set, this ends without the files that are under way.
        report: called several times a second.

    Raises:
        ConfigError: Ray is not installed, or the cluster can't be reached.
        EngineError, StreamError: an actor can't scan at all, or results can't be written.
    """
    progress = ScanProgress()
    due: list[tuple[Item, Finished | None]] = []
    for item in items:
        known = finished.get(item.path)
        if known is not None and known.holds(item, setup.plan.run_key):
            progress.files_known += 1
        else:
            may_hold = known is not None and known.may_hold(item, setup.plan.run_key)
            due.append((item, known if may_hold else None))
            progress.expect(item)
    if not due:
        return progress
    left = set(range(len(due)))
    scratch = Path(tempfile.gettempdir()) / f"facewarden-{secrets.token_hex(8)}"
    setup = replace(setup, plan=replace(setup.plan, readers=1, folder=scratch))
    with _cluster(address, actors) as ray, _Results(ray, setup, due, actors) as results:
        while left and not stop.is_set():
            result = results.next()
            if result is not None and result["number"] in left:  # Ray may repeat one
                left.remove(result["number"])
                _take(result, due[result["number"]][0], progress, deliver, crops_folder)
            report(progress)
    return progress


def _take(
    result: dict[str, Any],
    item: Item,
    progress: ScanProgress,
    deliver: Callable[[FileRow], None],
    crops_folder: Path,
) -> None:
    if result["problem"] is not None:
        raise StreamError(f"a worker can't scan: {result['problem']}")
    if result["row"] is None:
        progress.files_known += 1
        progress.drop(item)
        return
    for name, png in zip(result["names"], result["pictures"], strict=True):
        write_crop(crops_folder, name, png)
    row = FileRow.model_validate_json(result["row"])
    deliver(row)
    progress.add(row)


@contextmanager
def _cluster(address: str | None, actors: int | None) -> Iterator[Any]:
    """Connect to a cluster, or start one of our own; yield the module `ray`.

    Raises:
        ConfigError: Ray is not installed, or the cluster can't be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # decision 23
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a late call must not start another cluster
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its core writes to stderr
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("ray://"):
        raise ConfigError(
            f"--ray-address {address}: expected HOST:PORT, or auto, on a machine of the cluster: "
            "start the scan there, as `ray job submit` does"
        )
    if address is None:  # before the import, which reads it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault(
            "RAY_AUTH_TOKEN", secrets.token_hex(32)
        )  # else it writes one to $HOME
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            f"--engine ray needs Ray: pip install 'facewarden[ray]' ({error.msg})"
        ) from None
    ours: dict[str, Any] = {
        "num_cpus": actors or processors(),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_node_ip_address": "127.0.0.1",  # nobody else's
    }
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(address="local", **ours, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        what = "start a cluster here" if address is None else f"use the cluster at {address}"
        raise ConfigError(f"Ray can't {what}: {str(error).partition(chr(10))[0]}") from error
    finally:
        for number, handler in handlers.items():  # Ray takes SIGTERM
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


class _Results:
    """Results as they come, from a thread that waits for them: the main one must see signals."""

    def __init__(
        self, ray: Any, setup: Setup, due: list[tuple[Item, Finished | None]], actors: int | None
    ) -> None:
        self._came: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._ledger = ray.remote(num_cpus=0, scheduling_strategy=here)(Ledger).remote()
        size = actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
        pool = ray.data.ActorPoolStrategy(
            size=min(size, len(due)),
            max_tasks_in_flight_per_actor=1,  # what waits is for whoever is free first
            max_concurrent_calls_per_actor=1,
        )
        self._dataset = ray.data.from_arrow(_orders(due)).map_batches(
            FileScanner,
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=1,
            fn_constructor_args=(setup, self._ledger),
        )
        self._thread = threading.Thread(target=self._receive, name="ray results", daemon=True)

    def __enter__(self) -> _Results:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()  # ends the actors, and with them what the thread waits for
        self._thread.join(_PATIENCE_S)

    def next(self) -> dict[str, Any] | None:
        """Return the next result; None: none has come for a while.

        Raises:
            StreamError: there will be no more.
        """
        try:
            came = self._came.get(timeout=_POLL_S)
        except queue.Empty:
            return None
        if came is None:
            raise StreamError("Ray has ended without a result for every file; run again to go on")
        if isinstance(came, BaseException):
            raise came
        return came

    def _receive(self) -> None:
        try:
            batches = self._dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
            for batch in batches:
                for result in batch.to_pylist():
                    self._came.put(result)
            self._came.put(None)
        except BaseException as error:
            self._came.put(error)
