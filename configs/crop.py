"""Long-tailed crop-disease classification (61 classes) with a staged schedule.

Data: AI Challenger 2018 crop diseases ("PDR2018": 31,718 training and 4,540 validation pictures, 61
classes of crop, disease and severity, 1 to 2,445 pictures each). Its site is gone and its terms
cannot be recovered; bring your own copy:

    python -m jaxact.main --config=configs/crop.py --workdir=runs/crop \\
        --config.data.annotations=AgriculturalDisease_train_annotations.json \\
        --config.data.val_annotations=AgriculturalDisease_validation_annotations.json \\
        --config.init_from=resnet50.safetensors

We do not hold that data and claim no number on it. Others report 86 to 88.7 % top-1 (ResNet-50 at
650 px on 59 classes 88.05 %, an ensemble 88.66 %; 87.07 % and macro F1 0.831 for a multi-task
network on 61); most errors left are between the two severities of one disease, so 92 to 95 % is no
sane target.

Variants (`--config=configs/crop.py:NAME`):

| name | what |
|---|---|
| (none) | ResNet-50, 50 epochs, AdamW 5e-4, staged schedule below, EMA |
| advanced | all of the schedule: weighted sampler, cosine head and center loss as well |
| multitask | heads for label, crop, disease and severity, losses 1 : 0.3 : 0.3 : 0.5, or weighed \
by how low they are (loss.dynamic) |
| fewshot | ten pictures a class, frozen backbone, two-layer head at five times the rate |
| deferred | natural data first; LDAM's margins, class weights in the last 20 % (LDAM-DRW) |
| adjusted | logit adjustment (balanced softmax), nothing else against the long tail |
| crt | natural data first, then the head (every layer of it) is drawn anew and trained alone on \
balanced classes |
| leaves | CPU-sized: a small ResNet from scratch, 64 px, `crop_disease_lt` (52 classes), plain |
| leaves_staged | CPU-sized: the same with this schedule's order (weighted sampling first) |
| leaves_deferred | CPU-sized: the same with balancing in the last fifth |
| leaves_adjusted | CPU-sized: the same with logit adjustment |
| tiny | two steps of a small network on a handful of pictures, for tests |

    python -m jaxact.main --config=configs/crop.py:leaves --workdir=runs/leaves \\
        --config.data.annotations=crop_disease_lt/labels.csv

Flags of the guide that this recipe follows, and the fields they are here. `schedule` takes those of
the first block under their own names (with `_` for `-`) and makes the rows of `stages`; from the
command line a row is changed as in --config.stages[3].lr=1.5.

| flag | field |
|---|---|
| image-size, progressive-resize-epoch, progressive-image-size | stages: size |
| label-smoothing, smoothing-decay-epoch1, -epoch2 | stages: label_smoothing (e0, 0.02, 0) |
| balance-sampler, disable-sampler-epoch | stages: sampler |
| use-class-weights | stages: class_weight |
| mixup-alpha, mixup-prob, mixup-decay-epoch1, -epoch2, mixup-disable-epoch | stages: mixup, _prob |
| cutmix-alpha, cutmix-prob, cutmix-disable-epoch | stages: cutmix, cutmix_prob |
| tail-focal-epoch | stages: focal |
| stage2-epoch, stage3-epoch, freeze-stages, stage2-unfreeze | stages: train, and lr x 1.2 |
| lr-restart-epoch (a cut by 0.4, whatever its name) | stages: lr |
| final-clean-epoch | stages: augment |
| use-cosine-classifier, center-update-epoch | model.cosine; stages: cosine |
| use-center-loss, center-loss-weight, center-update-epoch | model.center; stages: center |
| rebalance | stages: sampler, class_weight |
|---|---|
| train-dir, val-dir; train-meta, val-meta; class-weights | data.images; data.annotations, \
val_annotations; data.balance.file |
| model-type, backbone, dropout | model.kind, model.backbone, model.dropout |
| pretrained | init_from |
| epochs, batch-size, seed, resume | length, batch_size, seed, --resume_from (or nothing) |
| keep-schedule | optim.decay_over, for a run that goes on longer (the cosine: 45 epochs of 50) |
| task-weights, dynamic-task-weights | loss.weights, loss.dynamic |
| lr, weight-decay, optimizer, scheduler | optim.lr, weight_decay, name, schedule (step: \
milestones, and warmup=0) |
| warmup-epochs, warmup-start-factor, min-lr | optim.warmup, warmup_from, min_lr |
| use-amp | dtype=bfloat16 |
| loss-type, focal-gamma | loss.kind, loss.gamma |
| use-ema, ema-decay | optim.ema (0 = off) |
| grad-accum-steps, grad-checkpointing | optim.accumulate, model.remat |
| early-stop-patience | eval.patience |
| fewshot-freeze-backbone, -hidden, -dropout, -head-lr-scale | optim.groups[1].frozen, \
model.hidden, model.dropout, optim.groups[0].lr |
| num-workers, save-dir, save-freq, log-interval | input.threads, --workdir, save.every \
and keep_every, log_every |
"""

