"""A whole run: build once, then batch, step, log, evaluate, save."""

import contextlib
import functools
import os
import time
from typing import Any

import jax
import ml_collections

from must_jax import distributed, profiling, sharding
from must_jax.checkpoint import Checkpoints, digest, latest_step, restore
from must_jax.compile import first_state, jit_train_step
from must_jax.config import flat_fields, read_config
from must_jax.errors import UserError
from must_jax.evaluate import Evaluator
from must_jax.experiment import build
from must_jax.failed_images import FailedImages
from must_jax.flops import plain_flops
from must_jax.metrics import MetricWriter, write_json
from must_jax.progress import Progress, percent, say
from must_jax.scores import IN_WORDS, NOTED, fields
from must_jax.state import init_state, state_shapes
from must_jax.telemetry import Telemetry

Result = dict[str, Any]
CONFIG_FILE = "config.json"
STEP_ARRAYS = ("image_weak", "image_strong", "patch_mask", "label")


def train(config: ml_collections.ConfigDict, workdir: str, *, profile: str | None = None) -> Result:
    """Trains from where `workdir` stands to the last epoch, and reports.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/ and result.json under `workdir`.

    Args:
      config: the run's.
      workdir: the run's folder, given to it alone.
      profile: steps to trace, as `profiling.choose_steps` reads them; None for no trace.

    Returns:
      The content of result.json.

    Raises:
      UserError: the input is bad, and nothing was written; or too many images don't decode.
    """
    started = time.perf_counter()
    experiment = build(config)
    mesh = experiment.make_mesh()
    source = experiment.train_source(mesh)
    evaluator = Evaluator(experiment, mesh)
    steps_per_epoch = len(source) // config.batch_size
    num_steps = config.epochs * steps_per_epoch
    labelled = f", {len(evaluator.source)} labelled to test on" if evaluator.source else ""
    say(
        f"{len(source)} images{labelled}, {len(experiment.classes.names)} classes, "
        f"{len(experiment.templates)} templates, {jax.device_count()} "
        f"{jax.devices()[0].device_kind} device(s){_told(mesh)}"
    )
    shapes = experiment.student_shapes()
    keywords = experiment.step_keywords(shapes, steps_per_epoch=steps_per_epoch)
    run_step = jit_train_step(mesh, shapes, **keywords)
    # What a checkpoint's step means, and what its zero-shot accuracy was measured on.
    records = {"images": len(source), "batch_size": config.batch_size, "seed": config.seed}
    distributed.require_same({f"config.{name}": value for name, value in flat_fields(config)})
    distributed.require_same({"the number of training images": len(source)})
    first_step = latest_step(workdir) or 0
    profile_steps = None
    if profile is not None:
        profile_steps = profiling.choose_steps(profile, first_step=first_step, num_steps=num_steps)
    if first_step:
        like = state_shapes(shapes, optimizer=keywords["optimizer"])
        shardings = sharding.state_shardings(mesh, like)
        state, notes = restore(workdir, like, step=first_step, shardings=shardings)
        _check_resumable(workdir, records, notes["records"], step=first_step, num_steps=num_steps)
        say(f"resuming {workdir} at step {first_step} of {num_steps}")
    else:
        student = experiment.zero_shot_student()
        if jax.process_count() > 1:
            distributed.require_same({"the SHA-256 of the first parameters": digest(student)})
        init = functools.partial(init_state, optimizer=keywords["optimizer"])
        state = first_state(mesh, student, init=init)
        notes = {"seconds": 0.0, "failed_records": []}
    test = evaluator.source.path if evaluator.source else None
    if "zeroshot" not in notes or notes["test"] != test:
        # At the start, or a resumed run is scored on other images than before.
        student = state.params
        if first_step:
            student = experiment.zero_shot_student()
            student = sharding.put(student, sharding.state_shardings(mesh, student))
        zero_shot = fields(evaluator(zeroshot=student))
        notes |= {"test": test, "zeroshot": zero_shot, "best_by_labels": None}
    notes["records"] = records
    metric = config.eval_metric
    if evaluator.source:
        say(f"zero-shot {IN_WORDS[metric]} {percent(notes['zeroshot'][f'zeroshot_{metric}'])}")

    failed = FailedImages(source, records=notes["failed_records"])
    scores = None
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(
            experiment.train_batches(source, mesh=mesh, start_step=first_step)
        )
        checkpoints = Checkpoints(workdir, to_keep=config.checkpoints_to_keep)
        stack.callback(checkpoints.close)
        _write_config(workdir, config)
        writer = stack.enter_context(contextlib.closing(MetricWriter(workdir, step=first_step)))
        # Entered last: others hear of an exception before anything here is closed.
        stack.enter_context(distributed.ending_together())
        telemetry = Telemetry(
            batch_size=config.batch_size,
            flops_per_image=plain_flops(experiment.spec, num_classes=len(experiment.classes.names)),
            num_threads=config.loader.num_threads,
            num_workers=config.loader.num_workers,
        )
        progress = Progress(
            writer,
            telemetry,
            first_step=first_step,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            log_every_steps=config.log_every_steps,
            eval_metric=metric,
        )
        run_step = stack.enter_context(
            profiling.traced(
                run_step,
                steps=profile_steps,
                workdir=workdir,
                first_step=first_step,
                paused=progress.paused,
                say=say,
            )
        )
        for step, batch in enumerate(telemetry.timed(batches), start=first_step + 1):
            failed.note(batch["failed"])
            arrays = {name: batch[name] for name in STEP_ARRAYS if name in batch}
            state, metrics = run_step(state, sharding.to_mesh(arrays, mesh))
            progress.step(step, metrics)
            epoch, past_epoch = divmod(step, steps_per_epoch)
            if not past_epoch or step % config.log_every_steps == 0:
                # Processes talk about it now and then, not in every step.
                failed.share()
                failed.check(max_fraction=config.loader.max_failed_fraction)
            if past_epoch:
                continue
            last = step == num_steps
            if last or epoch % config.eval_every_epochs == 0:
                with progress.paused():
                    scores = evaluator(student=state.params, teacher=state.teacher_params)
                progress.evaluated(step, scores)
                reached = {"epoch": epoch, **fields({"teacher": scores["teacher"]})}
                notes["best_by_labels"] = _better(notes["best_by_labels"], reached, metric)
            if last or epoch % config.checkpoint_every_epochs == 0:
                seconds = notes["seconds"] + time.perf_counter() - started
                now = {"seconds": seconds, "failed_records": sorted(failed.records)}
                checkpoints.save(state, step=step, notes=notes | now)
    if scores is None:
        scores = evaluator(student=state.params, teacher=state.teacher_params)
    result = {
        **notes["zeroshot"],
        **fields(scores),
        "eval_metric": metric,
        "best_by_labels": notes["best_by_labels"],
        "steps": num_steps,
        "seconds": round(notes["seconds"] + time.perf_counter() - started, 2),
        "failed_images": len(failed.records),
        "student_digest": digest(state.params),
        "teacher_digest": digest(state.teacher_params),
    }
    write_json(os.path.join(workdir, "result.json"), result)
    told = "trained, without labelled images to test on,"
    if evaluator.source:
        names = ("zeroshot", "student", "teacher")
        reached = {name: percent(result[f"{name}_{metric}"]) for name in names}
        told = "zero-shot {zeroshot} -> student {student} -> teacher {teacher}".format(**reached)
        told += NOTED[metric]
    say(
        f"{told} in {result['seconds']:.0f} s; result.json, metrics.jsonl, tensorboard and "
        f"checkpoints are in {workdir}"
    )
    return result


