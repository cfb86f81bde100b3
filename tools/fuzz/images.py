"""Damaged image files and bombs, through decoding and through both of the run's loaders."""

import io
import random
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.mutations import make_odd_file, mutate_bytes
from fuzz.worker import captured
from must_jax.data.decode import UndecodableImageError
from must_jax.data.pipeline import eval_loader, train_loader
from must_jax.data.randaugment import RandAugment
from must_jax.data.sources import Source, decode_record, open_source

SKIPPED, DECODED = "skipped", "decoded"
# The five that nearly all images come in have two turns each.
FORMATS = (
    *("jpg", "png", "webp", "bmp", "tiff", "gif", "jpg", "png", "webp", "ppm", "bmp", "gif"),
    *("avif", "jp2", "dib"),
)
# Of those, the endings by which a folder's images are told; the others come under one of these.
_OWN_ENDING = {"jpg", "png", "webp", "bmp", "gif", "tiff", "ppm"}

_SIZE, _PATCH = 16, 4
_WHOLE = 5  # images beside the damaged one


def _pixels(rng: np.random.Generator, bands: int) -> np.ndarray:
    """Smooth colours and some noise, so that every coder has something to do."""
    y, x = np.mgrid[0:48, 0:64]
    waves = [127 + 100 * np.sin(x / (3 + band) + y / 7) for band in range(bands)]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 8, (48, 64, bands)), 0, 255).astype(np.uint8)


def _seeds() -> dict[str, list[bytes]]:
    """Whole files of every format, in the kinds that its coders treat apart."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(_pixels(rng, 3))
    rgba = _with_alpha(rgb)
    grey, palette = rgb.convert("L"), rgb.convert("P")
    deep = Image.fromarray(_pixels(rng, 1)[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    kinds: dict[str, list[tuple[Image.Image, dict]]] = {
        "jpg": [
            (rgb, {"exif": exif}),
            (rgb, {"progressive": True}),
            (grey, {}),
            (rgb.convert("CMYK"), {}),
            (rgb, {"restart_marker_rows": 1}),
        ],
        "png": [(rgb, {}), (rgba, {"exif": exif}), (palette, {"transparency": 3}), (deep, {})],
        "webp": [(rgb, {}), (rgba, {"lossless": True}), (rgb, {"exif": exif})],
        "bmp": [(rgb, {}), (palette, {}), (rgb.convert("1"), {})],
        "gif": [(palette, {}), (palette, {"save_all": True, "append_images": [palette] * 2})],
        "tiff": [
            (rgb, {}),
            (rgb, {"compression": "tiff_lzw"}),
            (rgb, {"compression": "jpeg"}),
            (deep, {"compression": "tiff_adobe_deflate"}),
            (rgb.convert("1"), {"compression": "group4"}),
        ],
        "ppm": [(rgb, {}), (grey, {})],
        "avif": [
            (rgb, {}),
            (rgba, {"quality": 100}),
            (rgb, {"exif": exif, "subsampling": "4:0:0"}),
        ],
        "jp2": [
            (rgb, {}),
            (rgba, {"irreversible": True, "quality_layers": [20, 5]}),
            (grey, {"tile_size": (32, 32), "no_jp2": True}),
            (deep, {}),
        ],
        "dib": [(rgb, {}), (palette, {})],
    }
    seeds: dict[str, list[bytes]] = {}
    for suffix, images in kinds.items():
        for image, options in images:
            file = io.BytesIO()
            image.save(file, Image.registered_extensions()[f".{suffix}"], **options)
            seeds.setdefault(suffix, []).append(file.getvalue())
    return seeds


def _with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _png(width: int, height: int, *, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header)
    return start + data + _png_chunk(b"IEND", b"")


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def _claiming(suffix: str, mark: bytes, skip: int) -> bytes:
    """A small file that says 2**31 - 1 pixels a side, `skip` bytes after the mark's start."""
    data = bytearray(_huge(suffix, (8, 8)))
    at = data.index(mark) + skip
    data[at : at + 8] = struct.pack(">ii", 2**31 - 1, 2**31 - 1)
    return bytes(data)


def _huge(suffix: str, size: tuple[int, int], mode: str = "L") -> bytes:
    file = io.BytesIO()
    options = {"compression": "tiff_adobe_deflate"} if suffix == "tiff" else {}
    image = Image.new(mode, size)
    image.save(file, Image.registered_extensions()[f".{suffix}"], **options)
    return file.getvalue()


