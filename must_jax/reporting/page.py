"""The page about a finished run, complete in one file."""

from __future__ import annotations

from must_jax.pages.document import document
from must_jax.pages.parts import escaped, paragraph
from must_jax.reporting import classes, curves, sections
from must_jax.reporting.advice import advice
from must_jax.reporting.report import Report


def render(report: Report) -> str:
    """The page as HTML that is well-formed XML too."""
    title = f"Report on {report.workdir}"
    labelled = f"; {report.test}, labelled" if report.test else "; no labelled test images"
    body = "".join(
        [
            f"<header><h1>{escaped(title)}</h1>",
            paragraph(f"{report.train}{labelled}", quiet=True),
            "</header><main>",
            sections.tiles(report),
            sections.verdict(report, advice(report)),
            sections.checkpoints(report),
            curves.with_labels(report),
            curves.without_labels(report),
            curves.training(report),
            '<div class="columns"><div>',
            classes.histogram(report),
            "</div><div>",
            classes.changes(report),
            "</div></div>",
            classes.pairs(report),
            sections.images(report),
            sections.reconstructions(report),
            sections.skipped(report),
            sections.configuration(report),
            "</main>",
        ]
    )
    return document(title, body)
