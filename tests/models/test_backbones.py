"""ResNet, EfficientNet, ConvNeXt: exact counts, multiply-adds, parity with three code bases."""

import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe
from jax import lax

from jaxact.config import UserError
from jaxact.evaluate import cost
from jaxact.models import image_layers, resnet
from jaxact.models.backbones import Backbone
from jaxact.models.specs import BACKBONES, RESNETS, backbone_info
from jaxact.weights import convert, images, table

# Published totals with 1000 classes: parameters, BN buffers (a counter in each BN included),
# tensors; parameters without the classifier.
COUNTS = {
    "resnet18": (11_689_512, 9_620, 122, 11_176_512),
    "resnet34": (21_797_672, 17_060, 218, 21_284_672),
    "resnet50": (25_557_032, 53_173, 320, 23_508_032),
    "resnet101": (44_549_160, 105_448, 626, 42_500_160),
    "efficientnet_b0": (5_288_548, 42_065, 360, 4_007_548),
    "efficientnet_b3": (12_233_232, 87_374, 574, 10_696_232),
    "convnext_tiny": (28_589_128, 0, 182, 27_820_128),
    "convnext_base": (88_591_464, 0, 344, 87_566_464),
}
# Parameters of stem, stages, and EfficientNet's head, ConvNeXt's last norm.
PARTS = {
    "resnet18": (9_536, 147_968, 525_568, 2_099_712, 8_393_728),
    "resnet34": (9_536, 221_952, 1_116_416, 6_822_400, 13_114_368),
    "resnet50": (9_536, 215_808, 1_219_584, 7_098_368, 14_964_736),
    "resnet101": (9_536, 215_808, 1_219_584, 26_090_496, 14_964_736),
    "efficientnet_b0": (
        *(928, 1_448, 16_714, 46_640, 242_930, 543_148, 2_026_348, 717_232, 412_160),
    ),
    "efficientnet_b3": (
        *(1_160, 3_504, 48_118, 110_912, 638_700, 1_387_760, 4_628_964, 3_284_218, 592_896),
    ),
    "convnext_tiny": (4_896, 237_888, 992_256, 11_112_960, 15_470_592, 2 * 768),
    "convnext_base": (6_528, 415_488, 1_748_992, 57_950_208, 27_443_200, 2 * 1024),
}
# Giga multiply-adds that torchvision publishes for its own networks, with the classifier.
MACS = {
    **{"resnet18": (224, 1.814), "resnet34": (224, 3.664)},
    **{"resnet50": (224, 4.089), "resnet101": (224, 7.801)},
    **{"efficientnet_b0": (224, 0.386), "efficientnet_b3": (300, 1.827)},
    **{"convnext_tiny": (224, 4.456), "convnext_base": (224, 15.355)},
}
SEEDS = {  # of the inputs of the golden files, by the file's network and size
    **{"resnet18_96": 101, "resnet34_96": 102, "resnet50_96": 103, "resnet18_224": 109},
    **{"efficientnet_b0_96": 105, "convnext_tiny_96": 107},
}
GOLDEN = (
    *(f"timm_{name}" for name in SEEDS),
    *("torchvision_resnet50_96", "torchvision_convnext_tiny_96"),
    *("hf_resnet18_96", "hf_convnext_tiny_96"),
)


@functools.cache
def abstract(kind: str, **fields):
    """A backbone and its variables as shapes."""
    net = Backbone(kind, implementation="conv", **fields)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return net, jax.eval_shape(lambda x: net.init(jax.random.key(0), x, False), image)


def count(tree) -> int:
    return cost.table(tree)[-1].parameters


def with_classifier(kind: str, classes: int = 1000):
    """Variables as shapes, with a linear classifier beside the backbone."""
    variables = {name: {"backbone": tree} for name, tree in abstract(kind)[1].items()}
    features = backbone_info(kind).features
    shapes = {"kernel": (features, classes), "bias": (classes,)}
    label = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    variables["params"] = {**variables["params"], "head": {"label": label}}
    return variables


