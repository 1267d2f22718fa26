"""One HTML page about a scan that needs no other file and no network."""

from __future__ import annotations

import base64
import heapq
import io
from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image

from models import whole_file
from stream.scan.child import ReadStatus
from stream.scan.crops import overlaid
from stream.scan.results import latest_rows
from stream.scan.tally import was_attack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from stream.scan.crops import Pixels
    from stream.scan.rows import FileRow, TrackRow
    from trt_engines.backends import Backend

MOST_FILES: Final = 2000  # rows of the table; a page with a million opens in no browser
MOST_CROPS: Final = 60
MOST_UNREAD: Final = 500

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--bad:#c62828;--good:#2e7d32;--open:#888}
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{border-bottom:1px solid var(--line);
padding:.3rem .5rem;text-align:left;vertical-align:top}td.n{text-align:right;
font-variant-numeric:tabular-nums}th button{all:unset;cursor:pointer;font-weight:600}
td.path{overflow-wrap:anywhere;min-width:10rem;max-width:24rem}
td:not(.path):not(.why),.sorts th{white-space:nowrap}.wide{overflow-x:auto}
.attack{color:var(--bad);font-weight:600}.bona_fide{color:var(--good)}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:1rem}
figure{margin:0;border:1px solid var(--line);padding:.5rem}figure img{width:50%}
figcaption{overflow-wrap:anywhere;font-size:.85rem}
svg{display:block;width:260px}.note{color:var(--open)}
"""
_SCRIPT: Final = """
document.querySelectorAll("table.sorts").forEach(table=>{
 table.querySelectorAll("th button").forEach((button,column)=>button.addEventListener("click",()=>{
  const body=table.tBodies[0],up=button.dataset.up!=="1";button.dataset.up=up?"1":"0";
  const key=row=>{const cell=row.cells[column];return cell.dataset.value??cell.textContent};
  const rows=[...body.rows].sort((a,b)=>{const x=key(a),y=key(b),n=Number(x)-Number(y);
   return (x!==""&&y!==""&&!Number.isNaN(n)?n:x.localeCompare(y))*(up?1:-1)});
  body.append(...rows)}))})
