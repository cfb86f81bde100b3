"""Writes scikit-learn's 1,797 handwritten digits as a data set: train without labels, test with.

    python tools/prepare_digits.py TARGET --seed 0

TARGET/train/ holds two thirds of the images in one flat folder, their order and names drawn at
random; TARGET/test/<class>/ holds the other third; TARGET/classes.txt and TARGET/templates.txt name
the classes and the prompts. Light strokes on black, 32 x 32 pixels.
"""

import argparse
import pathlib
import shutil
import sys
import tempfile

import numpy as np
from PIL import Image

# So that the program runs in a checkout that was not installed.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from digits import captions

from must_jax.errors import UserError

IMAGE_SIZE = 32
BRIGHTEST = 16


def enlarge(pixels: np.ndarray) -> Image.Image:
    """An 8 x 8 image with values 0..16 as an RGB picture, enlarged with Pillow's bicubic."""
    grey = np.round(pixels * (255 / BRIGHTEST)).astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).convert("RGB")


def split(labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the test images; a third of each class, rounded, is tested.

    Both come in random order, so that a training image's place says nothing about its class.
    """
    rng = np.random.default_rng(seed)
    test = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        test.append(members[: round(len(members) / 3)])
    held_out = rng.permutation(np.concatenate(test))
    train = rng.permutation(np.setdiff1d(np.arange(len(labels)), held_out))
    return train, held_out


def _write(folder: pathlib.Path, *, seed: int) -> None:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "scikit-learn, which has the digits, is not installed; run: pip install scikit-learn"
        ) from error
    digits = load_digits()
    train, test = split(digits.target, seed=seed)
    (folder / "train").mkdir()
    for place, index in enumerate(train):
        enlarge(digits.images[index]).save(folder / "train" / f"{place:04d}.png")
    for name in captions.WORDS:
        (folder / "test" / name).mkdir(parents=True)
    for place, index in enumerate(test):
        name = captions.WORDS[digits.target[index]]
        enlarge(digits.images[index]).save(folder / "test" / name / f"{place:04d}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in captions.WORDS))
    (folder / "templates.txt").write_text(
        "".join(f"{template}\n" for template in captions.ZERO_SHOT_TEMPLATES)
    )


def prepare(target: pathlib.Path, *, seed: int, overwrite: bool = False) -> None:
    """Writes the data set to `target`, whole or not at all.

    Raises:
      UserError: `target` holds something already and `overwrite` is off.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())) and not overwrite:
        raise UserError(f"{target} is not empty; give another folder, or --overwrite")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = pathlib.Path(scratch) / target.name
        folder.mkdir()
        _write(folder, seed=seed)
        if target.is_dir():
            shutil.rmtree(target)
        folder.replace(target)


def main() -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=pathlib.Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="which third is the test set")
    parser.add_argument("--overwrite", action="store_true", help="replace what TARGET holds")
    arguments = parser.parse_args()
    try:
        prepare(arguments.target, seed=arguments.seed, overwrite=arguments.overwrite)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
