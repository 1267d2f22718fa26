"""Processes that train together: one per GPU, or per core; `torchrun` starts them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        told = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return bool(told.item())


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the run's processes, if `torchrun` started any, and leave them at the end.

    NCCL connects GPUs, gloo CPUs. If a rank fails, `torchrun` ends the others and the run.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(rank, world, device)
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world, device)
    finally:
        distributed.destroy_process_group()
