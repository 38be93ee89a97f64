"""Our variables under a table's names and layouts: what each code base would have saved."""

import math
from collections.abc import Mapping

import numpy as np

from jaxact.weights import resnet3d, table, videomae


def kernel(x):
    return x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))


def tubes(x):
    side = math.isqrt(len(x) // 6)
    return kernel(x.reshape(2, side, side, 3, -1))


INVERSES = {
    table.same: lambda x: x,
    table.kernel: kernel,
    **{table.pointwise(n): lambda x, n=n: x.T.reshape(*x.T.shape, *(1,) * n) for n in (1, 2, 3)},
    table.per_channel: lambda x: x.reshape(1, -1, 1),
    table.frame_kernel: lambda x: np.expand_dims(kernel(x), 2),
    videomae.tubes: tubes,
    videomae.joined: lambda x: tuple(np.split(x.T, 3)),
    resnet3d.transposed: lambda x: x.transpose(3, 4, 0, 1, 2),
    resnet3d.one_frame: lambda x: np.squeeze(kernel(x), 2),
}


def invert(names, variables, inverses: Mapping = INVERSES):
    """Tensors by source key, as they are (counters left out)."""
    tensors = {}
    for path, value in table.flatten(variables).items():
        rule = next(rule for rule in names.rules if table._match(rule.target, path) is not None)
        parts = inverses[rule.transform](np.asarray(value))
        parts = parts if isinstance(parts, tuple) else (parts,)
        for key, part in zip(table.expected(names, path), parts, strict=True):
            tensors[key] = np.array(part, order="C")
    return tensors
