"""The page's parts that are figures, tables and lists."""

from __future__ import annotations

import math

import numpy as np

from must_jax.inspection.facts import RunFacts
from must_jax.inspection.names import NearNames
from must_jax.inspection.report import Report
from must_jax.inspection.statistics import (
    THRESHOLDS,
    missing_by_chance,
    never_predicted,
    over_predicted,
)
from must_jax.pages import parts
from must_jax.pages.parts import paragraph, section
from must_jax.progress import percent

_BINS = 20
_CLASSES_SHOWN = 30
_LISTED = 50


def confidence(report: Report) -> str:
    """Histogram of the confidence, and what passes which threshold."""
    predictions, threshold = report.predictions, report.facts.confidence_threshold
    counts, edges = np.histogram(predictions.confidence, bins=_BINS, range=(0, 1))
    margin = 1 / len(predictions.confidence) ** 0.5  # two standard errors of a share of one half
    labelled = predictions.labels is not None
    rows = []
    for candidate in sorted({*THRESHOLDS, threshold}):
        row = [f"{candidate:g}", percent(predictions.passing(candidate))]
        if labelled:
            row.append(percent(predictions.accuracy(candidate)))
        notes = ["configured"] * (candidate == threshold)
        notes += ["suggested"] * (candidate == report.suggested_threshold)
        rows.append([*row, ", ".join(notes)])
    used = ""
    if report.prompts_used < report.prompts.count:
        used = (
            f" To save time, {report.prompts_used:,} of the {report.prompts.count:,} prompts made "
            "the classifier here; the run takes them all."
        )
    return section(
        "Confidence of the pseudo-labels",
        paragraph(
            f"Zero-shot CLIP on the weak views of {len(predictions.confidence):,} images; mean "
            f"confidence {report.mean_confidence:.2f}. Coloured columns pass the configured "
            f"threshold {threshold:g}. With so many images a share is good to about "
            f"{margin:.0%}.{used}"
        ),
        parts.histogram(
            counts.tolist(),
            axis=("0", "0.2", "0.4", "0.6", "0.8", "1"),
            on=(edges[:-1] >= threshold - 1e-9).tolist(),
            told=f"Histogram of confidence from 0 to 1; the highest column has {counts.max()} "
            f"images, {percent(predictions.passing(threshold))} pass {threshold:g}",
        ),
        parts.table(
            ["threshold", "images that pass", *(["right, by the labels"] if labelled else []), ""],
            rows,
            marked=[place for place, row in enumerate(rows) if row[-1]],
        ),
        paragraph(
            "The suggestion is three quarters of the mean confidence, in tenths from 0.2 to 0.7, "
            "which is where the published recipes lie. It is a value to start from, no more.",
            quiet=True,
        ),
    )


def classes(report: Report) -> str:
    """How often each class is predicted."""
    counts, names = report.predictions.counts, report.class_names
    total, share = int(counts.sum()), counts.sum() / len(counts)
    shown = np.argsort(-counts, kind="stable")[: min(_CLASSES_SHOWN, np.count_nonzero(counts))]
    missing, over = never_predicted(counts), over_predicted(counts)
    expected = missing_by_chance(num_images=total, num_classes=len(counts))
    more = f" The {len(shown)} most frequent are shown." if len(shown) < len(counts) else ""
    found = []
    if len(missing):
        rest = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        listed = ", ".join(names[label] for label in missing[:_LISTED])
        found.append(
            paragraph(
                f"Never predicted: {len(missing)} of {len(counts)} classes ({expected:.1f} are "
                f"expected by chance if all are equally frequent): {listed}{rest}."
            )
        )
    if len(over):
        listed = ", ".join(names[label] for label in over[:_LISTED])
        found.append(paragraph(f"More than twice an equal share: {listed}."))
    return section(
        "Predicted classes",
        paragraph(
            f"How often each class is the zero-shot prediction, over {total:,} images. The line "
            f"marks an equal share, {share:.1f} images.{more}"
        ),
        parts.bars(
            [(names[label], int(counts[label]), f"{counts[label]:,}") for label in shown],
            mark=share,
        ),
        *found,
    )


