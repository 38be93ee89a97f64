"""Heads: pooling modes, dropout, the prototype terms against PCAN's own numbers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe

from jaxact.config import UserError
from jaxact.models.heads import Head, Prototypes
from jaxact.ops import prototypes as op

STREAMS = ("rgb", "pose")
# Sources of a stream's head: ours, the reference's, whether it is a transposed kernel.
NAMES = {
    "{s}": "fc_{s}",
    "{s}_coarse": "fc_{s}_coarse",
    "{s}_fine_proj": "fr_{s}.spatio_cl_net.cl_fc",
    "{s}_coarse_proj": "fr_coarse_{s}.spatio_cl_net.cl_fc",
}
PROTOTYPES = {
    "{s}_fine_prototype": ("fr_{s}", 60, 256),
    "{s}_coarse_prototype": ("fr_coarse_{s}", 8, 128),
}


def head_variables(golden):
    """The golden head as our variables, in float64."""
    facts = json.loads((golden / "statedict" / "pcan_full_eval.json").read_text())

    def fill(name, shape):
        return np.float64(recipe.fill(f"cls_head.{name}", shape, facts["norm_gain"]))

    params, state = {}, {}
    for stream in STREAMS:
        for ours, theirs in NAMES.items():
            name = theirs.format(s=stream)
            shape = facts["tensors"][f"cls_head.{name}.weight"]
            params[ours.format(s=stream)] = {
                "kernel": fill(f"{name}.weight", shape).T,
                "bias": fill(f"{name}.bias", shape[:1]),
            }
        for ours, (theirs, classes, size) in PROTOTYPES.items():
            name = f"{theirs.format(s=stream)}.spatio_cl_net.avg_f"
            state[ours.format(s=stream)] = fill(name, (size, classes))
    return params, state


SEEDS = {"clean": 411, "shifted": 421, "ma52": 431, "nopred": 441}
# From the manifest: labels, and the classes whose weights are added to force right and wrong ones.
LABELS = {
    "clean": (0, 5, 12, 33, 0, 59, 7, 52),
    "shifted": (1, 5, 12, 33, 1, 59, 7, 52),
    "ma52": (0, 5, 12, 33, 0, 51, 7, 45),
    "nopred": (0, 5, 12, 33, 0, 59, 7, 52),
}
FINE = {
    "clean": (0, 6, 12, 2, 0, -1, 0, 52),
    "shifted": (1, 6, 12, 2, 1, -1, 1, 52),
    "ma52": (0, 6, 12, 2, 0, -1, 0, 45),
    "nopred": (-1,) * 8,
}
COARSE = {
    "clean": (0, 0, 4, 5, 0, -1, 0, 6),
    "shifted": (0, 0, 4, 5, 0, -1, 0, 6),
    "ma52": (0, 0, 4, 5, 0, -1, 0, 5),
    "nopred": (-1,) * 8,
}


def inputs(case: str, params) -> dict[str, np.ndarray]:
    features = {}
    for offset, (stream, shape) in enumerate(
        (("rgb", (8, 432, 4, 3, 3)), ("pose", (8, 216, 6, 3, 3)))
    ):
        x = np.float64(np.moveaxis(recipe.draw(SEEDS[case] + offset, shape), 1, -1))
        for b, (fine, coarse) in enumerate(zip(FINE[case], COARSE[case], strict=True)):
            if fine >= 0:
                x[b] += 3 * params[stream]["kernel"][:, fine]
            if coarse >= 0:
                x[b] += 3 * params[f"{stream}_coarse"]["kernel"][:, coarse]
        features[stream] = x
    return features


@functools.cache
def original(blocks: tuple[int, ...]) -> Head:
    """The head with the reference's settings, defects in the terms included."""
    options = Prototypes(blocks, diversity=True, tree_offset=7)
    return Head(60, 8, dropout=(0.0, 0.0), prototypes=options, dtype=jnp.float64)


