"""The measures of shipped engines as a table for people, which Markdown takes as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from train.evaluation.measures import Interval
    from train.evaluation.shipped import ShippedReport
    from train.evaluation.shipped_measures import Alarms, Delays, Figures, Row

_NONE: Final = "-"
_TITLES: Final = {
    "clips": "Labelled clips, through the stream, by track",
    "stills": "Labelled pictures, one look each",
    "measure": "Pictures of real attacks, one look each",
    "portraits": "Portraits of the validation split, one look each",
}
_LEGEND: Final = """\
Errors are those at the engine's own threshold: BPCER of bona fide samples, APCER of attacks (no
alarm, undecided ones too), as errors/judged. AUC: of attacks/bona fide samples, with `*` against
those of several sets. In brackets: 95 % by person. Seconds: median time from a track's first
sighting to the right verdict (tracks that got it). False alarms: an hour with a bona fide face in
view."""


def table_of(report: ShippedReport) -> str:
    """Return all of a report's measures as text."""
    return "\n\n".join(_parts(report))


def _parts(report: ShippedReport) -> Iterator[str]:
    yield f"{report.made.date:%Y-%m-%d %H:%M} UTC, {report.made.code}\n    {report.made.command}"
    yield _grid(
        ["engine", "role", "method", "window", "attack at", "graph's SHA-256"],
        [
            [
                engine.name,
                engine.role,
                engine.method,
                f"{engine.input.margin:g} x, {engine.input.window}, {engine.input.size_px} px",
                f"{engine.thresholds.enter:g}",
                engine.onnx_sha256[:12],
            ]
            for engine in report.engines
        ],
    )
    yield _LEGEND
    for part, title in _TITLES.items():
        rows = [row for row in report.rows if row.part == part]
        if rows:
            yield f"## {title}"
            yield _of_part(rows)
    if report.ladder:
        yield "## Degraded bona fide clips"
        yield _of_ladder(report)
    compared = [row for row in report.rows if any(f.less_teacher for f in row.engines.values())]
    if compared:
        yield "## AUC less the teacher's, on the samples that both judged"
        yield _against_teachers(compared)


def _of_part(rows: Sequence[Row]) -> str:
    names = list(rows[0].engines)
    in_time = any(f.delays or f.alarms for row in rows for f in row.engines.values())
    header = ["set", "kind", "people", "samples", "not judged"]
    for name in names:
        header += [f"{name}: AUC", "errors"]
        header += ["seconds", "false alarms"] if in_time else []
    lines = []
    for row in rows:
        figures = list(row.engines.values())
        line = [
            row.set,
            row.kind.replace("_", " "),
            _same(str(f.people) for f in figures),
            _same(str(f.samples) for f in figures),
            _same(_reasons(f.not_judged) for f in figures),
        ]
        for f in figures:
            line += [_auc(row, f), _errors(f)]
            line += [_seconds(f.delays), _alarms(f.alarms)] if in_time else []
        lines.append(line)
    return _grid(header, lines)


def _of_ladder(report: ShippedReport) -> str:
    names = [engine.name for engine in report.engines]
    header = ["degradation", "rung", "tracks", "not judged"]
    for name in names:
        header += [f"{name}: errors", "false alarms", "at most twice the clean"]
    lines = []
    for rung in report.ladder:
        figures = [of.figures for of in rung.engines.values()]
        line = [
            rung.how.replace("_", " "),
            _NONE if rung.rung is None else f"{rung.rung:g}",
            _same(str(f.samples) for f in figures),
            _same(_reasons(f.not_judged) for f in figures),
        ]
        for of in rung.engines.values():
            line += [_errors(of.figures), _alarms(of.figures.alarms), "yes" if of.flat else "NO"]
        lines.append(line)
    return _grid(header, lines)


def _against_teachers(rows: Sequence[Row]) -> str:
    lines = [
        [
            row.set,
            row.kind.replace("_", " "),
            name,
            less.teacher,
            f"{less.value:+.3f}{_bracket(less.interval95, '+.2f')}",
            f"{less.n_attack}/{less.n_bona_fide}",
        ]
        for row in rows
        for name, figures in row.engines.items()
        for less in figures.less_teacher
    ]
    return _grid(["set", "kind", "engine", "teacher", "difference", "attacks/bona fide"], lines)


def _same(values: Iterable[str]) -> str:
    """Return what all engines have in common, or what each has."""
    return ", ".join(dict.fromkeys(values))


def _reasons(not_judged: dict[str, int]) -> str:
    return ", ".join(f"{n} {why}" for why, n in sorted(not_judged.items())) or "0"


def _auc(row: Row, figures: Figures) -> str:
    if figures.auc is None:
        return _NONE
    star = "*" if row.against == "all" else ""
    of = f"{figures.judged}/{figures.n_bona_fide}"
    return f"{figures.auc:.3f}{star} of {of}{_bracket(figures.auc95, '.2f')}"


def _errors(figures: Figures) -> str:
    if figures.rate is None:
        return _NONE
    low, high = figures.rate95 or (0, 1)
    share = f"{figures.errors}/{figures.judged} = {100 * figures.rate:.3g} %"
    return f"{share} [{100 * low:.0f}, {100 * high:.0f}]"


def _seconds(delays: Delays | None) -> str:
    return f"{delays.median:.1f} ({delays.n})" if delays else _NONE


def _alarms(alarms: Alarms | None) -> str:
    if alarms is None:
        return _NONE
    low, high = alarms.per_hour95
    of = f"{alarms.alarms} in {60 * alarms.hours:.1f} min"
    return f"{of} = {alarms.per_hour:.3g}/h [{low:.0f}, {high:.0f}]"


def _bracket(interval: Interval | None, how: str) -> str:
    return "" if interval is None else f" [{interval[0]:{how}}, {interval[1]:{how}}]"


def _grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(header, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in (header, rule, *lines)
    )
