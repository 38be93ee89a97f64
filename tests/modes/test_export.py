"""Export: every recipe's `:tiny`, the artefact in a process of its own, what is refused."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from toy import recipe

from jaxact import config as schema
from jaxact import exported, main
from jaxact.config import UserError
from jaxact.modes import export
from jaxact.ops import target
from jaxact.train import state
from jaxact.train.run import abstract_variables, initial_variables, open_run

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.py"))


def opened(config):
    return open_run(config, pathlib.Path("unused"))


def perturbed(run):
    """Variables as after some training: nothing zero, nothing equal, variances above 0."""
    rng = np.random.default_rng(0)
    fresh = initial_variables(run, run.plan(1).rows[-1].stage_data)

    def moved(path, leaf):
        leaf = np.asarray(leaf)
        drawn = leaf * rng.uniform(0.8, 1.2, leaf.shape) + 0.02 * rng.normal(size=leaf.shape)
        return (np.abs(drawn) + 0.1 if "var" in str(path[-1]) else drawn).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(moved, fresh)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """(recipe file) -> (run, variables, folder, contract), each exported once."""
    kept = {}

    def make(path):
        if path not in kept:
            config = schema.load(path, "tiny")
            if getattr(config.data, "classes", None) == 0:
                config.data.classes = 7  # else counted in annotations, which are not here
            run = opened(config)
            variables = perturbed(run)
            folder = tmp_path_factory.mktemp("out") / path.stem
            kept[path] = run, variables, folder, export.write(run, variables, "here", folder)
        return kept[path]

    return make


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The same of the toy, which has no contract of its own."""
    run = opened(recipe.get_config())
    folder = tmp_path_factory.mktemp("toy") / "new" / "out"
    variables = perturbed(run)
    return run, variables, folder, export.write(run, variables, "here", folder)


@pytest.fixture
def copied(toy, tmp_path):
    return shutil.copytree(toy[2], tmp_path / "copy")


# ----------------------------------------------------------------------------------- every recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_tiny_recipe_exports(shipped, path):
    run, variables, folder, contract = shipped(path)
    assert contract == json.loads((folder / "contract.json").read_text())
    assert {p.name for p in folder.iterdir()} == {
        *("contract.json", "weights.npz", "program_cpu.bin", "program_accelerator.bin")
    }
    assert not [p for p in folder.parent.iterdir() if p != folder]
    assert contract["self_check"]["largest_difference"] <= 1e-5
    assert contract["parameters"] == sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert contract["task"] == run.config.task and contract["classes"] == list(
        run.task.training.classes
    )
    assert {"jax", "jaxlib", "jaxact"} <= contract["versions"].keys()
    for port in (*contract["inputs"].values(), *contract["outputs"].values()):
        assert port["meaning"] and port["shape"][0] == "b"
    platforms = [name for row in contract["programs"] for name in row["platforms"]]
    assert sorted(platforms) == ["cpu", "cuda", "rocm", "tpu"]
    contract = export.contract_of(run, run.plan(1).rows[-1].stage_data)
    outputs = exported.load(folder)(**export.random_inputs(contract, 2))
    for name, array in outputs.items():
        assert np.isfinite(array).all(), name
        assert not np.array_equal(array[0], array[1]), f"{name} does not depend on the input"


# -------------------------------------------------------------------------- the two-stream recipe

X3D = ROOT / "configs" / "x3d.py"

# Refuses what belongs to the model and its training; answers each batch named.
ALONE = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        rooms = ("models", "tasks", "ops", "train", "modes", "main", "packing", "data", "evaluate")
        rooms += ("weights", "task")
        ours = name.startswith("jaxact.") and name.split(".")[1] in rooms
        if ours or name.split(".")[0] in ("flax", "optax", "orbax", "grain", "ml_collections"):
            raise ImportError(f"{name} is not to be had here")
sys.meta_path.insert(0, Guard())
try:
    import jaxact.models
except ImportError:
    from jaxact import exported
    folder, *files = sys.argv[1:]
    for file in files:
        exported.run(folder, file, file + ".out")
    assert not {"flax", "jaxact.models", "jaxact.task"} & sys.modules.keys()
