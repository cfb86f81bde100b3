"""Images that the host pipeline makes in a CPU-second, beside PyTorch's DataLoader and Pillow.

    python benchmarks/host_pipeline.py

Both sides read the same JPEG files and make a weak view, a strong view with RandAugment and a patch
mask of each: this project by its own loader, the peer by a DataLoader over Pillow's decoding and
resizing and timm's RandAugment, whose views end as normalised float tensors, as timm's transforms
do. Both work in the caller's thread, so that all their time is seen and no two threads get in each
other's way; what two threads take is printed beside it. Seconds are of CPU, of all threads; sides
run in turns. Decoding alone reads each file and decodes it whole, by the decoder of the pipeline.
"""

import argparse
import ast
import contextlib
import functools
import importlib.util
import math
import pathlib
import random
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from must_jax.data import pipeline
from must_jax.data.randaugment import RandAugment
from must_jax.data.sources import Classes, open_source

# Each file stands in the folder under several names: Grain's shuffle takes 0.3 ms a record of 64
# records, a hundredth of that of thousands.
SIZE, ROUNDS, NAMES = 224, 3, 4
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILL = (123, 117, 104)


def write_photos(folder: pathlib.Path, *, size: tuple[int, int], count: int) -> list[pathlib.Path]:
    """JPEGs of scikit-learn's two photographs with a sensor's noise, each under `NAMES` names."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    paths = []
    for i in range(count):
        image = photos[i % 2].resize(size, Image.Resampling.LANCZOS)
        noise = rng.normal(0, 6, (size[1], size[0], 3))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        names = [folder / f"{name}_{i:04}.jpg" for name in range(NAMES)]
        Image.fromarray(pixels).save(names[0], "JPEG", quality=95)
        for name in names[1:]:
            name.hardlink_to(names[0])
        paths += names
    return paths


def timm_auto_augment() -> Any:
    """Timm's RandAugment, whose package can't be imported without torchvision."""
    (root,) = importlib.util.find_spec("timm").submodule_search_locations
    source = (pathlib.Path(root) / "data" / "auto_augment.py").read_text()
    module = types.ModuleType("auto_augment")
    sys.modules["auto_augment"] = module
    exec(compile(ast.parse(source), "auto_augment.py", "exec"), module.__dict__)
    return module


class PeerDataset(torch.utils.data.Dataset):
    """Both views as a torch user makes them."""

    def __init__(self, paths: list[pathlib.Path]) -> None:
        """Reads `paths`."""
        self.paths = paths
        options = {"translate_pct": 0.45, "img_mean": FILL, "interpolation": Image.BICUBIC}
        self.augment = timm_auto_augment().rand_augment_transform("rand-m9-mstd0.5-inc1", options)
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))

    def __len__(self) -> int:
        """How many."""
        return len(self.paths)

    def to_tensor(self, image: Image.Image) -> torch.Tensor:
        """Normalised, channels first."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return (pixels.float().div(255) - self.mean) / self.std

    def __getitem__(self, i: int) -> Any:
        """Weak view, strong view, mask."""
        image = Image.open(self.paths[i]).convert("RGB")
        scale = SIZE / min(image.size)
        weak = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.BICUBIC
        )
        left = random.randint(0, weak.width - SIZE)
        top = random.randint(0, weak.height - SIZE)
        weak = weak.crop((left, top, left + SIZE, top + SIZE))
        while True:
            area = random.uniform(0.3, 1) * image.width * image.height
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if width <= image.width and height <= image.height:
                break
        left = random.randint(0, image.width - width)
        top = random.randint(0, image.height - height)
        strong = image.crop((left, top, left + width, top + height))
        strong = strong.resize((SIZE, SIZE), Image.BICUBIC)
        if random.random() < 0.5:
            strong = strong.transpose(Image.FLIP_LEFT_RIGHT)
        with contextlib.suppress(ValueError):  # Posterize with 0 bits, which this Pillow refuses
            strong = self.augment(strong)
        mask = np.zeros(49, bool)
        mask[np.random.permutation(49)[:15]] = True
        return self.to_tensor(weak), self.to_tensor(strong), mask


def run_peer(paths: list[pathlib.Path]) -> int:
    """One epoch by the peer; how many images."""
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(PeerDataset(paths), batch_size=32, shuffle=True)
    return sum(len(weak) for weak, _, _ in loader)


def run_ours(paths: list[pathlib.Path], *, num_threads: int) -> int:
    """One epoch by this project's loader; how many images."""
    source = open_source(str(paths[0].parent), classes=Classes(("a",)), labels="auto")
    with pipeline.train_loader(
        source,
        batch_size=32,
        image_size=SIZE,
        patch_size=16,
        mask_patch_size=32,
        mask_ratio=0.3,
        crop_area=(0.3, 1.0),
        flip_probability=0.5,
        rand_augment=RandAugment(),
        fill_color=FILL,
        seed=0,
        num_epochs=1,
        num_threads=num_threads,
    ) as batches:
        return sum(len(batch["image_weak"]) for batch in batches)


def run_decoding(paths: list[pathlib.Path]) -> int:
    """Decodes every file, whole."""
    for path in paths:
        simplejpeg.decode_jpeg(path.read_bytes())
    return len(paths)


def rate(run: Callable[[list[pathlib.Path]], int], paths: list[pathlib.Path]) -> float:
    """Images a CPU-second."""
    started = time.process_time()
    count = run(paths)
    return count / (time.process_time() - started)


def main() -> None:
    """Prints both sides and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    sides: dict[str, Callable[[list[pathlib.Path]], int]] = {
        "must_jax": functools.partial(run_ours, num_threads=0),
        "its 2 threads": functools.partial(run_ours, num_threads=2),
        "torch": run_peer,
        "decoding alone": run_decoding,
    }
    for size, count, wanted in (((500, 375), 256, 2.5), ((2000, 1500), 32, 5.0)):
        with tempfile.TemporaryDirectory() as folder:
            paths = write_photos(pathlib.Path(folder), size=size, count=count)
            kilobytes = statistics.mean(path.stat().st_size for path in paths) / 1e3
            for side in sides.values():
                side(paths[:32])
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(ROUNDS):
                for name, side in sides.items():
                    rates[name].append(rate(side, paths))
        medians = {name: statistics.median(found) for name, found in rates.items()}
        print(f"{size[0]}x{size[1]} JPEGs of {kilobytes:.0f} KB, images a CPU-second:")
        for name, found in rates.items():
            print(f"  {name:15} {medians[name]:7.1f} ({min(found):.1f} to {max(found):.1f})")
        ours = medians["must_jax"]
        print(f"  must_jax / torch {ours / medians['torch']:.2f}x, at least {wanted}x wanted")
        if size[0] == 500:
            decoding = medians["decoding alone"]
            print(f"  must_jax / decoding alone {ours / decoding:.2f}x, at least 0.5x wanted")


if __name__ == "__main__":
    main()
