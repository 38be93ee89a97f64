"""ResNet, EfficientNet and ConvNeXt weights under the names of three code bases."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import inverse, writer

from jaxact.config import UserError
from jaxact.models.backbones import Backbone
from jaxact.models.specs import backbone_info
from jaxact.weights import images, pixels, table

LISTS = (
    *(f"{prefix}{name}.sd" for prefix in ("", "tv_") for name in (
        *("resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0", "efficientnet_b3"),
        *("convnext_tiny", "convnext_base"),
    )),
    *("hf_resnet18", "hf_resnet50", "hf_efficientnet_b0", "hf_convnext_tiny", "hf_convnext_base"),
)  # fmt: skip
FAMILIES = {"resnet": "ResNet", "efficientnet": "EfficientNet", "convnext": "ConvNeXt"}


@functools.cache
def shapes(kind, heads=(("label", 1000),)):
    """Variables of a backbone and its linear heads, as shapes."""
    net = Backbone(kind, implementation="conv")
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    trees = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, False), image)
    variables = {collection: {"backbone": tree} for collection, tree in trees.items()}
    width = backbone_info(kind).features
    variables["params"]["head"] = {
        name: {
            "kernel": jax.ShapeDtypeStruct((width, classes), jnp.float32),
            "bias": jax.ShapeDtypeStruct((classes,), jnp.float32),
        }
        for name, classes in heads
    }
    return variables


def drawn(variables, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.5 + rng.random(x.shape, np.float32), variables)


def listed(path):
    """Tensors of a list of names and shapes, without values."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    sizes = {row[0]: tuple(int(n) for n in re.findall(r"\d+", row[1])) for row in rows}
    return {key: np.broadcast_to(np.float32(0), size) for key, size in sizes.items()}


@pytest.mark.parametrize("name", LISTS)
def test_every_key_and_every_variable_is_used_once(golden, name):
    tensors = listed(golden / "names" / f"{name}.txt")
    kind = re.sub(r"^(tv|hf)_|\.sd$", "", name)
    target = shapes(kind)
    naming = table.detect(tensors, images.tables(tensors, target))
    code_base = {"tv_": "torchvision", "hf_": "Hugging Face"}.get(name[:3], "timm")
    family = FAMILIES[kind.split("_")[0].rstrip("0123456789")]
    assert code_base in naming.name and naming.name.endswith(family)

    converted, wanted = table.translate(naming, tensors), table.flatten(target)
    counters = [key for key in tensors if key.endswith("num_batches_tracked")]
    assert not converted.unknown and sorted(converted.ignored) == sorted(counters)
    ours = {path: tuple(leaf.shape) for path, leaf in wanted.items()}
    assert {path: leaf.shape for path, leaf in converted.flat.items()} == ours
    used = [key for keys in converted.origin.values() for key in keys]
    assert len(set(used)) == len(used) == len(tensors) - len(counters)
    assert len({rule.target for rule in naming.rules}) == len(naming.rules)
    for path in wanted:  # what an error would name
        assert table.expected(naming, path) == converted.origin[path]


def test_layouts_and_back():
    target = shapes("efficientnet_b0")
    timm, torchvision, _ = images.tables({}, target)
    variables = drawn(target)
    for names in (timm, torchvision):
        tensors = inverse.invert(names, variables)
        flat = table.translate(names, tensors).flat
        for path, value in table.flatten(variables).items():
            np.testing.assert_array_equal(flat[path], value, path)
    block = variables["params"]["backbone"]["blocks1"]["block0"]
    dense, depthwise = (block[name]["kernel"] for name in ("expand", "filter"))
    assert tensors["features.2.0.block.0.0.weight"][7, 3, 0, 0] == dense[0, 0, 3, 7]
    assert tensors["features.2.0.block.1.0.weight"][7, 0, 2, 1] == depthwise[2, 1, 0, 7]
    squeeze = block["se"]["reduce"]["kernel"]
    assert tensors["features.2.0.block.2.fc1.weight"][2, 5, 0, 0] == squeeze[5, 2]


