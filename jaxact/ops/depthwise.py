"""Depthwise convolution over clips: each channel has its own small kernel.

XLA's grouped convolution is about thirty times slower than it need be on CPU, so there the
convolution is written as shifted multiply-adds whose gradients are shifted multiply-adds too.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxact.config import UserError
from jaxact.ops import target

IMPLEMENTATIONS = ("auto", "conv", "shift")
Triple = tuple[int, int, int]


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    strides: Triple = (1, 1, 1),
    padding: Triple | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Correlates every channel of `x` with its own kernel.

    x: f32[b, t, h, w, c]; kernel: f32[kt, kh, kw, 1, c]; `padding` counts the zeros on both sides
    of t, h and w (as in torch; None = half the kernel). The result has x's dtype; sums are kept in
    f32 or wider. "shift" = shifted multiply-adds, "conv" = grouped convolution (2-D where the
    kernel spans one frame), "auto" = shift on CPU and conv elsewhere (on CPU that is measured, on
    accelerators it is the vendor's kernel, not yet measured by us).

    Raises UserError for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        allowed = ", ".join(IMPLEMENTATIONS)
        raise UserError(f"depthwise implementation {implementation!r}: choose one of {allowed}")
    if padding is None:
        padding = (kernel.shape[0] // 2, kernel.shape[1] // 2, kernel.shape[2] // 2)
    if implementation == "auto":
        implementation = "shift" if target.platform() == "cpu" else "conv"
    if implementation == "conv":
        return _grouped(x, kernel, strides, padding)
    return _shifted(x, kernel[..., 0, :], strides, padding)


def _grouped(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple) -> jax.Array:
    """The same by XLA's convolution with one group a channel."""
    b, t, h, w, c = x.shape
    pads = [(p, p) for p in padding]
    kernel = kernel.astype(x.dtype)
    if kernel.shape[0] == 1 and strides[0] == 1 and padding[0] == 0:
        y = lax.conv_general_dilated(
            x.reshape(b * t, h, w, c),
            kernel[0],
            strides[1:],
            pads[1:],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=c,
        )
        return y.reshape(b, t, *y.shape[1:])
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=c,
    )


def _wide(dtype) -> jnp.dtype:
    """The dtype in which sums are kept."""
    return jnp.promote_types(dtype, jnp.float32)


def _outputs(sizes, taps, strides: Triple, padding: Triple) -> Triple:
    return tuple(
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(sizes, taps, strides, padding, strict=True)
    )


def _pad(x: jax.Array, before, after) -> jax.Array:
    """Pads t, h, w with zeros; negative amounts crop."""
    amounts = [(0, 0, 0), *((lo, hi, 0) for lo, hi in zip(before, after, strict=True)), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), amounts)


def _window(x: jax.Array, start, size, strides: Triple) -> jax.Array:
    """x[:, start : ... : stride, ...] with `size` elements along each of t, h, w."""
    limit = [o + (n - 1) * s + 1 for o, n, s in zip(start, size, strides, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[4]), (1, *strides, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple) -> jax.Array:
    """One padded copy, then one multiply-add of a slice of it for each tap."""
    taps = kernel.shape[:3]
    size = _outputs(x.shape[1:4], taps, strides, padding)
    wide = _wide(x.dtype)
    padded, kernel = _pad(x, padding, padding), kernel.astype(wide)
    terms = (
        _window(padded, tap, size, strides).astype(wide) * kernel[tap]
        for tap in itertools.product(*map(range, taps))
    )
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _shifted_forward(x, kernel, strides, padding):
    return _shifted(x, kernel, strides, padding), (x, kernel)


def _shifted_backward(strides, padding, saved, dy):
    x, kernel = saved
    return (
        _input_gradient(dy, kernel, x.shape[1:4], strides, padding),
        _kernel_gradient(x, dy, kernel, strides, padding),
    )


def _input_gradient(dy, kernel, sizes, strides: Triple, padding: Triple) -> jax.Array:
    """Each input position collects the outputs that read it.

    Position i was read by output o through tap k where i + padding = o * stride + k, so positions
    with the same (i + padding) % stride use the same taps: one correlation for each such phase,
    then the phases are interleaved. Dilating dy instead would multiply mostly zeros.
    """
    taps, outputs, wide = kernel.shape[:3], dy.shape[1:4], _wide(dy.dtype)
    kernel = kernel.astype(wide)
    # Positions are counted on the padded grid, whose length is rounded up to whole strides.
    length = [-(-(n + 2 * p) // s) for n, s, p in zip(sizes, strides, padding, strict=True)]
    margin = [-(-k // s) - 1 for k, s in zip(taps, strides, strict=True)]
    padded = _pad(dy, margin, [n - o for n, o in zip(length, outputs, strict=True)])
    phases = []
    for phase in itertools.product(*map(range, strides)):
        total = None
        for tap in itertools.product(
            *(range(p, k, s) for p, k, s in zip(phase, taps, strides, strict=True))
        ):
            steps = [(k - p) // s for k, p, s in zip(tap, phase, strides, strict=True)]
            start = [m - q for m, q in zip(margin, steps, strict=True)]
            term = _window(padded, start, length, (1, 1, 1)).astype(wide) * kernel[tap]
            total = term if total is None else total + term
        if total is None:
            total = jnp.zeros((dy.shape[0], *length, dy.shape[4]), wide)
        phases.append(total.astype(dy.dtype))
    if math.prod(strides) == 1:
        full = phases[0]
    else:
        full = jnp.stack(phases, axis=0).reshape(*strides, *phases[0].shape)
        full = full.transpose(3, 4, 0, 5, 1, 6, 2, 7)  # b, t, st, h, sh, w, sw, c
        full = full.reshape(
            dy.shape[0], *(n * s for n, s in zip(length, strides, strict=True)), dy.shape[4]
        )
    return _window(full, padding, sizes, (1, 1, 1))


def _kernel_gradient(x, dy, kernel, strides: Triple, padding: Triple) -> jax.Array:
    """Sums x * dy for each tap, a frame at a time so that it stays in cache.

    Taps are a loop over one dynamic slice: unrolled, XLA fuses slice and sum into scalar code.
    """
    taps, outputs, wide = kernel.shape[:3], dy.shape[1:4], _wide(dy.dtype)
    padded = _pad(x, padding, padding)
    size = (1, *outputs[1:])
    extent = [(n - 1) * s + 1 for n, s in zip(size, strides, strict=True)]
    offsets = jnp.asarray(list(itertools.product(*map(range, taps))))

    def frame(total, index):
        gradient = lax.dynamic_slice_in_dim(dy, index, 1, axis=1).astype(wide)

        def tap(_, offset):
            start = (0, offset[0] + index * strides[0], offset[1], offset[2], 0)
            part = lax.dynamic_slice(padded, start, (x.shape[0], *extent, x.shape[4]))
            part = _window(part, (0, 0, 0), size, strides).astype(wide)
            return None, (part * gradient).sum((1, 2, 3))

        return total + lax.scan(tap, None, offsets)[1], None

    # The batch axis is summed last: under a sharded batch that is one reduction over devices.
    total = jnp.zeros((len(offsets), x.shape[0], x.shape[4]), wide)
    total, _ = lax.scan(frame, total, jnp.arange(outputs[0]))
    return total.sum(1).reshape(kernel.shape).astype(kernel.dtype)


_shifted.defvjp(_shifted_forward, _shifted_backward)
