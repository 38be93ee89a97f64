"""Generated clips of people at a counter: real mp4 files and a pose pickle, for demos and tests.

Eight classes: four movements of the arms, each in two versions that differ in one detail.

| label | movement of the arms | detail |
|---|---|---|
| 0, 1 | raise a flag, once | the flag is red (0) or blue (1) |
| 2, 3 | lower a flag, once | the flag is red (2) or blue (3) |
| 4, 5 | clap | the legs stand (4) or march (5) |
| 6, 7 | stretch both arms up and down | the legs stand (6) or march (7) |

The legs are hidden from the camera by the counter; the skeleton comes from another sensor, which
sees behind it with less confidence, but tells no colours. Every scene is recorded twice, once with
each detail and with everything else the same (the twins). From this follow hard bounds:

- The two recordings of a flag have the same keypoints, bit for bit. Whatever looks at the pose
  alone answers both alike and is right on one: half of the clips 0-3, 75 % of all at most.
- The two recordings of a pair 4-7 have the same frames, bit for bit. Whatever looks at the frames
  alone is right on one: again 75 % of all at most. (A crop around the skeleton weakens this by
  what the feet add to its box: less than the noise of a joint.)
- Together they settle everything: arms and legs show in the joints, the colour in the flag.

Raising and lowering are the same pictures in opposite order, so averages over time cannot tell
them apart. What else varies says nothing about the class: clothes, build, place, the pictures on
the wall (also red and blue ones), light, a shaking camera, noisy and missing joints, legs that
march behind the flags too, and now and then somebody who walks past.
"""

import colorsys
import hashlib
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jaxact.atomic import write_bytes
from jaxact.config import UserError
from jaxact.data import stick_figure, video
from jaxact.data.geometry import Size
from jaxact.data.stick_figure import Colour, Look, Motion

CLASSES = (
    *("raise red flag", "raise blue flag", "lower red flag", "lower blue flag"),
    *("clap standing", "clap marching", "stretch standing", "stretch marching"),
)
RAISE, LOWER, CLAP, STRETCH = range(4)  # label // 2
FPS = 16
FORMAT = 2  # raise it when the same arguments give other clips
OVERSAMPLING = 2  # drawn this many times larger, then averaged
MARGIN = 6  # px of wall around the picture, for the camera to shake in
Rng = np.random.Generator
Range = tuple[float, float]
HUES = ((0.97, 1.03), (0.59, 0.65))  # of the flags: red, blue


@dataclass(frozen=True)
class Recording:
    """One clip as its two sensors saw it, and the truth."""

    frames: np.ndarray  # u8[t, h, w, 3]
    keypoint: np.ndarray  # f16[p, t, 17, 2] px (x, y); zero where a joint was missed
    score: np.ndarray  # f16[p, t, 17]; zero where missed
    joints: np.ndarray  # f64[t, 17, 2] px; where the first person's joints are
    flag: int  # the side that holds it (0 left, 1 right); -1: none
    look: Look  # the first person's colours in this light
    counter: np.ndarray  # f64[t] px; the upper edge of the counter


