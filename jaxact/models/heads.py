"""Classification heads: pool the feature maps of one or two streams, classify each.

Sources: MMAction2 (mean, dropout, linear), X3D (arXiv 2004.04730; SlowFast `head_helper.py`), PCAN
(AAAI 2025; 9527haoyunlai/PCANetwork `rgbpose_head.py`) for the prototypes.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import layers, sequence
from jaxact.ops import prototypes as prototypes_op

KINDS = ("linear", "x3d")
POOLS = ("mean", "logits", "softmax")


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """PCAN's option: class prototypes that shape training and correct predictions.

    The defaults are the published head's numbers, its defects apart (`tree_offset`, `diversity`
    reproduce two of them on request).
    """

    coarse_map: tuple[int, ...]  # coarse class of each fine class
    fine: int = 256  # size of the vectors compared with fine prototypes
    coarse: int = 128  # the same for coarse prototypes
    momentum: float = 0.9  # of the prototypes
    penalty: float = 0.125
    temperature: float = 0.125
    # Factors of the scores: coarse right and fine wrong, coarse wrong and fine right, both wrong.
    miss_factors: tuple[float, float, float] = (1.0, 0.1, 0.5)
    rectify: tuple[float, float] = (5.0, 1.0)  # rgb, pose: cosines added to the logits in eval
    weight: float = 0.2  # of the contrast terms
    tree_weight: float = 1.0
    diversity: bool = False  # adds a term that has no gradient, as the original does
    tree_offset: int = -1  # first fine node of the tree; -1 = after the coarse nodes

    def __post_init__(self):
        if not self.coarse_map or min(self.coarse_map) < 0:
            raise UserError(
                f"prototypes coarse_map {self.coarse_map!r}: one coarse class >= 0 for each class"
            )


class Head(nn.Module):
    """Logits of each stream from its feature map.

    features: dict of f32[b, t, h, w, c] by stream ("rgb", "pose"). kind: "linear" = mean, dropout,
    linear; "x3d" = lin5 to 2048 and ReLU before the dropout. pool: "mean" = over the whole map
    (MMAction2); "logits" or "softmax" = over a sliding `window` (t, h, w; 0 = the whole axis), then
    the mean of the positions' logits (PyTorchVideo) or probabilities (SlowFast; returned as their
    log, so softmax gives them back). coarse_classes > 0 adds a coarse linear layer a stream, on the
    same pooled, dropped features.

    Returns f32 logits by name: "rgb", "pose", "rgb_coarse", "pose_coarse"; with `prototypes`, in
    training with labels i32[b], also the scalars "prototype" and "tree", ready to be added to the
    loss. `mask` bool[b] excludes padding from them. coarse_labels default to the coarse map's.
    """

    classes: int
    coarse_classes: int = 0
    kind: str = "linear"
    dropout: tuple[float, float] = (0.5, 0.5)  # rgb, pose
    pool: str = "mean"
    window: tuple[int, int, int] = (0, 0, 0)
    prototypes: Prototypes | None = None
    dtype: jnp.dtype = jnp.float32
    deviation: float = 0.01  # of the classifiers' first weights

    def __post_init__(self):
        for field, allowed in (("kind", KINDS), ("pool", POOLS)):
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"head {field} {getattr(self, field)!r}: choose one of {', '.join(allowed)}"
                )
        if self.prototypes is not None:
            wanted = self.prototypes.coarse_map
            if self.coarse_classes < 1 or self.pool != "mean" or self.kind != "linear":
                raise UserError("prototypes need coarse_classes > 0, pool mean and a linear head")
            if len(wanted) != self.classes or max(wanted) >= self.coarse_classes:
                raise UserError(
                    f"prototypes coarse_map has {len(wanted)} entries up to {max(wanted)}: needs "
                    f"one of 0..{self.coarse_classes - 1} for each of {self.classes} classes"
                )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        features: dict[str, jax.Array],
        train: bool,
        labels: jax.Array | None = None,
        coarse_labels: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        outputs, terms = {}, []
        for stream, x in features.items():
            pooled = self._pooled(x)  # b, c or b, t', h', w', c
            if self.kind == "x3d":
                pooled = nn.relu(
                    nn.Dense(
                        2048,
                        use_bias=False,
                        dtype=self.dtype,
                        kernel_init=layers.he_normal,
                        name=f"{stream}_lin5",
                    )(pooled)
                )
            rate = self.dropout[0 if stream == "rgb" else 1]
            dropped = nn.Dropout(rate, deterministic=not train, name=f"{stream}_drop")(pooled)
            # Classifiers are small: f32 here keeps the logits exact for a few operations.
            classify = {stream: self.classes}
            if self.coarse_classes:
                classify[f"{stream}_coarse"] = self.coarse_classes
            for name, count in classify.items():
                logits = nn.Dense(
                    count, dtype=wide, kernel_init=nn.initializers.normal(self.deviation), name=name
                )(dropped)
                outputs[name] = self._averaged(logits)
            if self.prototypes is not None:
                if not train or labels is None:
                    correction = self._corrected(stream, dropped, self.prototypes)
                    outputs[stream] = outputs[stream] + (0 if train else correction)
                    continue
                real = jnp.ones(labels.shape, bool) if mask is None else mask
                if coarse_labels is None:
                    coarse_labels = jnp.asarray(self.prototypes.coarse_map)[labels]
                both = {"fine": labels, "coarse": coarse_labels}
                terms.append(self._terms(stream, x, outputs, both, real, self.prototypes))
        if terms:
            contrast, trees = zip(*terms, strict=True)
            outputs |= {"prototype": jnp.stack(contrast).sum(), "tree": jnp.stack(trees).sum()}
        return outputs

    def _pooled(self, x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        if self.pool == "mean":
            return x.mean((1, 2, 3), dtype=wide)
        window = [n or size for n, size in zip(self.window, x.shape[1:4], strict=True)]
        if any(n > size for n, size in zip(window, x.shape[1:4], strict=True)):
            raise UserError(
                f"head window {tuple(window)} (t, h, w) exceeds the feature map {x.shape[1:4]}: "
                "use a larger clip or 0 for the whole axis"
            )
        total = jax.lax.reduce_window(
            x.astype(wide), jnp.zeros((), wide), jax.lax.add, (1, *window, 1), (1,) * 5, "VALID"
        )
        return total / math.prod(window)

    def _averaged(self, logits: jax.Array) -> jax.Array:
        if self.pool == "mean":
            return logits
        if self.pool == "logits":
            return logits.mean((1, 2, 3))
        positions = math.prod(logits.shape[1:4])
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), (1, 2, 3)) - math.log(positions)

    def _compared(self, stream: str, width: int, spec: Prototypes) -> tuple[dict, dict]:
        """The stream's projections of c = `width` and its prototypes, by level (fine, coarse)."""

        def draw(size: int, count: int) -> jax.Array:
            return jax.random.normal(self.make_rng("params"), (size, count), jnp.float32)

        project, state = {}, {}
        for level, size, count in (
            ("fine", spec.fine, self.classes),
            ("coarse", spec.coarse, self.coarse_classes),
        ):
            project[level] = sequence.Dense(
                size,
                bias_init=layers.torch_bias(width),
                dtype=jnp.promote_types(self.dtype, jnp.float32),
                name=f"{stream}_{level}_proj",
            )
            name = f"{stream}_{level}_prototype"
            state[level] = self.variable("prototypes", name, draw, size, count)
        return project, state

    def _corrected(self, stream: str, pooled: jax.Array, spec: Prototypes) -> jax.Array:
        """What the prototypes add to the stream's logits in evaluation."""
        project, state = self._compared(stream, pooled.shape[-1], spec)
        if self.is_initializing():
            project["coarse"](pooled)
        z = project["fine"](pooled)
        gain = spec.rectify[0 if stream == "rgb" else 1]
        return gain * prototypes_op.cosine(z, state["fine"].value.astype(z.dtype))

    def _terms(self, stream, x, outputs, labels, mask, spec: Prototypes):
        """The stream's contrast and tree terms; moves its prototypes."""
        project, state = self._compared(stream, x.shape[-1], spec)
        frame = x.mean(1, dtype=jnp.promote_types(x.dtype, jnp.float32))
        vector = layers.peak(frame.reshape(len(frame), -1, frame.shape[-1]), 1)[:, 0]
        z = {level: layer(vector) for level, layer in project.items()}
        logits = {"fine": outputs[stream], "coarse": outputs[f"{stream}_coarse"]}
        losses, moved = prototypes_op.two_levels(
            z,
            logits,
            labels,
            {level: variable.value.astype(vector.dtype) for level, variable in state.items()},
            mask,
            spec.miss_factors,
            momentum=spec.momentum,
            penalty=spec.penalty,
            temperature=spec.temperature,
        )
        moved = jax.lax.stop_gradient(moved)
        offset = None if spec.tree_offset < 0 else spec.tree_offset
        trees = prototypes_op.tree(
            logits["coarse"], logits["fine"], labels["fine"], spec.coarse_map, offset
        )
        contrast, tree = (
            jnp.where(mask, each, 0).sum() / jnp.maximum(mask.sum(), 1) for each in (losses, trees)
        )
        if spec.diversity:
            contrast += prototypes_op.diversity(moved["fine"])
        if not self.is_initializing():
            for level, variable in state.items():
                variable.value = moved[level].astype(variable.value.dtype)
        return spec.weight * contrast, spec.tree_weight * tree
