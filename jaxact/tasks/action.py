"""Two-stream RGB + pose action recognition.

Batch keys beside `id` and `mask` (b examples; evaluation batches have v views after b):

| key      | dtype, shape          | unit |
|----------|-----------------------|------|
| rgb      | u8[b, t, h, w, 3]     | RGB frames, cropped and resized |
| keypoint | f32[b, p, t', j, 2]   | px (x, y) of a frame of the crop's size |
| score    | f32[b, p, t', j]      | joint confidence, 0 = absent |
| label    | i32[b]                | class, -1 = unknown |

A view is one clip x one crop; mirrored views are made on the device. `rgb` or the two pose keys are
absent when the model has no such stream.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.data import geometry, perturb, photometry, poses, records, sampling, skeletons
from jaxact.data.records import Clip
from jaxact.data.video import Video
from jaxact.evaluate import metrics
from jaxact.models import heads, x3d
from jaxact.models.recognizer import Recognizer
from jaxact.ops import heatmap, losses, mixing
from jaxact.task import Batch, Hyper, Task
from jaxact.weights import x3d as foreign

VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v")


@dataclasses.dataclass
class Backbone:
    """One stream's network (see `models.x3d.Spec`)."""

    temporal: str = "shift"  # shift: X-Shift; conv: X3D with 3x3x3 filters
    blocks: tuple[int, ...] = (3, 5, 11, 7)  # blocks of each stage
    width: int = 24  # channels of the stem; each stage doubles
    bottleneck: float = 2.25  # inner channels / channels of a stage
    fold_div: int = 8  # 1/fold_div of the channels shift each way in time
    stem_stride: int = 2  # spatial
    swish: bool = True  # after the depthwise filter; False = ReLU
    se: str = "half"  # half | all | none: which blocks squeeze and excite
    res2_shortcut_bn: bool = True  # False = PyTorchVideo's X3D
    conv5: bool = True  # widen before pooling; small nets learn faster without
    last_scale: float = 0.0  # first scale of each block's last BN; 1 learns faster if shallow


@dataclasses.dataclass
class Model:
    """The recogniser."""

    streams: str = "rgb+pose"  # rgb | pose | rgb+pose
    classes: int = 60
    rgb: Backbone = dataclasses.field(default_factory=Backbone)
    pose: Backbone = dataclasses.field(
        default_factory=lambda: Backbone(blocks=(5, 11, 7), fold_div=4, stem_stride=1)
    )
    attention: bool = True  # EPAM: pose features scale RGB features; off = plain RGBPoseX3D
    head: str = "linear"  # linear | x3d (a 2048-wide layer before the classifier)
    pool: str = "mean"  # mean | logits | softmax: how the head treats several positions
    window: tuple[int, ...] = ()  # t, h, w of a position, for pool = logits | softmax
    coarse: tuple[int, ...] = ()  # coarse class of each class; () = no coarse heads
    loss_weights: tuple[float, ...] = (1.0, 1.5, 0.6, 1.2)  # rgb, pose, rgb coarse, pose coarse
    prototypes: bool = False  # PCAN's prototype contrast and tree terms (needs coarse)
    dropout: tuple[float, ...] = (0.5, 0.5)  # rgb, pose
    head_deviation: float = 0.01  # of the classifiers' first weights; 0.06 starts small nets faster
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    depthwise: str = "auto"  # auto | shift | conv: see ops.depthwise


@dataclasses.dataclass
class Views:
    """What an example is seen as in evaluation: clips x crops x (1 or 2 mirrored)."""

    clips: int = 1  # in time
    crops: int = 1  # 1 = centre, 3 = both ends and the middle
    flip: bool = False  # also the mirror image