@functools.cache
def loss_of(head: Head):
    """A jitted function of everything the reference differentiates."""

    def loss(params, features, state, labels, coarse, ce_labels, ce_coarse, mask):
        outputs, new = head.apply(
            {"params": params, "prototypes": state},
            features,
            True,
            labels,
            coarse,
            mask,
            mutable=["prototypes"],
        )

        def cross_entropy(name, labels):
            chances = jax.nn.log_softmax(outputs[name])
            return -jnp.take_along_axis(chances, labels[:, None], 1).mean()

        terms = {name: cross_entropy(name, ce_labels) for name in STREAMS}
        terms |= {f"{n}_coarse": cross_entropy(f"{n}_coarse", ce_coarse) for n in STREAMS}
        weights = {"rgb": 1.0, "pose": 1.5, "rgb_coarse": 0.6, "pose_coarse": 1.2}
        total = sum(weights[name] * terms[name] for name in terms)
        total += outputs["prototype"] + outputs["tree"]
        return total, (terms, outputs, new["prototypes"])

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("case", SEEDS)
def test_prototype_terms_equal_the_reference(golden, case):
    """Even its defects, when its altered labels and offset are given on purpose."""
    with np.load(golden / "epam" / f"pcan_loss_{case}.npz") as file:
        wanted = {key[4:]: file[key] for key in file.files if key.startswith("f64/")}
    blocks = json.loads((golden / "epam" / "pcan_coarse_maps.json").read_text())["semantic"]
    params, state = head_variables(golden)
    with jax.enable_x64(True):
        (total, (terms, outputs, new)), (gradients, moved) = loss_of(original(tuple(blocks)))(
            params,
            inputs(case, params),
            state,
            jnp.asarray(LABELS[case]),
            jnp.asarray(wanted["labels_coarse_fr"]),
            jnp.asarray(wanted["labels_ce_fine_after_reference_shift"]),
            jnp.asarray(wanted["labels_ce_coarse"]),
            jnp.ones(8, bool),
        )
        near = functools.partial(np.testing.assert_allclose, rtol=1e-9)
        names = {"rgb": 1.0, "pose": 1.5, "rgb_coarse": 0.6, "pose_coarse": 1.2}
        for name, weight in names.items():
            near(weight * terms[name], wanted[f"losses/{name}_loss_cls"])
            near(outputs[name], wanted[f"scores/{name}"], atol=1e-10)
        contrast = [f"losses/{s}_fr{level}_loss" for s in STREAMS for level in ("_coarse", "")]
        near(outputs["prototype"], sum(wanted[name] for name in contrast))
        trees = wanted["losses/hierarchy_rgb_loss"] + wanted["losses/hierarchy_loss_pose"]
        near(outputs["tree"], trees)
        near(total, wanted["total"])
        for stream in STREAMS:
            near(np.linalg.norm(moved[stream]), wanted[f"grad_norm/{stream}_feat"], rtol=1e-7)
            for ours, theirs in NAMES.items():
                for part, suffix in (("kernel", "weight"), ("bias", "bias")):
                    norm = np.linalg.norm(gradients[ours.format(s=stream)][part])
                    near(norm, wanted[f"grad_norm/{theirs.format(s=stream)}.{suffix}"], rtol=1e-7)
            for ours, (theirs, *_) in PROTOTYPES.items():
                check_prototypes(
                    wanted,
                    f"proto_after/{theirs.format(s=stream)}",
                    state[ours.format(s=stream)],
                    np.asarray(new[ours.format(s=stream)]),
                )
        sample = np.moveaxis(moved["rgb"], -1, 1).reshape(-1)[:: wanted["grad/rgb_feat/stride"]]
        near(sample, wanted["grad/rgb_feat/sample"], atol=1e-10)


def check_prototypes(wanted, root: str, before: np.ndarray, after: np.ndarray) -> None:
    np.testing.assert_allclose(np.linalg.norm(after), wanted[f"{root}/norm"], rtol=1e-10)
    sample = after.reshape(-1)[:: wanted[f"{root}/stride"]]
    np.testing.assert_allclose(sample, wanted[f"{root}/sample"], rtol=1e-9)
    changed = np.flatnonzero((before != after).any(0))
    np.testing.assert_array_equal(changed, wanted[f"{root}/changed_columns"])


