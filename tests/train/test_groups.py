"""Optimisers and groups against torch's trajectories; freezing leaves nothing moved."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.config import Group, Optim, UserError
from jaxact.train import optimizer

TRAJECTORIES = {
    "sgd_m0.9_wd3e-4_clip2": (dict(name="sgd", momentum=0.9, weight_decay=3e-4, clip=2.0), ()),
    "sgd_nesterov_m0.9_wd5e-5_vector_nowd": (
        dict(name="sgd", momentum=0.9, nesterov=True, weight_decay=5e-5),
        (Group("vector", "^vector$", weight_decay=0.0), Group("rest", ".*")),
    ),
    "adam_l2wd1e-2_clip1_group0.1x": (
        dict(name="adam", weight_decay=1e-2, clip=1.0),
        (Group("matrix", "^matrix$", lr=0.1), Group("rest", ".*")),
    ),
    "adamw_wd5e-2_vector_nowd": (
        dict(name="adamw", weight_decay=5e-2),
        (Group("vector", "^vector$", weight_decay=0.0), Group("rest", ".*")),
    ),
    "adamw_b0.9-0.98_eps1e-6": (
        dict(name="adamw", b2=0.98, eps=1e-6, weight_decay=0.01),
        (),
    ),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_torch_trajectories(golden, name):
    stored = np.load(golden / "losses/optimizers.npz")
    fields, groups = TRAJECTORIES[name]
    optim = Optim(**fields, **({"groups": groups} if groups else {}))
    with jax.enable_x64(True):
        params = {k: jnp.asarray(stored[f"p0_{k}"], jnp.float64) for k in ("matrix", "vector")}
        resolved = optimizer.resolve_groups(optim, params)
        opt_state = resolved.init(params)
        for step, lr in enumerate(stored["lrs"]):
            grads = {k: jnp.asarray(stored[f"grads_{k}"][step], jnp.float64) for k in params}
            grads, norm = optimizer.clip(grads, optim.clip)
            params, opt_state = resolved.update(grads, opt_state, params, lr, resolved.trainable)
            if f"{name}/norm_before_clip" in stored:
                np.testing.assert_allclose(
                    norm, stored[f"{name}/norm_before_clip"][step], rtol=1e-9
                )
            for k, array in params.items():
                np.testing.assert_allclose(
                    array, stored[f"{name}/{k}"][step], rtol=1e-9, atol=1e-12
                )


def test_a_group_unfrozen_late_starts_its_own_count():
    """Adam's first update is lr for every element, whenever it comes; a shared count makes it 3.16
    lr."""
    optim = Optim(name="adam", groups=(Group("head", "head"), Group("body", "body")), lr=1.0)
    params = {"head": jnp.ones(3), "body": jnp.ones(3)}
    groups = optimizer.resolve_groups(optim, params)
    opt_state = groups.init(params)
    grads = {k: jnp.full(3, 0.5) for k in params}
    only = groups.active("head")
    for _ in range(10):
        before = opt_state["body"]
        params, opt_state = groups.update({"head": grads["head"]}, opt_state, params, 0.1, only)
        np.testing.assert_array_equal(params["body"], 1.0)
        assert opt_state["body"] is before
    after, opt_state = groups.update(grads, opt_state, params, 0.1, groups.active(".*"))
    np.testing.assert_allclose(params["body"] - after["body"], 0.1, rtol=1e-5)
    counts = {k: int(jax.tree.leaves(v)[0]) for k, v in opt_state.items()}
    assert counts == {"head": 11, "body": 1}


def test_groups_must_cover_and_each_must_match():
    params = {"a": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    with pytest.raises(UserError, match="'a/bias' matches no pattern"):
        optimizer.resolve_groups(Optim(groups=(Group("k", "kernel"),)), params)
    with pytest.raises(
        UserError, match=re.escape("groups[1].pattern='scale' matches no parameter")
    ):
        optimizer.resolve_groups(Optim(groups=(Group("k", ".*"), Group("s", "scale"))), params)
    groups = optimizer.resolve_groups(
        Optim(groups=(Group("b", "bias", frozen=True), Group())), params
    )
    assert groups.member == {"a/kernel": "all", "a/bias": "b"}
    assert groups.active(".*") == {"all"} and set(groups.init(params)) == {"all"}
    with pytest.raises(UserError, match="matches no group; allowed: all"):
        groups.active("b")
