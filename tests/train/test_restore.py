"""What results depend on, and foreign files that leave some of it as it was drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT
from weights import inverse, writer

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.models.specs import ExchangeSpec
from jaxact.modes import export
from jaxact.train import restore
from jaxact.train.restore import used_inputs
from jaxact.train.run import initial_variables, open_run
from jaxact.weights import resnet3d


def test_used_inputs():
    def function(batch, rest):
        doubled = {name: 2 * x for name, x in batch.items()}
        return doubled["a"] + 1, batch["c"], rest[0] * 0

    inputs = dict.fromkeys("dcba", np.float32(1))
    used, rest = used_inputs(function, inputs, (jax.ShapeDtypeStruct((2,), jnp.float32),))
    assert used == {"a": True, "b": False, "c": True, "d": False} and rest == (True,)


def test_used_inputs_looks_into_calls_and_rounds():
    @jax.jit
    def both(x):
        return {"left": jax.nn.relu(x["a"]) * x["b"], "right": x["c"]}

    def rounds(x):
        def body(carry, item):
            first, second = carry
            return (first + second, second * x["b"]), {"kept": item + x["c"], "left": x["d"]}

        carry, stacked = jax.lax.scan(body, (jnp.float32(0), x["a"]), jnp.arange(3.0))
        return carry[0], stacked["kept"]

    x = dict.fromkeys("abcde", np.float32(1))
    named = "".join(n for n, used in used_inputs(lambda x: both(x)["left"], x)[0].items() if used)
    assert named == "ab"
    for part, wanted in ((0, "ab"), (1, "c")):
        leaves = used_inputs(lambda x, part=part: rounds(x)[part], x)[0]
        assert "".join(name for name, used in leaves.items() if used) == wanted


def opened(tmp_path, **model):
    """The tiny recipe of 3-D ResNets with other values in its model, and its only stage."""
    config = schema.load(ROOT / "configs" / "rgbpose_conv3d.py", "tiny")
    config.model.network, config.model.exchange = "slowonly", ExchangeSpec()
    for name, value in model.items():
        setattr(config.model, name, value)
    run = open_run(config, tmp_path)
    return run, run.plan(1).rows[-1].stage_data


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A PyTorch file of the RGB path with its classifier."""
    folder = tmp_path_factory.mktemp("alone")
    run, stage = opened(folder, streams="rgb")
    tensors = inverse.invert(resnet3d.slowonly("rgb"), initial_variables(run, stage))
    content = {"state_dict": {key: writer.view(value) for key, value in tensors.items()}}
    return writer.write_zip(folder / "rgb.pth", content)


def test_a_file_that_fills_everything_is_taken(alone, tmp_path):
    run, stage = opened(tmp_path, streams="rgb")
    _, origin = restore.load(run, str(alone), stage)
    assert origin == str(alone)


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ({"streams": "rgb+pose"}, "params/head/pose/bias (8,)"),
        ({"streams": "rgb", "classes": 5}, "params/head/rgb/bias (5,)"),
    ],
)
def test_a_file_that_fills_a_part_is_refused(alone, tmp_path, model, first):
    """A stream or a classifier as it was drawn would be averaged into every score."""
    run, stage = opened(tmp_path, **model)
    for split in ("val", "test", "predict"):
        used = restore.evaluated(run, stage, split)
        with pytest.raises(UserError, match=f"{alone} does not fill") as error:
            restore.load(run, str(alone), stage, used)
        assert first in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="does not fill"):
        export.export(run, str(alone), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_used_may_be_absent(alone, tmp_path):
    """Coarse heads have no part in the scores; an export ships their logits."""
    run, stage = opened(tmp_path, streams="rgb", coarse=(0, 0, 0, 0, 1, 1, 1, 1))
    restore.load(run, str(alone), stage)
    with pytest.raises(UserError, match="params/head/rgb_coarse/bias"):
        export.export(run, str(alone), tmp_path / "out")