def _layers() -> bytes:
    """A JPEG 2000 that says it has 65,535 layers, in precincts of 32 x 32."""
    file = io.BytesIO()
    Image.new("L", (2048, 2048)).save(file, "JPEG2000", precinct_size=(32, 32))
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\x52") + 6
    data[at : at + 2] = b"\xff\xff"
    return bytes(data)


def _strips(count: int) -> bytes:
    """A TIFF with a row of pixels for each byte of a list of places."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "TIFF", tiffinfo={278: 1})
    data = bytearray(file.getvalue())
    at = data.index(struct.pack("<H", 273))
    data[at : at + 12] = struct.pack("<HHLL", 273, 1, count, len(data))
    return bytes(data) + b"\x08" * count


def _scans(kind: int) -> bytes:
    """A JPEG of 1.6 gigapixels in several scans, for which all coefficients would be kept."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", progressive=True)
    head, _, rest = file.getvalue().partition(b"\xff\xc2")
    head += bytes([0xFF, kind]) + rest[:3] + struct.pack(">HH", 40_000, 40_000)
    tables, first, *scans = rest[7:].split(b"\xff\xda")
    # Its first scan has all three colours: to others than progressive ones, it is the whole.
    return head + b"\xff\xda".join([tables, *([first] if kind == 0xC2 else []), *scans])


def _runs() -> bytes:
    """A run-length encoded BMP, a pixel and the end of the row in each."""
    data = _huge("bmp", (8, 8))
    size, kind = struct.pack("<ii", 13_000, 13_700), struct.pack("<I", 1)
    return data[:18] + size + data[26:30] + kind + data[34:1078] + b"\1\1\0\0" * 13_700


def _behind_start(data: bytes) -> bytes:
    """A JPEG with more behind its first mark."""
    jpeg = _huge("jpg", (8, 8))
    return jpeg[:2] + data + jpeg[2:]