def test_padding_changes_nothing():
    """Masked examples, whatever their labels, leave terms and prototypes as they are."""
    head = Head(4, 2, dropout=(0.0, 0.0), prototypes=Prototypes((0, 0, 1, 1), fine=6, coarse=3))
    x = {"rgb": jax.random.normal(jax.random.key(0), (5, 2, 3, 3, 8))}
    labels = jnp.asarray([0, 3, 2, 1, 1])
    mask = jnp.asarray([True, True, True, False, False])
    variables = jax.jit(lambda: head.init(jax.random.key(1), x, True, labels))()

    @jax.jit
    def run(x, labels, mask):
        return head.apply(variables, x, True, labels, None, mask, mutable=["prototypes"])

    padded, state = run(x, labels, mask)
    alone, wanted = run({"rgb": x["rgb"][:3]}, labels[:3], mask[:3])
    for name in ("prototype", "tree"):
        np.testing.assert_allclose(padded[name], alone[name], rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_terms_only_in_training_with_labels():
    head = Head(4, 2, prototypes=Prototypes((0, 0, 1, 1), fine=6, coarse=3))
    x = {"pose": jnp.ones((2, 2, 3, 3, 8))}
    labels = jnp.asarray([0, 3])
    variables = jax.eval_shape(lambda: head.init(jax.random.key(1), x, False))
    assert variables == jax.eval_shape(
        lambda: head.init({"params": jax.random.key(1), "dropout": jax.random.key(2)}, x, True)
    )

    def names(*arguments):
        outputs, _ = jax.eval_shape(
            lambda v: head.apply(
                v, x, *arguments, mutable=["prototypes"], rngs={"dropout": jax.random.key(0)}
            ),
            variables,
        )
        return set(outputs)

    assert names(True, labels) == {"pose", "pose_coarse", "prototype", "tree"}
    assert names(True) == names(False) == names(False, labels) == {"pose", "pose_coarse"}


def test_the_tree_prefers_the_true_branch():
    good = op.tree(
        jnp.asarray([[9.0, -9]]), jnp.asarray([[9.0, -9, -9]]), jnp.asarray([0]), (0, 0, 1)
    )
    bad = op.tree(
        jnp.asarray([[-9.0, 9]]), jnp.asarray([[-9.0, -9, 9]]), jnp.asarray([0]), (0, 0, 1)
    )
    # States: two coarse nodes, then fine nodes with their parents.
    np.testing.assert_allclose(
        good[0], np.log((np.e + 1 + np.e**2 + np.e + 1) / np.e**2), rtol=1e-3
    )
    assert bad[0] > good[0]


def positions(head: Head, x):
    variables = head.init(jax.random.key(0), x, False)
    return head.apply(variables, x, False, mutable=["intermediates"], capture_intermediates=True)


def test_pooling_modes():
    x = {"rgb": jax.random.normal(jax.random.key(3), (2, 4, 3, 3, 6))}
    head = Head(5, kind="x3d", pool="logits", window=(0, 2, 2))
    logits, state = positions(head, x)
    each = state["intermediates"]["rgb"]["__call__"][0]
    assert each.shape == (2, 1, 2, 2, 5)
    np.testing.assert_allclose(logits["rgb"], each.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
    chances, _ = positions(head.clone(pool="softmax"), x)
    wanted = jax.nn.softmax(each).mean((1, 2, 3))
    np.testing.assert_allclose(jax.nn.softmax(chances["rgb"]), wanted, rtol=1e-5)
    # One position is the whole map: every mode agrees with the global mean.
    for pool in ("logits", "softmax"):
        whole, _ = positions(head.clone(pool=pool, window=(0, 0, 0)), x)
        mean, _ = positions(head.clone(pool="mean"), x)
        np.testing.assert_allclose(
            jax.nn.softmax(whole["rgb"]), jax.nn.softmax(mean["rgb"]), rtol=1e-5
        )


def test_dropout_is_per_stream_and_only_in_training():
    x = {stream: jnp.ones((1, 1, 1, 1, 400)) for stream in STREAMS}
    head = Head(3, dropout=(0.5, 0.0))
    variables = head.init(jax.random.key(0), x, False)
    calm = head.apply(variables, x, False)
    noisy = head.apply(variables, x, True, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(noisy["rgb"], calm["rgb"])
    np.testing.assert_array_equal(noisy["pose"], calm["pose"])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="kind 'mlp': choose one of linear, x3d"):
        Head(3, kind="mlp")
    with pytest.raises(UserError, match="pool 'max': choose one of mean, logits, softmax"):
        Head(3, pool="max")
    with pytest.raises(UserError, match=r"2 entries up to 1: needs one of 0\.\.1 for each of 3"):
        Head(3, 2, prototypes=Prototypes((0, 1)))
    with pytest.raises(UserError, match="coarse_classes > 0"):
        Head(3, prototypes=Prototypes((0, 0, 0)))
    with pytest.raises(UserError, match="one coarse class >= 0"):
        Prototypes(())
    with pytest.raises(UserError, match=r"window \(1, 3, 2\) \(t, h, w\) exceeds"):
        positions(Head(3, pool="logits", window=(0, 3, 0)), {"rgb": jnp.ones((1, 1, 2, 2, 4))})