from typing import Any

from jaxact.config import Group, Input, Optim, Save, UserError, variant_of
from jaxact.tasks.crop.config import (
    Augment,
    Balance,
    ClassifierSpec,
    Config,
    Data,
    Eval,
    Loss,
    Stage,
    backbone,
)

# The deepest stage of every backbone (`models.backbones`): what is unfrozen first.
LAST_STAGE = "^backbone/(layer4|blocks5|blocks6|head|stage3|norm)/"


def groups() -> tuple[Group, ...]:
    """The parts that stages freeze and free. The network's own head is `head`."""
    return (
        Group("head", "^head/(?!cosine_kernel|centers)"),
        Group("last_stage", LAST_STAGE),
        Group("rest", ".*"),
    )


def schedule(
    *,
    epochs: int = 50,
    image_size: int = 224,
    label_smoothing: float = 0.05,
    use_class_weights: bool = True,
    balance_sampler: bool = False,
    mixup_alpha: float = 0.4,
    mixup_prob: float = 0.7,
    cutmix_alpha: float = 0.6,
    cutmix_prob: float = 0.5,
    stage2_epoch: int = 10,
    stage3_epoch: int = 20,
    smoothing_decay_epoch1: int = 12,
    smoothing_decay_epoch2: int = 18,
    disable_sampler_epoch: int = 15,
    lr_restart_epoch: int = 25,
    tail_focal_epoch: int = 18,
    progressive_resize_epoch: int = 30,
    progressive_image_size: int = 256,
    final_clean_epoch: int = 40,
    mixup_decay_epoch1: int = 10,
    mixup_decay_epoch2: int = 12,
    mixup_disable_epoch: int = 15,
    cutmix_disable_epoch: int = 10,
    use_cosine_classifier: bool = False,
    use_center_loss: bool = False,
    center_loss_weight: float = 0.01,
    center_update_epoch: int = 35,
    freeze_stages: bool = True,
    stage2_unfreeze: str = "last_stage",
    augment: str = "full",
    rebalance: str = "guide",
) -> tuple[Stage, ...]:
    """Rows of the guide's schedule, by the names of its flags; every change acts from its epoch on.

    Args:
      stage2_unfreeze: "last_stage" or "none" (stage 2 changes the learning rate only).
      rebalance: "guide" samples by weight until disable_sampler_epoch and weighs classes in the
        loss after it (from the start without the sampler); "both" does both at once from the
        start; "deferred" leaves the data as it is for 80 % of the epochs and samples by weight
        then, whatever balance_sampler says.

    Raises: UserError for another choice of these two.
    """
    for name, choice, allowed in (
        ("stage2_unfreeze", stage2_unfreeze, ("last_stage", "none")),
        ("rebalance", rebalance, ("guide", "both", "deferred")),
    ):
        if choice not in allowed:
            raise UserError(f"schedule: {name}={choice!r}; allowed: {', '.join(allowed)}")
    late = round(0.8 * epochs)

    def decayed(epoch: int, first: float, *drops: tuple[int, float]) -> float:
        """The value after the last drop passed."""
        return next((value for at, value in reversed(drops) if epoch >= at), first)

    def sampler(epoch: int) -> str:
        if rebalance == "deferred":
            return "weighted" if epoch >= late else "natural"
        return "weighted" if balance_sampler and epoch < disable_sampler_epoch else "natural"

    def class_weight(epoch: int) -> float:
        # The sampler and the weights make up for the same thing: one of them at a time.
        if not use_class_weights or rebalance == "deferred":
            return 0.0
        return float(rebalance == "both" or sampler(epoch) == "natural")

    def train(epoch: int) -> str:
        switched = epoch >= center_update_epoch
        cosine = use_cosine_classifier and switched
        parts = [] if cosine else ["head"]
        parts += ["features"] if switched and (use_cosine_classifier or use_center_loss) else []
        if not freeze_stages or epoch >= stage3_epoch:
            parts += ["last_stage", "rest"]
        elif stage2_unfreeze == "last_stage" and epoch >= stage2_epoch:
            parts += ["last_stage"]
        return "|".join(parts)

    def row(epoch: int) -> dict[str, Any]:
        rate = (1.2 if epoch >= stage2_epoch else 1.0) * (0.4 if epoch >= lr_restart_epoch else 1.0)
        smoothing = decayed(
            epoch,
            label_smoothing,
            (smoothing_decay_epoch1, min(0.02, label_smoothing)),
            (smoothing_decay_epoch2, 0.0),
        )
        mixup = decayed(
            epoch,
            mixup_alpha,
            (mixup_decay_epoch1, mixup_alpha / 2),
            (mixup_decay_epoch2, mixup_alpha / 4),
            (mixup_disable_epoch, 0.0),
        )
        switched = epoch >= center_update_epoch
        values = {
            "lr": rate,
            "label_smoothing": smoothing,
            "mixup": mixup,
            "mixup_prob": mixup_prob,
            "cutmix": cutmix_alpha if epoch < cutmix_disable_epoch else 0.0,
            "cutmix_prob": cutmix_prob,
            "class_weight": class_weight(epoch),
            "focal": float(epoch >= tail_focal_epoch),
            "cosine": float(use_cosine_classifier and switched),
            "center": center_loss_weight if use_center_loss and switched else 0.0,
        }
        larger = epoch >= progressive_resize_epoch
        return {
            **{name: (round(value, 12),) for name, value in values.items()},
            "train": train(epoch),
            "sampler": sampler(epoch),
            "augment": "light" if epoch >= final_clean_epoch else augment,
            "size": progressive_image_size if larger else image_size,
        }

    changes = {0, stage2_epoch, stage3_epoch, lr_restart_epoch, tail_focal_epoch}
    changes |= {smoothing_decay_epoch1, smoothing_decay_epoch2, mixup_decay_epoch1}
    changes |= {mixup_decay_epoch2, mixup_disable_epoch, cutmix_disable_epoch}
    changes |= {disable_sampler_epoch, progressive_resize_epoch, final_clean_epoch}
    changes |= {center_update_epoch, late}
    stages: list[Stage] = []
    before: dict[str, Any] = {}
    for epoch in sorted(epoch for epoch in changes if epoch >= 0):
        now = row(epoch)
        new = {name: value for name, value in now.items() if before.get(name) != value}
        if new:
            stages.append(Stage(start=f"{epoch} epochs" if epoch else "0", **new))
        before = now
    return tuple(stages)


