"""Prediction on real files: windows, poses, timelines, videos, and what cannot be read."""

import dataclasses
import itertools
import json
import pickle
import shutil

import command
import numpy as np
import pytest
from altered import changed
from command import ROOT

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.data.video import Video
from jaxact.main import output_lines
from jaxact.modes import predict, window_merging
from jaxact.modes.predict import Request
from jaxact.tasks.action import (
    annotation_files,
    annotations,
    predict_inputs,
    sample_data,
    sliding_windows,
)
from jaxact.train import checkpoint, restore
from jaxact.train.run import open_run
from jaxact.train.workdir import MetricsLog, say

RECIPE = ROOT / "configs" / "x3d.py"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    sample_data.write(folder, train=8, test=8, frames=40, size=(48, 64))
    return folder


def config(streams):
    found = schema.load(RECIPE, "tiny")
    found.model.streams, found.model.coarse = streams, ()
    found.model.rgb.blocks, found.model.pose.blocks = (1,), (1,)
    found.save.report = found.save.tensorboard = False
    return found


@pytest.fixture(scope="module")
def trained(request, clips, tmp_path_factory):
    """(streams, work dir) as training leaves it, of a network that has not learnt anything."""
    found = config(getattr(request, "param", "rgb+pose"))
    found.data.annotations = str(clips / "annotations.pkl")
    found.data.videos = str(clips / "clips")
    run = open_run(found, tmp_path_factory.mktemp("run"))
    state, _ = restore.start(run, run.plan().rows[0].stage_data, say)
    MetricsLog(run.workdir, found, 1, run.task.training.classes).close()
    folder = run.workdir / "checkpoints"
    files = checkpoint.Checkpoints(folder, found.save, "top1", True, say)
    files.save(state, None)
    files.close()
    return found.model.streams, run.workdir


EITHER = pytest.mark.parametrize("trained", ["rgb", "rgb+pose"], indirect=True)


def predicted(trained, request, error="", **fields):
    """The lines for a request; with `error`, the mistake at the end must say it."""
    streams, workdir = trained
    found = predict.with_names(config(streams), workdir, "")
    for name, value in fields.items():
        setattr(found.data if hasattr(found.data, name) else found.eval, name, value)
    lines = []
    run = open_run(found, workdir)
    if error:
        with pytest.raises(UserError, match=error):
            predict.predict(run, "", request, lines.append)
    else:
        predict.predict(run, "", request, lines.append)
    return [json.loads(line) for line in lines]


def some(clips, folder, count=3):
    """A folder of a few of the videos and a pose file for them: (videos, poses, records)."""
    videos = folder / "videos"
    videos.mkdir()
    listed = annotations.read(clips / "annotations.pkl", "test")[:count]
    for clip in listed:
        shutil.copy(clips / "clips" / f"{clip.id}.mp4", videos)
    poses = folder / "poses.jsonl"
    poses.write_text("".join(json.dumps(pose_line(clip)) + "\n" for clip in listed))
    return videos, poses, listed


def pose_line(clip, **changes):
    return {
        "id": clip.id,
        "size": clip.size,
        "joints": "coco17",
        "keypoint": clip.keypoint.tolist(),
        "score": clip.score.tolist(),
        **changes,
    }


def asked(trained, folder, poses="", **options):
    """A request with poses where the model needs them."""
    return Request(str(folder), str(poses) if "pose" in trained[0] else "", **options)


def scores(lines):
    return np.array([line["probability"] for line in lines])


# -------------------------------------------------------------------------------------- windows


@EITHER
def test_windows_and_what_they_come_to(trained, clips, tmp_path):
    videos, poses, listed = some(clips, tmp_path)
    lines = predicted(trained, asked(trained, videos, poses, window=0.5, stride=0.25, top=8))
    names = annotation_files.parse(clips / "annotations.pkl").classes
    for clip in listed:
        own = [line for line in lines if line["id"] == str(videos / f"{clip.id}.mp4")]
        *windows, last = own
        with Video(videos / f"{clip.id}.mp4") as video:
            spans = list(sliding_windows.spans(video.times, 0.5, 0.25))
            end = sliding_windows.length(video.times)
        assert [(w["start"], w["end"]) for w in windows] == [
            (round(s.start, 3), round(s.end, 3)) for s in spans
        ]
        table = np.zeros((len(windows), 8))
        for row, window in zip(table, windows, strict=True):
            for entry in window["top"]:
                row[entry["class"]] = entry["probability"]
                assert entry["name"] == names[entry["class"]]
            assert window["name"] == names[row.argmax()] == window["top"][0]["name"]
            assert window["probability"] == row.max()
        # The whole: the mean over windows, and a timeline without gaps.
        assert last["windows"] == len(windows)
        whole = {entry["class"]: entry["probability"] for entry in last["top"]}
        np.testing.assert_allclose([whole[k] for k in range(8)], table.mean(0), atol=1e-6)
        line = last["timeline"]
        assert line[0]["start"] == 0 and line[-1]["end"] == pytest.approx(end, abs=1e-3)
        for before, after in itertools.pairwise(line):
            assert before["end"] == after["start"] and before["name"] != after["name"]


