"""The report of a run: one HTML page without scripts or outside resources.

    write(workdir / "report.html", Report(title="x3d", results=[...], metrics=rows, ...))

An empty field leaves its section out. All text (class names, ids, commands) is escaped, and the
page's own policy forbids loading anything. Light or dark follows the reader's system.
"""

import dataclasses
import html
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxact import atomic
from jaxact.evaluate.figures import Figure, jpeg_uri
from jaxact.evaluate.metrics import Confusion

POINTS = 400  # of one curve; longer ones are averaged in this many groups of neighbours
STRIP = (6, 72)  # frames of a thumbnail strip, their height in px


@dataclasses.dataclass(frozen=True)
class Result:
    """A number of the summary table, and where it comes from."""

    name: str  # "top-1, test, 10 clips"
    value: float | int | str  # floats are shown with four significant digits, integers exactly
    weights: str = ""  # "raw" or "ema"
    command: str = ""  # that reproduces it
    reference: str = ""  # the published number, marked as whose it is


@dataclasses.dataclass(frozen=True)
class Example:
    """A prediction worth looking at."""

    id: str
    true: str  # class name
    predicted: str  # class name
    probability: float  # of the predicted class, 0..1
    frames: np.ndarray | None = None  # u8[t, h, w, 3]; a few of them become a strip


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a page."""

    title: str
    summary: str = ""  # a paragraph: what was trained on what
    results: Sequence[Result] = ()
    metrics: Sequence[Mapping[str, Any]] = ()  # rows of metrics.jsonl: step, epoch, split, numbers
    confusion: np.ndarray | None = None  # i[k, k], rows true, columns predicted
    classes: Sequence[str] = ()  # k names; absent: numbers
    worst: Sequence[Example] = ()
    best: Sequence[Example] = ()
    figures: Sequence[Figure] = ()  # further sections, before the configuration
    config: Mapping[str, Any] | None = None  # resolved configuration
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> version


def write(path: pathlib.Path, report: Report) -> None:
    """Writes the page to `path` (UTF-8), whole or not at all. Raises: ValueError as `page`."""
    atomic.write_text(path, page(report))


def page(report: Report) -> str:
    """The HTML text. Raises: ValueError for names, tables, rows or frames that do not fit."""
    sections = [
        ("Results", _results(report.results)),
        ("Curves", _curves(report.metrics)),
        ("Confusion", _confusion(report.confusion, report.classes)),
        ("Classes", _classes(report.confusion, report.classes)),
        ("Worst examples", _examples(report.worst)),
        ("Best examples", _examples(report.best)),
        *((figure.title, figure.html) for figure in report.figures),
        ("Configuration", _config(report.config)),
        ("Environment", _table(("", ""), report.environment.items())),
    ]
    body = [f"<h1>{_text(report.title)}</h1>"]
    if report.summary:
        body.append(f"<p>{_text(report.summary)}</p>")
    for name, content in sections:
        if content:
            body.append(f"<section><h2>{_text(name)}</h2>\n{content}</section>")
    main = "\n".join(body)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(report.title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><main>{main}</main></body></html>\n"
    )


def _text(value: Any) -> str:
    """Escaped text; characters that HTML cannot hold become a replacement mark."""
    clean = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(value))
    return html.escape(clean, quote=True)


def _number(value: float | int | str) -> str:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]], kinds: str = "") -> str:
    """A table of escaped cells; a letter per column: n number (right-aligned), c code."""
    kinds = kinds.ljust(len(heads))

    def line(cells, tag):
        return "".join(
            f'<{tag} class="{kind}">{_text(cell)}</{tag}>'
            for cell, kind in zip(cells, kinds, strict=True)
        )

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>" if any(heads) else ""
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>' if body else ""


def _results(results: Sequence[Result]) -> str:
    rows = [(r.name, _number(r.value), r.weights, r.reference, r.command) for r in results]
    return _table(("", "value", "weights", "published", "command"), rows, " n  c")


def _config(config: Mapping[str, Any] | None) -> str:
    if not config:
        return ""
    dump = json.dumps(config, indent=2, default=str, ensure_ascii=False)
    return f"<details><summary>all fields</summary><pre>{_text(dump)}</pre></details>"


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """A chart for each number in the rows, with a line for each split."""
    charts: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        if "step" not in row:
            raise ValueError(f"row of metrics without a step: {dict(row)}")
        for name, value in row.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name in ("step", "epoch", "split") or not is_number:
                continue
            lines = charts.setdefault(name, {})
            # Where a run was resumed, a later row of the same step replaces the earlier one.
            lines.setdefault(str(row.get("split", "")), {})[float(row["step"])] = float(value)
    splits = list(dict.fromkeys(split for lines in charts.values() for split in lines))
    colour = {split: f"c{i % 6}" for i, split in enumerate(splits)}
    order = sorted(charts, key=lambda name: (not name.endswith("loss"), name == "lr"))
    drawn = "".join(_chart(name, charts[name], colour) for name in order)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _thinned(line: Mapping[float, float]) -> list[tuple[float, float]]:
    points = sorted(line.items())
    if len(points) <= POINTS:
        return points
    groups = np.array_split(np.array(points), POINTS)
    return [(float(g[:, 0].mean()), float(g[:, 1].mean())) for g in groups]


def _chart(name: str, lines: Mapping[str, Mapping[float, float]], colour: Mapping[str, str]) -> str:
    curves = {split: _thinned(line) for split, line in lines.items()}
    finite = [(x, y) for curve in curves.values() for x, y in curve if math.isfinite(y)]
    width, height, left, right, top, bottom = 560, 240, 58, 12, 10, 26
    marks, legend = [], []
    if finite:
        x_ticks, x0, x1 = _ticks([x for x, _ in finite], fit=True)
        y_ticks, y0, y1 = _ticks([y for _, y in finite], fit=False)

        def place(x, y):
            across = left + (x - x0) / (x1 - x0) * (width - left - right)
            return across, height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom)

        for x in x_ticks:
            at = place(x, y0)[0]
            marks.append(f'<text x="{at:.1f}" y="{height - 8}" class="mid">{x:g}</text>')
        for y in y_ticks:
            at = place(x0, y)[1]
            marks.append(f'<path d="M{left} {at:.1f}H{width - right}" class="rule"/>')
            marks.append(f'<text x="{left - 6}" y="{at + 4:.1f}" class="end">{y:.4g}</text>')
        for split, curve in curves.items():
            path, pen = [], "M"
            for x, y in curve:
                if math.isfinite(y):
                    path.append("{}{:.1f} {:.1f}".format(pen, *place(x, y)))
                pen = "L" if math.isfinite(y) else "M"
            marks.append(f'<path d="{"".join(path)}" class="line {colour[split]}"/>')
            if len(curve) <= 60:
                for x, y in curve:
                    if math.isfinite(y):
                        label = f"<title>{_text(split)} step {x:g}: {y:.5g}</title>"
                        dot = '<circle cx="{:.1f}" cy="{:.1f}" r="3"'.format(*place(x, y))
                        marks.append(f'{dot} class="dot {colour[split]}">{label}</circle>')
    for split, line in lines.items():
        last = line[max(line)]
        legend.append(f'<span class="key {colour[split]}"></span>{_text(split)} {last:.4g}')
    return (
        f'<figure><figcaption><b>{_text(name)}</b> <span class="legend">last: '
        f'{" ".join(legend)}</span></figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{_text(name)} over steps">{"".join(marks)}</svg></figure>\n'
    )


def _ticks(values: Sequence[float], fit: bool) -> tuple[list[float], float, float]:
    """Round tick positions (at most 7) and the axis limits; `fit` ends the axis at the data."""
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]
    if fit:
        return [t for t in ticks if low <= t <= high], low, high
    return ticks, ticks[0], ticks[-1]


def _names(table: np.ndarray, classes: Sequence[str]) -> list[str]:
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"confusion matrix {table.shape}: must be square")
    if classes and len(classes) != len(table):
        raise ValueError(f"{len(classes)} class names for a confusion matrix of {len(table)}")
    return [str(name) for name in classes] or [str(i) for i in range(len(table))]


def _confusion(confusion: np.ndarray | None, classes: Sequence[str]) -> str:
    """Row-normalised heat map; a tooltip on every cell that is not zero."""
    if confusion is None:
        return ""
    table = np.asarray(confusion)
    names = _names(table, classes)
    k = len(names)
    cell = 34 if k <= 12 else 20 if k <= 30 else 14 if k <= 80 else 5
    font = min(12, cell - 3)
    labelled, counted = k <= 80, k <= 12
    short = [name if len(name) <= 20 else name[:19] + "…" for name in names]
    margin = int(max(map(len, short)) * font * 0.6) + 14 if labelled else 4
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    shade = 0.1 + 0.9 * np.sqrt(share)  # the root keeps rare confusions visible
    side = margin + k * cell + 2
    box = f'x="{margin}" y="{margin}" width="{k * cell}" height="{k * cell}"'
    marks = [f'<rect {box} class="box"/>']
    for i, name in enumerate(short if labelled else ()):
        at = margin + (i + 0.5) * cell + font * 0.35
        marks.append(f'<text x="{margin - 5}" y="{at:.1f}" class="end">{_text(name)}</text>')
        turn = f"translate({at:.1f} {margin - 5}) rotate(-90)"
        marks.append(f'<text transform="{turn}">{_text(name)}</text>')
    for i, j in zip(*np.nonzero(table), strict=True):
        x, y = margin + j * cell, margin + i * cell
        tip = f"{names[i]} as {names[j]}: {table[i, j]} ({share[i, j]:.1%})"
        kind = "hit" if i == j else "miss"
        marks.append(
            f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" class="{kind}" '
            f'fill-opacity="{shade[i, j]:.2f}"><title>{_text(tip)}</title></rect>'
        )
        if counted:
            tone = " on" if shade[i, j] > 0.6 else ""
            place = f'x="{x + cell / 2}" y="{y + cell / 2 + font * 0.35:.1f}"'
            marks.append(f'<text {place} class="mid count{tone}">{table[i, j]}</text>')
    least = f"min-width:{min(side, 900)}px;max-width:{max(side, 420)}px;font-size:{font}px"
    return (
        "<p>Rows are true classes, columns predictions; the shade grows with the share of the "
        "row. Point at a cell for its numbers.</p>"
        f'<div class="scroll"><svg viewBox="0 0 {side} {side}" role="img" style="{least}" '
        f'aria-label="confusion matrix">{"".join(marks)}</svg></div>'
    )


def _classes(confusion: np.ndarray | None, classes: Sequence[str]) -> str:
    """Support, precision, recall and F1 of each class, the lowest F1 first."""
    if confusion is None:
        return ""
    table = Confusion(np.asarray(confusion))
    names = _names(np.asarray(confusion), classes)
    columns = (names, table.support, table.precision(), table.recall(), table.f1())
    rows = sorted(zip(*columns, strict=True), key=lambda row: (row[4], row[1], row[0]))
    shown = [(n, f"{s:,}", f"{p:.3f}", f"{r:.3f}", f"{f:.3f}") for n, s, p, r, f in rows]
    return _table(("class", "support", "precision", "recall", "F1"), shown, " nnnn")


def _examples(examples: Sequence[Example]) -> str:
    cards = []
    for example in examples:
        image = ""
        if example.frames is not None and len(example.frames):
            image = f'<img alt="" src="{_strip(example.frames)}">'
        verdict = "right" if example.true == example.predicted else "wrong"
        cards.append(
            f'<figure class="card">{image}<figcaption><code>{_text(example.id)}</code><br>'
            f'true {_text(example.true)}<br><span class="{verdict}">predicted '
            f"{_text(example.predicted)}, {example.probability:.1%}</span></figcaption></figure>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _strip(frames: np.ndarray) -> str:
    """A few frames of u8[t, h, w, 3] side by side, as a data URI."""
    count, height = STRIP
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"frames of an example {frames.dtype}{frames.shape}: must be u8[t, h, w, 3]"
        )
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    chosen = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    sheet = Image.new("RGB", (width * len(chosen), height))
    for i, index in enumerate(chosen):
        frame = Image.fromarray(np.ascontiguousarray(frames[index]))
        sheet.paste(frame.resize((width, height), Image.Resampling.BILINEAR), (i * width, 0))
    return jpeg_uri(sheet)


STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#626b76;--page:#fff;--box:#f4f5f7;--rule:#d9dde2;
--hit:#1f6feb;--miss:#d1442f;--c0:#1f6feb;--c1:#d1642f;--c2:#2f9e57;--c3:#8a4fd0;--c4:#b98900;
--c5:#c2366f}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--dim:#98a2ae;--page:#14171b;--box:#1d2126;
--rule:#343b44;--hit:#539bf5;--miss:#f0765f;--c0:#539bf5;--c1:#f0935f;--c2:#57c27e;--c3:#b48bf0;
--c4:#dcb23c;--c5:#ee7aa8}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:1.5rem;margin:.4rem 0}h2{font-size:1.15rem;margin:1.8rem 0 .5rem}
p{color:var(--dim);margin:.3rem 0 .8rem;max-width:70ch}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px 4px 0;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{color:var(--dim);font-weight:500}.n{text-align:right}
th.n,td.n{white-space:nowrap}td:first-child{min-width:7rem}
td.c{font-family:ui-monospace,monospace;font-size:.85em;min-width:16rem;overflow-wrap:anywhere}
code,pre{font-family:ui-monospace,monospace;font-size:.85em;overflow-wrap:anywhere}
pre{white-space:pre-wrap;background:var(--box);padding:12px;border-radius:6px}
summary{cursor:pointer}
figure{margin:0}svg{display:block;width:100%;height:auto}
svg text{fill:var(--dim);font-family:system-ui,sans-serif}.charts svg text{font-size:12px}
svg .end{text-anchor:end}svg .mid{text-anchor:middle}
svg .count{fill:var(--ink)}svg .count.on{fill:var(--page)}
svg text.count{pointer-events:none}
.charts{display:grid;gap:18px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.legend{color:var(--dim);font-size:.85em}
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 4px 0 10px}
.rule{stroke:var(--rule);stroke-width:1}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.box{fill:var(--box);stroke:var(--rule)}.hit{fill:var(--hit)}.miss{fill:var(--miss)}
rect.hit,rect.miss{stroke:var(--page);stroke-width:.5}
.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr))}
.card{background:var(--box);border-radius:6px;padding:10px}
.card img{display:block;max-width:100%;height:auto;margin-bottom:6px;border-radius:3px}
.right{color:var(--c2)}.wrong{color:var(--miss)}
""" + "".join(
    f".line.c{i}{{stroke:var(--c{i})}}.dot.c{i}{{fill:var(--c{i})}}.key.c{i}{{background:var(--c{i})}}"
    for i in range(6)
)
