"""Processes that train together: one per GPU, or per core; `torchrun` or SLURM starts them."""

from __future__ import annotations

import gc
import logging
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed.nn  # its defaults keep the group of the day it is imported: before any
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = logging.getLogger(__name__)

_MEETING_S: Final = 300.0  # in which the tasks of a SLURM job have to find each other


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files: rank 0 alone does."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with its gradients averaged over all ranks after each backward pass."""
        if self.world == 1:
            return module
        # Running statistics are each rank's own until `share_buffers`.
        return DistributedDataParallel(module, broadcast_buffers=False)

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank rank 0's buffers: running statistics of batch norm."""
        if self.world > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            distributed.barrier()

    def gathered(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; all ranks must ask together."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags.item())

    def on_first(self, work: Callable[[], None]) -> None:
        """Do something on rank 0 alone; all ranks must ask together.

        Raises:
            TrainError: rank 0's, on every rank: none is left waiting for it.
        """
        failure: TrainError | None = None
        if self.writes:
            try:
                work()
            except TrainError as error:
                failure = error
        failure = self.gathered(failure)[0]
        if failure is not None:
            raise failure


@dataclass(frozen=True, slots=True)
class Place:
    """Where a launcher put this process, and how it finds the others.

    Attributes:
        rank: of this process.
        world: number of processes.
        local: number of this process among those of its machine.
        meet_at: host and port of rank 0 where SLURM tells of it; None: in torch's own variables.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    meet_at: tuple[str, int] | None = None


def place_of(environment: Mapping[str, str]) -> Place:
    """Read what `torchrun`, or else SLURM's `srun`, says in the environment.

    Raises:
        TrainError: the variables do not fit together.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        return _checked(Place(rank, world, _number(environment, "LOCAL_RANK", 0)))
    tasks = _number(environment, "SLURM_NTASKS", 1)
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", tasks)  # of `srun`, not of the whole job
    if tasks == 1:
        return Place()
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    host = environment.get("MASTER_ADDR") or first_host(nodes) or "127.0.0.1"
    # Of its own for each job and step, below the ports that the system gives away.
    job, step = _number(environment, "SLURM_JOB_ID", 0), _number(environment, "SLURM_STEP_ID", 0)
    port = _number(environment, "MASTER_PORT", 15_000 + (7 * job + step) % 15_000)
    rank, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID", 0)
    return _checked(Place(rank, tasks, local, (host, port)))


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError as error:
        raise TrainError(
            f"the environment's {name} must be a number where a launcher is at work, found "
            f"{text!r}; start by torchrun or srun, or unset RANK, WORLD_SIZE and SLURM_NTASKS"
        ) from error


def _checked(place: Place) -> Place:
    if not 0 <= place.rank < place.world:
        raise TrainError(f"the environment names rank {place.rank} among {place.world}")
    return place


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's list of nodes, such as gpu[07-09,12],login; "": none."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group()) if first else ""


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the run's processes, if a launcher started any, and leave them at the end.

    NCCL connects GPUs, gloo CPUs. If a rank fails, `torchrun` ends the others and the run.

    Raises:
        TrainError: a launcher's variables do not fit together, or other ranks do not come.
    """
    place = place_of(os.environ)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # A launcher that gives each process one GPU shows it that one only.
        device = torch.device("cuda", place.local if torch.cuda.device_count() > 1 else 0)
        torch.cuda.set_device(device)
    if place.world == 1:
        yield Ranks(place.rank, place.world, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if place.meet_at is None:
        try:
            distributed.init_process_group(backend)
        except ValueError as error:
            raise TrainError(f"rank {place.rank} can't meet the others: {error}") from error
    else:
        distributed.init_process_group(
            backend, store=_met(place, *place.meet_at), rank=place.rank, world_size=place.world
        )
    try:
        yield Ranks(place.rank, place.world, device)
    finally:
        # The group's threads end with its last holder, such as a wrapped module in a cycle: gloo's
        # own abort the process if one frees its last work while Python shuts down.
        gc.collect()
        distributed.destroy_process_group()


def _met(place: Place, host: str, port: int) -> Any:
    log.info("SLURM: rank %d of %d, meeting at %s:%d", place.rank, place.world, host, port)
    try:
        return distributed.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            place.world,
            is_master=place.rank == 0,
            timeout=timedelta(seconds=_MEETING_S),
        )
    except distributed.DistError as error:
        raise TrainError(
            f"rank {place.rank}: of the {place.world} tasks that SLURM tells of, not all met at "
            f"{host}:{port} within {_MEETING_S:.0f} s ({error}). Start all of them by srun; to "
            "train with this process alone, set SLURM_NTASKS=1"
        ) from error
