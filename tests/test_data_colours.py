"""Pixels that Pillow leaves in other ranges than theirs: deep grey, and transparent colours."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from must_jax.data.decode import UndecodableImageError, decode_image


def _png(depth, kind, samples, key):
    """One row of pixels; `key` is the transparent one."""

    def chunk(name, data):
        data = name + data
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))

    samples = np.array(samples)
    width = samples.size // (3 if kind == 2 else 1)
    bits = "".join(f"{value:0{depth}b}" for value in samples.ravel())
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
        + chunk(b"tRNS", np.array(key, ">u2").tobytes())
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


def _decoded(data):
    image = decode_image(data, name="x")
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("depth", "grey", "key", "expected"),
    [
        (1, [0, 1, 1], 1, [0, 255, 255]),
        (2, [0, 1, 2, 3], 1, [0, 255, 170, 255]),
        (4, [0, 8, 15, 7], 8, [0, 255, 255, 119]),
        (8, [0, 8, 200], 0, [255, 8, 200]),
        (16, [0, 0x8000, 1], 0, [255, 128, 0]),
        (16, [0x1234, 0x1235, 0x34], 0x1234, [255, 18, 0]),
    ],
)
def test_a_transparent_grey_is_white(depth, grey, key, expected):
    assert _decoded(_png(depth, 0, grey, key))[0, :, 0].tolist() == expected


def test_a_transparent_colour_is_white():
    pixels = [[18, 0, 0], [18, 0, 1], [0, 0, 0]]
    expected = [[[255] * 3, *pixels[1:]]]
    data = _png(8, 2, pixels, pixels[0])
    assert _decoded(data).tolist() == expected
    deep = np.array(pixels) * 256 + 0x34
    data = _png(16, 2, deep, deep[0])
    assert _decoded(data).tolist() == expected


def test_a_transparent_colour_of_a_large_image_is_not_averaged(monkeypatch):
    monkeypatch.setattr("must_jax.data.decode.LARGE", 2)
    # Red next to transparent black: half white, no dark red.
    data = _png(8, 2, [[255, 0, 0], [0, 0, 0]] * 2, [0, 0, 0])
    assert _decoded(data).tolist() == [[[255, 128, 128]] * 2]


def _tiff(bits, photometric, pixels, *, sample_format=1):
    """One row, little-endian."""
    tags = {256: len(pixels), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1}
    tags |= {278: 1, 279: len(pixels.tobytes()), 339: sample_format}
    tags[273] = 10 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + pixels.tobytes()


@pytest.mark.parametrize("kind", ["<u1", "<u2"])
def test_grey_tiffs_whose_white_is_zero(kind):
    bits = np.dtype(kind).itemsize * 8
    levels = np.array([0, 10, 100, 255]) * (1 if bits == 8 else 257)
    for photometric, expected in [(1, [0, 10, 100, 255]), (0, [255, 245, 155, 0])]:
        data = _tiff(bits, photometric, levels.astype(kind))
        assert _decoded(data)[0, :, 0].tolist() == expected


def test_a_tiff_of_12_bits_is_scaled():
    # Two levels in three bytes: 0x800 and 0xFFF.
    data = bytearray(_tiff(12, 1, np.frombuffer(b"\x80\x0f\xff", np.uint8)))
    at = data.index(struct.pack("<HHIH", 256, 3, 1, 3)) + 8
    data[at : at + 2] = struct.pack("<H", 2)
    assert _decoded(bytes(data))[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize(
    ("kind", "sample_format"),
    [("<u4", 1), ("<i4", 2), ("<i2", 2)],
    ids=["uint32", "int32", "int16"],
)
def test_integers_without_a_range_are_refused(kind, sample_format):
    pixels = np.array([0, 5, 1000]).astype(kind)
    data = _tiff(pixels.itemsize * 8, 1, pixels, sample_format=sample_format)
    with pytest.raises(UndecodableImageError) as error:
        decode_image(data, name="x")
    assert str(error.value) == "x: signed or 32-bit integer pixels have no defined range"


def test_16_bit_pgm_of_fewer_levels_is_scaled():
    data = b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes()
    assert _decoded(data)[0, :, 0].tolist() == [0, 128, 255]


def test_deep_grey_is_rounded(tmp_path):
    levels = np.arange(65536, dtype=np.uint16)[None]
    Image.fromarray(levels).save(tmp_path / "x.png")
    pixels = _decoded((tmp_path / "x.png").read_bytes())
    np.testing.assert_array_equal(pixels[..., 1], np.rint(levels / 257))
