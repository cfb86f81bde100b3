"""decode_pixels: pixels for training are Pillow's, at no larger scale than crops need."""

import io

import numpy as np
import pytest
from PIL import Image

from must_jax.data import decode
from must_jax.data.decode import UndecodableImageError, decode_image, decode_pixels


def _decode_bytes(data):
    return np.asarray(decode_image(data, name="x"))


def _gradient_jpeg(mode="RGB", **options):
    rows, columns = np.mgrid[0:75, 0:101]
    smooth = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, smooth.shape, dtype=np.uint8)
    noisy = (smooth // 2 + noise // 4).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).convert(mode).save(buffer, "jpeg", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *[("RGB", {"subsampling": ways, "quality": 90}) for ways in range(3)],
        ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_blocks": 2}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_pixels_for_training_are_pillows(mode, options):
    data = _gradient_jpeg(mode, **options)
    pixels = decode_pixels(data, name="x", smallest_side=75)
    np.testing.assert_array_equal(pixels, _decode_bytes(data))


@pytest.mark.parametrize(("side", "scale"), [(38, 2), (39, 1), (19, 4), (20, 2), (10, 8), (1, 8)])
def test_pixels_for_training_are_no_more_than_needed(side, scale):
    data = _gradient_jpeg()
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (101 // scale, 75 // scale))
        expected = np.asarray(image)
    assert expected.shape[0] == -(-75 // scale)
    pixels = decode_pixels(data, name="x", smallest_side=side)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tags", ["exif", "xmp"])
def test_pixels_for_training_are_upright(orientation, tags):
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
    options = {"exif": {"exif": exif}, "xmp": {"xmp": xmp.encode()}}[tags]
    # The comment comes first in the file.
    data = _gradient_jpeg(comment=b"\xff\xda", **options)
    if orientation > 4:
        assert _decode_bytes(data).shape == (101, 75, 3)
    pixels = decode_pixels(data, name="x", smallest_side=75)
    np.testing.assert_array_equal(pixels, _decode_bytes(data))


def test_flaws_that_pillow_mends_are_mended_for_training():
    data = _gradient_jpeg()
    end = data.rindex(b"\xff\xd9")
    flawed = data[:end] + b"\x00" * 9 + data[end:]
    pixels = decode_pixels(flawed, name="x", smallest_side=75)
    np.testing.assert_array_equal(pixels, _decode_bytes(data))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
@pytest.mark.parametrize("failures", [1, 2])
def test_memory_that_is_short_for_a_moment_changes_no_pixel(suffix, failures, monkeypatch):
    """Nor does the other decoder take what one had no memory for."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(file, suffix)
    data = file.getvalue()
    whole = decode_pixels(data, name="x", smallest_side=8)
    left = [MemoryError] * failures

    def short(works):
        def shortly(*arguments, **keywords):
            if left:
                raise left.pop()
            return works(*arguments, **keywords)

        return shortly

    for module, name in ((decode.simplejpeg, "decode_jpeg"), (decode, "to_8_bits")):
        monkeypatch.setattr(module, name, short(getattr(module, name)))
    if failures == 1:
        np.testing.assert_array_equal(decode_pixels(data, name="x", smallest_side=8), whole)
    else:
        with pytest.raises(UndecodableImageError, match="MemoryError"):
            decode_pixels(data, name="x", smallest_side=8)
    assert not left