def record(
    label: int,
    scene: int,
    frames: int = 32,
    size: Size = (96, 128),
    seed: int = 0,
    split: str = "train",
    counter: bool = True,
) -> Recording:
    """Films one scene for one class; `size` (h, w) px. `counter` False leaves the counter out.

    Each part of the scene draws from a generator of its own, keyed by seed, split, scene and
    movement but not by the label's detail, so the two labels of a pair differ in nothing else.
    """
    movement, detail = divmod(label, 2)
    with_flag = movement in (RAISE, LOWER)

    def generator(part: int) -> Rng:
        code = int.from_bytes(hashlib.sha256(split.encode()).digest()[:4], "big")
        return np.random.default_rng([seed, code, scene, movement, part])

    setting = _setting(generator(0), frames, size)
    side = int(generator(1).integers(2)) if with_flag else -1
    march = bool(generator(2).integers(2)) if with_flag else bool(detail)
    motion = _motion(generator(3), generator(4), frames, movement, side, march)
    points = stick_figure.joints(motion, setting.height, setting.ground)
    people = [
        _Person(points, setting.height, _clothes(generator(5))),
        *_passer_by(generator(6), frames, setting),
    ]
    sensed = [
        _detected_pose(generator(7 + i), person, setting, size, near=i == 0)
        for i, person in enumerate(people)
    ]
    paint = generator(9)
    colour = _colour(paint, paint.uniform(*HUES[detail]), (0.75, 0.95), (0.7, 0.95))
    return Recording(
        frames=_drawn(setting, people, side, colour, size, counter),
        keypoint=np.stack([keypoint for keypoint, _ in sensed]).astype(np.float16),
        score=np.stack([score for _, score in sensed]).astype(np.float16),
        joints=people[0].points,
        flag=side,
        look=Look(*(_darkened(c, setting.light) for c in astuple(people[0].look))),
        counter=setting.counter,
    )


@dataclass(frozen=True)
class _Person:
    points: np.ndarray  # f64[t, 17, 2] px
    height: float  # px
    look: Look


@dataclass(frozen=True)
class _Setting:
    wall: Image.Image  # OVERSAMPLING times larger than the picture, with a margin
    shake: np.ndarray  # f64[t, 2] px (x, y); where the camera moves everything
    ground: np.ndarray  # f64[t, 2] px; where the person stands
    height: float  # px; of the person
    counter: np.ndarray  # f64[t] px
    panels: list[tuple[float, float, Colour]]  # of the counter: left, right px, colour
    light: float  # 1: full


def _setting(rng: Rng, frames: int, size: Size) -> _Setting:
    h, w = size
    height = rng.uniform(0.62, 0.76) * min(h, 0.75 * w)
    steps = rng.normal(0, 0.012 * height, (frames, 2))
    shake = np.zeros((frames, 2))
    for t in range(1, frames):
        shake[t] = 0.8 * shake[t - 1] + steps[t]
    shake = shake.clip(1 - MARGIN, MARGIN - 1)
    ground = np.array([rng.uniform(0.36, 0.64) * w, rng.uniform(0.91, 0.95) * h]) + shake
    hips = ground[:, 1] - (stick_figure.THIGH + stick_figure.SHANK) * height
    edges = np.sort(rng.uniform(-MARGIN, w + MARGIN, 3))
    board = _colour(rng, rng.uniform(0.05, 0.12), (0.2, 0.5), (0.35, 0.65))
    shades = [tuple(int(c * rng.uniform(0.85, 1)) for c in board) for _ in range(4)]
    limits = [-2.0 * MARGIN, *edges, w + 2.0 * MARGIN]
    return _Setting(
        wall=_wall(rng, size),
        shake=shake,
        ground=ground,
        height=height,
        counter=hips - (0.5 * stick_figure.LEG_WIDTH + 0.03) * height,
        panels=list(zip(limits[:-1], limits[1:], shades, strict=True)),  # type: ignore[arg-type]
        light=rng.uniform(0.75, 1.0),
    )


def _wall(rng: Rng, size: Size) -> Image.Image:
    """A wall with pictures of any colour, flag colours among them."""
    h, w = ((n + 2 * MARGIN) * OVERSAMPLING for n in size)
    wall = Image.new("RGB", (w, h), _colour(rng, rng.uniform(), (0.03, 0.25), (0.55, 0.9)))
    canvas = ImageDraw.Draw(wall)
    for _ in range(rng.integers(3, 7)):
        x, y = rng.uniform(-0.05, 0.95) * w, rng.uniform(-0.05, 0.6) * h
        box = [x, y, x + rng.uniform(0.06, 0.2) * w, y + rng.uniform(0.08, 0.25) * h]
        shape = canvas.rectangle if rng.uniform() < 0.7 else canvas.ellipse
        shape(box, fill=_colour(rng, rng.uniform(), (0.1, 0.6), (0.3, 0.9)))
    return wall


