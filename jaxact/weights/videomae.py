"""Names of VideoMAE's fine-tuned ViT in the code bases that publish weights.

Sources: MCG-NJU/VideoMAE, open-mmlab/mmaction2 (whose names OpenTAD's `_my` files have), Hugging
Face transformers before and after its biases became those of linear layers. Targets are those of
`models.videomae.VideoMAEClassifier` and of a `tasks.detection.network.Detector` with a backbone.
How many heads attention has is never read from a file: some published configs have it wrong.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.weights import convert
from jaxact.weights.convert import Report
from jaxact.weights.table import Rule, Table, Tensors, dense, kernel, layer_norm


def tubes(x: np.ndarray) -> np.ndarray:
    """The kernel [c, 3, 2, p, p] of a convolution without overlap -> [2 * p * p * 3, c]."""
    return kernel(x).reshape(-1, x.shape[0])


def joined(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Three matrices [o, i] -> one [i, 3 * o]."""
    return np.concatenate([q, k, v]).T


# Our name | MCG-NJU | MMAction2 | Hugging Face, after the prefix of the network or of the block.
_PATCH = ("patch_embed.proj", "patch_embed.projection", "embeddings.patch_embeddings.projection")
_BLOCK = ("blocks.{i}", "blocks.{i}", "encoder.layer.{i}")
_NORMS = (
    ("norm1", "norm1", "norm1", "layernorm_before"),
    ("norm2", "norm2", "norm2", "layernorm_after"),
)
_LAYERS = (
    ("attn/proj", "attn.proj", "attn.proj", "attention.output.dense"),
    ("mlp/fc1", "mlp.fc1", "mlp.layers.0.0", "intermediate.dense"),
    ("mlp/fc2", "mlp.fc2", "mlp.layers.1", "output.dense"),
)
MCG, MMACTION2, HUGGING_FACE = 1, 2, 3


def backbone(naming: int, prefix: str = "", linear_biases: bool = False) -> tuple[Rule, ...]:
    """The rules of the network without `fc_norm`; `linear_biases` is Hugging Face's later form."""
    patch, block = prefix + _PATCH[naming - 1], f"{prefix}{_BLOCK[naming - 1]}."
    ours = "backbone/block{i}/"
    rules = [*dense(patch, "backbone/embed/projection", tubes)]
    for row in _NORMS:
        rules += layer_norm(block + row[naming], ours + row[0])
    for row in _LAYERS:
        rules += dense(block + row[naming], ours + row[0])
    if naming == HUGGING_FACE:
        attention = f"{block}attention.attention."
        names = tuple(f"{attention}{part}.weight" for part in ("query", "key", "value"))
        rules.append(Rule(names, f"params/{ours}attn/qkv/kernel", joined))
        biases = ("query.bias", "value.bias") if linear_biases else ("q_bias", "v_bias")
    else:
        attention = f"{block}attn."
        rules.append(Rule((f"{attention}qkv.weight",), f"params/{ours}attn/qkv/kernel", kernel))
        biases = ("q_bias", "v_bias")
    for name, bias in zip(("q_bias", "v_bias"), biases, strict=True):
        rules.append(Rule((f"{attention}{bias}",), f"params/{ours}attn/{name}"))
    return tuple(rules)


def part(path: str) -> str:
    """The network, its adapters, the classifier, a detector's projection, neck, head, classes."""
    names = path.split("/")
    if names[0] != "params":
        return names[0]
    if names[1] == "backbone":
        return "adapters" if names[2].startswith(("adapter", "ladder")) else "backbone"
    return "head/cls" if names[1:3] == ["head", "cls"] else names[1]


# The fixed position table, and key biases, which `check` makes sure are zero.
IGNORED = (
    r"(.*\.)?pos_embed",
    r"(.*\.)?position_embeddings",
    r".*\.attention\.attention\.key\.bias",
)
table = functools.partial(Table, part=part, heads=("classifier", "head/cls"), ignore=IGNORED)


def _named(name: str, naming: int, prefix: str, norm: str, classifier: str, **more: bool) -> Table:
    rules = (
        *backbone(naming, prefix, **more),
        *layer_norm(norm, "backbone/fc_norm"),
        *dense(classifier, "classifier"),
    )
    return table(name=name, rules=rules)


TABLES = (
    _named("MCG-NJU VideoMAE", MCG, "", "fc_norm", "head"),
    _named("MMAction2 VideoMAE", MMACTION2, "backbone.", "backbone.fc_norm", "cls_head.fc_cls"),
    _named("Hugging Face VideoMAE", HUGGING_FACE, "videomae.", "fc_norm", "classifier"),
    _named(
        "Hugging Face VideoMAE, linear biases",
        *(HUGGING_FACE, "videomae.", "fc_norm", "classifier"),
        linear_biases=True,
    ),
)


def check(tensors: Tensors, source: str) -> None:
    """Makes sure that what is ignored has no meaning.

    Raises: UserError for a learned position table, or a key bias that is not zero.
    """
    for key, value in tensors.items():
        if key.endswith(("pos_embed", "position_embeddings")):
            first = np.asarray(value).reshape(-1, value.shape[-1])[0].astype(np.float32)
            if not np.array_equal(first, np.arange(len(first)) % 2):
                raise UserError(
                    f"{source}: {key!r} is not the sine table of VideoMAE; networks with learned "
                    "positions are not supported"
                )
        if key.endswith(".attention.attention.key.bias") and np.any(np.asarray(value) != 0):
            raise UserError(f"{source}: {key!r} is not zero; VideoMAE's keys have no bias")


def load(
    path: str | Path,
    target: Mapping[str, Any],
    candidates: Sequence[Table] = TABLES,
    **options: Any,
) -> tuple[dict[str, Any], Report]:
    """`convert.load` with these tables, after `check`: (variables, report).

    By default whole parts (the classifier, the adapters, a detector) may be absent on either side,
    the network may not.

    Raises: UserError, one line, as `convert.load` and `check` do.
    """

    def tables(tensors: Tensors, target: Mapping[str, Any]) -> Sequence[Table]:
        check(tensors, str(path))
        return candidates

    return convert.load(path, target, tables, **options)
