"""A video with what was recognised drawn in: label, probability, timeline, skeletons.

Written frame by frame at the original times, so its length does not matter.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jaxact.config import UserError
from jaxact.data import drawing, geometry, media
from jaxact.data.drawing import CLASS_COLOURS, SHADE, Colour
from jaxact.data.video import Video, write
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.eval_views import decoded
from jaxact.tasks.action.skeletons import Skeleton
from jaxact.tasks.action.sliding_windows import length

Segment = dict[str, Any]  # start and end (s), name, probability

LEFT: Colour = (255, 159, 28)
RIGHT: Colour = (46, 196, 255)
MIDDLE: Colour = (190, 242, 100)
WHITE: Colour = (255, 255, 255)
THRESHOLD = 0.3  # joint score from which it is drawn


def render(
    skeleton: Skeleton, clip: Clip, path: str | Path, segments: list[Segment], side: int = 0
) -> None:
    """Writes the video of a clip with its segments drawn in.

    Args:
      segments: what was recognised, in order of time.
      side: px of the shorter side of the written frames; 0 = as they are.

    Raises:
      UserError: the clip has no video, it cannot be read, or `path` cannot be written.
    """
    if not clip.video:
        raise UserError(f"{clip.id}: names no video to draw on")
    if media.same_file(path, clip.video):
        raise UserError(f"--render={path} is the input itself; give another name")
    with Video(clip.video, threads=0) as video:
        size = geometry.short_side(video.size, side) if side else video.size
        size = (max(size[0] // 2, 8) * 2, max(size[1] // 2, 8) * 2)  # colours are stored by halves
        fps = video.fps or 25.0
        end = length(video.times)
        segments = [{**segment, "end": min(segment["end"], end)} for segment in segments]
        write(path, frames(skeleton, clip, video, segments, size), fps, times=video.times)


def frames(
    skeleton: Skeleton,
    clip: Clip,
    video: Video,
    segments: list[Segment],
    size: geometry.Size,
) -> Iterator[np.ndarray]:
    """Every frame of the video, u8[h, w, 3] of `size`, drawn on."""
    banner = Banner(segments, size)
    keypoint = geometry.rescale(clip.keypoint, clip.size, size)
    for numbers, pictures in decoded(video, np.arange(video.frames), size):
        for number, picture in zip(numbers.tolist(), pictures, strict=True):
            image = Image.fromarray(picture)
            if keypoint is not None and clip.score is not None and number < keypoint.shape[1]:
                draw_people(image, keypoint[:, number], clip.score[:, number], skeleton)
            banner.draw(image, float(video.times[number]))
            yield np.asarray(image)


def draw_people(
    image: Image.Image, keypoint: np.ndarray, score: np.ndarray, skeleton: Skeleton
) -> None:
    """Draws limbs and joints of f32[p, j, 2] px, left, right and middle in their own colours.

    Left out: joints with a score below the threshold, and undetected ones (at 0, 0).
    """
    pen = ImageDraw.Draw(image)
    width = max(2, min(image.size) // 120)
    sides = {**dict.fromkeys(skeleton.left, LEFT), **dict.fromkeys(skeleton.right, RIGHT)}
    colours = [sides.get(joint, MIDDLE) for joint in range(len(skeleton.joints))]
    for person, shares in zip(keypoint, score, strict=True):
        seen = (shares >= THRESHOLD) & person.any(-1) & np.isfinite(person).all(-1)
        at = [tuple(map(float, xy)) for xy in person]
        for a, b in skeleton.limbs:
            if seen[a] and seen[b]:
                colour = colours[a] if colours[a] == colours[b] else MIDDLE
                pen.line([at[a], at[b]], fill=colour, width=width)
        for joint in np.flatnonzero(seen).tolist():
            (x, y), r = at[joint], width
            pen.ellipse([x - r, y - r, x + r, y + r], fill=colours[joint])


class Banner:
    """The lower edge of every frame: the label, its probability as a bar, and the timeline."""

    def __init__(self, segments: Sequence[Segment], size: geometry.Size):
        self.segments, (self.height, self.width) = segments, size
        self.starts = [segment["start"] for segment in segments]  # s, rising
        self.end = max((segment["end"] for segment in segments), default=0.0) or 1.0
        names = list(dict.fromkeys(segment["name"] for segment in segments))
        self.colours = {name: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, name in enumerate(names)}
        self.line = max(9, round(0.06 * self.height))  # px of the label
        self.bar = max(2, round(0.015 * self.height))
        self.strip = max(4, round(0.03 * self.height))
        self.gap = max(2, self.bar // 2)  # px between the two, which may have the same colour
        self.font = drawing.font(names, self.line)
        self.top = max(0, self.height - round(1.5 * self.line) - self.bar - self.gap - self.strip)
        self.labels = {name: self._fitted(name) for name in names}
        self.timeline = self._timeline()

    def draw(self, image: Image.Image, time: float) -> None:
        """Draws onto a frame shown at `time` s."""
        box = (0, self.top, self.width, self.height)
        shade = Image.new("RGB", (self.width, self.height - self.top), SHADE)
        image.paste(Image.blend(image.crop(box), shade, 0.65), box[:2])
        pen = ImageDraw.Draw(image)
        edge = self.height - self.strip
        segment = self.at(time)
        if segment is not None:
            share, colour = segment["probability"], self.colours[segment["name"]]
            number = f"{100 * share:.0f} %"
            at = self.top + self.line // 5
            pen.text((self.line // 3, at), self.labels[segment["name"]], WHITE, self.font)
            right = self.width - self.line // 3 - self.font.getlength(number)
            pen.text((right, at), number, WHITE, self.font)
            low = edge - self.gap
            full = (0, low - self.bar, round(share * self.width) - 1, low - 1)
            if full[2] >= 0:
                pen.rectangle(full, fill=colour)
        image.paste(self.timeline, (0, edge))
        x = round(min(time / self.end, 1.0) * (self.width - 1))
        pen.rectangle((x - 1, edge - 1, x + 1, self.height), fill=WHITE)

    def at(self, time: float) -> Segment | None:
        """The segment that is on at `time` s; the last one also after its end."""
        place = bisect_right(self.starts, time + 1e-6) - 1
        last = place == len(self.segments) - 1
        if place < 0 or (time >= self.segments[place]["end"] and not last):
            return None
        return self.segments[place]

    def _fitted(self, name: str) -> str:
        """The name, shortened to what fits beside the number."""
        room = self.width - self.line - self.font.getlength("100 %")
        if self.font.getlength(name) <= room:
            return name
        while name and self.font.getlength(name + "...") > room:
            name = name[:-1]
        return name + "..."

    def _timeline(self) -> Image.Image:
        strip = Image.new("RGB", (self.width, self.strip), SHADE)
        pen = ImageDraw.Draw(strip)
        for segment in self.segments:
            left, right = (round(segment[k] / self.end * self.width) for k in ("start", "end"))
            if right > left:
                pen.rectangle((left, 0, right - 1, self.strip), fill=self.colours[segment["name"]])
        return strip
