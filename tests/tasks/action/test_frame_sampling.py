"""Frame sampling against every stored table of the references, and its properties."""

import re

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.tasks.action import frame_sampling

UNIFORM = re.compile(
    r"(?P<mode>test|train)(?:_p(?P<low>[\d.]+)(?:-(?P<high>[\d.]+))?)?"
    r"/L(?P<L>\d+)_T(?P<T>\d+)_n(?P<n>\d+)(?:_s(?P<s>\d+))?(?:_start(?P<start>\d+))?$"
)
PAIR = re.compile(
    r"(?:multimodal/RGB(?P<rgb>\d+)_Pose(?P<pose>\d+)/)?"
    r"(?P<mode>test|train)_T(?P<T>\d+)_n(?P<n>\d+)(?:_s(?P<s>\d+))?/(?P<stream>RGB|Pose)$"
)
DENSE = re.compile(
    r"SampleFrames/c(?P<L>\d+)_i(?P<stride>\d+)"
    r"/(?P<mode>test|train)_T(?P<T>\d+)_n(?P<n>\d+)(?:_s(?P<s>\d+))?$"
)


def fields(match):
    return {k: int(v) if v is not None and v.isdigit() else v for k, v in match.groupdict().items()}


def clips(mode, frames, length, count, rng, **options):
    if mode == "test":
        return frame_sampling.uniform_views(frames, length, count, **options)
    return np.stack([frame_sampling.uniform(frames, length, rng, **options) for _ in range(count)])


def expected(name, family):
    """The indices that a stored table's name asks for."""
    if match := UNIFORM.match(name):
        f = fields(match)
        low = float(f["low"] or 1)
        interval = (low, float(f["high"] or low))
        rng = np.random.RandomState(f["s"])
        got = clips(f["mode"], f["T"], f["L"], f["n"], rng, interval=interval, legacy=family)
        return got + (f["start"] or 0)
    if match := PAIR.match(name):
        f = fields(match)
        rng = np.random.RandomState(f["s"])
        if family == "epam":
            pose = clips(f["mode"], f["T"], 48, f["n"], rng)
            return pose if f["stream"] == "Pose" else frame_sampling.aligned(pose, 16)
        streams = {
            stream: clips(f["mode"], f["T"], f[stream.lower()], f["n"], rng)
            for stream in ("RGB", "Pose")  # the order of the draws
        }
        return streams[f["stream"]]
    f = fields(DENSE.match(name))
    rng = np.random.RandomState(f["s"]) if f["mode"] == "train" else None
    return frame_sampling.dense(f["T"], f["L"], f["stride"], f["n"], rng)


@pytest.mark.parametrize(("family", "count"), [("mmaction2", 523), ("pyskl", 162), ("epam", 96)])
def test_every_stored_table(golden, family, count):
    tables = np.load(golden / f"data/sampling_{family}.npz")
    wrong = [
        name
        for name in tables.files
        if not np.array_equal(np.ravel(expected(name, family)), tables[name])
    ]
    assert len(tables.files) == count
    assert wrong == []


def test_the_two_references_draw_differently():
    first = frame_sampling.uniform(100, 48, np.random.RandomState(0))
    second = frame_sampling.uniform(100, 48, np.random.RandomState(0), legacy="pyskl")
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng])
@pytest.mark.parametrize("frames", [1, 5, 16, 17, 31, 32, 33, 200])
def test_uniform_takes_one_frame_of_each_part(make, frames):
    length = 16
    for seed in range(20):
        picks = frame_sampling.uniform(frames, length, make(seed))
        assert picks.shape == (length,) and picks.dtype == np.int64
        assert picks.min() >= 0 and picks.max() < frames
        if frames < length:
            assert np.array_equal(np.diff(picks) % frames, np.full(length - 1, 1 % frames))
        else:
            assert (np.diff(picks) > 0).all()
        if frames >= 2 * length:
            bounds = np.arange(length + 1) * frames // length
            assert (picks >= bounds[:-1]).all() and (picks < bounds[1:]).all()


def test_window_keeps_to_its_share():
    for seed in range(50):
        picks = frame_sampling.uniform(200, 16, np.random.default_rng(seed), interval=(0.5, 0.6))
        assert picks.max() - picks.min() < 120
        assert picks.max() < 200
    assert (
        frame_sampling.uniform(1, 4, np.random.default_rng(0), interval=(0.5, 0.5)).tolist()
        == [0] * 4
    )


def test_views_are_fixed_and_leave_the_global_stream_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = frame_sampling.uniform_views(150, 8, 3)
    assert np.array_equal(first, frame_sampling.uniform_views(150, 8, 3))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_aligned_streams():
    pose = np.arange(96).reshape(2, 48)
    assert np.array_equal(frame_sampling.aligned(pose, 16), pose[:, ::3])
    assert frame_sampling.aligned(pose, 48) is not None
    with pytest.raises(UserError, match="48 and 20"):
        frame_sampling.aligned(pose, 20)


@pytest.mark.parametrize("frames", [1, 3, 40, 79, 80, 81, 300])
def test_dense_stays_inside(frames):
    for rng in (None, np.random.default_rng(0), np.random.RandomState(0)):
        picks = frame_sampling.dense(frames, 16, 5, 3, rng)
        assert picks.shape == (3, 16)
        assert picks.min() >= 0 and picks.max() < frames
        assert np.array_equal((picks[:, :1] + np.arange(16) * 5) % frames, picks)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frame_sampling.uniform_views(0, 8), "0 frames"),
        (lambda: frame_sampling.uniform_views(5, 0), "sampling 0 of 5"),
        (lambda: frame_sampling.uniform_views(5, 8, 0), "0 clips"),
        (lambda: frame_sampling.uniform_views(5, 8, legacy="mmaction"), "known: mmaction2, pyskl"),
        (lambda: frame_sampling.uniform_views(5, 8, interval=(0, 1)), "interval"),
        (lambda: frame_sampling.uniform_views(5, 8, interval=(0.9, 0.5)), "interval"),
        (lambda: frame_sampling.dense(5, 8, 0), "stride 0"),
    ],
)
def test_wrong_numbers(call, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call()