@dataclasses.dataclass
class Data:
    """Annotations, sampling, geometry, augmentation."""

    annotations: str = ""  # .pkl (PySKL, MMAction2), .csv (file,label,split) or .jsonl
    videos: str = ""  # folder of the videos, for records that name none or a relative path
    video_suffix: str = ".mp4"  # of <videos>/<id><suffix> where a record names no file
    class_names: str = ""  # text file, a name a line; "" = those of the annotations, or numbers
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = ""  # "" = val_split
    skeleton: str = "coco17"  # joint order: coco17 | jhmdb15 | openpose18 | ...
    people: int = 2  # persons kept of a clip, those with the highest mean score
    nan: str = "zero"  # zero | error: joints that are not a number
    rgb_frames: int = 16
    pose_frames: int = 48
    sampling: str = "uniform"  # uniform | dense (rgb only: frames `stride` apart)
    stride: int = 1  # frames, for dense sampling
    interval: tuple[float, ...] = (1.0, 1.0)  # share of the video a training clip is drawn from
    aligned: bool = True  # RGB frames are every n-th pose frame; False = drawn independently
    compact: bool = True  # crop to the box around all joints first
    padding: float = 0.25  # that box is so much larger on each side
    imgpad: bool = True  # that box may leave the image (black there)
    resize: int = 256  # px, before the random crop in training
    test_size: int = 256  # px, in evaluation
    keep_ratio: bool = False  # resize the short side (then crop), instead of both sides
    area: tuple[float, ...] = (0.56, 1.0)  # share of the frame a random crop keeps
    aspect: tuple[float, ...] = (0.75, 1.3333333333333333)  # its width / height
    flip: float = 0.5  # probability of the mirror image
    jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    rotate: float = 0.0  # degrees, uniform in +-; pose only
    stretch: float = 0.0  # share, uniform in 1 +-; pose only
    shift: float = 0.0  # share of the crop, uniform in +-, x and y apart; pose only
    noise: float = 0.0  # px of the crop, deviation of each joint; pose only
    heatmap: str = "joints"  # joints | limbs | both
    scale: float = 0.25  # heatmap px / crop px
    sigma: float = 0.6  # heatmap px
    use_score: bool = True  # peaks as high as the joint's score; False = 1
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # RGB, of 0..255
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    val: Views = dataclasses.field(default_factory=Views)
    test: Views = dataclasses.field(default_factory=Views)
    average: str = "prob"  # prob | score: what is averaged over views
    views_at_once: int = 1  # views computed together: memory against speed


@dataclasses.dataclass
class Stage(schema.Stage):
    """A row of the schedule for action recognition."""

    label_smoothing: tuple[float, ...] = schema.value(0.0)
    mixup: tuple[float, ...] = schema.value(0.0)  # alpha of Beta(alpha, alpha); 0 = off
    cutmix: tuple[float, ...] = schema.value(0.0)  # alpha; 0 = off
    mixup_prob: tuple[float, ...] = schema.value(1.0)  # that a batch is mixed up, if mixup > 0
    cutmix_prob: tuple[float, ...] = schema.value(1.0)  # that one left over is cut, if cutmix > 0
    augment: str = schema.choice("full", ("full", "light", "none"))  # light: mirror only
    size: int = schema.shape(224)  # px of the training crop


@dataclasses.dataclass
class Config(schema.Config):
    """A run of action recognition."""

    task: str = "action"
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    stages: tuple[Stage, ...] = (Stage(),)


def make(config: Config) -> Task:
    """The task of a config. Raises UserError for fields that do not go together."""
    _validate(config)
    skeleton = skeletons.find(config.data.skeleton)
    names = _class_names(config)
    model = _model(config, skeleton)
    bound = functools.partial
    return Task(
        model=model,
        counted=model.clone(implementation="conv"),
        classes=names,
        source=bound(_source, config),
        prepare=bound(prepare, config, skeleton),
        shapes=bound(_shapes, config, skeleton),
        inputs=bound(_inputs, config, skeleton),
        loss=bound(_loss, config),
        infer=bound(_infer, config, skeleton),
        measure=_measure,
        rows=_rows,
        score=bound(_score, config),
        example=bound(_example, config),
        describe=bound(_describe, config, names),
        audit=bound(_audit, config),
        weights=_load_foreign,
        thumbnail=bound(_thumbnail, config),
    )


