"""The staged schedule of the crop recipe: its 50 epochs, its groups, its flags."""

import dataclasses
import inspect
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.models.classifier import Classifier
from jaxact.models.specs import ClassifierSpec
from jaxact.train import optimizer
from jaxact.train.schedule import last_stage_data, resolve

ROOT = pathlib.Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "crop.py"


def recipe():
    """The recipe's module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("crop_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PER_EPOCH = 3


@pytest.fixture(scope="module")
def found():
    return resolve(schema.load(RECIPE, "advanced"), PER_EPOCH)


@pytest.fixture(scope="module")
def truth(golden):
    return json.loads((golden / "crop/schedule.json").read_text())


TRAINS = {
    "head": "head",
    "last stage + head": "head|last_stage",
    "all": "head|last_stage|rest",
}


@pytest.mark.parametrize("place", range(PER_EPOCH))
def test_all_fifty_rows(found, truth, place):
    """At the first, the middle and the last step of every epoch."""
    assert [row["epoch"] for row in truth] == list(range(50))
    under_jit = jax.jit(found.hyper)
    for row in truth:
        step = row["epoch"] * PER_EPOCH + place
        values = {name: float(x) for name, x in under_jit(jnp.int32(step)).items()}
        stage = found.row(step)
        # The table gives five digits.
        np.testing.assert_allclose(values["lr"], row["lr"], rtol=5e-5, err_msg=str(row))
        # Factors on the floor of the curve are the only way to get these rates exactly.
        base = float(found.curve(np.int64(step)))
        floor = 0 if row["epoch"] < 5 else 1e-6
        np.testing.assert_allclose(values["lr"], floor + row["scale"] * (base - floor), rtol=2e-6)
        for name in ("label_smoothing", "mixup", "cutmix", "center"):
            assert values[name] == pytest.approx(row[name]), (name, row)
        assert values["focal"] == row["focal"] and values["cosine"] == (row["head"] == "cosine")
        assert (values["mixup_prob"], values["cutmix_prob"]) == pytest.approx((0.7, 0.5))
        assert (
            stage.stage_data.sampler == row["sampler"]
            and stage.stage_data.augment == row["augment"]
        )
        assert stage.stage_data.size == row["size"]
        trains = TRAINS[row["trains"]]
        if row["head"] == "cosine":  # the linear head rests, the cosine head and centres move
            trains = trains.replace("head", "features")
        assert stage.train == trains
        # While the sampler balances, the loss does not.
        assert values["class_weight"] == (row["sampler"] == "natural")


def test_rows_and_programs(found):
    assert len(found.rows) == 10 and not found.unreachable
    # Two sizes and the trained sets: 224 x (head, + last stage, all), 256 x (all, all by cosine).
    assert len({row.program for row in found.rows}) == 5


def test_the_stage_table_of_the_log(found):
    lines = found.table().splitlines()
    assert len(lines) == 11
    assert lines[1].split()[:6] == ["0", "0-10", "0-30", "1.0000e-05", "4.9033e-04", "head"]
    assert "5.8174e-04" in lines[2] and "warning" not in found.table()


def test_milestones_past_the_end_are_named():
    config = schema.load(RECIPE, "fewshot")
    late = resolve(config, 3)
    assert late.total == 90
    assert [config.stages[i].start for i in late.unreachable] == ["30 epochs", "40 epochs"]
    text = late.table()
    assert text.count("is never reached") == len(late.unreachable)
    assert all(row.train == ".*" for row in late.rows)


def test_group_gates_equal_torch(golden):
    """Three groups unfrozen one after the other against an AdamW for each; float64."""
    want = json.loads((golden / "crop/unfreezing.json").read_text())
    start, steps = want["start"], want["steps"]
    optim = schema.Optim(
        name="adamw",
        weight_decay=want["weight_decay"],
        groups=tuple(schema.Group(name, f"^{name}") for name in start),
    )
    rng = np.random.RandomState(want["seed"])
    with jax.enable_x64(True):
        params = {name: jnp.asarray(rng.randn(3)) for name in start}
        grads = {name: rng.randn(steps, 3) for name in start}
        rates = 5e-4 * (0.02 + 0.98 * np.arange(steps) / steps)
        groups = optimizer.resolve_groups(optim, params)
        opt_state = groups.init(params)
        stored = {row.pop("step"): row for row in want["parameters"]}
        for step, rate in enumerate(rates):
            active = frozenset(name for name in start if step >= start[name])
            now = {name: jnp.asarray(grads[name][step]) for name in active}
            before = params
            params, opt_state = groups.update(now, opt_state, params, rate, active)
            for name in start:
                if step == start[name]:
                    kept = before[name] * (1 - rate * want["weight_decay"])
                    first = np.abs(params[name] - kept) / rate
                    np.testing.assert_allclose(first, want["first_update_over_lr"][name], rtol=1e-9)
                    np.testing.assert_allclose(first, 1, rtol=1e-5)
                elif step < start[name]:
                    assert params[name] is before[name]
            if step in stored:
                for name, array in stored[step].items():
                    np.testing.assert_allclose(params[name], array, rtol=1e-12, atol=1e-15)
    # What it is not: a count that ran on for ten frozen epochs makes torch's first update 3.16 lr.
    for ratio in want["first_update_over_lr_of_a_shared_count"].values():
        np.testing.assert_allclose(ratio, 3.16, atol=0.01)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (dict(stage2_unfreeze="all"), "stage2_unfreeze='all'"),
        (dict(rebalance="late"), "rebalance='late'"),
    ],
)
def test_flags_out_of_range(flags, said):
    with pytest.raises(UserError, match=said):
        recipe().schedule(**flags)


def row_at(stages, epoch, epochs=50):
    config = schema.load(RECIPE)
    config.length, config.stages = f"{epochs} epochs", stages
    found = resolve(config, 1)
    stage = found.row(epoch)
    values = {name: float(x) for name, x in found.hyper(epoch).items()}
    return {**values, **vars(stage.stage_data), "train": stage.train}


def test_the_resolutions_of_the_guides_contradictions():
    schedule = recipe().schedule
    # Stage 2 may be the learning rate alone (row 11); nothing frozen at all (row 12).
    assert row_at(schedule(stage2_unfreeze="none"), 15)["train"] == "head"
    assert row_at(schedule(freeze_stages=False), 0)["train"] == "head|last_stage|rest"
    # Weights and sampling both (row 17), neither, or late (row 34).
    both = schedule(balance_sampler=True, rebalance="both")
    assert row_at(both, 0)["class_weight"] == 1 and row_at(both, 0)["sampler"] == "weighted"
    assert row_at(schedule(use_class_weights=False), 30)["class_weight"] == 0
    late = schedule(balance_sampler=True, rebalance="deferred")
    assert [row_at(late, e)["sampler"] for e in (0, 20, 39, 40, 49)] == ["natural"] * 3 + [
        "weighted"
    ] * 2
    alone = schedule(rebalance="deferred")  # needs no other flag
    assert [row_at(alone, e)["sampler"] for e in (0, 39, 40)] == ["natural"] * 2 + ["weighted"]
    # Mixup halves from any start (row 30).
    assert [row_at(schedule(mixup_alpha=0.1), e)["mixup"] for e in (0, 10, 12, 15)] == (
        pytest.approx([0.1, 0.05, 0.025, 0])
    )
    # Changes at one epoch are one row, and a flag at 0 acts from the start.
    assert row_at(schedule(progressive_resize_epoch=0), 0)["size"] == 256
    merged = schedule(stage3_epoch=25, final_clean_epoch=25)
    starts = [stage.start for stage in merged]
    assert starts.count("25 epochs") == 1 and len(starts) == len(set(starts))


def test_the_flag_table_is_true():
    """The docstring's flags are those of `schedule`, and its fields exist."""
    module = recipe()
    table = module.__doc__.split("| flag | field |")[1]
    first, second = table.split("|---|---|")[1:3]
    parameters = set(inspect.signature(module.schedule).parameters)
    named = set()
    for line in first.splitlines():
        if line.startswith("| "):
            flags = re.sub(r"\(.*?\)", "", line.split("|")[1])
            last = ""
            for flag in re.split(r"[,;]\s*", flags):
                flag = flag.strip()
                if flag.startswith("-"):  # -epoch2 after smoothing-decay-epoch1
                    flag = last.rsplit("-", 1)[0] + flag
                last = flag
                named.add(flag.replace("-", "_"))
    assert named == parameters - {"epochs", "augment"}
    config = module.get_config()
    for line in second.splitlines():
        if line.startswith("| "):
            cell = line.split("|")[2]
            for path in re.findall(
                r"\b(?:data|model|optim|loss|eval|save|input)\.[\w.\[\]]+", cell
            ):
                where = config
                for part in re.split(r"[.\[\]]+", path.strip(".")):
                    where = where[int(part)] if part.isdigit() else getattr(where, part)


