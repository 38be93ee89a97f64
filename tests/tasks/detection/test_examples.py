"""Windows of untrimmed videos: their counts and times, crops, decoded frames, features, errors."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.data.video import Video
from jaxact.tasks.detection import (
    annotations,
    dataset,
    examples,
    features,
    frames,
    sample_data,
    windows,
)
from jaxact.tasks.detection.config import Backbone, Config, Data, Merging, Model, Post, validate

FULL = types.SimpleNamespace(size=32, augment="full")
PLAIN = types.SimpleNamespace(size=32, augment="none")


def checked(data: Data) -> Data:
    """The same, after what a task checks first."""
    backbone = Backbone(size="none" if data.features else "s")
    post = Post(merging=Merging(single=data.mode == "resize"))
    validate(Config(model=Model(backbone=backbone), data=data, post=post))
    return data


def settings(folder, **fields) -> Data:
    given = {
        "annotations": str(folder / "annotations.json"),
        "videos": str(folder / "videos"),
        **dict(window=32, stride=2, resize=36, test_size=32, most=8, operations=1),
        **fields,
    }
    return checked(Data(**given))


# ------------------------------------------------------------------------------------- windows


def test_windows_of_the_specification():
    assert windows.sliding(253, 768, 0.5) == [(0, 253)]
    assert windows.sliding(1133, 768, 0.5) == [(0, 768), (365, 1133)]
    found = windows.sliding(3621, 768, 0.5)
    assert len(found) == 9 and found[-1] == (2853, 3621)
    # As the reference: a window that ends exactly with the video comes twice.
    assert windows.sliding(1152, 768, 0.5) == [(0, 768), (384, 1152), (384, 1152)]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_every_step_is_in_a_window(overlap):
    for steps in range(1, 400, 7):
        found = windows.sliding(steps, 64, overlap)
        assert found[0][0] == 0 and found[-1][1] == steps
        assert all(end - start == min(64, steps) for start, end in found)
        assert all(b[0] <= a[1] for a, b in itertools.pairwise(found))


def test_thumos_has_792_test_windows(real_data):
    path = real_data / "thumos14" / "thumos14_opentad_style_reconstructed.json"
    annotation = annotations.read(path, ground_truth="opentad")
    steps = [windows.count(video.frames, 4) for video in annotation.subset("validation")]
    assert sum(len(windows.sliding(n, 768, 0.5)) for n in steps) == 792
    assert sum(n < 768 for n in steps) == 60
    train = [windows.count(video.frames, 4) for video in annotation.subset("training")]
    assert sum(n < 768 for n in train) == 62


def test_steps_are_whole_frames_over_the_stride():
    seconds = np.array([[0.2, 1.1], [11.4, 12.2]])
    found = windows.to_steps(seconds, 1012 / 33.83, 4, 0.0)
    assert (found * 4).tolist() == [[5, 32], [341, 364]]
    assert windows.to_steps(np.array([13 / 7]), 7.0, 1, 0.0).tolist() == [13]  # 12.999... frames
    assert windows.to_steps(np.array([1.0]), 30.0, 4, 8.0).tolist() == [5.5]


def test_random_crops_hold_most_of_a_segment():
    table = np.array([[100.0, 140.0], [500.0, 520.0], [900.0, 2000.0]])
    starts = set()
    for seed in range(60):
        crop = windows.random_crop(table, 2000, 200, np.random.default_rng(seed), 0.75, 0.9)
        assert crop.end - crop.start == 200 and 0 <= crop.start <= 1800
        assert len(crop.kept) >= 1 and 2 not in crop.kept
        for row, own in zip(crop.segments, table[crop.kept], strict=True):
            assert 0 <= row[0] and row[1] <= 200
            assert row[1] - row[0] >= 0.75 * (own[1] - own[0])
        starts.add(crop.start)
    assert len(starts) > 20


def test_random_crops_of_short_videos():
    table, lengths = np.array([[10.0, 20.0]]), set()
    for seed in range(80):
        crop = windows.random_crop(table, 50, 200, np.random.default_rng(seed), 0.75, 0.9)
        lengths.add(crop.end - crop.start)
        assert 45 <= crop.end - crop.start <= 50 and len(crop.kept) == 1
    assert lengths == set(range(45, 51))
    none = windows.random_crop(np.zeros((0, 2)), 500, 64, np.random.default_rng(0), 0.75, 0.9)
    assert len(none.kept) == 0 and none.end - none.start == 64


def test_equal_segments_count_once():
    table = np.array([[3.0, 4.0], [1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    assert windows.without_duplicates(table, np.array([0, 1, 0, 2])).tolist() == [0, 1, 3]


def test_frames_of_a_window():
    assert windows.frame_numbers(2, 4, 3, 1, 100).tolist() == [6, 9, 12, 15]
    assert windows.frame_numbers(2, 4, 4, 2, 100).tolist() == [8, 10, 12, 14, 16, 18, 20, 22]
    # Past the end the last one read is repeated.
    assert windows.frame_numbers(0, 5, 3, 1, 8).tolist() == [0, 3, 6, 6, 6]
    assert windows.spread(100, 4).tolist() == [12, 37, 62, 87]
    assert windows.spread(2, 4).tolist() == [0, 0, 1, 1]


def test_features_stretched_to_a_length():
    ramp = np.arange(8, dtype=np.float32)[:, None]
    np.testing.assert_allclose(windows.stretched(ramp, 4)[:, 0], [0.5, 2.5, 4.5, 6.5])
    np.testing.assert_allclose(windows.stretched(ramp[:2], 4)[:, 0], [0, 0.25, 0.75, 1])


# --------------------------------------------------------------------------------------- frames


def test_arrays_have_the_promised_shapes(drawn):
    data = settings(drawn)
    for split in ("train", "val"):
        source = dataset.source(data, 2, split)
        assert len(source) == {"train": 3, "val": 6}[split] and len(set(source.ids)) == len(source)
        wanted = examples.shapes(data, FULL, split)
        for index in range(len(source)):
            found = examples.prepare(
                data, 2, source[index], np.random.default_rng(index), FULL, split
            )
            assert {k: (np.shape(v), np.asarray(v).dtype) for k, v in found.items()} == {
                k: (shape, np.dtype(kind)) for k, (shape, kind) in wanted.items()
            }
            assert examples.audit(data, source[index]) == ""


def test_evaluation_frames_and_clock(drawn):
    data = settings(drawn)
    sample = dataset.source(data, 2, "val")[1]
    found = examples.prepare(data, 2, sample, np.random.default_rng(0), PLAIN, "val")
    assert (sample.start, sample.end) == (16, 48) and sample.fps == 12
    np.testing.assert_allclose(found["clock"], [32 / 12, 2 / 12, 8.0], rtol=1e-6)
    with Video(sample.path) as video:
        size = (32, 43)  # short side 32 px of 36 x 48
        wanted = video.read(range(32, 96, 2), size)[:, :, 5:37]
    np.testing.assert_array_equal(found["frames"], wanted)
    assert found["valid"].all() and found["video"] == 3


def test_scale_reads_more_frames_of_the_same_time(drawn):
    data = settings(drawn, scale=2, window=16, stride=4)
    sample = dataset.source(data, 2, "val")[0]
    found = examples.prepare(data, 2, sample, np.random.default_rng(0), PLAIN, "val")
    assert found["frames"].shape == (32, 32, 32, 3) and found["valid"].shape == (16,)
    every = settings(drawn, window=32, stride=2)
    first = dataset.source(every, 2, "val")[0]
    same = examples.prepare(every, 2, first, np.random.default_rng(0), PLAIN, "val")
    np.testing.assert_array_equal(found["frames"], same["frames"])


def test_a_short_video_is_padded_with_its_last_frame(drawn):
    data = settings(drawn, window=64)
    sample = dataset.source(data, 2, "val")[0]
    found = examples.prepare(data, 2, sample, np.random.default_rng(0), PLAIN, "val")
    assert found["valid"].sum() == 48
    assert (found["frames"][48:] == found["frames"][47]).all()
    assert (found["frames"][47] != found["frames"][46]).any()


def test_training_segments_stand_where_the_annotation_says(drawn):
    data = settings(drawn)
    source = dataset.source(data, 2, "train")
    for index in range(12):
        sample = source[index % 3]
        found = examples.prepare(data, 2, sample, np.random.default_rng(index), PLAIN, "train")
        real = found["labels"] >= 0
        assert 1 <= real.sum() <= 8 and (found["segments"][~real] == 0).all()
        first, step, _ = found["clock"]
        times = first + found["segments"][real] * step
        for (start, end), label in zip(times, found["labels"][real], strict=True):
            own = sample.video.segments[sample.video.labels == label]
            gap = np.abs(own - [start, end]).min(0)
            # Cut by the crop at most a quarter; whole frames: within one of 12 a second.
            assert gap.min() <= 1 / 12 + 1e-4
        agnostic = examples.prepare(data, 1, sample, np.random.default_rng(index), PLAIN, "train")
        np.testing.assert_array_equal(agnostic["labels"] >= 0, real)
        assert set(agnostic["labels"].tolist()) <= {0, -1}


def test_all_frames_share_one_draw(tmp_path):
    still = np.random.default_rng(0).integers(0, 255, (36, 48, 3), np.uint8)
    from jaxact.data import video

    path = tmp_path / "still.mp4"
    video.write(path, [still] * 80, 10, crf=10, gop=80)
    data = Data(resize=36, operations=2, flip=1.0)
    looks = set()
    for seed in range(5):
        look = frames.draw(np.random.default_rng(seed), data, "full")
        found = frames.read(str(path), lambda video: np.arange(video.frames), 24, look)
        spread = np.abs(found.astype(int) - found[:1]).mean()
        assert spread < 4, "frames of a still video went different ways"  # the codec's own noise
        looks.add(found[0].tobytes())
    assert len(looks) == 5
    plain = frames.draw(np.random.default_rng(0), data, "none")
    centre = frames.read(str(path), lambda video: np.arange(2), 24, plain)
    test = frames.read(str(path), lambda video: np.arange(2), 24, None)
    np.testing.assert_array_equal(centre, test)
    light = frames.draw(np.random.default_rng(0), data, "light")
    mirrored = frames.read(str(path), lambda video: np.arange(2), 24, light)
    np.testing.assert_array_equal(mirrored, test[:, :, ::-1])


def test_whole_videos_resized(drawn):
    data = settings(drawn, mode="resize", window=16, scale=2, smallest=0.3)
    source = dataset.source(data, 2, "val")
    assert len(source) == 2
    found = examples.prepare(data, 2, source[0], np.random.default_rng(0), PLAIN, "val")
    assert found["frames"].shape[0] == 32 and found["valid"].all()
    np.testing.assert_allclose(found["clock"], [0, 0.5, 8])
    train = dataset.source(data, 2, "train")[0]
    _, labels = examples.in_steps(data, train)
    assert len(labels) == (np.diff(train.video.segments) >= 0.3 * 8).sum()
    every, _ = examples.in_steps(dataclasses.replace(data, smallest=0.0), train)
    np.testing.assert_allclose(every, train.video.segments * 2)
    late = dataclasses.replace(
        train.video, segments=np.array([[6.0, 9.5], [8.5, 9.0]]), labels=np.array([0, 1])
    )
    cut, _ = examples.in_steps(data, dataclasses.replace(train, video=late))
    np.testing.assert_allclose(cut, [[12, 16]])  # as the reference: cut to the video
    both, _ = examples.in_steps(
        dataclasses.replace(data, smallest=0.0), dataclasses.replace(train, video=late)
    )
    np.testing.assert_allclose(both, [[12, 16], [16, 16]])


def test_whole_videos_may_have_another_frame_rate_than_annotated(drawn, tmp_path):
    """ActivityNet is annotated at the original rate and read from files of 15 frames/s."""
    database = json.loads((drawn / "annotations.json").read_text())["database"]
    database["test0000"]["frame"] = 240  # still 8 s
    database["test0001"] |= {"duration": 30.0, "frame": 900}
    (tmp_path / "notes.json").write_text(json.dumps({"database": database}))
    fields = dict(annotations=str(tmp_path / "notes.json"), mode="resize", window=16, scale=2)
    data = settings(drawn, **fields)
    source = dataset.source(data, 2, "val")
    found = examples.prepare(data, 2, source[0], np.random.default_rng(0), PLAIN, "val")
    usual = settings(drawn, **{**fields, "annotations": str(drawn / "annotations.json")})
    wanted = examples.prepare(
        usual, 2, dataset.source(usual, 2, "val")[0], np.random.default_rng(0), PLAIN, "val"
    )
    np.testing.assert_array_equal(found["frames"], wanted["frames"])
    assert examples.audit(data, source[0]) == ""
    with pytest.raises(UserError, match=r"test0001\.mp4: lasts 8 s, but the annotation says 30 s"):
        examples.prepare(data, 2, source[1], np.random.default_rng(0), PLAIN, "val")


def test_more_frames_than_annotated_at_another_rate_are_refused(drawn, tmp_path):
    """A file of 12 frames/s annotated at 6: its second half would never be read."""
    database = json.loads((drawn / "annotations.json").read_text())["database"]
    database["test0000"]["frame"] = 48
    database["test0001"] |= {"frame": 60, "duration": 5.0, "annotations": []}
    (tmp_path / "notes.json").write_text(json.dumps({"database": database}))
    data = settings(drawn, annotations=str(tmp_path / "notes.json"), stride=1)
    half, longer = dataset.source(data, 2, "val")[0], dataset.source(data, 2, "val")[-1]
    with pytest.raises(UserError, match=r"96 frames, 12 a second, but .* 48, 6 a second"):
        examples.prepare(data, 2, half, np.random.default_rng(0), PLAIN, "val")
    # Of the same rate and only longer than annotated: what is annotated is read.
    assert longer.number == 4 and examples.audit(data, longer) == ""


def test_a_file_far_shorter_than_its_annotated_duration_is_refused(drawn, tmp_path):
    """Where the annotation counts no frames: a file of broken stamps would be all in one step."""
    database = json.loads((drawn / "annotations.json").read_text())["database"]
    for name, lasts in (("test0000", 30.0), ("test0001", 9.0)):
        database[name] = {**database[name], "duration": lasts}
        del database[name]["frame"]
    (tmp_path / "notes.json").write_text(json.dumps({"database": database}))
    data = settings(drawn, annotations=str(tmp_path / "notes.json"))
    by_name = {sample.video.id: sample for sample in dataset.source(data, 2, "val")}
    assert "lasts 8 s, but the annotation says 30 s" in examples.audit(data, by_name["test0000"])
    assert examples.audit(data, by_name["test0001"]) == ""


def test_frames_of_a_variable_rate_are_taken_by_their_times(tmp_path):
    """4 s at 20 frames/s, then 4 s at 5: steps are evenly spaced in time all the same."""
    from jaxact.data import video

    times = np.concatenate([np.arange(80) / 20, 4 + np.arange(20) / 5])
    levels = np.rint(times * 25).astype(np.uint8) + 20
    path = tmp_path / "phone.mp4"
    pictures = [np.full((32, 32, 3), level, np.uint8) for level in levels]
    video.write(path, pictures, 20, crf=1, gop=10, times=times)
    data = Data(videos=str(tmp_path), stride=2, window=32, test_size=32)
    parts = dataset.examples(data, str(path))
    seen = 0
    for sample in parts.samples:
        found = examples.prepare(data, 2, sample, np.random.default_rng(0), PLAIN, "predict")
        at = found["clock"][0] + np.arange(32) * found["clock"][1]
        shown = (found["frames"].mean((1, 2, 3)) - 20) / 25
        near = found["valid"] & (at <= times[-1])
        assert np.abs(shown - at)[near].max() < 0.15  # half of a slow frame, and rounding
        seen = max(seen, shown.max())
    assert seen > 7.6 and abs(parts[0].duration - 8) < 0.2
    with Video(path) as opened:
        assert (frames.even(opened) != np.arange(100)).any()
    # Stamps that the annotation contradicts (a jump of 1000 s) are not gone by: frames are counted.
    jump = np.where(np.arange(100) < 5, 0, 1000) + np.arange(100) / 10
    video.write(tmp_path / "jump.mp4", pictures, 10, crf=1, gop=10, times=jump)
    (tmp_path / "notes.csv").write_text(
        "video,start,end,label,duration,frames\njump,1,2,x,10,100\n", encoding="utf-8"
    )
    data = dataclasses.replace(data, annotations=str(tmp_path / "notes.csv"), val_split="")
    counted = dataset.source(data, 1, "val")[0]
    found = examples.prepare(data, 1, counted, np.random.default_rng(0), PLAIN, "val")
    assert np.abs(found["frames"].mean((1, 2, 3)) - levels[0:64:2]).max() < 4
    steady = tmp_path / "steady.mp4"
    video.write(steady, pictures[:50], 29.97, gop=10)
    with Video(steady) as opened:
        np.testing.assert_array_equal(frames.even(opened), np.arange(50))


def test_truth_of_the_subset_that_was_predicted(drawn, tmp_path):
    data = settings(drawn)
    video, table, label = dataset.truth(data, np.array([4, 3]))
    found = dataset.annotation(data)
    assert set(video.tolist()) == {3, 4} and len(table) == len(label) == len(video)
    np.testing.assert_array_equal(table[video == 4], found.videos[4].segments)
    (tmp_path / "blocked.json").write_text(json.dumps([found.videos[3].id]))
    blocked = settings(drawn, blocked=str(tmp_path / "blocked.json"))
    assert set(dataset.truth(blocked, np.array([4]))[0].tolist()) == {4}
    assert {sample.number for sample in dataset.source(blocked, 2, "val").samples} == {4}
    (tmp_path / "blocked.json").write_text(json.dumps([f"v_{found.videos[3].id}"]))
    with pytest.raises(UserError, match=r"blocked\.json: none of its 1 ids is in .*'v_test0000'"):
        dataset.source(blocked, 2, "val")


def test_truth_of_all_subsets_together(drawn):
    """val_split="" evaluates every video of the file; so must the ground truth be of every one."""
    data = settings(drawn, val_split="")
    numbers = np.array([sample.number for sample in dataset.source(data, 2, "val").samples])
    assert set(dataset.truth(data, numbers)[0].tolist()) == {0, 1, 2, 3, 4}


def test_names_of_files(drawn, tmp_path):
    """ActivityNet's videos are v_<id> with whatever suffix the download had."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("test0000", "test0001"):
        suffix = ".mp4" if name == "test0000" else ".mkv"
        (videos / f"v_{name}{suffix}").write_bytes((drawn / "videos" / f"{name}.mp4").read_bytes())
    data = settings(drawn, videos=str(videos), prefix="v_", video_suffix="")
    source = dataset.source(data, 2, "val")
    assert {sample.video.id for sample in source.samples} == {"test0000", "test0001"}
    assert {sample.path.rsplit("/", 1)[1] for sample in source.samples} == {
        "v_test0000.mp4",
        "v_test0001.mkv",
    }
    assert [examples.audit(data, sample) for sample in source.samples] == [""] * len(source)
    assert "no such file" in examples.audit(data, dataset.source(data, 2, "train")[0])
    (tmp_path / "own.csv").write_text("video,start,end,label\nv_test0001.mkv,1,2,across\n")
    data = settings(drawn, videos=str(videos), video_suffix="", val_split="")
    data.annotations = str(tmp_path / "own.csv")  # whose ids are file names
    assert dataset.source(data, 1, "val")[0].path.endswith("/v_test0001.mkv")