"""


def test_logits_in_a_fresh_process_without_the_model(shipped, tmp_path):
    """Two batch sizes; logits against the model itself, scores against evaluation's."""
    run, variables, folder, contract = shipped(X3D)
    batch = export.random_inputs(run.task.shipping.contract(), 5)
    files = [tmp_path / f"{size}.npz" for size in (1, 5)]
    for file, size in zip(files, (1, 5), strict=True):
        part = {name: array[:size] for name, array in batch.items()}
        np.savez(file, ids=np.array(["clip"] * size), **part)
    subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), *map(str, files)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=200,
    )
    view = {name: array[:, None] for name, array in batch.items()}
    view |= {"label": np.zeros(5, np.int32), "mask": np.ones(5, bool)}

    @jax.jit
    def model(batch, view):
        apply = functools.partial(run.task.training.model.apply, variables, train=False)
        rows = run.task.evaluation.rows(run.task.evaluation.infer(apply, view, "test"), view)
        return apply(**run.task.training.inputs(batch, {}, None, None)[0]), rows["scores"]

    heads, scores = model(batch, view)
    want = {**{f"{name}_logits": array for name, array in heads.items()}, "scores": scores}
    assert want.keys() == contract["outputs"].keys()
    for file, size in zip(files, (1, 5), strict=True):
        scored = np.load(f"{file}.out")
        assert set(scored.files) == {"ids", *want}
        assert scored["ids"].tolist() == ["clip"] * size
        for name, array in want.items():
            np.testing.assert_allclose(scored[name], array[:size], rtol=0, atol=1e-5)


def test_the_contract_says_what_the_config_does(shipped):
    run, _, _, contract = shipped(X3D)
    data = run.config.data
    shapes = {name: port["shape"] for name, port in contract["inputs"].items()}
    assert shapes == {
        "rgb": ["b", 2, 32, 32, 3],
        "keypoint": ["b", 2, 4, 17, 2],
        "score": ["b", 2, 4, 17],
    }
    assert contract["inputs"]["rgb"]["dtype"] == "uint8"
    assert contract["outputs"]["rgb_logits"]["shape"] == ["b", 8]
    steps = contract["preprocessing"]
    inside = steps["inside_the_program"]
    assert inside["normalise"]["mean"] == list(data.mean)
    assert inside["normalise"]["std"] == list(data.std)
    assert inside["heatmaps"]["sigma"] == data.sigma and inside["heatmaps"]["scale"] == data.scale
    assert steps["resize"]["to"] == [32, 32]
    assert (steps["frames"]["rgb"], steps["frames"]["pose"]) == (2, 4)
    assert len(steps["skeleton"]["joints"]) == 17


def test_another_recipe_has_another_contract():
    kinetics = opened(schema.load(X3D, "x3d_m")).task.shipping.contract()
    assert list(kinetics.inputs) == ["rgb"]
    assert kinetics.preprocessing["resize"]["short_side"] == 256
    assert kinetics.preprocessing["frames"]["stride"] == 5
    assert "heatmaps" not in kinetics.preprocessing["inside_the_program"]
    epam = opened(schema.load(X3D, "epam")).task.shipping.contract()
    assert epam.preprocessing["views"]["averaged"] == "logits"
    pose = opened(schema.load(X3D, "pose")).task.shipping.contract()
    assert list(pose.inputs) == ["keypoint", "score"]
    assert "normalise" not in pose.preprocessing["inside_the_program"]


def test_each_program_has_the_form_of_its_platform(shipped):
    """Depthwise filters: shifted multiply-adds on CPU, grouped convolutions elsewhere."""
    _, _, folder, _ = shipped(X3D)
    grouped = {}
    for file in export.PROGRAMS:
        program = jax.export.deserialize(bytearray((folder / file).read_bytes()))
        groups = re.findall(r"feature_group_count = (\d+)", program.mlir_module())
        grouped[file] = any(int(n) > 1 for n in groups)
    assert grouped == {"program_cpu.bin": False, "program_accelerator.bin": True}


