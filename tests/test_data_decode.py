"""decode_image: every pixel format to 8-bit RGB, and what counts as undecodable."""

import io
import pathlib
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from must_jax.data import decode
from must_jax.data.decode import UndecodableImageError, decode_image, decode_pixels


def _colours(height=9, width=14, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _saved(path, image, **options):
    image.save(path, **options)
    return str(path)


def _decode(path):
    return decode_image(pathlib.Path(path).read_bytes(), name=str(path))


def _pixels(path):
    image = _decode(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_and_grey_are_unchanged(tmp_path):
    colours, grey = _colours(), _colours(channels=1)
    np.testing.assert_array_equal(
        _pixels(_saved(tmp_path / "c.png", Image.fromarray(colours))), colours
    )
    np.testing.assert_array_equal(
        _pixels(_saved(tmp_path / "g.png", Image.fromarray(grey))), np.stack([grey] * 3, -1)
    )


def test_one_pixel(tmp_path):
    path = _saved(tmp_path / "1.png", Image.new("RGB", (1, 1), (1, 2, 3)))
    assert _pixels(path).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    levels = np.array([[0, 128, 129, 257, 1000, 32768, 65535]], np.uint16)
    path = tmp_path / f"grey.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 7 1 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(path)
    expected = np.rint(levels / 257)
    assert _pixels(str(path))[..., 0].tolist() == expected.tolist()


def test_transparency_is_laid_on_white(tmp_path):
    rgba = _colours(channels=4)
    path = _saved(tmp_path / "a.png", Image.fromarray(rgba))
    alpha = rgba[..., 3:] / 255
    # Pillow composites in integers: off by one from the exact blend at most.
    np.testing.assert_allclose(_pixels(path), rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1.01)


def test_transparent_palette_and_colour_key_become_white(tmp_path):
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    path = _saved(tmp_path / "p.png", palette, transparency=0)
    assert _pixels(path).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    path = _saved(
        tmp_path / "k.png",
        Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)),
        transparency=(1, 2, 3),
    )
    assert _pixels(path).tolist() == [[[255, 255, 255], [4, 5, 6]]]


# Ink as it is meant, 0 to 255 of cyan, magenta, yellow and black: flat, so that JPEG keeps it.
INK = (200, 40, 90, 60)


def _cmyk_jpeg(components, transform):
    """A JPEG of four flat components with Adobe's mark, whose byte says what they are."""
    buffer = io.BytesIO()
    # Pillow writes what it is given inverted, as Adobe does; the mark comes with it.
    inverted = tuple(255 - value for value in components)
    Image.new("CMYK", (16, 16), inverted).save(buffer, "jpeg", quality=100)
    data = bytearray(buffer.getvalue())
    mark = data.index(b"Adobe")
    assert data[mark + 11] in (0, 2)
    data[mark + 11] = transform
    return bytes(data)


def test_cmyk_jpeg_with_adobes_inversion(tmp_path):
    path = tmp_path / "c.jpg"
    path.write_bytes(_cmyk_jpeg([255 - value for value in INK], transform=0))
    light = (255 - np.array(INK[:3])) * (255 - INK[3]) / 255
    np.testing.assert_allclose(_pixels(path)[4, 4], light, atol=2)


def test_ycck_jpeg_with_adobes_inversion(tmp_path):
    # Adobe's way: inverted ink, its first three parts as if they were RGB, in JFIF's YCbCr.
    red, green, blue = INK[:3]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    components = [luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402, 255 - INK[3]]
    path = tmp_path / "y.jpg"
    path.write_bytes(_cmyk_jpeg([round(value) for value in components], transform=2))
    light = (255 - np.array(INK[:3])) * (255 - INK[3]) / 255
    # Two roundings on the way.
    np.testing.assert_allclose(_pixels(path)[4, 4], light, atol=3)


@pytest.mark.parametrize("file_format", ["gif", "png", "webp", "tiff", "mpo"])
def test_first_frame_only(tmp_path, file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "white")]
    path = tmp_path / f"a.{file_format}"
    options = {"save_all": True, "append_images": frames[1:]}
    lossless = {"lossless": True} if file_format == "webp" else {}
    frames[0].save(path, file_format, **options, **lossless)
    with Image.open(path) as image:
        assert image.n_frames == 3
    # Only MPO, which is JPEG, is off.
    atol = 2 if file_format == "mpo" else 0
    np.testing.assert_allclose(_pixels(path), np.full((8, 8, 3), [255, 0, 0]), atol=atol)


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == "webp" else {}
    path = _saved(tmp_path / f"x.{suffix}", Image.fromarray(_colours()), exif=exif, **lossless)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape == ((14, 9, 3) if orientation > 4 else (9, 14, 3))
    np.testing.assert_array_equal(_pixels(path), expected)