def test_labels_do_not_matter_in_prediction(drawn, tmp_path):
    (tmp_path / "names.txt").write_text("run\njump\n")
    data = settings(drawn, class_names=str(tmp_path / "names.txt"))
    assert len(dataset.examples(data, str(drawn / "annotations.json"))) == 15


def test_examples_of_a_file_a_folder_and_a_list(drawn):
    data = settings(drawn)
    one = drawn / "videos" / "test0000.mp4"
    assert dataset.examples(data, str(one)).ids == [f"{one}#{k}" for k in range(3)]
    assert len(dataset.examples(data, str(drawn / "videos"))) == 15
    listed = dataset.examples(data, str(drawn / "annotations.json"))
    assert len(listed) == 15 and listed.ids[0] == "train0000#0"
    found = examples.prepare(data, 2, listed[0], np.random.default_rng(0), PLAIN, "predict")
    assert found["frames"].shape == (32, 32, 32, 3)
    for path, message in ((drawn / "absent", "does not exist"), (drawn / "manifest.json", "needs")):
        with pytest.raises(UserError, match=message):
            dataset.examples(data, str(path))


# -------------------------------------------------------------------------------------- features


@pytest.fixture
def extracted(tmp_path):
    """Two videos of 200 and 90 steps at 10 steps/s, as .npy and .npz, 6 channels."""
    database, rng = {}, np.random.default_rng(0)
    for name, steps, subset in (("a", 200, "training"), ("b", 90, "validation")):
        rows = rng.normal(size=(steps, 6)).astype(np.float32)
        rows[:, 0] = np.arange(steps)
        if name == "a":
            np.save(tmp_path / "a.npy", rows)
        else:
            np.savez(tmp_path / "b.npz", feats=rows, other=np.zeros(3))
        row = {"label": "x", "segment": [2.0, 4.0]}
        facts = {"subset": subset, "duration": steps / 10, "frame": steps * 2}
        database[name] = {**facts, "annotations": [row]}
    (tmp_path / "notes.json").write_text(json.dumps({"database": database}))
    return tmp_path


