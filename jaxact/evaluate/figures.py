"""Sections that a task adds to the report: pictures and the reliability diagram, as HTML."""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxact.evaluate.calibration import Reliability

SIDE = 160  # px, height of a picture


@dataclasses.dataclass(frozen=True)
class Figure:
    """A section: its title (any text) and its content (HTML made by the functions below)."""

    title: str
    html: str


def jpeg_uri(image: Image.Image) -> str:
    """The image as a data URI, which needs no file beside the page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def pictures(title: str, text: str, images: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """A paragraph, and pictures as (caption, u8[h, w, 3]). Raises: ValueError for another array."""
    cards = []
    for caption, image in images:
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(f"a picture {image.dtype}{image.shape}: must be u8[h, w, 3]")
        width = max(1, round(image.shape[1] * SIDE / image.shape[0]))
        source = jpeg_uri(Image.fromarray(np.ascontiguousarray(image)).resize((width, SIDE)))
        cards.append(
            f'<figure class="card"><img alt="" src="{source}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return Figure(title, f'<p>{html.escape(text)}</p><div class="cards">{"".join(cards)}</div>')


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """u8[h, 2 w, 3]: an image u8[h, w, 3], and again with a map f[h', w'] of 0..1 laid over it."""
    size = (image.shape[1], image.shape[0])
    grown = Image.fromarray((np.clip(heat, 0, 1) * 255).astype(np.uint8)).resize(
        size, Image.Resampling.BILINEAR
    )
    share = np.asarray(grown, np.float32)[..., None] / 255
    # From dark blue over red to yellow, as bright as the map is high.
    colour = np.concatenate([share**0.5, share**2, 0.35 * (1 - share)], -1) * 255
    mixed = 0.45 * image.astype(np.float32) + 0.55 * colour
    return np.concatenate([image, np.clip(mixed, 0, 255).astype(np.uint8)], 1)


def reliability(title: str, text: str, bins: Reliability) -> Figure:
    """Accuracy over confidence as bars; the diagonal is perfect, darker bars hold more rows."""
    side, edge = 300, 34
    width = (side - edge) / len(bins.count)
    most = max(1, int(bins.count.max()))
    parts = []
    for k in np.flatnonzero(bins.count):
        height = float(bins.accuracy[k]) * (side - edge)
        shade = 0.25 + 0.75 * float(bins.count[k]) / most
        tip = (
            f"confidence {bins.confidence[k]:.3f}, accuracy {bins.accuracy[k]:.3f}, "
            f"{int(bins.count[k])} examples"
        )
        parts.append(
            f'<rect x="{edge + k * width:.1f}" y="{side - edge - height:.1f}" class="hit" '
            f'width="{width:.1f}" height="{height:.1f}" fill-opacity="{shade:.2f}">'
            f"<title>{tip}</title></rect>"
        )
    parts.append(f'<path d="M{edge} {side - edge}L{side} 0" class="rule"/>')
    for tick in (0, 0.5, 1):
        at = tick * (side - edge)
        parts.append(
            f'<text x="{edge - 6}" y="{side - edge - at + 5:.1f}" class="end">{tick:g}</text>'
        )
        parts.append(f'<text x="{edge + at:.1f}" y="{side - 12}" class="mid">{tick:g}</text>')
    drawn = (
        f'<svg viewBox="0 0 {side + 12} {side}" role="img" style="max-width:420px" '
        f'aria-label="accuracy over confidence">{"".join(parts)}</svg>'
    )
    return Figure(title, f"<p>{html.escape(text)}</p>{drawn}")
