"""Image backbones by name: what each needs from a recipe, and the module that runs it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import convnext, efficientnet, image_layers, resnet
from jaxact.models.specs import ConvNeXtSpec, EfficientNetSpec, ResNetSpec, backbone_spec


class Backbone(nn.Module):
    """f32[b, h, w, 3] (normalised) -> (map dtype[b, h', w', c], pooled f32[b, c]).

    The map is the last one before pooling, where Grad-CAM looks; the pooled vector is what a
    classifier takes (ConvNeXt: normalised after pooling). With `stages` a dict of the maps after
    every stage comes third. `remat` stores only block inputs in the forward pass and computes the
    rest again; `drop_path` is the largest chance to drop a block's branch, with random stream
    "dropout" (EfficientNet and ConvNeXt; a ResNet takes 0 only). `implementation`: of depthwise
    filters, as in `ops.depthwise`.

    Raises UserError for an unknown `kind`, or drop_path with a ResNet.
    """

    kind: str
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    drop_path: float = 0.0
    implementation: str = "auto"

    @nn.compact
    def __call__(self, image: jax.Array, train: bool, stages: bool = False):
        spec, rate, how = backbone_spec(self.kind), self.drop_path, self.implementation
        if isinstance(spec, ResNetSpec):
            if rate:
                raise UserError(
                    f"drop_path {rate!r} with backbone {self.kind!r}: allowed is 0 (drop path is "
                    "for EfficientNet and ConvNeXt)"
                )
            maps = resnet.trunk(spec, image, train, self.dtype, self.remat)
        elif isinstance(spec, EfficientNetSpec):
            maps = efficientnet.trunk(spec, image, train, self.dtype, self.remat, rate, how)
        else:
            maps = convnext.trunk(spec, image, train, self.dtype, self.remat, rate, how)
        x = maps[next(reversed(maps))]
        pooled = image_layers.mean_pool(x)
        if isinstance(spec, ConvNeXtSpec):
            pooled = image_layers.layer_norm("norm", pooled.dtype)(pooled)
        return (x, pooled, maps) if stages else (x, pooled)
