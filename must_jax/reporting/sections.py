"""The page's parts that are neither curves nor about classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from must_jax.inspection.cards import PIXELS_SHOWN, sheet
from must_jax.pages import parts
from must_jax.pages.parts import escaped, paragraph, section
from must_jax.progress import percent
from must_jax.reporting.report import Evaluation, Report, Thumbnail
from must_jax.scores import IN_WORDS


def tiles(report: Report) -> str:
    """The numbers that are read first."""
    result, metric, last = report.result, report.result["eval_metric"], report.last
    shown = []
    if report.test is not None:
        before, after = (result[f"{tree}_{metric}"] for tree in ("zeroshot", "teacher"))
        shown += [
            parts.tile(percent(after), f"{IN_WORDS[metric]} by labels, from {percent(before)}"),
        ]
    if last is not None:
        quality = last.quality
        shown += [
            parts.tile(str(len(last.alarms)), "alarms at the end"),
            parts.tile(f"{quality.consensus:.3f}", "consensus of teacher and student"),
            parts.tile(percent(quality.teacher_zeroshot), "agreement with zero-shot CLIP"),
            parts.tile(percent(quality.stability), "stable since the evaluation before"),
            parts.tile(
                percent(quality.teacher.confident_fraction),
                f"confident at {report.config['confidence_threshold']:g}",
            ),
        ]
    shown += [
        parts.tile(f"{report.num_images:,}", f"images of {len(report.class_names):,} classes"),
        parts.tile(f"{result['seconds']:,.0f} s", f"for {result['steps']:,} steps"),
    ]
    return f'<div class="tiles">{"".join(shown)}</div>'


def verdict(report: Report, advice: Sequence[str]) -> str:
    """Whether it worked, and what to change."""
    last = report.last
    if not advice:
        told = (
            "No alarm rang, the teacher has settled, and no rule has anything to change. Look at "
            "the least certain images and at the pairs of classes before you rely on it."
        )
        return section("It looks well", paragraph(told))
    rings = last is not None and last.alarms
    title = "Something went wrong" if rings else "No alarm rings; look into this"
    return section(title, parts.listing(advice), kind="warnings" if rings else "")


def checkpoints(report: Report) -> str:
    """The last evaluation beside the one chosen without labels and the best by labels."""
    last, metric = report.last, report.result["eval_metric"]
    if last is None:
        return ""
    labelled = report.test is not None
    shown: list[tuple[str, Evaluation]] = [("last", last)]
    if report.chosen is not None:
        shown.append(("chosen without labels", report.evaluations[report.chosen]))
    best = report.result["best_by_labels"]
    if best:
        found = [each for each in report.evaluations if each.step == best.get("step")]
        shown += [("best by labels (chosen with them)", each) for each in found]

    rows: dict[str, Callable[[Evaluation], str]] = {
        "epoch": lambda each: f"{each.epoch:,}",
        "step": lambda each: f"{each.step:,}",
        "consensus": lambda each: f"{each.quality.consensus:.3f}",
        "agrees with zero-shot": lambda each: percent(each.quality.teacher_zeroshot),
        "stable": lambda each: percent(each.quality.stability),
        "confident": lambda each: percent(each.quality.teacher.confident_fraction),
        "alarms": lambda each: ", ".join(each.alarms) or "none",
    }
    if labelled:
        rows[f"teacher's {IN_WORDS[metric]}"] = lambda each: percent(each.accuracy)
    return section(
        "Checkpoints",
        paragraph(
            "The choice without labels takes the evaluation with the highest consensus of those "
            "without an alarm. It is what you can go by; the best by labels only shows how much "
            "was missed."
            if labelled
            else "The choice without labels takes the evaluation with the highest consensus of "
            "those without an alarm."
        ),
        parts.table(
            ["", *(name for name, _ in shown)],
            [[what, *(value(each) for _, each in shown)] for what, value in rows.items()],
        ),
    )


def images(report: Report) -> str:
    """The most and the least certain images, and the surest mistakes."""
    shown = [
        "<h3>Least certain</h3>",
        _gallery(report, report.least_sure),
        "<h3>Most certain, of different classes first</h3>",
        _gallery(report, report.surest),
    ]
    if report.mistakes:
        shown += [
            "<h3>By the test labels: the surest mistakes</h3>",
            _gallery(report, report.mistakes),
        ]
    return section(
        "Images",
        paragraph(
            f"As the model sees them, with what the teacher says. Of "
            f"{len(report.trained.records):,} training images, spread evenly. Least certain images "
            "that show something else than your classes call for a class of their own, or for "
            "being left out; most certain ones that are wrong want other names for their classes."
        ),
        *shown,
    )


def _gallery(report: Report, shown: Sequence[Thumbnail]) -> str:
    small = " pixels" if report.config["image_size"] <= PIXELS_SHOWN else ""
    cards = "".join(_thumbnail(each, report.class_names) for each in shown)
    return f'<div class="gallery{small}">{cards}</div>'


def _thumbnail(each: Thumbnail, names: Sequence[str]) -> str:
    lines = [f"{names[label]} {probability:.1%}" for label, probability in each.teacher]
    label, probability = each.zeroshot
    lines.append(f"zero-shot: {names[label]} {probability:.1%}")
    if each.label is not None:
        lines.append(f"label: {names[each.label]}")
    first, *rest = lines
    told = f"<b>{escaped(first)}</b>" + "".join(f"<br/>{escaped(line)}" for line in rest)
    picture = f'<img src="{each.picture}" alt="{escaped(each.name)}"/>' if each.picture else ""
    return (
        f'<figure class="card">{picture}<figcaption>{told}<br/><code>{escaped(each.name)}</code>'
        "</figcaption></figure>"
    )


def reconstructions(report: Report) -> str:
    """What the student fills in."""
    return section(
        "Reconstructions",
        paragraph(
            "Views of the run's first images: the teacher's weak view, the student's strong view, "
            "the same with its masked patches, and filled in by the student after training. "
            "Patches should fit in colour and brightness; that they are blurred is as it should be."
        ),
        sheet(
            report.cards,
            source=report.train,
            class_names=report.class_names,
            image_size=report.config["image_size"],
        ),
    )


def skipped(report: Report) -> str:
    """What was skipped: steps and images."""
    failed = report.failed
    told = [
        f"{report.result['skipped_steps']:,} of {report.result['steps']:,} steps were skipped, for "
        "losses or gradients were not finite.",
        f"{failed.count:,} of {report.num_images:,} training images ({percent(failed.fraction)}) "
        "did not decode.",
    ]
    if report.tested is not None and len(report.tested.failed):
        told.append(f"{len(report.tested.failed):,} test images did not decode.")
    shown = [paragraph(text) for text in told]
    if failed.named:
        shown.append(parts.listing(f"{name}: {reason}" for name, reason in failed.named))
    if failed.count > len(failed.named):
        shown.append(paragraph(f"And {failed.count - len(failed.named):,} more."))
    return section("Skipped", *shown)


def configuration(report: Report) -> str:
    """Fields and digests: enough to do the run again."""
    result = report.result
    digests = [[name, result[f"{name}_digest"]] for name in ("student", "teacher", "optimizer")]
    fields = [[name, json.dumps(value)] for name, value in sorted(report.config.items())]
    return section(
        "Run",
        parts.table(
            [],
            [
                ["training images", report.train],
                ["test images", report.test or "none"],
                *([f"{name}, SHA-256", value] for name, value in digests),
            ],
        ),
        parts.folded(
            f"{len(fields)} fields of the config", parts.table(["field", "value"], fields)
        ),
    )