def _colour(rng: Rng, hue: float, saturation: Range, value: Range) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * red), round(255 * green), round(255 * blue)


def _darkened(colour: Colour, light: float) -> Colour:
    red, green, blue = (int(c * light) for c in colour)
    return red, green, blue


def _clothes(rng: Rng) -> Look:
    return Look(
        skin=_colour(rng, rng.uniform(0.05, 0.09), (0.3, 0.6), (0.45, 0.95)),
        shirt=_colour(rng, rng.uniform(), (0.05, 0.55), (0.25, 0.9)),
        trousers=_colour(rng, rng.uniform(), (0.05, 0.4), (0.15, 0.5)),
        hair=_colour(rng, rng.uniform(0.04, 0.12), (0.2, 0.7), (0.1, 0.6)),
    )


def _motion(arms: Rng, legs: Rng, frames: int, movement: int, side: int, march: bool) -> Motion:
    if movement in (RAISE, LOWER):
        upper, fore = stick_figure.raising(arms, frames, side)
        if movement == LOWER:
            upper, fore = upper[::-1], fore[::-1]
    else:
        move = stick_figure.clapping if movement == CLAP else stick_figure.stretching
        upper, fore = move(arms, frames)
    knee = (stick_figure.marching if march else stick_figure.standing)(legs, frames)
    return Motion(upper, fore, knee, 0.012 * stick_figure.beat(arms, frames, (0.5, 1.5)))


def _passer_by(rng: Rng, frames: int, setting: _Setting) -> list[_Person]:
    """Now and then somebody who walks past behind, from one side to the other."""
    if rng.uniform() > 0.15:
        return []
    height = setting.height * rng.uniform(0.78, 0.88)
    width = setting.wall.width / OVERSAMPLING - 2 * MARGIN
    u = np.linspace(0, 1, frames)
    path = (u - rng.uniform(-0.2, 0.4)) * rng.uniform(1.0, 1.6)
    if rng.integers(2):
        path = 1 - path
    ground = setting.shake + np.stack(
        [path * width, np.full(frames, setting.ground[0, 1] - 0.01 * height)], -1
    )
    motion = stick_figure.walking(rng, frames)
    return [_Person(stick_figure.joints(motion, height, ground), height, _clothes(rng))]