def _streams(config: Config) -> tuple[str, ...]:
    return tuple(config.model.streams.split("+"))


def _validate(config: Config) -> None:
    data, model = config.data, config.model
    one_of, require = schema.one_of, schema.require
    one_of(config, "model.streams", "rgb", "pose", "rgb+pose")
    one_of(config, "model.head", "linear", "x3d")
    one_of(config, "data.sampling", "uniform", "dense")
    one_of(config, "data.heatmap", "joints", "limbs", "both")
    one_of(config, "data.average", "prob", "score")
    one_of(config, "data.nan", "zero", "error")
    require(model.classes >= 2, "model.classes", model.classes, "2 or more")
    require(len(model.loss_weights) == 4, "model.loss_weights", model.loss_weights, "4 numbers")
    require(len(model.dropout) == 2, "model.dropout", model.dropout, "2 numbers: rgb, pose")
    require(
        len(model.coarse) in (0, model.classes),
        "model.coarse",
        f"{len(model.coarse)} entries",
        f"() or one coarse class for each of the {model.classes} classes",
    )
    for field in ("rgb_frames", "pose_frames", "people", "resize", "test_size", "views_at_once"):
        require(getattr(data, field) >= 1, f"data.{field}", getattr(data, field), "1 or more")
    for field, count in (("interval", 2), ("area", 2), ("aspect", 2), ("jitter", 4), ("mean", 3)):
        found = getattr(data, field)
        require(len(found) == count, f"data.{field}", found, f"{count} numbers")
    for field in ("val", "test"):
        views = getattr(data, field)
        require(views.clips >= 1, f"data.{field}.clips", views.clips, "1 or more")
        require(views.crops in (1, 3), f"data.{field}.crops", views.crops, "1 or 3")
        require(
            views.crops == 1 or data.keep_ratio,
            f"data.{field}.crops",
            views.crops,
            "1 without data.keep_ratio: a frame squeezed into the square has no ends",
        )
    if "rgb" in model.streams:
        for field in ("rotate", "stretch", "shift", "noise"):
            found = getattr(data, field)
            require(found == 0, f"data.{field}", found, "0 with an RGB stream, which stays still")
    if config.model.streams == "rgb+pose" and data.aligned:
        require(
            data.pose_frames % data.rgb_frames == 0,
            "data.pose_frames",
            data.pose_frames,
            f"multiples of rgb_frames={data.rgb_frames}, or data.aligned=False",
        )
    if data.sampling == "dense":
        require(model.streams == "rgb", "data.sampling", "dense", "uniform, for a pose stream")


def _model(config: Config, skeleton: skeletons.Skeleton) -> Recognizer:
    model = config.model
    coarse = max(model.coarse) + 1 if model.coarse else 0
    prototypes = heads.Prototypes(coarse_map=tuple(model.coarse)) if model.prototypes else None
    window = model.window or (0, 0, 0)
    return Recognizer(
        classes=model.classes,
        streams=model.streams,
        rgb=x3d.Spec(**dataclasses.asdict(model.rgb)),
        pose=x3d.Spec(**dataclasses.asdict(model.pose)),
        use_attention=model.attention and model.streams == "rgb+pose",
        head_kind=model.head,
        coarse_classes=coarse,
        dropout=(model.dropout[0], model.dropout[1]),
        pool=model.pool,
        window=(window[0], window[1], window[2]),
        prototypes=prototypes,
        dtype=jnp.dtype(config.dtype),
        implementation=model.depthwise,
        remat=model.remat,
        head_deviation=model.head_deviation,
    )


# ------------------------------------------------------------------------------------------ data


