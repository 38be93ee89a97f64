"""Shards: every byte by its name, what damage says, what goes on after an interruption."""

import concurrent.futures
import io
import json
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from command import ROOT
from PIL import Image

from jaxact.config import UserError
from jaxact.data import images, media, shards, video
from jaxact.packing import transcode, writer
from jaxact.packing.storage import Folder
from jaxact.packing.writer import Options

SHARDS = 3


def prepare(source, out, wanted=None, patterns=("*",), **fields):
    """What the pipeline does, in this process: (manifest, what was done with each shard)."""
    options = Options(**{"shards": SHARDS, **fields})
    here, there = Folder(source), Folder(out)
    entries = writer.listing(here, patterns, wanted)
    writer.begin(there, entries, options)
    done = [
        writer.write_shard(here, there, number, members, options)
        for number, members in enumerate(writer.assigned(entries, options.shards))
    ]
    return writer.finish(there, entries, options), done


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "set"
    prepare(clips / "clips", out)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name in ("a/one.jpg", "a/two.png", "b/one.jpg", "three four.jpeg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return folder


def files(folder):
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def contents(folder):
    return {name: path.read_bytes() for name, path in files(folder).items()}


def path_of(folder, name):
    return f"{shards.PREFIX}{folder}/{name}"


def refused(match, call, *arguments, **fields):
    with pytest.raises(UserError, match=match) as caught:
        call(*arguments, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------- what is in


def test_every_byte_comes_back_by_name(clips, whole):
    known = contents(clips / "clips")
    opened = shards.opened(str(whole))
    assert opened.names() == sorted(known) and len(opened) == 24
    for name, content in known.items():
        assert shards.read(path_of(whole, name)) == content
    manifest = json.loads((whole / shards.MANIFEST).read_text())
    assert manifest["bytes"] == sum(map(len, known.values())) and manifest["broken"] == []
    assert sum(shard["records"] for shard in manifest["shards"]) == manifest["records"] == 24
    assert all(shard["records"] for shard in manifest["shards"]), "the test wants several shards"


def test_other_readers_find_plain_array_records(clips, whole):
    """A record is the file's bytes, alone in its group and not compressed."""
    known = set(contents(clips / "clips").values())
    for path in sorted(whole.glob("*.array_record")):
        reader = ArrayRecordReader(str(path))
        options = reader.writer_options_string()
        assert "group_size:1," in options and "uncompressed" in options
        known -= set(reader.read_all())
        reader.close()
    assert not known


def test_names_with_folders_and_spaces(pictures, tmp_path):
    prepare(pictures, tmp_path / "set")
    for name, content in contents(pictures).items():
        assert shards.read(path_of(tmp_path / "set", name)) == content
    below = shards.within(path_of(tmp_path / "set", "a"))
    assert [name.rpartition("/")[2] for name in below] == ["one.jpg", "two.png"]
    assert len(shards.within(f"shards:{tmp_path / 'set'}")) == 4


def test_equal_sources_give_equal_bytes(clips, whole, tmp_path):
    source = shutil.copytree(clips / "clips", tmp_path / "other")  # with their times of change
    prepare(source, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(whole)


def test_patterns_and_empty_shards(clips, tmp_path):
    manifest, _ = prepare(
        clips / "clips", tmp_path / "set", patterns=("test000[0-3].mp4",), shards=9
    )
    assert manifest["records"] == 4 and len(manifest["shards"]) == 9
    assert len(list((tmp_path / "set").glob("*.array_record"))) == 9
    assert shards.read(path_of(tmp_path / "set", "test0003.mp4"))
    refused("no file fits --pattern", prepare, clips / "clips", tmp_path / "x", patterns=("*.avi",))


def test_readers_go_to_threads_and_processes(clips, whole):
    known = {path_of(whole, name): data for name, data in contents(clips / "clips").items()}
    order = list(known) * 8
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shards.read, order)) == [known[path] for path in order]
    ended = subprocess.run(
        [sys.executable, "-c", FORKED, *order[:6]], cwd=ROOT, capture_output=True, check=True
    )
    assert ended.stdout == b"".join(known[path] for path in order[:6]) * 2


FORKED = """
import os, sys
from jaxact.data import shards
for path in sys.argv[1:]:
    sys.stdout.buffer.write(shards.read(path))
sys.stdout.flush()
if os.fork() == 0:  # with the shards open
    for path in sys.argv[1:]:
        sys.stdout.buffer.write(shards.read(path))
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


def test_a_set_prepared_anew_is_opened_anew(pictures, tmp_path):
    path, name = tmp_path / "set", "a/one.jpg"
    prepare(pictures, path)
    first = media.stamp(path_of(path, name))
    assert media.stamp(path_of(path, name)) == first
    (pictures / name).write_bytes((pictures / "b/one.jpg").read_bytes())
    prepare(pictures, path)
    assert shards.read(path_of(path, name)) == (pictures / "b/one.jpg").read_bytes()
    assert media.stamp(path_of(path, name)) != first


# -------------------------------------------------------------------------------------- decoders


def test_videos_decode_alike(clips, whole):
    for name, path in list(files(clips / "clips").items())[:4]:
        with video.Video(path) as one, video.Video(path_of(whole, name)) as other:
            assert (one.frames, one.size, one.fps) == (other.frames, other.size, other.fps)
            np.testing.assert_array_equal(one.times, other.times)
            for order in (range(one.frames), [7, 2, 2, 11], [0]):
                np.testing.assert_array_equal(one.read(order), other.read(order))


def test_containers_that_are_counted_decode_alike(clips, tmp_path):
    """AVI: frames are known by their byte offsets, and the decoder starts anew several times."""
    with video.Video(clips / "clips" / "test0000.mp4") as opened:
        frames = opened.read(range(opened.frames))
    source = tmp_path / "source"
    source.mkdir()
    video.write(source / "a.avi", frames, 12, codec="mpeg4", crf=None, gop=4)
    video.write(source / "b.mkv", frames, 12, gop=4)
    prepare(source, tmp_path / "set")
    for name in ("a.avi", "b.mkv"):
        with video.Video(source / name) as a, video.Video(path_of(tmp_path / "set", name)) as b:
            for order in (range(a.frames), [9, 1], [5]):
                np.testing.assert_array_equal(a.read(order), b.read(order))


def test_pictures_decode_alike(pictures, tmp_path):
    prepare(pictures, tmp_path / "set")
    for name, path in files(pictures).items():
        held = path_of(tmp_path / "set", name)
        np.testing.assert_array_equal(images.decode(str(path)), images.decode(held))
        assert media.read(held) == media.read(path) and media.content(path) is None


def test_nothing_is_written_over_a_record(whole, tmp_path):
    held = path_of(whole, "test0000.mp4")
    (tmp_path / "x.mp4").write_bytes(b"x")
    assert not media.same_file(tmp_path / "x.mp4", held)
    assert media.same_file(tmp_path / "x.mp4", tmp_path / "x.mp4")
    assert not media.same_file(tmp_path / "y.mp4", tmp_path / "x.mp4")


# ---------------------------------------------------------------------------------------- absence


def test_absent_names_and_folders(whole, tmp_path):
    refused(
        "none.mp4: not in shards .*which have 24 media", shards.read, path_of(whole, "none.mp4")
    )
    refused("none.mp4: not in shards", video.Video, path_of(whole, "none.mp4"))
    refused("none.png: not in shards", images.decode, path_of(whole, "none.png"))
    refused("has no shards.json", shards.read, path_of(tmp_path / "elsewhere", "a.mp4"))
    refused("nothing there; needed: .png", media.held, f"shards:{whole}", (".png",))
    assert media.held(str(whole), (".mp4",)) is None


def test_what_exists(clips, whole):
    assert media.exists(path_of(whole, "test0000.mp4"))
    assert not media.exists(path_of(whole, "none.mp4"))
    assert not media.exists(path_of(whole, "odd \udcff.mp4"))  # a name that is not UTF-8
    assert media.exists(clips / "clips" / "test0000.mp4") and not media.exists(clips / "clips")


def test_an_unfinished_set_says_so(clips, tmp_path):
    options, there = Options(shards=SHARDS), Folder(tmp_path / "set")
    entries = writer.listing(Folder(clips / "clips"))
    members = writer.assigned(entries, SHARDS)
    writer.begin(there, entries, options)
    writer.write_shard(Folder(clips / "clips"), there, 0, members[0], options)
    name = members[0][0].name
    refused("preparation is not finished", shards.read, path_of(tmp_path / "set", name))
    refused("00001-of-00003.json: missing", writer.finish, there, entries, options)


# ----------------------------------------------------------------------------------------- damage


def spoil(path, at=-1, add=1):
    content = bytearray(path.read_bytes())
    content[at] ^= add
    path.write_bytes(bytes(content))


def shard_with(folder, name):
    """(path of the shard that has a name, its record there)."""
    for path in sorted(folder.glob("media-*.json")):
        names = [record[0] for record in json.loads(path.read_text())["records"]]
        if name in names:
            return path.with_suffix(".array_record"), names.index(name)
    raise AssertionError(name)


def test_a_flipped_byte_names_shard_and_record(clips, copy):
    name = "test0002.mp4"
    path, record = shard_with(copy, name)
    content = (clips / "clips" / name).read_bytes()
    middle = content[len(content) // 2 :][:64]
    at = path.read_bytes().index(middle)
    spoil(path, at)
    said = refused("cannot be read|differs from its checksum", shards.read, path_of(copy, name))
    assert f"{path}: record {record} ({name})" in said and "prepare_shards" in said
    other = "test0003.mp4"
    assert shards.read(path_of(copy, other)) == (clips / "clips" / other).read_bytes()
    # The same command mends it, and leaves the other shards as they are.
    _, done = prepare(clips / "clips", copy)
    assert [next(iter(one)) for one in done].count("written") == 1
    assert shards.read(path_of(copy, name)) == content


def test_a_foreign_record_of_the_same_length_is_noticed(copy):
    """The file is sound in itself, and not what the index says."""
    path, record = shard_with(copy, "test0001.mp4")
    reader = ArrayRecordReader(str(path))
    records = list(reader.read_all())
    reader.close()
    records[record] = bytes(len(records[record]))
    file = ArrayRecordWriter(str(path), writer.WRITER)
    for content in records:
        file.write(content)
    file.close()
    refused("differs from its checksum", shards.read, path_of(copy, "test0001.mp4"))


@pytest.mark.parametrize("change", ["truncated", "longer", "missing"])
def test_shards_of_another_length(copy, change):
    path = sorted(copy.glob("*.array_record"))[1]
    if change == "missing":
        path.unlink()
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:-70_000])
    else:
        path.write_bytes(path.read_bytes() + b"\0")
    said = refused("missing|bytes, shards.json says", shards.read, path_of(copy, "test0000.mp4"))
    assert path.name in said


@pytest.mark.parametrize(
    "file, content, match",
    [
        (shards.MANIFEST, b"{", "cannot be read"),
        (shards.MANIFEST, b"[]", "is no manifest of shards"),
        (shards.MANIFEST, b'{"format": 1, "shards": [{"file": "../x"}]}', "is no manifest"),
        (shards.INDEX, b"", "cannot be read"),
        (shards.INDEX, pickle.dumps([1]), "cannot be read"),
        (shards.INDEX, None, "differs from its checksum"),
    ],
)
def test_damaged_manifest_and_index(copy, file, content, match):
    if content is None:
        spoil(copy / file)
    else:
        (copy / file).write_bytes(content)
    assert file in refused(match, shards.read, path_of(copy, "test0000.mp4"))


def test_a_damaged_list_of_names(copy):
    (copy / "media-00001-of-00003.json").write_text('{"records": [1]}')
    refused("00001-of-00003.json: is no list", shards.within, f"shards:{copy}")
    assert shards.read(path_of(copy, "test0000.mp4")), "names are needed to list, not to read"


def test_an_index_of_another_set(clips, copy, tmp_path):
    prepare(clips / "clips", tmp_path / "few", patterns=("test*",))
    shutil.copy(tmp_path / "few" / shards.INDEX, copy / shards.INDEX)
    refused(r"uint64\[4, 8\] for 24 records", shards.read, path_of(copy, "test0000.mp4"))


# ---------------------------------------------------------------------------------------- restart


def test_a_second_run_keeps_everything(clips, copy):
    before = {name: path.stat().st_mtime_ns for name, path in files(copy).items()}
    _, done = prepare(clips / "clips", copy)
    assert [one["kept"] for one in done] == [1] * SHARDS
    after = {name: path.stat().st_mtime_ns for name, path in files(copy).items()}
    same = [name for name in before if name.startswith("media-")]
    assert {name: before[name] for name in same} == {name: after[name] for name in same}


KILLED = """
import os, pathlib, signal, sys
from jaxact.packing import transcode, writer
from jaxact.packing.storage import Folder
from jaxact.packing.writer import Options
class Killing(Folder):
    reads = 0
    def read(self, name):
        Killing.reads += 1
        if Killing.reads == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name)
