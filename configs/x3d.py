"""Two-stream RGB + pose action recognition with X3D and temporal shift on NTU RGB+D 60.

Data: NTU RGB+D 60 (https://rose1.ntu.edu.sg/dataset/actionRecognition/; academic use, on request)
as mp4 files named <id>.mp4, and the PySKL annotation `ntu60_hrnet.pkl` (COCO-17 poses by HRNet). We
hold neither, and have not run this recipe on NTU60: no accuracy of ours is claimed for it. Numbers
to expect, all measured by others:

| who | setting | top-1, cross-subject |
|---|---|---|
| EPAM-Net (arXiv 2408.05421), 1 clip | X-Shift two streams + pose attention | 96.1 |
| RGBPoseConv3D (MMAction2), 1 / 10 clips | the 3-D convolution baseline | 96.6 / 96.8 |
| authors' notes on the recipe followed here | no attention | 90.4 (RGB 83.9, pose 89.1) |

    python -m jaxact.main --config=configs/x3d.py --workdir=runs/ntu60 \\
        --config.data.annotations=ntu60_hrnet.pkl --config.data.videos=ntu60_videos

Variants (`--config=configs/x3d.py:NAME`):

| name | what |
|---|---|
| (none) | RGB 16 x 224 px + pose 48 x 56 px, pose attention, four-way loss, 80 epochs |
| rgb, pose | one stream of it |
| plain | without pose attention (the recogniser of the notes above) |
| epam | joint training of EPAM-Net: two losses 1:1, lr 0.0015, 10 epochs; give --config.init_from |
| conservative | fine-tuning a trained model: lr 0.0005, 15 epochs, no colour jitter |
| x3d_xs, x3d_s, x3d_m, x3d_l | X3D on RGB clips as on Kinetics (CSV of clips) |
| fight_surv, jhmdb, exercise | the real data sets of docs/action.md, at laptop size |
| demo | `make demo`: generated clips, minutes on two CPU cores |
| tiny | two steps on generated clips, for tests |
"""

from jaxact.config import Eval, Group, Input, Optim, Save, variant_of
from jaxact.models.specs import X3DSpec
from jaxact.tasks.action.config import Config, Data, Model, Stage, Views

# The data set's own grouping of its 60 actions: daily (A1-A40), medical (A41-A49), two persons
# (A50-A60).
NTU60_COARSE = (0,) * 40 + (1,) * 9 + (2,) * 11


def ntu60() -> Config:
    """The default: both streams, attention, four losses."""
    return Config(
        length="80 epochs",
        batch_size=32,
        model=Model(classes=60, coarse=NTU60_COARSE),
        data=Data(
            train_split="xsub_train",
            val_split="xsub_val",
            val=Views(clips=5),
            test=Views(clips=10),
        ),
        optim=Optim(
            name="sgd",
            lr=0.012,
            momentum=0.9,
            weight_decay=2e-4,
            schedule="cosine",
            per="epoch",
            warmup="5 epochs",
            warmup_from=0.1,
            min_lr=1e-6,
            clip=40.0,
        ),
        stages=(Stage(),),
        eval=Eval(every="2 epochs", first="5 epochs", batch_size=8, patience=15, min_delta=5e-4),
        save=Save(every="1 epochs"),
        input=Input(threads=8),
    )


def rgb() -> Config:
    """The RGB stream alone."""
    config = ntu60()
    config.model.streams = "rgb"
    return config


def pose() -> Config:
    """The pose stream alone: keypoints are resized straight to the heatmap's 56 px."""
    config = ntu60()
    config.model.streams = "pose"
    config.data.scale = 1.0
    config.data.resize = config.data.test_size = 64
    config.stages[0].size = 56
    return config


def plain() -> Config:
    """Two independent backbones, no attention."""
    config = ntu60()
    config.model.attention = False
    return config


