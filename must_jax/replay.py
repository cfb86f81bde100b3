"""The step that a run ended at, once more, to see what in it is not finite."""

import pathlib
import traceback

import jax
import jax.numpy as jnp
import ml_collections

from must_jax import sharding
from must_jax.compile import batch_shapes, jit_train_step
from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.nonfinite import find_dump, name_some, read_dump
from must_jax.progress import say

PACKAGE = pathlib.Path(__file__).parent


def replay(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Repeats the step and prints its values; without jit, the line that made the first bad one.

    Writes nothing.

    Raises:
      UserError: `workdir` holds no such step, or it is damaged, or the config is bad or not the
        run's, or its mesh does not divide the batch.
    """
    folder = find_dump(workdir)
    without_jit = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if without_jit:
        # Both are compiled all the same, and a value within would be said to come from their line.
        config = config.copy_and_resolve_references()
        config.update(grad_accumulation=1, remat="none")
    experiment = build(config)
    mesh = experiment.make_mesh()
    shapes = experiment.student_shapes()
    like = experiment.state_shapes()
    shardings = sharding.state_shardings(mesh, like)
    state, batch, told = read_dump(folder, like, shardings=shardings)
    count = max((array.shape[0] for array in batch.values() if array.ndim), default=0)
    expected = batch_shapes(experiment.spec.vision, batch_size=count)
    found = {n: jax.ShapeDtypeStruct(array.shape, array.dtype) for n, array in batch.items()}
    if found != {n: expected[n] for n in expected if n in found or n != "label"}:
        raise UserError(f"the batch in {folder} is no batch of this config's model")
    keywords = experiment.step_keywords(shapes, steps_per_epoch=told["steps_per_epoch"])
    parts = sharding.num_row_shards(mesh)
    if count % parts:
        raise UserError(
            f"the {count} images of the step in {folder} are not to be split in {parts}; choose "
            "config.mesh as the run had it, or fewer devices"
        )
    rows = sharding.batch_sharding(mesh)
    on_mesh = sharding.put(batch, dict.fromkeys(batch, rows))
    say(f"step {told['step']}, on {name_some(told['images'])}")
    for name in ("params", "teacher_params"):
        _tell_largest(name, getattr(state, name))
    jax.config.update("jax_debug_nans", without_jit)
    jax.config.update("jax_debug_infs", without_jit)
    try:
        _, metrics = jit_train_step(mesh, shapes, **keywords)(state, on_mesh)
    except FloatingPointError as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if pathlib.Path(frame.filename).is_relative_to(PACKAGE)]
        place = (own or frames)[-1]
        say(
            f"the first value that is not finite comes from {place.filename}:{place.lineno} in "
            f"{place.name}: {place.line} ({str(error).partition(chr(10))[0]})"
        )
        return
    for name, value in sorted(metrics.items()):
        say(f"{name} = {float(value)!r}")
    if not without_jit:
        say("add --disable_jit to be told the line of the first value that is not finite")


def _tell_largest(name: str, tree: object) -> None:
    """Prints the leaf with the largest entry, where a run that diverges often shows."""
    largest = {
        jax.tree_util.keystr(path): float(jnp.max(jnp.abs(leaf)))
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    leaf = max(largest, key=lambda key: largest[key])
    say(f"largest entry of {name}: {largest[leaf]:.3g}, in {leaf}")