def _told(mesh: jax.sharding.Mesh) -> str:
    """What a mesh of more than the `data` axis, or of several processes, adds to the first line."""
    sizes = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
    several = jax.process_count() > 1
    processes = f" of {jax.process_count()} processes" if several else ""
    return processes + (f", as {sizes}" if several or mesh.shape["data"] < mesh.size else "")


def _check_resumable(
    workdir: str, now: Result, before: Result, *, step: int, num_steps: int
) -> None:
    """Refuses to go on where the step of a checkpoint would mean other records than it did."""
    for name, value in now.items():
        if value != before[name]:
            raise UserError(
                f"{workdir} was trained with {name} {before[name]}, and it is {value} now; a run "
                "goes on with the same records only: change it back, or use another workdir"
            )
    if step > num_steps:
        raise UserError(
            f"{workdir} is at step {step}, after the {num_steps} steps that config.epochs asks "
            "for; raise it, or use another workdir"
        )


def _better(best: Result | None, now: Result, metric: str) -> Result | None:
    """The epoch whose teacher scores best on the labelled test images: not a label-free result."""
    value = now[f"teacher_{metric}"]
    if value is None or (best and best[f"teacher_{metric}"] >= value):
        return best
    return now


def _write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Leaves the config in `workdir`, and tells what differs from the one that was there."""
    path = os.path.join(workdir, CONFIG_FILE)
    now = dict(flat_fields(config))
    if os.path.exists(path):
        try:
            before = dict(flat_fields(read_config(path)))
        except UserError as error:
            say(f"not compared with the fields of the run so far: {error}")
            before = now
        for name in sorted(now):
            if before[name] != now[name]:
                say(f"config.{name} is now {now[name]!r}, was {before[name]!r}")
    write_json(path, now)
