"""How a run goes on from its checkpoint: what is read, what may have changed, what is refused."""

import functools
import hashlib
import json
import os
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from must_jax import distributed, sharding
from must_jax.checkpoint import Restored, complete_steps, digest, restore_latest
from must_jax.compile import first_state
from must_jax.config import flat_fields, read_config
from must_jax.errors import UserError
from must_jax.experiment import Experiment
from must_jax.metrics import write_json
from must_jax.progress import say
from must_jax.run_notes import RunNotes
from must_jax.state import TrainState, init_state

CONFIG_FILE = "config.json"
# Fields, or the start of their names, that change how a run is done and seen, not what it computes
# beyond rounding; or that name what `run_facts` compares, wherever it lies.
FREE = (
    "mesh.",
    "grad_accumulation",
    "remat",
    "scan_layers",
    "loader.",
    "log_every_steps",
    "eval_",
    "checkpoint",
    "keep_chosen",
    "grace_seconds",
    "max_nonfinite_steps",
    "expected.",
    "dataset.",
)


def run_facts(experiment: Experiment, *, num_images: int) -> dict[str, Any]:
    """What a step of a run means, apart from the config's fields, as JSON values."""
    names = json.dumps(experiment.classes.names)
    return {
        "number of images": num_images,
        "class names (SHA-256)": hashlib.sha256(names.encode()).hexdigest(),
    }


def read_state(experiment: Experiment, workdir: str, *, mesh: Mesh) -> Restored:
    """The latest checkpoint of a run that is whole; names those that are not.

    Raises:
      UserError: there is none, or it is of another model than the config makes.
    """
    like = experiment.state_shapes()
    shardings = sharding.state_shardings(mesh, like)
    restored = restore_latest(workdir, like, shardings=shardings)
    for reason in restored.passed_over:
        say(f"{reason}; passed over for step {restored.step}")
    return restored


def begin_or_resume(
    experiment: Experiment, workdir: str, *, mesh: Mesh, num_images: int, num_steps: int
) -> tuple[TrainState, RunNotes, int]:
    """State, notes and step that a run goes on from: its checkpoint's, or the first ones.

    Writes nothing.

    Raises:
      UserError: the config or what it names has changed so that the run would be another.
    """
    facts = run_facts(experiment, num_images=num_images)
    if complete_steps(workdir):
        restored = read_state(experiment, workdir, mesh=mesh)
        notes = RunNotes(**restored.notes)
        _check_facts(workdir, facts, notes.facts)
        _check_config(workdir, experiment.config)
        say(f"resuming {workdir} at step {restored.step} of {num_steps}")
        return restored.state, notes, restored.step
    student = experiment.zero_shot_student()
    if jax.process_count() > 1:
        distributed.require_same({"the SHA-256 of the first parameters": digest(student)})
    keywords = experiment.step_keywords(experiment.student_shapes(), steps_per_epoch=1)
    init = functools.partial(init_state, optimizer=keywords["optimizer"])
    return first_state(mesh, student, init=init), RunNotes(facts=facts), 0


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Leaves the config in `workdir`.

    Raises:
      UserError: it can't be written.
    """
    write_json(os.path.join(workdir, CONFIG_FILE), dict(flat_fields(config)))


def _check_facts(workdir: str, now: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in now.items():
        if value != before[name]:
            raise UserError(
                f"the {name} of {workdir} was {before[name]} and is {value} now; a run goes on "
                "with the same images and classes only: change it back, or use another workdir"
            )


def _check_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Tells the fields that differ from those of the run so far, and refuses some."""
    path = os.path.join(workdir, CONFIG_FILE)
    now = dict(flat_fields(config))
    try:
        before = distributed.from_first(_fields_before(path))
    except UserError as error:
        say(f"not compared with the fields of the run so far: {error}")
        return
    changed = [name for name in sorted(now) if _json(now[name]) != _json(before[name])]
    refused = [name for name in changed if not name.startswith(FREE)]
    if refused:
        told = "; ".join(f"config.{n} was {before[n]!r} and is {now[n]!r} now" for n in refused)
        raise UserError(
            f"{told}: {workdir} would go on as another run; change it back, or use another workdir"
        )
    for name in changed:
        say(f"config.{name} is now {now[name]!r}, was {before[name]!r}")


def _fields_before(path: str) -> dict[str, Any]:
    return dict(flat_fields(read_config(path)))


def _json(value: Any) -> str:
    """Tuples and lists alike."""
    return json.dumps(value)
