"""A picture of one video's ground truth and detections over time, as SVG of a few kilobytes.

    page = svg("video_test_0000004", 33.8, truth, detections, names)

One lane for each class that occurs: ground truth above the line, detections below it, fainter with
lower score. All text is escaped and no other file is needed, so it can stand in a report.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, MARGIN, LANE, BAR = 960, 150, 34, 11  # px
MOST = 50  # detections drawn
HUES = 360 / 1.618033988749895  # degrees between the colours of neighbouring labels


class Track(NamedTuple):
    """Segments of one video."""

    segment: np.ndarray  # f[n, 2] s
    label: np.ndarray  # i[n]
    score: np.ndarray  # f[n], 0..1


NOTHING = Track(np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0))


def svg(title: str, duration: float, truth: Track, detections: Track, names: Sequence[str]) -> str:
    """An SVG element with the ground truth and the MOST detections of the highest scores.

    `duration` s; labels index `names`.
    """
    best = np.argsort(-np.asarray(detections.score), kind="stable")[:MOST]
    detections = Track(*(np.asarray(column)[best] for column in detections))
    lanes = sorted({int(k) for k in truth.label} | {int(k) for k in detections.label})
    place = {label: row for row, label in enumerate(lanes)}
    height = 34 + LANE * max(len(lanes), 1) + 22
    span = max(duration, 1e-6)
    out = [f'<text x="4" y="18" font-weight="600">{_text(title)}</text>']
    out.append(
        f'<text x="{WIDTH - 4}" y="18" text-anchor="end" opacity=".7">{_clock(duration)}, '
        f"{len(truth.label)} annotated, best {len(best)} detected</text>"
    )
    for label, row in place.items():
        top = 34 + row * LANE
        out.append(
            f'<text x="{MARGIN - 8}" y="{top + 16}" text-anchor="end">{_text(names[label])}</text>'
            f'<path d="M{MARGIN} {top + 13}H{WIDTH - 4}" stroke="currentColor" opacity=".25"/>'
        )
    for track, offset, kind in ((truth, 0, "annotated"), (detections, 15, "detected")):
        # The lowest score first, so that the best lies on top.
        for row in np.argsort(track.score, kind="stable"):
            start, end = (float(x) for x in track.segment[row])
            label, score = int(track.label[row]), float(track.score[row])
            left = MARGIN + (WIDTH - MARGIN - 4) * min(max(start / span, 0), 1)
            right = MARGIN + (WIDTH - MARGIN - 4) * min(max(end / span, 0), 1)
            shade = 1.0 if kind == "annotated" else 0.15 + 0.85 * min(max(score, 0), 1)
            tip = f"{kind}: {names[label]} {start:.2f} to {end:.2f} s"
            tip += "" if kind == "annotated" else f", score {score:.3f}"
            out.append(
                f'<rect x="{left:.1f}" y="{34 + place[label] * LANE + offset}" height="{BAR}" '
                f'width="{max(right - left, 1):.1f}" rx="2" fill="{_colour(label)}" '
                f'fill-opacity="{shade:.2f}"><title>{_text(tip)}</title></rect>'
            )
    for second in _ticks(duration):
        x = MARGIN + (WIDTH - MARGIN - 4) * second / span
        out.append(
            f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle" opacity=".7">'
            f"{_clock(second)}</text>"
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{_text(title)}" font-family="system-ui,sans-serif" font-size="12" '
        f'fill="currentColor">{"".join(out)}</svg>'
    )


def page(title: str, pictures: Sequence[str]) -> str:
    """A whole HTML page of such pictures."""
    body = "\n".join(f"<figure>{picture}</figure>" for picture in pictures)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>:root{{color-scheme:light dark}}"
        "body{max-width:1100px;margin:0 auto;padding:16px;font-family:system-ui,sans-serif}"
        f"figure{{margin:0 0 20px}}</style></head>\n<body><h1>{_text(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def _text(value: str) -> str:
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in value), quote=True)


def _colour(label: int) -> str:
    return f"hsl({label * HUES % 360:.0f} 65% 48%)"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s" if seconds == round(seconds) else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _ticks(duration: float) -> list[float]:
    """Round times, at most nine and 0 among them."""
    if not duration > 0:
        return [0.0]
    raw = duration / 8
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [m * power for m in (1, 2, 5, 10)] if raw < 10 else [15, 30, 60, 120, 300, 600, 1800]
    step = next((s for s in steps if s >= raw), 3600.0 * math.ceil(raw / 3600))
    return [step * i for i in range(int(duration / step + 1e-9) + 1)]