def test_a_window_is_seen_as_a_video_of_its_own(trained, clips, tmp_path):
    """Whatever the batch it stands in; a window longer than the video is the whole video."""
    videos, poses, _ = some(clips, tmp_path)
    whole = predicted(trained, asked(trained, videos, poses))
    assert [sorted(line) for line in whole] == [["id", "name", "probability", "top"]] * 3
    windowed = predicted(trained, asked(trained, videos, poses, window=60.0))
    np.testing.assert_allclose(scores(windowed[::2]), scores(whole), rtol=1e-5)
    np.testing.assert_allclose(scores(windowed[1::2]), scores(whole), rtol=1e-5)
    few = asked(trained, videos, poses, window=0.4, stride=0.3)
    one, other = (predicted(trained, few, batch_size=size) for size in (1, 3))
    assert [line["id"] for line in one] == [line["id"] for line in other]
    np.testing.assert_allclose(scores(one), scores(other), rtol=1e-5)


def test_views_in_parts_in_windows_too(trained, clips, tmp_path):
    videos, poses, _ = some(clips, tmp_path, 1)
    few = asked(trained, videos, poses, window=0.6, stride=0.4)
    one, other = (predicted(trained, few, clips_at_once=count) for count in (1, 2))
    np.testing.assert_allclose(scores(one), scores(other), rtol=1e-5)


def test_pieces_tile_and_join():
    def piece(start, end, name, probability=0.5):
        return {"start": start, "end": end, "name": name, "probability": probability}

    windows = [piece(0, 2, "a", 0.4), piece(1, 3, "a", 0.6), piece(2, 4, "b"), piece(5, 7, "b")]
    tiles = window_merging.tiled(windows)
    assert [(t["start"], t["end"]) for t in tiles] == [(0, 1.5), (1.5, 2.5), (2.5, 4), (5, 7)]
    assert windows[0]["end"] == 2  # untouched
    assert window_merging.merged(tiles) == [
        piece(0, 2.5, "a"),
        piece(2.5, 4, "b"),
        piece(5, 7, "b"),
    ]
    assert window_merging.merged([]) == window_merging.tiled([]) == []


# ---------------------------------------------------------------------------------------- poses


def test_poses_from_a_file_a_folder_or_the_list_are_the_same(trained, clips, tmp_path):
    videos, poses, listed = some(clips, tmp_path)
    folder = tmp_path / "each"
    folder.mkdir()
    for index, clip in enumerate(listed):
        if index:
            line = pose_line(clip, id="anything")  # the only record of its file
            (folder / f"{clip.id}.jsonl").write_text(json.dumps(line))
        else:
            shutil.copy(poses, folder / f"{clip.id}.mp4.jsonl")
    table = tmp_path / "list.jsonl"
    table.write_text(
        "".join(
            json.dumps(pose_line(clip, video=str(videos / f"{clip.id}.mp4"))) + "\n"
            for clip in listed
        )
    )
    csv = tmp_path / "list.csv"
    csv.write_text("file,label\n" + "".join(f"{videos / clip.id}.mp4,\n" for clip in listed))
    pickled = tmp_path / "poses.pkl"
    kept = [
        {
            "frame_dir": clip.id,
            "total_frames": clip.frames,
            "img_shape": clip.size,
            "keypoint": clip.keypoint,
            "keypoint_score": clip.score,
        }
        for clip in listed
    ]
    pickled.write_bytes(pickle.dumps({"split": {}, "annotations": kept}))
    wanted = scores(predicted(trained, Request(str(table))))
    for given in (
        Request(str(videos), str(poses)),
        Request(str(videos), str(folder)),
        Request(str(videos), str(pickled)),
        Request(str(csv), str(poses)),
    ):
        np.testing.assert_allclose(scores(predicted(trained, given)), wanted, rtol=1e-5)
    windows = [
        scores(predicted(trained, dataclasses.replace(given, window=0.5)))
        for given in (Request(str(table)), Request(str(videos), str(poses)))
    ]
    np.testing.assert_allclose(*windows, rtol=1e-5)