@pytest.mark.parametrize("kind", COUNTS)
def test_counts(kind):
    whole, buffers, tensors, headless = COUNTS[kind]
    variables = with_classifier(kind)
    params, stats = variables["params"], variables.get("batch_stats", {})
    norms = len(jax.tree.leaves(stats)) // 2
    assert (count(params), count(params["backbone"])) == (whole, headless)
    assert (count(stats) if norms else 0) + norms == buffers
    assert len(jax.tree.leaves(params)) + 3 * norms == tensors

    backbone = params["backbone"]
    names = [pattern.rstrip("/") for pattern in backbone_info(kind).stages]
    assert tuple(count(backbone[name]) for name in names) == PARTS[kind]
    assert set(names) == set(backbone)


@pytest.mark.parametrize("kind", MACS)
def test_multiply_adds(kind):
    size, published = MACS[kind]
    net, variables = abstract(kind)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    macs = cost.macs(lambda v, x: net.apply(v, x, False), variables, image)
    macs += 1000 * backbone_info(kind).features
    assert round(macs / 1e9, 3) == published


@functools.cache
def forward(kind: str):
    """A compiled forward pass with every stage's map."""
    net = Backbone(kind)
    return jax.jit(lambda variables, image: net.apply(variables, image, False, stages=True))


def outputs(kind, tensors, image):
    """(logits, map, stage maps) of a network under foreign weights."""
    target = with_classifier(kind)
    names = table.detect(tensors, images.tables(tensors, target))
    variables, _ = convert.apply(names, tensors, target, strict=True)
    own = {name: tree["backbone"] for name, tree in variables.items()}
    features, pooled, maps = forward(kind)(own, image.transpose(0, 2, 3, 1))
    label = variables["params"]["head"]["label"]
    return np.asarray(pooled) @ label["kernel"] + label["bias"], features, maps


def our_name(kind: str, stage: str) -> str:
    """What a reference's stage is called here."""
    if stage == "embedder":
        return "pool"
    if stage in ("embeddings", "features0"):
        return "stem"
    number = int(re.sub(r"\D", "", stage) or 0)
    if stage.startswith("features"):  # torchvision's ConvNeXt: stages and what lies between
        return f"stage{number // 2}" if number % 2 else f"down{number // 2}"
    if kind.startswith("resnet") and stage.startswith("stage"):
        return f"layer{number + 1}"
    return stage


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_logits_and_stages(golden, name):
    entry = json.loads((golden / "statedict" / f"{name}.json").read_text())
    numbers = np.load(golden / "cls" / f"{name}.npz")
    network = name.split("_", 1)[1]
    kind, size = network.rsplit("_", 1)
    tensors = {k: recipe.fill(k, v, entry["norm_gain"]) for k, v in entry["tensors"].items()}
    image = recipe.draw(SEEDS[network], (2, 3, int(size), int(size)))
    np.testing.assert_array_equal(image.ravel()[:8], numbers["input/first8"])

    logits, features, maps = outputs(kind, tensors, image)
    np.testing.assert_allclose(logits, numbers["logits"], rtol=0, atol=1e-4)
    stages = {key[:-7] for key in numbers if key.endswith("/sample")}
    assert len(stages) >= 6
    for key in sorted(stages):
        ours = features if key == "feat" else maps[our_name(kind, key.removeprefix("stage/"))]
        ours = np.asarray(ours).transpose(0, 3, 1, 2)
        assert ours.shape == tuple(numbers[f"{key}/shape"])
        sample = ours.ravel()[:: int(numbers[f"{key}/stride"])]
        np.testing.assert_allclose(sample, numbers[f"{key}/sample"], rtol=0, atol=1e-4, err_msg=key)
        stats = [ours.mean(), ours.std(), np.abs(ours).mean(), ours.min(), ours.max()]
        np.testing.assert_allclose(stats, numbers[f"{key}/stats"], rtol=1e-4, atol=1e-4)


