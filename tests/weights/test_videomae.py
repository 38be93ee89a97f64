"""VideoMAE and AdaTAD weights under every published naming: each key once, each variable once."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe
from weights import inverse, writer

from jaxact.config import UserError
from jaxact.models import videomae
from jaxact.models.specs import RANGES, VisionTransformerSpec
from jaxact.ops import position
from jaxact.tasks.detection import network
from jaxact.tasks.detection.config import Backbone, Model
from jaxact.weights import adatad, convert, table
from jaxact.weights import videomae as names

CASES = {
    "mcg_videomae_small_160": "MCG-NJU VideoMAE",
    "mmaction2_videomae_small_160": "MMAction2 VideoMAE",
    "hf_videomae_small_160": "Hugging Face VideoMAE, linear biases",
}
SPEC = VisionTransformerSpec(24, 2, 2, 48, 16, 48)
WINDOW = jax.ShapeDtypeStruct((1, 16, 32, 32, 3), jnp.float32)


def shapes(model, *inputs):
    return jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)


@functools.cache
def small():
    return shapes(videomae.VideoMAEClassifier(400), WINDOW)


def tensors_of(golden, case):
    entry = json.loads((golden / "statedict" / f"{case}.json").read_text())
    tensors = {k: recipe.fill(k, v, entry["norm_gain"]) for k, v in entry["tensors"].items()}
    for key in entry["kept"]:
        tensors[key] = position.sincos(1568, 384)[None]
    total = sum(np.asarray(x, np.float64).sum() for x in tensors.values())
    np.testing.assert_allclose(total, entry["checksum"]["sum"], rtol=1e-6)
    return tensors


@pytest.mark.parametrize("case", CASES)
def test_every_key_and_every_variable_is_used_once(golden, case):
    tensors = tensors_of(golden, case)
    naming = table.detect(tensors, adatad.TABLES)
    assert naming.name == CASES[case]
    names.check(tensors, "here")
    variables, report = convert.apply(naming, tensors, small(), strict=True)
    extra = {key for key in tensors if key.endswith("pos_embed")}
    assert set(report.ignored) == extra and not (report.unused or report.missing or report.replaced)
    targets = [path for path, _ in report.loaded]
    assert sorted(targets) == sorted(table.flatten(small()))
    back = inverse.invert(naming, variables)
    assert back.keys() == tensors.keys() - extra
    for key, value in back.items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)


def test_the_older_biases_of_hugging_face(golden):
    """Published files have q_bias and v_bias; later releases write query.bias and a zero key."""
    new = tensors_of(golden, "hf_videomae_small_160")
    old = {
        k.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): v for k, v in new.items()
    }
    zero = {k.replace("query.bias", "key.bias"): 0 * v for k, v in new.items() if "query.bias" in k}
    results = []
    for tensors in (new, old, {**new, **zero}):
        names.check(tensors, "here")
        naming = table.detect(tensors, names.TABLES)
        results.append(convert.apply(naming, tensors, small(), strict=True))
        assert sorted(results[-1][1].ignored) == sorted(zero.keys() & tensors.keys())
    for variables, _ in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, variables, results[0][0])
    key = next(iter(zero))
    with pytest.raises(UserError, match="is not zero"):
        names.check({**new, **zero, key: zero[key] + 0.1}, "here")


def test_learned_positions_are_refused():
    table_ = np.random.default_rng(0).standard_normal((1, 1568, 24)).astype(np.float32)
    with pytest.raises(UserError, match=r"file\.pth: 'backbone\.pos_embed' is not the sine table"):
        names.check({"backbone.pos_embed": table_}, "file.pth")


# ------------------------------------------------------------------------------------ detectors


class Small(Model):
    """One convolution before the transformer."""

    embed = 1


def build(mode="adapter", classes=3, spec=SPEC, **fields):
    backbone = Backbone(mode=mode, drop_path=0.0, remat=False, **fields)
    model = network.Detector(
        Small(classes, 16, 2, 1, 1, ranges=RANGES[:4], backbone=backbone), spec
    )
    return shapes(model, WINDOW, jax.ShapeDtypeStruct((1, 8), bool))


def numbers(target, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), target)


def checkpoint(variables, extra=True):
    """A Detector's variables as OpenTAD saves them."""
    tensors = inverse.invert(adatad.ADATAD, variables)
    if extra:
        tensors["backbone.model.backbone.pos_embed"] = position.sincos(72, 24)[None]
    return {f"module.{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize(("mode", "first"), [("adapter", 0), ("side", 1), ("full", 0)])
def test_a_detector_goes_there_and_back(tmp_path, mode, first):
    target = build(mode, first=first)
    raw, averaged = numbers(target), numbers(target, 1)
    content = {"epoch": 59, "state_dict": checkpoint(raw), "state_dict_ema": checkpoint(averaged)}
    path = tmp_path / "epoch_59.pth"
    writer.write_zip(path, content)
    for weights, wanted in (("ema", averaged), ("raw", raw)):
        loaded, report = adatad.load(path, target, weights, strict=True)
        jax.tree.map(np.testing.assert_array_equal, loaded, wanted)
        assert report.table == "OpenTAD AdaTAD" and not report.missing
        assert ("moving average" in report.text()) == (weights == "ema")
    with pytest.raises(UserError, match="choose ema or raw"):
        adatad.load(path, target, "mean")


def test_names_of_a_published_checkpoint():
    """The keys that the specification of OpenTAD's files lists."""
    tensors = checkpoint(numbers(build()))
    vit = "module.backbone.model.backbone."
    for part in ("down_proj.weight", "dwconv.bias", "conv.weight", "up_proj.bias", "gamma"):
        assert f"{vit}blocks.1.adapter.{part}" in tensors
    for key, shape in {
        "projection.embed.0.conv.weight": (16, 24, 3),
        "projection.stem.0.attn.query_conv.conv.weight": (16, 1, 3),
        "projection.branch.0.attn.proj.weight": (16, 16, 1),
        "projection.stem.0.mlp.3.weight": (16, 64, 1),
        "projection.stem.0.drop_path_attn.scale": (1, 16, 1),
        "neck.fpn_norms.1.weight": (16,),
        "rpn_head.cls_convs.0.norm.bias": (16,),
        "rpn_head.reg_head.weight": (2, 16, 3),
        "rpn_head.scale.1.scale": (),
        "rpn_head.loss_normalizer": (),
    }.items():
        assert tensors[f"module.{key}"].shape == shape, key
    assert tensors[f"{vit}blocks.0.adapter.dwconv.weight"].shape == (6, 1, 3)
    assert tensors[f"{vit}patch_embed.projection.weight"].shape == (24, 3, 2, 16, 16)
    assert any("ladders.adapters.0.gamma" in key for key in checkpoint(numbers(build("side"))))


def write(path, variables, case=names.TABLES[1]):
    """A Kinetics classifier in OpenTAD's `_my` form."""
    tensors = inverse.invert(case, variables)
    tensors["backbone.pos_embed"] = position.sincos(72, 24)[None]
    writer.write_zip(path, {"state_dict": tensors})
    return path


@pytest.fixture(scope="module")
def pretrained():
    return numbers(shapes(videomae.VideoMAEClassifier(400, SPEC), WINDOW))


def test_a_pretrained_network_into_a_detector(tmp_path, pretrained):
    """The network whole; adapters and detector keep their values and the report says so."""
    path, target = write(tmp_path / "vit.pth", pretrained), numbers(build(), 2)
    loaded, report = adatad.load(path, target)
    flat, given = table.flatten(loaded), table.flatten(pretrained)
    for name, value in table.flatten(target).items():
        part = name.startswith("params/backbone/") and "adapter" not in name
        np.testing.assert_array_equal(flat[name], given[name] if part else value)
    assert set(report.unused) == {"cls_head.fc_cls.weight", "cls_head.fc_cls.bias"}
    assert "params/backbone/adapter1/gamma" in report.missing
    assert "params/head/cls/kernel" in report.missing
    assert "not in the file" in report.text()


def test_a_safetensors_file_of_hugging_face(tmp_path, pretrained):
    tensors = inverse.invert(names.TABLES[2], pretrained)
    path = writer.write_safetensors(tmp_path / "model.safetensors", tensors)
    loaded, report = adatad.load(path, build())
    ours, given = (table.flatten(each["params"]["backbone"]) for each in (loaded, pretrained))
    for name, value in given.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert report.table == "Hugging Face VideoMAE"


def test_a_detector_of_other_classes(tmp_path):
    path = tmp_path / "a.pth"
    writer.write_zip(path, {"state_dict": checkpoint(numbers(build(classes=20)))})
    target = numbers(build(), 1)
    loaded, report = adatad.load(path, target)
    np.testing.assert_array_equal(
        loaded["params"]["head"]["cls"]["kernel"], target["params"]["head"]["cls"]["kernel"]
    )
    assert len(report.replaced) == 2 and not report.missing


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (VisionTransformerSpec(48, 2, 2, 96, 16, 48), "sizes differ"),
        (VisionTransformerSpec(24, 3, 2, 48, 16, 48), "variables not in the file"),
        (VisionTransformerSpec(24, 1, 2, 48, 16, 48), "keys in the file fit nothing"),
    ],
)
def test_weights_of_another_size_are_one_line(tmp_path, pretrained, spec, told):
    path = write(tmp_path / "vit.pth", pretrained)
    with pytest.raises(UserError, match=told) as error:
        adatad.load(path, build(spec=spec))
    assert "\n" not in str(error.value) and "vit.pth" in str(error.value)


def test_weights_of_another_kind_are_one_line(tmp_path):
    path = tmp_path / "resnet.pth"
    writer.write_zip(path, {"layer1.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32)})
    with pytest.raises(UserError, match="unknown naming") as error:
        adatad.load(path, build())
    assert "OpenTAD AdaTAD" in str(error.value) and "\n" not in str(error.value)
