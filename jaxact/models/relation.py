"""The pair classifier: which relation two people are in, from their crops and spatial features.

Source: AsukaLmy/simplename `GeometricDete/` (ResNet stage-2 classifier). Here `add` works, a
bilinear form with most of the parameters is of low rank (arXiv 1708.01471, MFB), and the answer
can be made independent of who is called A. The last layer starts small, unlike the original's, so
that an untrained model gives all classes the same probability.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import layers
from jaxact.models.backbones import Backbone
from jaxact.models.specs import FULL_BILINEAR, RelationSpec

RANK = 5  # products that each output of a factorised form sums


def bilinear_form(hidden: int, limit: int = FULL_BILINEAR) -> tuple[bool, str]:
    """(is the form of low rank?, why) for the first hidden width, of which a code is half.

    limit: weights up to which the form stays full.
    """
    weights = (hidden // 2) ** 2 * hidden
    if weights <= limit:
        return False, f"bilinear fusion: full form, {weights:,} weights"
    low = 2 * (hidden // 2) * hidden * RANK
    return True, (
        f"bilinear fusion: rank {RANK}, {low:,} weights, "
        f"because the full form has {weights:,}, over {limit:,}"
    )


class Bilinear(nn.Module):
    """y_k = a W_k b + bias_k: f32[b, i], f32[b, j] -> f32[b, features]."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        # torch's default: uniform in +-1/sqrt(i), kernel and bias.
        draw = layers.torch_bias(a.shape[-1])
        kernel = self.param("kernel", draw, (self.features, a.shape[-1], b.shape[-1]), jnp.float32)
        bias = self.param("bias", draw, (self.features,), jnp.float32)
        left = jnp.einsum("bi,kij->bkj", a, kernel.astype(self.dtype))
        return jnp.einsum("bkj,bj->bk", left, b) + bias.astype(self.dtype)


class LowRankBilinear(nn.Module):
    """Sums of `rank` products of linear maps of a and b, signed root, unit length."""

    features: int
    rank: int = RANK
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        width = self.features * self.rank
        left = nn.Dense(width, dtype=self.dtype, kernel_init=layers.he_normal, name="left")(a)
        right = nn.Dense(width, dtype=self.dtype, kernel_init=layers.he_normal, name="right")(b)
        product = (left * right).reshape(*a.shape[:-1], self.features, self.rank)
        y = product.sum(-1, dtype=jnp.promote_types(self.dtype, jnp.float32))
        # The small numbers keep both derivatives finite at zero.
        y = jnp.sign(y) * (jnp.sqrt(jnp.abs(y) + 1e-6) - 1e-3)
        y = y / jnp.sqrt((y**2).sum(-1, keepdims=True) + 1e-12)
        return y.astype(self.dtype)