def featured(folder, **fields) -> Data:
    given = {
        "annotations": str(folder / "notes.json"),
        "features": str(folder),
        **dict(channels=6, window=64, stride=2, most=4),
        **fields,
    }
    return checked(Data(**given))


def test_windows_of_features(extracted):
    data = featured(extracted)
    source = dataset.source(data, 1, "val")
    assert [(s.start, s.end) for s in source.samples] == [(0, 64), (26, 90)]
    found = examples.prepare(data, 1, source[1], np.random.default_rng(0), PLAIN, "val")
    assert found["features"][:, 0].tolist() == list(range(26, 90))
    np.testing.assert_allclose(found["clock"], [2.6, 0.1, 9.0], rtol=1e-6)
    sample = dataset.source(data, 1, "train")[0]
    crop = examples.prepare(data, 1, sample, np.random.default_rng(0), PLAIN, "train")
    first = crop["features"][0, 0]
    assert crop["segments"][0].tolist() == [max(20 - first, 0), min(40 - first, 64)]
    short = featured(extracted, window=128)
    padded = examples.prepare(
        short, 1, dataset.source(short, 1, "val")[0], np.random.default_rng(0), PLAIN, "val"
    )
    assert padded["valid"].sum() == 90 and (padded["features"][90:] == 0).all()


