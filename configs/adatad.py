"""Temporal action detection, end to end: VideoMAE with temporal adapters, ActionFormer's head.

Data: THUMOS-14 (https://www.crcv.ucf.edu/THUMOS14/; the videos for research, on request) as mp4
files named <id>.mp4, and an annotation in OpenTAD's, ActionFormer's or ActivityNet's JSON; training
is its official validation set, testing its test set. Weights: VideoMAE ViT-S of Kinetics-400, as
MCG-NJU, MMAction2, OpenTAD or Hugging Face name them (CC-BY-NC 4.0). We hold neither the videos nor
the weights and have not run this recipe: no number of ours is claimed for it. Numbers to expect,
measured by OpenTAD (two GPUs, one video each; mean of mAP at tIoU 0.3 to 0.7 on the test set, which
also chooses the epoch there, as it does here):

| backbone | 0.3 | 0.4 | 0.5 | 0.6 | 0.7 | mean |
|---|---|---|---|---|---|---|
| S | 83.90 | 79.01 | 72.38 | 61.57 | 48.27 | 69.03 |
| B | 85.95 | 81.86 | 75.02 | 63.29 | 49.56 | 71.14 |
| L | 87.17 | 83.58 | 76.88 | 66.81 | 53.13 | 73.51 |

    python -m jaxact.main --config=configs/adatad.py --workdir=runs/thumos \\
        --config.data.annotations=thumos14.json --config.data.videos=thumos14_videos \\
        --config.init_from=vit-small-p16_videomae-k400.pth

Variants (`--config=configs/adatad.py:NAME`):

| name | what learns, or what else differs |
|---|---|
| (none) | adapters in a ViT-S and the detector; windows of 768 frames of 160 px, 60 epochs |
| frozen | the detector alone, on frames as in evaluation: not augmented |
| full | everything, the backbone at a tenth of the rate |
| side | adapters beside the last six blocks: no gradient passes the ViT |
| b, l | ViT-B, ViT-L (H and g: --config.model.backbone.size) |
| activitynet | ActivityNet-1.3: whole videos at 768 frames, class-agnostic (see below) |
| features | THUMOS-14 from I3D features (2048 numbers every 4 frames), no backbone |
| salads | 50Salads from framewise scores, at laptop size; annotations are a fold each |
| composed | end to end at laptop size on composed videos: adapters in a small random ViT |
| composed_frozen, composed_full | the same, the detector alone or everything learning |
| drawn, drawn_frozen, drawn_full | the same three on drawn videos of a moving square |
| tiny | two steps on generated videos, for tests |

    python scripts/prepare_detection.py framewise --source salads50_mid_svm.npz --out salads
    python -m jaxact.main --config=configs/adatad.py:salads --workdir=runs/salads1 \\
        --config.data.annotations=salads/split1.json --config.data.features=salads/features
    python scripts/prepare_detection.py composed --source fight_surv --out composed
    python -m jaxact.main --config=configs/adatad.py:composed --workdir=runs/composed \\
        --config.data.annotations=composed/annotations.json --config.data.videos=composed/videos

`scripts/bench/detection.py` runs salads, composed and drawn and prints their tables. A
class-agnostic model is scored with the classes of a video-level classifier, a file of whose scores
goes into --config.post.merging.classifier (and the videos to leave out into
--config.data.blocked).
"""

from jaxact.config import Eval, Input, Optim, Save, variant_of
from jaxact.tasks.detection.config import (
    Backbone,
    Config,
    Data,
    Merging,
    Model,
    Nms,
    Post,
    Stage,
    groups,
)


def thumos() -> Config:
    """The default: adapters in a ViT-S, THUMOS-14."""
    return Config(
        seed=42,
        length="60 epochs",
        batch_size=2,
        dtype="bfloat16",
        model=Model(),
        data=Data(ground_truth="opentad"),
        post=Post(),
        optim=Optim(
            name="adamw",
            lr=1e-4,
            weight_decay=0.05,
            groups=groups("adapter", 2.0),
            schedule="cosine",
            warmup="5 epochs",
            decay_over="95 epochs",  # laid out over 100 epochs, of which 60 are run
            min_lr=5e-9,  # 1e-8 for the adapters, whose rate is twice this
            clip=1.0,
            ema=0.999,
        ),
        stages=(Stage(),),
        eval=Eval(every="2 epochs", first="42 epochs", metric="mAP"),
        save=Save(every="2 epochs"),
        input=Input(threads=8),
    )