def test_every_variant_resolves():
    module = recipe()
    for name in module.VARIANTS:
        config = module.get_config(name)
        schema.validate(config)
        found = resolve(config, 50)
        assert found.rows[0].start == 0, name
        # Without the training split the row that evaluation sees is the same.
        assert last_stage_data(config) == found.rows[-1].stage_data, name
        for stage in config.stages:
            assert dataclasses.is_dataclass(stage)
    with pytest.raises(UserError, match="no variant 'leave'"):
        module.get_config("leave")


def test_the_last_view_of_stages_that_are_never_reached():
    config = schema.load(RECIPE)
    for length, size in (
        ("50 epochs", 256),
        ("30 epochs", 224),
        ("31 epochs", 256),
        ("20 steps", 224),  # an epoch has a step at least
        ("60 steps", 256),  # one of two steps would do
    ):
        config.length = length
        assert last_stage_data(config).size == size, length
    config.stages = (config.stages[0], type(config.stages[0])(start="5 steps", size=64))
    config.length = "1 epochs"
    assert last_stage_data(config).size == 64
    config.length = "5 steps"
    assert last_stage_data(config).size == 224


def test_a_step_schedule_needs_milestones_and_has_the_guides():
    config = schema.load(RECIPE)
    config.optim.schedule, config.optim.warmup = "step", "0"
    config.stages = config.stages[:1]
    found = resolve(config, 3)
    rates = [float(found.hyper(3 * epoch)["lr"]) for epoch in (0, 19, 20, 39, 40, 49)]
    np.testing.assert_allclose(rates, [5e-4] * 2 + [5e-5] * 2 + [5e-6] * 2, rtol=1e-5)
    config.optim.milestones = ()
    with pytest.raises(UserError, match=r"config.optim.milestones=\(\).*step"):
        schema.validate(config)