def _class_names(config: Config) -> tuple[str, ...]:
    """Names from the given file, else from the annotations, else numbers."""
    path, count = config.data.class_names, config.model.classes
    if not path:
        stated: tuple[str, ...] = ()
        if pathlib.Path(config.data.annotations).is_file():
            stated = records.class_names(config.data.annotations)
        return stated if len(stated) == count else tuple(str(k) for k in range(count))
    if not pathlib.Path(path).is_file():
        raise UserError(f"config.data.class_names={path!r} does not exist")
    names = tuple(line for line in pathlib.Path(path).read_text().splitlines() if line.strip())
    schema.require(
        len(names) == count, "data.class_names", f"{len(names)} names", f"{count} (model.classes)"
    )
    return names


class ClipSource:
    """The clips of one split."""

    def __init__(self, clips: Sequence[Clip]):
        self.clips, self.ids = clips, [clip.id for clip in clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]


def _source(config: Config, purpose: str) -> ClipSource:
    data = config.data
    splits = {"train": data.train_split, "val": data.val_split}
    splits["test"] = data.test_split or data.val_split
    return ClipSource(_read(config, data.annotations, splits[purpose]))


def _read(config: Config, path: str, split: str, labelled: bool = True) -> list[Clip]:
    if not path:
        raise UserError("config.data.annotations is empty; give a .pkl, .csv or .jsonl file")
    names = _class_names(config) if config.data.class_names else config.model.classes
    clips = records.read(
        path,
        split,
        classes=names,
        videos=config.data.videos,
        suffix=config.data.video_suffix,
        skeleton=skeletons.find(config.data.skeleton),
        nan=config.data.nan,
        labelled=labelled,
    )
    if "pose" in _streams(config):
        bare = [clip.id for clip in clips if clip.keypoint is None]
        if bare:
            raise UserError(
                f"{path}: clip {bare[0]!r} has no keypoints (and {len(bare) - 1} others); "
                "allowed without: config.model.streams=rgb"
            )
    return clips


def prepare(
    config: Config,
    skeleton: skeletons.Skeleton,
    clip: Clip,
    rng: np.random.Generator,
    stage: Any,
    purpose: str,
) -> dict[str, np.ndarray]:
    """One example's arrays (see the table above), one draw shared by all its clips and streams.

    Raises:
      UserError: the video cannot be read, or has far fewer frames than annotated.
    """
    data, train = config.data, purpose == "train"
    rgb, pose = ("rgb" in _streams(config)), ("pose" in _streams(config))
    frames, keypoint, score, size = None, None, None, clip.size
    if rgb:
        with Video(clip.video) as video:
            count = _frame_count(clip, video.frames)
            at = _sample(config, count, rng, purpose, "rgb")
            wanted, where = np.unique(at["rgb"], return_inverse=True)
            frames = video.read(wanted)[where.reshape(-1)]
            size = video.size
    else:
        at = _sample(config, clip.frames, rng, purpose, "pose")
    if clip.keypoint is not None and "pose" in at:
        assert clip.score is not None
        steps = at["pose"].reshape(-1)
        keypoint, score = poses.choose_people(clip.keypoint, clip.score, data.people)
        keypoint = geometry.rescale(keypoint[:, steps], clip.size, size)
        score = score[:, steps]
    if data.compact and keypoint is not None:
        box = geometry.compact_box(keypoint, size, data.padding, pad=data.imgpad)
        frames, keypoint, size = geometry.crop(frames, keypoint, box, keep_zeros=True)
    if train:
        side = stage.size
        frames, keypoint, score, size = _augment(
            config, skeleton, frames, keypoint, score, size, rng, stage
        )
        crops = [(frames, keypoint)]
    else:
        side = data.test_size
        crops = _test_crops(config, frames, keypoint, size, purpose)
    clips = len(next(iter(at.values())))
    found: dict[str, Any] = {"label": np.int32(clip.label)}
    if rgb:
        stack = np.stack([part[0] for part in crops])  # crops, clips * t, h, w, 3
        stack = stack.reshape(len(crops), clips, -1, side, side, 3).swapaxes(0, 1)
        found["rgb"] = _views(stack, train)
    if pose:
        assert keypoint is not None and score is not None
        points = np.stack([part[1] for part in crops])  # crops, p, clips * t, j, 2
        found["keypoint"] = _views(_by_view(points, clips, data.people, heatmap.ABSENT), train)
        scores = np.repeat(score[None], len(crops), 0)
        found["score"] = _views(_by_view(scores, clips, data.people, 0.0), train)
    return found