def layerwise(name: str, decay: float, weight_decay: float = 1e-4) -> tuple[Group, ...]:
    """Groups whose rate falls by `decay` with each stage below the head (0.75 for ConvNeXt, 0.9 for
    ResNet), normalisation and biases without weight decay. They fit `train=".*"` only.

        config.optim.groups = layerwise("convnext_tiny", 0.75)
    """
    stages = backbone(name).stages
    plain = r"(bias|scale|gamma)$"
    layers = [
        Group("head_plain", f"^head/.*{plain}", weight_decay=0.0),
        Group("head", "^head/", weight_decay=weight_decay),
    ]
    for depth, pattern in enumerate(reversed(stages), 1):
        rate, part = decay**depth, pattern.strip("/")
        whole = part == "norm"  # a scale and a bias, nothing else
        name = part if whole else f"{part}_plain"
        layers.append(Group(name, f"^backbone/{pattern}.*{plain}", rate, 0.0))
        if not whole:
            layers.append(Group(part, f"^backbone/{pattern}", rate, weight_decay))
    return tuple(layers)


def default() -> Config:
    """The guide's defaults, with the average of weights."""
    return Config(
        seed=42,
        length="50 epochs",
        batch_size=32,
        model=ClassifierSpec(),
        data=Data(class_table="ai_challenger", missing="allow", val_split="val"),
        optim=Optim(
            name="adamw",
            lr=5e-4,
            weight_decay=1e-4,
            groups=groups(),
            per="epoch",
            warmup="5 epochs",
            warmup_from=0.02,
            warmup_full=False,
            min_lr=1e-6,
            milestones=("20 epochs", "40 epochs"),  # for schedule=step, without warm-up there
            gamma=0.1,
            clip=1.0,
            ema=0.999,
        ),
        stages=schedule(),
        eval=Eval(every="1 epochs", batch_size=64),
        save=Save(every="5 epochs", keep_every="5 epochs", log_every=10),
        input=Input(threads=4),
    )