def test_whole_features_resized(extracted):
    data = featured(extracted, mode="resize", window=45)
    sample = dataset.source(data, 1, "val")[0]
    found = examples.prepare(data, 1, sample, np.random.default_rng(0), PLAIN, "val")
    np.testing.assert_allclose(found["features"][:, 0], np.arange(45) * 2 + 0.5)
    np.testing.assert_allclose(found["clock"], [0, 0.2, 9.0], rtol=1e-6)


def test_features_that_contradict_the_annotation(extracted):
    np.save(extracted / "a.npy", np.zeros((150, 6), np.float32))
    with pytest.raises(UserError, match=r"a.npy: 150 features, .* 400 frames make 200 steps"):
        dataset.source(featured(extracted), 1, "train")
    (extracted / "a.npy").unlink()
    with pytest.raises(UserError, match=r"has no features of 'a' \(a\.npy or a\.npz\)"):
        dataset.source(featured(extracted), 1, "train")


def test_all_missing_features_are_counted_at_once(extracted):
    (extracted / "a.npy").unlink()
    (extracted / "b.npz").unlink()
    data = featured(extracted, val_split="")
    with pytest.raises(UserError, match=r"features of 'a' .* and of 1 more; config\.data\.blocked"):
        dataset.source(data, 1, "val")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((200, 5), np.float32), r"shape \(200, 5\), needed: \[steps, 6\]"),
        (np.full((200, 6), np.nan, np.float32), "1200 features are NaN"),
        (np.array([{}] * 200), "cannot be read as features"),
    ],
)
def test_broken_features(extracted, array, message):
    data = featured(extracted)
    sample = dataset.source(data, 1, "train")[0]
    np.save(extracted / "a.npy", array)
    with pytest.raises(UserError, match=message):
        examples.prepare(data, 1, sample, np.random.default_rng(0), PLAIN, "train")
    assert "a.npy" in examples.audit(data, sample)


