"""What two processes do in the tests of test_ranks.py; `torchrun` starts it."""

import sys
from pathlib import Path

import torch
from torch import nn

from models import FaceBatch, build_model
from train.errors import TrainError
from train.fit.objective import Objective
from train.fit.ranks import joined
from train.fit.update import Update

# Batch norm's statistics would differ between one process and two; so would dropout and triplets.
OPTIONS = {
    "size_px": 32,
    "decoder_widths": [4, 4, 4, 4, 4],
    "decoder_norm": "batch",  # instance norm of a 1 x 1 map amplifies rounding
    "dropout": 0,
    "weight_triplet": 0,
}


def gradients(batch, ranks):
    """Return every parameter's gradient of one batch, averaged over the ranks."""
    torch.manual_seed(0)
    model = build_model("lgsc", OPTIONS).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    objective = ranks.wrap(Objective(model))
    terms, _ = objective(batch)
    torch.stack(list(terms.values())).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def whole_batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return FaceBatch(images, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]))


def diverge(ranks, out):
    """Let the loss of rank 1 alone be no number, and write what each rank makes of it."""
    network = nn.Linear(1, 1)
    wrapped = ranks.wrap(network)
    before = network.weight.item()
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update = Update(network, optimiser, scaler, ranks, None)
    loss = wrapped(torch.ones(1)).sum()
    loss.backward()
    told = torch.tensor(torch.nan) if ranks.rank == 1 else loss.detach()
    try:
        update(3, {"term": told})
    except TrainError as error:
        unchanged = network.weight.item() == before
        (out / f"{ranks.rank}.txt").write_text(f"{error} unchanged: {unchanged}")


def train_in_a_cycle(ranks):
    """Average one step's gradients by a module that only the garbage collector can free."""
    wrapped = ranks.wrap(nn.Linear(1, 1))
    wrapped.itself = [wrapped]
    wrapped(torch.ones(1)).sum().backward()


def main():
    what, out = sys.argv[1], Path(sys.argv[2])
    with joined() as ranks:
        if what == "leave":
            train_in_a_cycle(ranks)
        if what == "gradients":
            whole = whole_batch()
            own = slice(ranks.rank * 4, ranks.rank * 4 + 4)
            found = gradients(FaceBatch(whole.images[own], whole.labels[own]), ranks)
            torch.save(found, out / f"{ranks.rank}.pt")
        elif what == "diverge":
            diverge(ranks, out)
        elif what == "die":
            ranks.wait()
            if ranks.rank == 1:
                raise RuntimeError("rank one broke")
            ranks.wait()
    if what == "leave":
        threads = sorted(path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
        (out / f"{ranks.rank}.txt").write_text("".join(threads))


if __name__ == "__main__":
    main()
