"""Weights files to arrays: formats, dtypes, views, containers, and what is refused."""

import collections
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from weights import writer

from jaxact.config import UserError
from jaxact.weights.reader import read

WRITERS = {"zip": writer.write_zip, "legacy": writer.write_legacy}


def equal(read_back, written):
    assert list(read_back) == list(written)
    for key, value in written.items():
        assert read_back[key].dtype == value.dtype and read_back[key].shape == value.shape, key
        np.testing.assert_array_equal(read_back[key], value, key)
        assert read_back[key].flags.writeable and read_back[key].flags.c_contiguous


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pyth"])
def test_files_that_pytorch_wrote(golden, name):
    # Made by torch 2.13: {"epoch", "model_state": data-parallel names, "optimizer", "args"}.
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    equal(
        read(golden / "weights" / name),
        {
            "conv.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 1, 3, 3) / np.float32(7),
            "bn.running_var": np.array([1.5, 2.5], np.float32),
            "bn.num_batches_tracked": np.array(7),
            "half": np.array([0.5, -1.25, 65504], np.float16),
            "bf16": np.array([[1.0, -2.0], [3.140625, 1e30]], ml_dtypes.bfloat16),
            "f64": np.array([1 / 3]),
            "flags": np.array([True, False, True]),
            "u8": np.array([0, 255], np.uint8),
            "empty": np.zeros((0, 3), np.float32),
            "base": base,
            "shared_column": base[1:, 2],
            "shared_transposed": base.T,
            "shared_step": base[::2, 1::2],
            "expanded": np.full(3, 9, np.float32),
            "parameter": np.array([[2, 3]], np.float32),
        },
    )


def test_a_flat_state_dict_that_pytorch_wrote(golden):
    tensors = read(golden / "weights" / "flat.pt")
    assert tensors["conv.weight"].shape == (2, 1, 1, 3, 3) and tensors["bn.bias"].tolist() == [3, 4]


def test_float8_and_unsigned_that_pytorch_wrote(golden):
    tensors = read(golden / "weights" / "new_dtypes.pt")
    assert tensors["f8"].dtype == ml_dtypes.float8_e4m3fn and tensors["f8"].tolist() == [1, -2]
    assert tensors["u16"].dtype == np.uint16 and tensors["u16"].tolist() == [1, 65535]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("module.pt", r"torch\.nn\.modules\.container\.Sequential.*state_dict"),
        ("quantised.pt", r"torch\._utils\._rebuild_qtensor"),
    ],
)
def test_pytorch_files_without_plain_tensors(golden, name, reason):
    with pytest.raises(UserError, match=reason):
        read(golden / "weights" / name)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("order", ["little", "big"])
def test_every_dtype_and_byte_order(tmp_path, write, order):
    arrays = writer.every_dtype()
    content = {key: writer.view(value) for key, value in arrays.items()}
    equal(read(write(tmp_path / "a.pth", content, order)), arrays)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_views_share_a_storage(tmp_path, write):
    store = writer.Storage(np.arange(10, dtype=np.float32))
    content = {
        "b": writer.View(store, 1, (2, 3), (4, 1)),
        "a": writer.View(store, 9, (), ()),
        "c": writer.View(store, 0, (2, 2), (1, 3)),
    }
    expected = {
        "b": np.array([[1, 2, 3], [5, 6, 7]], np.float32),
        "a": np.array(9, np.float32),
        "c": np.array([[0, 3], [1, 4]], np.float32),
    }
    equal(read(write(tmp_path / "a.pth", content)), expected)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (9, (2,), (1,)),
        (0, (3, 3), (4, 1)),
        (-1, (2,), (1,)),
        (5, (2,), (-1,)),
        (0, (1 << 60,), (0,)),
    ],
)
def test_views_outside_their_storage_are_refused(tmp_path, offset, shape, strides):
    store = writer.Storage(np.arange(10, dtype=np.float32))
    path = writer.write_zip(tmp_path / "a.pth", {"w": writer.View(store, offset, shape, strides)})
    with pytest.raises(UserError, match=r"a\.pth: .*'w'"):
        read(path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: {"model_state": d, "epoch": 3},
        lambda d: {"model_state_dict": d, "optimizer": {"state": {0: {"step": 1}}}},
        lambda d: {"state_dict": d, "meta": {"classes": ["a"]}},
        lambda d: {"module": d},
        lambda d: {"model": {"state_dict": d}},
        lambda d: {"state_dict": {f"module.{k}": v for k, v in d.items()}},
        lambda d: {"model": {f"module._orig_mod.{k}": v for k, v in d.items()}},
        lambda d: {"ema": {f"module.{k}": v for k, v in d.items()}},
    ],
)
def test_containers_and_wrappers(tmp_path, wrap):
    arrays = {"a.weight": np.ones((2, 3), np.float32), "module": np.zeros(1, np.float32)}
    content = wrap({key: writer.view(value) for key, value in arrays.items()})
    equal(read(writer.write_zip(tmp_path / "a.pth", content)), arrays)


