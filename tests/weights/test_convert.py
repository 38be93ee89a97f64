"""The table engine: each key once, each target once, everything else named."""

import dataclasses

import numpy as np
import pytest
from weights import inverse, writer

from jaxact.config import UserError
from jaxact.weights import convert, table
from jaxact.weights.table import Rule, Table, batch_norm, conv, dense, pointwise


def concatenated(*parts):
    return np.concatenate(parts, -1)


INVERSES = {**inverse.INVERSES, concatenated: lambda whole: tuple(np.split(whole, 3, -1))}
TABLE = Table(
    name="toy",
    rules=(
        *conv("layer{s-1}.{j}.conv", "res{s}/block{j}/a"),
        *batch_norm("layer{s-1}.{j}.bn", "res{s}/block{j}/a_bn"),
        *dense("squeeze", "se", pointwise(3)),
        Rule(("attn.q", "attn.k", "attn.v"), "params/attn/qkv", concatenated),
        *dense("fc", "head"),
        Rule(("proto",), "prototypes/head/proto"),
    ),
    heads=("head",),
    part=lambda path: path.split("/")[1],
    optional=("params/extra/.*",),
)


def tensors(classes=3):
    rng = np.random.default_rng(0)
    shapes = {
        "layer1.0.conv.weight": (4, 2, 1, 3, 3),
        "layer1.0.bn.weight": (4,),
        "layer1.0.bn.bias": (4,),
        "layer1.0.bn.running_mean": (4,),
        "layer1.0.bn.running_var": (4,),
        "layer2.10.conv.weight": (5, 4, 1, 1, 1),
        "squeeze.weight": (2, 5, 1, 1, 1),
        "squeeze.bias": (2,),
        "attn.q": (5,),
        "attn.k": (5,),
        "attn.v": (5,),
        "fc.weight": (classes, 5),
        "fc.bias": (classes,),
        "proto": (6, classes),
    }
    arrays = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    return arrays | {"layer1.0.bn.num_batches_tracked": np.array(7)}


@dataclasses.dataclass
class Shape:
    shape: tuple
    dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype(np.float32))


def target(classes=3):
    return {
        "params": {
            "res2": {
                "block0": {
                    "a": {"kernel": Shape((1, 3, 3, 2, 4))},
                    "a_bn": {"scale": Shape((4,)), "bias": Shape((4,))},
                }
            },
            "res3": {"block10": {"a": {"kernel": Shape((1, 1, 1, 4, 5))}}},
            "se": {"kernel": Shape((5, 2)), "bias": Shape((2,))},
            "attn": {"qkv": Shape((15,))},
            "head": {"kernel": Shape((5, classes)), "bias": Shape((classes,))},
        },
        "batch_stats": {"res2": {"block0": {"a_bn": {"mean": Shape((4,)), "var": Shape((4,))}}}},
        "prototypes": {"head": {"proto": Shape((6, classes))}},
    }


def without(tree, path):
    flat = table.flatten(tree)
    return table.nest({key: value for key, value in flat.items() if key != path})


def test_every_layout_lands_where_it_should():
    source = tensors()
    variables, report = convert.apply(TABLE, source, target())
    flat = table.flatten(variables)
    assert flat.keys() == table.flatten(target()).keys()
    assert not (report.missing or report.unused or report.replaced or report.mismatched)
    assert report.ignored == ["layer1.0.bn.num_batches_tracked"] and len(report.loaded) == 12
    kernel = flat["params/res2/block0/a/kernel"]
    for o, i, h, w in ((0, 1, 2, 0), (3, 0, 1, 2)):
        assert kernel[0, h, w, i, o] == source["layer1.0.conv.weight"][o, i, 0, h, w]
    assert (flat["params/se/kernel"] == source["squeeze.weight"][:, :, 0, 0, 0].T).all()
    assert (flat["params/head/kernel"] == source["fc.weight"].T).all()
    assert (flat["params/attn/qkv"][5:10] == source["attn.k"]).all()
    assert (flat["batch_stats/res2/block0/a_bn/var"] == source["layer1.0.bn.running_var"]).all()


