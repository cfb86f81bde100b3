"""The page about a finished run, from the run itself or from its workdir."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from must_jax import sharding
from must_jax.config import flat_fields
from must_jax.data.sources import Source
from must_jax.errors import UserError
from must_jax.experiment import Experiment, build
from must_jax.inspection.sheet import Card
from must_jax.local_files import read_text
from must_jax.noted import wrong_in_result
from must_jax.pages.document import write_page
from must_jax.predictor import Predictor
from must_jax.probe import Probe
from must_jax.progress import say
from must_jax.quality import Quality, ranking
from must_jax.reporting.history import read_history
from must_jax.reporting.page import render
from must_jax.reporting.pictures import failed_images, reconstructions, thumbnails
from must_jax.reporting.predictions import Predictions, predict_all
from must_jax.reporting.report import Evaluation, NoReportError, Report
from must_jax.reporting.statistics import least_sure, surest
from must_jax.results import forget_others
from must_jax.resume import IMAGES, read_state
from must_jax.run_notes import RunNotes
from must_jax.source_digest import names_digest, test_images_digest
from must_jax.state import Params

PAGE = "report.html"
_SHOWN = 8  # images of a kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run with nothing left to train.

    Attributes:
      experiment: what it is made of.
      workdir: where it is.
      mesh: where its parameters are.
      train: the training images.
      test: the labelled test images, or None.
      predictor: on that mesh.
      probe: of the training images.
      student, teacher: the last parameters.
      classifier: zero-shot CLIP's (E, K); None: from the texts, which takes a while.
      notes: what it remembers.
      result: the content of result.json.
    """

    experiment: Experiment
    workdir: str
    mesh: Mesh
    train: Source
    test: Source | None
    predictor: Predictor
    probe: Probe
    student: Params
    teacher: Params
    classifier: np.ndarray | None
    notes: RunNotes
    result: Mapping[str, Any]


def write_report(run: FinishedRun, *, between_batches: Callable[[], None]) -> None:
    """Writes WORKDIR/report.html, on the first process; all must call it.

    Args:
      run: what to report.
      between_batches: called as often on every process, and may end it by raising.

    Raises:
      NoReportError: it can't be written, or no training image decodes any more.
      UserError: this process, maybe alone, can't go on.
    """
    started = time.perf_counter()
    student = run.experiment.zero_shot_student(classifier=run.classifier)
    trees = {
        "zeroshot": sharding.put(student, sharding.state_shardings(run.mesh, student)),
        "student": run.student,
        "teacher": run.teacher,
    }

    def predicted(source: Source) -> Predictions:
        return predict_all(
            run.predictor,
            source,
            num_classes=len(run.experiment.classes.names),
            between_batches=between_batches,
            **trees,
        )

    trained = predicted(run.probe.images)
    if not len(trained.records):
        raise NoReportError(f"none of the images that it shows of {run.train.path} decode now")
    tested = predicted(run.test) if run.test is not None else None
    cards = reconstructions(run.experiment, run.train, run.mesh, student=run.student)
    if jax.process_index() == 0:
        trained = _of_source(trained, run.probe.records, run.train)
        path = pathlib.Path(run.workdir) / PAGE
        try:
            write_page(path, render(_report(run, trained=trained, tested=tested, cards=cards)))
        except OSError as error:
            raise NoReportError(f"{path} cannot be written ({error.strerror})") from error
        except UserError as error:
            raise NoReportError(str(error)) from error
        say(f"{path} shows it, made in {time.perf_counter() - started:.1f} s")


def _of_source(predictions: Predictions, records: Sequence[int], source: Source) -> Predictions:
    """Predictions of some records as those of the source that they are of, with its labels."""
    of_source = np.array(records)
    found = of_source[predictions.records]
    labels = None
    if source.labels is not None:
        labels = np.array([source.labels[record] for record in found.tolist()])
    return dataclasses.replace(
        predictions, records=found, failed=of_source[predictions.failed], labels=labels
    )