def test_recomputed_blocks_take_the_form_too():
    """A checkpointed block is traced once and kept: for each platform anew."""
    config = schema.load(X3D, "tiny")
    config.model.streams, config.model.coarse, config.model.remat = "rgb", (), True
    run = opened(config)
    variables = abstract_variables(run, run.plan(1).rows[-1].stage_data)
    clip = jax.ShapeDtypeStruct((1, *run.task.shipping.contract().inputs["rgb"].shape), np.float32)
    for form, grouped in (("cpu", False), ("tpu", True), ("cpu", False)):
        with target.traced_for(form):
            jaxpr = str(
                jax.make_jaxpr(
                    lambda v, x: run.task.training.model.apply(v, rgb=x, pose=None, train=False)
                )(variables, clip)
            )
        groups = {int(n) for n in re.findall(r"feature_group_count=(\d+)", jaxpr)}
        assert (max(groups) > 1) is grouped, form


def test_both_forms_agree(shipped):
    """The accelerator's form, run here, gives what the CPU's form gives."""
    run, variables, folder, _ = shipped(X3D)
    contract = run.task.shipping.contract()
    batch = export.random_inputs(contract, 2)
    weights = state.flatten(variables)
    with target.traced_for("tpu"):
        other = jax.jit(export.function_of(run, contract))(weights, batch)
    outputs = exported.load(folder)(**batch)
    for name, array in other.items():
        np.testing.assert_allclose(outputs[name], array, rtol=0, atol=1e-5)


def test_nothing_else_looks_at_the_platform():
    """Networks and operations ask `ops.target`, so that export can trace for another platform."""
    for room in ("models", "ops"):
        for path in (ROOT / "jaxact" / room).glob("*.py"):
            if path.name != "target.py":
                assert "default_backend" not in path.read_text(), path


# -------------------------------------------------------------------------------------- the toy


def test_a_task_without_a_contract(toy):
    run, variables, folder, contract = toy
    assert list(contract["inputs"]) == ["x"]  # not the label, which nothing depends on
    assert contract["outputs"]["output"]["shape"] == ["b", 3]
    model = exported.load(folder)
    assert model.classes == ("a", "b", "c")
    for size in (1, 4, 7):
        x = np.random.default_rng(size).normal(size=(size, 8)).astype(np.float32)
        want = run.task.training.model.apply(variables, x=x, train=False)
        np.testing.assert_allclose(model(x=x)["output"], want, rtol=0, atol=1e-5)


def test_a_fixed_batch(toy, tmp_path):
    run, variables, _, _ = toy
    contract = export.write(run, variables, "here", tmp_path / "out", batch=3)
    assert contract["inputs"]["x"]["shape"] == [3, 8]
    model = exported.load(tmp_path / "out")
    assert model(x=np.ones((3, 8), np.float32))["output"].shape == (3, 3)
    with pytest.raises(UserError, match=re.escape("x has the shape [2, 8]; allowed: [3, 8]")):
        model(x=np.ones((2, 8), np.float32))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "x is missing; the inputs are x"),
        ({"x": np.ones((2, 8), np.float32), "y": np.ones(2)}, "y is no input"),
        ({"x": np.ones((2, 8))}, "x is float64; allowed: float32"),
        ({"x": np.ones((2, 9), np.float32)}, "x has the shape [2, 9]; allowed: [b, 8]"),
        ({"x": np.ones(8, np.float32)}, "x has the shape [8]"),
        ({"x": np.ones((0, 8), np.float32)}, "x has the shape [0, 8]"),
    ],
)
def test_inputs_that_are_not_what_the_contract_says(toy, arrays, said):
    with pytest.raises(UserError, match=re.escape(said)):
        exported.load(toy[2])(**arrays)


def changed(contract, **fields):
    stored = json.loads(contract.read_text())
    contract.write_text(json.dumps({**stored, **fields}))


def test_inputs_of_different_lengths(shipped):
    run, _, folder, _ = shipped(X3D)
    batch = export.random_inputs(run.task.shipping.contract(), 2)
    batch["score"] = batch["score"][:1]
    with pytest.raises(UserError, match="rgb 2, keypoint 2, score 1"):
        exported.load(folder)(**batch)