def epam() -> Config:
    """EPAM-Net's joint stage: both streams pretrained, two equal losses, fused as raw scores."""
    config = ntu60()
    config.length = "10 epochs"
    config.pretrained = True
    config.batch_size = 24
    config.model.coarse = ()
    config.model.loss_weights = (1.0, 1.0, 0.0, 0.0)
    config.data.area = (1.0, 1.0)
    config.data.aspect = (1.0, 1.0)
    config.data.resize = config.data.test_size = 224
    config.data.imgpad = False
    config.data.average = "score"
    config.data.val = config.data.test = Views()
    config.optim = Optim(
        name="sgd", lr=0.001, lr_batch=16, momentum=0.9, weight_decay=3e-4, clip=40.0
    )
    config.eval = Eval(every="1 epochs", batch_size=8)
    config.seed = 100
    return config


def conservative() -> Config:
    """Fine-tuning of a trained two-stream model (give --config.init_from)."""
    config = ntu60()
    config.length = "15 epochs"
    config.pretrained = True
    config.optim.lr = 0.0005
    config.optim.warmup = "0"
    config.eval.first = "0"
    return config


def kinetics(frames: int, stride: int, size: int, short: tuple[int, int], test: int) -> Config:
    """X3D on RGB clips: dense sampling, 300 epochs of SGD, batch normalisation without decay.

    The paper also recomputes BN statistics over 200 batches before each test; this does not.
    """
    return Config(
        length="300 epochs",
        batch_size=128,
        model=Model(streams="rgb", classes=400, rgb=X3DSpec(), head="x3d", attention=False),
        data=Data(
            sampling="dense",
            rgb_frames=frames,
            stride=stride,
            compact=False,
            keep_ratio=True,
            short=short,
            test_size=test,
            mean=(114.75,) * 3,
            std=(57.375,) * 3,
            val=Views(),
            test=Views(clips=10, crops=3),
        ),
        optim=Optim(
            name="sgd",
            lr=0.1,
            lr_batch=128,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-5,
            groups=(Group("norm", r"_?bn/", weight_decay=0.0), Group("rest", ".*")),
            warmup="35 epochs",
            warmup_from=0.1,
            warmup_full=False,
            warmup_to="curve",
            warmup_prefix=False,
        ),
        stages=(Stage(size=size),),
        eval=Eval(every="10 epochs", batch_size=8),
        input=Input(threads=8),
    )


def x3d_l() -> Config:
    """X3D-L: deeper, 312 px, half the batch."""
    config = kinetics(16, 5, 312, (356, 446), 356)
    config.model.rgb.blocks = (5, 10, 25, 15)
    config.length, config.batch_size = "256 epochs", 64
    config.optim.lr, config.optim.lr_batch = 0.05, 64
    return config


def small(
    width: int,
    blocks: tuple[int, ...],
    temporal: str = "shift",
    fold_div: int = 8,
    stem_stride: int = 2,
) -> X3DSpec:
    """A backbone that learns in hundreds of steps instead of hundreds of epochs.

    Zero residual scales, conv5 and squeeze-excite pay off in long trainings of deep networks only.
    """
    return X3DSpec(
        blocks=blocks,
        width=width,
        temporal=temporal,
        fold_div=fold_div,
        stem_stride=stem_stride,
        se="none",
        conv5=False,
        last_scale=1.0,
    )


def fight_surv() -> Config:
    """Surveillance fights from RGB alone, small enough for two CPU cores."""
    return Config(
        length="24 epochs",
        batch_size=16,
        model=Model(
            streams="rgb",
            classes=2,
            rgb=small(16, (2, 2, 2, 2), temporal="conv"),
            head_deviation=0.06,
            attention=False,
        ),
        data=Data(
            val_split="test",
            sampling="dense",
            rgb_frames=8,
            stride=3,
            compact=False,
            keep_ratio=True,
            resize=96,
            test_size=96,
            mean=(114.75,) * 3,
            std=(57.375,) * 3,
            test=Views(clips=3),
        ),
        optim=Optim(
            name="adamw", lr=2e-3, weight_decay=0.05, warmup="2 epochs", ema=0.99, ema_warmup=True
        ),
        stages=(Stage(size=80, label_smoothing=(0.1,)),),
        eval=Eval(every="100%", batch_size=8),  # once, as in small_pose
        input=Input(threads=2),
    )


