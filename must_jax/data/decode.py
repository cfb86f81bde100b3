"""Image files to 8-bit RGB."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import math
import threading
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from must_jax.data.headers import check_header

# Of Pillow's readers, those for pictures that are kept as files: the others are seldom used, so
# that their faults are found late, and one (EPS) runs a program on what it is given.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# Images of more pixels are decoded one after the other, and leave smaller: a few kilobytes may
# stand for gigabytes, in each of many threads.
LARGE = 2**25
_large_ones = threading.Lock()
# Modes whose numbers can be averaged.
_AVERAGED = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_LARGEST_BUFFER = 1 << 22
_local = threading.local()


def _hush() -> None:
    """Keeps Pillow, and the library below it, from remarks on every odd file.

    What makes a file of no use is told once, by `UndecodableImageError`.
    """
    warnings.filterwarnings("ignore", module=r"PIL\b")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # libtiff prints lines by the hundred. Where it is no shared library there is no such symbol.
    with contextlib.suppress(OSError, AttributeError):
        libtiff = ctypes.CDLL(Image.core.__file__)
        for kind in ("Error", "Warning"):
            set_handler = libtiff[f"TIFFSet{kind}Handler"]
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


_hush()

# Of a file by Pillow, which reads comments, padding and empty pieces byte by byte: a million take a
# second or two, and a PNG of 256 MiB in the usual pieces of 8 KiB takes a tenth.
MAX_READS = 2**20
_READ_BY_PIXEL = ("BMP", "DIB")  # where they are run-length encoded
_EXIF = b"Exif\0\0"
MAX_EXIF = 100  # segments, each of which Pillow copies with all before it
_LARGEST_EXIF = 2**22  # bytes with the orientation; Pillow makes an object of each number there
_FEW_BYTES = 2**20  # of which these copies take a second at most, and are not counted
_MOST_SEGMENTS = 1000  # before a JPEG's pixels, to look through for one that has EXIF
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"  # what a JPEG and each of its scans start with
MAX_PIECES = 2**16  # of a TIFF, each of which Pillow decodes as a picture
MAX_SCANS = 100  # of a JPEG; progressive ones have ten or so, and their thumbnails too


class UndecodableImageError(Exception):
    """An image that is missing, unreadable or of no use.

    Attributes:
        name: Of the image, as its source tells it.
        reason: What is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode_image(data: bytes, *, name: str) -> Image.Image:
    """Decodes one image file.

    The first frame of an animation, turned upright by its EXIF orientation. Transparent pixels are
    laid on white, as `transformers`' CLIP image processor does; 16-bit grey is scaled to 8 bits.

    An image beyond Pillow's decompression-bomb limit (179 million pixels) would take gigabytes. A
    baseline JPEG can be decoded at a half, a quarter or an eighth of its size, and is, at the
    largest that keeps to `LARGE` pixels. All others are refused. What is decoded to more than
    `LARGE` pixels is then made smaller by a whole number, so that no more than these are left.

    Args:
        data: An image file's bytes, in one of `FORMATS`.
        name: What to call it in messages.

    Returns:
        A Pillow image of mode "RGB", at least 1 x 1.

    Raises:
        UndecodableImageError: The image is damaged or cut short, too large, or has no defined
            range (floating point).
    """
    if not data:
        raise UndecodableImageError(name, "empty")
    _check_scans(data, name)
    try:
        with open_image(data) as image:
            if math.prod(image.size) <= LARGE:
                image.load()
                return _to_rgb(_upright(image, _orientation(image)))
            with _large_ones:
                image.load()
                small = _smaller(image) if image.mode in _AVERAGED else image
                return _smaller(_to_rgb(_upright(small, _orientation(image))))
    except UnidentifiedImageError as error:
        raise UndecodableImageError(name, "not an image, or of an unknown format") from error
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, DecompressionBombError
    # and more on damaged files; whichever it is, these bytes have no pixels for us.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UndecodableImageError(name, reason) from error


def decode_pixels(data: bytes, *, name: str, smallest_side: int) -> np.ndarray:
    """Decodes one image file as `decode_image` does, JPEGs faster and no larger than needed.

    Args:
        data: An image file's bytes, in one of `FORMATS`.
        name: What to call it in messages.
        smallest_side: A JPEG comes at the smallest of its whole, half, quarter or eighth size whose
            short side has this many pixels; at its whole size where none does.

    Returns:
        uint8 (H, W, 3), RGB; the calling thread's next call may overwrite it.

    Raises:
        UndecodableImageError: As by `decode_image`.
    """
    _check_scans(data, name)
    try:
        pixels = _jpeg_pixels(data, smallest_side)
    # The fast way takes no file with the slightest flaw; Pillow mends it or tells what it is.
    except Exception:
        pixels = None
    return np.asarray(decode_image(data, name=name)) if pixels is None else pixels


