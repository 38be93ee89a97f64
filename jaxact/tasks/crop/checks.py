"""Ranges of the fields and what goes together."""

from typing import Any

from jaxact import config as schema
from jaxact.data import images
from jaxact.models.specs import CLASSIFIER_KINDS
from jaxact.ops import longtail, mixing
from jaxact.tasks.crop import config as crop_config
from jaxact.tasks.crop.config import Augment, Config, Views


def validate_data(config: Any) -> None:
    """Checks the ranges and choices of `config.data`. Raises: UserError naming the field."""
    data, require, one_of = config.data, schema.require, schema.one_of
    one_of(config, "data.diseases", "agnostic", "specific")
    one_of(config, "data.missing", "error", "allow")
    one_of(config, "data.interpolation", *images.FILTERS)
    one_of(config, "data.balance.weights", "none", "sqrt", "inverse", "effective")
    for field in ("classes", "shots", "shots_seed", "test_size", "cache"):
        require(getattr(data, field) >= 0, f"data.{field}", getattr(data, field), "0 or more")
    require(data.gap == 0 or data.gap >= 1, "data.gap", data.gap, "0 (off), or 1 and more")
    require(0 <= data.near <= 16, "data.near", data.near, "0 to 16 bits")
    require(
        bool(data.cache) == bool(data.cache_dir),
        "data.cache_dir",
        data.cache_dir,
        "a folder if data.cache is set, nothing else",
    )
    for field in ("mean", "std"):
        found = getattr(data, field)
        require(len(found) == 3, f"data.{field}", found, "3 numbers")
    require(min(data.std) > 0, "data.std", data.std, "3 numbers above 0")
    balance = data.balance
    require(0 <= balance.beta < 1, "data.balance.beta", balance.beta, "0 to below 1")
    require(0 <= balance.power <= 2, "data.balance.power", balance.power, "0 to 2")
    require(
        len(balance.clip) == 2 and 0 < balance.clip[0] <= balance.clip[1],
        "data.balance.clip",
        balance.clip,
        "2 numbers above 0, the smaller first",
    )
    sizes = [data.test_size, *schema.carried(config.stages, "size")]
    require(
        data.cache == 0 or data.cache >= max(sizes),
        "data.cache",
        data.cache,
        f"0 (off), or at least the largest size used, {max(sizes)} px",
    )
    for name in ("val", "test"):
        _validate_views(getattr(data, name), f"data.{name}", data.keep_ratio)
    for name in ("full", "light", "strong"):
        _validate_augment(getattr(data, name), f"data.{name}")


def _validate_views(views: Views, field: str, keep_ratio: bool) -> None:
    require = schema.require
    require(views.crops in (1, 5), f"{field}.crops", views.crops, "1 or 5")
    scales = views.scales
    require(
        len(scales) > 0 and min(scales) >= 1, f"{field}.scales", scales, "one or more, from 1 on"
    )
    require(
        views.crops == 1 or keep_ratio or min(scales) > 1,
        f"{field}.scales",
        scales,
        "above 1 with 5 crops: the corners of the whole picture are the whole picture",
    )


def _validate_augment(augment: Augment, field: str) -> None:
    require = schema.require
    for name in ("hflip", "vflip", "warp", "grid", "elastic", "colour", "blur", "erase"):
        found = getattr(augment, name)
        require(0 <= found <= 1, f"{field}.{name}", found, "probabilities, 0 to 1")
    for name in ("shift", "scale"):
        found = getattr(augment, name)
        require(0 <= found <= 0.5, f"{field}.{name}", found, "shares, 0 to 0.5")
    require(0 <= augment.rotate <= 180, f"{field}.rotate", augment.rotate, "0 to 180 degrees")
    for name, low, high in (("area", 0.01, 1), ("erase_area", 0.001, 1), ("aspect", 0.1, 10)):
        found = getattr(augment, name)
        require(
            len(found) == 2 and low <= found[0] <= found[1] <= high,
            f"{field}.{name}",
            found,
            f"2 numbers, the smaller first, {low} to {high}",
        )
    jitter = augment.jitter
    require(
        len(jitter) == 4 and min(jitter) >= 0 and max(jitter[:3]) <= 1 and jitter[3] <= 0.5,
        f"{field}.jitter",
        jitter,
        "4 numbers: brightness, contrast, saturation (0 to 1) and hue (0 to 0.5)",
    )
    require(0 <= augment.operations <= 8, f"{field}.operations", augment.operations, "0 to 8")
    require(0 <= augment.magnitude <= 10, f"{field}.magnitude", augment.magnitude, "0 to 10")


def validate(config: Config) -> None:
    """Checks ranges, choices and what goes together. Raises: UserError naming the field."""
    one_of, require = schema.one_of, schema.require
    model, loss = config.model, config.loss
    validate_data(config)
    micro = config.batch_size // config.optim.accumulate
    mixing.check_group(config.mixing_group, micro, "mixing_group")
    crop_config.backbone(model.backbone)
    one_of(config, "model.kind", *CLASSIFIER_KINDS)
    one_of(config, "loss.kind", "ce", "focal")
    one_of(config, "loss.tail_form", "per_sample", "sum_of_means")
    one_of(config, "loss.center_norm", *longtail.CENTER_NORMS)
    require(0 <= model.dropout < 1, "model.dropout", model.dropout, "0 to below 1")
    require(0 <= model.drop_path < 1, "model.drop_path", model.drop_path, "0 to below 1")
    require(model.hidden >= 1, "model.hidden", model.hidden, "1 or more")
    require(model.scale > 0, "model.scale", model.scale, "above 0")
    require(loss.gamma >= 0, "loss.gamma", loss.gamma, "0 or more")
    require(0 <= loss.tail <= 1, "loss.tail", loss.tail, "a share, 0 to 1")
    require(
        len(loss.weights) == 4 and min(loss.weights) >= 0,
        "loss.weights",
        loss.weights,
        "4 numbers from 0: label, crop, disease, severity",
    )
    dynamic = loss.dynamic
    require(0 <= dynamic < 1, "loss.dynamic", dynamic, "0 (off) to below 1, a decay for each step")
    require(
        not dynamic or model.kind == "multitask",
        "loss.dynamic",
        dynamic,
        "0 but for config.model.kind=multitask",
    )
    for field in ("cosine", "center"):
        held = getattr(model, field)
        require(
            not held or model.kind == "baseline", f"model.{field}", held, "False but for baseline"
        )
        for index, stage in enumerate(config.stages):
            value = getattr(stage, field)
            require(
                held or max(value, default=0) == 0,
                f"stages[{index}].{field}",
                value,
                f"0 without config.model.{field}",
            )
    if loss.kind == "focal":
        for index, stage in enumerate(config.stages):
            for field in ("label_smoothing", "margin"):
                value = getattr(stage, field)
                where = f"stages[{index}].{field}"
                allowed = f"0 with config.loss.kind=focal, which has none (--config.{where}=0.0)"
                require(max(value, default=0) == 0, where, value, allowed)
    for index, stage in enumerate(config.stages):
        for field in ("label_smoothing", "mixup_prob", "cutmix_prob", "class_weight"):
            value = getattr(stage, field)
            require(all(0 <= x <= 1 for x in value), f"stages[{index}].{field}", value, "0 to 1")
        for field in ("mixup", "cutmix", "tau", "margin", "focal", "cosine", "center", "lr"):
            value = getattr(stage, field)
            require(all(x >= 0 for x in value), f"stages[{index}].{field}", value, "0 or more")
