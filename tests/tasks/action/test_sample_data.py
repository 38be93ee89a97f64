"""The generated clips: the same every time, fair, and as ambiguous as promised, not more."""

import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxact.config import UserError
from jaxact.data import stick_figure
from jaxact.tasks.action import sample_data
from jaxact.tasks.action.sample_data import CLAP, CLASSES, LOWER, RAISE, STRETCH, record

pytest.importorskip("av")
from jaxact.data.video import Video

TINY = {"train": 16, "test": 8, "frames": 8, "size": (48, 64)}
SCENES = range(24)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return sample_data.write(tmp_path_factory.mktemp("set"), **TINY)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def at(recording, points):
    """Colours f64[t, 3] of the pixels under `points` f64[t, 2] (x, y) px."""
    columns, rows = np.floor(points).astype(int).T
    return recording.frames[range(len(rows)), rows, columns].astype(float)


# -- what is ambiguous, and what is not -------------------------------------------------------


@pytest.mark.parametrize("movement", [RAISE, LOWER])
def test_flag_twins_have_the_same_joints_and_other_flags(movement):
    for scene in SCENES:
        red, blue = record(2 * movement, scene), record(2 * movement + 1, scene)
        assert red.keypoint.tobytes() == blue.keypoint.tobytes()
        assert red.score.tobytes() == blue.score.tobytes()
        changed = (red.frames != blue.frames).any(-1)
        assert 0 < changed.mean() < 0.03  # nothing but the cloth
        # What has changed is redder in the one and bluer in the other.
        difference = red.frames.astype(int)[changed] - blue.frames.astype(int)[changed]
        assert difference[:, 0].mean() > 40 and difference[:, 2].mean() < -40


@pytest.mark.parametrize("movement", [CLAP, STRETCH])
def test_leg_twins_have_the_same_frames_and_other_legs(movement):
    for scene in SCENES:
        stand, march = record(2 * movement, scene), record(2 * movement + 1, scene)
        assert stand.frames.tobytes() == march.frames.tobytes()
        legs = [*stick_figure.KNEES, *stick_figure.ANKLES]
        arms = np.setdiff1d(np.arange(17), legs)
        assert np.array_equal(stand.keypoint[:, :, arms], march.keypoint[:, :, arms])
        assert not np.array_equal(stand.keypoint[0][:, legs], march.keypoint[0][:, legs])
        # Without the counter the camera would see the difference.
        open_stand, open_march = (record(2 * movement + i, scene, counter=False) for i in (0, 1))
        assert open_stand.frames.tobytes() != open_march.frames.tobytes()


def flag_centre(recording):
    """The middle of the cloth f64[t, 2] px, from the true joints."""
    wrist = recording.joints[:, stick_figure.WRISTS[recording.flag]]
    elbow = recording.joints[:, stick_figure.ELBOWS[recording.flag]]
    along = (wrist - elbow) / stick_figure.FOREARM  # one height long
    across = np.stack([along[:, 1], -along[:, 0]], -1) * stick_figure.SIDES[recording.flag]
    return wrist + 0.16 * along + 0.095 * across


def test_colour_can_be_read_off_the_flag():
    for scene in SCENES:
        for label in range(4):
            clip = record(label, scene)
            centre = flag_centre(clip)
            height, width = clip.frames.shape[1:3]
            inside = ((centre > 2) & (centre < (width - 3, height - 3))).all(-1)
            assert inside.sum() >= 8
            centre[~inside] = 2
            colour = at(clip, centre)[inside].mean(0)
            assert (colour[0] > colour[2]) == (label % 2 == 0)


def measured(clip, numbers):
    """Measured joints f64[t, n, 2] of the first person, missed ones interpolated in time."""
    points = clip.keypoint[0][:, list(numbers)].astype(float)
    for n, number in enumerate(numbers):
        there = np.flatnonzero(clip.score[0][:, number] > 0)
        for axis in (0, 1):
            points[:, n, axis] = np.interp(range(len(points)), there, points[there, n, axis])
    return points


def swing(values):
    """How far f64[t, n] moves in time, outliers aside."""
    return np.percentile(values, 90, axis=0) - np.percentile(values, 10, axis=0)


def told_by_hand(clip):
    """(movement, marching) by simple rules on the measured joints."""
    parts = (stick_figure.SHOULDERS, stick_figure.WRISTS, stick_figure.HIPS, stick_figure.KNEES)
    shoulders, wrists, hips, knees = (measured(clip, part)[..., 1] for part in parts)
    trunk = np.median(hips - shoulders)
    heights = (shoulders.mean(1, keepdims=True) - wrists) / trunk
    third = len(heights) // 3
    if swing(heights).max() > 2.5 * swing(heights).min():
        side = int(swing(heights).argmax())
        rise = heights[-third:, side].mean() - heights[:third, side].mean()
        movement = RAISE if rise > 0 else LOWER
    else:
        movement = STRETCH if np.percentile(heights, 90) > 0.3 else CLAP
    return movement, bool(swing((shoulders - knees) / trunk).max() > 0.2)


