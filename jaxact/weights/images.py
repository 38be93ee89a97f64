"""Names of ResNet, EfficientNet and ConvNeXt in timm, torchvision and Hugging Face transformers.

All targets are a `models.backbones.Backbone` under `params/backbone` and, where the target has it,
a linear classifier `params/head/label`. timm and torchvision name a ResNet alike.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxact.config import UserError
from jaxact.weights import convert
from jaxact.weights.pixels import Preprocessing, preprocessing
from jaxact.weights.reader import read
from jaxact.weights.table import (
    Rule,
    Table,
    Tensors,
    batch_norm,
    conv,
    dense,
    detect,
    flatten,
    layer_norm,
    per_channel,
    pointwise,
    same,
)

ROOT, HEAD = "backbone", "head/label"

_table = functools.partial(Table, heads=("head/.*",))


_BLOCK = "layer{s}/block{j}/"
_RESNET = (
    ("stem/conv", "stem/bn"),
    *((f"{_BLOCK}conv{n}", f"{_BLOCK}bn{n}") for n in (1, 2, 3)),
    (f"{_BLOCK}shortcut", f"{_BLOCK}shortcut_bn"),
)


def _resnet(*modules: tuple[str, str]) -> tuple[Rule, ...]:
    """A ResNet of any depth from its (convolution, BN) modules: the stem's, and those of a block.

    The rules of a part that a network lacks match nothing.
    """
    rules: list[Rule] = []
    for (kernel, norm), (target, target_norm) in zip(modules, _RESNET, strict=True):
        rules += conv(kernel, f"{ROOT}/{target}")
        rules += batch_norm(norm, f"{ROOT}/{target_norm}")
    return tuple(rules)


def torchvision_resnet(stem: str, stem_norm: str, block: str) -> tuple[Rule, ...]:
    """A ResNet without its classifier: the modules of its stem, and what its blocks begin with."""
    inner = ((f"{block}conv{n}", f"{block}bn{n}") for n in (1, 2, 3))
    return _resnet((stem, stem_norm), *inner, (f"{block}downsample.0", f"{block}downsample.1"))


def _hugging_face_resnet(prefix: str) -> tuple[Rule, ...]:
    inner = ("layer.0", "layer.1", "layer.2", "shortcut")
    block = f"{prefix}encoder.stages.{{s-1}}.layers.{{j}}."
    modules = (f"{prefix}embedder.embedder", *(block + name for name in inner))
    return _resnet(*((f"{module}.convolution", f"{module}.normalization") for module in modules))


# Our module | timm | torchvision | Hugging Face, within a block
_FIRST_BLOCK = (  # without expansion
    ("filter", "conv_dw", "block.0.0", "depthwise_conv.depthwise_conv"),
    ("filter_bn", "bn1", "block.0.1", "depthwise_conv.depthwise_norm"),
    ("se/reduce", "se.conv_reduce", "block.1.fc1", "squeeze_excite.reduce"),
    ("se/expand", "se.conv_expand", "block.1.fc2", "squeeze_excite.expand"),
    ("project", "conv_pw", "block.2.0", "projection.project_conv"),
    ("project_bn", "bn2", "block.2.1", "projection.project_bn"),
)
_OTHER_BLOCK = (
    ("expand", "conv_pw", "block.0.0", "expansion.expand_conv"),
    ("expand_bn", "bn1", "block.0.1", "expansion.expand_bn"),
    ("filter", "conv_dw", "block.1.0", "depthwise_conv.depthwise_conv"),
    ("filter_bn", "bn2", "block.1.1", "depthwise_conv.depthwise_norm"),
    ("se/reduce", "se.conv_reduce", "block.2.fc1", "squeeze_excite.reduce"),
    ("se/expand", "se.conv_expand", "block.2.fc2", "squeeze_excite.expand"),
    ("project", "conv_pwl", "block.3.0", "projection.project_conv"),
    ("project_bn", "bn3", "block.3.1", "projection.project_bn"),
)
_ENDS = (
    ("stem/conv", "conv_stem", "features.0.0", "embeddings.convolution"),
    ("stem/bn", "bn1", "features.0.1", "embeddings.batchnorm"),
    ("head/conv", "conv_head", "features.8.0", "encoder.top_conv"),
    ("head/bn", "bn2", "features.8.1", "encoder.top_bn"),
)
_TIMM, _TORCHVISION, _HF = 1, 2, 3


def _module(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of one module of EfficientNet, by the kind its name tells."""
    if target.endswith("bn"):
        return batch_norm(source, target)
    if "/se/" in target:
        return dense(source, target, pointwise(2))
    return conv(source, target)