"""
_COLUMNS: Final = (
    "file", "verdict", "p attack", "tracks", "attacks", "coverage", "length, s", "status",
    "faces over time",
)  # fmt: skip
_COLOURS: Final = {"attack": "var(--bad)", "bona_fide": "var(--good)"}


def write_report(
    journals: Sequence[Path], out: Path, open_detector: Callable[[], Backend] | None
) -> None:
    """Write report.html.

    Args:
        journals: of the results.
        out: folder of the results; its crops/ holds pictures of the worst tracks.
        open_detector: opens the first detector, which is asked where it saw the evidence in each
            picture; None: that is not shown.
    """
    statuses: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    worst: list[tuple[float, int, FileRow]] = []
    tracks: list[tuple[float, int, str, TrackRow]] = []
    unread: list[FileRow] = []
    for number, row in enumerate(latest_rows(journals)):
        statuses[row.status] += 1
        if _was_seen(row):
            verdicts[row.verdict] += 1
        totals.update(files=1, tracks=row.n_tracks, bytes=row.size, frames=row.frames_analysed)
        totals["seconds"] += round(row.seconds)
        rank = row.n_attack + (-1.0 if row.p_attack is None else row.p_attack)
        _keep(worst, (rank, -number, row), MOST_FILES)
        if row.status is not ReadStatus.OK and len(unread) < MOST_UNREAD:
            unread.append(row)
        for track in row.tracks:
            if track.crop is not None:
                seen = (track.p_highest or 0.0, -len(tracks) - number, row.path, track)
                _keep(tracks, seen, MOST_CROPS)
    files = [row for *_, row in sorted(worst, key=lambda each: each[:2], reverse=True)]
    faces = sorted(tracks, key=lambda each: each[:2], reverse=True)
    parts = [
        _summary(totals, statuses, verdicts),
        _sheet([(path, track) for *_, path, track in faces], out / "crops", open_detector),
        _table(files, totals["files"]),
        _unread(unread, totals["files"] - statuses["ok"]),
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>facewarden scan</title>'
        f"<style>{_STYLE}</style><h1>Scan</h1>{''.join(parts)}<script>{_SCRIPT}</script></html>\n"
    )
    with whole_file(out / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")


def _keep(heap: list, entry: tuple, most: int) -> None:  # type: ignore[type-arg]
    """Add to the largest `most` entries; their first two parts are unique and order them."""
    if len(heap) < most:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _summary(totals: Counter[str], statuses: Counter[str], verdicts: Counter[str]) -> str:
    said = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in verdicts.most_common())
    ended = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in statuses.most_common())
    return (
        f"<p>{totals['files']} files, {_amount(totals['bytes'])}, "
        f"{totals['seconds'] / 3600:.2f} h of media, {totals['frames']} frames analysed, "
        f"{totals['tracks']} faces followed.<br>Verdicts: {said or 'none'}.<br>Reading: "
        f"{ended or 'nothing to read'}.</p>"
    )


def _amount(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _was_seen(row: FileRow) -> bool:
    """Return whether anything is known of its faces, be it that there are none."""
    return row.status is ReadStatus.OK or row.frames_analysed > 0


def _table(rows: Sequence[FileRow], n: int) -> str:
    head = "".join(f"<th><button>{name}</button></th>" for name in _COLUMNS)
    body = "".join(map(_file, rows))
    note = f"<p class=note>The gravest {len(rows)} of {n} files.</p>" if n > len(rows) else ""
    return (
        f"<h2>Files</h2>{note}<div class=wide><table class=sorts><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _file(row: FileRow) -> str:
    verdict = row.verdict.replace("_", " ") if _was_seen(row) else "not seen"
    verdict += " (one look)" if row.kind == "still" and _was_seen(row) else ""
    numbers = "".join(
        f"<td class=n>{'' if value is None else format(value, form)}</td>"
        for value, form in (
            (row.p_attack, ".3f"), (row.n_tracks, "d"), (row.n_attack, "d"), (row.coverage, ".2f"),
            (row.seconds, ".1f"),
        )
    )  # fmt: skip
    return (
        f'<tr><td class=path>{escape(row.path)}</td><td class="{row.verdict}">{verdict}</td>'
        f"{numbers}<td>{row.status}</td><td>{_timeline(row)}</td></tr>"
    )


def _timeline(row: FileRow) -> str:
    """Draw a bar per track over the length of the file."""
    if not row.tracks or row.kind == "still":
        return ""
    length = max(row.seconds, 0.001)
    bars = []
    for line, track in enumerate(row.tracks[:12]):
        first, last = (260 * t / length for t in (track.first_s, track.last_s))
        verdict = "attack" if was_attack(track) else str(track.verdict)
        span = f"{track.first_s:.1f}-{track.last_s:.1f} s"
        title = f"track {track.track}: {verdict.replace('_', ' ')}, {span}"
        bars.append(
            f'<rect x="{first:.1f}" y="{line * 8}" width="{max(last - first, 2):.1f}" height="6" '
            f'fill="{_COLOURS.get(verdict, "var(--open)")}"><title>{title}</title></rect>'
        )
    height = 8 * len(bars)
    return f'<svg viewBox="0 0 260 {height}" height="{height}">{"".join(bars)}</svg>'


def _unread(rows: Sequence[FileRow], n: int) -> str:
    if not rows:
        return "<h2>Not read to the end</h2><p>None: every file was.</p>"
    body = "".join(
        f"<tr><td class=path>{escape(row.path)}</td><td>{row.status}</td>"
        f"<td class=why>{escape(row.reason or '')}</td></tr>"
        for row in rows
    )
    note = f"<p class=note>The first {len(rows)} of {n}.</p>" if n > len(rows) else ""
    return (
        f"<h2>Not read to the end</h2>{note}<table><thead><tr><th>file</th><th>status</th>"
        f"<th>why</th></tr></thead><tbody>{body}</tbody></table>"
    )


def _sheet(
    faces: Sequence[tuple[str, TrackRow]],
    crops: Path,
    open_detector: Callable[[], Backend] | None,
) -> str:
    if not faces:
        return ""
    detector = None if open_detector is None else open_detector()
    try:
        figures = [
            _figure(path, track, crops / track.crop, detector)
            for path, track in faces
            if track.crop is not None and (crops / track.crop).is_file()
        ]
    finally:
        if detector is not None:
            detector.close()
    note = "" if detector is None else " Right: where the first detector saw the evidence (red)."
    return (
        "<h2>Faces that look most like attacks</h2><p class=note>Left: the worst look, as the "
        f"first detector saw it.{note}</p><div class=sheet>{''.join(figures)}</div>"
    )


def _figure(path: str, track: TrackRow, crop: Path, detector: Backend | None) -> str:
    with Image.open(crop) as opened:
        picture = np.array(opened.convert("RGB"))
    pictures = [picture]
    if detector is not None:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
        explanation = detector.infer(image).get("explanation")
        if explanation is not None:
            pictures.append(overlaid(picture, explanation[0, 0].numpy()))
    shown = "".join(f'<img alt="" src="{_inline(each)}">' for each in pictures)
    verdict = "attack" if was_attack(track) else str(track.verdict)
    evidence = ", ".join(
        f"{escape(each.name)} {'abstains' if each.p_attack is None else f'{each.p_attack:.2f}'}"
        for each in track.detectors
    )
    return (
        f'<figure>{shown}<figcaption><span class="{verdict}">{verdict.replace("_", " ")}</span> '
        f"{track.p_highest or 0:.3f}, {track.first_s:.1f}-{track.last_s:.1f} s, "
        f"{track.n_scores} looks<br>{evidence}<br>{escape(path)}</figcaption></figure>"
    )


def _inline(picture: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
