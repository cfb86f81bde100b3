"""The page that shows an inspection, complete in one file: no script, nothing to fetch."""

from __future__ import annotations

from must_jax.inspection import sections
from must_jax.inspection.cards import sheet
from must_jax.inspection.report import Report
from must_jax.inspection.warnings import warnings
from must_jax.pages import parts
from must_jax.pages.document import document
from must_jax.pages.parts import escaped, paragraph, section
from must_jax.progress import percent


def render(report: Report) -> str:
    """The page as HTML that is well-formed XML too."""
    title = f"Inspection of {report.workdir}"
    body = "".join(
        [
            f"<header><h1>{escaped(title)}</h1>",
            paragraph(f"{report.source}; made in {report.seconds:.0f} s", quiet=True),
            "</header><main>",
            _tiles(report),
            _warnings(report),
            _sheet(report),
            '<div class="columns"><div>',
            sections.confidence(report),
            sections.names(report.near, report.class_names),
            sections.prompts(report),
            "</div><div>",
            sections.classes(report),
            sections.images(report),
            sections.run(report.facts),
            "</div></div></main>",
        ]
    )
    return document(title, body)


def _tiles(report: Report) -> str:
    facts, predictions = report.facts, report.predictions
    tiles = [
        parts.tile(f"{facts.images:,}", "training images"),
        parts.tile(f"{facts.num_classes:,}", "classes"),
        parts.tile(f"{facts.num_steps:,}", f"steps, {facts.steps_per_epoch:,} an epoch"),
        parts.tile(
            percent(predictions.passing(facts.confidence_threshold)),
            f"confident at {facts.confidence_threshold}",
        ),
        parts.tile(f"{report.suggested_threshold}", "suggested threshold to start from"),
    ]
    if predictions.labels is not None:
        tiles.append(parts.tile(percent(predictions.accuracy()), "zero-shot, by the labels"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _warnings(report: Report) -> str:
    found = warnings(report)
    if not found:
        return section("Nothing to warn of", paragraph("No check found anything.", quiet=True))
    return section("Look into this first", parts.listing(found), kind="warnings")


def _sheet(report: Report) -> str:
    step = report.facts.checkpoint_step
    if step is None:
        told = (
            "The decoder is untrained, so that what it fills in is noise: inspect again once the "
            "workdir has a checkpoint."
        )
    else:
        told = f"Teacher and reconstructions are of the checkpoint at step {step:,}."
    return section(
        "What the model sees",
        paragraph(
            "Views of the first epoch, as the run will draw them: the weak view is the teacher's; "
            "the strong view with its masked patches is the student's, which has to fill them in. "
            + told
        ),
        sheet(
            report.cards,
            source=report.source,
            class_names=report.class_names,
            image_size=report.facts.image_size,
        ),
    )
