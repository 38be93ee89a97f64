"""Worker processes read and prepare examples without JAX: they hold no accelerator, start fast."""

import json
import pickle
import subprocess
import sys

import leaves
import numpy as np
import pytest
from command import ROOT

from jaxact import config as schema
from jaxact import task as tasks
from jaxact.data import pipeline
from jaxact.tasks.action import sample_data as action_data
from jaxact.tasks.detection import sample_data as detection_data
from jaxact.tasks.relation import sample_data as relation_data
from jaxact.train import schedule

RECIPES = ("x3d", "rgbpose_conv3d", "adatad", "relation", "crop")

# A process in which JAX and what stands on it cannot be imported.
WITHOUT_JAX = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax"):
            raise ImportError(f"{name} in a process that reads data")
sys.meta_path.insert(0, Guard())
"""
LOAD = """
import json, pathlib, pickle
load = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
arrays = load(0)
print(json.dumps({name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}))
"""
IMPORT = """
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def without_jax(program, *arguments):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_JAX + program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """recipe -> its :tiny on drawn data."""
    folder = tmp_path_factory.mktemp("workers")
    loaded = {name: schema.load(ROOT / "configs" / f"{name}.py", "tiny") for name in RECIPES}
    action_data.write(folder / "clips", train=8, test=8, frames=12, size=(48, 64))
    for name in ("x3d", "rgbpose_conv3d"):
        loaded[name].data.annotations = str(folder / "clips" / "annotations.pkl")
        loaded[name].data.videos = str(folder / "clips" / "clips")
    detection_data.draw(folder / "drawn", train=1, test=1)
    loaded["adatad"].data.annotations = str(folder / "drawn" / "annotations.json")
    loaded["adatad"].data.videos = str(folder / "drawn" / "videos")
    scenes = {"train": 1, "val": 1, "test": 1}
    root = relation_data.write(folder / "scenes", scenes, frames=2, couples=4)
    loaded["relation"].data.root = str(root)
    loaded["crop"].data.annotations = str(leaves.write(folder / "leaves"))
    loaded["crop"].data.class_table, loaded["crop"].data.missing = "", "error"
    return loaded


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_worker_gets_prepares_an_example_without_jax(configs, recipe, split, tmp_path):
    config = configs[recipe]
    task = tasks.make(config)
    stage = schedule.resolve(config, 2).rows[0].stage_data
    source = task.training.source(split)
    places = pipeline.Order(len(source), 2, 0) if split == "train" else pipeline.Parts(2)
    load = pipeline.loader(config, task, source, stage, split, places)
    file = tmp_path / "load.pkl"
    file.write_bytes(pickle.dumps(load))
    arrays = json.loads(without_jax(LOAD, str(file)))
    for name, (shape, dtype) in task.training.shapes(stage, split).items():
        assert arrays[name] == [list(shape), str(np.dtype(dtype))], name


def test_rooms_of_the_host_import_no_jax():
    files = (ROOT / "jaxact" / "data").glob("*.py")
    modules = [f"jaxact.data.{path.stem}" for path in files if path.stem != "__init__"]
    without_jax(IMPORT, "jaxact.config", "jaxact.task", *sorted(modules))


def test_what_configs_take_from_the_networks_imports_no_jax():
    without_jax(IMPORT, "jaxact.models.specs")


def test_what_can_be_set_of_a_system_imports_no_jax():
    wings = sorted((ROOT / "jaxact" / "tasks").glob("*/config.py"))
    assert len(wings) >= 4
    without_jax(IMPORT, *(f"jaxact.tasks.{path.parent.name}.config" for path in wings))
