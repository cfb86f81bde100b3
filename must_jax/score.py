"""Accuracy without training: of a run's checkpoint, and of zero-shot CLIP."""

import os
from typing import Any

import ml_collections
from jax.sharding import Mesh

from must_jax import sharding
from must_jax.data.sources import Source
from must_jax.errors import UserError
from must_jax.evaluate import Evaluator
from must_jax.experiment import Experiment, build
from must_jax.metrics import write_json
from must_jax.progress import percent, say
from must_jax.resume import read_state
from must_jax.scores import IN_WORDS, NOTED, fields
from must_jax.state import Params

Result = dict[str, Any]


def score(config: ml_collections.ConfigDict, workdir: str) -> Result:
    """Scores the latest checkpoint of `workdir` on the config's test images.

    Writes eval.json under `workdir`.

    Returns:
      Its content.

    Raises:
      UserError: the input is bad, or `workdir` has no checkpoint.
    """
    experiment = build(config)
    mesh = experiment.make_mesh()
    evaluator, source = _evaluator(experiment, mesh)
    state = read_state(experiment, workdir, mesh=mesh).state
    zero_shot = _zero_shot(experiment, mesh)
    scores = evaluator(zeroshot=zero_shot, student=state.params, teacher=state.teacher_params)
    metric = config.eval_metric
    result: Result = {
        **fields(scores),
        "eval_metric": metric,
        "steps": int(state.step),
        "test": source.path,
    }
    write_json(os.path.join(workdir, "eval.json"), result)
    say(
        f"step {result['steps']}: zero-shot {percent(result[f'zeroshot_{metric}'])}, student "
        f"{percent(result[f'student_{metric}'])}, teacher {percent(result[f'teacher_{metric}'])}"
        f"{NOTED[metric]} on {source.path}; written to {workdir}/eval.json"
    )
    return result


def score_zero_shot(config: ml_collections.ConfigDict, workdir: str) -> Result:
    """Scores the config's checkpoint, before any training, on its test images.

    Writes zeroshot.json under `workdir`, unless that is empty.

    Returns:
      Its content.

    Raises:
      UserError: the input is bad, or `workdir` cannot be written.
    """
    experiment = build(config)
    mesh = experiment.make_mesh()
    evaluator, source = _evaluator(experiment, mesh)
    if workdir:
        try:
            os.makedirs(workdir, exist_ok=True)
        except OSError as error:
            raise UserError(f"{workdir} cannot be written ({error.strerror})") from error
    scores = evaluator(zeroshot=_zero_shot(experiment, mesh))
    result: Result = {
        **fields(scores),
        "eval_metric": config.eval_metric,
        "expected_percent": config.expected.zeroshot or None,
        "classes": len(experiment.classes.names),
        "texts": sum(map(len, experiment.texts)),
        "images": len(source),
        "test": source.path,
        "checkpoint": config.checkpoint,
    }
    told = [f"{IN_WORDS[name]} {percent(result[f'zeroshot_{name}'])}" for name in IN_WORDS]
    if result["expected_percent"]:
        told.append(f"published {IN_WORDS[config.eval_metric]} {result['expected_percent']:.1f} %")
    written = ""
    if workdir:
        write_json(os.path.join(workdir, "zeroshot.json"), result)
        written = f"; written to {workdir}/zeroshot.json"
    say(f"zero-shot {', '.join(told)} on {len(source)} images of {source.path}{written}")
    return result


def _zero_shot(experiment: Experiment, mesh: Mesh) -> Params:
    student = experiment.zero_shot_student()
    return sharding.put(student, sharding.state_shardings(mesh, student))


def _evaluator(experiment: Experiment, mesh: Mesh) -> tuple[Evaluator, Source]:
    evaluator = Evaluator(experiment, mesh)
    if evaluator.source is None:
        raise UserError("config.dataset.test is empty; it must be the images to score on")
    return evaluator, evaluator.source