def advanced() -> Config:
    """Every flag of the guide."""
    config = default()
    config.model.cosine = config.model.center = True
    config.optim.groups = (Group("features", "^head/(cosine_kernel|centers)"), *groups())
    config.stages = schedule(balance_sampler=True, use_cosine_classifier=True, use_center_loss=True)
    return config


def multitask() -> Config:
    """Four heads on one backbone."""
    config = default()
    config.model.kind = "multitask"
    return config


def fewshot() -> Config:
    """Ten pictures a class on a frozen backbone (give --config.init_from)."""
    config = default()
    config.length, config.batch_size = "30 epochs", 16
    config.model.kind, config.model.dropout = "fewshot", 0.5
    config.data.shots = 10
    config.optim.lr = 1e-4
    config.optim.groups = (Group("head", "^head/", lr=5.0), Group("backbone", ".*", frozen=True))
    config.stages = schedule(epochs=30, freeze_stages=False, augment="strong")
    for stage in config.stages:
        stage.train = ".*" if stage.train else ""
    return config


def unstaged() -> Config:
    """The default with nothing against the long tail and nothing staged."""
    config = default()
    config.optim.groups = (Group(),)
    config.stages = (Stage(label_smoothing=(0.05,), mixup=(0.2,)),)
    return config


def last_fifth(config: Config) -> None:
    """Chooses the best among epochs of the re-balanced stage: it gives up accuracy for the tail, so
    the best of all epochs by accuracy would lie before it."""
    config.eval.first, config.eval.metric = "81%", "macro_f1"


def deferred() -> Config:
    """LDAM-DRW on a cosine head: margins from the start, class weights in the last fifth."""
    config = unstaged()
    config.model.cosine = True
    config.data.balance = Balance(weights="effective", beta=0.9999, clip=(0.01, 100.0))
    margin = 0.5 * config.model.scale
    config.stages = (
        Stage(cosine=(1.0,), margin=(margin,), label_smoothing=(0.05,), mixup=(0.2,)),
        Stage(start="80%", class_weight=(1.0,)),
    )
    last_fifth(config)
    return config


def adjusted() -> Config:
    """Logit adjustment with tau 1."""
    config = unstaged()
    config.stages[0].tau = (1.0,)
    return config