def test_round_trip_is_exact():
    source = tensors()
    back = inverse.invert(TABLE, convert.apply(TABLE, source, target())[0], INVERSES)
    assert back.keys() == source.keys() - {"layer1.0.bn.num_batches_tracked"}
    for key, value in back.items():
        assert value.dtype == np.float32 and value.shape == source[key].shape
        np.testing.assert_array_equal(value, source[key])


def test_target_dtype_is_kept_and_leaves_are_passed_through():
    wanted = target()
    wanted["params"]["head"]["bias"] = np.zeros(3, np.float64)
    wanted["params"]["extra"] = {"kernel": (marker := np.full((2,), 5.0))}
    variables, report = convert.apply(TABLE, tensors(), wanted)
    assert variables["params"]["head"]["bias"].dtype == np.float64
    assert variables["params"]["extra"]["kernel"] is marker
    assert report.missing == ["params/extra/kernel"]


def test_a_renamed_key_is_reported_both_ways():
    source = tensors()
    source["layer1.0.cnv.weight"] = source.pop("layer1.0.conv.weight")
    for strict in (True, False):
        with pytest.raises(UserError) as error:
            convert.apply(TABLE, source, target(), strict=strict, source="a.pth")
        message = str(error.value)
        assert message.startswith("a.pth (toy): 1 keys in the file fit nothing: ")
        assert "'layer1.0.cnv.weight' close to 'layer1.0.conv.weight'" in message
        assert "'params/res2/block0/a/kernel' (key 'layer1.0.conv.weight'" in message
        assert "\n" not in message


def test_a_missing_and_a_surplus_key_are_reported():
    source = tensors()
    del source["layer1.0.bn.running_var"]
    with pytest.raises(UserError, match=r"1 variables not in the file: .*a_bn/var.*running_var"):
        convert.apply(TABLE, source, target())
    source = tensors() | {"layer3.0.conv.weight": np.ones((1, 1, 1, 1, 1))}
    with pytest.raises(UserError, match=r"1 keys in the file fit nothing: 'layer3\.0\.conv"):
        convert.apply(TABLE, source, target())
    with pytest.raises(UserError, match="'params/res2/block0/a/kernel'"):
        partial = {k: v for k, v in tensors().items() if k != "layer1.0.conv.weight"}
        convert.apply(TABLE, partial, target(), strict=False)


def test_half_of_a_joined_target_is_reported():
    source = tensors()
    del source["attn.v"]
    with pytest.raises(UserError, match=r"2 keys .*'attn\.q'.*'attn\.k'.*'params/attn/qkv'"):
        convert.apply(TABLE, source, target())


def test_keys_without_meaning_are_ignored():
    source = tensors() | {"aux.weight": np.ones(2)}
    for strict in (True, False):
        with pytest.raises(UserError, match=r"fit nothing: 'aux\.weight'"):
            convert.apply(TABLE, source, target(), strict=strict)
    silent = dataclasses.replace(TABLE, ignore=(*TABLE.ignore, r"aux\..*"))
    _, report = convert.apply(silent, source, target())
    assert "aux.weight" in report.ignored


def test_two_keys_for_one_target_are_refused():
    twice = dataclasses.replace(TABLE, rules=(*TABLE.rules, *conv("fc_cls", "head")))
    source = tensors() | {"fc_cls.weight": np.ones((3, 5))}
    with pytest.raises(UserError, match=r"'fc_cls\.weight' and 'fc\.weight' both fill"):
        convert.apply(twice, source, target())