def frozen() -> Config:
    """No gradient in the backbone."""
    config = thumos()
    config.model.backbone = Backbone(mode="frozen", drop_path=0.0)
    config.model.input_dropout = 0.2
    config.optim.groups = groups("frozen")
    config.stages = (Stage(augment="none"),)
    config.post.nms = Nms(sigma=0.5, least=0.001)
    config.eval.every, config.eval.first = "5 epochs", "40 epochs"
    return config


def full() -> Config:
    """Everything learns."""
    config = thumos()
    config.model.backbone.mode = "full"
    config.optim.groups = groups("full", 0.1)
    config.eval.every, config.eval.first = "5 epochs", "40 epochs"
    return config


def side() -> Config:
    """Adapters beside the network, fed by its later half."""
    config = thumos()
    config.model.backbone = Backbone(mode="side", first=6, drop_path=0.0)
    config.model.input_dropout = 0.1
    config.optim.groups = groups("side", 2.0)
    return config


def larger(size: str) -> Config:
    """A larger ViT, its adapters at the detector's rate."""
    config = thumos()
    config.model.backbone.size = size
    config.optim.groups, config.optim.min_lr = groups("adapter", 1.0), 1e-8
    return config


def activitynet() -> Config:
    """ActivityNet-1.3: the whole video is one window; classes come from a video classifier."""
    config = thumos()
    config.length, config.batch_size = "15 epochs", 16
    config.model = Model(
        classes=1, width=256, positions=192, loss_weight=2.0, normaliser=200.0, backbone=Backbone()
    )
    config.data = Data(
        ground_truth="keep", mode="resize", window=192, scale=4, stride=4, smallest=0.01
    )
    config.post = Post(
        nms=Nms(sigma=0.7, least=0.001, most=100, multiclass=False, voting=0.9),
        merging=Merging(single=True),
        protocol="activitynet",
    )
    config.optim.lr, config.optim.decay_over, config.optim.min_lr = 1e-3, "", 1e-8
    config.optim.groups = groups("adapter", 0.1)
    config.stages = (Stage(label_smoothing=(0.1,)),)
    config.eval = Eval(every="1 epochs", first="9 epochs", metric="mAP")
    return config


def without_backbone(config: Config) -> None:
    """What the variants on features share."""
    config.dtype, config.model.backbone.size, config.input.threads = "float32", "none", 2
    config.optim.groups, config.optim.decay_over, config.optim.min_lr = groups(""), "", 1e-8


def features() -> Config:
    """THUMOS-14 from I3D features, as ActionFormer is trained; evaluated in windows.

    Published by ActionFormer, which evaluates whole videos: mAP 82.13, 77.80, 70.95, 59.40, 43.87
    at tIoU 0.3 to 0.7, mean 66.83. With its own JSON:
    --config.data.train_split=Validation --config.data.val_split=Test.
    """
    config = thumos()
    without_backbone(config)
    config.length, config.model.window = "35 epochs", 19
    # A feature covers 16 frames and stands for the middle of them.
    config.data = Data(
        ground_truth="actionformer",
        features="features",
        channels=2048,
        window=2304,
        offset=8.0,
        least=0.5,
    )
    config.post = Post(nms=Nms(sigma=0.5, least=0.001, most=200), protocol="actionformer")
    config.eval = Eval(every="5 epochs", metric="mAP")
    return config


def salads() -> Config:
    """50Salads (mid-level actions) from scores of 18 classes at 1 Hz; one fold a run.

    Length and the score of a detection that labels frames were chosen on a quarter of the training
    videos of fold 1; each fold is evaluated once, at the end.
    """
    config = thumos()
    without_backbone(config)
    config.seed, config.length, config.batch_size = 0, "150 steps", 8
    config.model.classes, config.model.width, config.model.normaliser = 17, 64, 50.0
    config.data = Data(
        features="features", channels=18, window=512, stride=1, least=0.5, shortest=0.9, most=64
    )
    config.post = Post(top=500, nms=Nms(sigma=0.5, most=200), framewise=0.2)
    config.optim.lr, config.optim.warmup, config.optim.ema = 1e-3, "20 steps", 0.98
    config.eval = Eval(every="100%", batch_size=8, metric="mAP")
    config.save = Save(every="100%", log_every=50)
    return config