def _views(array: np.ndarray, train: bool) -> np.ndarray:
    """[clips, crops, ...] -> [v, ...], or the single training view without that axis."""
    return array[0, 0] if train else array.reshape(-1, *array.shape[2:])


def _by_view(array: np.ndarray, clips: int, people: int, fill: float) -> np.ndarray:
    """[crops, p, clips * t, ...] -> [clips, crops, people, t, ...], absent people filled in."""
    crops, found = array.shape[:2]
    array = array.reshape(crops, found, clips, -1, *array.shape[3:])
    array = np.moveaxis(array, 2, 0)
    missing = [(0, 0)] * array.ndim
    missing[2] = (0, people - found)
    return np.pad(array, missing, constant_values=fill).astype(np.float32)


def _frame_count(clip: Clip, decoded: int) -> int:
    """Frames to sample from; annotation and video may differ by a frame or two at the end."""
    if not clip.frames:
        return decoded
    if decoded < clip.frames - max(2, clip.frames // 20):
        raise UserError(
            f"{clip.video}: {decoded} frames, but the annotation of {clip.id!r} has {clip.frames}; "
            "allowed: up to 5 % (or 2) fewer"
        )
    return min(decoded, clip.frames)


def _sample(
    config: Config, frames: int, rng: np.random.Generator, purpose: str, lead: str
) -> dict[str, np.ndarray]:
    """Frame numbers i64[clips, length] of each stream."""
    data, streams = config.data, _streams(config)
    clips = 1 if purpose == "train" else _view_spec(config, purpose).clips

    def draw(length: int) -> np.ndarray:
        interval = (data.interval[0], data.interval[1])
        if data.sampling == "dense":
            source = rng if purpose == "train" else None
            return sampling.dense(frames, length, data.stride, clips, source)
        if purpose == "train":
            return sampling.uniform(frames, length, rng, interval)[None]
        return sampling.uniform_views(frames, length, clips)

    if streams == ("rgb", "pose") and data.aligned:
        pose = draw(data.pose_frames)
        return {"pose": pose, "rgb": sampling.aligned(pose, data.rgb_frames)}
    found = {}
    if "rgb" in streams:
        found["rgb"] = draw(data.rgb_frames)
        # Poses that an RGB-only model does not see still place its crop.
        found["pose"] = found["rgb"]
    if "pose" in streams:
        found["pose"] = draw(data.pose_frames)
    return found


def _view_spec(config: Config, purpose: str) -> Views:
    return config.data.val if purpose == "val" else config.data.test


def _augment(
    config: Config,
    skeleton: skeletons.Skeleton,
    frames: Any,
    keypoint: Any,
    score: Any,
    size: tuple[int, int],
    rng: np.random.Generator,
    stage: Any,
) -> tuple[Any, Any, Any, tuple[int, int]]:
    """Training geometry and colour: resize, random crop, resize, mirror, jitter."""
    data, side = config.data, (stage.size, stage.size)
    if stage.augment == "full":
        new = geometry.short_side(size, data.resize) if data.keep_ratio else (data.resize,) * 2
        frames, keypoint, size = geometry.resize(frames, keypoint, size, new)
        area, aspect = (data.area[0], data.area[1]), (data.aspect[0], data.aspect[1])
        box = geometry.random_box(size, rng, area, aspect)
        frames, keypoint, size = geometry.crop_resize(frames, keypoint, box, side)
    elif data.keep_ratio:
        new = geometry.short_side(size, stage.size)
        frames, keypoint, size = geometry.resize(frames, keypoint, size, new)
        frames, keypoint, size = geometry.crop(frames, keypoint, geometry.centre_box(size, side))
    else:
        frames, keypoint, size = geometry.resize(frames, keypoint, size, side)
    if stage.augment != "none" and rng.random() < data.flip:
        swap = skeleton.swap
        frames, keypoint, score = geometry.flip(frames, keypoint, score, size, swap)
    if stage.augment == "full":
        if frames is not None and any(data.jitter):
            brightness, contrast, saturation, hue = data.jitter
            colour = photometry.draw_colour(rng, brightness, contrast, saturation, hue)
            frames = photometry.jitter(frames, colour)
        if keypoint is not None and frames is None:
            # Only where no frames have to move along.
            change = perturb.draw_warp(rng, data.rotate, data.stretch, data.shift)
            keypoint = perturb.warp(keypoint, size, change)
            keypoint = perturb.shake(keypoint, data.noise, rng)
    return frames, keypoint, score, size


def _test_crops(
    config: Config, frames: Any, keypoint: Any, size: tuple[int, int], purpose: str
) -> list[tuple[Any, Any]]:
    """(frames, keypoints) of each crop of an evaluation example."""
    data = config.data
    side = (data.test_size, data.test_size)
    crops = _view_spec(config, purpose).crops
    if not data.keep_ratio:
        frames, keypoint, size = geometry.resize(frames, keypoint, size, side)
        return [(frames, keypoint)] * crops
    new = geometry.short_side(size, data.test_size)
    frames, keypoint, size = geometry.resize(frames, keypoint, size, new)
    boxes = geometry.three_boxes(size, side) if crops == 3 else [geometry.centre_box(size, side)]
    return [geometry.crop(frames, keypoint, box)[:2] for box in boxes]


def _shapes(
    config: Config, skeleton: skeletons.Skeleton, stage: Any, purpose: str
) -> dict[str, tuple[tuple[int, ...], Any]]:
    data, train = config.data, purpose == "train"
    side = stage.size if train else data.test_size
    spec = _view_spec(config, purpose)
    view = () if train else (spec.clips * spec.crops,)
    found: dict[str, tuple[tuple[int, ...], Any]] = {"label": ((), np.int32)}
    if "rgb" in _streams(config):
        found["rgb"] = ((*view, data.rgb_frames, side, side, 3), np.uint8)
    if "pose" in _streams(config):
        points = (*view, data.people, data.pose_frames, len(skeleton.joints))
        found["keypoint"] = ((*points, 2), np.float32)
        found["score"] = (points, np.float32)
    return found


def _audit(config: Config, clip: Clip) -> str:
    if "rgb" not in _streams(config):
        return ""
    try:
        with Video(clip.video) as video:
            _frame_count(clip, video.frames)
            video.read([0, video.frames - 1])
    except UserError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------------------- under jit


def _heatmaps(
    config: Config, skeleton: skeletons.Skeleton, keypoint: Any, score: Any, side: int
) -> Any:
    """f32[b, t, h, w, c] from keypoints in px of a side x side crop."""
    data = config.data
    size, rest = (side, side), (data.scale, data.use_score)
    if data.heatmap == "joints":
        return heatmap.joints(keypoint, score, size, data.sigma, *rest)
    draw = heatmap.limbs if data.heatmap == "limbs" else heatmap.both
    return draw(keypoint, score, size, data.sigma, skeleton.limbs, *rest)


def _inputs(
    config: Config, skeleton: skeletons.Skeleton, batch: Batch, hyper: Hyper, key: Any, stage: Any
) -> tuple[dict[str, Any], Any]:
    """Normalised clips and heatmaps; in training also mixed, with soft targets."""
    data, model = config.data, config.model
    side = data.test_size if stage is None else stage.size
    streams: dict[str, Any] = {"rgb": None, "pose": None}
    if "rgb" in batch:
        mean, std = jnp.asarray(data.mean), jnp.asarray(data.std)
        streams["rgb"] = (batch["rgb"].astype(jnp.float32) - mean) / std
    if "keypoint" in batch:
        maps = _heatmaps(config, skeleton, batch["keypoint"], batch["score"], side)
        streams["pose"] = maps
    if stage is None:
        return streams, None
    share = {"fine": losses.onehot(batch["label"], model.classes)}
    if model.coarse:
        coarse = jnp.asarray(model.coarse)[batch["label"]]
        share["coarse"] = losses.onehot(coarse, max(model.coarse) + 1)
    # One draw for both streams and all targets: they show the same mixture.
    sizes = [x.shape[2:4] for x in streams.values() if x is not None]
    mix = mixing.draw(
        key,
        batch["label"].shape[0],
        min(sizes),
        hyper["mixup"],
        hyper["cutmix"],
        hyper["mixup_prob"],
        hyper["cutmix_prob"],
    )
    streams = {k: None if x is None else mixing.apply(mix, x) for k, x in streams.items()}
    share = {name: mixing.targets(mix, table) for name, table in share.items()}
    if model.prototypes:
        streams |= {"labels": batch["label"], "mask": batch["mask"]}
    return streams, share


def _loss(config: Config, outputs: Any, targets: Any, hyper: Hyper) -> dict[str, Any]:
    """Four weighted cross entropies, and the prototype terms where the head gives them."""
    names = ("rgb", "pose", "rgb_coarse", "pose_coarse")
    found = {}
    for name, weight in zip(names, config.model.loss_weights, strict=True):
        if name in outputs:
            share = targets["coarse" if name.endswith("coarse") else "fine"]
            entropy = losses.cross_entropy(outputs[name], share, hyper["label_smoothing"])
            found[name] = weight * entropy
    size = targets["fine"].shape[:1]
    for name in ("prototype", "tree"):
        if name in outputs:
            found[name] = jnp.broadcast_to(outputs[name], size)
    return found


def _infer(
    config: Config, skeleton: skeletons.Skeleton, apply: Any, batch: Batch, purpose: str
) -> Any:
    """Scores f32[b, k] of each stream, averaged over views, a few views in memory at a time."""
    data = config.data
    names = [name for name in ("rgb", "keypoint", "score") if name in batch]
    views = {name: jnp.moveaxis(batch[name], 1, 0) for name in names}  # v, b, ...

    def one(view: Any) -> Any:
        arguments, _ = _inputs(config, skeleton, view, {}, None, None)
        logits = apply(**arguments)
        kept = {name: logits[name] for name in ("rgb", "pose") if name in logits}
        rule = jax.nn.softmax if data.average == "prob" else lambda x: x
        return {name: rule(x) for name, x in kept.items()}

    def both(view: Any) -> Any:
        if not _view_spec(config, purpose).flip:
            return one(view)
        mirrored = one(_mirrored(config, skeleton, view))
        return jax.tree.map(lambda a, b: (a + b) / 2, one(view), mirrored)

    count = len(views[names[0]])
    found = jax.lax.map(both, views, batch_size=min(data.views_at_once, count))
    return {name: x.mean(0) for name, x in found.items()}


def _mirrored(config: Config, skeleton: skeletons.Skeleton, view: Batch) -> Batch:
    """The mirror image of a view: columns reversed, left and right joints trading places."""
    found = {}
    if "rgb" in view:
        found["rgb"] = view["rgb"][:, :, :, ::-1]
    if "keypoint" in view:
        swap = jnp.asarray(skeleton.swap)
        point = view["keypoint"][..., swap, :]
        x = jnp.where(point[..., 0] != 0, config.data.test_size - point[..., 0], 0.0)
        found["keypoint"] = jnp.stack([x, point[..., 1]], -1)
        found["score"] = view["score"][..., swap]
    return found


def _fused(outputs: Any) -> Any:
    """The 1:1 mean of the streams' scores f32[b, k]."""
    tables = [outputs[name] for name in ("rgb", "pose") if name in outputs]
    return metrics.fuse(tables, [1 / len(tables)] * len(tables))


def _measure(outputs: Any, batch: Batch) -> Any:
    known = batch["mask"] & (batch["label"] >= 0)
    return {"confusion": metrics.Confusion.of(_fused(outputs), batch["label"], known)}


def _rows(outputs: Any, batch: Batch) -> dict[str, Any]:
    return {**outputs, "scores": _fused(outputs), "label": batch["label"]}


# --------------------------------------------------------------------------------- evaluation


def _score(config: Config, merged: Any, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """top1, top5, mean_class, ... of the fused scores, top1 of each stream and other fusions."""
    known = rows["label"] >= 0
    if not known.any():
        return {}
    labels = rows["label"][known]
    scores = {name: rows[name][known] for name in ("scores", "rgb", "pose") if name in rows}
    total = scores["scores"]
    found = metrics.classification(_probabilities(config, total), labels)
    assert int(merged["confusion"].table.sum()) == len(labels), "an example was lost or repeated"
    if "rgb" in scores and "pose" in scores:
        for name in ("rgb", "pose"):
            found[f"{name}_top1"] = metrics.topk(scores[name], labels, 1)
            found[f"{name}_top5"] = metrics.topk(scores[name], labels, 5)
        for rgb, pose in ((2, 1), (1, 2)):
            mixed = metrics.fuse([scores["rgb"], scores["pose"]], [rgb, pose])
            found[f"fused_{rgb}:{pose}_top1"] = metrics.topk(mixed, labels, 1)
    return found


def _probabilities(config: Config, scores: np.ndarray) -> np.ndarray:
    return scores if config.data.average == "prob" else metrics.softmax(scores)


def _describe(config: Config, names: tuple[str, ...], row: dict[str, np.ndarray]) -> dict[str, Any]:
    """The five likeliest classes."""
    share = _probabilities(config, row["scores"])
    order = np.argsort(-share, kind="stable")[:5]
    top = [{"class": int(k), "name": names[k], "probability": float(share[k])} for k in order]
    return {"name": top[0]["name"], "probability": top[0]["probability"], "top": top}


def _example(config: Config, path: str) -> Sequence[Clip]:
    """Clips of a video file, a folder of videos, or an annotation list of any of the kinds."""
    given = pathlib.Path(path)
    if not given.exists():
        raise UserError(f"--input={path} does not exist")
    if given.is_file() and given.suffix.lower() not in VIDEOS:
        return _read(config, path, "", labelled=False)
    files = [given]
    if given.is_dir():
        files = sorted(p for p in given.rglob("*") if p.suffix.lower() in VIDEOS)
    if "pose" in _streams(config):
        raise UserError(
            f"--input={path}: this model needs poses; give a .jsonl or .pkl list with keypoints, "
            "or use a model with config.model.streams=rgb"
        )
    return [Clip(str(p), -1, 0, str(p), (0, 0), None, None) for p in files]


def _load_foreign(path: Any, variables: Any) -> tuple[Any, str]:
    """Our variables from a PyTorch or safetensors file, as far as they fit, and the report."""
    found, report = foreign.load(path, variables)
    return found, report.text(full=True)


def _thumbnail(config: Config, clip: Clip) -> np.ndarray | None:
    """Six frames of a clip at 96 px for the report."""
    if "rgb" not in _streams(config) or not clip.video:
        return None
    with Video(clip.video) as video:
        at = np.linspace(0, video.frames - 1, 6).round().astype(int)
        frames = video.read(at)
    new = geometry.short_side(frames.shape[1:3], 96)
    return geometry.resize(frames, None, frames.shape[1:3], new)[0]