def write(path, variables, change=None, kind="timm", metadata=None):
    """A weights file under some naming."""
    names = next(t for t in images.tables({}, variables) if kind in t.name)
    tensors = inverse.invert(names, variables)
    if change:
        tensors = change(tensors) or tensors
    if path.suffix == ".safetensors":
        return writer.write_safetensors(path, tensors, metadata)
    return writer.write_zip(path, {"state_dict": {k: writer.view(v) for k, v in tensors.items()}})


SMALL = "resnet10_w8"


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_round_trip(tmp_path, name):
    variables = drawn(shapes(SMALL))
    path = write(tmp_path / name, variables)
    loaded, text, told = images.load(path, drawn(shapes(SMALL), 1), SMALL, strict=True)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert "timm and torchvision ResNet" in text and "ImageNet's by default" in text
    assert told == pixels.Preprocessing()


def test_another_number_of_classes_keeps_the_new_head(tmp_path):
    path = write(tmp_path / "w.safetensors", drawn(shapes(SMALL)))
    target = drawn(shapes(SMALL, (("label", 61), ("crop", 10))), 1)
    loaded, text, _ = images.load(path, target, SMALL)
    for head in ("label", "crop"):
        assert loaded["params"]["head"][head] == target["params"]["head"][head]
    assert "kept their initial values, sizes differ: 2" in text
    assert "params/head/label/kernel (64, 61), (64, 1000) in the file" in text
    assert "params/head/crop/kernel" in text


def test_a_backbone_alone(tmp_path):
    def bare(tensors):
        return {k.removeprefix("resnet."): v for k, v in tensors.items() if "classifier" not in k}

    variables = drawn(shapes(SMALL))
    names = images.tables({"resnet.": 0}, variables)[1]
    tensors = bare(inverse.invert(names, variables))
    assert "encoder.stages.3.layers.0.layer.1.convolution.weight" in tensors
    path = writer.write_safetensors(tmp_path / "model.safetensors", tensors)
    target = drawn(shapes(SMALL), 1)
    loaded, text, _ = images.load(path, target, SMALL)
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded["params"]["backbone"],
        variables["params"]["backbone"],
    )
    assert loaded["params"]["head"] == target["params"]["head"]
    assert "not in the file: 2" in text
    with pytest.raises(UserError, match="2 variables not in the file"):
        images.load(path, target, SMALL, strict=True)


def test_a_renamed_missing_or_surplus_key_is_named(tmp_path):
    variables, old = drawn(shapes(SMALL)), "layer2.0.downsample.1.bias"
    changes = {
        rf"fit nothing: 'layer2\.0\.downsample\.1\.bais' close to '{old}'": lambda t: t.update(
            {"layer2.0.downsample.1.bais": t.pop(old)}
        ),
        r"variables not in the file: 'params/backbone/layer2/block0/shortcut_bn/bias'": lambda t: (
            t.pop(old) is None
        ),
        r"1 keys in the file fit nothing: 'aux\.weight'": lambda t: t.update(
            {"aux.weight": t[old]}
        ),
        r"sizes differ: params/backbone/stem/conv/kernel <- conv1\.weight": lambda t: t.update(
            {"conv1.weight": t["conv1.weight"][:, :1]}
        ),
    }
    for message, change in changes.items():
        path = write(tmp_path / "w.pth", variables, change)
        with pytest.raises(UserError, match=message) as error:
            images.load(path, variables, SMALL)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_another_family_or_depth_is_refused(tmp_path):
    path = write(tmp_path / "w.pth", drawn(shapes(SMALL)))
    with pytest.raises(UserError, match=r"unknown naming.*supported: timm ConvNeXt, torchvision"):
        images.load(path, shapes("convnext_tiny"), "convnext_tiny")
    with pytest.raises(UserError, match=r"variables not in the file: .*layer1/block1"):
        images.load(path, shapes("resnet18_w32"), "resnet18_w32")
    with pytest.raises(UserError, match="no ResNet, EfficientNet or ConvNeXt"):
        images.tables({}, {"params": {"rgb": {"kernel": 0}}})


