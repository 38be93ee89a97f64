"""RGBPoseConv3D, PoseC3D and SlowOnly: dense 3-D convolutions on RGB clips and pose heatmaps.

Data: NTU RGB+D 60 (https://rose1.ntu.edu.sg/dataset/actionRecognition/; academic use, on request)
as mp4 files named <id>.mp4, and the PySKL annotation `ntu60_hrnet.pkl` (COCO-17 poses by HRNet). We
hold neither, and have not run this recipe on NTU60: no accuracy of ours is claimed for it. Numbers
to expect, all measured by others (top-1 in %, cross-subject):

| who | network | parameters | MACs | top-1, 1 / 10 clips |
|---|---|---|---|---|
| MMAction2 | RGBPoseConv3D: RGB, pose, both | 36.1 M | 58.0 G | 96.2/96.4, 96.0/96.2, 96.6/96.8 |
| PYSKL | the same | 36.1 M | 58.0 G | 96.2/96.4, 95.9/96.1, 96.6/96.9 |
| MMAction2 | rgb_only, pose_only, late | 31.8 + 2.0 M | 53.1 G | 95.4, 93.5, 96.2 (10) |
| PYSKL | PoseC3D, joints / limbs / both | 2.0 M | 15.6 G | 93.7, 93.4, 94.1 (10) |
| PYSKL | C3D-light, joints | 3.4 M | 16.8 G | 92.7 (10) |
| PYSKL | X3D-shallow, joints | 0.25 M | 0.57 G | 92.1 (10) |

Training takes three runs: each path alone, then both from the two.

    python -m jaxact.main --config=configs/rgbpose_conv3d.py:rgb_only --workdir=runs/rgb ...
    python -m jaxact.main --config=configs/rgbpose_conv3d.py:pose_only --workdir=runs/pose ...
    python -m jaxact.main --config=configs/rgbpose_conv3d.py:fusion --workdir=runs/fusion \\
        --config.init_from=runs/rgb,runs/pose \\
        --config.data.annotations=ntu60_hrnet.pkl --config.data.videos=ntu60_videos

`init_from` takes work dirs, or the .pth files of MMAction2 and PYSKL, or both; for rgb_only also a
2-D ResNet-50 of torchvision or timm.

Variants (`--config=configs/rgbpose_conv3d.py:NAME`):

| name | what |
|---|---|
| (none), fusion | both paths, RGB 8 x 224, pose 32 x 56 px, two losses; give --config.init_from |
| rgb_only, pose_only | one path of it, from scratch, 180 epochs |
| late | the two paths without exchange: late fusion; give --config.init_from |
| posec3d, posec3d_limb | PoseC3D, 48 frames, heatmaps of joints or limbs |
| c3d_light, x3d_shallow | PYSKL's light networks in PoseC3D's place |
| conservative | fine-tuning a trained fusion: lr 0.0005, 15 epochs, no colour jitter, four losses |
| jhmdb, jhmdb_limb, jhmdb_both | PoseC3D on JHMDB, at laptop size |
| demo_rgb_only, demo_pose_only, demo_fusion | on the clips of `make demo`, two CPU cores |
| tiny | two steps on generated clips, for tests |
"""

from jaxact.config import Eval, Input, Optim, Save, variant_of
from jaxact.models.specs import ResNet3DSpec, X3DSpec
from jaxact.tasks.action.config import Config, Data, Model, Stage, Views

# Daily (A1-A40), medical (A41-A49), two persons (A50-A60), as in configs/x3d.py.
NTU60_COARSE = (0,) * 40 + (1,) * 9 + (2,) * 11


def fusion() -> Config:
    """The default: both paths, exchanging after two of their stages."""
    return Config(
        length="20 epochs",
        pretrained=True,
        batch_size=48,
        model=Model(
            network="rgbpose", classes=60, attention=False, loss_weights=(1.0, 1.0, 0.0, 0.0)
        ),
        data=Data(
            train_split="xsub_train",
            val_split="xsub_val",
            rgb_frames=8,
            pose_frames=32,
            sigma=0.7,
            val=Views(),
            test=Views(clips=10),
        ),
        optim=Optim(
            name="sgd",
            lr=0.0075,
            lr_batch=48,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            per="epoch",
            milestones=("12 epochs", "16 epochs"),
            clip=40.0,
        ),
        stages=(Stage(),),
        eval=Eval(every="1 epochs", batch_size=8),
        save=Save(every="1 epochs"),
        input=Input(threads=8),
    )