here, there, options = Killing(sys.argv[1]), Folder(sys.argv[2]), Options(shards=3)
entries = writer.listing(here)
writer.begin(there, entries, options)
for number, members in enumerate(writer.assigned(entries, 3)):
    writer.write_shard(here, there, number, members, options)
writer.finish(there, entries, options)
"""


def test_a_killed_run_goes_on(clips, whole, tmp_path):
    out = tmp_path / "set"
    first = len(json.loads((whole / "media-00000-of-00003.json").read_text())["records"])
    ended = subprocess.run(  # while it writes its second shard
        [sys.executable, "-c", KILLED, str(clips / "clips"), str(out), str(first + 2)], cwd=ROOT
    )
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in out.glob("*.array_record")] == [
        "media-00000-of-00003.array_record"
    ]
    assert list(out.glob(".part*")), "the killed process had begun a file"
    _, done = prepare(clips / "clips", out)
    assert [next(iter(one)) for one in done] == ["kept", "written", "written"]
    Folder(out).sweep()
    assert contents(out) == contents(whole)


def test_a_changed_a_new_and_a_deleted_file(pictures, tmp_path):
    out = tmp_path / "set"
    prepare(pictures, out, shards=8)
    image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    image.save(pictures / "a/two.png")
    image.save(pictures / "new.png")
    (pictures / "b/one.jpg").unlink()
    touched = {writer.shard_of(n, 8) for n in ("a/two.png", "new.png", "b/one.jpg")}
    options, there = Options(shards=8), Folder(out)
    entries = writer.listing(Folder(pictures))
    writer.begin(there, entries, options)
    refused("not finished", shards.read, path_of(out, "a/one.jpg"))  # the manifest was another's
    _, done = prepare(pictures, out, shards=8)
    assert {k for k, one in enumerate(done) if "written" in one} == touched
    assert shards.read(path_of(out, "new.png")) == (pictures / "new.png").read_bytes()
    refused("b/one.jpg: not in shards", shards.read, path_of(out, "b/one.jpg"))


def test_a_file_that_changes_meanwhile_is_broken(pictures, tmp_path):
    here, options = Folder(pictures), Options(shards=1)
    entries = writer.listing(here)
    (pictures / "a/two.png").write_bytes(b"short")
    done = writer.write_shard(here, Folder(tmp_path / "set"), 0, entries, options)
    assert done == {"stopped": 1, "records": 0, "bytes": 0, "broken": 1}
    match = "a/two.png: 5 bytes, .* when it was listed"
    refused(match, writer.finish, Folder(tmp_path / "set"), entries, options)


# ----------------------------------------------------------------------------------- broken media


@pytest.fixture
def broken(pictures, clips):
    """Four sound pictures and as many broken media."""
    clip = (clips / "clips" / "test0000.mp4").read_bytes()
    (pictures / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    (pictures / "empty.mp4").write_bytes(b"")
    (pictures / "noise.png").write_bytes(b"\x89PNG nothing")
    (pictures / "notes.txt").write_text("no media")
    return pictures


def test_broken_media_stop_and_are_all_named(broken, tmp_path):
    said = refused("4 broken media", prepare, broken, tmp_path / "set")
    assert "cut.mp4: cut off" in said and "empty.mp4: the file is empty" in said
    assert "noise.png: cannot be read as a picture" in said and "notes.txt: suffix '.txt'" in said
    assert not (tmp_path / "set" / shards.MANIFEST).exists()


def test_broken_media_are_left_out_and_named(broken, tmp_path):
    refused("4 broken media", prepare, broken, tmp_path / "set")
    manifest, done = prepare(broken, tmp_path / "set", broken="skip")
    assert manifest["records"] == 4 and sum(one["broken"] for one in done) == 4
    assert sorted(n for n, _ in manifest["broken"]) == [
        *("cut.mp4", "empty.mp4", "noise.png", "notes.txt")
    ]
    held = path_of(tmp_path / "set", "cut.mp4")
    refused("cut.mp4: left out of shards .* as broken: cut off", video.Video, held)
    assert shards.read(path_of(tmp_path / "set", "a/one.jpg"))
    _, done = prepare(broken, tmp_path / "set", broken="skip")
    assert all("kept" in one for one in done)
    refused("4 broken media", prepare, broken, tmp_path / "set")  # told again, to stop


def test_unchecked_media_are_taken_as_they_are(broken, tmp_path):
    (broken / "empty.mp4").unlink()
    manifest, _ = prepare(broken, tmp_path / "set", check=False)
    assert manifest["records"] == 7 and not manifest["checked"]
    assert shards.read(path_of(tmp_path / "set", "notes.txt")) == b"no media"


def test_nothing_but_broken_media(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(b"x")
    refused("all 1 media are broken", prepare, tmp_path / "source", tmp_path / "s", broken="skip")


def test_a_missing_decoder_is_no_broken_medium(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(transcode.importlib.util, "find_spec", lambda name: None)
    refused("needs the package av", prepare, clips / "clips", tmp_path / "s", broken="skip")


# -------------------------------------------------------------------------------------- shrinking


def test_shrunk_videos(clips, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with video.Video(clips / "clips" / "test0000.mp4") as opened:
        frames = opened.read(range(opened.frames))
    video.write(source / "a.avi", frames, 25, codec="mpeg4", crf=None)
    times = np.cumsum([0.0, *([0.04, 0.1] * 6)])[: len(frames)]
    video.write(source / "uneven.mp4", frames, 25, times=times)
    prepare(source, tmp_path / "set", short_side=32)
    for name in ("a.avi", "uneven.mp4"):
        with video.Video(source / name) as a, video.Video(path_of(tmp_path / "set", name)) as b:
            assert b.size == (32, 42) and b.frames == a.frames == 12
            np.testing.assert_allclose(a.times, b.times, atol=2e-3)
            wanted = a.read(range(12), b.size).astype(float)
            assert np.abs(wanted - b.read(range(12))).mean() < 4  # of 255
    manifest = json.loads((tmp_path / "set" / shards.MANIFEST).read_text())
    assert manifest["short_side"] == 32


def test_shrunk_pictures_and_what_is_small_already(pictures, clips, tmp_path):
    shutil.copy(clips / "clips" / "test0000.mp4", pictures / "small.mp4")  # 48 px
    Image.fromarray(np.zeros((20, 90, 3), np.uint8)).save(pictures / "small.jpg")
    prepare(pictures, tmp_path / "set", short_side=24)
    for name in ("a/one.jpg", "a/two.png"):
        small = images.decode(path_of(tmp_path / "set", name))
        assert small.size == (36, 24)
        kind = Image.open(io.BytesIO(shards.read(path_of(tmp_path / "set", name)))).format
        assert kind == {"jpg": "JPEG", "png": "PNG"}[name[-3:]]
    assert (
        shards.read(path_of(tmp_path / "set", "small.jpg")) == (pictures / "small.jpg").read_bytes()
    )
    _, done = prepare(pictures, tmp_path / "set", short_side=48)
    assert not any("kept" in one and one["records"] for one in done)  # other records, so anew
    held = shards.read(path_of(tmp_path / "set", "small.mp4"))
    assert held == (pictures / "small.mp4").read_bytes()


# ------------------------------------------------------------------------------------ annotations


def test_only_what_annotations_name(clips, tmp_path):
    wanted = transcode.wanted(str(clips / "annotations.pkl"))
    assert wanted == {p.stem for p in (clips / "clips").glob("*.mp4")}
    source = shutil.copytree(clips / "clips", tmp_path / "source")
    shutil.copy(source / "test0000.mp4", source / "other.mp4")
    manifest, _ = prepare(source, tmp_path / "set", wanted)
    assert manifest["records"] == 24
    refused("other.mp4: not in shards", shards.read, path_of(tmp_path / "set", "other.mp4"))
    (source / "test0004.mp4").unlink()
    refused("names 1 media .*first 'test0004'", prepare, source, tmp_path / "set", wanted)


@pytest.mark.parametrize(
    "name, text, wanted",
    [
        ("a.csv", "file,label,split\nx/a.mp4,1,train\nb.mp4,2,val\n", {"x/a.mp4", "b.mp4"}),
        ("a.csv", "video,start,end,label\nv1,0,2,run\nv2,1,2,walk\n", {"v1", "v2"}),
        ("a.txt", "x\\a.jpg 1\nb.jpg 2\n", {"x/a.jpg", "b.jpg"}),
        ("a.json", '[{"image_id": "a.jpg", "disease_class": 1}]', {"a.jpg"}),
        ("a.jsonl", '{"id": "q", "video": "q.mp4", "label": 1}\n', {"q.mp4"}),
        (
            "a.json",
            '{"database": {"v": {"subset": "t", "duration": 9, "annotations": '
            '[{"segment": [1, 2], "label": "run"}]}}}',
            {"v"},
        ),
    ],
)
def test_annotations_of_every_kind(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text)
    assert transcode.wanted(str(tmp_path / name)) == wanted
