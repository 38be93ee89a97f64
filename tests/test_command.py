"""The one command, every mode, on the recipe's own `:tiny` and real files on disk."""

import json

import command
import numpy as np
import pytest
from command import ONE_STREAM, TINY

from jaxact.tasks.action import annotations


@pytest.fixture(scope="module")
def tiny(clips, tmp_path_factory):
    """(work dir, how its training ended)."""
    workdir = tmp_path_factory.mktemp("tiny") / "runs" / "new"
    return workdir, command.trained(TINY, *command.data(clips), f"--workdir={workdir}")


def recipe(clips, workdir, *flags):
    return (TINY, *command.data(clips), f"--workdir={workdir}", *flags)


def test_training_leaves_what_is_promised(tiny):
    workdir, ended = tiny
    assert ended.out == ""  # standard output belongs to results
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "results.json", "report.html"),
        *("checkpoints", "predictions", "tensorboard"),
    }
    assert command.steps(workdir) == [1, 2]
    assert list((workdir / "tensorboard").glob("events*"))
    page = (workdir / "report.html").read_text()
    assert "confusion" in page.lower() and "test0000" in page
    assert page.rstrip().endswith("</html>")


def test_config_json_is_resolved(tiny, clips):
    stored = json.loads((tiny[0] / "config.json").read_text())
    assert stored["config"]["data"]["annotations"] == str(clips / "annotations.pkl")
    assert stored["config"]["model"]["rgb"]["blocks"] == [1, 1]
    assert stored["config"]["stages"][0]["size"] == 32
    assert {"python", "jax", "flax", "numpy", "devices"} <= stored["versions"].keys()


def test_metrics_are_one_object_a_line(tiny):
    rows = command.rows(tiny[0])
    assert [(row["step"], row["split"]) for row in rows] == [
        (1, "train"),
        (2, "train"),
        (2, "val"),
        (2, "test"),
    ]
    assert [row["epoch"] for row in rows] == [0.25, 0.5, 0.5, 0.5]
    train, test = rows[0], rows[3]
    terms = [train[f"loss/{name}"] for name in ("rgb", "pose", "rgb_coarse", "pose_coarse")]
    assert train["loss"] == pytest.approx(sum(terms), rel=1e-6)
    assert {"lr", "grad_norm", "label_smoothing", "mixup", "examples_per_s"} <= train.keys()
    assert {"top1", "top5", "mean_class", "rgb_top1", "pose_top1", "fused_2:1_top1"} <= test.keys()


def test_results_are_final(tiny):
    workdir, ended = tiny
    results = json.loads((workdir / "results.json").read_text())
    stored = np.load(workdir / "predictions" / "test.npz")
    right = stored["scores"].argmax(1) == stored["label"]
    assert results["scores"]["top1"] == pytest.approx(right.mean())
    assert results["split"] == "test" and results["steps"] == results["best_step"] == 2
    assert results["weights"] == "raw"
    assert results["stop_reason"] == "end of the plan"
    assert results["examples_per_s"] > 0 and results["wall_s"] > 0
    assert f"{results['parameters']:,} parameters" in ended.err


