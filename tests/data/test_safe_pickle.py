"""Restricted pickles: everything an annotation file holds is read, nothing it names is run."""

import collections
import io
import os
import pickle

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.data import safe_pickle


def annotations():
    rng = np.random.default_rng(0)
    keypoint = rng.standard_normal((1, 3, 4, 2))
    shared = np.arange(3)
    return {
        "split": {"xsub_train": ["S001"], "xsub_val": ["S002"]},
        "annotations": [
            {
                "frame_dir": "S001",
                "label": 3,
                "img_shape": (1080, 1920),
                "keypoint": keypoint.astype(np.float16),
                "keypoint_score": keypoint[..., 0].astype(np.float32),
                "fortran": np.asfortranarray(keypoint[0, :, :, 0]),
                "permuted": keypoint.transpose(2, 0, 1, 3),
                "big_endian": np.arange(3, dtype=">i4"),
                "text": np.array(["ab", "c"]),
                "empty": np.zeros((0, 17, 2), np.float32),
                "scalars": (np.float32(2.5), np.int64(4), np.bool_(True), np.str_("id")),
                "in a tuple": (1, (shared, [shared])),
                "set": {1, 2},
                "frozen": frozenset({"a"}),
                "bytes": b"\x80a",
                "array of bytes": bytearray(b"\x00\xff"),
                "none": None,
                "by default": collections.defaultdict(list, {1: [2.5]}),
                "ordered": collections.OrderedDict(b=1, a=2),
                "complex": 1 + 2j,
            }
        ],
    }


def same(read, written):
    if isinstance(written, dict):
        return list(read) == list(written) and all(same(read[k], v) for k, v in written.items())
    if isinstance(written, (list, tuple)):
        pairs = zip(read, written, strict=True)
        return type(read) is type(written) and all(same(r, w) for r, w in pairs)
    if isinstance(written, np.ndarray):
        equal = read.dtype == written.dtype and np.array_equal(read, written)
        return type(read) is np.ndarray and read.flags.writeable and equal
    return type(read) is type(written) and read == written


@pytest.mark.parametrize("protocol", range(6))
def test_annotations_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(annotations(), protocol=protocol))
    assert same(safe_pickle.load(path), annotations())


def test_names_of_numpy_1(tmp_path):
    data = pickle.dumps({"x": np.arange(6.0).reshape(2, 3), "y": np.float32(1)}, protocol=2)
    assert b"numpy._core.multiarray" in data
    path = tmp_path / "a.pkl"
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same(safe_pickle.load(path), {"x": np.arange(6.0).reshape(2, 3), "y": np.float32(1)})


def test_python_2_strings_and_arrays(tmp_path):
    # What Python 2 wrote for {"a": numpy.arange(2, dtype="<i2")}: byte strings, old module names.
    data = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\x01\xfftbs."
    )
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    assert same(safe_pickle.load(path), {"a": np.array([0, -255], "<i2")})


def test_a_shared_array_stays_shared(tmp_path):
    array = np.arange(3)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([array, [array], (array,)], protocol=2))
    first, (second,), (third,) = safe_pickle.load(path)
    assert first is second is third


class Act:
    """Makes a folder when unpickled, if anything lets it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Chain:
    """getattr(os.path, ...) and the like."""

    def __reduce__(self):
        return getattr, ("", "format")


@pytest.mark.parametrize("protocol", (0, 2, 4))
def test_a_call_is_refused_by_name_and_not_made(tmp_path, protocol):
    path, made = tmp_path / "a.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"annotations": [Act(made)]}, protocol=protocol))
    with pytest.raises(UserError, match=r"a\.pkl: refused.*'(posix|nt)\.mkdir'"):
        safe_pickle.load(path)
    assert not made.exists()
    pickle.loads(path.read_bytes())  # the attack is real
    assert made.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [(eval, "builtins.eval"), (Chain(), "builtins.getattr"), (np.load, "numpy.load")],
)
def test_other_globals_are_refused_by_name(tmp_path, content, name):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=f"'{name}'"):
        safe_pickle.load(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8c\x08builtins\x8c\x0edict.__class__\x93.",  # a dotted name walks attributes
        b"\x80\x04\x8c\x08builtins\x8c\x13list.__subclasses__\x93)R.",
    ],
)
def test_dotted_names_do_not_walk(data):
    with pytest.raises(UserError, match="refused"):
        safe_pickle.restricted_load(io.BytesIO(data), "a.pkl")


def test_stand_ins_cannot_be_changed():
    # BUILD with slot state (None, {"_call": ...}) on the stand-in of list.
    data = b"\x80\x02cbuiltins\nlist\nN}U\x05_callcbuiltins\ndict\ns\x86b."
    with pytest.raises(UserError, match="changes a function"):
        safe_pickle.restricted_load(io.BytesIO(data), "a.pkl")
    assert safe_pickle.SAFE["builtins.list"]((1, 2)) == [1, 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.array([{}], dtype=object), "type 'O8'"),
        (np.zeros(2, [("a", "i4")]), "type 'V4'"),
        (np.array(["2020-01-01"], "M8[D]"), "type 'M8'"),
    ],
)
def test_arrays_that_are_not_numbers_or_text(tmp_path, content, reason):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=reason):
        safe_pickle.load(path)


def test_an_array_must_fill_its_shape():
    data = pickle.dumps(np.arange(4, dtype="<i4"), protocol=2)
    assert data.count(b"K\x04\x85") == 1
    with pytest.raises(UserError, match="not a readable pickle"):
        safe_pickle.restricted_load(io.BytesIO(data.replace(b"K\x04\x85", b"K\x09\x85")), "a.pkl")


def test_codecs_other_than_latin_1_are_refused():
    data = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R."
    with pytest.raises(UserError, match="bz2"):
        safe_pickle.restricted_load(io.BytesIO(data), "a.pkl")


def test_truncated_absent_and_foreign_files(tmp_path):
    whole = pickle.dumps(annotations())
    path = tmp_path / "a.pkl"
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.pkl: not a readable pickle") as error:
            safe_pickle.load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"a\.pkl"):
        safe_pickle.load(path)
    for missing in (tmp_path / "none.pkl", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            safe_pickle.load(missing)