def test_sizes_that_differ_are_reported():
    source = tensors() | {"layer1.0.bn.bias": np.ones(9)}
    with pytest.raises(UserError, match=r"1 sizes differ: .*a_bn/bias <- .*\(9,\), wanted \(4,\)"):
        convert.apply(TABLE, source, target(), strict=False)
    source = tensors() | {"squeeze.weight": np.ones((2, 5, 3, 1, 1))}
    with pytest.raises(UserError, match=r"squeeze\.weight \(2, 5, 3, 1, 1\) does not fit"):
        convert.apply(TABLE, source, target())


def test_another_number_of_classes_keeps_the_new_head():
    wanted = target(classes=8)
    wanted["params"]["head"] = {"kernel": np.full((5, 8), 2.0), "bias": np.full(8, 3.0)}
    variables, report = convert.apply(TABLE, tensors(), wanted)
    assert (variables["params"]["head"]["kernel"] == 2).all()
    assert (variables["params"]["head"]["bias"] == 3).all()
    assert len(report.replaced) == 3 and len(report.loaded) == 9
    assert "params/head/kernel (5, 8), (5, 3) in the file" in report.text()
    assert "prototypes/head/proto (6, 8), (6, 3) in the file" in report.text()


def test_a_head_with_other_inputs_is_replaced_only_on_partial_loading():
    wanted = target()
    wanted["params"]["head"]["kernel"] = Shape((9, 3))
    with pytest.raises(UserError, match="sizes differ"):
        convert.apply(TABLE, tensors(), wanted)
    variables, report = convert.apply(TABLE, tensors(), wanted, strict=False)
    # The bias would fit, but belongs to the head that is left alone.
    assert isinstance(variables["params"]["head"]["bias"], Shape)
    assert len(report.replaced) == 3


def test_partial_loading_takes_parts_whole():
    wanted = target()
    wanted["params"]["new"] = {"kernel": Shape((2, 2))}
    wanted = without(without(wanted, "params/se/kernel"), "params/se/bias")
    with pytest.raises(UserError, match=r"'squeeze\.weight'.*'params/new/kernel' \(key unknown\)"):
        convert.apply(TABLE, tensors(), wanted)
    variables, report = convert.apply(TABLE, tensors(), wanted, strict=False)
    assert isinstance(variables["params"]["new"]["kernel"], Shape)
    assert report.missing == ["params/new/kernel"]
    assert sorted(report.unused) == ["squeeze.bias", "squeeze.weight"]


def test_nothing_in_common_is_an_error():
    with pytest.raises(UserError, match="no variable of this model"):
        convert.apply(TABLE, {"fc.bias": np.ones(3)}, {"params": {"x": Shape((1,))}}, strict=False)


def test_detection_counts_known_keys():
    other = Table(name="other", rules=(*conv("stem", "stem"), *dense("fc", "head")))
    assert table.detect(tensors(), (other, TABLE)) is TABLE
    assert table.detect({"stem.weight": np.ones(1), "fc.bias": np.ones(1)}, (other, TABLE)) is other
    with pytest.raises(UserError, match=r"a\.pth: unknown naming.*x0, x1.*supported: other, toy"):
        table.detect({f"x{i}": np.ones(1) for i in range(9)}, (other, TABLE), "a.pth")


def test_template_numbers_need_digits_and_whole_names():
    assert table.expected(TABLE, "params/res12/block3/a/kernel") == ("layer11.3.conv.weight",)
    assert table.expected(TABLE, "params/resX/block3/a/kernel") == ()
    assert table.expected(TABLE, "params/res2/block0/a/kernel/more") == ()


def test_load_reads_detects_and_applies(tmp_path):
    content = {"state_dict": {f"module.{k}": writer.view(v) for k, v in tensors().items()}}
    path = writer.write_zip(tmp_path / "toy.pth", content)
    variables, report = convert.load(path, target(), lambda tensors, target: (TABLE,), strict=True)
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], tensors()["fc.bias"])
    text = report.text(full=True)
    assert f"weights from {path} (toy): 12 variables loaded" in text
    assert "params/res3/block10/a/kernel <- layer2.10.conv.weight" in text
    assert "layer1.0.bn.num_batches_tracked" in text