def test_a_module_called_module_keeps_its_name(tmp_path):
    names = ("module.a", "head.b")
    content = {name: writer.view(np.ones(2, np.float32)) for name in names}
    assert tuple(read(writer.write_zip(tmp_path / "a.pth", content))) == names


def test_averaged_weights_have_a_counter_beside_them(tmp_path):
    content = {
        "n_averaged": writer.view(np.array(4)),
        "module.w": writer.view(np.ones(2)),
    }
    assert set(read(writer.write_zip(tmp_path / "a.pth", content))) == {"n_averaged", "w"}


def test_container_by_choice(tmp_path):
    def weights(value):
        return {
            "backbone.w": writer.view(np.full(2, value)),
            "head.w": writer.view(np.full(3, value)),
        }

    content = {"state_dict": weights(1.0), "state_dict_ema": weights(2.0)}
    path = writer.write_zip(tmp_path / "a.pth", content)
    assert read(path)["head.w"].tolist() == [1, 1, 1]
    assert read(path, container="state_dict_ema")["head.w"].tolist() == [2, 2, 2]
    with pytest.raises(UserError, match=r"no weights under 'best'.*'state_dict', 'state_dict_ema'"):
        read(path, container="best")


def test_objects_of_training_code_are_inert(tmp_path):
    history = writer.Name("mmengine.logging.history_buffer", "HistoryBuffer")
    content = {
        "state_dict": {"w": writer.view(np.ones(2, np.float32))},
        "message_hub": writer.Call(
            history, (np.zeros(2), {"mean": writer.Call(writer.Name("builtins", "getattr"),
                                                        (history, "mean"))})
        ),
        "cfg": writer.Call(writer.Name("fvcore.common.config", "CfgNode"), ({"lr": 0.1},)),
        "args": collections.Counter("aab"),
        "path": pathlib.PurePosixPath("a/b"),
    }  # fmt: skip
    assert set(read(writer.write_zip(tmp_path / "a.pth", content))) == {"w"}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    "attack",
    [("os", "mkdir"), ("posix", "mkdir"), ("builtins", "eval"), ("subprocess", "Popen"),
     ("builtins", "__import__"), ("torch.storage", "_load_from_bytes"), ("runpy", "run_path")],
    ids=".".join,
)  # fmt: skip
def test_attacks_are_refused_by_name(tmp_path, write, attack):
    made = tmp_path / "made"
    content = {
        "state_dict": {"w": writer.view(np.ones(2))},
        "x": writer.Call(writer.Name(*attack), (str(made),)),
    }
    path = write(tmp_path / "a.pth", content)
    with pytest.raises(UserError, match=rf"a\.pth: refused.*'{'.'.join(attack)}'"):
        read(path)
    assert not made.exists()


