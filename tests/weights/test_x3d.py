"""X3D, X-Shift, EPAM-Net and PCAN weights under every published naming."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe
from weights import inverse, writer

from jaxact.config import UserError
from jaxact.models import heads, recognizer
from jaxact.models import x3d as models
from jaxact.models.specs import X3DSpec
from jaxact.weights import convert, table, x3d

BLOCKS = (2, 1)  # small nets where size does not matter
SMALL = X3DSpec(blocks=BLOCKS, width=8)
SMALL_SHIFT = X3DSpec(blocks=BLOCKS, width=8, temporal="shift")
X3D = {"streams": "rgb", "head_kind": "x3d", "classes": 400}
COARSE_MAP = tuple(k % 8 for k in range(60))
SHALLOW = X3DSpec(blocks=(2, 5, 3), se="none", swish=False)

CASES = {
    **{f"slowfast_x3d_{size}": ("SlowFast X3D", X3D) for size in ("xs", "s", "m")},
    "slowfast_x3d_l": ("SlowFast X3D", {**X3D, "rgb": models.X3D_L}),
    **{
        f"pytorchvideo_x3d_{size}": (
            "PyTorchVideo X3D",
            {**X3D, "rgb": X3DSpec(res2_shortcut_bn=False)},
        )
        for size in ("xs", "s", "m")
    },
    **{f"mmaction2_x3d_{size}": ("MMAction2 X3D", X3D) for size in ("xs", "s", "m")},
    "pyskl_x3d_shallow_48": (
        "PYSKL X3D",
        {"streams": "pose", "pose": SHALLOW, "classes": 60},
    ),
    "epamnet_full": ("EPAM-Net", {"classes": 60, "use_attention": True}),
    "pcan_full_eval": (
        "PCAN RGB + pose X3D",
        {"classes": 60, "coarse_classes": 8, "prototypes": heads.Prototypes(COARSE_MAP)},
    ),
}


def variables_of(classes, streams="rgb+pose", rgb=models.X3D_M, concrete=False, **fields):
    """Shapes of a Recognizer's variables, or numbers drawn for them."""
    if streams != "rgb" and "rgb" not in fields and rgb is models.X3D_M:
        rgb = models.X_SHIFT_RGB
    net = recognizer.Recognizer(classes, streams, rgb, **fields)
    clips = {
        "rgb": jax.ShapeDtypeStruct((1, 2, 32, 32, 3), jnp.float32),
        "pose": jax.ShapeDtypeStruct((1, 2, 8, 8, 17), jnp.float32),
    }
    inputs = [clips[s] if s in streams.split("+") else None for s in ("rgb", "pose")]
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    shapes = jax.eval_shape(
        lambda key, rgb, pose: net.init({"params": key}, rgb, pose, train=False), key, *inputs
    )
    if not concrete:
        return shapes
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.5 + rng.random(x.shape, np.float32), shapes)


@functools.cache
def cached_shapes(case):
    return variables_of(**CASES[case][1])


@functools.cache
def filled(path):
    entry = json.loads(path.read_text())
    return {k: recipe.fill(k, v, entry["norm_gain"]) for k, v in entry["tensors"].items()}


@pytest.mark.parametrize("case", CASES)
def test_every_key_and_every_variable_is_used_once(golden, case):
    name, _ = CASES[case]
    tensors, target = filled(golden / "statedict" / f"{case}.json"), cached_shapes(case)
    naming = table.detect(tensors, x3d.tables(tensors, target))
    assert naming.name == name
    variables, report = convert.apply(naming, tensors, target, strict=True)

    coarse = [f"prototypes/head/{stream}_coarse_prototype" for stream in ("pose", "rgb")]
    assert sorted(report.missing) == (coarse if case == "pcan_full_eval" else [])
    assert not (report.unused or report.replaced or report.mismatched or report.notes)
    counters = {key for key in tensors if key.endswith("num_batches_tracked")}
    assert set(report.ignored) == counters
    loaded = [target_path for target_path, _ in report.loaded]
    assert len(set(loaded)) == len(loaded) == len(tensors) - len(counters)
    assert len(loaded) + len(report.missing) == len(table.flatten(target))
    names = {v.target for v in naming.rules}
    assert len(names) == len(naming.rules)

    kept = {path: v for path, v in table.flatten(variables).items() if path not in coarse}
    back = inverse.invert(naming, kept)
    assert back.keys() == tensors.keys() - counters
    for key, value in back.items():
        np.testing.assert_array_equal(value, tensors[key], key)


