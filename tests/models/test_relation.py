"""The pair classifier: exact totals, parity with the original, fusions and their symmetry."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe

from jaxact.config import UserError
from jaxact.evaluate import cost
from jaxact.models import relation
from jaxact.models.initialise import initialise
from jaxact.models.relation import Relation
from jaxact.models.specs import FUSIONS, RelationSpec
from jaxact.weights import convert, table
from jaxact.weights import relation as names

LARGE = (1024, 512, 256)
SMALL = {"backbone": "resnet10_w8", "visual": 16, "hidden": (16, 8)}
PAIRS = np.concatenate([recipe.draw(seed, (5, 1, 16, 16, 3)) for seed in (1, 2)], axis=1)
PLACES = recipe.draw(3, (5, 8), "unit")


def made(**fields):
    """A model of three classes."""
    return Relation(RelationSpec(**fields))


def abstract(model, crops=(1, 2, 32, 32, 3), spatial=8):
    """The model's variables as shapes."""
    inputs = [
        None if shape is None else jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (crops, (1, spatial) if spatial else None)
    ]
    return jax.eval_shape(lambda *given: model.init(jax.random.key(0), *given, False), *inputs)


def count(tree) -> int:
    return cost.table(tree)[-1].parameters


@pytest.mark.parametrize(
    ("backbone", "visual", "hidden", "concat", "bilinear", "add"),
    [
        ("resnet18", 256, (128, 64, 32), 11_359_779, 11_884_195, 11_351_587),
        ("resnet34", 256, (128, 64, 32), 21_467_939, 21_992_355, 21_459_747),
        ("resnet50", 512, LARGE, 27_053_379, 295_489_859, 26_529_091),
        ("resnet34", 512, (128, 64, 32), 21_615_651, 22_140_067, 21_607_459),
    ],
)
def test_totals(backbone, visual, hidden, concat, bilinear, add):
    for fusion, total in (("concat", concat), ("bilinear", bilinear), ("add", add)):
        spec = RelationSpec(backbone, visual, hidden, fusion, full_bilinear=10**9)
        model = Relation(spec)
        assert count(abstract(model)["params"]) == total


def test_parts():
    params = abstract(Relation())["params"]
    sizes = {name: count(tree) for name, tree in params.items()}
    assert (sizes["backbone"], sizes["mapper"], sizes["spatial"]) == (11_176_512, 131_328, 288)
    assert sizes["person0"] + sizes["person1"] == 20_608
    layers = ("relation0", "relation1", "relation2", "label")
    assert sum(sizes[name] for name in layers) == 31_043


def test_a_large_bilinear_form_is_of_low_rank():
    low, why = relation.bilinear_form(1024)
    assert low and "268,435,456, over 20,000,000" in why and "5,242,880 weights" in why
    assert relation.bilinear_form(128) == (False, "bilinear fusion: full form, 524,288 weights")
    full = Relation(RelationSpec("resnet50", 512, LARGE, "bilinear"))
    assert count(abstract(full)["params"]["bilinear"]) == 5_242_880 + 2 * 5 * 1024
    z = relation.LowRankBilinear(8)
    a, b = recipe.draw(1, (4, 6)), recipe.draw(2, (4, 6))
    y, variables = z.init_with_output(jax.random.key(0), a, b)
    np.testing.assert_allclose((y**2).sum(-1), 1, rtol=1e-5)
    zero = jax.grad(lambda a: z.apply(variables, a, b).sum())(0 * a)
    assert np.isfinite(zero).all()


@pytest.mark.parametrize("name", ["resnet18_add", "resnet18_concat", "resnet50_concat"])
def test_golden_logits(golden, name):
    backbone, fusion = name.split("_")
    entry = json.loads((golden / "statedict" / f"{name}.json").read_text())
    numbers = np.load(golden / "relation" / f"{name}.npz")
    tensors = {k: recipe.fill(k, v, entry["norm_gain"]) for k, v in entry["tensors"].items()}
    fields = {"visual": 512, "hidden": LARGE} if backbone == "resnet50" else {}
    # The original could run `add` without spatial features only.
    model = made(backbone=backbone, fusion=fusion, **fields)
    spatial = 0 if fusion == "add" else 8
    target = abstract(model, spatial=spatial)
    naming = table.detect(tensors, names.tables(tensors, target))
    variables, _ = convert.apply(naming, tensors, target, strict=True)

    crops = np.stack([recipe.draw(seed, (3, 3, 112, 112)) for seed in (801, 802)], 1)
    places = recipe.draw(803, (3, 8), "unit")
    np.testing.assert_array_equal(places, numbers["spatial"])
    outputs = jax.jit(lambda v, *inputs: model.apply(v, *inputs, False))(
        variables, crops.transpose(0, 1, 3, 4, 2), places if spatial else None
    )
    np.testing.assert_allclose(outputs["logits"], numbers["logits"], rtol=0, atol=2e-5)
    for index, person in enumerate("AB"):
        wanted = numbers[f"person_{person}_features"]
        np.testing.assert_allclose(outputs["persons"][:, index], wanted, rtol=0, atol=1e-4)