def small(config: Config, mode: str) -> None:
    """What the variants at laptop size share: a small ViT of which `mode` says what learns.

    It starts from random weights (there are none to start from), so adapters see random
    projections of tubes of two frames.
    """
    config.seed, config.batch_size, config.dtype = 0, 4, "float32"
    drop_path = 0.0 if mode == "frozen" else 0.1
    config.model = Model(
        backbone=Backbone(size="tiny", mode=mode, drop_path=drop_path, remat=False),
        width=64,
        stem=1,
        branch=4,
        ranges=(0.0, 8.0, 8.0, 16.0, 16.0, 32.0, 32.0, 64.0, 64.0, 10000.0),
        normaliser=50.0,
    )
    config.data = Data(operations=0, jitter=(0.2, 0.2, 0.2, 0.0), most=16)
    config.post = Post(nms=Nms(sigma=0.5, most=200))
    config.optim.lr, config.optim.warmup, config.optim.decay_over = 1e-3, "2 epochs", ""
    config.optim.groups, config.optim.ema = groups(mode, 1.0), 0.99
    # Test videos are evaluated during training, to see mAP move. results.json has the best
    # evaluation, so scripts/bench/detection.py prints all of them, the last included.
    config.eval = Eval(every="5 epochs", batch_size=4, metric="mAP")
    config.save = Save(every="5 epochs", log_every=15)
    config.input = Input(threads=2)


def composed(mode: str = "adapter") -> Config:
    """Videos composed of fight_surv clips, end to end."""
    config = thumos()
    small(config, mode)
    config.length, config.model.classes, config.stages = "30 epochs", 1, (Stage(size=64),)
    config.data.window, config.data.stride = 256, 2
    config.data.resize, config.data.test_size, config.data.area = 72, 64, (0.5, 1.0)
    return config


def drawn(mode: str = "adapter") -> Config:
    """Squares that move across or down (`prepare_detection.py drawn`), end to end."""
    config = thumos()
    small(config, mode)
    config.length, config.model.classes, config.stages = "100 epochs", 2, (Stage(size=32),)
    config.data.window, config.data.stride = 192, 1
    config.data.resize, config.data.test_size, config.data.area = 36, 32, (0.8, 1.0)
    config.eval.every = "20 epochs"
    return config


def tiny() -> Config:
    """Two steps of a small network on what `jaxact.tasks.detection.sample_data.draw` writes."""
    config = thumos()
    small(config, "adapter")
    config.length, config.batch_size = "2 steps", 2
    config.model.classes, config.model.width, config.model.heads = 2, 16, 2
    config.model.branch, config.model.ranges = 2, (0.0, 4.0, 4.0, 8.0, 8.0, 10000.0)
    config.data.window, config.data.stride, config.data.operations = 32, 2, 1
    config.data.resize, config.data.test_size, config.data.area = 36, 32, (0.5, 1.0)
    config.post = Post(top=50, nms=Nms(most=50), framewise=0.0)
    config.optim.warmup = "0"
    config.stages = (Stage(size=32),)
    config.eval = Eval(every="2 steps", batch_size=2, metric="mAP")
    config.save = Save(every="1 steps", log_every=1)
    return config


VARIANTS = {
    "": thumos,
    "frozen": frozen,
    "full": full,
    "side": side,
    "b": lambda: larger("b"),
    "l": lambda: larger("l"),
    "activitynet": activitynet,
    "features": features,
    "salads": salads,
    "composed": composed,
    "composed_frozen": lambda: composed("frozen"),
    "composed_full": lambda: composed("full"),
    "drawn": drawn,
    "drawn_frozen": lambda: drawn("frozen"),
    "drawn_full": lambda: drawn("full"),
    "tiny": tiny,
}


def get_config(variant: str = "") -> Config:
    """The recipe of a variant. Raises UserError: there is no such variant."""
    return variant_of(VARIANTS, variant, __file__)