def test_poses_that_do_not_fit_are_named_and_the_rest_is_done(trained, clips, tmp_path, capfd):
    videos, poses, listed = some(clips, tmp_path)
    first, second, third = listed
    short = dataclasses.replace(
        second, keypoint=second.keypoint[:, :9], score=second.score[:, :9], frames=9
    )
    poses.write_text("".join(json.dumps(pose_line(c)) + "\n" for c in (first, short)))
    for window in (0.0, 0.5):
        lines = predicted(
            trained, Request(str(videos), str(poses), window=window), "2 of 3 inputs failed"
        )
        assert {line["id"] for line in lines} == {str(videos / f"{first.id}.mp4")}
        said = capfd.readouterr().err
        assert f"{second.id}.mp4: 40 frames, but {poses} has poses of 9" in said
        assert f"{poses}: no record fits {videos / third.id}.mp4; its records: test0000" in said
    empty = tmp_path / "empty"
    empty.mkdir()
    given = Request(str(videos / f"{first.id}.mp4"), str(empty))
    assert predicted(trained, given, "holds no file for it; expected test0000") == []
    given = Request(str(videos), "nowhere.jsonl")
    assert predicted(trained, given, "--poses=nowhere.jsonl does not exist") == []
    assert predicted(trained, Request(str(videos)), "this model needs poses; give") == []


def test_only_the_poses_that_are_asked_for_are_converted(trained, clips, tmp_path, monkeypatch):
    """Once for each clip: not the whole file again for each of thousands of videos."""
    videos, poses, listed = some(clips, tmp_path)
    broken = pose_line(listed[2], score=[])
    lines = [pose_line(listed[0]), pose_line(listed[1]), broken]
    poses.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked, checked = [], annotations.poses.checked
    monkeypatch.setattr(
        annotations.poses, "checked", lambda *a, **k: (asked.append(a[3]), checked(*a, **k))[1]
    )
    data, streams = config("pose").data, ("pose",)
    source = predict_inputs.examples(data, streams, 8, str(videos), str(poses))
    for clip, known in zip((source[0], source[1]), listed, strict=False):
        np.testing.assert_array_equal(clip.keypoint, known.keypoint)
    assert len(asked) == 2
    with pytest.raises(UserError, match="score"):
        source[2]


# ----------------------------------------------------------------------------- what goes wrong


def test_what_cannot_be_read_is_named_and_the_rest_is_done(trained, clips, tmp_path, capfd):
    videos, poses, listed = some(clips, tmp_path)
    cut = videos / f"{listed[1].id}.mp4"
    cut.write_bytes(cut.read_bytes()[:-200])
    (videos / f"{listed[2].id}.mp4").write_text("hello")
    for options in ({}, {"window": 0.5}, {"window": 0.5, "render": str(tmp_path / "out")}):
        given = asked(trained, videos, poses, **options)
        lines = predicted(trained, given, f"2 of 3 inputs failed; the first: {cut}: cut off")
        assert {line["id"] for line in lines} == {str(videos / f"{listed[0].id}.mp4")}
        said = [line for line in capfd.readouterr().err.splitlines() if "left out" in line]
        assert len(said) == 2 and str(cut) in said[0] and f"{listed[2].id}.mp4" in said[1]
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"{listed[0].id}.mp4"]


@pytest.mark.parametrize("trained", ["rgb"], indirect=True)
def test_a_window_that_breaks_counts_against_its_own_recording(trained, clips, tmp_path, capfd):
    """Late in a batch that windows of the next recording fill up."""
    videos, _, listed = some(clips, tmp_path)
    wanted = predicted(trained, Request(str(videos), window=0.5, stride=0.4))
    run = open_run(predict.with_names(config("rgb"), trained[1], ""), trained[1])
    real = run.task.prediction.windows

    @dataclasses.dataclass
    class Broken:
        start: float
        end: float

        def arrays(self, part):
            raise UserError("a picture is lost")

    def windows(clip, seconds, stride):
        for index, window in enumerate(real(clip, seconds, stride)):
            broken = clip.id.endswith(f"{listed[0].id}.mp4") and index == 2
            yield Broken(window.start, window.end) if broken else window

    run = dataclasses.replace(run, task=changed(run.task, windows=windows))
    lines = []
    request = Request(str(videos), window=0.5, stride=0.4)
    with pytest.raises(UserError, match="1 of 3 inputs failed; the first: a picture is lost"):
        predict.predict(run, "", request, lambda line: lines.append(json.loads(line)))
    assert capfd.readouterr().err.count("left out: a picture is lost") == 1
    first = str(videos / f"{listed[0].id}.mp4")
    own = [line for line in wanted if line["id"] == first]
    assert len(own) > 4 and own[-1]["windows"] == len(own) - 1
    kept = [line for index, line in enumerate(wanted) if line["id"] != first]
    assert [line for line in lines if line["id"] != first] == kept
    assert [line for line in lines if line["id"] == first] == own[:2] + own[3:-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": -1.0}, "--window=-1.0"),
        ({"stride": 0.0, "window": 1.0}, "--stride=0.0"),
        ({"top": 0}, "--top=0"),
        ({"render": "x", "render_size": 3}, "--render_size=3"),
        ({"render": "one.mp4"}, "one file for 3 inputs"),
        ({"render": "RECIPE/x"}, "no folder can be made"),
    ],
)
def test_requests_out_of_range(trained, clips, tmp_path, options, said):
    videos, poses, _ = some(clips, tmp_path)
    if "RECIPE" in options.get("render", ""):
        options = {"render": str(RECIPE / "x")}
    assert predicted(trained, asked(trained, videos, poses, **options), said) == []


