"""A run as one program for CPU, CUDA and TPU, its weights beside it, and a loader."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from must_jax.errors import UserError
from must_jax.exporting import loader
from must_jax.exporting.files import ABOUT, about, write_json
from must_jax.exporting.finished import FinishedRun
from must_jax.exporting.weights import pack, unpack
from must_jax.models import encode
from must_jax.train_step import normalize

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "program.bin"
WEIGHTS = "weights.npz"
LOADER = "classifier.py"


def make_program(
    run: FinishedRun, weights: Mapping[str, np.ndarray], *, dtype: str
) -> jax.export.Exported:
    """The program `(weights, images) -> {"logits", "probabilities"}`, for any number B of images.

    Images are (B, R, R, 3) uint8, what comes out is (B, K) float32. The weights are arguments: as
    constants they would have to fit into a program, which may not grow beyond 2 GiB.

    Args:
      run: what is exported.
      weights: from `weights.pack`, or their shapes.
      dtype: that the tower computes in.
    """
    model = run.model.clone(dtype=jnp.dtype(dtype), remat="none", unroll=False)
    spec = run.spec

    def classify(weights: Mapping[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        images = normalize(images, mean=spec.image_mean, std=spec.image_std)
        logits = encode(model, unpack(weights), images).logits
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    (batch,) = jax.export.symbolic_shape("b")
    size = spec.vision.image_size
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in weights.items()}
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    with _without_locations():
        return jax.export.export(jax.jit(classify), platforms=PLATFORMS)(shapes, images)


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Keeps the paths of source files on this machine out of a program, which else differs."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def write(run: FinishedRun, folder: Path, *, weights: str, dtype: str) -> None:
    """Writes the artifact: program, weights, names and loader.

    Args:
      run: what is exported.
      folder: empty.
      weights: one of `weights.KINDS`.
      dtype: that the tower computes in.

    Raises:
      UserError: the package that programs are written with is missing.
    """
    tower = {**run.params["vision"], "classifier": run.classifier}
    packed = pack(tower, kind=weights)
    program = make_program(run, packed, dtype=dtype)
    try:
        (folder / PROGRAM).write_bytes(program.serialize())
    except ImportError as error:
        raise UserError("JAX writes programs with flatbuffers; pip install flatbuffers") from error
    np.savez(folder / WEIGHTS, allow_pickle=False, **packed)
    told = {"weights": weights, "dtype": dtype, "platforms": list(PLATFORMS)}
    write_json(folder / ABOUT, about(run) | told)
    shutil.copyfile(loader.__file__, folder / LOADER)
