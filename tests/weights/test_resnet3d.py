"""RGBPoseConv3D, SlowOnly, PoseC3D, C3D and 2-D ResNet weights; merging paths trained alone."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe
from weights import inverse, writer

from jaxact.config import UserError
from jaxact.models import c3d, heads
from jaxact.models import resnet3d as models
from jaxact.models.rgbpose import ConvRecognizer
from jaxact.models.specs import ExchangeSpec, ResNet3DSpec
from jaxact.weights import convert, resnet3d, table

SMALL_RGB = ResNet3DSpec((2, 1, 1), 4, (0, 0, 1), (1, 2, 2), (1, 1, 1))
SMALL_POSE = ResNet3DSpec((1, 1, 1), 4, (0, 1, 1), (2, 2, 1), (1, 1, 1), (1, 7, 7), 1, 1)
SMALL = {"rgb": SMALL_RGB, "pose": SMALL_POSE, "classes": 5}
EXCHANGE = ExchangeSpec(rgb_after=(1, 2), pose_after=(1, 2))
FUSED = {**SMALL, "exchange": EXCHANGE}

CASES = {
    "rgbposeconv3d_full": ("RGBPoseConv3D", {"exchange": ExchangeSpec()}),
    "rgb_only_slowonly_r50": ("MMAction2 SlowOnly", {"streams": "rgb"}),
    "posec3d_pose_only_32": ("MMAction2 SlowOnly", {"streams": "pose"}),
    "posec3d_slowonly_48": ("MMAction2 SlowOnly", {"streams": "pose", "pose": models.POSEC3D}),
    "pyskl_c3d_light_48": ("PYSKL C3D", {"streams": "pose", "pose": c3d.C3D_LIGHT}),
}


def network(classes=60, head=None, **fields):
    return ConvRecognizer(heads.Head(classes, **(head or {})), **fields)


def clips_of(streams="rgb+pose", joints=17):
    """Shapes of clips that published and small networks take."""
    clips = {"rgb": (1, 2, 32, 32, 3), "pose": (1, 8, 8 if joints == 17 else 16, 8, joints)}
    return [
        jax.ShapeDtypeStruct(clips[s], jnp.float32) if s in streams.split("+") else None
        for s in ("rgb", "pose")
    ]


def variables_of(concrete=False, seed=0, **fields):
    """Shapes of a ConvRecognizer's variables, or numbers drawn for them."""
    net = network(**fields)
    # The small paths meet at 8 x 8 and 4 x 4 px.
    rgb, pose = clips_of(fields.get("streams", "rgb+pose"))
    if "classes" in fields and pose is not None:
        pose = jax.ShapeDtypeStruct((1, 8, 16, 16, 17), jnp.float32)
    shapes = jax.eval_shape(lambda r, p: net.init(jax.random.key(0), r, p, False), rgb, pose)
    if not concrete:
        return shapes
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            0.5 + rng.random(x.shape) if len(x.shape) == 1 else rng.standard_normal(x.shape) / 3
        ).astype(np.float32),
        shapes,
    )


@functools.cache
def filled(path):
    entry = json.loads(path.read_text())
    return {k: recipe.fill(k, v, entry["norm_gain"]) for k, v in entry["tensors"].items()}


@pytest.mark.parametrize("case", CASES)
def test_every_key_and_every_variable_is_used_once(golden, case):
    name, fields = CASES[case]
    tensors, target = filled(golden / "statedict" / f"{case}.json"), variables_of(**fields)
    naming = table.detect(tensors, resnet3d.tables(tensors, target))
    assert naming.name == name
    variables, report = convert.apply(naming, tensors, target, strict=True)
    assert not (report.missing or report.unused or report.replaced or report.mismatched)
    assert not report.notes
    counters = {key for key in tensors if key.endswith("num_batches_tracked")}
    assert set(report.ignored) == counters
    loaded = [path for path, _ in report.loaded]
    assert len(set(loaded)) == len(loaded) == len(tensors) - len(counters)
    assert len(loaded) == len(table.flatten(target))
    back = inverse.invert(naming, variables)
    assert back.keys() == tensors.keys() - counters
    for key, value in back.items():
        np.testing.assert_array_equal(value, tensors[key], key)


