"""Names of OpenTAD's AdaTAD checkpoints: adapted VideoMAE, ActionFormer's projection, neck, head.

Targets are those of `tasks.detection.network.Detector`. A checkpoint holds the last weights
("state_dict") and their moving average ("state_dict_ema"), which is what OpenTAD evaluates.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxact.config import UserError
from jaxact.weights import reader, videomae
from jaxact.weights.convert import Report
from jaxact.weights.table import Rule, Table, conv, dense, layer_norm, per_channel, pointwise

_VIT = "backbone.model.backbone."
AVERAGE = "state_dict_ema"


def _adapter(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule((f"{source}.gamma",), f"params/{target}/gamma"),
        *dense(f"{source}.down_proj", f"{target}/down"),
        *dense(f"{source}.dwconv", f"{target}/depthwise"),
        *dense(f"{source}.conv", f"{target}/mix", pointwise(1)),
        *dense(f"{source}.up_proj", f"{target}/up"),
    )


def _conv_norm(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *conv(f"{source}.conv", f"{target}/conv"),
        *layer_norm(f"{source}.norm", f"{target}/norm"),
    )


def _transformer(source: str, target: str) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for name in ("ln1", "ln2"):
        rules += layer_norm(f"{source}.{name}", f"{target}/{name}")
    for name in ("query", "key", "value"):
        theirs, ours = f"{source}.attn.{name}", f"{target}/attn/{name}"
        rules += conv(f"{theirs}_conv.conv", f"{ours}_conv")
        rules += layer_norm(f"{theirs}_norm", f"{ours}_norm")
        rules += dense(theirs, ours, pointwise(1))
    rules += dense(f"{source}.attn.proj", f"{target}/attn/proj", pointwise(1))
    rules += dense(f"{source}.mlp.0", f"{target}/fc1", pointwise(1))
    rules += dense(f"{source}.mlp.3", f"{target}/fc2", pointwise(1))
    for theirs, ours in (("drop_path_attn", "attn_scale"), ("drop_path_mlp", "mlp_scale")):
        rules.append(Rule((f"{source}.{theirs}.scale",), f"params/{target}/{ours}", per_channel))
    return tuple(rules)


DETECTOR = (
    *_conv_norm("projection.embed.{i}", "projection/embed{i}"),
    *_transformer("projection.stem.{i}", "projection/stem{i}"),
    *_transformer("projection.branch.{i}", "projection/branch{i}"),
    *layer_norm("neck.fpn_norms.{i}", "neck/norm{i}"),
    *_conv_norm("rpn_head.cls_convs.{i}", "head/cls_tower{i}"),
    *_conv_norm("rpn_head.reg_convs.{i}", "head/reg_tower{i}"),
    *dense("rpn_head.cls_head", "head/cls"),
    *dense("rpn_head.reg_head", "head/reg"),
    Rule(("rpn_head.scale.{i}.scale",), "params/head/scale{i}"),
    Rule(("rpn_head.loss_normalizer",), "normaliser/positives"),
)
ADATAD = videomae.table(
    name="OpenTAD AdaTAD",
    rules=(
        *videomae.backbone(videomae.MMACTION2, _VIT),
        *layer_norm(f"{_VIT}fc_norm", "backbone/fc_norm"),
        *_adapter(f"{_VIT}blocks.{{i}}.adapter", "backbone/adapter{i}"),
        *_adapter(f"{_VIT}ladders.adapters.{{i}}", "backbone/ladder{i}"),
        *DETECTOR,
    ),
    ignore=(*videomae.IGNORED, r"backbone\.model\.data_preprocessor\.(mean|std)"),
)
TABLES: tuple[Table, ...] = (*videomae.TABLES, ADATAD)


def load(
    path: str | Path, target: Mapping[str, Any], weights: str = "ema", **options: Any
) -> tuple[dict[str, Any], Report]:
    """Variables of a Detector from an AdaTAD checkpoint or from VideoMAE's weights, and the report.

    Args:
      weights: which of an AdaTAD checkpoint's two: "ema" or "raw". VideoMAE files have but one.
      options: as in `videomae.load`.

    Raises: UserError, one line, as `videomae.load` does.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f"weights {weights!r} of {path}: choose ema or raw")
    averaged = weights == "ema" and AVERAGE in reader.entries(path)
    container = AVERAGE if averaged else ""
    variables, report = videomae.load(path, target, TABLES, container=container, **options)
    if averaged:
        report.notes.append(f"the moving average of the weights ({AVERAGE})")
    return variables, report
