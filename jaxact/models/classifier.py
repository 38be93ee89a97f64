"""Classification heads on an image backbone: plain, multi-task, few-shot; linear and cosine.

Everything a staged schedule may switch on later is in the tree from step 0, so checkpoints of all
stages have the same arrays.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.models import layers
from jaxact.models.backbones import Backbone
from jaxact.models.specs import PARTS, ClassifierSpec
from jaxact.ops import longtail, losses


class Heads(nn.Module):
    """Pooled features f32[b, d] -> logits f32[b, k] and what else a loss needs.

    A number selects the label's linear or cosine head: `gate` in training; in evaluation what
    training last wrote into the collection "switch", so a checkpoint knows its own head.

    With `momentum` the collection "balance" holds the moving mean of each head's cross entropy (in
    nats, without smoothing or class weights; 0 = nothing seen yet), and training returns it.
    """

    spec: ClassifierSpec
    classes: int
    parts: tuple[int, ...] = ()  # multitask: classes of PARTS
    momentum: float = 0.0  # multitask; 0 = no moving means

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        gate: jax.Array | None = None,
        train: bool = False,
        known: dict[str, jax.Array] | None = None,
    ) -> dict[str, Any]:
        """`known`: head -> label distributions f32[b, k] that the moving means are taken of."""
        spec = self.spec
        outputs: dict[str, Any] = {"features": features}
        width = features.shape[-1]

        def dropped(x: jax.Array, name: str) -> jax.Array:
            return nn.Dropout(spec.dropout, deterministic=not train, name=f"drop_{name}")(x)

        x = dropped(features, "label")
        if spec.kind == "fewshot":
            x = nn.relu(_dense(spec.hidden, width, "hidden")(x))
            x = dropped(x, "hidden")
        outputs["logits"] = _dense(self.classes, x.shape[-1], "label")(x)
        if spec.kind == "multitask":
            for name, count in zip(PARTS, self.parts, strict=True):
                if count:  # there are no severities where no class is graded
                    outputs[name] = _dense(count, width, name)(dropped(features, name))
            if self.momentum:
                means = self._mean_losses(outputs, known if train else None)
                outputs |= {"balance": means} if means else {}
        xavier = nn.initializers.xavier_uniform()
        if spec.cosine:
            kernel = self.param("cosine_kernel", xavier, (width, self.classes), jnp.float32)
            switch = self.variable("switch", "cosine", lambda: jnp.zeros((), jnp.int32))
            if train and gate is not None:
                switch.value = (gate > 0).astype(jnp.int32)
            cosine = losses.cosine_logits(x, kernel, spec.scale)
            outputs["logits"] = jnp.where(switch.value > 0, cosine, outputs["logits"])
        if spec.center:
            outputs["centers"] = self.param("centers", xavier, (self.classes, width), jnp.float32)
        return outputs

    def _mean_losses(
        self, outputs: dict[str, Any], known: dict[str, jax.Array] | None
    ) -> dict[str, jax.Array]:
        """Head -> moving mean f32[] of its loss, with this batch; {} without known labels."""
        means = {}
        for name in ("label", *(name for name in PARTS if name in outputs)):
            # The layer has the plain name.
            mean = self.variable("balance", f"mean_{name}", jnp.zeros, (), jnp.float32)
            if known is not None:
                logits = outputs["logits" if name == "label" else name]
                now, mass = longtail.mean_loss(jax.lax.stop_gradient(logits), known[name])
                mixed = self.momentum * mean.value + (1 - self.momentum) * now
                now = jnp.where(mean.value > 0, mixed, now)
                mean.value = means[name] = jnp.where(mass > 0, now, mean.value)
        return means


class Classifier(nn.Module):
    """Image f32[b, h, w, 3] (normalised) -> what `Heads` gives, and the last map where asked."""

    spec: ClassifierSpec
    classes: int
    parts: tuple[int, ...] = ()
    momentum: float = 0.0
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"  # of depthwise filters, as in ops.depthwise

    def setup(self) -> None:
        """Names the two halves of the tree."""
        spec = self.spec
        self.backbone = Backbone(
            spec.backbone, self.dtype, spec.remat, spec.drop_path, self.implementation
        )
        self.head = Heads(spec, self.classes, self.parts, self.momentum)

    def __call__(
        self,
        image: jax.Array,
        gate: jax.Array | None = None,
        train: bool = False,
        with_map: bool = False,
        known: dict[str, jax.Array] | None = None,
    ) -> dict[str, Any]:
        """`gate` f32[] > 0 selects the cosine head in training; `known` as in `Heads`."""
        last, pooled = self.backbone(image, train)
        outputs = self.head(pooled.astype(jnp.float32), gate, train, known)
        return {**outputs, "map": last} if with_map else outputs


def activation_map(model: Any, variables: Any, image: jax.Array, label: jax.Array) -> Any:
    """Grad-CAM of classes i[b] on images f32[b, h, w, 3] (normalised): f32[b, h', w'] in 0..1.

    The last map's channels, weighted by the slope of the class's logit along their means, kept
    where positive. Selvaraju et al., ICCV 2017.
    """
    last = model.apply(variables, image, train=False, with_map=True)["map"].astype(jnp.float32)
    heads: Any = Heads(model.spec, model.classes, model.parts)
    own = {name: tree["head"] for name, tree in variables.items() if "head" in tree}
    norm = variables["params"]["backbone"].get("norm")

    def logit(mean: jax.Array) -> jax.Array:
        # ConvNeXt normalises after pooling.
        x = mean if norm is None else _layer_norm(norm, mean)
        logits = heads.apply(own, x)["logits"]
        return jnp.sum(jnp.take_along_axis(logits, label[:, None], 1))

    slope = jax.grad(logit)(last.mean((1, 2)))
    heat = nn.relu(jnp.einsum("bhwc,bc->bhw", last, slope))
    return heat / jnp.maximum(heat.max((1, 2), keepdims=True), 1e-12)


def redrawn(key: jax.Array, head: Any) -> dict[str, Any]:
    """Every linear layer of a head, few-shot's inner one included, as it was drawn at the start.

    What else the head holds (cosine kernel, centres) is left out.
    """
    names = [name for name in ("label", "hidden", *PARTS) if name in head]
    # The label's key does not depend on what other layers there are.
    keys = [key, *(jax.random.fold_in(key, k) for k in range(1, len(names)))]
    return {name: _drawn_linear(k, head[name]) for k, name in zip(keys, names, strict=True)}


def _drawn_linear(key: jax.Array, head: Any) -> Any:
    """A fresh copy of a linear layer {kernel, bias}, as it was drawn at the start."""
    kernel, bias = jax.random.split(key)
    fan_in = head["kernel"].shape[0]
    return {
        "kernel": layers.torch_uniform(kernel, head["kernel"].shape, jnp.float32),
        "bias": layers.torch_bias(fan_in)(bias, head["bias"].shape),
    }


def _layer_norm(params: Any, x: jax.Array) -> jax.Array:
    norm: Any = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    return norm.apply({"params": params}, x)


def _dense(features: int, fan_in: int, name: str) -> nn.Module:
    """torch's Linear, in f32 whatever the backbone computes in."""
    return nn.Dense(
        features,
        kernel_init=layers.torch_uniform,
        bias_init=layers.torch_bias(fan_in),
        name=name,
    )
