"""What the JSON values may be of result.json, and of checkpoints and dumps beside the arrays.

A checksum tells damage. Who forges them can give them a new one.
"""

import dataclasses
import json
from typing import Annotated, Any, Literal, NotRequired

import pydantic
from pydantic import Field, with_config
from typing_extensions import TypedDict

from must_jax.quality import COUNTS, ClassifierQuality, Quality

_QUALITY = {field.name for field in dataclasses.fields(Quality)}
_CLASSIFIER = {field.name for field in dataclasses.fields(ClassifierQuality)}
Count = Annotated[int, Field(ge=0, lt=2**31)]
Accuracy = Annotated[float, Field(ge=0, le=1)] | None
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class NotedProbe(TypedDict):
    """Predictions of unlabelled images, as `ProbePredictions.as_json` has them."""

    predicted: list[Annotated[int, Field(ge=-1)]]
    confidence: list[float]
    mean_probabilities: Annotated[list[float], Field(min_length=1)]
    mean_entropy: float


@with_config(extra="forbid")
class NotedProbes(TypedDict):
    """Those of zero-shot CLIP, and of the teacher at the last evaluation."""

    zeroshot: NotedProbe
    teacher: NotRequired[NotedProbe]


class NotedEvaluation(TypedDict):
    """What labels and what predictions without labels tell.

    Accuracies are None where there were no labels, or those of test images that are others now.
    """

    step: Count
    epoch: Count
    student_top1: NotRequired[Accuracy]
    student_mean_per_class: NotRequired[Accuracy]
    teacher_top1: NotRequired[Accuracy]
    teacher_mean_per_class: NotRequired[Accuracy]
    quality: Quality
    alarms: dict[str, str]


class NotedZeroShot(TypedDict):
    """Accuracies before the first step."""

    zeroshot_top1: Accuracy
    zeroshot_mean_per_class: Accuracy


class NotedBest(TypedDict):
    """The epoch that scored best on the test images."""

    step: Count
    epoch: Count
    teacher_top1: Annotated[float, Field(ge=0, le=1)]
    teacher_mean_per_class: Annotated[float, Field(ge=0, le=1)]


class NotedLine(TypedDict):
    """A log line that the disk did not take."""

    line: str


class NotedRun(TypedDict):
    """Of a checkpoint: `RunNotes` says what they are."""

    facts: dict[str, Any]
    config: NotRequired[dict[str, Any] | None]
    seconds: NotRequired[Seconds]
    test: NotRequired[str | None]
    zero_shot: NotRequired[NotedZeroShot | None]
    best_by_labels: NotRequired[NotedBest | None]
    evaluated_step: NotRequired[Count]
    probe: NotRequired[NotedProbes | None]
    evaluations: NotRequired[list[NotedEvaluation]]
    failed_records: NotRequired[list[Count]]
    pending: NotRequired[list[dict[str, float] | NotedLine]]
    skipped_steps: NotRequired[Count]
    skipped_in_row: NotRequired[Count]


class NotedStep(TypedDict):
    """Of a dump: the step that a run ended at."""

    step: Annotated[int, Field(ge=1, lt=2**31)]
    steps_per_epoch: Annotated[int, Field(ge=1, lt=2**31)]
    images: list[str]
    batch: dict[str, Any]


class NotedResult(TypedDict):
    """What a report shows of result.json."""

    steps: Count
    seconds: Seconds
    skipped_steps: Count
    eval_metric: Literal["top1", "mean_per_class"]
    best_by_labels: dict[str, Any] | None
    zeroshot_top1: Accuracy
    zeroshot_mean_per_class: Accuracy
    student_top1: Accuracy
    student_mean_per_class: Accuracy
    teacher_top1: Accuracy
    teacher_mean_per_class: Accuracy
    student_digest: str
    teacher_digest: str
    optimizer_digest: str


def wrong_in_run(notes: Any) -> str | None:
    """What no run notes, and where; None where all is well."""
    return _misfit(NotedRun, notes) or _contradiction(notes)


def wrong_in_step(notes: Any) -> str | None:
    """The same of a dump."""
    return _misfit(NotedStep, notes)


def wrong_in_result(result: Any) -> str | None:
    """The same of result.json."""
    return _misfit(NotedResult, result)


def _misfit(kind: Any, values: Any) -> str | None:
    """What is wrong in JSON values, and where; None where they are of the type.

    Args:
      kind: a type as annotations have it, its limits as pydantic's `Field`.
      values: as `json.loads` gives them.
    """
    try:
        # Names of files may hold bytes that are no text, which its JSON has no place for.
        text = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")
        pydantic.TypeAdapter(kind).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None


def _contradiction(notes: dict[str, Any]) -> str | None:
    """What in notes of the right types no run can have, and what reads them could not bear."""
    for part in ("seconds", "probe", "evaluations", "pending"):
        if _has_huge_integer(notes.get(part)):
            return f"{part}: an integer that no float holds"
    for name, one in (notes.get("probe") or {}).items():
        first = notes["probe"]["zeroshot"]
        num_images, num_classes = len(first["predicted"]), len(first["mean_probabilities"])
        lengths = [len(one[part]) for part in ("predicted", "confidence", "mean_probabilities")]
        if lengths != [num_images, num_images, num_classes]:
            return f"probe.{name}: lists of other lengths"
        if not 0 <= max(one["predicted"], default=-1) < num_classes:
            return f"probe.{name}.predicted: other classes than there are"
        # NaNs are those of a run that diverged.
        if any(p < 0 or p > 1.01 for p in one["confidence"] + one["mean_probabilities"]):
            return f"probe.{name}: probabilities out of their range"
    for one in notes.get("evaluations", ()):
        quality = one["quality"]
        parts = [quality[name] for name in ("zeroshot", "student", "teacher")]
        if quality.keys() - _QUALITY or any(part.keys() - _CLASSIFIER for part in parts):
            return "evaluations: measures that this version does not know"
        if any(map(_is_out_of_range, [quality, *parts])):
            return "evaluations: measures out of their range"
    if not all(isinstance(one.get("line", ""), str) for one in notes.get("pending", ())):
        return "pending: a line that is no text"
    return None


def _has_huge_integer(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_huge_integer, value.values()))
    if isinstance(value, list):
        return any(map(_has_huge_integer, value))
    return isinstance(value, int) and abs(value) >= 2**63


def _is_out_of_range(measures: dict[str, Any]) -> bool:
    """Whether a count is negative or huge, or a share is no NaN and not from 0 to 1, rounded."""
    return any(
        not (name == "num_classes") <= value < 2**31
        if name in COUNTS
        else value < -0.01 or value > 1.01
        for name, value in measures.items()
        if not isinstance(value, dict)
    )
