"""A whole run: build once, then batch, step, log, evaluate, save."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from must_jax import distributed, profiling, sharding
from must_jax.checkpoint import complete_steps, digest
from must_jax.checkpoint_writer import Checkpoints
from must_jax.compile import jit_train_step
from must_jax.config import flat_fields
from must_jax.data.loader import Batch
from must_jax.data.patience import be_patient
from must_jax.data.worker import give_up
from must_jax.errors import LostInputError, StoppedError, UserError
from must_jax.evaluate import Evaluator
from must_jax.experiment import Experiment, build
from must_jax.failed_images import FailedImages
from must_jax.flops import plain_flops
from must_jax.judge import Judge
from must_jax.metrics import MetricWriter, write_json
from must_jax.nonfinite import NonFiniteSteps
from must_jax.predictor import Predictor
from must_jax.preemption import Preemption
from must_jax.probe import Probe
from must_jax.progress import Progress, percent, say
from must_jax.reporting.report import NoReportError
from must_jax.reporting.runner import FinishedRun, write_report
from must_jax.results import Result, best_by_labels, forget_others, result_of, sentence
from must_jax.resume import begin_or_resume, write_config
from must_jax.saving import Saving
from must_jax.scores import IN_WORDS, Scores, fields
from must_jax.state import Params
from must_jax.telemetry import Telemetry
from must_jax.workdir_lock import WorkdirLock

STEP_ARRAYS = ("image_weak", "image_strong", "patch_mask", "label")


def train(config: ml_collections.ConfigDict, workdir: str, *, profile: str | None = None) -> Result:
    """Trains from where `workdir` stands to the last epoch, and reports.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, result.json and report.html
    under `workdir`.

    Args:
      config: the run's.
      workdir: the run's folder, given to it alone.
      profile: steps to trace, as `profiling.choose_steps` reads them; None for no trace.

    Returns:
      The content of result.json.

    Raises:
      UserError: the input is bad, and nothing was written; or too many images don't decode, too
        many steps in a row were not finite, or the last checkpoint can't be written.
      StoppedError: the run was asked to stop, and goes on from there when started again.
    """
    started = time.perf_counter()
    experiment = build(config)
    be_patient()
    preemption = Preemption(grace_seconds=config.grace_seconds, when_asked=give_up)
    lock = WorkdirLock(
        workdir, patience_seconds=config.grace_seconds, was_asked=preemption.was_asked
    )
    with preemption.listening(), lock:
        with _stop_first(preemption):
            run = _Run(experiment, workdir, preemption=preemption, started=started)
        return run.run(lock, profile)


class _Run:
    """A run from where its workdir stands: what it is made of, and what changes in it.

    Attributes:
      state: after `step` steps, on the mesh.
      step: of the whole run.
      notes: what the host remembers.
    """

    def __init__(
        self, experiment: Experiment, workdir: str, *, preemption: Preemption, started: float
    ):
        """Reads and checks everything; writes nothing."""
        config = experiment.config
        self._experiment = experiment
        self._config = config
        self._workdir = workdir
        self._preemption = preemption
        self._mesh = experiment.make_mesh()
        self._source = experiment.train_source(self._mesh)
        self._evaluator = Evaluator(experiment, self._mesh)
        self._steps_per_epoch = len(self._source) // config.batch_size
        self._num_steps = config.epochs * self._steps_per_epoch
        tested = self._evaluator.source
        labelled = f", {len(tested)} labelled to test on" if tested else ""
        say(
            f"{len(self._source)} images{labelled}, {len(experiment.classes.names)} classes, "
            f"{len(experiment.templates)} templates, {jax.device_count()} "
            f"{jax.devices()[0].device_kind} device(s){_told(self._mesh)}"
        )
        self._found_steps = complete_steps(workdir)
        distributed.require_same(
            {f"config.{name}": value for name, value in flat_fields(config)}
            | {"whether training images have labels": self._source.labels is not None}
        )
        self.state, self.notes, self.step = begin_or_resume(
            experiment,
            workdir,
            mesh=self._mesh,
            num_steps=self._num_steps,
        )
        self._begun = started - self.notes.seconds
        self._scores: Scores | None = None
        self._predictor = Predictor(experiment, self._mesh)
        self._probe = Probe(self._predictor, self._source, num_images=config.probe_images)
        self._judge = Judge(
            self._probe,
            self.notes,
            threshold=config.confidence_threshold,
            class_names=experiment.classes.names,
        )
        # Copied, for the first step may reuse its memory; of a resumed run it is made anew.
        first = self.state.params["classifier"]
        self._classifier = None if self.step else np.array(distributed.whole(first))
        self._score_zero_shot()

    def _score_zero_shot(self) -> None:
        """At the start, or where a run that goes on may be tested on other images than before."""
        source, notes = self._evaluator.source, self.notes
        test = self._evaluator.digest
        if notes.zero_shot is None or notes.test != test:
            scores = fields(self._evaluate(zeroshot=self._zero_shot_student()))
            if forget_others(notes, test=test, zero_shot=scores):
                say(
                    "the test images are others than before: accuracies on those are forgotten, "
                    "and the best epoch by labels is looked for anew, from here on"
                )
            notes.test, notes.zero_shot = test, scores
        notes.best_by_labels = best_by_labels(notes, self._config.eval_metric)
        if not self._judge.has_begun():
            self._judge.begin(self._zero_shot_student(), between_batches=self._preemption.check)
        metric = self._config.eval_metric
        if source:
            say(f"zero-shot {IN_WORDS[metric]} {percent(notes.zero_shot[f'zeroshot_{metric}'])}")

    def _zero_shot_student(self) -> Params:
        """The parameters before the first step."""
        if self.step == 0:
            return self.state.params
        student = self._experiment.zero_shot_student()
        return sharding.put(student, sharding.state_shardings(self._mesh, student))

    def _evaluate(self, **trees: Params) -> Scores:
        return self._evaluator(between_batches=self._preemption.check, **trees)

    def run(self, lock: WorkdirLock, profile: str | None) -> Result:
        """Does the steps that are left, and reports."""
        config, notes = self._config, self.notes
        traced = None
        if profile is not None:
            traced = profiling.choose_steps(
                profile, first_step=self.step, num_steps=self._num_steps
            )
            if traced is None:
                say("nothing is traced: the steps that --profile asks for were done before")
        with contextlib.ExitStack() as stack:
            batches = stack.enter_context(
                self._experiment.train_batches(self._source, mesh=self._mesh, start_step=self.step)
            )
            lock.take()
            if complete_steps(self._workdir) != self._found_steps:
                raise UserError(
                    f"another run has written to {self._workdir} since this one read it; start the "
                    "same command again to go on from there"
                )
            checkpoints = stack.enter_context(
                Checkpoints(self._workdir, to_keep=config.checkpoints_to_keep, step=self.step)
            )
            self._saving = Saving(checkpoints, step=self.step, notes=notes)
            write_config(self._workdir, config)
            writer = MetricWriter(self._workdir, step=self.step)
            stack.enter_context(contextlib.closing(writer))
            # Entered last: others hear of an exception before anything here is closed.
            stack.enter_context(distributed.ending_together())
            self._failed = FailedImages(self._source, records=notes.failed_records)
            self._nonfinite = NonFiniteSteps(
                self._source,
                workdir=self._workdir,
                steps_per_epoch=self._steps_per_epoch,
                limit=config.max_nonfinite_steps,
                count=notes.skipped_steps,
                in_a_row=notes.skipped_in_row,
            )
            telemetry = Telemetry(
                batch_size=config.batch_size,
                flops_per_image=plain_flops(
                    self._experiment.spec, num_classes=len(self._experiment.classes.names)
                ),
                num_threads=config.loader.num_threads,
                num_workers=config.loader.num_workers,
            )
            self._progress = Progress(
                writer,
                telemetry,
                first_step=self.step,
                num_steps=self._num_steps,
                steps_per_epoch=self._steps_per_epoch,
                log_every_steps=config.log_every_steps,
                eval_metric=config.eval_metric,
                pending=notes.pending,
            )
            shapes = self._experiment.student_shapes()
            keywords = self._experiment.step_keywords(shapes, steps_per_epoch=self._steps_per_epoch)
            self._run_step = stack.enter_context(
                profiling.traced(
                    jit_train_step(self._mesh, shapes, **keywords),
                    steps=traced,
                    workdir=self._workdir,
                    first_step=self.step,
                    paused=self._progress.paused,
                    say=say,
                )
            )
            try:
                with _stop_first(self._preemption):
                    self._loop(telemetry.timed(batches))
            except StoppedError:
                self._saving.save_last(self.state, **self._save_keywords())
                say(f"asked to stop: saved at step {self.step} of {self._num_steps}")
                raise
            except LostInputError:
                if jax.process_count() == 1:  # others would be in the midst of a step
                    self._save_in_passing()
                raise
            self._saving.save_last(self.state, **self._save_keywords())
        return self._report()

    def _save_in_passing(self) -> None:
        """Saves where the run ends for another reason, which is to be told last."""
        try:
            self._saving.save_last(self.state, **self._save_keywords())
        except UserError as error:
            say(str(error))

    def _loop(self, batches: Iterator[Batch]) -> None:
        while True:
            if self._is_evaluation_due():
                self._evaluate_epoch()
            if self._is_save_due():
                self._saving.save(self.state, **self._save_keywords())
            self._preemption.check()
            if self.step == self._num_steps:
                return
            self._train_step(next(batches))

    def _train_step(self, batch: Batch) -> None:
        """Starts a step; the device is a few behind."""
        self._failed.note(batch)
        arrays = {name: batch[name] for name in STEP_ARRAYS if name in batch}
        on_mesh = sharding.to_mesh(arrays, self._mesh)
        self.state, metrics = self._run_step(self.state, on_mesh)
        self.step += 1
        self._progress.step(self.step, metrics)
        self._nonfinite.note(
            self.step, metrics, batch=on_mesh, records=batch["record"], state=self.state
        )
        if self.step % self._config.log_every_steps == 0:
            self._share_failed()

    def _share_failed(self) -> None:
        """Processes talk about it now and then, not in every step."""
        self._failed.share()
        self._failed.check(max_fraction=self._config.loader.max_failed_fraction)

    def _epoch_is_due(self, every: int) -> bool:
        """Whether an epoch has just ended, and is the last or one of every few."""
        epoch, past_epoch = divmod(self.step, self._steps_per_epoch)
        if past_epoch or not epoch:
            return False
        return self.step == self._num_steps or epoch % every == 0

    def _is_evaluation_due(self) -> bool:
        due = self._epoch_is_due(self._config.eval_every_epochs)
        return due and self.notes.evaluated_step != self.step

    def _is_save_due(self) -> bool:
        if self.step in (0, self._saving.started_step):
            return False
        every = self._config.checkpoint_every_steps
        if every and self.step % every == 0:
            return True
        if self._epoch_is_due(self._config.checkpoint_every_epochs):
            return True
        if self.step == self.notes.evaluated_step and self._chosen_steps()[:1] == [self.step]:
            return True
        return self.step % self._config.log_every_steps == 0 and self._saving.is_retry_due()

    def _evaluate_epoch(self) -> None:
        trees = {"student": self.state.params, "teacher": self.state.teacher_params}
        with self._progress.paused():
            scores = self._evaluate(**trees)
            evaluation = {"step": self.step, "epoch": self.step // self._steps_per_epoch}
            quality = self._judge.look(
                evaluation | fields(scores), between_batches=self._preemption.check, **trees
            )
        self._scores = scores
        self._progress.evaluated(self.step, scores, quality)
        self.notes.best_by_labels = best_by_labels(self.notes, self._config.eval_metric)
        self.notes.evaluated_step = self.step

    def _save_keywords(self) -> dict[str, Any]:
        """What is saved beside the state, brought up to date."""
        notes = self.notes
        self._nonfinite.finish(self.state)
        self._share_failed()
        notes.seconds = time.perf_counter() - self._begun
        notes.failed_records = sorted(self._failed.records)
        notes.pending = self._progress.pending()
        notes.skipped_steps = self._nonfinite.count
        notes.skipped_in_row = self._nonfinite.in_a_row
        return {"step": self.step, "notes": notes, "chosen": self._chosen_steps()}

    def _chosen_steps(self) -> list[int]:
        """Of which the first that has a checkpoint keeps it for being the best without labels."""
        return [one["step"] for one in self._judge.ranked()] if self._config.keep_chosen else []

    def _report(self) -> Result:
        notes, scores = self.notes, self._scores
        if scores is None:
            scores = self._evaluate(student=self.state.params, teacher=self.state.teacher_params)
        result = result_of(
            notes,
            scores,
            chosen=next(iter(self._judge.ranked()), None),
            eval_metric=self._config.eval_metric,
            num_images=len(self._source),
        ) | {
            "steps": self._num_steps,
            "seconds": round(time.perf_counter() - self._begun, 2),
            "student_digest": digest(self.state.params),
            "teacher_digest": digest(self.state.teacher_params),
            "optimizer_digest": digest(self.state.opt_state),
        }
        write_json(os.path.join(self._workdir, "result.json"), result)
        self._write_report(result)
        say(sentence(result, workdir=self._workdir))
        return result

    def _write_report(self, result: Result) -> None:
        """Writes the page; the run has ended well without it."""
        run = FinishedRun(
            experiment=self._experiment,
            workdir=self._workdir,
            mesh=self._mesh,
            train=self._source,
            test=self._evaluator.source,
            predictor=self._predictor,
            probe=self._probe,
            student=self.state.params,
            teacher=self.state.teacher_params,
            classifier=self._classifier,
            notes=self.notes,
            result=result,
        )
        try:
            with _stop_first(self._preemption):
                write_report(run, between_batches=self._preemption.check)
        except UserError as error:
            if jax.process_count() > 1 and not isinstance(error, NoReportError):
                raise  # the others wait for this process
            say(f"no report was made: {error}; --mode=report makes it when that is mended")


@contextlib.contextmanager
def _stop_first(preemption: Preemption) -> Iterator[None]:
    """A stop is why input is lost: a signal ends patience, and workers that have just begun.

    Raises:
      StoppedError: the run was asked to stop.
    """
    try:
        yield
    except LostInputError:
        preemption.check()
        raise


def _told(mesh: jax.sharding.Mesh) -> str:
    """What a mesh of more than the `data` axis, or of several processes, adds to the first line."""
    sizes = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
    several = jax.process_count() > 1
    processes = f" of {jax.process_count()} processes" if several else ""
    return processes + (f", as {sizes}" if several or mesh.shape["data"] < mesh.size else "")
