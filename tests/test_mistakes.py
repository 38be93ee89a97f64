"""Mistakes through the real command: one line that says what, where and what is allowed; exit 2.

Nothing is lost by a mistake: what lay in the work dir before lies there after.
"""

import os
import pickle
import shutil

import command
import numpy as np
import pytest
from command import ONE_STREAM, TINY, TOY

TOY_TWO = (TOY, "--config.length=2 epochs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A toy training of two epochs: checkpoints 6 and 12."""
    workdir = tmp_path_factory.mktemp("finished")
    command.trained(*TOY_TWO, f"--workdir={workdir}")
    assert command.steps(workdir) == [6, 12]
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, for tests that would change it."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """(*flags) -> the line of the mistake, of commands that end before anything is compiled."""
    forks = command.Forks(tmp_path_factory.mktemp("forks"))

    def run(*flags):
        ended = forks.run(*flags)
        assert ended.code == 2, ended.err
        return ended.error

    yield run
    forks.close()


def stopped(*flags):
    """The same through the whole command."""
    ended = command.run(*flags)
    assert ended.code == 2, ended.err
    return ended.error


# ------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            (TOY, "--config.model.widht=8"),
            ["--config.model.widht", "did you mean config.model.width"],
        ),
        ((TOY, "--config.stages[0].label_smooth=1"), ["config.stages[0].label_smoothing"]),
        ((TOY, "--config.batch_size=many"), ["config.batch_size", "many", "int()"]),
        ((TOY, "--config.optim.lr=fast"), ["config.optim.lr", "fast", "float"]),
        ((TOY, "--config.optim.milestones=1,2"), ["config.optim.milestones[0]", "tuple of str"]),
        ((TOY, "--config.optim.name=sdg"), ["config.optim.name='sdg'", "adamw", "mean 'sgd'"]),
        ((TOY, "--config.length=ten"), ["config.length='ten'", "80 epochs"]),
        ((TOY, "--config.batch_size=0"), ["config.batch_size=0", "1 or more"]),
        ((TOY, "--config.optim.accumulate=3"), ["optim.accumulate=3", "divisors of batch_size=8"]),
        ((TOY, "--config.task=toy.blops"), ["config.task='toy.blops'"]),
        ((TOY, "--config.eval.metric=top_1"), ["config.eval.metric='top_1'", "nll, top1"]),
        ((TOY, "--config.eval.split=tset"), ["config.eval.split='tset'", "val, test"]),
        ((TOY, "--mode=trian"), ["mode", "trian", "train", "eval", "predict", "check"]),
        ((TOY, "--wrokdir=x"), ["wrokdir", "workdir"]),
        ((TOY, "more"), ["'more'"]),
        ((f"{TINY[:-4]}tinny",), ["'tinny'", "tiny", "demo"]),
        (("--config=configs/x4d.py",), ["configs/x4d.py", "does not exist"]),
        ((), ["--config is missing"]),
    ],
    ids=lambda case: " ".join(case)[-40:] if case and isinstance(case[0], str) else "none",
)
def test_command_line(refused, flags, said, tmp_path):
    error = refused(*flags, f"--workdir={tmp_path / 'run'}")
    for part in said:
        assert part in error
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))


def test_a_folder_is_needed(refused):
    assert "--workdir is missing" in refused(TOY)
    # What evaluation writes must not land wherever the command is given.
    assert "--workdir is missing" in refused(TOY, "--mode=eval", "--checkpoint=runs/a")


def test_a_file_is_no_work_dir(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    error = refused(TOY, f"--workdir={tmp_path / 'file'}")
    assert f"--workdir={tmp_path / 'file'}" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_that_is_no_recipe(refused, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config():\n    return {'lr': 1}\n")
    error = refused(f"--config={recipe}", f"--workdir={tmp_path / 'run'}")
    assert "get_config" in error and "Config" in error


# ------------------------------------------------------------------------------------ annotations


def changed(clips, folder, change):
    """The generated annotations after `change(content)`, in a file of their own."""
    content = pickle.loads((clips / "annotations.pkl").read_bytes())
    content = change(content) or content
    path = folder / "changed.pkl"
    path.write_bytes(pickle.dumps(content))
    return f"--config.data.annotations={path}", f"--config.data.videos={clips / 'clips'}"


def label_out_of_range(content):
    content["annotations"][3]["label"] = 8


def empty_split(content):
    content["split"]["train"] = []


def split_without_record(content):
    content["split"]["train"].append("ghost")


def lost_joint(content):
    record = content["annotations"][2]
    record["keypoint"] = record["keypoint"].copy()
    record["keypoint"][0, 5, 7] = np.nan


def other_joints(content):
    for record in content["annotations"]:
        record["keypoint"] = record["keypoint"][:, :, :15]
        record["keypoint_score"] = record["keypoint_score"][:, :, :15]


def bare_list(content):
    return content["annotations"]


def no_names(content):
    del content["classes"]


def nine_names(content):
    content["classes"] = [f"class {k}" for k in range(9)]


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (label_out_of_range, (), ["record 3 (train0003)", "label 8", "0 to 7"]),
        (empty_split, (), ["'train'", "empty"]),
        (split_without_record, (), ["'train'", "'ghost'"]),
        (lost_joint, ("--config.data.nan=error",), ["record 2 (train0002)", "NaN"]),
        (other_joints, (), ["record 0 (train0000)", "15 joints", "17"]),
        (bare_list, (), ["a bare list of records", "'split'", "'annotations'"]),
        (nine_names, (), ["9 class names", "8 classes"]),
        (None, ("--config.data.train_split=xsub",), ["'xsub'", "train, test"]),
        (None, ("--config.data.val_split=tset",), ["'tset'", "train, test"]),
        (None, ("--config.data.test_split=tset",), ["'tset'", "train, test"]),
        (None, ("--config.model.classes=5", "--config.model.coarse=()"), ["8 class", "5 classes"]),
        (no_names, ("--config.model.classes=5", "--config.model.coarse=()"), ["label", "0 to 4"]),
        (None, ("--config.data.skeleton=coco71",), ["coco71", "coco17"]),
        (None, ("--config.model.coarse=0,1",), ["config.model.coarse", "each of the 8"]),
    ],
    ids=lambda case: case.__name__ if callable(case) else None,
)
def test_annotations(refused, clips, tmp_path, change, flags, said):
    where = changed(clips, tmp_path, change or (lambda content: None))
    error = refused(TINY, *where, f"--workdir={tmp_path / 'run'}", *flags)
    for part in said:
        assert part in error
    if change is not None:
        assert str(tmp_path / "changed.pkl") in error


def test_annotations_that_are_absent(refused, clips, tmp_path):
    run = f"--workdir={tmp_path / 'run'}"
    error = refused(TINY, f"--config.data.annotations={tmp_path / 'none.pkl'}", run)
    assert str(tmp_path / "none.pkl") in error
    assert "config.data.annotations" in refused(TINY, run)


def test_a_folder_of_videos_that_is_absent(refused, clips, tmp_path):
    run = f"--workdir={tmp_path / 'run'}"
    where = f"--config.data.videos={tmp_path / 'none'}"
    error = refused(TINY, *command.data(clips), where, run)
    assert "config.data.videos" in error and "is no folder" in error


def test_class_names_of_another_number(refused, clips, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    error = refused(
        TINY, *command.data(clips), f"--config.data.class_names={names}", f"--workdir={tmp_path}/r"
    )
    assert "config.data.class_names" in error and "3 names" in error and "8" in error


class Intruder:
    """Unpickling it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_runs_nothing(refused, clips, tmp_path):
    def with_intruder(content):
        content["annotations"][0]["label"] = Intruder(tmp_path / "intruded")

    where = changed(clips, tmp_path, with_intruder)
    error = refused(TINY, *where, f"--workdir={tmp_path / 'run'}")
    assert "changed.pkl" in error and "system" in error
    assert not (tmp_path / "intruded").exists()


# ----------------------------------------------------------------------------------------- videos


def without_frames(path):
    """A video file that holds none: a complete header and nothing to show."""
    import av

    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10]),
    "frameless": without_frames,
}