def test_videos_get_names_of_their_own(tmp_path):
    def names(*ids):
        return [p.name for p in predict.files(str(tmp_path), list(ids))]

    assert names("a/x.mp4", "a/y.avi") == ["x.mp4", "y.mp4"]
    assert names("a/x.mp4", "a/x.avi") == ["x.mp4.mp4", "x.avi.mp4"]
    assert names("a/x.mp4", "b/x.mp4") == ["a_x.mp4.mp4", "b_x.mp4.mp4"]
    assert predict.files(str(tmp_path / "one.mp4"), ["x"]) == [tmp_path / "one.mp4"]
    with pytest.raises(UserError, match="there is no folder"):
        predict.files(str(tmp_path / "no" / "one.mp4"), ["x"])


def test_lines_replace_a_file_only_if_there_are_any(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine\n")
    with pytest.raises(UserError), output_lines(str(path)):
        raise UserError("nothing found")
    assert path.read_text() == "mine\n"
    with pytest.raises(UserError), output_lines(str(path)) as emit:
        emit("one")
        assert path.read_text() == "mine\n"
        raise UserError("the second failed")
    assert path.read_text() == "one\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    for wrong in (tmp_path / "no" / "x", tmp_path):
        with pytest.raises(UserError, match="--output"), output_lines(str(wrong)):
            pass


# ------------------------------------------------------------------------------- the real command


def test_the_command(trained, clips, tmp_path):
    """Flags to files: lines, a video for each, one line of error and exit code 2 at the end."""
    streams, workdir = trained
    videos, poses, listed = some(clips, tmp_path)
    (videos / "broken.mp4").write_text("hello")
    flags = [
        f"--config={RECIPE}:tiny",
        f"--config.model.streams={streams}",
        *("--config.model.coarse=()", "--config.model.rgb.blocks=(1,)"),
        *("--config.model.pose.blocks=(1,)", "--mode=predict", f"--workdir={workdir}"),
        *(f"--input={videos}", f"--output={tmp_path / 'out.jsonl'}", "--window=0.5"),
        *("--stride=0.5", "--top=2", f"--render={tmp_path / 'out'}", "--render_size=64"),
    ]
    ended = command.run(*flags, *([f"--poses={poses}"] if "pose" in streams else []))
    assert ended.code == 2 and ended.out == ""
    assert "1 of 4 inputs failed" in ended.error and "broken.mp4" in ended.error
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if "timeline" in line] == [
        str(videos / f"{clip.id}.mp4") for clip in listed
    ]
    assert all(len(line["top"]) == 2 and not line["name"].isdigit() for line in lines)
    for clip in listed:
        source, made = videos / f"{clip.id}.mp4", tmp_path / "out" / f"{clip.id}.mp4"
        with Video(source) as one, Video(made) as other:
            assert other.size[0] == 64
            np.testing.assert_allclose(other.times, one.times, atol=1e-5)


@EITHER
def test_real_videos_of_any_kind(trained, real_data, tmp_path):
    """Windows over every sample: sound, 1080p, uneven times; poses made up where needed."""
    folder = real_data / "decode_samples"
    videos = sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".avi"))
    poses = ""
    if "pose" in trained[0]:
        poses = tmp_path / "poses"
        poses.mkdir()
        rng = np.random.default_rng(0)
        for path in videos:
            with Video(path) as video:
                count, (height, width) = video.frames, video.size
            points = rng.uniform(0.2, 0.8, (1, count, 17, 2)) * (width, height)
            line = {"id": path.name, "size": (height, width), "joints": "coco17"}
            text = json.dumps({**line, "keypoint": points.round(1).tolist()})
            (poses / f"{path.name}.jsonl").write_text(text)
    out = tmp_path / "out"
    given = asked(trained, folder, poses, window=2.0, stride=1.0, render=str(out), render_size=32)
    lines = predicted(trained, given)
    assert [line["id"] for line in lines if "timeline" in line] == [str(p) for p in videos]
    for path in videos:
        with Video(path) as video, Video(out / f"{path.name}.mp4") as made:
            wanted = len(list(sliding_windows.spans(video.times, 2.0, 1.0)))
            np.testing.assert_allclose(made.times, video.times, atol=1.2e-5)
        own = [line for line in lines if line["id"] == str(path)]
        assert len(own) == wanted + 1 and own[-1]["windows"] == wanted