def _report(
    run: FinishedRun,
    *,
    trained: Predictions,
    tested: Predictions | None,
    cards: tuple[Card, ...],
) -> Report:
    config = run.experiment.config
    metric = run.result["eval_metric"]
    evaluations = [
        Evaluation(
            step=one["step"],
            epoch=one["epoch"],
            accuracy=one.get(f"teacher_{metric}"),
            quality=Quality.from_json(one["quality"]),
            alarms=one["alarms"],
        )
        for one in run.notes.evaluations
    ]
    confidence = trained.teacher.probabilities[:, 0]
    first = trained.teacher.classes[:, 0]
    size = {"image_size": config.image_size}
    mistakes: tuple = ()
    if run.test is not None and tested is not None and tested.labels is not None:
        wrong = np.flatnonzero(tested.teacher.classes[:, 0] != tested.labels)
        sure = least_sure(-tested.teacher.probabilities[wrong, 0], count=_SHOWN)
        mistakes = thumbnails(run.test, tested, wrong[sure], **size)
    return Report(
        workdir=run.workdir,
        train=run.train.path,
        test=None if run.test is None else run.test.path,
        class_names=run.experiment.classes.names,
        num_images=len(run.train),
        result=run.result,
        config=dict(flat_fields(config)),
        history=read_history(
            pathlib.Path(run.workdir) / "metrics.jsonl",
            steps_per_epoch=len(run.train) // config.batch_size,
        ),
        evaluations=evaluations,
        chosen=next(iter(ranking([one.quality for one in evaluations])), None),
        trained=trained,
        tested=tested,
        surest=thumbnails(run.train, trained, surest(confidence, first, count=_SHOWN), **size),
        least_sure=thumbnails(run.train, trained, least_sure(confidence, count=_SHOWN), **size),
        mistakes=mistakes,
        cards=cards,
        failed=failed_images(run.train, run.notes.failed_records),
    )


def report_again(config: ml_collections.ConfigDict, workdir: str) -> None:
    """`--mode=report`: writes WORKDIR/report.html of a run that has ended.

    Raises:
      UserError: the input is bad, the run has not ended, or the page can't be written.
    """
    result = _read_result(workdir)
    experiment = build(config)
    mesh = experiment.make_mesh()
    train, test = experiment.train_source(mesh), experiment.test_source()
    restored = read_state(experiment, workdir, mesh=mesh)
    if restored.step != result["steps"]:
        raise UserError(
            f"{workdir} is at step {restored.step}, and its result.json is of step "
            f"{result['steps']}: train it to its end first"
        )
    notes = RunNotes.from_json(restored.notes, path=workdir)
    images = names_digest(train)
    if notes.facts.get(IMAGES, images) != images or max(notes.failed_records, default=-1) >= len(
        train
    ):
        say(f"{train.path} has other images than the run had; those that failed are not named")
        notes = dataclasses.replace(notes, failed_records=[])
    forget_others(notes, test=test_images_digest(test), zero_shot=notes.zero_shot)
    predictor = Predictor(experiment, mesh)
    run = FinishedRun(
        experiment=experiment,
        workdir=workdir,
        mesh=mesh,
        train=train,
        test=test,
        predictor=predictor,
        probe=Probe(predictor, train, num_images=config.probe_images),
        student=restored.state.params,
        teacher=restored.state.teacher_params,
        classifier=None,
        notes=notes,
        result=result,
    )
    write_report(run, between_batches=lambda: None)


def _read_result(workdir: str) -> dict[str, Any]:
    path = os.path.join(workdir, "result.json")
    try:
        result = dict(json.loads(read_text(path)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); train the run to its end, which writes it"
        ) from error
    if wrong := wrong_in_result(result):
        raise UserError(f"{path} is no result of a run ({wrong}); train the run to its end again")
    return result