class Relation(nn.Module):
    """Crops and spatial features of a pair -> {"logits": f32[b, k], "persons": f32[b, 2, d]}.

    Each person has a code of half the first hidden width; the spatial code is half as wide as that.
    `spec.fusion` of the codes a and b:

        concat       [a, b]
        add          a + b
        bilinear     a W_k b, of low rank where the weights would be over `spec.full_bilinear`
        interaction  [a, b, |a - b|, a * b]

    `spec.symmetric`: training swaps the two people of a pair at random (random stream "dropout"),
    evaluation averages the logits of both orders. `persons` is absent without crops.

    Raises UserError for neither crops nor spatial features, or crops without a backbone.
    """

    spec: RelationSpec = RelationSpec()
    classes: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, crops: jax.Array | None, spatial: jax.Array | None, train: bool):
        """crops: f32[b, 2, h, w, 3], normalised; spatial: f32[b, n], as many features as in use."""
        self._check(crops, spatial)
        outputs = {}
        codes = None
        if crops is not None:
            outputs["persons"], codes = self._people(crops, train)
        place = None
        if spatial is not None:
            place = self._dense(self.spec.hidden[0] // 4, "spatial")(spatial.astype(self.dtype))
            place = self._drop(nn.relu(place), self.spec.dropout / 2, train)
        fuse, mlp = self._fusion(), self._mlp(train)

        def logits(a, b):
            parts = ([] if a is None else [fuse(a, b)]) + ([] if place is None else [place])
            return mlp(jnp.concatenate(parts, -1))

        if codes is None:
            outputs["logits"] = logits(None, None)
        elif not self.spec.symmetric:
            outputs["logits"] = logits(codes[:, 0], codes[:, 1])
        elif train:
            swap = jax.random.bernoulli(self.make_rng("dropout"), 0.5, (codes.shape[0], 1, 1))
            codes = jnp.where(swap, codes[:, ::-1], codes)
            outputs["logits"] = logits(codes[:, 0], codes[:, 1])
        else:
            orders = logits(codes[:, 0], codes[:, 1]), logits(codes[:, 1], codes[:, 0])
            outputs["logits"] = (orders[0] + orders[1]) / 2
        return outputs

    def _check(self, crops, spatial) -> None:
        if crops is None and spatial is None:
            raise UserError("relation: neither crops nor spatial features; give one of them")
        if (crops is None) == bool(self.spec.backbone):
            given = "no crops" if crops is None else "crops"
            backbone = f"{given} with backbone {self.spec.backbone!r}"
            raise UserError(f"relation: {backbone}; '' is for spatial features alone")

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=layers.he_normal, name=name)

    def _drop(self, x: jax.Array, rate: float, train: bool) -> jax.Array:
        return nn.Dropout(rate, deterministic=not train)(x)

    def _people(self, crops: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """f32[b, 2, h, w, 3] -> (mapped features f32[b, 2, d], codes dtype[b, 2, e])."""
        spec, b = self.spec, crops.shape[0]
        flat = crops.reshape(2 * b, *crops.shape[2:])
        # Both people in one batch: BN sees 2b crops where the original runs A, then B.
        _, pooled = Backbone(spec.backbone, self.dtype, spec.remat, name="backbone")(flat, train)
        mapped = nn.relu(self._dense(spec.visual, "mapper")(pooled.astype(self.dtype)))
        code = self._drop(mapped, spec.mapper_dropout, train)
        code = nn.relu(self._dense(spec.hidden[0] // 2, "person0")(code))
        code = self._drop(code, spec.dropout, train)
        code = nn.relu(self._dense(spec.hidden[0] // 2, "person1")(code))
        persons = mapped.astype(jnp.promote_types(self.dtype, jnp.float32))
        return persons.reshape(b, 2, -1), code.reshape(b, 2, -1)

    def _fusion(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """A function that fuses the codes of two people; all calls share its parameters."""
        spec, width = self.spec, self.spec.hidden[0]
        if spec.fusion == "add":
            return lambda a, b: a + b
        if spec.fusion == "concat":
            return lambda a, b: jnp.concatenate((a, b), -1)
        if spec.fusion == "interaction":
            return lambda a, b: jnp.concatenate((a, b, jnp.abs(a - b), a * b), -1)
        form = LowRankBilinear if bilinear_form(width, spec.full_bilinear)[0] else Bilinear
        return form(width, dtype=self.dtype, name="bilinear")

    def _mlp(self, train: bool) -> Callable[[jax.Array], jax.Array]:
        """A function of the fused codes: linear, ReLU, dropout for each width, then the logits."""
        dropout = self.spec.dropout
        hidden = [self._dense(width, f"relation{n}") for n, width in enumerate(self.spec.hidden)]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        last = nn.Dense(self.classes, dtype=wide, kernel_init=layers.linear_normal, name="label")

        def run(x: jax.Array) -> jax.Array:
            for number, layer in enumerate(hidden, 1):
                rate = dropout / 2 if number == len(hidden) else dropout
                x = self._drop(nn.relu(layer(x)), rate, train)
            return last(x)

        return run