def test_pytorchvideo_stem_names_are_swapped(golden):
    tensors = filled(golden / "statedict" / "pytorchvideo_x3d_xs.json")
    flat = table.translate(x3d.PYTORCHVIDEO, tensors).flat
    spatial, temporal = (
        tensors["blocks.0.conv.conv_t.weight"],
        tensors["blocks.0.conv.conv_xy.weight"],
    )
    assert flat["params/rgb/stem/conv_s/kernel"][0, 2, 1, 1, 7] == spatial[7, 1, 0, 2, 1]
    assert flat["params/rgb/stem/conv_t/kernel"][4, 0, 0, 0, 7] == temporal[7, 0, 4, 0, 0]


def small_file(path, names=x3d.SLOWFAST, change=None, **fields):
    """Random weights of a small net under some naming, written as a checkpoint file."""
    fields = {"streams": "rgb", "head_kind": "x3d", "rgb": SMALL, "classes": 5, **fields}
    variables = variables_of(**fields, concrete=True)
    tensors = inverse.invert(names, variables)
    if change:
        change(tensors)
    return writer.write_zip(path, {"state_dict": {k: writer.view(v) for k, v in tensors.items()}})


@pytest.fixture(scope="module")
def two_streams():
    pose = X3DSpec(blocks=BLOCKS, width=8, temporal="shift", fold_div=4, stem_stride=1)
    return variables_of(3, rgb=SMALL_SHIFT, pose=pose, concrete=True)


def test_a_file_round_trip(tmp_path):
    variables = variables_of(5, "rgb", SMALL, head_kind="x3d", concrete=True)
    shapes = variables_of(5, "rgb", SMALL, head_kind="x3d")
    loaded, _ = x3d.load(small_file(tmp_path / "a.pyth"), shapes, strict=True)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))


def test_a_renamed_missing_or_surplus_key_is_named(tmp_path):
    shapes = variables_of(5, "rgb", SMALL, head_kind="x3d")
    old, new = "s2.pathway0_res1.branch2.b_bn.bias", "s2.pathway0_res1.branch2.bbn.bias"

    def renamed(tensors):
        tensors[new] = tensors.pop(old)

    for strict in (True, False):
        with pytest.raises(UserError) as error:
            x3d.load(small_file(tmp_path / "a.pyth", change=renamed), shapes, strict=strict)
        assert f"'{new}' close to '{old}'" in str(error.value)
        assert "'params/rgb/res2/block1/b_bn/bias'" in str(error.value)
        with pytest.raises(
            UserError, match=r"1 variables not in the file: .*res2/block1/b_bn/bias"
        ):
            x3d.load(small_file(tmp_path / "a.pyth", change=lambda t: t.pop(old)), shapes)
        with pytest.raises(UserError, match=r"fit nothing: 's9\.extra'"):
            x3d.load(
                small_file(tmp_path / "a.pyth", change=lambda t: t.update({"s9.extra": t[old]})),
                shapes,
            )


def test_another_depth_is_an_error_even_for_an_initial_value(tmp_path):
    deeper = X3DSpec(blocks=(3, 1), width=8)
    path = small_file(tmp_path / "a.pyth", rgb=deeper)
    with pytest.raises(UserError, match=r"fit nothing: .*s2\.pathway0_res2"):
        x3d.load(path, variables_of(5, "rgb", SMALL, head_kind="x3d"))


def test_another_number_of_classes_keeps_the_new_head(tmp_path):
    target = variables_of(7, "rgb", SMALL, head_kind="x3d", concrete=True)
    path = small_file(tmp_path / "a.pyth")
    loaded, report = x3d.load(path, target, strict=True)
    for leaf in ("kernel", "bias"):
        assert loaded["params"]["head"]["rgb"][leaf] is target["params"]["head"]["rgb"][leaf]
    text = report.text(full=True)
    assert "kept their initial values, sizes differ: 2" in text
    assert "params/head/rgb/kernel (2048, 7), (2048, 5) in the file" in text
    assert len(report.loaded) == len(table.flatten(target)) - 2


def test_x3d_starts_one_stream_of_two(tmp_path, two_streams):
    path = small_file(tmp_path / "a.pyth", classes=3)
    with pytest.raises(UserError, match="not in the file"):
        x3d.load(path, two_streams, strict=True)
    loaded, report = x3d.load(path, two_streams)
    assert report.notes == ["rgb: X3D kernels summed over time for X-Shift"]
    assert {name.split("/")[1] for name in report.missing} == {"pose", "head"}
    assert [name.split(" ")[0] for name in report.replaced] == [
        "params/head/rgb/bias",
        "params/head/rgb/kernel",
    ]
    assert set(report.unused) == {
        *("head.lin_5.weight", "head.projection.weight", "head.projection.bias")
    }
    jax.tree.map(
        np.testing.assert_array_equal, loaded["params"]["pose"], two_streams["params"]["pose"]
    )
    source = variables_of(3, "rgb", SMALL, head_kind="x3d", concrete=True)["params"]["rgb"]
    kernel = source["res3"]["block0"]["b"]["kernel"].sum(0, keepdims=True)
    np.testing.assert_array_equal(loaded["params"]["rgb"]["res3"]["block0"]["b"]["kernel"], kernel)


