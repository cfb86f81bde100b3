"""`--mode=inspect`: looks at all that a run would see and do, and writes it down."""

from __future__ import annotations

import pathlib
import time

import jax
import ml_collections
import numpy as np

from must_jax import sharding
from must_jax.checkpoint import complete_steps
from must_jax.data.sources import Source
from must_jax.errors import UserError
from must_jax.experiment import Experiment, build
from must_jax.inspection import classifier, images, names, page, predict, prompts
from must_jax.inspection.facts import RunFacts, start_weight
from must_jax.inspection.report import Report
from must_jax.inspection.warnings import warnings
from must_jax.metrics import write_json
from must_jax.pages.document import write_page
from must_jax.progress import percent, say
from must_jax.resume import read_state
from must_jax.state import TrainState

PAGE, NUMBERS = "inspect.html", "inspect.json"
MAX_SURVEYED, MAX_PREDICTED = 2000, 2048

# Of a minute, the rest being start-up, compilation, and batches that are under way at their end.
SECONDS = 40.0
# Of what is then left of it. The contact sheet's images come last.
SURVEY_SHARE, TEXTS_SHARE, PREDICT_SHARE = 0.15, 0.3, 0.6


def inspect_run(config: ml_collections.ConfigDict, workdir: str) -> Report:
    """Inspects the run that `config` and `workdir` stand for, in a minute.

    Writes inspect.html and inspect.json under `workdir`, and nothing else.

    Raises:
      UserError: the input is bad, and nothing was written.
    """
    started = time.perf_counter()

    def seconds(share: float) -> float:
        return share * max(0.0, SECONDS - (time.perf_counter() - started))

    if jax.process_count() > 1:
        raise UserError("--mode=inspect runs in one process; start it on one machine alone")
    experiment = build(config)
    mesh = experiment.make_mesh()
    source = experiment.train_source(mesh)
    test_source = experiment.test_source()
    state = _checkpoint(experiment, workdir, mesh)
    say(f"inspecting {source.path}, which takes up to a minute")

    survey = images.survey(
        images.look_at(
            source,
            images.spread(len(source), MAX_SURVEYED),
            seconds=seconds(SURVEY_SHARE),
            num_threads=max(1, config.loader.num_threads),
        )
    )
    columns, prompts_used = classifier.zero_shot_classifier(
        experiment, seconds=seconds(TEXTS_SHARE)
    )
    student = experiment.zero_shot_student(classifier=columns)
    student = sharding.put(student, sharding.state_shardings(mesh, student))
    predictor = predict.Predictor(experiment, mesh)
    batches = predict.first_batches(
        experiment,
        source,
        mesh=mesh,
        seconds=seconds(PREDICT_SHARE),
        max_images=MAX_PREDICTED,
    )
    num_classes = len(experiment.classes.names)
    predictions, shown = predictor.predictions(student, batches, num_classes=num_classes)
    cards = predictor.cards(
        shown,
        source,
        student=student if state is None else state.params,
        teacher=None if state is None else state.teacher_params,
    )
    report = Report(
        workdir=workdir,
        source=source.path,
        class_names=experiment.classes.names,
        facts=_facts(
            experiment,
            source,
            test_images=0 if test_source is None else len(test_source),
            masked_patches=int(shown["patch_mask"][0].sum()),
            checkpoint_step=None if state is None else int(state.step),
        ),
        survey=survey,
        predictions=predictions,
        prompts_used=prompts_used,
        near=names.near_names(columns, experiment.classes.synonyms),
        prompts=_prompts(experiment),
        cards=cards,
        seconds=time.perf_counter() - started,
    )
    _write(workdir, report)
    _tell(report)
    return report


def _checkpoint(experiment: Experiment, workdir: str, mesh: jax.sharding.Mesh) -> TrainState | None:
    if not complete_steps(workdir):
        return None
    return read_state(experiment, workdir, mesh=mesh).state


def _facts(
    experiment: Experiment,
    source: Source,
    *,
    test_images: int,
    masked_patches: int,
    checkpoint_step: int | None,
) -> RunFacts:
    config = experiment.config
    steps_per_epoch = len(source) // config.batch_size
    keywords = experiment.step_keywords(
        experiment.student_shapes(), steps_per_epoch=steps_per_epoch
    )
    steps = np.arange(config.epochs * steps_per_epoch)
    decays = np.broadcast_to(keywords["ema_decay"](steps), steps.shape)
    state = jax.tree.leaves(experiment.state_shapes())
    return RunFacts(
        images=len(source),
        test_images=test_images,
        num_classes=len(experiment.classes.names),
        num_templates=len(experiment.templates),
        batch_size=config.batch_size,
        epochs=config.epochs,
        devices=jax.device_count(),
        device_kind=jax.devices()[0].device_kind,
        image_size=config.image_size,
        num_patches=experiment.spec.vision.num_patches,
        masked_patches=masked_patches,
        state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in state),
        learning_rate=float(keywords["learning_rate"](0)),
        confidence_threshold=config.confidence_threshold,
        ema_decay=config.ema_decay,
        start_weight=start_weight(decays),
        checkpoint_step=checkpoint_step,
    )


def _prompts(experiment: Experiment) -> prompts.Prompts:
    texts = [text for of_class in experiment.texts for text in of_class]
    return prompts.measure(
        texts,
        [len(tokens) for tokens in experiment.tokenizer.encode(texts)],
        context_length=experiment.spec.text.context_length,
    )


def _write(workdir: str, report: Report) -> None:
    """Writes both files, each whole or not at all."""
    folder = pathlib.Path(workdir)
    try:
        write_page(folder / PAGE, page.render(report))
        write_json(folder / NUMBERS, {"warnings": warnings(report)} | report.numbers())
    except OSError as error:
        raise UserError(f"{workdir} cannot be written ({error.strerror})") from error


def _tell(report: Report) -> None:
    """The summary on the terminal."""
    facts, survey, predictions = report.facts, report.survey, report.predictions
    short = np.quantile(survey.short_sides, (0, 0.5, 1)).astype(int)
    say(
        f"{facts.images} images, {survey.looked_at} looked at: short side {short[0]} to "
        f"{short[2]} pixels, median {short[1]}; {len(survey.failures)} do not decode"
    )
    say(
        f"{facts.num_classes} classes, {facts.num_templates} templates, {facts.num_steps} steps of "
        f"{facts.batch_size} images on {facts.devices} {facts.device_kind} device(s)"
    )
    accuracy = predictions.accuracy()
    by_labels = "" if accuracy is None else f"; {percent(accuracy)} right by the labels"
    say(
        f"zero-shot on {len(predictions.confidence)} images: "
        f"{percent(predictions.passing(facts.confidence_threshold))} confident at "
        f"{facts.confidence_threshold:g}, threshold to start from "
        f"{report.suggested_threshold:g}{by_labels}"
    )
    for warning in warnings(report):
        say(f"look into: {warning}")
    say(f"inspected in {report.seconds:.0f} s; {report.workdir}/{PAGE} shows it")
