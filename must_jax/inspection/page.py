"""The page that shows an inspection, complete in one file: no script, nothing to fetch."""

from __future__ import annotations

import importlib.resources

from must_jax.inspection import parts, sections
from must_jax.inspection.parts import escaped, paragraph, section
from must_jax.inspection.report import Report
from must_jax.inspection.sheet import Card, Guess
from must_jax.inspection.warnings import warnings
from must_jax.progress import percent

_PIXELS_SHOWN = 64  # views up to this side are shown with sharp pixels
# A browser refuses whatever slips past the escaping: scripts, frames, anything from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(report: Report) -> str:
    """The page as HTML that is well-formed XML too."""
    title = f"Inspection of {report.workdir}"
    style = importlib.resources.files("must_jax").joinpath("assets/inspect/style.css").read_text()
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
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(_POLICY)}"/>'
        f"<title>{escaped(title)}</title><style>\n{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )


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
    cards = "".join(_card(card, report) for card in report.cards)
    small = " pixels" if report.facts.image_size <= _PIXELS_SHOWN else ""
    return section(
        "What the model sees",
        paragraph(
            "Views of the first epoch, as the run will draw them: the weak view is the teacher's; "
            "the strong view with its masked patches is the student's, which has to fill them in. "
            + told
        ),
        f'<div class="sheet{small}">{cards}</div>',
    )


def _card(card: Card, report: Report) -> str:
    class_names, name = report.class_names, card.name.removeprefix(f"{report.source}/")

    def told(who: str, guess: Guess) -> str:
        return f"{who}: {class_names[guess.predicted]}, {guess.confidence:.0%}"

    lines = [told("zero-shot", card.zero_shot)]
    if card.teacher is not None:
        lines.append(told("teacher", card.teacher))
    if card.label is not None:
        lines.append(f"label: {class_names[card.label]}")
    pictures = {
        "weak": ("weak view", card.weak),
        "strong": ("strong view", card.strong),
        "masked": ("strong view with masked patches in a grey pattern", card.masked),
        "filled in": ("strong view with masked patches filled in by the model", card.reconstructed),
    }
    views = "".join(
        f'<div><img src="{address}" alt="{escaped(f"{what} of {name}")}"/>{short}</div>'
        for short, (what, address) in pictures.items()
    )
    told_lines = "".join(f"<br/>{escaped(line)}" for line in lines)
    return (
        f'<figure class="card"><div class="views">{views}</div>'
        f"<figcaption><code>{escaped(name)}</code>{told_lines}</figcaption></figure>"
    )