def test_a_longer_run_may_keep_its_schedule():
    """Of 80 epochs instead of 50: the curve over all, or that of 50 and then its floor."""
    first = resolve(schema.load(RECIPE), 2)
    config = schema.load(RECIPE)
    config.length = "80 epochs"
    over = resolve(config, 2)
    config.optim.decay_over = "45 epochs"  # it begins after the warm-up
    kept = resolve(config, 2)
    for epoch in range(50):
        rates = [float(found.hyper(2 * epoch)["lr"]) for found in (first, kept, over)]
        assert rates[1] == pytest.approx(rates[0], rel=1e-6), epoch
        assert epoch < 10 or rates[2] > rates[0]
    assert float(kept.hyper(2 * 79)["lr"]) == pytest.approx(1e-6, rel=1e-3)


def test_rebalanced_variants_choose_among_rebalanced_epochs():
    for name in ("crt", "deferred"):
        config = schema.load(RECIPE, name)
        starts = schema.steps(config.stages[-1].start, per_epoch=10, total=500)
        first = schema.steps(config.eval.first, per_epoch=10, total=500)
        # A validation at step s is of the weights of the step before.
        assert starts < first <= starts + 10 and config.eval.metric == "macro_f1", name
        found = resolve(config, 10)
        assert float(found.hyper(0)["label_smoothing"]) == pytest.approx(0.05)
        assert float(found.hyper(0)["mixup"]) == pytest.approx(0.2)
    config = schema.load(RECIPE, "crt")
    found = resolve(config, 10)
    before, after = (float(found.hyper(step)["lr"]) for step in (399, 400))
    assert 8 < after / before < 10 and after < 1.2 * config.optim.lr


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_b0", "convnext_tiny"])
def test_layerwise_groups_fit_each_family(backbone):
    model = Classifier(ClassifierSpec(backbone=backbone), 5)
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0)
    )
    optim = schema.Optim(name="adamw", groups=recipe().layerwise(backbone, 0.75))
    found = optimizer.resolve_groups(optim, shapes["params"])
    assert set(found.member.values()) == {group.name for group in optim.groups}


def test_layerwise_rates():
    found = recipe().layerwise("convnext_tiny", 0.75)
    by_name = {group.name: group for group in found}
    assert by_name["head"].lr == 1 and by_name["norm"].lr == 0.75
    assert by_name["stage3"].lr == pytest.approx(0.75**2)
    assert by_name["stem"].lr == pytest.approx(0.75**6)
    assert by_name["stage0_plain"].weight_decay == 0 < by_name["stage0"].weight_decay