def _check_scans(data: bytes, name: str) -> None:
    """Refuses a JPEG that is decoded hundreds of times over: each scan takes all pixels' time."""
    if data.startswith(_JPEG) and data.count(_SCAN) > MAX_SCANS:
        raise UndecodableImageError(name, f"more than {MAX_SCANS} scans")


def _jpeg_pixels(data: bytes, smallest_side: int) -> np.ndarray | None:
    """The pixels of a JPEG in grey or colour; None for all else, and errors of all kinds."""
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    if space not in ("Gray", "YCbCr", "RGB"):
        return None
    scale = next((s for s in (8, 4, 2) if math.ceil(min(height, width) / s) >= smallest_side), 1)
    height, width = math.ceil(height / scale), math.ceil(width / scale)
    if height * width > LARGE:
        return None
    pixels = simplejpeg.decode_jpeg(
        data, min_height=height, min_width=width, buffer=_buffer(height * width * 3)
    )
    orientation = None
    if _has_app1(data):
        with Image.open(_Patient(data), formats=("JPEG",)) as image:
            orientation = _orientation(image)
    if orientation in _UPRIGHT:
        return np.asarray(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))
    return pixels


def _buffer(size: int) -> np.ndarray:
    """Bytes to decode into: a thread's own, warm in its cache, unless they are many."""
    if size > _LARGEST_BUFFER:
        return np.empty(size, np.uint8)
    if not hasattr(_local, "buffer"):
        _local.buffer = np.empty(_LARGEST_BUFFER, np.uint8)
    return _local.buffer


def _has_app1(data: bytes) -> bool:
    """Whether a JPEG may have the segment that EXIF and XMP tell the orientation in."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        if data[at] != 0xFF or not (0xC0 <= data[at + 1] < 0xD0 or 0xDA < data[at + 1] < 0xFF):
            break
        if data[at + 1] == 0xE1:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    # The pixels follow, if nothing is odd.
    return data[at : at + 2] != _SCAN


class _Patient(io.BytesIO):
    """A file for Pillow that ends its patience with what has it read for minutes."""

    def __init__(self, data: bytes):
        """Refuses JPEGs of hundreds of EXIF segments."""
        is_large = len(data) > _FEW_BYTES
        if is_large and data.startswith(_JPEG) and data.count(_EXIF) > MAX_EXIF:
            raise ValueError(f"more than {MAX_EXIF} EXIF segments")
        super().__init__(data)
        self.allowed = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """As by `io.BytesIO`, but for the number of calls."""
        self.allowed -= 1
        if self.allowed < 0:
            raise ValueError(f"its header or its pieces take more than {MAX_READS} reads")
        return super().read(size)


def open_image(data: bytes) -> Image.Image:
    """An image of which only the header has been read; Pillow's own errors."""
    check_header(data)
    file = _Patient(data)
    try:
        image = Image.open(file, formats=FORMATS)
        if image.format in _READ_BY_PIXEL:
            file.allowed += 2 * math.prod(image.size)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _spare(image)
        return image
    except Image.DecompressionBombError:
        scaled = _scaled_jpeg(data)
        if scaled is None:
            raise
        return scaled


def _spare(image: TiffImagePlugin.TiffImageFile) -> None:
    """Keeps Pillow from a TIFF's camera data, all of which it reads behind the pixels.

    Raises:
        ValueError: It has more pieces than can be worth it.
    """
    if len(image.tile) > MAX_PIECES:
        raise ValueError(f"more than {MAX_PIECES:,} pieces")
    for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        image.getexif().pop(directory, None)


def _scaled_jpeg(data: bytes) -> Image.Image | None:
    """A JPEG, set to be decoded within the limit; None for what is no JPEG or can't be."""
    try:
        image = JpegImagePlugin.JpegImageFile(_Patient(data))
    except SyntaxError:
        return None
    # A progressive one is held in memory whole at any scale.
    if "progressive" in image.info:
        return None
    limit = min(LARGE, 2 * (Image.MAX_IMAGE_PIXELS or LARGE))
    scale = next((s for s in (2, 4, 8) if math.prod(image.size) <= limit * s**2), 8)
    image.draft(None, (image.width // scale, image.height // scale))
    return image


def _smaller(image: Image.Image) -> Image.Image:
    """Every so many pixels averaged, so that no more than `LARGE` are left."""
    factor = math.ceil((math.prod(image.size) / LARGE) ** 0.5)
    return image.reduce(factor) if factor > 1 else image


def _orientation(image: Image.Image) -> int | None:
    if len(image.info.get("exif", b"")) > _LARGEST_EXIF:
        return None
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    # A broken tag block says nothing about the pixels, which did decode.
    except Exception:
        return None


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;"):
        # Pillow's own conversion clips at 255 instead of scaling.
        levels = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
