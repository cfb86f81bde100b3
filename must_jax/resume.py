"""How a run goes on from its checkpoint: what is read, what may have changed, what is refused."""

import functools
import hashlib
import json
import os
import re
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from must_jax import distributed, sharding
from must_jax.checkpoint import Restored, complete_steps, digest, found_steps, restore_latest
from must_jax.compile import first_state
from must_jax.config import default_config, flat_fields
from must_jax.convert.converted import SPEC_FILE, TOKENIZER
from must_jax.errors import UserError
from must_jax.experiment import Experiment
from must_jax.local_files import read_text
from must_jax.metrics import write_json
from must_jax.progress import say
from must_jax.quality import Quality, ranking
from must_jax.run_notes import RunNotes
from must_jax.source_digest import names_digest
from must_jax.state import Params, TrainState, init_state

CONFIG_FILE = "config.json"
LAST, CHOSEN = "last", "chosen"  # checkpoints by what they are
# Fields that change how a run is done and seen, not what it computes beyond rounding; or that name
# what `run_facts` compares, wherever it lies.
FREE = {
    "grad_accumulation",
    "remat",
    "scan_layers",
    "log_every_steps",
    "eval_every_epochs",
    "eval_metric",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "checkpoints_to_keep",
    "keep_chosen",
    "grace_seconds",
    "max_nonfinite_steps",
    "checkpoint",
    "dataset.train",
    "dataset.tfds",
    "dataset.data_dir",
    "dataset.class_names",
    "dataset.templates",
    "dataset.descriptions",
    "dataset.test",
    "dataset.label_field",
}
FREE_SECTIONS = ("mesh.", "loader.", "expected.")
IMAGES = "training images (SHA-256)"
SYNONYMS = "synonyms (SHA-256)"
# Facts that are digests: what a person calls the content, and the field that says where it lies.
_CONTENTS = {
    "class names (SHA-256)": ("class names", "dataset.class_names"),
    SYNONYMS: ("synonyms of class names", "dataset.class_names"),
    "templates (SHA-256)": ("templates", "dataset.templates"),
    "descriptions (SHA-256)": ("descriptions", "dataset.descriptions"),
    IMAGES: ("training images", "dataset.train"),
    "weights (SHA-256)": ("checkpoint's weights", "checkpoint"),
    "tokenizer (SHA-256)": ("checkpoint's tokenizer files", "checkpoint"),
}
# Where the second has changed, the first goes without saying.
_TOLD_BY = {IMAGES: "number of images", SYNONYMS: "class names (SHA-256)"}


def model_facts(experiment: Experiment) -> dict[str, Any]:
    """What the parameters of a run mean, apart from the config's fields, as JSON values."""
    spec = json.loads(experiment.spec.to_json())
    del spec["vision"]["image_size"]  # the config's
    towers = {part: spec.pop(part) for part in ("vision", "text")}
    return {
        "class names (SHA-256)": _sha256(experiment.classes.names),
        **{f"checkpoint's {name}": value for name, value in spec.items()},
        **{
            f"checkpoint's {part}.{name}": value
            for part, tower in towers.items()
            for name, value in tower.items()
        },
    }