def test_features_that_are_no_table(extracted):
    """A dictionary saved with np.save is an array without axes."""
    np.save(extracted / "a.npy", np.array({"feats": 1}))
    with pytest.raises(UserError, match=r"a\.npy: features of shape \(\), needed: \[steps, 6\]"):
        dataset.source(featured(extracted), 1, "train")


def test_archives_of_features(tmp_path):
    np.savez(tmp_path / "two.npz", x=np.zeros(3), y=np.zeros(3))
    with pytest.raises(UserError, match="holds x, y; needed: one array or 'feats'"):
        features.shape(str(tmp_path / "two.npz"))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 no archive")
    for call in (features.shape, lambda path: features.read(path, 3)):
        with pytest.raises(UserError, match="cannot be read"):
            call(str(tmp_path / "cut.npz"))


# ---------------------------------------------------------------------------------------- errors


def test_a_video_shorter_than_one_clip(drawn):
    with pytest.raises(UserError, match="96 frames, of which 12 are read; needed: 16"):
        dataset.source(settings(drawn, stride=8), 2, "val")


def test_an_annotation_longer_than_its_video(drawn, tmp_path):
    database = json.loads((drawn / "annotations.json").read_text())["database"]
    database["test0000"] |= {"frame": 200, "duration": 200 / 12}
    (tmp_path / "long.json").write_text(json.dumps({"database": database}))
    data = settings(drawn, annotations=str(tmp_path / "long.json"))
    sample = dataset.source(data, 2, "val")[0]
    with pytest.raises(UserError, match="96 frames, but the annotation has 200"):
        examples.prepare(data, 2, sample, np.random.default_rng(0), PLAIN, "val")
    assert "annotation has 200" in examples.audit(data, sample)


