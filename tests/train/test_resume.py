"""Killed, interrupted, resumed: the same numbers as a run that was left alone."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxact.train.checkpoint import read_weights

TESTS = pathlib.Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "jaxact.main", f"--config={TESTS / 'toy' / 'recipe.py'}"]


def start(workdir, *flags):
    env = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "JAXACT_CACHE": "off"}
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", *flags],
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(workdir, *flags):
    process = start(workdir, *flags)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def leaves(workdir):
    steps = sorted(
        int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit()
    )
    stored = read_weights(workdir / "checkpoints" / str(steps[-1]))
    import jax

    return steps[-1], {
        jax.tree_util.keystr(k): np.asarray(v)
        for k, v in jax.tree_util.tree_leaves_with_path(stored)
    }


def same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, array in one[1].items():
        np.testing.assert_array_equal(array, other[1][name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, err = finish(folder)
    assert code == 0, err
    return folder


def test_killed_run_resumes_bit_for_bit(undisturbed, tmp_path):
    process = start(tmp_path, "--config.data.pause=0.02")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "checkpoints").glob("[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "results.json").exists()
    code, _, err = finish(tmp_path)
    assert code == 0 and "resumed from step" in err
    same(leaves(undisturbed), leaves(tmp_path))
    rows = [
        [json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in (undisturbed, tmp_path)
    ]
    for one, other in zip(*rows, strict=True):
        one.pop("examples_per_s", 0), other.pop("examples_per_s", 0)
        assert one == other


def test_sigterm_saves_first(undisturbed, tmp_path):
    process = start(tmp_path, "--config.data.pause=0.02")
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    while not (tmp_path / "metrics.jsonl").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "saved step" in err
    code, _, err = finish(tmp_path)
    assert code == 0 and "resumed from step" in err
    same(leaves(undisturbed), leaves(tmp_path))


def test_another_work_dir_goes_on_from_there(undisturbed, tmp_path):
    """The last checkpoints of a run, in a new folder, end where the run ended."""
    half, other = tmp_path / "half", tmp_path / "other"
    code, _, err = finish(half, "--config.length=4 epochs")
    assert code == 0, err
    # The newest checkpoint is the end; the one before it is an epoch earlier.
    newest = max((half / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    shutil.rmtree(newest)
    code, _, err = finish(other, f"--resume_from={half}")
    assert code == 0 and f"of {half}" in err
    assert "resumed from step 18" in err
    same(leaves(undisturbed), leaves(other))
    code, _, err = finish(tmp_path / "third", f"--resume_from={tmp_path / 'absent'}")
    assert code == 2 and "absent holds no checkpoints" in err
