"""Damaged and forged workdirs, gone on from as a run does up to its next step."""

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tiny_run
from absl import logging

from fuzz.mutations import mutate_bytes, mutate_json, take_away
from fuzz.worker import captured, told_well
from must_jax.checkpoint import COMPLETE, digest, told_beside
from must_jax.checkpoint_writer import Checkpoints
from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.failed_images import FailedImages
from must_jax.judge import Judge
from must_jax.metrics import MetricWriter
from must_jax.progress import Progress
from must_jax.quality import ProbePredictions
from must_jax.results import best_by_labels, result_of, sentence
from must_jax.resume import begin_or_resume, write_config
from must_jax.run_notes import RunNotes
from must_jax.scores import Score, fields
from must_jax.state import TrainState
from must_jax.telemetry import Telemetry

SAME, BEFORE, FORGED = "same", "the one before", "other notes"
STEPS = (4, 8)  # of the checkpoints
SCORE = Score(top1=0.5, mean_per_class=0.5)


class Runs:
    """Cases of a workdir with one file damaged, forged or missing."""

    def __init__(self, *, folder: str):
        """`folder` has the inputs of a run, and in `run` what it left."""
        logging.use_absl_handler()  # as absl's programs do
        logging.set_verbosity(logging.FATAL)  # as must_jax.main does
        self._workdir = Path(folder) / "run"
        self._experiment = build(tiny_run.config(Path(folder)))
        self._mesh = self._experiment.make_mesh()
        self._source = self._experiment.train_images
        self._files = sorted(
            path.relative_to(self._workdir)
            for path in self._workdir.rglob("*")
            if path.is_file() and f"checkpoints/{STEPS[0]}/" not in str(path)
        )
        self._digests = {}
        self._notes: dict[int, Any] = {}
        for step in STEPS:
            shutil.copytree(self._workdir, Path(folder) / f"{step}")
            for later in (s for s in STEPS if s > step):
                shutil.rmtree(Path(folder) / f"{step}" / "checkpoints" / f"{later}")
            state, notes, _ = self._go_on(Path(folder) / f"{step}")
            self._digests[step], self._notes[step] = digest(state), notes

    def prepare(self, index: int, rng: random.Random, folder: Path) -> str:
        """Copies the workdir and damages one file; half of the time, what a run notes."""
        shutil.copytree(self._workdir, folder / "run")
        notes = Path("checkpoints", str(STEPS[-1]), COMPLETE)
        name = notes if index % 2 else self._files[index // 2 % len(self._files)]
        file, data = folder / "run" / name, (self._workdir / name).read_bytes()
        if gone := take_away(file, rng):
            return f"{name}: {gone}"
        if index % 2 and rng.random() < 0.9:
            record = json.loads(data)
            text, what = mutate_json(record["custom_metadata"]["notes"], rng)
            told = record["custom_metadata"]
            with contextlib.suppress(ValueError, RecursionError):
                told = told_beside(json.loads(text), told["shapes"])
            record["custom_metadata"] = told
            content = json.dumps(record).encode()
            what = f"forged, {what}"
        elif data[:1] == b"{" and data.count(b"\n") < 2 and rng.random() < 0.5:
            text, what = mutate_json(json.loads(data), rng)
            content = text.encode("utf-8", "surrogatepass")
        else:
            content, what = mutate_bytes(data, rng)
        file.write_bytes(content)
        return f"{name}: {what}"

    def run(self, folder: Path) -> tuple[str, str]:
        """Goes on from it."""
        try:
            (state, notes, step), output, errors = captured(self._go_on, folder / "run")
        except UserError as error:
            return told_well(str(error))
        if errors or not all(line.isprintable() for line in output.splitlines()):
            return "noise", f"{output}{errors}"
        if digest(state) != self._digests[step]:
            return "other arrays", ""
        if step != STEPS[-1]:
            return BEFORE, ""
        return (SAME if notes == self._notes[step] else FORGED), ""

    def _go_on(self, workdir: Path) -> tuple[TrainState, dict[str, Any], int]:
        """What a run does with its workdir before its next step, and with its notes after it."""
        config = self._experiment.config
        state, notes, step = begin_or_resume(
            self._experiment, str(workdir), mesh=self._mesh, num_steps=STEPS[-1]
        )
        found = notes.json() | {"facts": None, "config": None, "seconds": None}
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(str(workdir), to_keep=2, step=step)
            stack.callback(checkpoints.close)
            write_config(str(workdir), config)
            writer = MetricWriter(str(workdir), step=step)
            stack.enter_context(contextlib.closing(writer))
            self._step(writer, notes, step)
            self._evaluate(notes, step)
            renewed = checkpoints.renew_notes(state, step=step, notes=notes.json())
            if renewed:
                raise OSError(renewed)
        return state, found, step

    def _step(self, writer: MetricWriter, notes: RunNotes, step: int) -> None:
        telemetry = Telemetry(batch_size=8, flops_per_image=1.0, num_threads=1, num_workers=0)
        progress = Progress(
            writer,
            telemetry,
            first_step=step,
            num_steps=99,
            steps_per_epoch=4,
            log_every_steps=1,
            eval_metric="top1",
            pending=notes.pending,
        )
        losses = ("loss", "loss_self_train", "loss_fair", "loss_mim", "loss_align")
        others = ("confident_fraction", "learning_rate", "ema_decay", "is_finite")
        progress.step(step + 1, {name: np.float32(1) for name in losses + others})
        notes.pending = progress.pending()

    def _evaluate(self, notes: RunNotes, step: int) -> None:
        failed = FailedImages(self._source, records=notes.failed_records)
        failed.check(max_fraction=1.0)
        names = self._experiment.classes.names
        judge = Judge(_Same(len(self._source), len(names)), notes, threshold=0.5, class_names=names)
        if not judge.has_begun():
            judge.begin({}, between_batches=lambda: None)
        scores = {"student": SCORE, "teacher": SCORE}
        evaluation = {"step": step + 1, "epoch": 9} | fields(scores)
        judge.look(evaluation, student={}, teacher={}, between_batches=lambda: None)
        if notes.zero_shot is None:  # as a run does at its start
            notes.zero_shot = fields({"zeroshot": SCORE})
        notes.best_by_labels = best_by_labels(notes, "top1")
        chosen = next(iter(judge.ranked()))
        result = result_of(notes, scores, chosen=chosen, eval_metric="top1", num_images=36)
        sentence(result | {"seconds": notes.seconds}, workdir="run")


class _Same:
    """A probe of images of which the last does not decode."""

    def __init__(self, count: int, num_classes: int):
        self.images = range(count)
        p = np.random.default_rng(0).dirichlet(np.ones(num_classes), count)
        self._predictions = ProbePredictions.of(p, is_known=np.arange(count) < count - 1)

    def __call__(self, *, between_batches: Any, **trees: Any) -> dict[str, ProbePredictions]:
        return dict.fromkeys(trees, self._predictions)