def test_more_segments_than_places(drawn):
    data = settings(drawn, most=1, window=48)
    sample = dataset.source(data, 2, "train")[0]
    with pytest.raises(UserError, match=r"segments in one window, config\.data\.most=1"):
        for seed in range(20):
            examples.prepare(data, 2, sample, np.random.default_rng(seed), PLAIN, "train")


def test_classes_of_model_and_annotation(drawn, tmp_path):
    assert dataset.class_names(settings(drawn), 2) == ("across", "down")
    assert dataset.class_names(settings(drawn), 1) == ("across", "down")  # class-agnostic
    with pytest.raises(UserError, match=r"2 classes, config\.model\.classes=5"):
        dataset.source(settings(drawn), 5, "train")
    (tmp_path / "names.txt").write_text("down\nacross\n")
    named = settings(drawn, class_names=str(tmp_path / "names.txt"))
    assert dataset.class_names(named, 2) == ("down", "across")
    (tmp_path / "names.txt").write_bytes("\ufeffdown\nacross\n".encode())  # of a Windows editor
    assert dataset.class_names(named, 2) == ("down", "across")
    assert len(dataset.source(named, 2, "val")) == 6
    (tmp_path / "names.txt").write_bytes("Läufer\nb".encode("latin-1"))
    with pytest.raises(UserError, match=r"names\.txt: cannot be read"):
        dataset.class_names(named, 2)
    (tmp_path / "names.txt").write_text("down\nacross\ndown\n")
    with pytest.raises(UserError, match="names 'down' twice"):
        dataset.source(named, 3, "train")
    (tmp_path / "names.txt").write_text("down\nup\n")
    with pytest.raises(UserError, match="label 'across' is none of the 2 classes"):
        dataset.source(named, 2, "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "crop"}, r"config\.data\.mode='crop'"),
        ({"scale": 3}, r"config\.data\.scale=3"),
        ({"window": 24}, r"config\.data\.window=24"),
        ({"overlap": 1.0}, r"config\.data\.overlap=1\.0"),
        ({"ground_truth": "best"}, r"config\.data\.ground_truth='best'"),
        ({"channels": 8}, r"config\.data\.channels=8"),
        ({"jitter": (0.1,)}, r"config\.data\.jitter=\(0\.1,\)"),
        ({"least": 0.0}, r"config\.data\.least=0\.0"),
        ({"most": 0}, r"config\.data\.most=0"),
        ({"std": (58.0, 0.0, 57.0)}, r"config\.data\.std=\(58\.0, 0\.0, 57\.0\)"),
        ({"aspect": (0.0, 1.0)}, r"config\.data\.aspect=\(0\.0, 1\.0\)"),
        ({"aspect": (2.0, 1.0)}, r"config\.data\.aspect=\(2\.0, 1\.0\)"),
        ({"area": (1.0, 0.5)}, r"config\.data\.area=\(1\.0, 0\.5\)"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(UserError, match=message):
        checked(Data(**fields))


# -------------------------------------------------------------------------------------- composed


def test_drawn_videos_are_the_same_twice_and_kept(tmp_path):
    first = sample_data.draw(tmp_path / "a", train=1, test=1, frames=48)
    second = sample_data.draw(tmp_path / "b", train=1, test=1, frames=48)
    for name in ("annotations.json", "videos/train0000.mp4", "videos/test0000.mp4"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    stamp = (tmp_path / "a" / "videos" / "train0000.mp4").stat().st_mtime_ns
    sample_data.draw(tmp_path / "a", train=1, test=1, frames=48)
    assert (tmp_path / "a" / "videos" / "train0000.mp4").stat().st_mtime_ns == stamp
    for video in annotations.read(first).videos + annotations.read(second).videos:
        assert len(video.labels) and video.frames == 48
        assert (np.diff(video.segments.ravel()) >= 0).all()


def test_composed_videos_change_where_they_say(tmp_path):
    from jaxact.data import video

    clips = []
    for index, (label, split) in enumerate(
        (label, split) for split in ("train", "test") for label in ("run", "rest", "rest")
    ):
        level = 200 if label == "run" else 40
        path = tmp_path / f"clip{index}.mp4"
        frames = [np.full((32, 40, 3), level, np.uint8)] * (8 + index)
        video.write(path, frames, 8, gop=8)
        clips.append(sample_data.Clip(str(path), label, split))
    out = sample_data.write(
        tmp_path / "set", clips, "rest", train=2, test=1, actions=2, fps=10.0, size=(32, 32)
    )
    annotation = annotations.read(out)
    assert annotation.names == ("run",) and annotation.subsets == ("training", "validation")
    for row in annotation.videos:
        with Video(tmp_path / "set" / "videos" / f"{row.id}.mp4") as opened:
            assert opened.frames == row.frames and opened.size == (32, 32)
            bright = opened.read(range(opened.frames)).mean((1, 2, 3)) > 120
        wanted = np.zeros(row.frames, bool)
        for start, end in row.segments:
            wanted[round(start * 10) : round(end * 10)] = True
        np.testing.assert_array_equal(bright, wanted)
        assert len(row.labels) == 2 and row.duration == pytest.approx(row.frames / 10)
    with pytest.raises(UserError, match="split 'train' needs clips of 'walk'"):
        sample_data.write(tmp_path / "none", clips, "walk", train=1, test=0)


def test_pieces_of_a_table(tmp_path, real_data):
    folder = real_data / "fight_surv"
    clips = sample_data.clips(folder / "labels.csv", folder / "videos")
    assert len(clips) == 300 and {clip.label for clip in clips} == {"fight", "noFight"}
    assert sum(clip.split == "test" for clip in clips) == 80
    (tmp_path / "bad.csv").write_text("file,label,split\na.mp4,run,dev\n")
    with pytest.raises(UserError, match="line 2: split 'dev'"):
        sample_data.clips(tmp_path / "bad.csv", tmp_path)