def spoil_weights(folder):
    content = bytearray((folder / "weights.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "weights.npz").write_bytes(content)


def lose_program(folder):
    (folder / "program_cpu.bin").unlink()


def swap_programs(folder):
    (folder / "program_cpu.bin").write_bytes((folder / "program_accelerator.bin").read_bytes())


def lose_contract(folder):
    (folder / "contract.json").unlink()


def half_a_contract(folder):
    (folder / "contract.json").write_text('{"format": 1, ')


def other_format(folder):
    changed(folder / "contract.json", format=2)


def no_program_for_here(folder):
    rows = json.loads((folder / "contract.json").read_text())["programs"]
    changed(folder / "contract.json", programs=rows[1:])


def old_convention(folder):
    rows = json.loads((folder / "contract.json").read_text())["programs"]
    rows[0]["calling_convention"] = 3
    changed(folder / "contract.json", programs=rows)


def reach_outside(folder):
    changed(folder / "contract.json", weights="../contract.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoil_weights, "weights.npz is not the file that was exported"),
        (lose_program, "program_cpu.bin is missing"),
        (swap_programs, "program_cpu.bin is not the file that was exported"),
        (lose_contract, "is no exported model"),
        (half_a_contract, "contract.json is not JSON"),
        (other_format, "format 2 is not known here; allowed: 1"),
        (no_program_for_here, "has no program for cpu; exported for: cuda, rocm, tpu"),
        (old_convention, "calling convention 3"),
        (reach_outside, "is not the file that was exported"),
    ],
)
def test_folders_that_are_not_what_was_exported(copied, change, said):
    change(copied)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        exported.load(copied)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------- the self-check


def test_a_failed_self_check_leaves_nothing(toy, tmp_path, monkeypatch):
    run, variables, _, _ = toy
    right = exported.load

    def wrong(folder):
        model = right(folder)
        return lambda **batch: {name: array + 2e-4 for name, array in model(**batch).items()}

    monkeypatch.setattr(exported, "load", wrong)
    with pytest.raises(export.Unequal, match=r"output 0\.0002"):
        export.write(run, variables, "here", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_answers_nan_is_not_shipped(toy, tmp_path):
    run, variables, _, _ = toy
    broken = jax.tree.map(lambda leaf: leaf * np.nan, variables)
    with pytest.raises(export.Unequal, match="output nan"):
        export.write(run, broken, "here", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failed_self_check_is_exit_code_1(monkeypatch, capsys):
    def fails():
        raise export.Unequal("self-check failed: by much")

    monkeypatch.setattr(main, "parse", lambda arguments: None)
    monkeypatch.setattr(main, "cache_compilations", lambda: None)
    monkeypatch.setattr(main, "run", fails)
    assert main.main([]) == 1
    assert capsys.readouterr().err == "error: self-check failed: by much\n"


def test_a_folder_that_holds_something_is_left_alone(toy, tmp_path):
    run, variables, _, _ = toy
    (tmp_path / "mine").write_text("mine")
    for output in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="not empty; allowed: a new folder"):
            export.write(run, variables, "here", output)
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export.write(run, variables, "here", tmp_path / "empty")
    assert exported.load(tmp_path / "empty").classes


# -------------------------------------------------------------------------------------- the command


def test_the_command_of_an_artefact(toy, tmp_path, capsys):
    x = np.ones((2, 8), np.float32)
    np.savez(tmp_path / "in.npz", x=x, ids=np.array(["p", "q"]), label=np.array([0, 1]))
    out = tmp_path / "out.npz"
    assert exported.main([str(toy[2]), f"--input={tmp_path / 'in.npz'}", f"--output={out}"]) == 0
    scored = np.load(out)
    assert scored["ids"].tolist() == ["p", "q"] and scored["label"].tolist() == [0, 1]
    np.testing.assert_array_equal(scored["output"], exported.load(toy[2])(x=x)["output"])
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    capsys.readouterr()
    for source, said in (("none.npz", "does not exist"), ("bad.npz", "is no .npz file")):
        flags = [str(toy[2]), f"--input={tmp_path / source}", f"--output={out}"]
        assert exported.main(flags) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: --input=") and said in line and line.count("\n") == 1
