"""Compiles the steps of an experiment for a topology and counts what they cost."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from must_jax import sharding
from must_jax.compile import batch_shapes, jit_eval_step, jit_train_step
from must_jax.errors import UserError, first_line
from must_jax.experiment import Experiment
from must_jax.planning.costs import Costs, count
from must_jax.planning.hlo import parse
from must_jax.planning.topology import Topology
from must_jax.state import state_shapes

MAX_TRIES = 3  # compilations to find the largest batch, after the one that was asked for


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of main memory on a chip, at the peak of a program."""

    state: int
    batch: int
    temporaries: int
    program: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.state + self.batch + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step compiled; `refusal` and no more where the compiler found that it doesn't fit."""

    seconds: float
    memory: Memory | None = None
    costs: Costs | None = None
    refusal: str = ""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Both steps at one global batch size."""

    batch_size: int
    fits: bool
    train: Compiled
    evaluation: Compiled | None

    @property
    def peak_bytes(self) -> int | None:
        """Of the hungrier of the two, the whole state being there during either."""
        parts = [step.memory for step in (self.train, self.evaluation) if step]
        known = [part.peak for part in parts if part]
        return max(known) if known and self.train.memory else None


def measure(experiment: Experiment, topology: Topology, batch_size: int) -> Measured:
    """Compiles the training and the evaluation step for a global batch size."""
    config = experiment.config.copy_and_resolve_references()
    config.batch_size = batch_size
    experiment = dataclasses.replace(experiment, config=config)
    mesh = experiment.make_mesh(topology.devices)
    vision, shapes = experiment.spec.vision, experiment.student_shapes()
    keywords = experiment.step_keywords(shapes, steps_per_epoch=1000)
    state = state_shapes(shapes, optimizer=keywords["optimizer"])
    batch = batch_shapes(vision, batch_size=batch_size)
    state_bytes = _bytes_on_a_chip(mesh, state)
    options = dict(topology.compiler_options)
    run_step: Any = jit_train_step(mesh, shapes, **keywords)
    train = _compile(
        lambda: run_step.lower(state, batch).compile(options), state_bytes, state_bytes
    )
    evaluation = None
    if not train.refusal:
        eval_step: Any = jit_eval_step(
            mesh,
            shapes,
            model=experiment.model,
            image_mean=experiment.spec.image_mean,
            image_std=experiment.spec.image_std,
        )
        valid = jax.ShapeDtypeStruct((batch_size,), jnp.bool_)
        images = {"image": batch["image_weak"], "label": batch["label"], "valid": valid}
        evaluation = _compile(
            lambda: eval_step.lower(shapes, images).compile(options),
            state_bytes,
            _bytes_on_a_chip(mesh, shapes),
        )
    measured = Measured(batch_size, True, train, evaluation)
    steps = [step for step in (train, evaluation) if step]
    room = topology.chip.hbm_bytes if topology.chip else math.inf
    fits = not any(step.refusal for step in steps) and (measured.peak_bytes or 0) <= room
    return dataclasses.replace(measured, fits=fits)


def _bytes_on_a_chip(mesh: Mesh, shapes: Any) -> int:
    shardings = jax.tree.leaves(sharding.state_shardings(mesh, shapes))
    return sum(
        math.prod(split.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, split in zip(jax.tree.leaves(shapes), shardings, strict=True)
    )


def _compile(build: Callable[[], Any], state_bytes: int, arguments_state: int) -> Compiled:
    """Compiles; `arguments_state` of the `state_bytes` are among the program's arguments.

    Raises:
      UserError: the compiler refuses, for another reason than memory; or what it made can't be
        counted.
    """
    started = time.perf_counter()
    try:
        compiled = build()
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise UserError(f"the compiler refuses the step: {first_line(error)}") from error
        used = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ \w+", str(error))
        return Compiled(time.perf_counter() - started, refusal=used[0] if used else "out of memory")
    seconds = time.perf_counter() - started
    stats = compiled.memory_analysis()
    batch = max(0, stats.argument_size_in_bytes - arguments_state)
    outputs = max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes)
    memory = Memory(
        state=state_bytes,
        batch=batch,
        temporaries=stats.temp_size_in_bytes + outputs,
        program=stats.generated_code_size_in_bytes,
    )
    try:
        costs = count(parse(compiled.as_text()))
    except ValueError as error:
        raise UserError(f"the compiled program can't be counted: {error}") from error
    return Compiled(seconds, memory, costs)


def largest_batch(
    experiment: Experiment, topology: Topology, measured: list[Measured], *, limit: int
) -> tuple[int | None, list[Measured]]:
    """The largest global batch that was compiled and fits, and what was compiled to find it.

    Memory is near linear in the batch, so that two sizes tell where to look; the size found is
    compiled, and by steps of 1/16 less if it doesn't fit. Sizes are multiples of the parts that
    the batch is split into; a larger one than found may fit by a few images a chip.

    Args:
      measured: at least one size.
      limit: no batch above it, the number of training images.
    """
    if topology.chip is None:
        return None, []
    parts = sharding.num_row_shards(experiment.make_mesh(topology.devices))
    parts *= experiment.config.grad_accumulation
    tried: list[Measured] = []

    def fitting() -> list[Measured]:
        return sorted((m for m in measured + tried if m.fits), key=lambda m: m.batch_size)

    def refused() -> float:
        return min((m.batch_size for m in measured + tried if not m.fits), default=math.inf)

    while len(tried) < MAX_TRIES:
        known = fitting()
        room = 0.97 * topology.chip.hbm_bytes  # the compiler keeps some for itself
        if len(known) > 1:
            low, high = known[0], known[-1]
            slope = ((high.peak_bytes or 0) - (low.peak_bytes or 0)) / (
                high.batch_size - low.batch_size
            )
            spare = room - (high.peak_bytes or 0)
            size = high.batch_size + spare / slope if slope > 0 else 2.0 * high.batch_size
        elif known:
            memory = known[0].train.memory
            grows = memory.batch + memory.temporaries if memory else 1
            size = known[0].batch_size * (1 + 0.75 * (room - (known[0].peak_bytes or 0)) / grows)
        else:
            size = refused() / 2
        if size >= refused():
            size = refused() * 15 / 16
        rows = int(min(size, limit)) // parts
        best = known[-1].batch_size if known else 0
        if rows * parts <= best or rows < 1:
            break
        if len(tried) and known and rows * parts < 1.03 * best:
            break
        tried.append(measure(experiment, topology, rows * parts))
    known = fitting()
    return (known[-1].batch_size if known else None), tried