def rgb_only() -> Config:
    """The RGB path alone, from scratch."""
    config = fusion()
    config.length = "180 epochs"
    config.pretrained = False
    config.batch_size = 96
    config.model.network, config.model.streams = "slowonly", "rgb"
    config.data.test_size = 224
    config.optim = Optim(
        name="sgd", lr=0.15, lr_batch=96, momentum=0.9, weight_decay=1e-4, clip=40.0
    )
    config.eval.every, config.save.every = "10 epochs", "10 epochs"
    return config


def pose_alone(
    network: str = "slowonly",
    heatmap: str = "joints",
    length: str = "240 epochs",
    frames: int = 48,
    skeleton: str = "coco17_ntu",  # COCO's joints, limbs in the order of published weights
) -> Config:
    """A pose network alone, from scratch: keypoints are resized straight to the heatmap's 56 px."""
    config = fusion()
    config.length = length
    config.pretrained = False
    config.batch_size = 128
    config.model.network, config.model.streams = network, "pose"
    config.data.pose_frames, config.data.skeleton = frames, skeleton
    config.data.heatmap, config.data.scale, config.data.sigma = heatmap, 1.0, 0.6
    config.data.resize = config.data.test_size = 64
    config.data.test = Views(clips=10, double=True)
    config.stages[0].size = 56
    config.optim = Optim(
        name="sgd", lr=0.2, lr_batch=128, momentum=0.9, weight_decay=3e-4, clip=40.0
    )
    config.eval.every, config.save.every = "10 epochs", "10 epochs"
    return config


def pose_only() -> Config:
    """The pose path alone, from scratch."""
    return pose_alone(length="180 epochs", frames=32, skeleton="coco17")


def late() -> Config:
    """Late fusion: both paths in one network, without exchange."""
    config = fusion()
    config.model.network = "slowonly"
    return config


def posec3d(heatmap: str = "joints") -> Config:
    """PoseC3D: the pose network at 48 frames, its last stage at every second one."""
    config = pose_alone(heatmap=heatmap)
    config.model.pose_resnet.temporal_strides = (1, 1, 2)
    return config


def x3d_shallow() -> Config:
    """X3D with ten blocks, neither squeeze-excite nor swish, trained as PoseC3D is."""
    config = pose_alone("x3d")
    config.model.pose = X3DSpec(blocks=(2, 5, 3), se="none", swish=False)
    return config


def conservative() -> Config:
    """Fine-tuning of a trained fusion (give --config.init_from), the four losses as in x3d.py."""
    config = fusion()
    config.length = "15 epochs"
    config.model.coarse, config.model.loss_weights = NTU60_COARSE, (1.0, 1.5, 0.6, 1.2)
    config.data.area = (0.56, 1.0)
    config.data.jitter = (0.0, 0.0, 0.0, 0.0)
    config.optim = Optim(name="sgd", lr=0.0005, momentum=0.9, weight_decay=2e-4, clip=40.0)
    return config


def jhmdb(heatmap: str = "joints") -> Config:
    """PoseC3D on JHMDB poses, small enough for two CPU cores; trained as configs/x3d.py:jhmdb."""
    return Config(
        length="40 epochs",
        batch_size=16,
        model=Model(
            network="slowonly",
            streams="pose",
            classes=14,
            pose_resnet=ResNet3DSpec(
                blocks=(1, 2, 1),
                width=16,
                inflate=(0, 1, 1),
                strides=(2, 2, 2),
                temporal_strides=(1, 1, 2),
                stem_stride=1,
                pool_stride=1,
                last_scale=1.0,
            ),
            attention=False,
            loss_weights=(1.0, 1.0, 0.0, 0.0),
            head_deviation=0.06,
        ),
        data=Data(
            skeleton="jhmdb15",
            train_split="split1_train",
            val_split="split1_test",
            people=1,
            rgb_frames=8,
            pose_frames=16,
            resize=27,
            test_size=24,
            rotate=15.0,
            stretch=0.15,
            heatmap=heatmap,
            scale=1.0,
            test=Views(clips=5, flip=True),
        ),
        optim=Optim(
            name="adamw", lr=3e-3, weight_decay=0.02, warmup="5 epochs", ema=0.99, ema_warmup=True
        ),
        stages=(Stage(size=24, label_smoothing=(0.1,)),),
        # Once, at the end: looking at the test split more often would choose a checkpoint by it.
        eval=Eval(every="100%", batch_size=32),
        save=Save(every="10 epochs"),
        input=Input(threads=2),
    )