def test_a_transposed_kernel_keeps_its_taps(golden):
    tensors = filled(golden / "statedict" / "rgbposeconv3d_full.json")
    flat = table.translate(resnet3d.RGBPOSE, tensors).flat
    source = tensors["backbone.pose_path.layer1_lateral.conv.weight"]  # 512, 32, 7, 1, 1
    kernel = flat["params/lateral0/to_pose/kernel"]
    assert kernel.shape == (7, 1, 1, 512, 32)
    assert kernel[6, 0, 0, 5, 3] == source[5, 3, 6, 0, 0]


def file_of(path, names, variables, change=None):
    """Variables under some naming, written as a checkpoint file."""
    tensors = inverse.invert(names, variables)
    if change:
        change(tensors)
    content = {"state_dict": {key: writer.view(value) for key, value in tensors.items()}}
    return writer.write_zip(path, content)


def test_a_file_round_trip(tmp_path):
    variables = variables_of(concrete=True, **FUSED)
    path = file_of(tmp_path / "a.pth", resnet3d.RGBPOSE, variables)
    loaded, report = resnet3d.load(path, variables_of(**FUSED), strict=True)
    assert report.table == "RGBPoseConv3D"
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(variables))


def test_the_head_of_pcan_on_two_paths(tmp_path):
    """A checkpoint of the four-loss head starts a network with or without each of its parts."""
    coarse = (0, 0, 1, 1, 1)
    whole = {"coarse_classes": 2, "prototypes": heads.Prototypes(coarse)}
    variables = variables_of(concrete=True, head=whole, **FUSED)
    kept = {p: v for p, v in table.flatten(variables).items() if "coarse_prototype" not in p}
    path = file_of(tmp_path / "a.pth", resnet3d.RGBPOSE, kept)
    assert b"cls_head.fr_coarse_rgb.spatio_cl_net.cl_fc.weight" in path.read_bytes()
    target = variables_of(head=whole, **FUSED)
    loaded, report = resnet3d.load(path, target)
    flat = table.flatten(loaded)
    for name, value in kept.items():
        np.testing.assert_array_equal(flat[name], value, name)
    assert all("coarse_prototype" in name for name in report.missing) and not report.unused
    four = {"coarse_classes": 2}
    loaded, report = resnet3d.load(path, variables_of(head=four, **FUSED))
    np.testing.assert_array_equal(
        loaded["params"]["head"]["rgb_coarse"]["kernel"], flat["params/head/rgb_coarse/kernel"]
    )
    assert not report.missing and all(".spatio_cl_net." in key for key in report.unused)
    loaded, report = resnet3d.load(path, variables_of(**FUSED))
    assert not report.missing and "cls_head.fc_pose_coarse.bias" in report.unused


