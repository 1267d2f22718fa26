"""Whether learned budgets are kept, and drift is found, on simulated cameras of known truth.

`python -m benchmarks.learn_simulated` prints two tables. The tests assert the same of fewer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from stream.learn.bound import NotEnoughError, threshold_for
from stream.learn.drift import Monitor
from stream.learn.visits import Visit
from stream.learned import MEASURES

CAMERAS = 1000
WATCHES = ((17, 5, 1.0), (24, 20, 1.0), (1, 60, 20.0), (600, 5, 1.0))  # hours, visits an hour
PEAKS: dict[str, Any] = {  # of visits, log-odds
    "exponential": stats.expon(-2, 0.6),
    "normal": stats.norm(-1.5, 0.8),
    "logistic": stats.logistic(-1.5, 0.5),
    "Gumbel": stats.gumbel_r(-1.5, 0.6),
    "bounded (beta)": stats.beta(2, 5, -3, 6),
    "Student's t, 5": stats.t(5, -1.5, 0.5),
    "Pareto, 0.2": stats.genpareto(0.2, -2, 0.5),
}


def budgets() -> None:
    """Print how many cameras get a threshold, and how many of those exceed their budget."""
    rng = np.random.default_rng(0)
    print("| peaks | hours | visits an hour | budget | answered | of these over budget |")
    print("|---|---|---|---|---|---|")
    for name, peaks in PEAKS.items():
        for hours, per_hour, budget in WATCHES:
            answered = over = 0
            for n in rng.poisson(hours * per_hour, CAMERAS):
                try:
                    bound = threshold_for(peaks.rvs(n, random_state=rng), hours * 3600.0, budget)
                except NotEnoughError:
                    continue
                answered += 1
                over += peaks.sf(bound.threshold) * per_hour * 168 > budget
            print(
                f"| {name} | {hours} | {per_hour} | {budget:g} | {answered / CAMERAS:.0%} | "
                f"{over / answered:.1%} |"
            )


def _visit(rng: np.random.Generator, shift: float) -> Visit:
    means = {name: float(rng.normal()) for name in MEASURES}
    return Visit(0.0, means | {"sharpness": means["sharpness"] - shift})


def drifts() -> None:
    """Print false alarms of cameras that stay, and the delay for those that change."""
    rng = np.random.default_rng(1)
    print("| learned visits | sharpness falls by, SD | cameras | median delay, visits | missed |")
    print("|---|---|---|---|---|")
    for n in (60, 200, 500):
        for shift in (0.0, 0.5, 1.0, 1.5, 2.0):
            delays = []
            cameras, most = (60, 600) if shift == 0 else (30, 400)
            for _ in range(cameras):
                monitor = Monitor({name: np.sort(rng.normal(size=n)) for name in MEASURES})
                for seen in range(100 + most):
                    monitor.add(_visit(rng, shift if seen >= 100 else 0.0))
                    if monitor.raised:
                        delays.append(seen - 99)
                        break
            median = f"{np.median(delays):.0f}" if len(delays) > cameras / 2 else "-"
            print(f"| {n} | {shift:g} | {cameras} | {median} | {cameras - len(delays)} |")


if __name__ == "__main__":
    budgets()
    drifts()
