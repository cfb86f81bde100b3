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

from must_jax.data import jpeg
from must_jax.data.budget import Budget
from must_jax.data.colours import prepare, to_8_bits, to_rgb
from must_jax.data.headers import check_header

# Of Pillow's readers, those for pictures that are kept as files: the others are seldom used, so
# that their faults are found late, and one (EPS) runs a program on what it is given.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# Images of more pixels leave smaller, and are decoded while no other is: a few bytes may stand for
# gigabytes, in each of many threads.
LARGE = 2**25
# Pixels that are decoded at a time, of images that aren't small; one takes 24 bytes on the way.
_in_flight = Budget(2**26)
_SMALL = 2**20
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
_READ_BY_PIXEL = ("BMP", "DIB")  # where they are run-length encoded, in a second per 9 million
_RUN_LENGTH = (1, 2)  # of their kinds of compression
_EXIF = b"Exif\0\0"
MAX_EXIF = 100  # segments, each of which Pillow copies with all before it
_LARGEST_EXIF = 2**22  # bytes with the orientation; Pillow makes an object of each number there
_FEW_BYTES = 2**20  # of which these copies take a second at most, and are not counted
MAX_PIECES = 2**16  # of a TIFF, each of which Pillow decodes as a picture


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
    baseline JPEG in one scan can be decoded at a half, a quarter or an eighth of its size, and is,
    at the largest that keeps to `LARGE` pixels. All others are refused. What is decoded to more
    than `LARGE` pixels is then made smaller by a whole number, so that no more than these are left.

    Args:
        data: An image file's bytes, in one of `FORMATS`.
        name: What to call it in messages.

    Returns:
        A Pillow image of mode "RGB", at least 1 x 1.

    Raises:
        UndecodableImageError: The image is damaged or cut short, too large, or has no defined
            range (floating point; signed or 32-bit integers).
    """
    if not data:
        raise UndecodableImageError(name, "empty")
    try:
        jpeg.check_scans(data)
        return _in_flight.once_more(_pillow_image, data)
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
        smallest_side: A baseline or progressive JPEG comes at the smallest of its whole, half,
            quarter or eighth size whose short side has this many pixels; at its whole size where
            none does.

    Returns:
        uint8 (H, W, 3), RGB; the calling thread's next call may overwrite it.

    Raises:
        UndecodableImageError: As by `decode_image`.
    """
    try:
        jpeg.check_scans(data)
        pixels = _in_flight.once_more(_jpeg_pixels, data, smallest_side)
    except MemoryError as error:  # the other way's pixels are not quite the same
        raise UndecodableImageError(name, "MemoryError") from error
    # The fast way takes no file with the slightest flaw; Pillow mends it or tells what it is.
    except Exception:
        pixels = None
    return np.asarray(decode_image(data, name=name)) if pixels is None else pixels


def _pillow_image(data: bytes) -> Image.Image:
    with open_image(data) as image:
        prepare(image)
        with _room_for(math.prod(image.size)):
            image.load()
            small = to_8_bits(image)
            # A colour that stands for transparency is no longer itself on average.
            if small.mode in _AVERAGED and "transparency" not in small.info:
                small = _smaller(small)
            return _smaller(to_rgb(_upright(small, _orientation(image))))


def _jpeg_pixels(data: bytes, smallest_side: int) -> np.ndarray | None:
    """The pixels of a JPEG in grey or colour; None for all else, and errors of all kinds."""
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    frame = jpeg.read_frame(data)
    if space not in ("Gray", "YCbCr", "RGB") or frame is None:
        return None
    held = height * width if frame.is_held_whole else 0
    scale = next((s for s in (8, 4, 2) if math.ceil(min(height, width) / s) >= smallest_side), 1)
    height, width = math.ceil(height / scale), math.ceil(width / scale)
    held = max(held, height * width)
    if held > LARGE:
        return None
    with _room_for(held):
        pixels = simplejpeg.decode_jpeg(
            data, min_height=height, min_width=width, buffer=_buffer(height * width * 3)
        )
    orientation = None
    if frame.has_app1:
        with Image.open(_Patient(data), formats=("JPEG",)) as image:
            orientation = _orientation(image)
    if orientation in _UPRIGHT:
        return np.asarray(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))
    return pixels


def _room_for(pixels: int) -> contextlib.AbstractContextManager[None]:
    """Waits until so many pixels may be decoded, which the usual image's may at once."""
    if pixels <= _SMALL:
        return contextlib.nullcontext()
    return _in_flight.taken(pixels if pixels <= LARGE else _in_flight.units)


def _buffer(size: int) -> np.ndarray:
    """Bytes to decode into: a thread's own, warm in its cache, unless they are many."""
    if size > _LARGEST_BUFFER:
        return np.empty(size, np.uint8)
    if not hasattr(_local, "buffer"):
        _local.buffer = np.empty(_LARGEST_BUFFER, np.uint8)
    return _local.buffer


class _Patient(io.BytesIO):
    """A file for Pillow that ends its patience with what has it read for minutes."""

    def __init__(self, data: bytes):
        """Refuses JPEGs of hundreds of EXIF segments."""
        is_large = len(data) > _FEW_BYTES
        if is_large and data.startswith(jpeg.START) and data.count(_EXIF) > MAX_EXIF:
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
            _check_runs(image)
            file.allowed += 2 * math.prod(image.size)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _spare(image)
        return image
    except Image.DecompressionBombError:
        scaled = _scaled_jpeg(data)
        if scaled is None:
            raise
        return scaled


def _check_runs(image: Image.Image) -> None:
    """Refuses a run-length encoded image that Pillow, in Python, takes many seconds for.

    Raises:
        ValueError: It has more than `LARGE` pixels.
    """
    if image.info.get("compression") in _RUN_LENGTH and math.prod(image.size) > LARGE:
        raise ValueError(f"run-length encoded, and more than {LARGE:,} pixels")


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
    frame = jpeg.read_frame(data)
    if frame is None or frame.is_held_whole:
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
