"""Windows over a long video: where they lie, that each is a clip of its own, what is held."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.data import video
from jaxact.tasks.action import eval_views, sliding_windows
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.config import Data, Views

BOTH = ("rgb", "pose")


def data(**fields):
    return Data(rgb_frames=4, pose_frames=8, test_size=24, people=2, **fields)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """600 frames at 20 a second, one walking person: (file, its clip)."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (12, 180, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    video.write(path, (scene[:48, t : t + 64] for t in range(600)), 20, gop=30)
    walk = np.stack([np.linspace(8, 56, 600), np.full(600, 24.0)], -1)
    joints = np.stack([rng.uniform(-8, 8, 17), rng.uniform(-18, 18, 17)], -1)
    points = (walk[:, None] + joints)[None].astype(np.float32)
    score = rng.uniform(0.5, 1, (1, 600, 17)).astype(np.float32)
    return Clip("long", -1, 600, str(path), (48, 64), points, score)


# ------------------------------------------------------------------------------- where they lie


@pytest.mark.parametrize(
    ("seconds", "window", "stride", "wanted"),
    [
        (5, 2, 1, [(0, 2), (1, 3), (2, 4), (3, 5)]),
        (5, 2, 2, [(0, 2), (2, 4), (3, 5)]),
        (5, 2, 4, [(0, 2), (3, 5)]),
        (1, 2, 1, [(0, 1)]),
        (2, 2, 0.5, [(0, 2)]),
        (2.2, 2, 1, [(0, 2), (0.2, 2.2)]),
    ],
)
def test_windows_reach_from_start_to_end(seconds, window, stride, wanted):
    times = np.arange(round(seconds * 10)) / 10
    found = list(sliding_windows.spans(times, window, stride))
    assert [(s.start, s.end) for s in found] == [pytest.approx(w) for w in wanted]
    for span in found:
        inside = np.flatnonzero((times >= span.start - 1e-6) & (times < span.end - 1e-6))
        assert (span.first, span.after) == (inside[0], inside[-1] + 1)


def test_uneven_times_and_standing_pictures():
    """Frames belong to windows by their time; a window without any shows what stands there."""
    times = np.array([0, 0.1, 0.2, 3.0, 3.1, 3.2, 3.9])
    found = [(s.first, s.after) for s in sliding_windows.spans(times, 1.0, 1.0)]
    assert found == [(0, 3), (2, 3), (2, 3), (3, 7)]
    assert list(sliding_windows.spans(np.zeros(1), 2.0, 1.0)) == [
        sliding_windows.Span(0.0, 0.04, 0, 1)
    ]


# --------------------------------------------------------------------------------- what they hold


@pytest.mark.parametrize(
    ("streams", "fields"),
    [
        (BOTH, {}),
        (("rgb",), {"compact": False}),
        (("rgb",), {"sampling": "dense", "stride": 3, "compact": False}),
        (("pose",), {}),
        (BOTH, {"keep_ratio": True, "test": Views(clips=4, crops=3), "clips_at_once": 2}),
        (BOTH, {"aligned": False, "test": Views(clips=3)}),
    ],
)
def test_a_window_is_a_clip_of_its_own(long, tmp_path, streams, fields):
    """Its arrays are those of a file with just its frames."""
    spec = data(**fields)
    with video.Video(long.video) as opened:
        every = opened.read(range(600))
    for index, window in enumerate(sliding_windows.windows(spec, streams, long, 1.0, 7.3)):
        first = round(window.start * 20 + 0.49)
        after = min(first + 20, 600)
        own = tmp_path / f"{index}.mkv"
        video.write(own, every[first:after], 20, codec="ffv1", crf=None, pixels="bgr0")
        alone = dataclasses.replace(
            long,
            video=str(own),
            frames=after - first,
            keypoint=long.keypoint[:, first:after],
            score=long.score[:, first:after],
        )
        for part in range(eval_views.parts(spec, "predict")):
            found, wanted = (
                window.arrays(part),
                eval_views.example(spec, streams, alone, "predict", part),
            )
            assert found.keys() == wanted.keys()
            for name in wanted:
                np.testing.assert_array_equal(found[name], wanted[name])
    assert index == 4


@pytest.mark.parametrize("stride", [0.25, 1.0, 3.0])
def test_a_video_is_opened_once_and_decoded_once(long, monkeypatch, stride):
    opened, read = [], []
    plain_open, plain_read = video.Video._open, video.Video.read
    monkeypatch.setattr(video.Video, "_open", lambda self: opened.append(1) or plain_open(self))

    def reading(self, indices, size=None):
        read.extend(np.asarray(indices).tolist())
        return plain_read(self, indices, size)

    monkeypatch.setattr(video.Video, "read", reading)
    with video.Video(long.video):
        opened.clear()  # the index has been made and is remembered
    count = sum(1 for _ in sliding_windows.windows(data(), BOTH, long, 2.0, stride))
    assert count == 1 + np.ceil(28 / stride)
    assert len(opened) == 1
    assert read == sorted(set(read))  # forwards only


def test_memory_does_not_grow_with_length(long):
    """Peak of what Python and NumPy allocate, over a tenth of the video and over all of it."""

    def peak(frames):
        part = dataclasses.replace(
            long,
            frames=frames,
            keypoint=long.keypoint[:, :frames],
            score=long.score[:, :frames],
        )
        spec = data(compact=False, test=Views(clips=2))
        tracemalloc.start()
        for window in sliding_windows.windows(spec, BOTH, part, 1.0, 0.5):
            window.arrays(0)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(60)  # the index
    assert peak(600) < 1.3 * peak(60)


def test_what_cannot_be_cut_in_windows(long, tmp_path):
    with pytest.raises(UserError, match="names no video"):
        next(sliding_windows.windows(data(), ("pose",), dataclasses.replace(long, video=""), 1, 1))
    bare = dataclasses.replace(long, keypoint=None, score=None)
    with pytest.raises(UserError, match="has no keypoints"):
        next(sliding_windows.windows(data(), BOTH, bare, 1, 1))
    with pytest.raises(UserError, match="600 frames, but the annotation of 'long' has 900"):
        next(sliding_windows.windows(data(), BOTH, dataclasses.replace(long, frames=900), 1, 1))