def _efficientnet(naming: int, repeats: Mapping[int, int], prefix: str = "") -> tuple[Rule, ...]:
    """EfficientNet; `repeats`: blocks of each stage, by which Hugging Face's flat numbers are told.

    Stage 0, whose blocks do not expand, comes first: its names are those of other layers elsewhere.
    """
    # (source of a block, our name of it, its rows)
    blocks: list[tuple[str, str, tuple[tuple[str, ...], ...]]] = []
    if naming == _HF:
        flat = 0
        for stage in sorted(repeats):
            for number in range(repeats[stage]):
                source, target = f"{prefix}encoder.blocks.{flat}.", f"blocks{stage}/block{number}/"
                blocks.append((source, target, _OTHER_BLOCK if stage else _FIRST_BLOCK))
                flat += 1
    else:
        first, other = (
            ("blocks.0.{j}.", "blocks.{s}.{j}.")
            if naming == _TIMM
            else ("features.1.{j}.", "features.{s+1}.{j}.")
        )
        blocks.append((first, "blocks0/block{j}/", _FIRST_BLOCK))
        blocks.append((other, "blocks{s}/block{j}/", _OTHER_BLOCK))
    rules: list[Rule] = []
    for source, target, rows in blocks:
        for row in rows:
            rules += _module(source + row[naming], f"{ROOT}/{target}{row[0]}")
    for row in _ENDS:
        rules += _module(prefix + row[naming], f"{ROOT}/{row[0]}")
    head = "classifier.1" if naming == _TORCHVISION else "classifier"
    return (*rules, *dense(head, HEAD))


