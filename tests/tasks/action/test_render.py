"""Videos with results drawn in: times, sizes, what is where."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFont

from jaxact.config import UserError
from jaxact.data import drawing, video
from jaxact.data.drawing import CLASS_COLOURS, SHADE
from jaxact.tasks.action import render, sliding_windows
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.skeletons import COCO17, JHMDB15, Skeleton

PIECES = [
    {"start": 0.0, "end": 0.6, "name": "wave", "probability": 0.75},
    {"start": 0.6, "end": 2.0, "name": "jump", "probability": 0.25},
]


def grey(path, frames=20, size=(120, 160), fps=10, **options):
    """A grey video and its clip, with one person standing still."""
    pictures = np.full((frames, *size, 3), 128, np.uint8)
    video.write(path, pictures, fps, **options)
    point = np.zeros((1, frames, 17, 2), np.float32)
    point[:, :, 5], point[:, :, 7] = (40, 20), (40, 60)  # left shoulder, left elbow
    point[:, :, 6], point[:, :, 8] = (100, 20), (100, 60)  # right
    score = np.zeros((1, frames, 17), np.float32)
    score[:, :, 5:9] = 0.9
    return Clip("grey", -1, frames, str(path), size, point, score)


def written(path):
    with video.Video(path) as opened:
        return opened.read(range(opened.frames)), opened.times, opened.size


def near(picture, colour, tolerance=40):
    """Where a picture has a colour, as far as compression kept it."""
    return np.abs(picture.astype(int) - colour).max(-1) < tolerance


# ------------------------------------------------------------------------------------ the writer


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_times_are_kept(tmp_path, suffix):
    times = np.cumsum([0, 0.04, 0.2, 0.033, 0.5, 0.04, 1.0, 0.01])
    pictures = (np.full((32, 48, 3), 30 * k, np.uint8) for k in range(len(times)))
    path = tmp_path / f"uneven.{suffix}"
    video.write(path, pictures, 5, times=times)
    frames, found, _ = written(path)
    np.testing.assert_allclose(found, times, atol=1e-3 if suffix == "mkv" else 1e-5)
    assert np.round(frames.mean((1, 2, 3)) / 30).astype(int).tolist() == list(range(8))


def test_a_rendered_video_has_the_times_of_its_source(tmp_path):
    times = np.cumsum(np.full(12, 0.1)) * np.linspace(1, 2, 12)
    path = tmp_path / "source.mp4"
    video.write(path, (np.full((64, 90, 3), 99, np.uint8) for _ in times), 10, times=times)
    clip = Clip("source", -1, 0, str(path))
    render.render(COCO17, clip, tmp_path / "out.mp4", PIECES)
    _, wanted, _ = written(path)
    frames, found, size = written(tmp_path / "out.mp4")
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert size == (64, 90) and len(frames) == 12


@pytest.mark.parametrize(("side", "wanted"), [(0, (120, 160)), (61, (60, 80)), (240, (240, 320))])
def test_sizes_are_even_and_as_asked(tmp_path, side, wanted):
    clip = grey(tmp_path / "a.mp4", frames=3)
    render.render(COCO17, clip, tmp_path / "b.mp4", PIECES, side)
    assert written(tmp_path / "b.mp4")[2] == wanted


def test_odd_sides_lose_a_column(tmp_path):
    clip = grey(tmp_path / "a.mkv", 3, (81, 101), codec="ffv1", crf=None, pixels="bgr0")
    render.render(COCO17, clip, tmp_path / "b.mp4", PIECES)
    assert written(tmp_path / "b.mp4")[2] == (80, 100)


# ------------------------------------------------------------------------------- what is drawn


def test_label_bar_timeline_and_skeleton_are_where_they_belong(tmp_path):
    clip = grey(tmp_path / "a.mp4")
    render.render(COCO17, clip, tmp_path / "b.mp4", PIECES)
    frames, times, _ = written(tmp_path / "b.mp4")
    first, second = frames[0], frames[12]
    assert times[12] > 0.6
    # Limbs of either side, in their colours and nowhere else in the upper half.
    for colour, x in ((render.LEFT, 40), (render.RIGHT, 100)):
        rows, columns = np.nonzero(near(first[:70], colour, 60))
        assert len(rows) > 50 and abs(columns.mean() - x) < 3 and 15 < rows.min() < 25
    # The strip: first class for 0.6 of 2 s, then the other.
    strip = first[-2]
    assert near(strip[4:40], CLASS_COLOURS[0], 60).all()
    assert near(strip[60:150], CLASS_COLOURS[1], 60).all()
    # The bar: as long as the probability.
    for picture, colour, share in ((first, 0, 0.75), (second, 1, 0.25)):
        banner = render.Banner(PIECES, (120, 160))
        row = 120 - banner.strip - banner.gap - banner.bar // 2 - 1
        length = near(picture[row], CLASS_COLOURS[colour], 70).sum()
        assert abs(length - share * 160) <= 4
    # The mark of the moment moves along.
    marks = [near(frame[-2], render.WHITE, 60).nonzero()[0].mean() for frame in (first, second)]
    assert marks[0] < 3 and abs(marks[1] - 1.2 / 2 * 160) < 4


def test_the_piece_of_a_moment():
    pieces = [
        {"start": s, "end": e, "name": "x", "probability": 1.0}
        for s, e in ((0.5, 1.0), (1.0, 2.0), (3.0, 4.0))
    ]
    banner = render.Banner(pieces, (120, 160))
    for time, wanted in ((0, None), (0.5, 0), (1, 1), (1.9, 1), (2.5, None), (3, 2), (9, 2)):
        assert banner.at(time) is (None if wanted is None else pieces[wanted]), time
    assert render.Banner([], (120, 160)).at(1.0) is None


def test_letters_that_no_font_has_are_named_once(monkeypatch, caplog):
    monkeypatch.setattr(drawing, "FONT_FILES", ("no such font.ttf", "DejaVuSans.ttf"))
    for cached in (drawing._file, drawing._warn):
        cached.cache_clear()
    latin = drawing.font(("wave", "sit-up (2)"), 20)
    assert latin.getname() == ImageFont.load_default(20).getname() and not caplog.text
    for size in (20, 30):
        drawing.font(("wave", "挥手"), size)
    assert caplog.text.count("'挥手'") == 1 and "'wave'" not in caplog.text
    assert drawing.missing(latin, "a 挥b") == "挥"
    drawing._file.cache_clear()


def test_a_font_of_the_system_stands_in(monkeypatch, caplog):
    """Whichever letter only the other font has."""
    try:
        known = ImageFont.truetype("DejaVuSans.ttf", 20)
    except OSError:
        pytest.skip("there is no DejaVu Sans on this system")
    own = ImageFont.load_default(20)
    letter = drawing.missing(own, "☂♞✈Ωλ")[0]
    assert not drawing.missing(known, letter)
    drawing._file.cache_clear()
    banner = render.Banner([{"start": 0, "end": 1, "name": letter, "probability": 1}], (120, 160))
    assert not drawing.missing(banner.font, letter) and not caplog.text


def test_uncertain_and_undetected_joints_are_left_out():
    point = np.full((1, 17, 2), 40.0)
    point[0, 7] = 20, 20
    for score, at in ((0.2, (20, 20)), (0.9, (0, 0))):
        image = Image.new("RGB", (80, 80))
        shares = np.zeros((1, 17))
        shares[0, 7] = score
        moved = point.copy()
        moved[0, 7] = at
        render.draw_people(image, moved, shares, COCO17)
        assert not np.asarray(image).any()
    shares[0, 7] = 0.3
    render.draw_people(image, point, shares, COCO17)
    assert np.asarray(image)[20, 20].tolist() == list(render.LEFT)


@pytest.mark.parametrize(
    "skeleton",
    [COCO17, JHMDB15, Skeleton("hands", ("l_hand", "r_hand", "head"))],
    ids=lambda s: s.name,
)
def test_any_skeleton_any_number_of_people(skeleton):
    joints = len(skeleton.joints)
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (200, 100))
    for people in (0, 1, 5):
        point = rng.uniform(-50, 250, (people, joints, 2)).astype(np.float32)
        point[:, -1] = np.nan
        render.draw_people(image, point, np.ones((people, joints)), skeleton)
    colours = np.asarray(image).reshape(-1, 3)
    assert {render.LEFT, render.RIGHT} <= {tuple(c) for c in colours.tolist()}


def test_names_are_shortened_to_fit_and_gaps_stay_dark():
    pieces = [
        {"start": 0, "end": 1, "name": "a very long name of a class " * 4, "probability": 1.0},
        {"start": 2, "end": 3, "name": "short", "probability": 0.0},
    ]
    banner = render.Banner(pieces, (90, 160))
    assert [banner.at(t) and banner.at(t)["name"][:5] for t in (0, 0.5, 1.5, 2, 2.9, 3.1)] == [
        *("a ver", "a ver", None, "short", "short", "short")
    ]
    name = next(iter(banner.labels.values()))
    assert name.endswith("...") and banner.font.getlength(name) < 160
    image = Image.new("RGB", (160, 90), (200, 200, 200))
    banner.draw(image, 1.5)
    assert np.asarray(image)[-1, 68].tolist() == list(SHADE)
    empty = render.Banner([], (90, 160))
    empty.draw(image, 0.0)
    assert empty.at(0.0) is None


def test_what_cannot_be_rendered(tmp_path):
    clip = grey(tmp_path / "a.mp4", frames=3)
    with pytest.raises(UserError, match="is the input itself"):
        render.render(COCO17, clip, tmp_path / "a.mp4", PIECES)
    with pytest.raises(UserError, match="names no video"):
        render.render(COCO17, dataclasses.replace(clip, video=""), tmp_path / "b.mp4", PIECES)
    assert written(tmp_path / "a.mp4")[2] == (120, 160)


# ------------------------------------------------------------------------------------ real files


def test_real_videos_keep_their_times(real_data, tmp_path):
    """All codecs, sizes and clocks of the samples; audio is left out."""
    for path in sorted((real_data / "decode_samples").iterdir()):
        if path.suffix not in (".mp4", ".avi"):
            continue
        clip = Clip(path.name, -1, 0, str(path))
        pieces = [{"start": 0.0, "end": float("inf"), "name": "x", "probability": 0.5}]
        render.render(COCO17, clip, tmp_path / f"{path.name}.mp4", pieces, side=48)
        with video.Video(path) as source, video.Video(tmp_path / f"{path.name}.mp4") as made:
            assert made.frames == source.frames and made.size[0] == 48
            np.testing.assert_allclose(made.times, source.times, atol=1.2e-5)
            assert sliding_windows.length(made.times) == pytest.approx(
                sliding_windows.length(source.times), 1e-3
            )
