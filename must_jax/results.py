"""What a run ends with: result.json, and one sentence of it."""

import re
from typing import Any

from must_jax.progress import percent
from must_jax.run_notes import RunNotes
from must_jax.scores import NOTED, Scores, fields

Result = dict[str, Any]
ENDED = ("zeroshot", "student", "teacher")


def result_of(
    notes: RunNotes,
    scores: Scores,
    *,
    chosen: Result | None,
    eval_metric: str,
    num_images: int,
) -> Result:
    """What the host knows of a finished run, as JSON values.

    Args:
      notes: of the run.
      scores: of the last evaluation.
      chosen: the evaluation that was chosen without labels, as in `notes.evaluations`.
      eval_metric: the accuracy that leads.
      num_images: that were trained on.
    """
    return {
        **(notes.zero_shot or {}),
        **fields(scores),
        "eval_metric": eval_metric,
        "best_by_labels": notes.best_by_labels,
        "chosen_without_labels": _summary(chosen),
        "alarms": notes.evaluations[-1]["alarms"] if notes.evaluations else {},
        "failed_images": len(notes.failed_records),
        "failed_fraction": len(notes.failed_records) / num_images,
        "skipped_steps": notes.skipped_steps,
    }


def sentence(result: Result, *, workdir: str) -> str:
    """How the run went, for the terminal."""
    metric = result["eval_metric"]
    reached = [result[f"{name}_{metric}"] for name in ENDED]
    told = "trained, without labelled images to test on,"
    if None not in reached:
        zero_shot, student, teacher = map(percent, reached)
        told = f"zero-shot {zero_shot} -> student {student} -> teacher {teacher}{NOTED[metric]}"
    chosen = result["chosen_without_labels"]
    best = f"; without labels, epoch {chosen['epoch']} would be chosen" if chosen else ""
    return (
        f"{told} in {result['seconds']:.0f} s{best}; report.html, result.json, metrics.jsonl, "
        f"tensorboard and checkpoints are in {workdir}"
    )


def best_by_labels(notes: RunNotes, metric: str) -> Result | None:
    """The epoch whose teacher scores best on the labelled test images: not a label-free result.

    Of equal ones the first; None where none was scored. It is looked for among all evaluations, for
    the best so far may be so by another metric.
    """
    # Earlier versions noted the best one without the others.
    noted = [notes.best_by_labels] if notes.best_by_labels else []
    accuracies = fields({"teacher": None}).keys()
    scored = [
        one
        for one in [*noted, *notes.evaluations]
        if all(one.get(name) is not None for name in accuracies)
    ]
    best = max(scored, key=lambda one: (one[f"teacher_{metric}"], -one["step"]), default=None)
    return best and {name: best[name] for name in ("step", "epoch", *accuracies)}


def forget_others(notes: RunNotes, *, test: str | None, zero_shot: Result | None) -> bool:
    """Forgets accuracies on other test images than those of now.

    Args:
      notes: of the run so far, with the images before; what its evaluations tell without labels
        stays.
      test: the images' digest, None without any.
      zero_shot: accuracies of zero-shot CLIP on them.

    Returns:
      Whether a best epoch by labels is forgotten.
    """
    # The path that earlier versions noted may lead to the same images as before.
    was_digest = re.fullmatch("[0-9a-f]{64}", notes.test or "")
    are_others = notes.test != test if was_digest else notes.zero_shot != zero_shot
    if not are_others:
        return False
    for evaluation in notes.evaluations:
        evaluation |= fields({"student": None, "teacher": None})
    had_best, notes.best_by_labels = notes.best_by_labels is not None, None
    return had_best


def _summary(evaluation: Result | None) -> Result | None:
    """An evaluation without the many numbers that it was chosen by."""
    if evaluation is None:
        return None
    numbers = {"consensus": evaluation["quality"]["consensus"]}
    return {name: v for name, v in evaluation.items() if name != "quality"} | numbers
