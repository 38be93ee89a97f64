"""The table of pair classifiers: what a work dir holds counts only if it was made alike."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def script():
    """scripts/bench/relations.py as a module."""
    path = ROOT / "scripts" / "bench" / "relations.py"
    spec = importlib.util.spec_from_file_location("relations_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_is_reused_only_with_the_same_settings(tmp_path):
    results = {"scores": {"acc": 0.5, "mpca": 0.4, "loss": 1.0}, "parameters": 7, "wall_s": 3.0}
    made = {"length": "16 epochs", "seed": 1, "data": {"root": "build/scenes"}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "config.json").write_text(json.dumps({"config": made}))
    flags = {"data.root": "build/scenes", "length": "16 epochs", "seed": "1"}

    def row(**change):
        given = [f"--config.{name}={value}" for name, value in {**flags, **change}.items()]
        return script().run("scenes", tmp_path, given)

    assert row() == {**results["scores"], "parameters": 7, "wall": 3.0}
    for name, other in (("length", "2 epochs"), ("seed", "2"), ("data.root", "elsewhere")):
        with pytest.raises(SystemExit, match=rf"was trained with {name}=.*; remove it first"):
            row(**{name: other})