def test_predictions_are_keyed_by_id(tiny, clips):
    stored = np.load(tiny[0] / "predictions" / "test.npz")
    test = annotations.read(clips / "annotations.pkl", "test")
    assert stored["ids"].tolist() == [clip.id for clip in test]
    assert stored["label"].tolist() == [clip.label for clip in test]
    for name in ("scores", "rgb", "pose"):
        assert stored[name].shape == (8, 8)
        np.testing.assert_allclose(stored[name].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(stored["scores"], (stored["rgb"] + stored["pose"]) / 2, rtol=1e-6)


def test_the_plan_is_printed_before_training(tiny):
    lines = tiny[1].err.splitlines()
    table = next(i for i, line in enumerate(lines) if line.startswith("row  epochs"))
    assert "lr first" in lines[table] and "mixup" in lines[table] and "size" in lines[table]
    assert lines[table + 1].startswith("0 ") and "0-2" in lines[table + 1]
    first = next(i for i, line in enumerate(lines) if line.startswith("step 1/2"))
    compiled = next(i for i, line in enumerate(lines) if line.startswith("compiled"))
    assert table < compiled < first and "MiB of temporaries" in lines[compiled]


def test_a_complete_run_is_left_as_it_is(tiny, clips):
    workdir = tiny[0]
    before = command.files(workdir)
    ended = command.trained(*recipe(clips, workdir))
    after = command.files(workdir)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not {name for name in changed if not name.startswith("tensorboard/")}
    assert "already complete" in ended.err


def test_evaluation(tiny, clips, tmp_path):
    """The best of the work dir by default; another work dir for what it writes if so wished."""
    workdir = tiny[0]
    results = json.loads((workdir / "results.json").read_text())
    flags = ("--mode=eval", f"--checkpoint={workdir}")
    ended = command.trained(TINY, *command.data(clips), f"--workdir={tmp_path}", *flags)
    printed = json.loads(ended.out)
    assert printed["split"] == "test" and printed["examples"] == 8
    assert printed["checkpoint"] == str(workdir / "checkpoints" / "2")
    assert printed["scores"] == pytest.approx(results["scores"], rel=1e-6)
    assert json.loads((tmp_path / "eval_test.json").read_text()) == printed
    one, other = (np.load(d / "predictions" / "test.npz") for d in (workdir, tmp_path))
    assert one["origin_checkpoint"] == "checkpoints/2"
    assert other["origin_checkpoint"] == str(workdir / "checkpoints" / "2")
    assert one["origin_views"] == "2 clips x 1 crop, no flip, 32 px"
    assert one.files == other.files and "origin_weights" in one.files
    for name in set(one.files) - {"origin_checkpoint"}:
        np.testing.assert_array_equal(one[name], other[name])
    assert "is replaced" not in ended.err
    again = (f"--workdir={tmp_path}", f"--checkpoint={workdir / 'checkpoints' / '1'}")
    ended = command.trained(TINY, *command.data(clips), *again, "--mode=eval")
    line = next(line for line in ended.err.splitlines() if "is replaced" in line)
    assert line.startswith(str(tmp_path / "predictions" / "test.npz"))
    assert line.index("checkpoints/2 (") < line.index("checkpoints/1 (")


def test_evaluation_of_one_checkpoint(tiny, clips, tmp_path):
    """Fewer views, and the weights after the first step, whose learning rate was 0."""
    one = tiny[0] / "checkpoints" / "1"
    flags = ("--mode=eval", f"--checkpoint={one}", "--config.eval.split=val")
    printed = json.loads(
        command.trained(TINY, *command.data(clips), f"--workdir={tmp_path}", *flags).out
    )
    assert printed["split"] == "val" and printed["checkpoint"] == str(one)
    assert (tmp_path / "predictions" / "val.npz").is_file()


def test_prediction_of_a_pose_list(tiny, clips, tmp_path):
    """JSON lines to standard output and nothing else; ids as listed; labels are not needed."""
    listed = tmp_path / "list.jsonl"
    lines = []
    for clip in annotations.read(clips / "annotations.pkl", "test")[:3]:
        record = {
            "id": f"my {clip.id}",
            "video": str(clips / "clips" / f"{clip.id}.mp4"),
            "size": clip.size,
            "joints": "coco17",
            "keypoint": clip.keypoint.tolist(),
            "score": clip.score.tolist(),
        }
        lines.append(json.dumps(record))
    listed.write_text("\n".join(lines))
    flags = ("--mode=predict", f"--workdir={tiny[0]}", f"--input={listed}")
    printed = [json.loads(line) for line in command.trained(TINY, *flags).out.splitlines()]
    assert [row["id"] for row in printed] == [f"my test{k:04d}" for k in range(3)]
    stored = np.load(tiny[0] / "predictions" / "test.npz")["scores"][:3]
    for row, scores in zip(printed, stored, strict=True):
        best = row["top"]
        assert [t["class"] for t in best] == np.argsort(-scores, kind="stable")[:5].tolist()
        assert row["probability"] == pytest.approx(scores.max(), rel=1e-4)
        assert row["name"] == best[0]["name"]


def test_check_prints_exact_tables(tiny, clips):
    results = json.loads((tiny[0] / "results.json").read_text())
    ended = command.trained(TINY, *command.data(clips), "--mode=check")
    out = ended.out
    assert f"{results['parameters']:,}" in out
    assert "# plan: 2 steps, 4 an epoch" in out
    assert "1 training program(s)" in out
    assert "rgb          uint8[4, 2, 32, 32, 3]" in out
    assert "keypoint     float32[4, 2, 2, 4, 17, 2]" in out  # the test batch has two views
    assert "multiply-adds for one example" in out
    assert "train 16, val 8, test 8 examples, all readable" in out


def test_check_without_data_prints_all_the_same(tmp_path):
    ended = command.run(TINY, f"--config.data.annotations={tmp_path / 'none.pkl'}", "--mode=check")
    assert ended.code == 2
    assert str(tmp_path / "none.pkl") in ended.error
    for part in ("# plan:", "# parameters", "# train batch", "# test batch", "# bytes"):
        assert part in ended.out


def test_bench(tiny, clips):
    ended = command.trained(TINY, *command.data(clips), "--mode=bench", "--bench_steps=2")
    printed = json.loads(ended.out)
    assert printed["batch_size"] == 4 and printed["shapes"]["rgb"] == [4, 2, 32, 32, 3]
    for name in (
        *("compile_s", "device_steps_per_s", "device_examples_per_s", "peak_device_bytes"),
        *("pipeline_examples_per_s", "end_to_end_examples_per_s", "parameters"),
    ):
        assert printed[name] > 0, name
    assert printed["device_step_ms"]["min"] <= printed["device_step_ms"]["median"]


def test_bench_without_data_measures_the_device():
    printed = json.loads(command.trained(*ONE_STREAM, "--mode=bench", "--bench_steps=1").out)
    assert printed["device_examples_per_s"] > 0
    assert "pipeline_examples_per_s" not in printed and "annotations" in printed["note"]