def drawn(model, *inputs):
    """Variables whose logits depend on everything."""
    variables = initialise(model, jax.random.key(0), *inputs, False)
    label = variables["params"]["label"]
    label["kernel"] = jnp.asarray(recipe.draw(9, label["kernel"].shape))
    return variables


def logits(model, variables, crops, places=PLACES, train=False, seed=0):
    if not train:
        return np.asarray(model.apply(variables, crops, places, False)["logits"])
    rngs = {"dropout": jax.random.key(seed)}
    outputs, _ = model.apply(variables, crops, places, True, rngs=rngs, mutable=["batch_stats"])
    return np.asarray(outputs["logits"])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_order_of_the_two(fusion):
    model = made(fusion=fusion, **SMALL)
    variables = drawn(model, PAIRS, PLACES)
    before, after = (logits(model, variables, PAIRS[:, ::step]) for step in (1, -1))
    assert np.allclose(before, after, rtol=1e-5, atol=1e-6) == (fusion == "add")
    even = made(fusion=fusion, symmetric=True, **SMALL)
    found, swapped = (logits(even, variables, PAIRS[:, ::step]) for step in (1, -1))
    np.testing.assert_allclose(found, swapped, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, (before + after) / 2, rtol=1e-5, atol=1e-6)


def test_symmetric_training_swaps_at_random():
    fields = {"dropout": 0.0, "mapper_dropout": 0.0, **SMALL}
    model = made(**fields)
    variables = drawn(model, PAIRS, PLACES)
    orders = [logits(model, variables, PAIRS[:, ::step], train=True) for step in (1, -1)]
    assert np.abs(orders[0] - orders[1]).max(1).min() > 1e-3
    even, swapped = made(symmetric=True, **fields), []
    for seed in range(4):
        seen = logits(even, variables, PAIRS, train=True, seed=seed)
        near = [np.isclose(seen, order, rtol=1e-4, atol=1e-5).all(1) for order in orders]
        assert (near[0] != near[1]).all()
        swapped.extend(near[1])
    assert 4 <= sum(swapped) <= 16  # of 20


def test_fusions_by_hand():
    a, b = recipe.draw(1, (2, 3)), recipe.draw(2, (2, 4))
    kernel, bias = recipe.draw(3, (5, 3, 4)), recipe.draw(4, (5,))
    products = relation.Bilinear(5).apply({"params": {"kernel": kernel, "bias": bias}}, a, b)
    wanted = [[a[n] @ kernel[k] @ b[n] + bias[k] for k in range(5)] for n in range(2)]
    np.testing.assert_allclose(products, wanted, rtol=1e-5, atol=1e-5)
    widths = {"concat": 16, "add": 8, "bilinear": 16, "interaction": 32}
    for fusion, width in widths.items():
        kernel = abstract(made(fusion=fusion, **SMALL))["params"]["relation0"]["kernel"]
        assert kernel.shape == (width + 4, 16)


def test_places_alone_and_crops_alone():
    model = made(**{**SMALL, "backbone": ""})
    outputs, variables = model.init_with_output(jax.random.key(0), None, PLACES, False)
    assert set(outputs) == {"logits"} and set(variables) == {"params"}
    assert set(variables["params"]) == {"spatial", "relation0", "relation1", "label"}
    seven = abstract(made(**SMALL), spatial=7)["params"]["spatial"]["kernel"]
    assert seven.shape == (7, 4)
    alone = abstract(made(**SMALL), spatial=0)["params"]
    assert "spatial" not in alone and alone["relation0"]["kernel"].shape == (16, 16)


def test_an_untrained_model_answers_evenly():
    model = made(**SMALL)
    found = logits(model, initialise(model, jax.random.key(1), PAIRS, PLACES, False), PAIRS)
    losses = -jax.nn.log_softmax(found)
    assert np.abs(np.asarray(losses) - np.log(3)).max() < 0.1
    assert abs(float(losses.mean()) - np.log(3)) < 0.02


def test_mistakes():
    for fields, crops, message in (
        ({"fusion": "mean"}, (1, 2, 16, 16, 3), r"fusion='mean' .* allowed: concat, bilinear"),
        ({"hidden": ()}, (1, 2, 16, 16, 3), r"hidden=\(\) .* one width or more"),
        ({"hidden": (16, 3)}, (1, 2, 16, 16, 3), r"hidden=\(16, 3\) .* each 4 or more"),
        ({}, None, r"no crops with backbone 'resnet10_w8'"),
        ({"backbone": ""}, (1, 2, 16, 16, 3), r"crops with backbone ''"),
    ):
        with pytest.raises(UserError, match=message):
            abstract(made(**{**SMALL, **fields}), crops)
    with pytest.raises(UserError, match="neither crops nor spatial features"):
        abstract(made(**SMALL), None, 0)
