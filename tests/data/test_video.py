"""Any frame of any kind of file, exactly; one clear line for files that are not what they say."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.data import frame_index
from jaxact.data.video import Video, write
from jaxact.tasks.action.sample_data import record

av = pytest.importorskip("av")

BITS, BLOCK = 8, 16  # a frame's number is written in blocks of this many pixels
SIZE = (64, BITS * BLOCK)
FRAMES = 60


def numbered(count, start=0):
    """Frames u8[t, h, w, 3] that carry their number: bits above, their complement below."""
    rng = np.random.default_rng(7)
    clip = np.empty((count, *SIZE, 3), np.uint8)
    texture = rng.integers(60, 200, (16, SIZE[1] + 4 * count, 3), np.uint8)
    for i in range(count):
        bits = (i + start) >> np.arange(BITS) & 1
        row = np.repeat(bits, BLOCK)[None, :, None]
        clip[i, :24] = 30 + 195 * row
        clip[i, 24:48] = 225 - 195 * row
        clip[i, 48:] = texture[:, 4 * i : 4 * i + SIZE[1]]  # motion, so that B-frames pay
    return clip


def numbers(clip):
    """The number that each frame carries; -1 where it cannot be read."""
    grey = clip[..., 1].astype(int)
    numbers = []
    for frame in grey:
        above = frame[4:20].reshape(16, BITS, BLOCK)[..., 4:12].mean((0, 2))
        below = frame[28:44].reshape(16, BITS, BLOCK)[..., 4:12].mean((0, 2))
        sure = np.abs(above - below).min() > 60
        numbers.append(int(((above > below) << np.arange(BITS)).sum()) if sure else -1)
    return numbers


def encode(path, codec="libx264", stamps=None, base=None, options=None, muxer=None, **settings):
    """Writes numbered frames with PyAV itself, with any stamps (in units of `base` seconds)."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=settings.pop("rate", 30), options=options or {})
        stream.height, stream.width = SIZE
        stream.pix_fmt = settings.pop("pixels", "yuv420p")
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if base is not None:
            stream.codec_context.time_base = base
        for i, picture in enumerate(numbered(FRAMES if stamps is None else len(stamps))):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = i if stamps is None else int(stamps[i])
            if base is not None:
                frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def check(path, truth):
    """Every way of reading gives the frames of `truth`, the numbers in presentation order."""
    count = len(truth)
    truth = np.array(truth)
    rng = np.random.default_rng(1)
    with Video(path) as video:
        assert video.frames == count
        assert video.size == SIZE
        every = video.read(range(count))
        assert numbers(every) == truth.tolist()
        for backwards in range(count - 1, -1, -3):
            assert np.array_equal(video.read([backwards])[0], every[backwards])
        for size in (1, 2, 5, 12):
            indices = rng.integers(0, count, size)
            assert np.array_equal(video.read(indices), every[indices])
        chunks = [video.read(range(i, min(i + 7, count))) for i in range(0, count, 7)]
        assert np.array_equal(np.concatenate(chunks), every)
    with Video(path) as video:  # a first read far into the file
        uniform = np.arange(count - 2, 3, -9)[::-1]
        assert np.array_equal(video.read(uniform), every[uniform])
        assert np.array_equal(video.read([0, count - 1]), every[[0, count - 1]])