def damaged(clips, folder, kind, name):
    """The set with one damaged video."""
    shutil.copytree(clips, folder / "set")
    DAMAGE[kind](folder / "set" / "clips" / f"{name}.mp4")
    return command.data(folder / "set")


@pytest.mark.parametrize("kind", ["missing", "cut", "frameless"])
def test_an_unreadable_video_stops_the_run(clips, tmp_path, kind):
    where = damaged(clips, tmp_path, kind, "train0005")
    error = stopped(*ONE_STREAM, "--config.length=1 epochs", *where, f"--workdir={tmp_path / 'r'}")
    assert "train0005.mp4" in error


def test_an_unreadable_video_stops_worker_processes_too(clips, tmp_path):
    where = damaged(clips, tmp_path, "missing", "train0005")
    flags = ("--config.length=1 epochs", "--config.input.workers=1")
    ended = command.run(*ONE_STREAM, *flags, *where, f"--workdir={tmp_path / 'run'}")
    assert ended.code == 2, ended.err
    assert "train0005.mp4" in ended.only_error and "Traceback" not in ended.err


@pytest.mark.parametrize(("kind", "workers"), [("missing", 0), ("cut", 1)])
def test_an_unreadable_video_is_masked_out_on_request(clips, tmp_path, kind, workers):
    where = damaged(clips, tmp_path, kind, "train0005")
    DAMAGE[kind](tmp_path / "set" / "clips" / "test0002.mp4")
    ended = command.trained(
        *ONE_STREAM,
        "--config.length=1 epochs",
        "--config.input.broken=skip",
        f"--config.input.workers={workers}",
        *where,
        f"--workdir={tmp_path / 'run'}",
    )
    for name in ("train0005.mp4", "test0002.mp4"):
        assert [line for line in ended.err.splitlines() if name in line and "skipped" in line]
    assert not ended.out
    stored = np.load(tmp_path / "run" / "predictions" / "test.npz")
    assert stored["ids"].tolist() == [f"test{k:04d}" for k in range(8) if k != 2]
    assert all(np.isfinite(row["loss"]) for row in command.rows(tmp_path / "run") if "loss" in row)