def test_tensorflow_form(golden):
    """timm 1.0.31 `tf_efficientnet_b0` with the recipe's weights, gain 1.15: 90 px meets odd maps,
    so every padding is tried; the plain form's logits are up to 0.8 away."""
    lines = (golden / "names" / "efficientnet_b0.sd.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    shapes = {row[0]: tuple(int(n) for n in re.findall(r"\d+", row[1])) for row in rows}
    tensors = {key: recipe.fill(key, shape, 1.15) for key, shape in shapes.items()}
    numbers = np.load(golden / "cls" / "timm_tf_efficientnet_b0_90.npz")
    image = recipe.draw(105, (2, 3, 90, 90))
    np.testing.assert_array_equal(image.ravel()[:8], numbers["input/first8"])
    logits, _, _ = outputs("tf_efficientnet_b0", tensors, image)
    np.testing.assert_allclose(logits, numbers["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [7, 8, 9, 10])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_pads(size, kernel, stride):
    wanted = lax.padtype_to_pads((size, size + 1), (kernel, kernel), (stride, stride), "SAME")
    assert image_layers.same_pads((size, size + 1), kernel, stride) == tuple(wanted)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (9, 5, 2), (7, 7, 1)])
def test_depthwise_is_a_grouped_convolution(size, kernel, stride, same):
    image = recipe.draw(1, (2, size, size + 1, 3))
    layer = image_layers.Depthwise(kernel, stride, same, use_bias=True, implementation="shift")
    weights = {"kernel": recipe.draw(2, (kernel, kernel, 1, 3)), "bias": recipe.draw(3, (3,))}
    half = (kernel // 2, kernel // 2)
    wanted = lax.conv_general_dilated(
        image,
        weights["kernel"],
        (stride, stride),
        "SAME" if same else [half, half],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    for how in ("shift", "conv"):
        filtered = jax.jit(layer.clone(implementation=how).apply)({"params": weights}, image)
        np.testing.assert_allclose(filtered, wanted + weights["bias"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "fields", "pads"),
    [
        (1, 1, {}, "VALID"),
        (1, 2, {}, "VALID"),
        (2, 2, {"patch": True}, "VALID"),
        (4, 4, {"patch": True}, "VALID"),
        (3, 1, {"patch": True}, "VALID"),
        (3, 2, {}, [(1, 1), (1, 1)]),
        (3, 2, {"same": True}, "SAME"),
    ],
)
def test_every_way_to_convolve(kernel, stride, fields, pads):
    weights = {"kernel": recipe.draw(2, (kernel, kernel, 3, 5))}
    layer = image_layers.Conv(5, kernel, stride, **fields)
    smallest = kernel if pads == "VALID" else 1  # without padding the kernel must find a place
    for size in ((10, 11), (smallest + 1, smallest + 2), (smallest, smallest)):
        image = recipe.draw(1, (2, *size, 3))
        wanted = lax.conv_general_dilated(
            image,
            weights["kernel"],
            (stride, stride),
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        filtered = layer.apply({"params": weights}, image)
        np.testing.assert_allclose(filtered, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", BACKBONES)
def test_info_covers_every_parameter_once(kind):
    facts, (net, variables) = backbone_info(kind), abstract(kind)
    paths = table.flatten(variables["params"])
    for path in paths:
        assert sum(bool(re.match(pattern, path)) for pattern in facts.stages) == 1, path
    for pattern in facts.stages:
        assert any(re.match(pattern, path) for path in paths)
    late = [path for path in paths if re.match(facts.last_stage, path)]
    kept = [name for name in facts.stages if any(re.match(name, path) for path in late)]
    assert kept == list(facts.stages[-len(kept) :]) and 0 < len(late) < len(paths)
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    features, pooled = jax.eval_shape(lambda v, x: net.apply(v, x, False), variables, image)
    assert pooled.shape == (2, facts.features) and pooled.dtype == jnp.float32
    assert features.shape[-1] == facts.features and features.ndim == 4
    assert set(COUNTS) <= set(BACKBONES)


def test_small_networks_keep_more_of_the_map():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    sides = {}
    for kind in ("resnet18", "resnet10_w32", "resnet10_w16_s1"):
        net, variables = abstract(kind)
        maps = jax.eval_shape(lambda v, x, net=net: net.apply(v, x, False), variables, image)
        sides[kind] = maps[0].shape[1]
    assert sides == {"resnet18": 2, "resnet10_w32": 4, "resnet10_w16_s1": 8}


@pytest.mark.parametrize("kind", ["resnet10_w8", "efficientnet_b0", "convnext_tiny"])
def test_remat_keeps_the_tree(kind):
    plain, again = abstract(kind)[1], abstract(kind, remat=True)[1]
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, again)


def test_remat_and_training_of_a_stage():
    image = recipe.draw(1, (4, 8, 8, 6))
    passes = []
    for remat in (False, True):
        stage = resnet.Stage(RESNETS["resnet10_w8"], 1, remat=remat)
        shapes = jax.eval_shape(lambda x, net=stage: net.init(jax.random.key(0), x, False), image)
        variables = jax.tree.map(lambda x: 0.1 * recipe.draw(sum(x.shape), x.shape) + 0.3, shapes)

        def loss(params, net=stage, variables=variables):
            y, state = net.apply(
                {**variables, "params": params}, image, True, mutable=["batch_stats"]
            )
            return (y**2).mean(), state

        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, state), gradient = run(variables["params"])
        passes.append((value, state, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *passes)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(passes[0][2]))
    before = {"batch_stats": variables["batch_stats"]}
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), passes[0][1], before)
    assert min(jax.tree.leaves(moved)) > 0


class Branch(nn.Module):
    """Ones through drop path."""

    rate: float

    @nn.compact
    def __call__(self, x, train):
        return image_layers.drop_path(x, self.rate, train)


def test_drop_path_drops_whole_examples():
    x = jnp.ones((4000, 2, 2, 1))
    y = np.asarray(Branch(0.25).apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    kept = y[:, 0, 0, 0]
    np.testing.assert_array_equal(y, np.broadcast_to(kept[:, None, None, None], y.shape))
    np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-6)
    assert abs((kept > 0).mean() - 0.75) < 0.03
    np.testing.assert_array_equal(Branch(0.25).apply({}, x, False), x)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        # Blocks whose shapes agree: all but the first of each stage, here numbers 2, 4, 6, 7, ...
        ("efficientnet_b0", [0.2 * i / 16 for i in (2, 4, 6, 7, 9, 10, 12, 13, 14)]),
        ("convnext_tiny", [0.2 * i / 17 for i in range(1, 18)]),
    ],
)
def test_drop_path_grows_with_depth(kind, rates, remat):
    seen = {}

    def watch(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            assert not context.module.deterministic
            seen["/".join(context.module.path)] = context.module.rate
        return call(*args, **kwargs)

    net, variables = abstract(kind, drop_path=0.2, remat=remat)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(
            lambda v, x: net.apply(
                v, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
            ),
            variables,
            image,
        )
    np.testing.assert_allclose(list(seen.values()), rates, rtol=1e-6)


def test_compute_type():
    net, variables = abstract("convnext_tiny", dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    features, pooled = jax.eval_shape(lambda v, x: net.apply(v, x, False), variables, image)
    assert (features.dtype, pooled.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_mistakes():
    with pytest.raises(UserError, match=r"backbone 'resnet19': choose one of resnet18, .*convnext"):
        backbone_info("resnet19")
    with pytest.raises(
        UserError, match=r"drop_path 0\.1 with backbone 'resnet10_w8': allowed is 0"
    ):
        abstract("resnet10_w8", drop_path=0.1)
