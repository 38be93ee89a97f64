"""The pair classifier's weights under the original's names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import inverse, writer

from jaxact.config import UserError
from jaxact.models.relation import Relation
from jaxact.models.specs import RelationSpec
from jaxact.weights import images, relation, table

LARGE = (1024, 512, 256)
SMALL = {"backbone": "resnet10_w8", "visual": 16, "hidden": (16, 8)}


def variables_of(spatial=8, classes=3, **fields):
    """Shapes of a Relation's variables."""
    model, key = Relation(RelationSpec(**fields), classes), jax.random.key(0)
    inputs = [jax.ShapeDtypeStruct((1, 2, 16, 16, 3), jnp.float32)]
    inputs += [jax.ShapeDtypeStruct((1, spatial), jnp.float32)] if spatial else []
    return jax.eval_shape(lambda crops, places=None: model.init(key, crops, places, False), *inputs)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18_add", {"fusion": "add", "spatial": 0}),
        ("resnet18_bilinear", {"fusion": "bilinear"}),
        ("resnet18_concat", {}),
        ("resnet50_concat", {"backbone": "resnet50", "visual": 512, "hidden": LARGE}),
    ],
)
def test_every_key_and_every_variable_is_used_once(golden, name, fields):
    entry = json.loads((golden / "statedict" / f"{name}.json").read_text())
    tensors = {k: np.broadcast_to(np.float32(0), v) for k, v in entry["tensors"].items()}
    target = variables_of(**fields)
    naming = table.detect(tensors, relation.tables(tensors, target))
    assert naming.name == "simplename pair classifier"
    converted, wanted = table.translate(naming, tensors), table.flatten(target)
    assert not converted.unknown
    assert all(key.endswith("num_batches_tracked") for key in converted.ignored)
    ours = {path: tuple(leaf.shape) for path, leaf in wanted.items()}
    assert {path: leaf.shape for path, leaf in converted.flat.items()} == ours
    used = [key for keys in converted.origin.values() for key in keys]
    assert len(set(used)) == len(used) == len(tensors) - len(converted.ignored)


def drawn(variables, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.5 + rng.random(x.shape, np.float32), variables)


def test_a_file_round_trip_and_another_number_of_classes(tmp_path):
    variables = drawn(variables_of(fusion="bilinear", **SMALL))
    tensors = inverse.invert(relation.tables({}, variables)[0], variables)
    assert {"relation_network.6.weight", "bilinear.weight"} <= tensors.keys()
    content = {"model_state_dict": {k: writer.view(v) for k, v in tensors.items()}}
    path = writer.write_zip(tmp_path / "best_model.pth", content)
    loaded, report = relation.load(path, variables_of(fusion="bilinear", **SMALL), strict=True)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert len(report.loaded) == len(tensors)

    target = drawn(variables_of(fusion="bilinear", classes=5, **SMALL), 1)
    loaded, report = relation.load(path, target)
    assert loaded["params"]["label"] == target["params"]["label"]
    assert any("params/label/kernel (8, 5), (8, 3) in" in line for line in report.replaced)
    with pytest.raises(UserError, match=r"fit nothing: 'bilinear\.bias', 'bilinear\.weight'"):
        relation.load(path, variables_of(**SMALL), strict=True)


def test_a_resnet_starts_the_backbone(tmp_path):
    target = drawn(variables_of(**SMALL))
    source = {
        collection: {"backbone": drawn(tree["backbone"], 1)} for collection, tree in target.items()
    }
    tensors = inverse.invert(images.tables({}, source)[0], source)
    tensors.update({"fc.weight": np.ones((1000, 64), np.float32), "fc.bias": np.ones(1000, "f4")})
    path = writer.write_safetensors(tmp_path / "resnet.safetensors", tensors)
    loaded, report = relation.load(path, target)
    jax.tree.map(
        np.testing.assert_array_equal,
        {name: loaded[name]["backbone"] for name in loaded},
        {name: source[name]["backbone"] for name in source},
    )
    assert loaded["params"]["mapper"] == target["params"]["mapper"]
    assert set(report.unused) == {"fc.weight", "fc.bias"}