def test_nothing_readable_is_a_mistake_all_the_same(clips, tmp_path):
    ended = command.run(
        *ONE_STREAM,
        "--config.length=1 epochs",
        "--config.input.broken=skip",
        f"--config.data.annotations={clips / 'annotations.pkl'}",
        f"--config.data.videos={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert ended.code == 2, ended.err
    assert "no example of the val split" in ended.error


def test_check_names_every_unreadable_video(clips, tmp_path):
    where = damaged(clips, tmp_path, "missing", "train0005")
    DAMAGE["cut"](tmp_path / "set" / "clips" / "test0002.mp4")
    ended = command.run(*ONE_STREAM, *where, "--mode=check")
    assert ended.code == 2
    assert "2 unreadable" in ended.error or "3 unreadable" in ended.error  # test is val, too
    assert "train0005.mp4" in ended.err and "test0002.mp4" in ended.err


# ------------------------------------------------------------------------------------ checkpoints


def test_no_checkpoint(refused, tmp_path):
    assert "nowhere does not exist" in refused(
        TOY, "--mode=eval", "--checkpoint=nowhere", f"--workdir={tmp_path}"
    )
    error = refused(TOY, "--mode=eval", f"--workdir={tmp_path}")
    assert str(tmp_path) in error and "checkpoint" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "path"),
    [
        ("--config.model.width=8", "body_bn/mean is (16,)"),
        ("--config.optim.name=adam", "opt_state/all"),
        ("--config.optim.ema=0.0", "ema"),
    ],
)
def test_checkpoints_of_another_config_are_left_alone(refused, copied, flag, path):
    before = command.files(copied)
    error = refused(TOY, f"--workdir={copied}", flag)
    assert str(copied / "checkpoints" / "12") in error and path in error
    assert "--workdir" in error and "init_from" in error
    assert command.files(copied) == before


def test_evaluating_a_checkpoint_of_another_config(refused, finished):
    error = refused(TOY, "--mode=eval", f"--workdir={finished}", "--config.model.width=8")
    assert "body_bn/mean is (16,) there and (8,) here" in error