def test_jpeg_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise brings it upright
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, :32] = 255
    path = _saved(tmp_path / "x.JPG", Image.fromarray(halves), exif=exif, quality=95)
    expected = np.rot90(halves, -1)
    assert expected.shape == (64, 32, 3)
    np.testing.assert_allclose(_pixels(path), expected, atol=2)


@pytest.mark.parametrize("alphas", [bytes([0, 128, 255]), 1])
def test_palette_with_transparency(tmp_path, alphas):
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    palette.putpalette(colours.reshape(-1).tolist())
    path = _saved(tmp_path / "p.png", palette, transparency=alphas)
    alpha = np.array(list(alphas) if isinstance(alphas, bytes) else [255, 0, 255])[:, None] / 255
    expected = colours * alpha + 255 * (1 - alpha)
    # Pillow composites in integers.
    np.testing.assert_allclose(_pixels(path)[0], expected, atol=1.01)


def _png(header, rows):
    """A PNG by the standard's own rules, for what Pillow does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["rgb", "la", "rgba"])
def test_16_bit_png_of_several_channels(tmp_path, kind, channels):
    levels = np.random.default_rng(0).integers(0, 65536, (5, 7, channels))
    if channels != 3:
        levels[..., -1] = 65535
    path = tmp_path / "x.png"
    path.write_bytes(_png((7, 5, 16, kind), [row.astype(">u2").tobytes() for row in levels]))
    colours = levels[..., :1] if channels == 2 else levels[..., :3]
    # Pillow keeps the high byte: off by less than one level.
    np.testing.assert_allclose(_pixels(path), np.broadcast_to(colours / 257, (5, 7, 3)), atol=1)


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (20000, 100)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_long_images(tmp_path, size, suffix):
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    grey = np.broadcast_to(ramp if size[0] > size[1] else ramp[:, None], size[::-1])
    path = _saved(tmp_path / f"x.{suffix}", Image.fromarray(np.ascontiguousarray(grey)))
    atol = 2 if suffix == "jpg" else 0
    np.testing.assert_allclose(_pixels(path), np.repeat(grey[..., None], 3, -1), atol=atol)


@pytest.mark.parametrize(("limit", "scale"), [(5632, 1), (1000, 2), (200, 4), (60, 8)])
def test_a_jpeg_beyond_the_limit_is_decoded_smaller(tmp_path, monkeypatch, limit, scale):
    rows, columns = np.mgrid[0:64, 0:88]
    smooth = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    path = _saved(tmp_path / "x.jpg", Image.fromarray(smooth), quality=100, subsampling=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    small = _pixels(path)
    expected = smooth.reshape(64 // scale, scale, 88 // scale, scale, 3).mean((1, 3))
    # For a ramp, the scaled transform keeps what a mean over pixels keeps; rounding to YCbCr and
    # back moves blue by three levels at most.
    np.testing.assert_allclose(small, expected, atol=3)


@pytest.mark.slow
def test_a_jpeg_of_20000_by_20000_comes_out_at_a_quarter():
    data = io.BytesIO()
    Image.new("L", (20000, 20000), 90).save(data, "jpeg")
    image = decode_image(data.getvalue(), name="x.jpg")
    assert image.size == (5000, 5000)
    assert image.getextrema() == ((90, 90),) * 3


def test_what_else_is_that_large_is_refused():
    progressive = io.BytesIO()
    Image.new("L", (16, 16)).save(progressive, "jpeg", progressive=True)
    size = b"\xff\xc2\x00\x0b\x08" + struct.pack(">HH", 16, 16)
    assert size in progressive.getvalue()
    larger = size[:5] + struct.pack(">HH", 20000, 20000)
    for data in (progressive.getvalue().replace(size, larger), _png((20000, 20000, 8, 0), [])):
        with pytest.raises(UndecodableImageError, match=r"^x: Image size \(400000000 pixels\)"):
            decode_image(data, name="x")


def test_broken_exif_does_not_lose_the_picture(tmp_path):
    path = _saved(tmp_path / "x.jpg", Image.fromarray(_colours()), exif=b"Exif\x00\x00II*\x00\xff")
    assert _pixels(path).shape == (9, 14, 3)


def _jpeg(size=(64, 48)):
    buffer = io.BytesIO()
    Image.fromarray(_colours(size[1], size[0])).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image at all",
        b"<!DOCTYPE html><html></html>",
        _jpeg()[:400],
        _jpeg()[:-200],
        b"P5 4 4 255\n12",
        b"GIF89a",
    ],
    ids=["empty", "text", "html", "header", "truncated", "short-pgm", "short-gif"],
)
def test_damaged_files(tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UndecodableImageError) as error:
        _decode(path)
    assert error.value.name == str(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    # The address of some object in memory would tell nobody anything.
    assert " at 0x" not in str(error.value)


@pytest.mark.parametrize("compression", [0, 1, 2])
@pytest.mark.parametrize("suffix", ["bmp", "dib"])
def test_a_large_bmp_is_not_run_length_encoded(tmp_path, monkeypatch, suffix, compression):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(_colours(60, 90)[..., 0]).convert("P").save(path)
    data = bytearray(path.read_bytes())
    header = 14 if suffix == "bmp" else 0
    data[header + 16] = compression
    path.write_bytes(data)
    assert _pixels(path).shape == (60, 90, 3)
    monkeypatch.setattr(decode, "LARGE", 60 * 90 - 1)
    if compression:
        with pytest.raises(UndecodableImageError, match=r"run-length .* more than 5,399 pixels$"):
            _decode(path)
    else:
        assert _pixels(path).shape == (30, 45, 3)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = _saved(tmp_path / "b.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(UndecodableImageError, match="bomb"):
        _decode(path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_large_images_leave_smaller_and_upright(tmp_path, monkeypatch, mode):
    rows, columns = np.mgrid[0:60, 0:90]
    grey = Image.fromarray((rows * 2 + columns).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _saved(tmp_path / "a.png", grey, exif=exif)
    whole = _pixels(path)
    monkeypatch.setattr(decode, "LARGE", 60 * 90 // 4)
    small = _pixels(path)
    assert small.shape == (45, 30, 3)
    # The mean of each four pixels, to the rounding of it and of the transparency.
    means = whole.reshape(45, 2, 30, 2, 3).mean((1, 3))
    np.testing.assert_allclose(small, means, atol=1)


def test_no_format_that_runs_a_program_is_read(tmp_path, monkeypatch):
    def runs(*arguments, **_):
        raise AssertionError(arguments)

    monkeypatch.setattr(subprocess, "Popen", runs)
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(UndecodableImageError, match="not an image"):
        _decode(tmp_path / "a.jpg")


def test_odd_files_are_not_remarked_on(tmp_path):
    """Neither by Pillow's warnings nor on the terminal by libtiff, which is no Python."""
    grey = Image.new("L", (64, 64), 7)
    odd = _saved(tmp_path / "odd.jpg", grey, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05")
    bad = tmp_path / "bad.tiff"
    _saved(bad, grey, compression="tiff_lzw")
    data = bytearray(bad.read_bytes())
    data[8:40] = bytes(32)
    bad.write_bytes(data)
    code = (
        "import sys; from must_jax.data.decode import *\n"
        "for path in sys.argv[1:]:\n"
        "    try: decode_image(open(path, 'rb').read(), name='x'); print('decoded')\n"
        "    except UndecodableImageError: print('skipped')"
    )
    command = [sys.executable, "-c", code, odd, bad]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["decoded", "skipped"]
    assert done.stderr == ""


def test_floating_point_has_no_range(tmp_path):
    path = _saved(tmp_path / "f.tiff", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(UndecodableImageError, match="floating-point"):
        _decode(path)


def test_error_crosses_process_boundaries():
    error = pickle.loads(pickle.dumps(UndecodableImageError("a.jpg", "cut short")))
    assert str(error) == "a.jpg: cut short"


def test_what_is_no_image_has_the_same_reason_in_training():
    for content in (
        b"",
        b"no image",
        _jpeg()[:400],
        _jpeg()[:-200],
        _png((20000, 20000, 8, 0), []),
    ):
        reasons = []
        for read in (
            decode_image,
            lambda data, name: decode_pixels(data, name=name, smallest_side=9),
        ):
            with pytest.raises(UndecodableImageError) as error:
                read(content, name="x")
            reasons.append(str(error.value))
        assert reasons[0] == reasons[1]