X265 = "log-level=error:keyint=12:min-keyint=12:bframes=4:pools=none:frame-threads=1"
KINDS = {
    "h264_b.mp4": ("libx264", {"gop_size": 12, "max_b_frames": 3}, {}),
    "h264_one_key.mp4": ("libx264", {"gop_size": 250}, {}),
    "h264_open_gop.mkv": (
        "libx264",
        {"gop_size": 12},
        {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"},
    ),
    "h264_refresh.mp4": ("libx264", {"gop_size": 12}, {"intra-refresh": "1", "bf": "0"}),
    "h264.mkv": ("libx264", {"gop_size": 9}, {}),
    "h264.avi": ("libx264", {"gop_size": 12, "max_b_frames": 2}, {}),
    "h264.ts": ("libx264", {"gop_size": 12}, {}),
    "h264.flv": ("libx264", {"gop_size": 12}, {}),
    "raw.h264": ("libx264", {"gop_size": 12}, {}),
    "mpeg4_b.avi": ("mpeg4", {"gop_size": 12, "max_b_frames": 2, "bit_rate": 2_000_000}, {}),
    "mpeg4_b.mp4": ("mpeg4", {"gop_size": 12, "max_b_frames": 2, "bit_rate": 2_000_000}, {}),
    "mpeg2.mpg": ("mpeg2video", {"gop_size": 12, "max_b_frames": 2, "bit_rate": 3_000_000}, {}),
    "mjpeg.avi": ("mjpeg", {"pixels": "yuvj420p"}, {}),
    "vp9.webm": ("libvpx-vp9", {"gop_size": 12}, {"cpu-used": "8", "lag-in-frames": "10"}),
    "vp8.webm": (
        "libvpx",
        {"gop_size": 12, "bit_rate": 2_000_000},
        {"auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "realtime"},
    ),
    "hevc_open_gop.mp4": ("libx265", {}, {"preset": "fast", "x265-params": f"{X265}:open-gop=1"}),
    "hevc_open_gop.mkv": ("libx265", {}, {"preset": "fast", "x265-params": f"{X265}:open-gop=1"}),
    "hevc_closed.mp4": ("libx265", {}, {"preset": "fast", "x265-params": f"{X265}:open-gop=0"}),
    "av1.mp4": (
        "libsvtav1",
        {"gop_size": 16},
        {"preset": "10", "crf": "20", "svtav1-params": "lp=1"},
    ),
    "ntsc.mp4": ("libx264", {"gop_size": 12, "rate": Fraction(30000, 1001)}, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_exact(tmp_path, name):
    codec, settings, options = KINDS[name]
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this build of av has no encoder {codec}")
    encode(tmp_path / name, codec, options=options, **settings)
    check(tmp_path / name, range(FRAMES))


UNEVEN = np.cumsum(np.random.default_rng(3).integers(1, 90, FRAMES)).tolist()  # ms


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_stamps(tmp_path, suffix):
    path = tmp_path / f"vfr.{suffix}"
    encode(path, stamps=UNEVEN, base=Fraction(1, 1000), gop_size=10)
    check(path, range(FRAMES))
    with Video(path) as video:
        np.testing.assert_allclose(video.times, (np.array(UNEVEN) - UNEVEN[0]) / 1000, atol=1e-3)


def test_frame_rate_and_times(tmp_path):
    encode(tmp_path / "a.mp4", rate=Fraction(30000, 1001))
    with Video(tmp_path / "a.mp4") as video:
        assert video.fps == pytest.approx(30000 / 1001)
        np.testing.assert_allclose(video.times, np.arange(FRAMES) * 1001 / 30000, atol=1e-9)


def remux(source, target, shift, **muxer):
    """Copies the packets of a file with their stamps moved by `shift` frames of 1/30 s."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=muxer) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        ticks = round(shift / 30 / old.streams.video[0].time_base)
        for packet in old.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = stream
                new.mux(packet)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_stamps_that_do_not_start_at_zero(tmp_path, suffix):
    encode(tmp_path / "a.mp4", gop_size=12)
    remux(tmp_path / "a.mp4", tmp_path / f"late.{suffix}", shift=25)
    with av.open(str(tmp_path / f"late.{suffix}")) as container:
        assert container.streams.video[0].start_time > 0
    check(tmp_path / f"late.{suffix}", range(FRAMES))
    with Video(tmp_path / f"late.{suffix}") as video:
        assert video.times[0] == 0


def test_edit_list_that_starts_inside_a_gop(tmp_path):
    encode(tmp_path / "a.mp4", gop_size=10)
    cut = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    remux(tmp_path / "a.mp4", tmp_path / "cut.mp4", shift=-17, **cut)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        hidden = [p for p in container.demux(video=0) if p.is_discard]
        assert any(p.is_keyframe for p in hidden) and not hidden[-1].is_keyframe
    check(tmp_path / "cut.mp4", range(17, FRAMES))


def test_open_gop_cut_at_its_start(tmp_path):
    """The leading pictures of the first key frame have nothing to refer to: they are not frames."""
    codec, settings, options = KINDS["hevc_open_gop.mp4"]
    encode(tmp_path / "a.mp4", codec, options=options, **settings)
    with av.open(str(tmp_path / "a.mp4")) as old, av.open(str(tmp_path / "b.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [p for p in old.demux(video=0) if p.size]
        start = [i for i, p in enumerate(packets) if p.is_keyframe][2]
        assert any(p.pts < packets[start].pts for p in packets[start:])
        for packet in packets[start:]:
            packet.stream = stream
            new.mux(packet)
    check(tmp_path / "b.mp4", range(24, FRAMES))


VOP, NOT_CODED = b"\x00\x00\x01\xb6", b"\x00\x00\x01\xb6\x50\x4f"


def pack(source, target):
    """Puts each MPEG-4 B-frame into the packet before it, as DivX 5 did to fit AVI's clock."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        data = [bytes(p) for p in old.demux(video=0) if p.size]
        kinds = [chunk[chunk.index(VOP) + 4] >> 6 for chunk in data]  # 0 I, 1 P, 2 B
        for i, chunk in enumerate(data):
            if kinds[i] == 2:
                chunk = NOT_CODED  # a place holder; the B-frame itself came with the packet before
            elif i + 1 < len(data) and kinds[i + 1] == 2:
                chunk += data[i + 1]
            if kinds[i] == 0:
                chunk = chunk.replace(VOP, b"\x00\x00\x01\xb2DivX503b1393p" + VOP, 1)
            packet = av.Packet(chunk)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, i, i, kinds[i] == 0
            packet.time_base = Fraction(1, 30)
            new.mux(packet)
    assert kinds.count(2) > 20 and kinds.count(0) > 4


def test_packed_b_frames(tmp_path):
    encode(tmp_path / "a.avi", "mpeg4", gop_size=12, max_b_frames=1, bit_rate=2_000_000)
    pack(tmp_path / "a.avi", tmp_path / "packed.avi")
    with av.open(str(tmp_path / "packed.avi")) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps)  # the stamps of such a file are of no use
    check(tmp_path / "packed.avi", range(FRAMES))
    with Video(tmp_path / "packed.avi") as video:
        np.testing.assert_allclose(video.times, np.arange(FRAMES) / 30, atol=1e-9)


def test_cut_off_files(tmp_path):
    for name, muxer in (
        ("tail.mp4", {}),
        ("fast.mp4", {"movflags": "+faststart"}),
        ("a.mkv", {}),
        ("a.avi", {}),
        ("pieces.mp4", {"movflags": "+frag_keyframe+empty_moov"}),
    ):
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        encode(tmp_path / name, codec, muxer=muxer, gop_size=12)
        with Video(tmp_path / name) as video:
            assert numbers(video.read([FRAMES - 1])) == [FRAMES - 1]
        whole = (tmp_path / name).read_bytes()
        for share in (0.97, 0.6):
            (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(UserError, match=f"{name}: cut off") as caught:
                Video(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_content_that_cannot_be_decoded(tmp_path):
    encode(tmp_path / "a.mp4", gop_size=12)
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        hurt = next(p for p in packets if p.is_keyframe and p.pos > packets[20].pos)
    whole = bytearray((tmp_path / "a.mp4").read_bytes())
    whole[hurt.pos : hurt.pos + hurt.size] = b"\xff" * hurt.size
    (tmp_path / "a.mp4").write_bytes(whole)
    with Video(tmp_path / "a.mp4") as video:
        assert numbers(video.read([3, 11])) == [3, 11]
        with pytest.raises(UserError, match=r"a\.mp4: .*decoded"):
            video.read(range(FRAMES))
        assert numbers(video.read([5])) == [5]  # the healthy part can still be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.mp4", None, "no such file"),
        ("zero.mp4", b"", "empty"),
        ("text.mp4", b"this is not a video\n" * 50, "cannot be read as a video"),
        ("text.txt", b"this is not a video\n" * 50, "not a video|cannot be read as a video"),
        ("noise.avi", bytes(range(256)) * 40, "cannot be read as a video"),
    ],
)
def test_files_that_are_no_videos(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Video(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_pictures_and_sound_are_no_videos(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "still.png")
    with pytest.raises(UserError, match="not a video"):
        Video(tmp_path / "still.png")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="no video stream"):
        Video(tmp_path / "sound.mp4")
    with pytest.raises(UserError, match="folder"):
        Video(tmp_path)


def test_order_repeats_and_bounds(tmp_path):
    write(tmp_path / "a.mp4", numbered(FRAMES), 30, crf=18)
    with Video(tmp_path / "a.mp4") as video:
        assert numbers(video.read([59, 0, 0, 31, 30, 59])) == [59, 0, 0, 31, 30, 59]
        assert video.read([]).shape == (0, *SIZE, 3)
        for bad in (-1, FRAMES):
            with pytest.raises(UserError, match=rf"a\.mp4: has no frame {bad}; .* 0 to 59"):
                video.read([0, bad])


def test_colours_are_those_of_the_library(tmp_path):
    write(tmp_path / "a.mp4", numbered(FRAMES), 30)
    with av.open(str(tmp_path / "a.mp4")) as container:
        plain = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    with Video(tmp_path / "a.mp4", threads=0) as video:
        assert np.array_equal(video.read(range(FRAMES)), plain)


def test_scaling_while_reading(tmp_path):
    # Content that a bilinear kernel leaves alone: a ramp along each axis.
    ramp = np.add.outer(np.arange(96), np.arange(160))[None, ..., None].repeat(3, -1)
    write(tmp_path / "a.mp4", ramp.astype(np.uint8).repeat(3, 0), 30, crf=5)
    with Video(tmp_path / "a.mp4") as video:
        small = video.read([2, 0], size=(24, 40))
    assert small.shape == (2, 24, 40, 3)
    expected = np.add.outer(4 * np.arange(24) + 1.5, 4 * np.arange(40) + 1.5)
    assert np.abs(small[0, 2:-2, 2:-2, 1] - expected[2:-2, 2:-2]).max() < 4


@pytest.mark.parametrize("angle", [0, 90, -90, 180])
def test_pictures_are_turned_as_the_file_says(tmp_path, angle):
    """A phone held upright stores pictures that lie, and notes a rotation."""
    colours = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]]
    picture = np.array(colours, np.uint8).repeat(32, 0).repeat(48, 1)  # h 64, w 96
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv444p"
        stream.set_display_rotation(angle)
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown = np.rot90(picture, angle // 90)
    with Video(path) as video:
        assert video.size == shown.shape[:2] and video.frames == 12
        turned = video.read([11, 0])
        assert turned.shape == (2, *shown.shape)
        assert np.abs(turned.astype(int) - shown).max() < 16
        small = video.read([3], (shown.shape[0] // 2, shown.shape[1] // 2))[0]
        assert np.abs(small[4::16, 4::16].astype(int) - shown[8::32, 8::32]).max() < 16
    index = frame_index.cached(str(path), lambda: pytest.fail("made again"))
    assert index.turns == angle // 90 % 4


def test_index_is_made_once_per_version_of_a_file(tmp_path, monkeypatch):
    made = []
    real = frame_index.build
    monkeypatch.setattr(frame_index, "build", lambda *a: made.append(1) or real(*a))
    write(tmp_path / "a.mp4", numbered(20), 30)
    for _ in range(3):
        with Video(tmp_path / "a.mp4") as video:
            assert video.frames == 20
    assert len(made) == 1
    write(tmp_path / "a.mp4", numbered(25), 30)
    with Video(tmp_path / "a.mp4") as video:
        assert video.frames == 25
    assert len(made) == 2


def test_index_cache_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_index, "CACHED_FRAMES", 45)
    monkeypatch.setattr(frame_index, "_cache", type(frame_index._cache)())
    for name in "abc":
        write(tmp_path / f"{name}.mp4", numbered(20), 30)
        Video(tmp_path / f"{name}.mp4").close()
    assert [path[-5:] for path, *_ in frame_index._cache] == ["b.mp4", "c.mp4"]


def test_threads_with_a_reader_each(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.mp4", numbered(FRAMES, start=100 if name == "b" else 0), 30)
    wrong = []

    def job(seed):
        rng = np.random.default_rng(seed)
        for _ in range(6):
            name, start = [("a", 0), ("b", 100)][rng.integers(2)]
            indices = rng.integers(0, FRAMES, 5)
            with Video(tmp_path / f"{name}.mp4") as video:
                if numbers(video.read(indices)) != (indices + start).tolist():
                    wrong.append((name, indices))

    workers = [threading.Thread(target=job, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_without_the_library(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", numbered(5), 30)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'jaxact\[video\]'"):
        Video(tmp_path / "a.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_writing_twice_gives_the_same_bytes(tmp_path, suffix):
    for name in "ab":
        write(tmp_path / f"{name}.{suffix}", iter(numbered(30)), Fraction(30000, 1001), gop=8)
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]
    with Video(tmp_path / f"a.{suffix}") as video:
        assert video._index.keys[:3] == [0, 8, 16]
        assert video.fps == pytest.approx(30000 / 1001)


def test_writing_from_two_threads_gives_the_same_bytes(tmp_path):
    """Small and almost still pictures, where x264 can make choices that depend on unset memory."""
    clips = [record(label, 0, frames=8, size=(48, 64)).frames for label in (4, 5, 6, 7)]
    paths = [tmp_path / f"{i}.mp4" for i in range(96)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: write(paths[i], clips[i % 4], 16, crf=18), range(len(paths))))
    assert [len({path.read_bytes() for path in paths[i::4]}) for i in range(4)] == [1, 1, 1, 1]


def test_quality_is_obeyed(tmp_path):
    clip = numbered(20)
    for crf in (10, 40):
        write(tmp_path / f"{crf}.mp4", clip, 30, crf=crf, preset="fast")
    sizes = [(tmp_path / f"{crf}.mp4").stat().st_size for crf in (10, 40)]
    assert sizes[0] > 3 * sizes[1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.mp4", {"codec": "libnope"}, "libnope"),
        ("a.nope", {}, "format"),
        ("a.mp4", {"nonsense": 3}, "no option nonsense"),
        ("a.mp4", {"codec": "mpeg4", "crf": 23}, "no option crf"),
        ("away/a.mp4", {}, "No such file"),
    ],
)
def test_writing_errors(tmp_path, name, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        write(tmp_path / name, numbered(3), 30, **arguments)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frames"),
        ([np.zeros((64, 64, 3), np.uint8), np.zeros((64, 48, 3), np.uint8)], "frame 1 differs"),
        ([np.zeros((63, 64, 3), np.uint8)], "cannot be written"),
    ],
)
def test_writing_unfit_frames(tmp_path, frames, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "a.mp4", frames, 30)
    assert not list(tmp_path.iterdir())


SAMPLES = ["demo", "demo_skeleton", "demo_spatiotemporal_det", "part_0", "test"]


@pytest.mark.parametrize("name", [*(f"{name}.mp4" for name in SAMPLES), "test.avi"])
def test_real_files(real_data, name):
    path = real_data / "decode_samples" / name
    with av.open(str(path)) as container:
        # Checksums, not pictures: 72 frames of 1920x1080 would be 450 MB.
        plain = [hash(f.to_ndarray(format="rgb24").tobytes()) for f in container.decode(video=0)]
    order = np.random.default_rng(0).permutation(len(plain)).tolist()
    with Video(path) as video:
        assert video.frames == len(plain)
        for chunk in [order[i : i + 8] for i in range(0, len(order), 8)]:
            assert [hash(f.tobytes()) for f in video.read(chunk)] == [plain[i] for i in chunk]
        assert [hash(video.read([i]).tobytes()) for i in range(len(plain))] == plain
