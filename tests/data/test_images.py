"""Decoding, resizing and the boxes of evaluation."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxact.config import UserError
from jaxact.data import images


def scene(height=60, width=90):
    """u8[h, w, 3], smooth and without any symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (255 * x / width, 255 * y / height, 255 * (x + 2 * y) / (width + 2 * height))
    return np.stack(planes, -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "RGBA", "LA", "P", "CMYK", "I;16"])
def test_modes_become_rgb(mode, tmp_path):
    source = Image.fromarray(scene())
    if mode == "I;16":
        grey = np.asarray(source.convert("L"))
        image = Image.fromarray(grey.astype(np.uint16) * 256 + 77)
        wanted = np.repeat(grey[..., None], 3, 2)
    elif mode == "LA":
        image = source.convert("L").convert("LA")
        wanted = np.asarray(source.convert("L").convert("RGB"))
    elif mode == "P":
        image = source.quantize(16)
        image.info["transparency"] = bytes([0, 128, 255] + [255] * 13)
        wanted = np.asarray(source.quantize(16).convert("RGB"))
    else:
        image = source.convert(mode)
        wanted = np.asarray(image.convert("RGB"))
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    decoded = images.decode(path)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = scene()
    # What a camera stores, by the standard's words: the sides that its first row and column are.
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = images.decode(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    np.testing.assert_array_equal(np.asarray(decoded), upright)


def test_a_damaged_exif_block_counts_as_none():
    content = encoded(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0garbage that is no TIFF")
    assert images.decode(content).size == (90, 60)


def test_jpeg_decodes_at_the_smallest_fraction_that_is_large_enough():
    content = encoded(Image.fromarray(scene(480, 640)), "JPEG", quality=95)
    sizes = {side: images.decode(content, side).size for side in (0, 30, 60, 120, 200, 400)}
    assert sizes == {
        0: (640, 480),
        30: (80, 60),
        60: (160, 120),
        120: (320, 240),
        200: (640, 480),
        400: (640, 480),
    }
    assert images.decode(content, 30, gap=0).size == (640, 480)
    assert images.decode(content, 240, gap=1).size == (320, 240)
    assert images.decode(encoded(Image.fromarray(scene(480, 640))), 30).size == (640, 480)
    exact = images.resize(images.decode(content), (60, 60)).astype(int)
    quick = images.resize(images.decode(content, 60), (60, 60))
    assert np.abs(exact - quick).mean() < 0.5


def bad_files():
    png = encoded(Image.fromarray(scene()))
    jpeg = encoded(Image.fromarray(scene()), "JPEG")
    return {
        "empty.jpg": b"",
        "text.jpg": b"this is no picture",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "flipped.png": png[:20] + bytes([png[20] ^ 255]) + png[21:],
        "float.tif": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    }


@pytest.mark.parametrize("name", sorted(bad_files()))
def test_bad_files_are_named_in_one_line(name, tmp_path):
    (tmp_path / name).write_bytes(bad_files()[name])
    with pytest.raises(UserError) as error:
        images.decode(tmp_path / name, 16)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
    assert "0x" not in str(error.value)


def test_missing_files_folders_and_arrays():
    with pytest.raises(UserError, match=r"nowhere\.jpg: no such file"):
        images.decode("nowhere.jpg")
    with pytest.raises(UserError, match="is a folder"):
        images.decode(__file__.rsplit("/", 1)[0])
    with pytest.raises(UserError, match=r"row 3: float32\[4, 4, 3\]; allowed: uint8"):
        images.decode(np.zeros((4, 4, 3), np.float32), name="row 3")
    grey = images.decode(np.full((4, 5, 1), 7, np.uint8))
    assert grey.size == (5, 4) and np.asarray(grey).tolist() == np.full((4, 5, 3), 7).tolist()


def test_resize_is_pillows():
    image = Image.fromarray(scene())
    for name, how in (("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)):
        resized = images.resize(image, (20, 30), (10, 5, 70.5, 45), name)
        wanted = image.resize((30, 20), how, (10, 5, 70.5, 45))
        np.testing.assert_array_equal(resized, np.asarray(wanted))
    np.testing.assert_array_equal(images.resize(image, (60, 90)), scene())


def test_boxes_of_evaluation():
    assert images.boxes((90, 60)) == [(0, 0, 90, 60)]
    assert images.boxes((90, 60), square=True) == [(15, 0, 75, 60)]
    assert images.boxes((90, 60), scale=2.0) == [(22.5, 15, 67.5, 45)]
    five = images.boxes((90, 60), scale=1.5, crops=5)
    assert five == [(15, 10, 75, 50), (0, 0, 60, 40), (30, 0, 90, 40), (0, 20, 60, 60), five[4]]
    assert five[4] == (30, 20, 90, 60)
    for scale in np.linspace(1, 3, 50):
        for x0, y0, x1, y1 in images.boxes((97, 61), float(scale), 5, square=True):
            assert 0 <= x0 < x1 <= 97 and 0 <= y0 < y1 <= 61


def test_thumbnail():
    assert images.thumbnail(scene(60, 90), 20).shape == (20, 30, 3)
    # Of a long one the middle: a strip of all of it could not be stored.
    assert images.thumbnail(scene(1, 4000), 20).shape == (20, 80, 3)
    assert images.thumbnail(scene(4000, 1), 20).shape == (80, 20, 3)
    strip = scene(10, 400)
    strip[:, 180:220] = 255
    assert images.thumbnail(strip, 10).min() == 255
