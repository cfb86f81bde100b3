"""The page's curves over epochs."""

from __future__ import annotations

from collections.abc import Mapping

from must_jax.pages.charts import Line, line_chart
from must_jax.pages.parts import paragraph, section
from must_jax.reporting.report import Report
from must_jax.scores import IN_WORDS

_LOSSES = {
    "loss": "sum of the losses",
    "loss_self_train": "self-training: cross-entropy with pseudo-labels",
    "loss_fair": "fairness: how far classes are from equal shares",
    "loss_mim": "masked patches: error of what is filled in",
    "loss_align": "alignment of the global and local features",
}


def _chart(report: Report, title: str, names: Mapping[str, str], **keywords) -> str:
    """A chart of metrics by what the legend calls them."""
    lines = [
        Line(name=told, points=report.history[name])
        for name, told in names.items()
        if name in report.history
    ]
    return line_chart(title, lines, x_name="epoch", **keywords)


def without_labels(report: Report) -> str:
    """What predictions of unlabelled training images tell over time."""
    rang = [evaluation.epoch for evaluation in report.evaluations if evaluation.alarms]
    keywords = {"as_percent": True, "x_marks": rang}
    charts = [
        _chart(
            report,
            "consensus of teacher and student",
            {"quality/consensus": "consensus"},
            x_marks=rang,
        ),
        _chart(
            report,
            "images on which two agree",
            {
                "quality/teacher_student": "teacher, student",
                "quality/teacher_zeroshot": "teacher, zero-shot",
                "quality/sure_teacher_zeroshot": "the same, surest half",
            },
            **keywords,
        ),
        _chart(
            report,
            "stability: as at the evaluation before",
            {"quality/stability": "unchanged"},
            **keywords,
        ),
        _chart(
            report,
            "evenness of the predicted classes (entropy)",
            {
                "quality/teacher_class_entropy": "teacher",
                "quality/student_class_entropy": "student",
                "quality/zeroshot_class_entropy": "zero-shot",
            },
            **keywords,
        ),
        _chart(
            report,
            "mean confidence",
            {
                "quality/teacher_mean_confidence": "teacher",
                "quality/student_mean_confidence": "student",
                "quality/zeroshot_mean_confidence": "zero-shot",
            },
            **keywords,
        ),
    ]
    return section(
        "Quality without labels",
        paragraph(
            f"Of {len(report.trained.records):,} training images, the same at every evaluation. "
            "Consensus is 1 where teacher and student agree and use all classes equally, 0 where "
            "one tells nothing of the other. In a run that goes well it rises and settles, "
            "agreement with zero-shot falls somewhat and then stays, and stability approaches "
            "100 %." + (" A red line is an evaluation at which an alarm rang." if rang else "")
        ),
        _plots(charts),
    )


def with_labels(report: Report) -> str:
    """Accuracy on the test images over time; nothing where there are none."""
    if report.test is None:
        return ""
    metric = report.result["eval_metric"]
    charts = [
        _chart(
            report,
            f"{IN_WORDS[each]}; the line is zero-shot",
            {f"eval/teacher_{each}": "teacher", f"eval/student_{each}": "student"},
            as_percent=True,
            level=report.result[f"zeroshot_{each}"],
        )
        for each in sorted(IN_WORDS, key=lambda name: name != metric)
    ]
    return section("Accuracy by the test labels", _plots(charts))


def training(report: Report) -> str:
    """Losses, confidence and what else a step tells."""
    charts = [
        _chart(
            report,
            "share of each batch that is trained on",
            {"train/confident_fraction": "confident"},
            as_percent=True,
        ),
        _chart(
            report,
            "pseudo-labels that are right, by the training labels",
            {"train/pseudo_label_accuracy": "right"},
            as_percent=True,
        ),
        *(_chart(report, told, {f"train/{name}": "loss"}) for name, told in _LOSSES.items()),
        _chart(report, "norm of the gradient", {"train/grad_norm": "norm"}),
        _chart(report, "steps skipped between log lines", {"train/skipped_steps": "skipped"}),
    ]
    return section("Training", _plots(charts))


def _plots(charts: list[str]) -> str:
    if not any(charts):
        return paragraph("metrics.jsonl tells nothing of it.", quiet=True)
    return f'<div class="plots">{"".join(charts)}</div>'
