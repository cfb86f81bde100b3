"""How a run goes where nobody has labels: measures, alarms and a choice at every evaluation."""

from collections.abc import Sequence
from typing import Any

from must_jax.probe import Probe
from must_jax.progress import say
from must_jax.quality import Alarm, ProbePredictions, Quality, alarms, measure, ranking
from must_jax.run_notes import RunNotes
from must_jax.state import Params


class Judge:
    """Keeps `notes.probe` and `notes.evaluations`, from which it judges."""

    def __init__(
        self, probe: Probe, notes: RunNotes, *, threshold: float, class_names: Sequence[str]
    ):
        """`threshold` is the confidence above which an image is trained on."""
        self._probe = probe
        self._notes = notes
        self._class_names = class_names
        self._threshold = threshold

    def has_begun(self) -> bool:
        """Whether the notes have zero-shot CLIP's predictions of all images of the probe."""
        # Earlier versions left out those that did not decode.
        found = self._notes.probe
        return found is not None and len(found["zeroshot"]["predicted"]) == len(self._probe.images)

    def begin(self, zero_shot: Params, **keywords: Any) -> None:
        """Takes the parameters before the first step; `keywords` are the probe's."""
        found = self._probe(zeroshot=zero_shot, **keywords)["zeroshot"]
        self._notes.probe = {"zeroshot": found.as_json()}

    def look(
        self, evaluation: dict[str, Any], *, student: Params, teacher: Params, **keywords: Any
    ) -> Quality:
        """Judges an evaluation, and notes it as `evaluation` with its quality and alarms."""
        notes = self._notes
        assert notes.probe is not None
        found = self._probe(student=student, teacher=teacher, **keywords)
        before = {name: ProbePredictions.from_json(p) for name, p in notes.probe.items()}
        quality = measure(
            zeroshot=before["zeroshot"],
            student=found["student"],
            teacher=found["teacher"],
            teacher_before=before.get("teacher"),
            threshold=self._threshold,
        )
        rung = notes.evaluations[-1]["alarms"] if notes.evaluations else {}
        told = alarms([*self._history(), quality], class_names=self._class_names)
        for alarm in told:
            if alarm.name not in rung:
                say(f"ALARM, {alarm.name}: {alarm.told}; {alarm.advice}")
        notes.probe["teacher"] = found["teacher"].as_json()
        noted = {"quality": quality.as_json(), "alarms": {a.name: _sentence(a) for a in told}}
        notes.evaluations.append(evaluation | noted)
        return quality

    def _history(self) -> list[Quality]:
        return [Quality.from_json(one["quality"]) for one in self._notes.evaluations]

    def ranked(self) -> list[dict[str, Any]]:
        """The evaluations by whose teacher to take, judged without labels, best first."""
        return [self._notes.evaluations[index] for index in ranking(self._history())]


def _sentence(alarm: Alarm) -> str:
    return f"{alarm.told}; {alarm.advice}"
