"""The page's parts about classes: how often, what changed, what is confused."""

from __future__ import annotations

import numpy as np

from must_jax.pages import parts
from must_jax.pages.parts import paragraph, section
from must_jax.progress import percent
from must_jax.reporting.predictions import Predictions
from must_jax.reporting.report import Report
from must_jax.reporting.statistics import (
    Change,
    Pair,
    accuracy_changes,
    differing_pairs,
    ranked_shares,
    share_changes,
)

ALL_SHOWN = 24  # classes; of more, the ends
_ENDS = 10
_COLUMNS = 50
_PAIRS = 12
_LISTED = 40


def histogram(report: Report) -> str:
    """How often each class is predicted, beside an equal share."""
    predictions, names = report.trained, report.class_names
    after = predictions.counts(predictions.teacher)
    before = predictions.counts(predictions.zeroshot)
    share = after.sum() / len(after)
    order = np.argsort(-after, kind="stable")

    def bars(labels: np.ndarray) -> str:
        return parts.bars(
            [
                (names[k], int(after[k]), f"{after[k]:,} (zero-shot {before[k]:,})")
                for k in labels.tolist()
            ],
            mark=share,
        )

    if len(after) <= ALL_SHOWN:
        shown = [bars(order)]
    else:
        columns = ranked_shares(after, columns=_COLUMNS)
        shown = [
            parts.histogram(
                columns.tolist(),
                axis=("most frequent", f"{len(after):,} classes by rank", "least frequent"),
                on=[True] * len(columns),
                told=f"Images of each class from the most frequent, {after.max()}, to the least, "
                f"{after.min()}; an equal share is {share:.1f}",
                mark=share,
            ),
            "<h3>Most frequent</h3>",
            bars(order[:_ENDS]),
            "<h3>Least frequent</h3>",
            bars(order[-_ENDS:]),
        ]
    missing = np.flatnonzero(after == 0)
    if len(missing):
        rest = f" and {len(missing) - _LISTED:,} more" if len(missing) > _LISTED else ""
        listed = ", ".join(names[k] for k in missing[:_LISTED])
        shown.append(paragraph(f"Never predicted, {len(missing):,} classes: {listed}{rest}."))
    return section(
        "Predicted classes",
        paragraph(
            f"How many of {after.sum():,} training images the teacher takes for each class. The "
            f"line is an equal share, {share:.1f} images, which is what the fairness term pulls "
            "towards: if your classes are far from it, lower config.fair_weight."
        ),
        *shown,
    )


def changes(report: Report) -> str:
    """Each class before training and after."""
    trained, tested, names = report.trained, report.tested, report.class_names
    shown = []
    if tested is not None and tested.labels is not None:
        shown += [
            "<h3>By the test labels: right of each class's own images</h3>",
            _ends(
                ["class", "images", "zero-shot", "teacher", "change"],
                accuracy_changes(
                    tested.zeroshot.classes[:, 0],
                    tested.teacher.classes[:, 0],
                    labels=tested.labels,
                    num_classes=tested.num_classes,
                ),
                lambda change: [
                    names[change.label],
                    f"{change.images:,}",
                    percent(change.before / (change.images or 1)),
                    percent(change.after / (change.images or 1)),
                    f"{100 * change.gain:+.1f}",
                ],
            ),
        ]
    shown += [
        "<h3>Without labels: training images taken for each class</h3>",
        _ends(
            ["class", "zero-shot", "teacher", "change"],
            share_changes(
                trained.zeroshot.classes[:, 0],
                trained.teacher.classes[:, 0],
                num_classes=trained.num_classes,
            ),
            lambda change: [
                names[change.label],
                f"{change.before:,}",
                f"{change.after:,}",
                f"{change.after - change.before:+,}",
            ],
        ),
    ]
    return section(
        "Classes, from zero-shot to adapted",
        paragraph(
            "A class that lost most of its images has been absorbed by another one: the pairs tell "
            "by which, and a more precise name or a synonym helps."
        ),
        *shown,
    )


def _ends(head: list[str], found: list[Change], row) -> str:
    """All changes where they are few, else the largest gains and losses."""
    if len(found) <= ALL_SHOWN:
        return parts.table(head, [row(change) for change in found])
    left_out = [f"{len(found) - 2 * _ENDS:,} classes in between", *[""] * (len(head) - 1)]
    rows = [row(change) for change in (*found[:_ENDS], *found[-_ENDS:])]
    return parts.table(head, [*rows[:_ENDS], left_out, *rows[_ENDS:]])


def pairs(report: Report) -> str:
    """What is taken for what: by labels, from zero-shot to teacher, from teacher to student."""
    trained, tested = report.trained, report.tested
    shown = []
    if tested is not None and tested.labels is not None:
        wrong = differing_pairs(
            tested.labels, tested.teacher.classes[:, 0], num_classes=tested.num_classes
        )
        shown += [
            "<h3>By the test labels</h3>",
            _pairs(report, wrong, tested, ["true class", "teacher says"], "No mistake was made."),
        ]
    teacher = trained.teacher.classes[:, 0]
    moved = differing_pairs(
        trained.zeroshot.classes[:, 0], teacher, num_classes=trained.num_classes
    )
    differs = differing_pairs(
        teacher, trained.student.classes[:, 0], num_classes=trained.num_classes
    )
    shown += [
        "<h3>Without labels: moved by training</h3>",
        _pairs(report, moved, trained, ["zero-shot said", "teacher says"], "No image moved."),
        "<h3>Without labels: not agreed on</h3>",
        _pairs(
            report,
            differs,
            trained,
            ["teacher says", "student says"],
            "Teacher and student agree on every image.",
        ),
    ]
    return section(
        "Pairs of classes",
        paragraph(
            "Many images moved from one class to another are either what zero-shot CLIP confused "
            "and training mended, or a class that is being absorbed: look at some of them. Classes "
            "that teacher and student don't agree on are the ones still in doubt."
        ),
        f'<div class="plots">{"".join(f"<div>{h}{t}</div>" for h, t in _by_two(shown))}</div>',
    )


def _by_two(items: list[str]) -> list[tuple[str, str]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _pairs(report: Report, found: list[Pair], of: Predictions, head: list[str], none: str) -> str:
    if not found:
        return paragraph(none)
    names, total = report.class_names, sum(pair.images for pair in found)
    rows = [
        [names[first], names[second], f"{images:,}"] for first, second, images in found[:_PAIRS]
    ]
    rest = f", in {len(found):,} pairs, of which {_PAIRS} are shown" if len(found) > _PAIRS else ""
    return parts.table([*head, "images"], rows) + paragraph(
        f"{total:,} of {len(of.records):,} images in all{rest}.", quiet=True
    )
