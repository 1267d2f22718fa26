"""`make bench-models`: what every network costs on this CPU, written into docs/methods.md.

Weights are random; cost does not depend on them. Variants of the same cost are measured once.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import ROOT, circumstances, save
from models import RefinedModel, build_model
from trt_engines.backends.onnx_session import open_session
from trt_engines.export import to_onnx
from trt_engines.graphs import AttackGraph, RefinementGraph
from trt_engines.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from trt_engines.variants import Variant

DOCUMENT: Final = ROOT / "docs" / "methods.md"
BEGIN: Final = "<!-- written by make bench-models: begin -->"
END: Final = "<!-- written by make bench-models: end -->"
BATCHES: Final = (1, 8)
SAME_COST: Final = {  # differ from the named variant by nothing that costs
    "highfreq-deepfakebench": "highfreq",
    "highfreq-cosine": "highfreq",
    "fghv-depthnet3": "fghv-depthnet6",
}
# Million parameters and GMAC of one face that the methods' specifications give.
SPECIFIED: Final = {
    "lgsc": (27.50, 7.7),  # counted from the layer table; parameters with the auxiliary classifier
    "highfreq": (53.25, 13.7),  # convolutions and linears; 0.2 more for the attention's products
    "recce": (25.83, 11.2),  # convolutions and linears; 2.05 M feed nothing
    "recce-deepfakebench": (25.83, 7.99),
    "udr-effb4": (128.3, 24.6),  # convolutions and linears, without Fourier transforms
    "udr-resnet18": (19.6, 13.4),
    "udr-resnet50": (81.8, 12.5),
    "fghv-depthnet6": (4.17, 47.5),  # parameters with two heads that FGHV has no use for
    "fghv-depthnet6-refinement": (None, 3.3),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one graph costs.

    Attributes:
        name: variant, or variant and "-refinement" for a second graph.
        size_px: side of the crop; None for a second graph, which takes features.
        parameters_m: of the whole network, million; None for a second graph.
        gmac: 1e9 multiplications of convolutions and matrix products, per face.
        onnx_mb: 1e6 bytes.
        torch_ms, onnxruntime_ms: batch size -> CPU ms per face, one thread.
    """

    name: str
    size_px: int | None
    parameters_m: float | None
    gmac: float
    onnx_mb: float
    torch_ms: dict[int, float]
    onnxruntime_ms: dict[int, float]


@click.command()
@click.option("--only", multiple=True, metavar="NAME", help="Print this variant's cost, no more.")
def main(only: tuple[str, ...]) -> None:
    """Measure, write docs/methods.md and benchmarks/results/models-DATE.json."""
    torch.set_num_threads(1)
    around = circumstances()
    costs: list[Cost] = []
    for variant in VARIANTS:
        if variant.name in only or (not only and variant.name not in SAME_COST):
            for cost in _costs(variant):
                costs.append(cost)
                click.echo(_row(cost))
    if not only:
        DOCUMENT.write_text(_written(DOCUMENT.read_text("utf-8"), _table(costs, around)), "utf-8")
        click.echo(f"wrote {DOCUMENT}")
        click.echo(f"wrote {save('models', {**around, 'costs': [asdict(cost) for cost in costs]})}")


def _costs(variant: Variant) -> Iterator[Cost]:
    torch.manual_seed(0)
    model: Any = build_model(variant.method, variant.options)
    size = model.input_spec.size_px
    images = torch.randint(0, 256, (max(BATCHES), 3, size, size), dtype=torch.uint8)
    graph = AttackGraph(model).eval().requires_grad_(False)
    parameters_m = sum(p.numel() for p in model.parameters()) / 1e6
    yield _cost(variant.name, graph, images, size, parameters_m)
    if isinstance(model, RefinedModel):
        with torch.inference_mode():
            features = graph(images)[-1].clone()
        yield _cost(
            f"{variant.name}-refinement", RefinementGraph(model).eval(), features, None, None
        )


def _cost(
    name: str, graph: nn.Module, inputs: Tensor, size_px: int | None, parameters_m: float | None
) -> Cost:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        outputs = graph(inputs[:1])
    gmac = counter.get_total_flops() / 2e9
    names = [f"output_{index}" for index in range(len(outputs))]
    onnx_bytes = to_onnx(graph, inputs, outputs=names, dynamic={0: "N"}, input_name="input")
    session = open_session(onnx_bytes, threads=1)
    runs: dict[tuple[str, int], Callable[[], object]] = {}
    for n in BATCHES:
        batch = inputs[:n].contiguous()
        feed = {"input": batch.numpy()}
        runs["torch", n] = lambda batch=batch: graph(batch)  # type: ignore[misc]
        runs["onnxruntime", n] = lambda feed=feed: session.run(None, feed)  # type: ignore[misc]
    best = _interleaved(runs, rounds=max(3, min(10, round(30 / gmac))))
    return Cost(
        name=name,
        size_px=size_px,
        parameters_m=parameters_m,
        gmac=gmac,
        onnx_mb=len(onnx_bytes) / 1e6,
        torch_ms={n: best["torch", n] / n for n in BATCHES},
        onnxruntime_ms={n: best["onnxruntime", n] / n for n in BATCHES},
    )


def _interleaved(
    runs: dict[tuple[str, int], Callable[[], object]], rounds: int
) -> dict[tuple[str, int], float]:
    """Return the least CPU time of each run, ms: what disturbs one round spares another."""
    best = dict.fromkeys(runs, float("inf"))
    with torch.inference_mode():
        for _ in range(rounds):
            for name, run in runs.items():
                started = time.thread_time()  # one thread each, and it is the caller's own
                run()
                best[name] = min(best[name], (time.thread_time() - started) * 1e3)
    return best


def _row(cost: Cost) -> str:
    parameters_m, gmac = SPECIFIED.get(cost.name, (None, None))
    cells = [
        cost.name,
        str(cost.size_px or "-"),
        _beside(cost.parameters_m, parameters_m),
        _beside(cost.gmac, gmac),
        f"{cost.onnx_mb:.1f}",
        *(f"{times[n]:.0f}" for times in (cost.torch_ms, cost.onnxruntime_ms) for n in BATCHES),
    ]
    return f"| {' | '.join(cells)} |"


def _beside(measured: float | None, specified: float | None) -> str:
    found = "-" if measured is None else f"{measured:.2f}"
    return found if specified is None else f"{found} ({specified:g})"


def _table(costs: list[Cost], around: dict[str, Any]) -> str:
    same = "; ".join(f"`{name}` costs what `{other}` costs" for name, other in SAME_COST.items())
    versions = ", ".join(f"{name} {around['packages'][name]}" for name in ("torch", "onnxruntime"))
    return "\n".join(
        [
            f"Written by `make bench-models` on {around['started_at'][:10]} on one core of "
            f"{around['machine']['cpu']}, {versions}, float32, one thread.",
            "Times are CPU ms per face, the least of several interleaved rounds. In brackets: the "
            "figure of the method's specification.",
            f"Not measured: {same}.",
            "",
            "| variant | px | parameters, M | GMAC | ONNX, MB | torch, 1 | torch, 8 "
            "| onnxruntime, 1 | onnxruntime, 8 |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(_row, costs),
        ]
    )


def _written(document: str, table: str) -> str:
    """Return the document with the table between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{DOCUMENT}: expected the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


if __name__ == "__main__":
    main()