_MANY = 2**25
# Files of a few bytes or kilobytes that stand for gigabytes, or for another program's work.
BOMBS: dict[str, Callable[[], bytes]] = {
    "png_2e9_pixels": lambda: _png(2**31 - 1, 1),
    "png_1e9_pixels": lambda: _png(32_000, 32_000),
    "png_unpacks_large": lambda: _png(
        64, 64, data=_png_chunk(b"IDAT", zlib.compress(bytes(200 * 2**20), 9))
    ),
    "png_text_unpacks_large": lambda: _png(
        8,
        8,
        data=_png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 * 2**20), 9))
        + _png_chunk(b"IDAT", zlib.compress(bytes(8 * 25), 9)),
    ),
    "png_100_megapixels": lambda: _huge("png", (10_000, 10_000)),
    "tiff_100_megapixels": lambda: _huge("tiff", (10_000, 10_000)),
    "gif_60_megapixels": lambda: _huge("gif", (60_000, 1_000), "P"),
    "webp_16000": lambda: _huge("webp", (16_000, 4_000), "RGB"),
    "bmp_claims": lambda: _huge("bmp", (8, 8))[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1),
    "gif_claims": lambda: b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0" + b"\xff" * 4 + b"\0",
    "avif_claims": lambda: _claiming("avif", b"ispe", 8),
    "avif_64_megapixels": lambda: _huge("avif", (8_000, 8_000)),
    "jp2_claims": lambda: _claiming("jp2", b"\xff\x51", 6),
    "jp2_header_claims": lambda: _claiming("jp2", b"ihdr", 4),
    "jp2_64_megapixels": lambda: _huge("jp2", (8_000, 8_000)),
    "jp2_layers": _layers,
    "jpeg_progressive": lambda: _scans(0xC2),
    "jpeg_scans": lambda: _scans(0xC0),
    "bmp_runs": _runs,
    "tiff_strips": lambda: _strips(2**23),
    "ppm_claims": lambda: b"P6 99999 99999 255\n",
    "ppm_digits": lambda: b"P6 " + b"9" * 100_000 + b" 1 255\n",
    # Megabytes that Pillow reads byte by byte, or copies again for each piece.
    "ppm_comment": lambda: b"P6\n#" + b"x" * _MANY + b"\n1 1\n255\nabc",
    "jpeg_fill": lambda: _behind_start(b"\xff" * _MANY),
    "jpeg_exif": lambda: _behind_start(b"\xff\xe1\0\x09Exif\0\0y" * (_MANY // 11)),
    "jpeg_comments": lambda: _behind_start(b"\xff\xfe\0\x03y" * (_MANY // 5)),
    "png_pieces": lambda: _png(64, 64, data=_png_chunk(b"IDAT", b"") * (_MANY // 12)),
    "gif_comments": lambda: _huge("gif", (8, 8)).replace(
        b",\0", b"\x21\xfe\x01a\0" * (_MANY // 5) + b",\0", 1
    ),
    "eps_runs_ghostscript": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n%%EOF\n"
    ),
    "svg_entities": lambda: b'<!DOCTYPE x [<!ENTITY a "&b;&b;">]><svg>&a;</svg>',
    "empty": lambda: b"",
    "web_page": lambda: b"<html><script>alert(1)</script></html>",
}  # fmt: skip


class Images:
    """Cases of all formats in turn: one damaged file among whole ones.

    What is done starts with the format, or with `bomb` or `no file`.
    """

    def __init__(self) -> None:
        """Makes the whole files."""
        self._seeds = _seeds()
        self._bombs = sorted(BOMBS)

    def prepare(self, index: int, rng: random.Random, folder: Path) -> str:
        """Writes a damaged image; every fortieth is a bomb."""
        suffix = FORMATS[index % len(FORMATS)]
        whole = rng.choice(self._seeds[suffix])
        if index % 40 == 39:
            name = self._bombs[index // 40 % len(self._bombs)]
            data, what = BOMBS[name](), f"bomb: {name}"
        elif rng.random() < 0.1:
            other = rng.choice(self._seeds[rng.choice(FORMATS)])
            place = rng.randrange(len(whole))
            data, what = whole[:place] + other[rng.randrange(len(other)) :], f"{suffix}: spliced"
        else:
            data, what = mutate_bytes(whole, rng)
            what = f"{suffix}: {what}"
        damaged = folder / f"damaged.{suffix if suffix in _OWN_ENDING else 'jpg'}"
        damaged.write_bytes(data)
        if rng.random() < 0.03:
            what = f"no file: {make_odd_file(damaged, rng)}"
        for i in range(_WHOLE):
            (folder / f"whole{i}.png").write_bytes(self._seeds["png"][0])
        return what

    def run(self, folder: Path) -> tuple[str, str]:
        """Decodes it as it is, and has both loaders read the folder."""
        # With the filters of a run.
        with warnings.catch_warnings(record=True) as told:
            (kind, message), output, errors = captured(_read, folder)
        if output or errors:
            return "noise", f"{output}{errors}"
        if told:
            return "warning", str(told[0].message)
        shutil.rmtree(folder)
        return kind, message


def _read(folder: Path) -> tuple[str, str]:
    source = open_source(folder)
    kind, message = DECODED, ""
    try:
        image = decode_record(source, 0)
        if image.mode != "RGB" or min(image.size) < 1:
            return "not RGB", f"{image.mode} {image.size}"
    except UndecodableImageError as error:
        kind, message = SKIPPED, str(error)
        if not message.isprintable() or len(message) > 500 or " at 0x" in message:
            return "unprintable or long", message
    failed = [0] if kind == SKIPPED else []
    for name, found in (("train", _train(source)), ("eval", _evaluate(source))):
        if found != failed:
            return "loaders differ", f"{name}: {found}, expected {failed}; {message}"
    return kind, message


def _train(source: Source) -> list[int]:
    with train_loader(
        source,
        batch_size=len(source),
        image_size=_SIZE,
        patch_size=_PATCH,
        mask_patch_size=2 * _PATCH,
        mask_ratio=0.5,
        crop_area=(0.3, 1.0),
        flip_probability=0.5,
        rand_augment=RandAugment(num_ops=2, magnitude=9, magnitude_std=0.5),
        fill_color=(127, 127, 127),
        seed=0,
        num_epochs=1,
        num_threads=2,
        prefetch=1,
    ) as loader:
        (batch,) = loader
    assert batch["image_weak"].shape == batch["image_strong"].shape == (6, _SIZE, _SIZE, 3)
    return sorted({record for record in batch["failed"].tolist() if record >= 0})


def _evaluate(source: Source) -> list[int]:
    with eval_loader(
        source, batch_size=len(source), image_size=_SIZE, num_threads=2, prefetch=1
    ) as loader:
        (batch,) = loader
    return [record for record in batch["failed"].tolist() if record >= 0]