def test_movement_and_legs_can_be_read_off_the_measured_joints():
    right = [
        told_by_hand(record(label, scene))[0] == label // 2
        and (label < 4 or told_by_hand(record(label, scene))[1] == bool(label % 2))
        for scene in SCENES
        for label in range(len(CLASSES))
    ]
    assert np.mean(right) > 0.99


def test_legs_behind_flags_tell_nothing():
    marching = [told_by_hand(record(label, scene))[1] for scene in SCENES for label in (0, 2)]
    assert 0.25 < np.mean(marching) < 0.75


def test_raising_and_lowering_are_the_same_poses_in_opposite_order():
    """Averaged over time and many scenes, the hand with the flag is at the same heights."""
    heights = {}
    for movement in (RAISE, LOWER):
        clips = [record(2 * movement, scene) for scene in range(120)]
        heights[movement] = [
            (
                c.joints[:, stick_figure.SHOULDERS[c.flag], 1]
                - c.joints[:, stick_figure.WRISTS[c.flag], 1]
            )
            / np.ptp(c.joints[:, :, 1])
            for c in clips
        ]
    flat = {m: np.sort(np.concatenate(values)) for m, values in heights.items()}
    spread = np.abs(flat[RAISE] - flat[LOWER]).mean() / flat[RAISE].std()
    assert spread < 0.2
    rise = {m: np.mean([v[-1] - v[0] for v in values]) for m, values in heights.items()}
    assert rise[RAISE] > 0.2 and rise[LOWER] < -0.2


# -- drawing and sensing ------------------------------------------------------------------------


def test_joints_lie_on_the_drawn_limbs():
    for label, scene in [(0, 0), (3, 1), (4, 2), (7, 3)]:
        clip = record(label, scene, counter=False)
        for numbers, colour in (
            (stick_figure.KNEES, clip.look.trousers),
            (stick_figure.ANKLES, clip.look.trousers),
            (stick_figure.WRISTS, clip.look.skin),
            ((stick_figure.NOSE,), clip.look.skin),
            (stick_figure.SHOULDERS, clip.look.shirt),
        ):
            for number in numbers:
                far = np.abs(at(clip, clip.joints[:, number]) - colour).max(-1)
                # A hand may pass in front of a shoulder or the face, not all the time.
                assert np.median(far) < 12, (label, number, np.median(far))


def test_measured_joints_follow_the_true_ones():
    error, missed = [], []
    for scene in SCENES:
        clip = record(7, scene)
        there = clip.score[0] > 0
        error.append(np.abs(clip.keypoint[0].astype(float) - clip.joints)[there].mean())
        missed.append(1 - there.mean())
        assert (clip.keypoint[clip.score == 0] == 0).all()
        hidden = clip.joints[..., 1] > clip.counter[:, None]
        assert clip.score[0][hidden].max() < clip.score[0][~hidden & there].min()
    assert 0.2 < np.mean(error) < 1.5  # px
    assert 0.01 < np.mean(missed) < 0.1


def test_somebody_walks_past_now_and_then():
    clips = [record(6, scene) for scene in range(60)]
    people = [len(clip.keypoint) for clip in clips]
    assert set(people) == {1, 2} and 3 <= people.count(2) <= 20
    alone, passed = clips[people.index(1)], clips[people.index(2)]
    assert alone.keypoint.shape == (1, 32, 17, 2) and passed.score.shape == (2, 32, 17)
    walk = np.where(passed.score[1, :, 0] > 0, passed.keypoint[1, :, 0, 0].astype(float), np.nan)
    assert np.nanmax(walk) - np.nanmin(walk) > 30