def run_facts(experiment: Experiment) -> dict[str, Any]:
    """What a step of a run means, apart from the config's fields, as JSON values.

    Raises:
      UserError: the checkpoint's list of files can't be read any more.
    """
    return {
        **model_facts(experiment),
        "number of images": len(experiment.train_images),
        SYNONYMS: _sha256(experiment.classes.synonyms),
        "templates (SHA-256)": _sha256(experiment.templates),
        "descriptions (SHA-256)": _sha256(experiment.descriptions),
        IMAGES: names_digest(experiment.train_images),
        "weights (SHA-256)": _sha256(_sums(experiment.clip_params)),
        "tokenizer (SHA-256)": _tokenizer_digest(experiment.config.checkpoint),
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _tokenizer_digest(checkpoint: str) -> str:
    path = os.path.join(os.path.expanduser(checkpoint), SPEC_FILE)
    try:
        digests = dict(json.loads(read_text(path))["sha256"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} was read before, and is damaged now ({error})") from error
    return _sha256(sorted(item for item in digests.items() if item[0].startswith(TOKENIZER)))


def _sums(params: Params) -> list[list[Any]]:
    """Path and sum of the 32-bit words of every array, which is ten times as quick as a SHA-256.

    Of the arrays and not of their files, which have other names each time they are written.
    """
    return [
        [
            jax.tree_util.keystr(path),
            int(np.sum(np.ascontiguousarray(array).view(np.uint32), dtype=np.uint64)),
        ]
        for path, array in jax.tree.leaves_with_path(params)
    ]


def read_state(experiment: Experiment, workdir: str, *, mesh: Mesh, which: str = LAST) -> Restored:
    """A checkpoint of a run of the same model and classes; names those that are not whole.

    Args:
      experiment: of the run.
      workdir: of the run.
      mesh: where the state goes.
      which: `last`, `chosen` for that of the evaluation that is best without labels, or a step.

    Raises:
      UserError: there is none, or it is of another model than the config makes, or of other
        classes, whose names its predictions would be given.
    """
    restored = _find_state(experiment, workdir, mesh=mesh, which=which)
    notes = restored.notes if isinstance(restored.notes, dict) else {}
    before = notes.get("facts")
    fields = dict(flat_fields(experiment.config))
    if isinstance(before, dict):
        changed = _changed_facts(model_facts(experiment), before, fields=fields)
        if changed:
            raise UserError(f"{'; '.join(changed)}: {workdir} is of another model; change it back")
    return restored


def _find_state(experiment: Experiment, workdir: str, *, mesh: Mesh, which: str) -> Restored:
    number = re.fullmatch("[0-9]{1,18}", which)
    if which not in (LAST, CHOSEN) and not number:
        raise UserError(f"--step={which} must be {LAST}, {CHOSEN} or a step of the run")
    like = experiment.state_shapes()
    shardings = sharding.state_shardings(mesh, like)
    step = int(which) if number else None
    restored = restore_latest(workdir, like, shardings=shardings, step=step)
    for reason in restored.passed_over:
        say(f"{reason}; passed over for step {restored.step}")
    if which != CHOSEN:
        return restored
    evaluations = RunNotes.from_json(restored.notes, path=workdir).evaluations
    if not evaluations:
        raise UserError(f"{workdir} has no evaluation yet to choose a checkpoint by")
    ranked = ranking([Quality.from_json(one["quality"]) for one in evaluations])
    steps = [evaluations[index]["step"] for index in ranked]
    step = next(filter(complete_steps(workdir).__contains__, steps), steps[0])
    if step != steps[0]:
        say(f"the best without labels, step {steps[0]}, has no checkpoint; the next is step {step}")
    return restore_latest(workdir, like, shardings=shardings, step=step)


def begin_or_resume(
    experiment: Experiment, workdir: str, *, mesh: Mesh, num_steps: int
) -> tuple[TrainState, RunNotes, int]:
    """State, notes and step that a run goes on from: its checkpoint's, or the first ones.

    Writes nothing.

    Raises:
      UserError: the config or what it names has changed so that the run would be another, or
        differs between processes.
    """
    facts = run_facts(experiment)
    if jax.process_count() > 1:
        distributed.require_same(facts)
    fields = json.loads(json.dumps(dict(flat_fields(experiment.config))))
    if found_steps(workdir):
        restored = _find_state(experiment, workdir, mesh=mesh, which=LAST)
        notes = RunNotes.from_json(restored.notes, path=workdir)
        _check_same(workdir, notes, facts=facts, fields=fields)
        notes.facts, notes.config = facts, fields
        say(f"resuming {workdir} at step {restored.step} of {num_steps}")
        return restored.state, notes, restored.step
    student = experiment.zero_shot_student()
    if jax.process_count() > 1:
        distributed.require_same({"the SHA-256 of the first parameters": digest(student)})
    keywords = experiment.step_keywords(experiment.student_shapes(), steps_per_epoch=1)
    init = functools.partial(init_state, optimizer=keywords["optimizer"])
    return first_state(mesh, student, init=init), RunNotes(facts=facts, config=fields), 0


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Leaves the config in `workdir`.

    Raises:
      UserError: it can't be written.
    """
    write_json(os.path.join(workdir, CONFIG_FILE), dict(flat_fields(config)))


def _check_same(
    workdir: str, notes: RunNotes, *, facts: dict[str, Any], fields: dict[str, Any]
) -> None:
    """Tells what differs from the run so far, and refuses what would make another run of it."""
    refused = _changed_facts(facts, notes.facts, fields=fields)
    if max(notes.failed_records, default=-1) >= facts["number of images"]:
        refused.append(f"image {max(notes.failed_records)} did not decode, which is not there")
    before = notes.config if notes.config is not None else _saved_fields(workdir)
    # A version without a field did what its default does; a run without any is not compared.
    before = fields if before is None else dict(flat_fields(default_config())) | before
    for name in sorted(before.keys() - fields.keys()):
        say(f"config.{name} of the run so far is unknown to this version, and not compared")
    for name in sorted(fields):
        if json.dumps(fields[name]) == json.dumps(before[name]):
            continue
        told = f"config.{name}: {before[name]!r} -> {fields[name]!r}"
        if name in FREE or name.startswith(FREE_SECTIONS):
            say(told)
        else:
            refused.append(told)
    if refused:
        raise UserError(
            f"{'; '.join(refused)}: {workdir} would go on as another run; change it back, or use "
            "another workdir"
        )


def _changed_facts(
    now: dict[str, Any], before: dict[str, Any], *, fields: dict[str, Any]
) -> list[str]:
    """What differs among the facts that both know: versions may know others."""
    changed = [name for name in now if name in before and now[name] != before[name]]
    told = []
    for name in changed:
        if name not in _CONTENTS:
            told.append(f"the {name}: {before[name]} -> {now[name]}")
        elif _TOLD_BY.get(name) not in changed:
            content, field = _CONTENTS[name]
            told.append(
                f"the {content} are others than those the run began with: {fields[field]!r}"
            )
    return told


def _saved_fields(workdir: str) -> dict[str, Any] | None:
    """The fields in `config.json`, for checkpoints whose notes have none; None where it is lost."""
    fields, reason = None, ""
    if jax.process_index() == 0:
        path = os.path.join(workdir, CONFIG_FILE)
        try:
            fields = dict(json.loads(read_text(path)))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            reason = f"{path} cannot be read ({error})"
    fields, reason = distributed.from_first([fields, reason])
    if reason:
        say(f"not compared with the fields of the run so far: {reason}")
    return fields