OLD = "backbone.pose_path.layer1_lateral.bn.bias"
NEW = "backbone.pose_path.layer1_lateral.norm.bias"
CHANGES = {
    "renamed": (lambda t: t.update({NEW: t.pop(OLD)}), (f"'{NEW}' close to '{OLD}'", "to_pose_bn")),
    "missing": (
        lambda t: t.pop(OLD),
        ("1 variables not in the file", f"'params/lateral0/to_pose_bn/bias' (key '{OLD}'"),
    ),
    "surplus": (lambda t: t.update({"backbone.extra": t[OLD]}), ("fit nothing: 'backbone.extra'",)),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("strict", [True, False])
def test_a_renamed_missing_or_surplus_key_is_named(tmp_path, what, strict):
    change, parts = CHANGES[what]
    variables = variables_of(concrete=True, **FUSED)
    path = file_of(tmp_path / "a.pth", resnet3d.RGBPOSE, variables, change)
    with pytest.raises(UserError) as error:
        resnet3d.load(path, variables_of(**FUSED), strict=strict)
    for part in parts:
        assert part in str(error.value)


# ----------------------------------------------------------------------------------------- merging


@pytest.fixture(scope="module")
def alone():
    """Variables of each path trained by itself."""
    return {
        stream: variables_of(concrete=True, seed=seed, streams=stream, **SMALL)
        for seed, stream in enumerate(("rgb", "pose"))
    }


def logits_of(variables, *clips, **fields):
    net = network(**fields)
    return jax.jit(lambda v, clips: net.apply(v, *clips, False))(variables, clips)


def check_merged(merged, fresh, alone):
    """Both paths are there, what they receive is weighted 0, the laterals are untouched."""
    for name in ("lateral0", "lateral1"):
        jax.tree.map(np.testing.assert_array_equal, merged["params"][name], fresh["params"][name])
    grown = 0
    for stream in ("rgb", "pose"):
        before = table.flatten(alone[stream]["params"][stream])
        for path, value in table.flatten(merged["params"][stream]).items():
            own = before[path]
            if value.shape != own.shape:
                grown += 1
                assert value.shape[3] == own.shape[3] + own.shape[3] // 4
                np.testing.assert_array_equal(value[:, :, :, own.shape[3] :], 0)
                value = value[:, :, :, : own.shape[3]]
            np.testing.assert_array_equal(value, own)
    assert grown == 8
    rng = np.random.default_rng(5)
    rgb = rng.standard_normal((2, 2, 32, 32, 3)).astype(np.float32)
    pose = rng.standard_normal((2, 8, 16, 16, 17)).astype(np.float32)
    fused = logits_of(merged, rgb, pose, **FUSED)
    for stream, clips in (("rgb", (rgb, None)), ("pose", (None, pose))):
        wanted = logits_of(alone[stream], *clips, streams=stream, **SMALL)[stream]
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(fused[stream], wanted, rtol=1e-4, atol=1e-4)


def test_two_files_fill_the_two_paths(tmp_path, alone):
    """In either order; the merged network starts with the answers of its parts."""
    fresh = variables_of(concrete=True, seed=9, **FUSED)
    for order in (("rgb", "pose"), ("pose", "rgb")):
        merged = fresh
        for stream in order:
            path = file_of(tmp_path / f"{stream}.pth", resnet3d.slowonly(stream), alone[stream])
            merged, report = resnet3d.load(path, merged)
            assert len(report.notes) == 1 and "extended with zeros" in report.notes[0]
            parts = {name.split("/")[1] for name in report.missing}
            assert parts == {"lateral0", "lateral1", "head", {"rgb": "pose"}.get(stream, "rgb")}
            assert not report.unused
        check_merged(merged, fresh, alone)


def test_the_published_paths_grow_at_eight_places(golden):
    target = variables_of(exchange=ExchangeSpec())
    grown = {}
    for case in ("rgb_only_slowonly_r50", "posec3d_pose_only_32"):
        tensors = filled(golden / "statedict" / f"{case}.json")
        naming = table.detect(tensors, resnet3d.tables(tensors, target))
        flat = table.translate(naming, tensors).flat
        larger, _ = resnet3d.extend_inputs(flat, table.flatten(target))
        for path, value in larger.items():
            assert value.shape == table.flatten(target)[path].shape
            if value.shape != flat[path].shape:
                grown[path.removeprefix("params/")] = value.shape[3]
    assert grown == {
        **{f"rgb/res4/block0/{name}/kernel": 640 for name in ("a", "shortcut")},
        **{f"rgb/res5/block0/{name}/kernel": 1280 for name in ("a", "shortcut")},
        **{f"pose/res3/block0/{name}/kernel": 160 for name in ("a", "shortcut")},
        **{f"pose/res4/block0/{name}/kernel": 320 for name in ("a", "shortcut")},
    }


def test_arrays_of_our_own_grow_alike(alone):
    fresh = variables_of(concrete=True, seed=9, **FUSED)
    wanted = merged = table.flatten(fresh)
    for stream in ("rgb", "pose"):
        flat, notes = resnet3d.extend_inputs(table.flatten(alone[stream]), wanted)
        assert len(notes) == 1 and notes[0].count("/kernel") == 4
        merged = {**merged, **flat}
    check_merged(table.nest(merged), fresh, alone)
    # Nothing grows where there is no exchange.
    late = table.flatten(variables_of(**SMALL))
    flat, notes = resnet3d.extend_inputs(table.flatten(alone["rgb"]), late)
    assert notes == () and flat.keys() == table.flatten(alone["rgb"]).keys()


def test_another_width_is_still_an_error(tmp_path, alone):
    path = file_of(tmp_path / "rgb.pth", resnet3d.slowonly("rgb"), alone["rgb"])
    wide = {**SMALL, "rgb": ResNet3DSpec((2, 1, 1), 8, (0, 0, 1), (1, 2, 2), (1, 1, 1))}
    with pytest.raises(
        UserError, match=r"80 sizes differ: .*a_bn/mean <- .*: \(4,\), wanted \(8,\)"
    ):
        resnet3d.load(path, variables_of(exchange=EXCHANGE, **wide))


# ---------------------------------------------------------------------------------------- 2-D nets


def images(seed=0, classes=7, blocks=(2, 1, 1), width=4):
    """Random weights of a small bottleneck ResNet in torchvision's names."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def layer(conv, norm, *shape):
        tensors[f"{conv}.weight"] = rng.standard_normal(shape).astype(np.float32)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{leaf}"] = (0.5 + rng.random(shape[0])).astype(np.float32)

    layer("conv1", "bn1", width, 3, 7, 7)
    channels = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}."
            layer(f"{name}conv1", f"{name}bn1", inner, channels, 1, 1)
            layer(f"{name}conv2", f"{name}bn2", inner, inner, 3, 3)
            layer(f"{name}conv3", f"{name}bn3", 4 * inner, inner, 1, 1)
            if block == 0:
                layer(f"{name}downsample.0", f"{name}downsample.1", 4 * inner, channels, 1, 1)
            channels = 4 * inner
    tensors["fc.weight"] = rng.standard_normal((classes, channels)).astype(np.float32)
    tensors["fc.bias"] = rng.random(classes).astype(np.float32)
    return tensors


def written(path, tensors):
    return writer.write_zip(path, {key: writer.view(value) for key, value in tensors.items()})


def test_images_start_the_rgb_path(tmp_path):
    """Inflated kernels sum to the 2-D ones; the head of other classes stays as it is."""
    tensors = images()
    path = written(tmp_path / "resnet.pth", tensors)
    fresh = variables_of(concrete=True, streams="rgb", **SMALL)
    loaded, report = resnet3d.load(path, fresh)
    assert report.table == "2-D ResNet of torchvision or timm"
    assert report.notes == ["1 2-D kernels inflated in time"]
    assert {name.split(" ")[0] for name in report.replaced} == {
        "params/head/rgb/kernel",
        "params/head/rgb/bias",
    }
    assert not report.missing and set(report.unused) == {"fc.weight", "fc.bias"}
    params = loaded["params"]["rgb"]
    kernel, flat = params["res4"]["block0"]["a"]["kernel"], tensors["layer3.0.conv1.weight"]
    assert kernel.shape == (3, 1, 1, 32, 16)
    for tap in kernel:
        np.testing.assert_allclose(tap[0, 0].T, flat[:, :, 0, 0] / 3, rtol=1e-6)
    np.testing.assert_array_equal(params["stem"]["conv"]["kernel"][0, 2, 6, 1, 3],
                                  tensors["conv1.weight"][3, 1, 2, 6])  # fmt: skip
    stats = loaded["batch_stats"]["rgb"]["res2"]["block0"]["shortcut_bn"]
    np.testing.assert_array_equal(stats["var"], tensors["layer1.0.downsample.1.running_var"])


def test_images_start_the_rgb_path_of_a_fusion(tmp_path):
    path = written(tmp_path / "resnet.pth", images(classes=5))
    fresh = variables_of(concrete=True, **FUSED)
    loaded, report = resnet3d.load(path, fresh)
    assert len(report.notes) == 2 and "extended" in report.notes[0]
    np.testing.assert_array_equal(loaded["params"]["rgb"]["res4"]["block0"]["a"]["kernel"][
        :, :, :, 32:], 0)  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, loaded["params"]["pose"], fresh["params"]["pose"])
    np.testing.assert_array_equal(
        loaded["params"]["head"]["rgb"]["bias"], images(classes=5)["fc.bias"]
    )


def test_other_depths_and_other_blocks_are_refused(tmp_path):
    target = variables_of(streams="rgb", **SMALL)
    deeper = written(tmp_path / "deeper.pth", images(blocks=(3, 1, 1)))
    with pytest.raises(UserError, match=r"fit nothing: .*layer1\.2\.conv1"):
        resnet3d.load(deeper, target)
    basic = {key: v for key, v in images().items() if "conv3" not in key and "bn3" not in key}
    with pytest.raises(UserError, match=r"not in the file: .*layer1\.0\.bn3"):
        resnet3d.load(written(tmp_path / "basic.pth", basic), target)
    content = {f"layers.{i}.attn.weight": writer.view(np.ones(2)) for i in range(5)}
    with pytest.raises(UserError, match=r"unknown naming, .*RGBPoseConv3D, MMAction2 SlowOnly"):
        resnet3d.load(writer.write_zip(tmp_path / "vit.pth", content), target)
