"""The loader of an artifact: its pixels are those of the evaluation view, bit for bit."""

import io

import numpy as np
import pytest
from PIL import Image

from must_jax.data.decode import decode_image
from must_jax.data.views import evaluation_view
from must_jax.exporting.loader import decode, view


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parity
def test_views_are_those_of_pillow_at_any_size():
    rng = np.random.default_rng(0)
    sizes = [tuple(rng.integers(1, 200, 2)) for _ in range(60)]
    # Twice as tall as wide is where Pillow changes the order of its two passes.
    sizes += [(2 * n + d, n) for n in (9, 40) for d in (-1, 0, 1, 2, 3)]
    sizes += [(1, 1), (1, 300), (300, 1), (2, 300), (500, 7), (7, 500), (32, 32), (32, 47)]
    for i, (height, width) in enumerate(sizes):
        image = noise(height, width, 3, seed=i)
        for size in (8, 32, 224):
            expected = evaluation_view(Image.fromarray(image), image_size=size)
            ours = view(image, size=size)
            np.testing.assert_array_equal(ours, expected, err_msg=f"{height} x {width} to {size}")


def palette():
    image = Image.fromarray(noise(12, 9, 3)).quantize(16)
    image.info["transparency"] = 3
    return image


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


FILES = {
    "jpeg": encoded(Image.fromarray(noise(20, 31, 3)), "JPEG"),
    "cmyk": encoded(Image.fromarray(noise(20, 31, 4), "CMYK"), "JPEG"),
    "grey": encoded(Image.fromarray(noise(20, 31)), "PNG"),
    "grey 16": encoded(Image.fromarray(noise(20, 31, dtype=np.uint16)), "PNG"),
    "transparent": encoded(Image.fromarray(noise(20, 31, 4)), "PNG"),
    "transparent grey": encoded(Image.fromarray(noise(20, 31, 2), "LA"), "PNG"),
    "palette": encoded(palette(), "PNG", transparency=3),
    "one bit": encoded(Image.fromarray(noise(20, 31) > 127), "PNG"),
    "gif": encoded(Image.fromarray(noise(20, 31)), "GIF"),
    "broken tag": encoded(Image.fromarray(noise(20, 31, 3)), "JPEG", exif=b"Exif\0\0II*\0\xff"),
} | {
    f"orientation {n}": encoded(Image.fromarray(noise(20, 31, 3)), "JPEG", **turned(n))
    for n in range(1, 9)
}


@pytest.mark.parametrize("name", FILES)
def test_files_decode_as_in_training(name):
    expected = np.asarray(decode_image(FILES[name], name=name))
    np.testing.assert_array_equal(decode(FILES[name]), expected)


def test_files_without_a_range_are_refused():
    data = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(ValueError, match="no defined range"):
        decode(data)