def spoil(folder):
    """What a crash of the machine leaves: some files empty, some cut, some of other content."""
    for index, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        content = path.read_bytes()
        path.write_bytes([b"", content[: len(content) // 2], content[::-1]][index % 3])


def test_a_corrupt_checkpoint_is_set_aside(finished, copied):
    spoil(copied / "checkpoints" / "12")
    (copied / "results.json").unlink()
    ended = command.trained(*TOY_TWO, f"--workdir={copied}")
    assert "checkpoint 12 is corrupt" in ended.err
    assert "resumed from step 6" in ended.err
    assert command.steps(copied) == [6, 12]
    assert (copied / "checkpoints" / "corrupt-12").is_dir()
    for name in ("scores", "ids"):
        one, other = (np.load(d / "predictions" / "test.npz")[name] for d in (finished, copied))
        np.testing.assert_array_equal(one, other)


def test_nothing_is_moved_where_every_checkpoint_is_corrupt(refused, copied):
    for step in (6, 12):
        spoil(copied / "checkpoints" / str(step) / "weights")
    before = command.files(copied)
    for _ in range(2):  # nor does a second try start afresh
        error = refused(*TOY_TWO, f"--workdir={copied}")
        assert str(copied / "checkpoints") in error and "delete the folder" in error
        assert command.files(copied) == before


def test_evaluating_a_corrupt_checkpoint(refused, copied):
    spoil(copied / "checkpoints" / "6")
    one = f"--checkpoint={copied / 'checkpoints' / '6'}"
    error = refused(TOY, "--mode=eval", one, f"--workdir={copied}")
    assert str(copied / "checkpoints" / "6") in error and "corrupt" in error


def test_a_full_disk(tmp_path):
    """A wide toy: its checkpoints do not fit into the limit, at first all else does."""
    wide = (TOY, "--config.model.width=8192", f"--workdir={tmp_path}")
    command.trained(*wide, "--config.length=1 epochs")
    before = command.files(tmp_path / "checkpoints" / "6")
    more = (*wide, "--config.length=3 epochs")
    for limit in (65536, 200):
        ended = command.run(*more, cache=False, largest=limit)
        assert ended.code == 2, ended.err
        assert str(tmp_path) in ended.only_error
        if limit > 200:
            assert "checkpoint" in ended.only_error and "MiB free" in ended.only_error
        assert command.steps(tmp_path) == [6]
        assert command.files(tmp_path / "checkpoints" / "6") == before
    assert "resumed from step 6" in command.trained(*more).err


def test_divergence_keeps_the_last_good_checkpoint(copied):
    before = command.files(copied / "checkpoints" / "12")
    ended = command.run(
        TOY, "--config.length=4 epochs", "--config.data.poison=5", f"--workdir={copied}"
    )
    assert ended.code == 3, ended.err
    assert "diverged at step" in ended.error and "loss is nan" in ended.error
    assert "checkpoint 12" in ended.error and str(copied) in ended.error
    step = int(ended.error.split("at step ")[1].split(":")[0])
    assert 12 < step <= 18
    assert command.steps(copied)[-1] == 12
    assert command.files(copied / "checkpoints" / "12") == before
    assert all(np.isfinite(row["loss"]) for row in command.rows(copied) if "loss" in row)


# ------------------------------------------------------------------------------------- prediction


def test_prediction_inputs(refused, clips, tmp_path):
    trained = tmp_path / "run"
    command.trained(
        *ONE_STREAM, "--config.length=1 epochs", *command.data(clips), f"--workdir={trained}"
    )
    predict = (*ONE_STREAM, "--mode=predict", f"--workdir={trained}")
    assert "--input is missing" in refused(*predict)
    assert "nowhere.mp4 does not exist" in refused(*predict, "--input=nowhere.mp4")
    (tmp_path / "empty").mkdir()
    error = refused(*predict, f"--input={tmp_path / 'empty'}")
    assert str(tmp_path / "empty") in error
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    assert str(text) in refused(*predict, f"--input={text}")
    fake = tmp_path / "fake.mp4"
    fake.write_text("hello")
    kept = tmp_path / "kept.jsonl"
    kept.write_text("mine\n")
    assert str(fake) in stopped(*predict, f"--input={fake}", f"--output={kept}")
    assert kept.read_text() == "mine\n"
    video = clips / "clips" / "test0000.mp4"
    error = refused(*predict, f"--input={video}", f"--output={tmp_path / 'no' / 'where.jsonl'}")
    assert str(tmp_path / "no" / "where.jsonl") in error


def test_prediction_needs_the_poses_of_a_pose_model(refused, clips, tmp_path):
    video = clips / "clips" / "test0000.mp4"
    error = refused(TINY, "--mode=predict", f"--workdir={tmp_path}", f"--input={video}")
    assert str(video) in error and "keypoints" in error and "streams=rgb" in error