def _detected_pose(
    rng: Rng, person: _Person, setting: _Setting, size: Size, near: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints f64[t, 17, 2] px and scores f64[t, 17] as the pose sensor gives them."""
    frames = len(person.points)
    bias = rng.normal(0, 0.006 * person.height, (17, 2))
    seen = person.points + bias + rng.normal(0, 0.01 * person.height, person.points.shape)
    hidden = person.points[:, :, 1] > setting.counter[:, None]
    score = np.where(
        hidden, rng.uniform(0.4, 0.7, (frames, 17)), rng.uniform(0.75, 0.98, (frames, 17))
    )
    missed = rng.uniform(size=(frames, 17)) < np.where(hidden, 0.05, 0.02)
    inside = ((seen >= 1) & (seen <= np.array(size[::-1]) - 1)).all(-1)
    score = np.where(missed | ~inside, 0, score if near else 0.7 * score)
    return np.where(score[..., None] > 0, seen, 0), score


def _drawn(
    setting: _Setting, people: list[_Person], side: int, flag: Colour, size: Size, counter: bool
) -> np.ndarray:
    """Frames u8[t, h, w, 3]: the wall, then people from back to front, then the counter."""
    h, w = size
    frames = np.empty((len(setting.shake), h, w, 3), np.uint8)
    for t in range(len(frames)):
        x, y = ((MARGIN - setting.shake[t]) * OVERSAMPLING).round().astype(int)
        picture = setting.wall.crop((x, y, x + w * OVERSAMPLING, y + h * OVERSAMPLING))
        canvas = ImageDraw.Draw(picture)
        for person in reversed(people):
            stick_figure.draw(
                canvas, person.points[t] * OVERSAMPLING, person.height * OVERSAMPLING, person.look
            )
        if side >= 0:
            points, height = people[0].points[t] * OVERSAMPLING, people[0].height * OVERSAMPLING
            stick_figure.draw_flag(canvas, points, side, height, flag)
        if counter:
            top = setting.counter[t]
            for left, right, colour in setting.panels:
                box = np.array(
                    [left + setting.shake[t, 0], top, right + setting.shake[t, 0], h + 1]
                )
                canvas.rectangle((box * OVERSAMPLING).tolist(), fill=colour)
            edge = [0, top * OVERSAMPLING, w * OVERSAMPLING, (top + 1.5) * OVERSAMPLING]
            canvas.rectangle(edge, fill=(225, 215, 200))
        frames[t] = np.asarray(picture.reduce(OVERSAMPLING))
    return (frames * np.float32(setting.light)).astype(np.uint8)


def write(
    directory: str | os.PathLike[str],
    *,
    train: int = 320,
    test: int = 96,
    frames: int = 32,
    size: Size = (96, 128),
    seed: int = 0,
    workers: int = 2,
) -> Path:
    """Writes `train` + `test` clips as mp4 files and returns the path of their pose pickle.

    `directory` gets `clips/<frame_dir>.mp4`, `annotations.pkl` (PySKL's layout, splits `train` and
    `test`) and, last, `manifest.json`: a set whose manifest names the same arguments is used as it
    is, anything else is written anew. The same arguments give the same bytes.

    Raises UserError for counts that do not give every class the same number of clips.
    """
    for name, count in (("train", train), ("test", test)):
        if count < 0 or count % len(CLASSES):
            raise UserError(f"{name}: {count} clips; allowed are multiples of {len(CLASSES)}")
    if frames < 2 or min(size) < 32 or size[0] % 2 or size[1] % 2:
        raise UserError(
            f"frames {frames}, size {size}: allowed are 2 or more frames and even sides from 32 px"
        )
    root = Path(directory)
    arguments = {"train": train, "test": test, "frames": frames, "size": list(size), "seed": seed}
    wanted = {"format": FORMAT, "arguments": arguments}
    jobs = [
        (f"{split}{number:04d}", split, number)
        for split, count in (("train", train), ("test", test))
        for number in range(count)
    ]
    pickled, manifest = root / "annotations.pkl", root / "manifest.json"
    clips = [root / "clips" / f"{name}.mp4" for name, _, _ in jobs]
    if _read(manifest) == wanted and all(path.is_file() for path in (pickled, *clips)):
        return pickled

    manifest.unlink(missing_ok=True)
    (root / "clips").mkdir(parents=True, exist_ok=True)

    def write_clip(name: str, split: str, number: int) -> dict:
        # Eight clips in a row are four scenes with both labels of their pair each.
        label = number % len(CLASSES)
        clip = record(label, number // len(CLASSES), frames, size, seed, split)
        path = root / "clips" / f"{name}.mp4"
        video.write(path, clip.frames, FPS, crf=18, gop=16, preset="veryfast")
        return _annotation(name, label, clip, tuple(size))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        annotations = list(pool.map(lambda job: write_clip(*job), jobs))
    splits = {split: [name for name, of, _ in jobs if of == split] for split in ("train", "test")}
    content = {"split": splits, "annotations": annotations, "classes": list(CLASSES)}
    write_bytes(pickled, pickle.dumps(content, protocol=4))
    write_bytes(manifest, json.dumps(wanted, indent=2).encode())
    return pickled


def _annotation(name: str, label: int, clip: Recording, size: tuple[int, ...]) -> dict:
    """The record of a clip in PySKL's form."""
    return {
        "frame_dir": name,
        "total_frames": len(clip.frames),
        "img_shape": size,
        "original_shape": size,
        "label": label,
        "keypoint": clip.keypoint,
        "keypoint_score": clip.score,
    }


def _read(manifest: Path) -> dict | None:
    try:
        return json.loads(manifest.read_text())
    except (FileNotFoundError, ValueError):
        return None  # never finished
