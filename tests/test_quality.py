"""Quality without labels: closed forms, alarms that ring for one cause alone, and the choice."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from must_jax.quality import ProbePredictions, Quality, alarms, measure, ranking
from must_jax.quality.measures import classifier_quality, consensus, entropy

NUM_CLASSES = 4


def sure_of(predicted, *, confidence=0.85, num_classes=NUM_CLASSES):
    """Probabilities of `confidence` for the predicted class, the rest shared equally."""
    others = (1 - confidence) / (num_classes - 1)
    return np.where(np.eye(num_classes, dtype=bool)[predicted], confidence, others)


def probe(predicted, **keywords):
    return ProbePredictions.of(sure_of(np.asarray(predicted), **keywords))


BALANCED = np.arange(40) % NUM_CLASSES


def evaluation(*, teacher=BALANCED, student=None, zeroshot=BALANCED, threshold=0.7, **confidence):
    """An evaluation of a run in which all is well, but for what is given."""
    return measure(
        zeroshot=probe(zeroshot, confidence=confidence.get("zeroshot_confidence", 0.85)),
        student=probe(teacher if student is None else student, confidence=0.85),
        teacher=probe(teacher, confidence=confidence.get("teacher_confidence", 0.85)),
        teacher_before=None,
        threshold=threshold,
    )


def quality_of(probabilities, threshold=0.5):
    probabilities = np.asarray(probabilities, float)
    return classifier_quality(ProbePredictions.of(probabilities), threshold=threshold)


def test_entropy_has_its_closed_forms_and_keeps_a_nan():
    # float64 rounding.
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(np.log(8), rel=1e-14)
    assert entropy(np.eye(3)).tolist() == [0, 0, 0]
    drawn = np.random.default_rng(0).dirichlet(np.ones(7), size=5)
    np.testing.assert_allclose(entropy(drawn), scipy.stats.entropy(drawn, axis=1), rtol=1e-13)
    assert np.isnan(entropy(np.array([0.5, np.nan])))


def test_information_is_all_of_log_k_when_sure_and_diverse_and_none_when_constant():
    assert quality_of(np.eye(5)).information == pytest.approx(1, rel=1e-14)
    assert quality_of(np.tile([0.7, 0.2, 0.1], (6, 1))).information == pytest.approx(0, abs=1e-14)
    assert quality_of(np.full((6, 3), 1 / 3)).information == pytest.approx(0, abs=1e-14)
    # Collapsed: sure of each image, and always of the same class.
    assert quality_of(np.tile([1.0, 0.0], (6, 1))).information == 0
    # A symmetric binary channel has 1 - H(0.9) bits.
    expected = 1 + 0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)
    channel = quality_of([[0.9, 0.1], [0.1, 0.9]])
    assert channel.information == pytest.approx(expected, rel=1e-14)


def test_information_is_the_divergence_of_predictions_from_their_mean():
    drawn = np.random.default_rng(0).dirichlet(np.full(6, 0.3), size=50)
    divergence = np.mean(scipy.stats.entropy(drawn, drawn.mean(axis=0, keepdims=True), axis=1))
    # float64 sums of 300 terms in another order.
    assert quality_of(drawn).information == pytest.approx(divergence / np.log(6), rel=1e-12)


def test_what_one_classifier_tells_by_hand():
    found = quality_of([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
    assert found.mean_confidence == pytest.approx(0.65, rel=1e-14)
    # Strictly above 0.5, as in training.
    assert found.confident_fraction == 0.75
    assert found.largest_share == 0.75
    assert found.largest_class == 0
    assert found.classes_never_predicted == 1
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(3)
    assert found.class_entropy == pytest.approx(expected, rel=1e-14)
    assert quality_of(np.eye(3)).class_entropy == pytest.approx(1, rel=1e-14)
    assert quality_of(np.eye(3)[[1, 1]]).class_entropy == 0


def test_one_class_alone_is_no_division_by_zero():
    found = quality_of(np.ones((3, 1)))
    assert found.class_entropy == found.information == found.largest_share == 1
    one = ProbePredictions.of(np.ones((3, 1)))
    alone = measure(zeroshot=one, student=one, teacher=one, teacher_before=None, threshold=1.0)
    assert [alarm.name for alarm in alarms([alone])] == ["unsure"]


def test_agreements_and_stability_by_hand():
    zeroshot = ProbePredictions(
        predicted=np.array([0, 1, 2, 3, 0]),
        confidence=np.array([0.9, 0.3, 0.8, 0.7, 0.4]),
        mean_probabilities=np.full(4, 0.25),
        mean_entropy=1.0,
    )
    teacher, student, before = (
        probe([0, 1, 2, 0, 0]),
        probe([1, 1, 2, 0, 0]),
        probe([3, 1, 1, 0, 0]),
    )
    keywords = {"zeroshot": zeroshot, "student": student, "teacher": teacher, "threshold": 0.5}
    found = measure(**keywords, teacher_before=before)
    assert found.teacher_student == 0.8
    assert found.teacher_zeroshot == 0.8
    assert found.student_zeroshot == 0.6
    # Of five, three are the surer half: images 0, 2 and 3, and the teacher differs on the last.
    assert found.sure_teacher_zeroshot == pytest.approx(2 / 3)
    assert found.sure_confidence == pytest.approx(0.8)
    assert found.stability == 0.6
    assert measure(**keywords, teacher_before=None).stability == found.teacher_zeroshot


def test_metrics_are_numbers_under_their_names_and_json_brings_all_back():
    found = evaluation(teacher=np.roll(BALANCED, 1))
    metrics = found.metrics()
    assert metrics["quality/teacher_zeroshot"] == 0
    assert metrics["quality/student_class_entropy"] == pytest.approx(1)
    assert metrics["quality/zeroshot_confident_fraction"] == 1
    assert all(type(value) is float for value in metrics.values())
    # All but which class is the largest, K and N, which are no measures.
    numbers = len(dataclasses.fields(found)) - 5 + 3 * (len(dataclasses.fields(found.teacher)) - 1)
    assert len(metrics) == numbers
    assert Quality.from_json(json.loads(json.dumps(found.as_json()))) == found


@pytest.mark.parametrize("confidence", [0.3, 0.85])
def test_a_run_in_which_all_is_well_rings_no_alarm(confidence):
    moved = BALANCED.copy()
    moved[:10] = (moved[:10] + 1) % NUM_CLASSES
    history = [
        evaluation(threshold=0.2, zeroshot_confidence=confidence / 2 + 0.1, teacher=teacher)
        for teacher in (BALANCED, moved)
    ]
    # The threshold passes all here; a run of any use has one that doesn't.
    found = [dataclasses.replace(q, zeroshot=_passing(q.zeroshot, 0.6)) for q in history]
    assert alarms(found[:1]) == alarms(found) == alarms([]) == []


def _passing(one, share):
    return dataclasses.replace(one, confident_fraction=share)


def skewed(share, *, of=200):
    """Predictions of class 1 for a share of the images, the rest spread over all others."""
    rest = round(of * (1 - share))
    return np.concatenate([np.ones(of - rest, int), np.array([0, 2, 3])[np.arange(rest) % 3]])


WIDE = np.arange(200) % NUM_CLASSES
HALF_SURE = {"zeroshot_confidence": 0.6, "teacher_confidence": 0.85}
RINGING = {
    "collapse": [evaluation(teacher=skewed(0.97), zeroshot=skewed(0.4), **HALF_SURE)],
    "unsure": [evaluation(teacher_confidence=0.6, zeroshot_confidence=0.6)],
    "unselective": [evaluation(threshold=0.5, zeroshot_confidence=0.8)],
    "departed": [
        evaluation(teacher=(WIDE + 1) % NUM_CLASSES, zeroshot=WIDE, zeroshot_confidence=0.65)
    ],
}


@pytest.mark.parametrize("name", RINGING)
def test_each_alarm_rings_for_its_cause_alone(name):
    (alarm,) = alarms(RINGING[name])
    assert alarm.name == name
    assert "config." in alarm.advice
    assert "\n" not in alarm.told + alarm.advice


def test_a_student_that_collapses_is_told_before_its_slow_teacher_does():
    early = evaluation(teacher=WIDE, student=np.ones(200, int), zeroshot=WIDE, **HALF_SURE)
    (alarm,) = alarms([early])
    assert alarm.name == "collapse"
    assert "the student takes 100.0% of the images for class 1," in alarm.told
    (alarm,) = alarms([early], class_names=["ant", "bee", "cat", "dog"])
    assert "the student takes 100.0% of the images for bee," in alarm.told


def test_a_class_that_was_as_large_before_training_is_no_collapse():
    same = evaluation(teacher=skewed(0.95), zeroshot=skewed(0.95), **HALF_SURE)
    assert alarms([same]) == []


def test_a_class_that_takes_nearly_all_is_told_though_it_always_did():
    same = evaluation(teacher=skewed(0.99), zeroshot=skewed(0.99), **HALF_SURE)
    (alarm,) = alarms([same])
    assert alarm.name == "collapse"
    assert "the teacher takes 99.0% of the images for class 1," in alarm.told


def test_confidence_that_is_lost_is_told_though_some_is_left():
    sure, lost = evaluation(**HALF_SURE), evaluation(**HALF_SURE)
    lost = dataclasses.replace(lost, teacher=_passing(lost.teacher, 0.05))
    assert alarms([lost]) == []
    assert [alarm.name for alarm in alarms([sure, lost])] == ["unsure"]


def test_predictions_that_are_no_numbers_are_told_alone():
    nothing = ProbePredictions.of(np.full((40, NUM_CLASSES), np.nan))
    broken = measure(
        zeroshot=probe(BALANCED),
        student=nothing,
        teacher=nothing,
        teacher_before=None,
        threshold=0.9,
    )
    assert [alarm.name for alarm in alarms([broken])] == ["diverged"]
    assert ranking([broken, evaluation(), broken])[0] == 1


def test_a_teacher_below_the_bound_of_agreement_is_worse_than_zero_shot():
    # The claim that `departed` rests on, by trial: labels are those that zero-shot is right on.
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(2000):
        label, zeroshot = rng.integers(0, 3, (2, 12))
        zeroshot = np.where(rng.random(12) < 0.8, label, zeroshot)
        teacher = np.where(rng.random(12) < rng.random(), zeroshot, rng.integers(0, 3, 12))
        right = np.sum(zeroshot == label)
        if np.sum(teacher == zeroshot) < 2 * right - 12:
            below += 1
            assert np.sum(teacher == label) < right
    assert below > 100


def test_a_weak_zero_shot_may_be_contradicted():
    # Of 0.5 of confidence, nothing follows from disagreement.
    teacher = (WIDE + 1) % NUM_CLASSES
    found = evaluation(teacher=teacher, zeroshot=WIDE, zeroshot_confidence=0.5, threshold=0.6)
    assert alarms([found]) == []


def told(consensus, *, teacher=BALANCED):
    return dataclasses.replace(evaluation(teacher=teacher, **HALF_SURE), consensus=consensus)


def test_evaluations_rank_by_consensus_and_those_with_an_alarm_come_last():
    assert ranking([told(0.3), told(0.6), told(0.5)]) == [1, 2, 0]
    assert ranking([told(0.6), told(0.6), told(0.5)]) == [1, 0, 2]
    collapsed = told(0.9, teacher=np.ones(40, int))
    assert ranking([told(0.3), collapsed, told(0.5)]) == [2, 0, 1]
    assert ranking([collapsed, told(0.3), collapsed]) == [1, 2, 0]
    assert ranking([]) == []


def test_an_evaluation_of_far_fewer_images_is_not_the_best_for_it():
    few, most = (dataclasses.replace(told(0.9), num_images=number) for number in (35, 36))
    all_of_them = dataclasses.replace(told(0.5), num_images=40)
    assert ranking([few, all_of_them]) == [1, 0]
    assert ranking([most, all_of_them]) == [0, 1]
    unknown = dataclasses.replace(told(0.9), num_images=0)
    assert ranking([unknown, all_of_them]) == [0, 1]
    collapsed = dataclasses.replace(told(0.9, teacher=np.ones(40, int)), num_images=40)
    assert ranking([few, collapsed]) == [0, 1]


def test_consensus_has_its_closed_forms():
    one = probe(BALANCED)
    assert consensus(one, one) == pytest.approx(1, rel=1e-14)
    assert consensus(one, probe((BALANCED + 1) % NUM_CLASSES)) == pytest.approx(1, rel=1e-14)
    assert consensus(one, probe(np.zeros(40, int))) == pytest.approx(0, abs=1e-14)
    # Every pair of classes equally often.
    assert consensus(probe(np.arange(16) % 4), probe(np.arange(16) // 4)) == pytest.approx(0)
    # Half of the images the same: 1 bit of the 2 that four classes have.
    halves = consensus(probe(np.arange(16) % 4), probe(np.arange(16) % 2))
    assert halves == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parity
def test_consensus_is_scikit_learns_mutual_information():
    from sklearn import metrics

    one, other = np.random.default_rng(0).integers(0, 6, (2, 100))
    other = np.where(np.arange(100) < 60, one, other)
    keywords = {"num_classes": 6}
    found = consensus(probe(one, **keywords), probe(other, **keywords))
    # float64 sums in another order.
    assert found == pytest.approx(metrics.mutual_info_score(one, other) / np.log(6), rel=1e-12)
