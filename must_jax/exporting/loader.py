"""The classifier that lies beside this file: images in, probabilities and names out.

    pip install jax flatbuffers pillow
    python classifier.py photo.jpg ...

Without files, arrays alone, Pillow isn't needed. It imports nothing else.
"""

import contextlib
import io
import json
import math
import pathlib
import sys

import jax
import jax.export
import numpy as np

PRECISION = 22  # bits of a resampling weight behind the point, as in Pillow
BLOCK = 16  # pixels that are resampled at once, for the cache's sake
LONGEST = 64  # times its width; what is longer is cut before it is resized
WHITE = (255, 255, 255, 255)


class Classifier:
    """Classifies images on the first accelerator that JAX finds.

    Attributes:
      names: of the K classes.
      image_size: side R of the views that the program takes, pixels.
    """

    def __init__(self, folder: str | pathlib.Path = pathlib.Path(__file__).parent):
        """Reads the artifact; each number of images compiles when it comes first.

        Raises:
          ImportError: flatbuffers is missing, by which JAX reads programs.
          OSError: a file of the artifact is.
        """
        folder = pathlib.Path(folder)
        data = bytearray((folder / "program.bin").read_bytes())
        try:
            program = jax.export.deserialize(data)
        except ImportError as error:
            raise ImportError(
                "JAX reads programs by flatbuffers: pip install flatbuffers"
            ) from error
        with np.load(folder / "weights.npz") as weights:
            self._weights = jax.device_put(dict(weights))
        about = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        self.names: list[str] = about["names"]
        self.image_size: int = about["image_size"]
        self._program = jax.jit(program.call)

    def run(self, views: np.ndarray) -> dict[str, np.ndarray]:
        """`logits` and `probabilities`, (B, K) float32, of views (B, R, R, 3) uint8."""
        return jax.device_get(self._program(self._weights, views))

    def __call__(self, images: list[np.ndarray | bytes]) -> np.ndarray:
        """Probabilities (B, K) of images: (H, W, 3) uint8 of any size, or the bytes of files."""
        arrays = [decode(image) if isinstance(image, bytes) else image for image in images]
        views = [view(array, size=self.image_size) for array in arrays]
        return self.run(np.stack(views))["probabilities"]


def decode(data: bytes) -> np.ndarray:
    """An image file as (H, W, 3) uint8: upright, its transparent pixels on white.

    Raises:
      ImportError: Pillow is missing.
      Exception: of many types, where the bytes are no image.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("files are decoded by Pillow: pip install pillow") from error

    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    with contextlib.suppress(Exception):  # a broken tag says nothing about the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        levels = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return np.asarray(image.convert("RGB"))


def view(image: np.ndarray, *, size: int) -> np.ndarray:
    """The centre (R, R, 3) uint8 of an image (H, W, 3) whose short side is resized to R.

    Bicubic and antialiased, bit for bit as the model was evaluated: what Pillow does.
    """
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    whole = int(size * long / short)
    start = (whole - size) // 2
    if long > LONGEST * short:
        first = min(start * short // size, long - short)
        part = slice(first, first + short)
        image = image[:, part] if width == long else image[part]
        whole, start = size, 0
    long_axis = int(width >= height)
    axes = {1 - long_axis: (size, 0), long_axis: (whole, start)}
    saved = [image.shape[axis] - axes[axis][0] for axis in (0, 1)]
    # Pixels are rounded between the two directions, whose order is that of Pillow 13.
    for axis in (0, 1) if saved[0] > max(0, 2 * saved[1]) else (1, 0):
        image = _resample(image, axis, *axes[axis], size)
    return image


def _resample(image: np.ndarray, axis: int, whole: int, start: int, size: int) -> np.ndarray:
    """Pixels `start` to `start + size` of an image that is resized to `whole` along an axis."""
    pixels = np.ascontiguousarray(np.moveaxis(image, axis, 0))
    length = len(pixels)
    stretch = max(length / whole, 1.0)
    centre = (np.arange(start, start + size) + 0.5) * (length / whole)
    first = np.maximum((centre - 2 * stretch + 0.5).astype(int), 0)
    last = np.minimum((centre + 2 * stretch + 0.5).astype(int), length)
    taps = math.ceil(2 * stretch) * 2 + 1
    places = first[:, None] + np.arange(taps)
    weights = _cubic((places - centre[:, None] + 0.5) / stretch) * (places < last[:, None])
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    weights = np.trunc(weights * 2**PRECISION + np.copysign(0.5, weights))
    result = np.empty((size, *pixels.shape[1:]), np.uint8)
    for i in range(0, size, BLOCK):
        block, low, high = slice(i, i + BLOCK), first[i], last[i : i + BLOCK][-1]
        matrix = np.zeros((len(places[block]), high - low + taps))
        np.put_along_axis(matrix, places[block] - low, weights[block], axis=1)
        # Whole numbers, of which float64 loses none.
        total = matrix[:, : high - low] @ pixels[low:high].reshape(high - low, -1).astype(float)
        rounded = np.floor((total + 2 ** (PRECISION - 1)) / 2**PRECISION)
        result[block] = np.clip(rounded, 0, 255).reshape(result[block].shape)
    return np.moveaxis(result, 0, axis)


def _cubic(x: np.ndarray) -> np.ndarray:
    """The Catmull-Rom spline."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def main(paths: list[str]) -> None:
    """Prints the five most probable classes of each file."""
    classifier = Classifier()
    for path in paths:
        data = pathlib.Path(path).read_bytes()
        try:
            image = decode(data)
        except ImportError:
            raise
        except Exception as error:  # Pillow raises many types for what is no image
            raise ValueError(f"{path} is not a readable image") from error
        (row,) = classifier([image])
        best = np.argsort(-row)[:5]
        told = ", ".join(f"{classifier.names[i]} {row[i]:.4f}" for i in best)
        print(f"{path}: {told}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
