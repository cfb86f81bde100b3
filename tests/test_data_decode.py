"""decode_image: every pixel format to 8-bit RGB, and what counts as undecodable."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps

from must_jax.data.decode import UndecodableImageError, decode_image


def _colours(height=9, width=14, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _saved(path, image, **options):
    image.save(path, **options)
    return str(path)


def _pixels(path):
    image = decode_image(path)
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


def test_cmyk(tmp_path):
    path = _saved(tmp_path / "c.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    np.testing.assert_allclose(_pixels(path)[4, 4], [255, 0, 0], atol=3)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = _saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert _pixels(path)[0, 0].tolist() == [255, 0, 0]


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


def test_broken_exif_does_not_lose_the_picture(tmp_path):
    path = _saved(tmp_path / "x.jpg", Image.fromarray(_colours()), exif=b"Exif\x00\x00II*\x00\xff")
    assert _pixels(path).shape == (9, 14, 3)


def _jpeg(size=(64, 48)):
    buffer = io.BytesIO()
    Image.fromarray(_colours(size[1], size[0])).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no image at all", _jpeg()[:400], _jpeg()[:-200], b"P5 4 4 255\n12", b"GIF89a"],
    ids=["empty", "text", "header", "truncated", "short-pgm", "short-gif"],
)
def test_damaged_files(tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UndecodableImageError) as error:
        decode_image(str(path))
    assert error.value.path == str(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    # The address of some object in memory would tell nobody anything.
    assert " at 0x" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(UndecodableImageError, match=str(path)):
            decode_image(str(path))


def test_decompression_bomb(tmp_path, monkeypatch):
    path = _saved(tmp_path / "b.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(UndecodableImageError, match="bomb"):
        decode_image(path)


def test_floating_point_has_no_range(tmp_path):
    path = _saved(tmp_path / "f.tiff", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(UndecodableImageError, match="floating-point"):
        decode_image(path)


def test_error_crosses_process_boundaries():
    error = pickle.loads(pickle.dumps(UndecodableImageError("a.jpg", "cut short")))
    assert str(error) == "a.jpg: cut short"