def test_streams_trained_alone_fill_both(tmp_path, two_streams):
    loaded = jax.tree.map(np.zeros_like, two_streams)
    for stream in ("rgb", "pose"):
        alone = {
            collection: {
                stream: tree[stream],
                **({"head": {stream: tree["head"][stream]}} if "head" in tree else {}),
            }
            for collection, tree in two_streams.items()
        }
        tensors = inverse.invert(x3d.xshift(stream), alone)
        content = {"state_dict": {key: writer.view(value) for key, value in tensors.items()}}
        path = writer.write_legacy(tmp_path / f"{stream}.pth", content)
        loaded, report = x3d.load(path, loaded)
        assert report.table == "MMAction2 X-Shift" and not report.unused
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(two_streams))


def test_pytorchvideo_in_a_net_with_the_first_shortcut_bn(tmp_path):
    without = X3DSpec(blocks=BLOCKS, width=8, res2_shortcut_bn=False)
    path = small_file(tmp_path / "a.pyth", x3d.PYTORCHVIDEO, rgb=without)
    loaded, report = x3d.load(path, variables_of(5, "rgb", SMALL, head_kind="x3d"), strict=True)
    assert any("identity" in note for note in report.notes)
    block, stats = (loaded[c]["rgb"]["res2"]["block0"] for c in ("params", "batch_stats"))
    x = np.linspace(-3, 3, 8, dtype=np.float32)
    mean, var = stats["shortcut_bn"]["mean"], stats["shortcut_bn"]["var"]
    scale, bias = block["shortcut_bn"]["scale"], block["shortcut_bn"]["bias"]
    np.testing.assert_allclose((x - mean) / np.sqrt(var + 1e-5) * scale + bias, x, rtol=1e-6)


def test_x3d_and_its_xshift_agree_on_a_clip_that_stands_still():
    # No SE, whose mean sees the clip's ends; fold_div above the width turns the shift off.
    fields = {"blocks": (1, 1), "width": 8, "se": "none"}
    full = models.X3DFeatures(X3DSpec(**fields))
    shifted = models.X3DFeatures(X3DSpec(**fields, temporal="shift", fold_div=1000))
    frame = np.random.default_rng(1).standard_normal((1, 1, 16, 16, 3)).astype(np.float32)
    clip = np.repeat(frame, 9, axis=1)
    shapes = jax.eval_shape(lambda: full.init(jax.random.key(0), jnp.asarray(clip), train=False))
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda x: (rng.random(x.shape) + 0.5 if len(x.shape) == 1 else
                   rng.standard_normal(x.shape) / 4).astype(np.float32), shapes
    )  # fmt: skip
    converted = table.nest(x3d._summed(table.flatten(variables), "params/"))
    wanted = jax.eval_shape(lambda: shifted.init(jax.random.key(0), jnp.asarray(clip), train=False))
    assert jax.tree.map(np.shape, converted) == jax.tree.map(np.shape, dict(wanted))
    before = jax.jit(lambda v, x: full.apply(v, x, train=False))(variables, clip)
    after = jax.jit(lambda v, x: shifted.apply(v, x, train=False))(converted, clip)
    # The middle frame is 4 from either end: 2 of the stem's reach and 1 of each block's.
    np.testing.assert_allclose(after[:, 4], before[:, 4], rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(before[:, 4])).max() > 0.1
    assert not np.allclose(after[:, 0], before[:, 0], rtol=1e-2)


def test_pcan_without_its_prototypes(golden):
    tensors = filled(golden / "statedict" / "pcan_full_eval.json")
    target = variables_of(60, coarse_classes=8)
    with pytest.raises(UserError, match="avg_f"):
        convert.apply(x3d.PCAN, tensors, target, strict=True)
    _, report = convert.apply(x3d.PCAN, tensors, target, strict=False)
    assert len(report.unused) == 10 and all("spatio_cl_net" in key for key in report.unused)
    assert not report.missing


def test_weights_of_another_model_are_refused(tmp_path):
    content = {f"layers.{i}.attn.weight": writer.view(np.ones(2)) for i in range(5)}
    path = writer.write_zip(tmp_path / "vit.pth", content)
    with pytest.raises(UserError, match=r"unknown naming, .*SlowFast X3D, PyTorchVideo X3D, MMAct"):
        x3d.load(path, variables_of(5, "rgb", SMALL, head_kind="x3d"))
