"""The schedule against the originals' schedulers, and the table's own rules."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxact import config as schema
from jaxact.config import Config, Optim, UserError
from jaxact.train import schedule


@dataclasses.dataclass
class Row(schema.Stage):
    smoothing: tuple[float, ...] = schema.value(0.0)
    sampler: str = schema.choice("natural", ("natural", "weighted"))
    size: int = schema.shape(224)


def resolved(per_epoch=1, length="80 epochs", stages=(Row(),), batch_size=32, **optim):
    config = Config(length=length, batch_size=batch_size, optim=Optim(**optim))
    config.stages = stages
    return schedule.resolve(config, per_epoch)


def curve(plan):
    return np.array([float(plan.curve(np.int64(step))) for step in range(plan.total)])


# name in the golden file -> (steps an epoch, epochs, optimiser fields, which steps are stored)
CASES = {
    "seed_x3d_epochs0-79": (
        3,
        80,
        dict(
            lr=0.012,
            per="epoch",
            warmup="5 epochs",
            warmup_from=0.1,
            decay_over="75 epochs",
            min_lr=1e-6,
        ),
        slice(0, None, 3),
    ),
    "rgbposeconv3d_step_epochs0-19": (
        2,
        20,
        dict(lr=0.0075, schedule="step", milestones=("12 epochs", "16 epochs")),
        slice(0, None, 2),
    ),
    "posec3d_cosine_iters_24x10": (10, 24, dict(lr=0.2), slice(0, None, 10)),
    "cosine_iter_based_T4epochs_x5iters": (5, 4, dict(lr=0.2), slice(None)),
    "epam_cosine_50steps_lr0.0015": (5, 10, dict(lr=0.0015), slice(None)),
    "relation_cosine_50epochs_lr1e-4": (4, 50, dict(lr=1e-4, per="epoch"), slice(0, None, 4)),
    "crop_linear5_cosine45_no_scaling": (
        1,
        50,
        dict(lr=5e-4, min_lr=1e-6, warmup="5 epochs", warmup_from=0.02, warmup_full=False),
        slice(None),
    ),
    "timm_cosine_30_warmup5": (
        1,
        30,
        dict(
            lr=0.05,
            min_lr=1e-5,
            warmup="5 epochs",
            warmup_from=2e-5,
            warmup_full=False,
            warmup_prefix=False,
        ),
        slice(None),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_learning_rates_of_the_originals(golden, name):
    per_epoch, epochs, optim, stored = CASES[name]
    wanted = np.load(golden / "losses/schedules.npz")[name]
    plan = resolved(per_epoch, f"{epochs} epochs", **optim)
    np.testing.assert_allclose(curve(plan)[stored], wanted, rtol=1e-12)
    under_jit = jax.jit(lambda s: plan.hyper(s)["lr"])
    for step in range(0, plan.total, 7):
        np.testing.assert_allclose(under_jit(step), curve(plan)[step], rtol=2e-6)


def test_slowfast_warmup_ends_on_the_cosine(golden):
    stored = np.load(golden / "losses/schedules.npz")
    plan = resolved(
        2,
        "300 epochs",
        lr=0.1,
        warmup="35 epochs",
        warmup_from=0.1,
        warmup_full=False,
        warmup_to="curve",
        warmup_prefix=False,
    )
    at = (stored["slowfast_x3d_epochs"] * 2).astype(int)
    np.testing.assert_allclose(curve(plan)[at], stored["slowfast_x3d_lr"], rtol=1e-12)


def test_cosine_with_restarts_returns_to_the_top():
    plan = resolved(
        1,
        "70 steps",
        lr=1.0,
        schedule="cosine_restarts",
        restart_every="10 steps",
        restart_growth=2.0,
    )
    rates = curve(plan)
    assert [step for step in range(70) if rates[step] == rates[0]] == [0, 10, 30]
    np.testing.assert_allclose(rates[5], 0.5)
    np.testing.assert_allclose(rates[20], 0.5)
    np.testing.assert_allclose(rates[50], 0.5)


def test_lr_scales_with_the_batch():
    assert resolved(lr=0.1, lr_batch=16, batch_size=24).curve(0) == pytest.approx(0.15)
    assert resolved(lr=0.1, batch_size=24).curve(0) == pytest.approx(0.1)


def test_rows_carry_over_and_ramp():
    stages = (
        Row(smoothing=(0.1,), sampler="weighted"),
        Row(start="4 steps", smoothing=(0.1, 0.0), lr=(2.0,)),
        Row(start="8 steps", size=256),
        Row(start="50 steps", sampler="natural"),
    )
    plan = resolved(4, "12 steps", stages, lr=1.0, schedule="constant")
    smoothing = [float(plan.hyper(step)["smoothing"]) for step in range(12)]
    np.testing.assert_allclose(
        smoothing, [0.1] * 4 + [0.1, 0.075, 0.05, 0.025] + [0.0] * 4, atol=1e-7
    )
    rates = [float(plan.hyper(step)["lr"]) for step in range(12)]
    np.testing.assert_allclose(rates, [1.0] * 4 + [2.0] * 8)
    assert [plan.row(step).stage_data.size for step in (0, 7, 8, 11)] == [224, 224, 256, 256]
    assert {row.stage_data.sampler for row in plan.rows} == {"weighted"}
    assert len({row.program for row in plan.rows}) == 2
    assert plan.unreachable == (3,) and "stages[3] starts after the end" in plan.table()
    assert [(s, e) for _, s, e in plan.segments(5)] == [(5, 8), (8, 12)]


def test_stage_scales_what_lies_above_the_floor():
    """Row 25 of the crop schedule: 1e-6 + 0.48 (b - 1e-6) = 1.4156e-4."""
    plan = resolved(
        1,
        "50 epochs",
        (Row(), Row(start="10 epochs", lr=(1.2,)), Row(start="25 epochs", lr=(0.48,))),
        lr=5e-4,
        min_lr=1e-6,
        warmup="5 epochs",
        warmup_from=0.02,
        warmup_full=False,
    )
    for epoch, wanted in (
        (0, 1e-5),
        (4, 4.02e-4),
        (10, 5.8174e-4),
        (25, 1.4156e-4),
        (49, 1.2917e-6),
    ):
        np.testing.assert_allclose(plan.hyper(epoch)["lr"], wanted, rtol=5e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(stages=(Row(start="1 epochs"),)), "stages[0].start"),
        (dict(stages=(Row(), Row(start="0"))), "stages[1].start"),
        (dict(stages=(Row(sampler="often"),)), "stages[0].sampler='often'"),
        (dict(stages=(Row(smoothing=(1.0, 2.0, 3.0)),)), "stages[0].smoothing"),
        (dict(length="ten"), "config.length='ten'"),
        (dict(length="10 %"), "config.length"),
        (dict(warmup="5"), "config.optim.warmup='5'"),
    ],
)
def test_mistakes_are_named(change, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[").replace(".", r"\.")):
        resolved(**change)