def narrow(
    width: int, inflate: tuple[int, ...], strides: tuple[int, ...], stem: int
) -> ResNet3DSpec:
    """A path of three stages, one block each; `stem`: stride of its first layer and its pool."""
    return ResNet3DSpec(
        blocks=(1, 1, 1),
        width=width,
        inflate=inflate,
        strides=strides,
        temporal_strides=(1, 1, 1),
        stem_stride=stem,
        pool_stride=stem,
        last_scale=1.0,
    )


def generated(
    streams: str = "rgb+pose",
    width: int = 12,
    frames: tuple[int, int] = (8, 16),
    resize: int = 52,
    size: int = 48,
) -> Config:
    """Both narrow paths, or one, on generated clips."""
    model = Model(
        network="rgbpose" if streams == "rgb+pose" else "slowonly",
        streams=streams,
        classes=8,
        rgb_resnet=narrow(width, (0, 1, 1), (1, 2, 2), stem=2),
        pose_resnet=narrow(width, (1, 1, 1), (2, 2, 2), stem=1),
        attention=False,
        loss_weights=(1.0, 1.0, 0.0, 0.0),
        dropout=(0.1, 0.1),
        head_deviation=0.06,
    )
    if streams == "rgb+pose":
        # Both maps are 12 x 12 px at the first exchange, 6 x 6 at the second.
        model.exchange.rgb_after = (1, 2)
    return Config(
        length="14 epochs",
        batch_size=16,
        model=model,
        data=Data(
            train_split="train",
            val_split="test",
            rgb_frames=frames[0],
            pose_frames=frames[1],
            resize=resize,
            test_size=size,
            area=(0.9, 1.0),
            aspect=(0.9, 1.1),
            scale=0.5,
        ),
        optim=Optim(name="adamw", lr=5e-3, weight_decay=1e-3, warmup="4 epochs"),
        stages=(Stage(size=size),),
        eval=Eval(every="100%", batch_size=16),  # once, as in jhmdb
        save=Save(every="7 epochs", log_every=20),
        input=Input(threads=2),
    )


def demo() -> Config:
    """Minutes on two CPU cores."""
    return generated()


def tiny() -> Config:
    """Two steps of two very small paths on a handful of generated clips."""
    config = generated(width=4, frames=(2, 4), resize=36, size=32)
    config.length = "2 steps"
    config.batch_size = 4
    config.data.test = Views(clips=2)
    config.eval = Eval(every="2 steps", batch_size=4)
    config.save = Save(every="1 steps", log_every=1)
    return config


VARIANTS = {
    "": fusion,
    "fusion": fusion,
    "rgb_only": rgb_only,
    "pose_only": pose_only,
    "late": late,
    "posec3d": posec3d,
    "posec3d_limb": lambda: posec3d("limbs"),
    "c3d_light": lambda: pose_alone("c3d"),
    "x3d_shallow": x3d_shallow,
    "conservative": conservative,
    "jhmdb": jhmdb,
    "jhmdb_limb": lambda: jhmdb("limbs"),
    "jhmdb_both": lambda: jhmdb("both"),
    "demo_fusion": demo,
    "demo_rgb_only": lambda: generated("rgb"),
    "demo_pose_only": lambda: generated("pose"),
    "tiny": tiny,
}


def get_config(variant: str = "") -> Config:
    """The recipe of a variant. Raises UserError: there is no such variant."""
    return variant_of(VARIANTS, variant, __file__)