def test_figure_of_known_angles():
    motion = stick_figure.Motion(
        np.array([[np.pi / 2, 0.0]]), np.array([[np.pi, 0.0]]), np.array([[0.0, 1.0]]), np.zeros(1)
    )
    points = stick_figure.joints(motion, 100.0, np.array([[50.0, 120.0]]))[0]
    left, right = (stick_figure.SHOULDERS[i] for i in (0, 1))
    np.testing.assert_allclose(points[stick_figure.ELBOWS[0]] - points[left], (16.5, 0), atol=1e-9)
    np.testing.assert_allclose(
        points[stick_figure.WRISTS[0]] - points[stick_figure.ELBOWS[0]], (0, -15.5), atol=1e-9
    )
    np.testing.assert_allclose(points[stick_figure.WRISTS[1]] - points[right], (0, 32), atol=1e-9)
    assert points[stick_figure.ANKLES[0], 1] == pytest.approx(120)
    assert points[stick_figure.KNEES[1], 1] < points[stick_figure.KNEES[0], 1]
    assert points[left, 0] > points[right, 0]  # it faces the camera

    look = stick_figure.Look((200, 150, 100), (0, 200, 0), (0, 0, 200), (50, 40, 30))
    picture = Image.new("RGB", (100, 130), "white")
    stick_figure.draw(ImageDraw.Draw(picture), points, 100.0, look)
    stick_figure.draw_flag(ImageDraw.Draw(picture), points, 0, 100.0, (250, 0, 0))
    assert picture.getpixel((50, 60)) == look.shirt
    assert picture.getpixel(tuple(points[stick_figure.KNEES[0]].astype(int))) == look.trousers
    assert (250, 0, 0) in [colour for _, colour in picture.getcolors(10000)]


# -- on disk ------------------------------------------------------------------------------------


def test_layout_and_balance(tiny):
    data = pickle.loads(tiny.read_bytes())
    records = {a["frame_dir"]: a for a in data["annotations"]}
    assert {split: len(names) for split, names in data["split"].items()} == {
        "train": 16,
        "test": 8,
    }
    assert not set(data["split"]["train"]) & set(data["split"]["test"])
    for names in data["split"].values():
        labels = [records[name]["label"] for name in names]
        assert np.bincount(labels, minlength=8).tolist() == [len(names) // 8] * 8
    for name, annotation in records.items():
        people = len(annotation["keypoint"])
        assert annotation["keypoint"].shape == (people, 8, 17, 2)
        assert annotation["keypoint_score"].shape == (people, 8, 17)
        assert annotation["keypoint"].dtype == annotation["keypoint_score"].dtype == np.float16
        assert annotation["img_shape"] == annotation["original_shape"] == (48, 64)
        with Video(tiny.parent / "clips" / f"{name}.mp4") as video:
            assert (video.frames, video.size, video.fps) == (8, (48, 64), sample_data.FPS)
            assert annotation["total_frames"] == video.frames


def test_files_hold_what_was_filmed(tiny):
    for number, split in ((0, "train"), (13, "train"), (5, "test")):
        clip = record(number % 8, number // 8, 8, (48, 64), seed=0, split=split)
        with Video(tiny.parent / "clips" / f"{split}{number:04d}.mp4") as video:
            stored = video.read(range(8)).astype(float)
        assert np.sqrt(np.mean((stored - clip.frames) ** 2)) < 8


def test_scenes_differ_between_splits_and_seeds():
    one = record(0, 0, 4, (48, 64))
    for other in ({"split": "test"}, {"seed": 1}):
        assert record(0, 0, 4, (48, 64), **other).keypoint.tobytes() != one.keypoint.tobytes()
    assert record(0, 1, 4, (48, 64)).keypoint.tobytes() != one.keypoint.tobytes()
    assert record(0, 0, 4, (48, 64)).keypoint.tobytes() == one.keypoint.tobytes()


def test_same_arguments_give_the_same_bytes(tiny, tmp_path):
    sample_data.write(tmp_path, **TINY, workers=1)
    assert content(tmp_path) == content(tiny.parent)


def test_a_finished_set_is_used_as_it_is(tiny):
    before = {p: os.stat(p).st_mtime_ns for p in tiny.parent.rglob("*")}
    assert sample_data.write(tiny.parent, **TINY) == tiny
    assert {p: os.stat(p).st_mtime_ns for p in tiny.parent.rglob("*")} == before


@pytest.mark.parametrize("damage", ["manifest.json", "clips/train0003.mp4", "annotations.pkl"])
def test_an_unfinished_set_is_finished(tiny, tmp_path, damage):
    shutil.copytree(tiny.parent, tmp_path / "set")
    (tmp_path / "set" / damage).unlink()
    sample_data.write(tmp_path / "set", **TINY)
    assert content(tmp_path / "set") == content(tiny.parent)


def test_a_broken_manifest_or_other_arguments_start_anew(tiny, tmp_path):
    shutil.copytree(tiny.parent, tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_text("{")
    sample_data.write(tmp_path / "set", **TINY)
    assert content(tmp_path / "set") == content(tiny.parent)
    pickled = sample_data.write(tmp_path / "set", **TINY | {"seed": 5})
    assert pickled.read_bytes() != tiny.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 12}, "train: 12 clips; allowed are multiples of 8"),
        ({"test": -8}, "test: -8"),
        ({"size": (47, 64)}, "even sides"),
        ({"frames": 1}, "2 or more frames"),
    ],
)
def test_unfit_arguments(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        sample_data.write(tmp_path, **TINY | arguments)
    assert not list(tmp_path.iterdir())