def small_pose(skeleton: str, classes: int, frames: int, splits: tuple[str, str]) -> Config:
    """Poses of one person, small enough for two CPU cores; `splits`: train, validation."""
    return Config(
        length="40 epochs",
        batch_size=16,
        model=Model(
            streams="pose",
            classes=classes,
            pose=small(24, (2, 2, 2), fold_div=4, stem_stride=1),
            head_deviation=0.06,
        ),
        data=Data(
            skeleton=skeleton,
            train_split=splits[0],
            val_split=splits[1],
            people=1,
            pose_frames=frames,
            resize=27,
            test_size=24,
            rotate=15.0,
            stretch=0.15,
            scale=1.0,
            test=Views(clips=5, flip=True),
        ),
        optim=Optim(
            name="adamw", lr=3e-3, weight_decay=0.02, warmup="5 epochs", ema=0.99, ema_warmup=True
        ),
        stages=(Stage(size=24, label_smoothing=(0.1,)),),
        # Once, at the end: looking at the test split more often would choose a checkpoint by it.
        eval=Eval(every="100%", batch_size=32),
        input=Input(threads=2),
    )


def jhmdb() -> Config:
    """JHMDB joints."""
    return small_pose("jhmdb15", 14, 16, ("split1_train", "split1_test"))


def exercise() -> Config:
    """OpenPose exercises (detector noise, missing joints), leave one fifth out."""
    return small_pose("coco17", 8, 24, ("fold0_train", "fold0_test"))


def generated(
    rgb: X3DSpec, pose: X3DSpec, frames: tuple[int, int], resize: int, size: int
) -> Config:
    """Two small streams on generated clips; `frames`: rgb, pose; `resize`, then `size` px."""
    return Config(
        length="14 epochs",
        batch_size=16,
        model=Model(
            classes=8,
            rgb=rgb,
            pose=pose,
            # Without attention each stream answers alone, so the report shows what fusion adds.
            attention=False,
            coarse=(0, 0, 1, 1, 2, 2, 3, 3),
            dropout=(0.1, 0.1),
            head_deviation=0.06,
        ),
        data=Data(
            train_split="train",
            val_split="test",
            rgb_frames=frames[0],
            pose_frames=frames[1],
            resize=resize,
            test_size=size,
            area=(0.9, 1.0),
            aspect=(0.9, 1.1),
            scale=2 / 3,  # heatmaps of 32 px: a marching leg moves by two or three of them
        ),
        optim=Optim(name="adamw", lr=5e-3, weight_decay=1e-3, warmup="4 epochs"),
        stages=(Stage(size=size),),
        eval=Eval(every="100%", batch_size=16),  # once, as in small_pose
        save=Save(every="7 epochs", log_every=20),
        input=Input(threads=2),
    )


def demo() -> Config:
    """Minutes on two CPU cores."""
    pose = small(24, (2, 2, 2), fold_div=4, stem_stride=1)
    return generated(small(16, (2, 2, 2)), pose, (8, 16), 52, 48)


def tiny() -> Config:
    """Two steps on a handful of clips."""
    rgb = X3DSpec(blocks=(1, 1), width=8, temporal="shift")
    pose = X3DSpec(blocks=(1, 1), width=8, temporal="shift", fold_div=4, stem_stride=1)
    config = generated(rgb, pose, (2, 4), 36, 32)
    config.length = "2 steps"
    config.batch_size = 4
    config.data.test = Views(clips=2)
    config.eval = Eval(every="2 steps", batch_size=4)
    config.save = Save(every="1 steps", log_every=1)
    return config


VARIANTS = {
    "": ntu60,
    "rgb": rgb,
    "pose": pose,
    "plain": plain,
    "epam": epam,
    "conservative": conservative,
    "x3d_xs": lambda: kinetics(4, 12, 160, (182, 228), 182),
    "x3d_s": lambda: kinetics(13, 6, 160, (182, 228), 182),
    "x3d_m": lambda: kinetics(16, 5, 224, (256, 320), 256),
    "x3d_l": x3d_l,
    "fight_surv": fight_surv,
    "jhmdb": jhmdb,
    "exercise": exercise,
    "demo": demo,
    "tiny": tiny,
}


def get_config(variant: str = "") -> Config:
    """The recipe of a variant. Raises UserError: there is no such variant."""
    return variant_of(VARIANTS, variant, __file__)