def crt() -> Config:
    """Classifier re-training: the last fifth trains a fresh head on balanced classes."""
    config = unstaged()
    config.optim.groups = (Group("head", "^head/"), Group("rest", ".*"))
    config.stages = (
        *config.stages,
        Stage(
            start="80%",
            restart="head",
            train="head",
            sampler="balanced",
            mixup=(0.0,),
            lr=(10.0,),  # the curve has fallen to a tenth, but the head is new
        ),
    )
    last_fifth(config)
    return config


def small() -> Config:
    """CPU-sized default: plain cross entropy from scratch on `crop_disease_lt`, minutes on two
    cores."""
    return Config(
        length="12 epochs",
        batch_size=32,
        model=ClassifierSpec(backbone="resnet10_w32", dropout=0.1),
        data=Data(
            val_split="val",
            test_split="test",
            cache=96,
            cache_dir="build/leaves",
            # Mild: a few thousand steps from scratch learn less from harder pictures.
            full=Augment(
                area=(0.7, 1.0),
                vflip=0.5,
                warp=0.25,
                rotate=15.0,
                jitter=(0.2, 0.2, 0.1, 0.02),
                blur=0.0,
            ),
            light=Augment(vflip=0.2, warp=0.0, blur=0.0, colour=0.5, area=(0.9, 1.0)),
        ),
        loss=Loss(),
        optim=Optim(
            name="adamw",
            lr=3e-3,
            weight_decay=0.05,
            groups=groups(),
            warmup="1 epochs",
            min_lr=1e-5,
            clip=5.0,
            ema=0.99,
            ema_warmup=True,
        ),
        stages=(Stage(size=64, label_smoothing=(0.05,)),),
        eval=Eval(every="2 epochs", batch_size=64, taus=(0.5, 1.0), metric="macro_f1"),
        save=Save(every="10 epochs"),
        input=Input(threads=2),
    )


def leaves_staged() -> Config:
    """CPU-sized: weighted sampling for the first 30 %, class weights and the tail's focal loss
    later: the order of the guide, its epochs scaled to this length, nothing frozen."""
    config = small()
    config.stages = (
        Stage(size=64, label_smoothing=(0.05,), sampler="weighted", mixup=(0.4,), cutmix=(0.6,)),
        Stage(start="20%", lr=(1.2,), mixup=(0.2,), cutmix=(0.0,)),
        Stage(start="24%", label_smoothing=(0.02,), mixup=(0.1,)),
        Stage(start="30%", sampler="natural", mixup=(0.0,), class_weight=(1.0,)),
        Stage(start="36%", label_smoothing=(0.0,), focal=(1.0,)),
        Stage(start="50%", lr=(0.48,)),
        Stage(start="80%", augment="light"),
    )
    return config


def leaves_deferred() -> Config:
    """CPU-sized: natural data first, classes drawn by weight in the last fifth."""
    config = small()
    config.stages = (*config.stages, Stage(start="80%", sampler="weighted", class_weight=(0.0,)))
    return config


def leaves_adjusted() -> Config:
    """CPU-sized: logit adjustment in the loss."""
    config = small()
    config.stages[0].tau = (1.0,)
    return config


def tiny() -> Config:
    """Two steps of a small network."""
    config = small()
    config.length = "2 steps"
    config.batch_size = 4
    config.model.backbone = "resnet10_w8"
    config.data.cache, config.data.cache_dir = 0, ""
    config.optim.warmup = "0"
    config.stages = (Stage(size=32, label_smoothing=(0.05,)),)
    config.eval = Eval(every="2 steps", batch_size=4)
    config.save = Save(every="1 steps", log_every=1)
    return config


VARIANTS = {
    "": default,
    "advanced": advanced,
    "multitask": multitask,
    "fewshot": fewshot,
    "deferred": deferred,
    "adjusted": adjusted,
    "crt": crt,
    "leaves": small,
    "leaves_staged": leaves_staged,
    "leaves_deferred": leaves_deferred,
    "leaves_adjusted": leaves_adjusted,
    "tiny": tiny,
}


def get_config(variant: str = "") -> Config:
    """The recipe of a variant. Raises UserError: there is no such variant."""
    return variant_of(VARIANTS, variant, __file__)
