"""What each process does in the tests of test_run_report.py that need several."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from train.evaluation.provenance import origin
from train.evaluation.report import parse_threshold
from train.evaluation.run_report import Evaluation, report_on_run
from train.evaluation.scores import write_scores
from train.fit.checkpoint import trained_model
from train.fit.ranks import joined


def main():
    run, folder, out = map(Path, sys.argv[1:])
    wanted = Evaluation(
        protocol=None,
        prepared=[folder],
        every_split=False,
        allow_overlap=False,
        threshold=parse_threshold("fixed=0.5"),
        aggregate="logit_mean",
        worst=1,
    )
    with joined() as ranks:
        made = origin(datetime.now(UTC), [], ranks.device)
        of_run = report_on_run(run, trained_model(run), ranks, wanted, made)
        write_scores(out / f"{ranks.rank}.jsonl", of_run.scores["test"])


if __name__ == "__main__":
    main()