# A block of our stage s; its gamma, filter, norm, fc1, fc2; the two modules that halve the map; the
# stem's two, the last norm, the classifier.
_CONVNEXT = {
    _TIMM: (
        "stages.{s}.blocks.{j}.",
        ("gamma", "conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
        ("stages.{s}.downsample.0", "stages.{s}.downsample.1"),
        ("stem.0", "stem.1", "head.norm", "head.fc"),
    ),
    _TORCHVISION: (
        "features.{2s+1}.{j}.",
        ("layer_scale", "block.0", "block.2", "block.3", "block.5"),
        ("features.{2s}.0", "features.{2s}.1"),
        ("features.0.0", "features.0.1", "classifier.0", "classifier.2"),
    ),
    _HF: (
        "encoder.stages.{s}.layers.{j}.",
        ("layer_scale_parameter", "dwconv", "layernorm", "pwconv1", "pwconv2"),
        (
            "encoder.stages.{s}.downsampling_layer.0",
            "encoder.stages.{s}.downsampling_layer.1",
        ),
        ("embeddings.patch_embeddings", "embeddings.layernorm", "layernorm", "classifier"),
    ),
}


def _convnext(naming: int, prefix: str = "") -> tuple[Rule, ...]:
    """ConvNeXt with four stages of any depth."""
    block, (gamma, depthwise, norm, fc1, fc2), halving, ends = _CONVNEXT[naming]
    stem, stem_norm, end = (prefix + name for name in ends[:3])
    rules: list[Rule] = []
    for stage in range(4):  # written out: torchvision counts stages by twos

        def place(template: str, stage: int = stage) -> str:
            numbers = {"{s}": stage, "{2s}": 2 * stage, "{2s+1}": 2 * stage + 1}
            for field, number in numbers.items():
                template = template.replace(field, str(number))
            return prefix + template

        at, here = f"{ROOT}/stage{stage}/block{{j}}/", place(block)
        transform = per_channel if naming == _TORCHVISION else same
        rules.append(Rule((here + gamma,), f"params/{at}gamma", transform))
        rules += dense(here + depthwise, at + "filter")
        rules += layer_norm(here + norm, at + "norm")
        rules += dense(here + fc1, at + "fc1")
        rules += dense(here + fc2, at + "fc2")
        if stage > 0:
            rules += layer_norm(place(halving[0]), f"{ROOT}/stage{stage}/down_norm")
            rules += dense(place(halving[1]), f"{ROOT}/stage{stage}/down")
    rules += dense(stem, f"{ROOT}/stem/conv")
    rules += layer_norm(stem_norm, f"{ROOT}/stem/norm")
    rules += layer_norm(end, f"{ROOT}/norm")
    return (*rules, *dense(ends[3], HEAD))


def tables(tensors: Tensors, target: Mapping[str, Any]) -> Sequence[Table]:
    """Every table for the target's family, told by its paths.

    Hugging Face's bare models (without a classifier) leave the model's name out of their keys.
    """
    paths = [path for path in flatten(target) if path.startswith(f"params/{ROOT}/")]
    pattern = rf"params/{ROOT}/(layer|blocks|stage)(\d+)/block(\d+)/"
    blocks = [match for path in paths if (match := re.match(pattern, path))]
    family = blocks[0][1] if blocks else ""
    if family == "layer":
        theirs = torchvision_resnet("conv1", "bn1", "layer{s}.{j}.")
        hf = _hugging_face_resnet(_prefix(tensors, "resnet."))
        return (
            _table(name="timm and torchvision ResNet", rules=(*theirs, *dense("fc", HEAD))),
            _table(name="Hugging Face ResNet", rules=(*hf, *dense("classifier.1", HEAD))),
        )
    if family == "blocks":
        repeats: dict[int, int] = {}
        for match in blocks:
            stage, number = int(match[2]), int(match[3])
            repeats[stage] = max(repeats.get(stage, 0), number + 1)
        start = _prefix(tensors, "efficientnet.")
        return (
            _table(name="timm EfficientNet", rules=_efficientnet(_TIMM, repeats)),
            _table(name="torchvision EfficientNet", rules=_efficientnet(_TORCHVISION, repeats)),
            _table(name="Hugging Face EfficientNet", rules=_efficientnet(_HF, repeats, start)),
        )
    if family == "stage":
        start = _prefix(tensors, "convnext.")
        return (
            _table(name="timm ConvNeXt", rules=_convnext(_TIMM)),
            _table(name="torchvision ConvNeXt", rules=_convnext(_TORCHVISION)),
            _table(name="Hugging Face ConvNeXt", rules=_convnext(_HF, start)),
        )
    raise UserError("weights: the model has no ResNet, EfficientNet or ConvNeXt under 'backbone'")


def _prefix(tensors: Tensors, name: str) -> str:
    return name if any(key.startswith(name) for key in tensors) else ""


def load(
    path: str | Path, variables: Mapping[str, Any], kind: str, *, strict: bool = False
) -> tuple[dict[str, Any], str, Preprocessing]:
    """(variables with the file's weights, a report, how the file wants its pixels).

    Args:
      path: .pth, .pt, .bin or .safetensors.
      variables: {"params": {"backbone": ..., "head": {"label": ...}}, "batch_stats": ...}; further
        heads keep their values.
      kind: the backbone's name; an EfficientNet must be of the form its weights were trained in.
      strict: as in `convert.load`.

    Raises: UserError naming the file and the keys left over, or the kind these weights need.
    """
    tensors = read(path)
    table = detect(tensors, tables(tensors, variables), str(path))
    pixels = preprocessing(path)
    _check_form(path, table, kind, pixels.architecture)
    loaded, report = convert.apply(table, tensors, variables, strict=strict, source=str(path))
    report.notes.append(f"pixels: {pixels}")
    return loaded, report.text(), pixels


def _check_form(path: str | Path, table: Table, kind: str, architecture: str) -> None:
    """TensorFlow's EfficientNet pads and normalises otherwise, under the same names and shapes."""
    if "efficientnet" not in kind:
        return
    theirs = table.name.startswith("Hugging Face") or architecture.startswith("tf_")
    ours = kind.startswith("tf_")
    if theirs and not ours:
        raise UserError(
            f"{path}: weights in TensorFlow's form (asymmetric padding, BN eps 1e-3); "
            f"they need backbone 'tf_{kind}', not {kind!r}"
        )
    if ours and (table.name.startswith("torchvision") or (architecture and not theirs)):
        raise UserError(
            f"{path}: weights in PyTorch's form (symmetric padding, BN eps 1e-5); "
            f"they need backbone {kind.removeprefix('tf_')!r}, not {kind!r}"
        )