def test_getattr_reaches_nothing_real(tmp_path):
    getattr_ = writer.Name("builtins", "getattr")
    for owner in ({}, "text", writer.Name("torch", "float32"), writer.Name("builtins", "list")):
        content = {
            "w": writer.view(np.ones(2)),
            "x": writer.Call(getattr_, (owner, "__class__")),
        }
        with pytest.raises(UserError, match="getattr"):
            read(writer.write_zip(tmp_path / "a.pth", content))


def test_an_object_among_the_tensors_is_named(tmp_path):
    odd = writer.Call(writer.Name("somewhere", "Packed"), ())
    path = writer.write_zip(tmp_path / "a.pth", {"w": writer.view(np.ones(2)), "odd": odd})
    with pytest.raises(UserError, match=r"'odd' is an object of somewhere\.Packed"):
        read(path)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_truncated_at_any_place(tmp_path, write):
    content = {key: writer.view(value) for key, value in writer.every_dtype().items()}
    path = write(tmp_path / "a.pth", content)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.pth") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_damaged_bytes_in_a_zip(tmp_path):
    values = np.full(64, 7, np.float32)
    path = writer.write_zip(tmp_path / "a.pth", {"w": writer.view(values)})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(values.tobytes()[:8], b"\x00" * 8, 1))
    with pytest.raises(UserError, match=r"damaged at 'archive/data/0'"):
        read(path)


def test_foreign_archives_and_files(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(UserError, match=r"without data\.pkl"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(UserError, match="TorchScript"):
        read(path)
    writer.write_zip(path, {"w": writer.view(np.ones(2))}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="not a weights file"):
        read(path)
    writer.write_legacy(path, {"w": writer.view(np.ones(2))}, version=1000)
    with pytest.raises(UserError, match="protocol 1000"):
        read(path)
    writer.write_zip(path, {"epoch": 3, "best": [1, 2]})
    with pytest.raises(UserError, match=r"no weights in it.*'epoch', 'best'"):
        read(path)


def test_absent_empty_folder_and_too_large(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth: cannot be read"):
        read(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        read(path)
    writer.write_zip(path, {"w": writer.view(np.ones(100))})
    with pytest.raises(UserError, match="over 500 bytes"):
        read(path, limit=500)


def test_a_plain_pickle_of_arrays(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"model": {"w": np.ones(2)}}, protocol=2))
    equal(read(path), {"w": np.ones(2)})


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_safetensors(tmp_path, suffix):
    arrays = {
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([1.5, -2], ml_dtypes.bfloat16),
        "n": np.array(3),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 2), np.float16),
    }
    equal(read(writer.write_safetensors(tmp_path / f"a{suffix}", arrays, {"f": "pt"})), arrays)


def test_safetensors_of_the_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array([1, 2], np.uint8)}
    library.save_file(arrays, tmp_path / "a.safetensors")
    tensors = read(tmp_path / "a.safetensors")
    equal({key: tensors[key] for key in arrays}, arrays)
    ours = writer.write_safetensors(tmp_path / "b.safetensors", {"w": np.ones(3, np.float32)})
    np.testing.assert_array_equal(library.load_file(ours)["w"], np.ones(3, np.float32))


@pytest.mark.parametrize("length", [4, 9, 40, -1])
def test_truncated_safetensors(tmp_path, length):
    path = writer.write_safetensors(tmp_path / "a.safetensors", {"w": np.ones(3, np.float32)})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"a\.safetensors: (truncated|damaged)"):
        read(path)


@pytest.mark.parametrize(
    "header",
    ['{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}',
     '{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
     '{"w": {"dtype": "X9", "shape": [3], "data_offsets": [0, 12]}}',
     '{"w": [1]}', "[1, 2, 3]"],
)  # fmt: skip
def test_damaged_safetensors_header(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 12)
    with pytest.raises(UserError, match=r"a\.safetensors: .*damaged"):
        read(path)