def test_efficientnet_must_be_of_its_form(golden, tmp_path):
    def save(name):
        # The form is told by names alone, before any size is looked at.
        tensors = dict.fromkeys(listed(golden / "names" / name), np.zeros(0, np.float32))
        return writer.write_safetensors(tmp_path / "model.safetensors", tensors)

    config = tmp_path / "config.json"
    for name, architecture, kind, message in (
        (
            "hf_efficientnet_b0.txt",
            "",
            "efficientnet_b0",
            "need backbone 'tf_efficientnet_b0', not",
        ),
        ("tv_efficientnet_b0.sd.txt", "", "tf_efficientnet_b0", "need backbone 'efficientnet_b0'"),
        *(
            ("efficientnet_b0.sd.txt", first, second, f"need backbone '{first}'")
            for first, second in (
                ("tf_efficientnet_b0", "efficientnet_b0"),
                ("efficientnet_b0", "tf_efficientnet_b0"),
            )
        ),
    ):
        config.write_text(json.dumps({"architecture": architecture, "pretrained_cfg": {}}))
        with pytest.raises(UserError, match=message):
            images.load(save(name), shapes(kind), kind)


def test_preprocessing_beside_the_file(tmp_path):
    path = write(tmp_path / "model.safetensors", drawn(shapes(SMALL)))
    assert pixels.preprocessing(path) == pixels.Preprocessing()

    config = tmp_path / "config.json"
    config.write_text(json.dumps({"image_size": 300, "model_type": "efficientnet"}))
    assert pixels.preprocessing(path).size == 300
    told = {"input_size": [3, 288, 288], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.95}
    config.write_text(json.dumps({"architecture": "resnet50", "pretrained_cfg": told}))
    wanted = pixels.Preprocessing(
        (0.5,) * 3, (0.25,) * 3, 288, 0.95, architecture="resnet50", source="config.json"
    )
    assert pixels.preprocessing(path) == wanted
    assert images.load(path, shapes(SMALL), SMALL)[2] == wanted

    processor = tmp_path / "preprocessor_config.json"
    base = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 0.5]}
    for size, side in (
        *((224, 224), ({"shortest_edge": 236}, 236), ({"height": 346, "width": 346}, 346)),
    ):
        processor.write_text(json.dumps({**base, "size": size, "crop_pct": None}))
        seen = pixels.preprocessing(path)
        assert (seen.mean, seen.std, seen.size) == (
            (0.1, 0.2, 0.3),
            (1.0, 1.0, 0.5),
            side,
        )
    crop = {"size": 256, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    processor.write_text(json.dumps({**base, **crop}))
    assert pixels.preprocessing(path).size == 224

    own = {"pretrained_cfg": json.dumps({"mean": [0.4] * 3, "architecture": "resnet18"})}
    path = write(tmp_path / "model.safetensors", drawn(shapes(SMALL)), metadata=own)
    seen = pixels.preprocessing(path)
    assert (seen.mean, seen.source) == ((0.4,) * 3, "model.safetensors metadata")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image_mean": [0.5, 0.5]}', r"image_mean \[0.5, 0.5\]: 3 numbers are allowed"),
        ('{"image_std": [0.5, 0.5, 0]}', r"image_std .*numbers above 0"),
        ('{"image_mean": [0.5, 0.5, "a"]}', r"image_mean 'a': a number"),
        ('{"image_mean": [0.5, 0.5, NaN]}', r"image_mean nan: a number"),
        ('{"size": {"longest": 3}}', r"size None: pixels, 1 to 16384"),
        ('{"size": 0}', r"size 0: pixels"),
        ('{"size": 22', r"not JSON"),
        ("[1]", r"holds a list, not an object"),
    ],
)
def test_damaged_preprocessing(tmp_path, content, message):
    beside = tmp_path / "preprocessor_config.json"
    beside.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        pixels.preprocessing(tmp_path / "model.pth")
    assert str(error.value).startswith(str(beside)) and "\n" not in str(error.value)


def test_damaged_header(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 12)
    with pytest.raises(UserError, match="header cannot be read"):
        pixels.preprocessing(path)