def names(near: NearNames, class_names: tuple[str, ...]) -> str:
    """The classes nearest to one another."""
    same = ""
    if near.same:
        texts = [
            f"{name}: {', '.join(f'{class_names[label]} (class {label})' for label in labels)}"
            for name, labels in near.same
        ]
        same = "<h3>Names of several classes</h3>" + parts.listing(texts)
    if not near.pairs:
        return section("Names", paragraph("There is one class alone."))
    found = "No pair is" if not near.num_flagged else f"{near.num_flagged:,} of all pairs are"
    return section(
        "Names",
        paragraph(
            f"The classes closest to one another for the text tower. {found} above "
            f"{near.bound:.3f}, far out of what pairs have here (median {near.median:.3f}): such "
            "names may stand for one thing."
        ),
        parts.table(
            ["class", "class", "cosine"],
            [[class_names[a], class_names[b], f"{cosine:.3f}"] for a, b, cosine in near.pairs[:10]],
            marked=[i for i, pair in enumerate(near.pairs[:10]) if pair[2] > near.bound],
        ),
        same,
    )


def prompts(report: Report) -> str:
    """Number and length of the prompts."""
    prompts = report.prompts
    cut = ""
    if prompts.num_cut:
        cut = paragraph(
            f"{prompts.num_cut:,} lose their last tokens, the longest first:"
        ) + parts.listing(f"{text} ({length} tokens)" for text, length in prompts.cut)
    return section(
        "Prompts",
        paragraph(
            f"{prompts.count:,} prompts, {report.facts.num_templates:,} templates; the longest has "
            f"{prompts.longest} tokens of the {prompts.context_length} that the text tower reads."
        ),
        cut,
    )


def images(report: Report) -> str:
    """Sizes, formats, damage and copies."""
    survey, short = report.survey, report.survey.short_sides
    lower, middle, upper = (int(value) for value in np.quantile(short, (0, 0.5, 1)))
    wide, high = survey.sizes.T
    kept = short / survey.sizes.max(axis=1)
    rows = [
        ["looked at", f"{survey.looked_at:,} of {report.facts.images:,}"],
        ["short side", f"{lower:,} to {upper:,} pixels, median {middle:,}"],
        ["smaller than image_size", f"{percent(report.small_share)} are enlarged"],
        ["width / height", f"{(wide / high).min():.2f} to {(wide / high).max():.2f}"],
        ["kept by a square crop", f"{percent(float(np.median(kept)))} of the median image"],
        ["formats", ", ".join(f"{name} {count:,}" for name, count in survey.formats.items())],
        ["do not decode", f"{len(survey.failures):,}"],
        ["exact copies", f"{sum(len(group) - 1 for group in survey.duplicates):,}"],
    ]
    lists = ""
    if survey.failures:
        lists += "<h3>Do not decode</h3>" + parts.listing(
            f"{name}: {reason}" for name, reason in survey.failures[:_LISTED]
        )
    if survey.duplicates:
        lists += "<h3>Exact copies</h3>" + parts.listing(
            " = ".join(group) for group in survey.duplicates[:_LISTED]
        )
    chart = ""
    if lower < upper:
        counts, edges = np.histogram(short, bins=_BINS)
        size = report.facts.image_size
        chart = parts.histogram(
            counts.tolist(),
            axis=(f"{lower:,} pixels", "short side", f"{upper:,} pixels"),
            # A column ends before its upper edge, but the last one with it.
            on=[*(edges[1:-1] > size).tolist(), upper >= size],
            told=f"Histogram of the short side, {lower} to {upper} pixels, median {middle}",
        )
        chart += paragraph("Pale columns are enlarged to image_size.", quiet=True)
    return section(
        "Images",
        chart,
        parts.table([], rows),
        lists,
    )


def run(facts: RunFacts) -> str:
    """The run in numbers."""
    horizon = "never" if facts.ema_horizon == math.inf else f"{facts.ema_horizon:,.0f} steps"
    rows = [
        ["images", f"{facts.images:,} to train on, {facts.test_images:,} labelled to test on"],
        ["steps", f"{facts.num_steps:,}: {facts.epochs:,} epochs of {facts.steps_per_epoch:,}"],
        ["left out of an epoch", f"{facts.left_over:,} images, others each time"],
        [
            "batch",
            f"{facts.batch_size:,}, {facts.batch_size // facts.devices:,} on each of "
            f"{facts.devices} {facts.device_kind} device(s) here",
        ],
        ["view", f"{facts.image_size} x {facts.image_size} pixels, {facts.num_patches} patches"],
        ["masked", f"{facts.masked_patches} patches of every strong view"],
        ["state", f"{facts.state_bytes / 1e6:,.1f} MB on each device, without activations"],
        ["learning rate", f"{facts.learning_rate:.3g} at the first step, for this batch"],
        ["teacher averages over", horizon],
        ["start left in the final teacher", percent(facts.start_weight)],
        [
            "checkpoint",
            "none yet" if facts.checkpoint_step is None else f"step {facts.checkpoint_step:,}",
        ],
    ]
    return section("Run", parts.table([], rows))
