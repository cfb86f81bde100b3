"""What an inspection computes, against other ways to compute it."""

import itertools
import math

import inspection_reports
import numpy as np
import pytest
from PIL import Image

from must_jax.data.sources import ImageFolder
from must_jax.inspection import images, names, prompts, sheet, statistics
from must_jax.inspection.facts import start_weight
from must_jax.train_step import mim_target


@pytest.mark.parametrize(("length", "count"), [(5, 9), (1, 1), (1000, 7), (100_003, 2000)])
def test_spread_records_are_different_and_cover_the_source(length, count):
    records = images.spread(length, count)
    assert len(set(records.tolist())) == len(records) == min(length, count)
    assert 0 <= records.min() <= records.max() < length


def test_any_first_part_of_the_spread_covers_the_source():
    records = images.spread(1_000_000, 2000)
    for part in (10, 100, 577):
        gaps = np.diff(np.concatenate([[0], np.sort(records[:part]), [1_000_000]]))
        # Gaps of a golden-ratio sequence are below 2.7 of the average one.
        assert gaps.max() < 2.7 * 1_000_000 / part


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(noise[:20]).save(tmp_path / "c.jpg", exif=turned)
    Image.fromarray(noise[:, :, 0]).save(tmp_path / "d.webp")
    (tmp_path / "e.png").write_bytes(b"no image")
    (tmp_path / "f.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    return tmp_path


def test_a_survey_tells_sizes_formats_damage_and_copies(folder):
    source = ImageFolder(folder)
    found = images.survey(images.look_at(source, range(6), seconds=60, num_threads=2))
    assert found.looked_at == 6
    # Upright, so the JPEG of 50 x 20 pixels is 20 wide.
    assert found.sizes.tolist() == [[50, 30], [50, 30], [20, 50], [50, 30]]
    assert found.short_sides.tolist() == [30, 30, 20, 30]
    assert found.formats == {"PNG": 2, "JPEG": 1, "WEBP": 1}
    assert found.duplicates == ((str(folder / "a.png"), str(folder / "b.png")),)
    assert [name for name, _ in found.failures] == [str(folder / "e.png"), str(folder / "f.png")]
    assert "not an image" in found.failures[0][1]


def test_a_survey_ends_when_its_time_is_up(folder):
    # The clock is looked at after every 64 images.
    looks = images.look_at(ImageFolder(folder), [0] * 200, seconds=0, num_threads=1)
    assert len(looks) == 64


def test_a_jpeg_beyond_the_limit_is_looked_at_as_training_decodes_it(tmp_path, monkeypatch):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 // 3)
    (look,) = images.look_at(ImageFolder(tmp_path), [0], seconds=1, num_threads=1)
    assert (look.size, look.format, look.reason) == ((32, 24), "JPEG", "")


def some_predictions(labels=True):
    rng = np.random.default_rng(1)
    return statistics.Predictions(
        confidence=rng.uniform(size=50).round(1),
        predicted=rng.integers(0, 4, 50),
        labels=rng.integers(0, 4, 50) if labels else None,
        num_classes=5,
    )


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_what_passes_is_strictly_above_the_threshold(threshold):
    found = some_predictions()
    passed = [i for i in range(50) if found.confidence[i] > threshold]
    right = [i for i in passed if found.predicted[i] == found.labels[i]]
    assert threshold in found.confidence  # or "strictly" would not be tested
    assert found.passing(threshold) == pytest.approx(len(passed) / 50)
    assert found.accuracy(threshold) == pytest.approx(len(right) / len(passed))


def test_accuracy_is_unknown_without_labels_or_images():
    assert some_predictions(labels=False).accuracy(0.5) is None
    assert some_predictions().accuracy(1.0) is None


def test_images_whose_label_is_not_known_count_neither_way():
    found = inspection_reports.predictions(labels=np.array([-1, 1, -1, 0]))
    assert found.accuracy() == 0.5
    assert found.accuracy(0.8) == 1.0
    assert inspection_reports.predictions(labels=np.full(4, -1)).accuracy() is None


def test_counts_have_every_class():
    found = some_predictions()
    assert found.counts.tolist() == [int((found.predicted == k).sum()) for k in range(5)]
    assert statistics.never_predicted(found.counts).tolist() == [4]


# Zero-shot accuracy and threshold of the published recipes (Li, Savarese and Hoi, 2023): ImageNet,
# SUN397, Food101, GTSRB, DTD and UCF101 with B/16 and L/14.
PUBLISHED = [
    (0.683, 0.7),
    (0.755, 0.5),
    (0.644, 0.4),
    (0.674, 0.3),
    (0.887, 0.7),
    (0.929, 0.7),
    (0.434, 0.3),
    (0.506, 0.2),
    (0.447, 0.4),
    (0.554, 0.5),
    (0.688, 0.5),
    (0.770, 0.6),
]


def test_suggestions_are_near_the_published_thresholds():
    # A calibrated model's mean confidence is its accuracy. 0.2 is what docs/inspect.md says.
    errors = [abs(statistics.suggested_threshold(a) - t) for a, t in PUBLISHED]
    assert max(errors) <= 0.2 + 1e-9
    assert np.mean(errors) < 0.1


@pytest.mark.parametrize(("confidence", "threshold"), [(0.01, 0.2), (0.6, 0.4), (0.99, 0.7)])
def test_suggestions_stay_in_the_published_range(confidence, threshold):
    assert statistics.suggested_threshold(confidence) == pytest.approx(threshold)


def test_classes_missing_by_chance():
    draws = itertools.product(range(3), repeat=4)
    missing = [3 - len(set(draw)) for draw in draws]
    expected = statistics.missing_by_chance(num_images=4, num_classes=3)
    assert expected == pytest.approx(np.mean(missing))


def test_missing_classes_are_told_only_beyond_chance():
    few_images = np.zeros(1000, int)
    few_images[:180] = 1  # 180 images, 1000 classes: most must miss out
    assert not statistics.too_many_missing(few_images)
    assert statistics.too_many_missing(np.array([100, 100, 0]))
    assert not statistics.too_many_missing(np.array([100, 100, 1]))


def test_over_predicted_classes_are_beyond_twice_the_average_and_chance():
    counts = np.array([10, 70, 10, 90, 10, 10, 10, 10, 10, 10])  # 24 on average
    assert statistics.over_predicted(counts).tolist() == [3, 1]
    assert not len(statistics.over_predicted(np.array([3, 0, 1, 0])))  # twice of one is chance


def brute_force_pairs(classifier):
    columns = classifier / np.linalg.norm(classifier, axis=0)
    pairs = itertools.combinations(range(columns.shape[1]), 2)
    return [(a, b, float(columns[:, a] @ columns[:, b])) for a, b in pairs]


def test_near_names_are_the_pairs_of_the_largest_cosines(monkeypatch):
    monkeypatch.setattr(names, "_ROWS", 7)  # several blocks
    rng = np.random.default_rng(2)
    classifier = rng.normal(size=(12, 30))
    classifier[:, 17] = 3 * classifier[:, 4] + 0.01 * rng.normal(size=12)
    found = names.near_names(classifier, [[str(k)] for k in range(30)])
    expected = sorted(brute_force_pairs(classifier), key=lambda pair: -pair[2])
    cosines = np.array([cosine for *_, cosine in expected])
    lower, median, upper = np.quantile(cosines, [0.25, 0.5, 0.75])
    assert found.median == pytest.approx(median, abs=1e-6)  # float32
    assert found.bound == pytest.approx(min(0.999, upper + 3 * (upper - lower)), abs=1e-6)
    assert found.num_flagged == int((cosines > found.bound).sum()) == 1
    assert [pair[:2] for pair in found.pairs] == [pair[:2] for pair in expected[:20]]
    assert found.pairs[0][:2] == (4, 17)
    assert [c for *_, c in found.pairs] == pytest.approx(cosines[:20].tolist(), abs=1e-6)


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_few_classes_are_never_far_out(num_classes):
    classifier = np.random.default_rng(3).normal(size=(8, num_classes))
    found = names.near_names(classifier, [["x"]] * num_classes)
    assert found.num_flagged == 0
    assert len(found.pairs) == num_classes * (num_classes - 1) // 2


def test_two_classes_of_one_direction_are_flagged():
    found = names.near_names(np.ones((4, 2)) * [1.0, 2.0], [["a"], ["b"]])
    assert found.num_flagged == 1


def test_names_that_differ_in_case_and_separators_are_the_same():
    synonyms = [["T-shirt", "tee"], ["t_shirt"], ["Tee."], ["C++"], ["C#"], ["ＴＥＥ"]]  # noqa: RUF001
    assert names.same_names(synonyms) == (("t shirt", (0, 1)), ("tee", (0, 2, 5)))


def test_cut_prompts():
    found = prompts.measure(["a", "bb", "ccc", "d"], [5, 7, 9, 6], context_length=6)
    assert (found.count, found.longest, found.num_cut) == (4, 9, 2)
    assert found.cut == (("ccc", 9), ("bb", 7))


def test_unpatchify_undoes_what_the_loss_compares_with():
    image = np.random.default_rng(4).normal(size=(1, 12, 12, 3)).astype(np.float32)
    patches = np.asarray(mim_target(image, patch_size=4))[0]
    assert np.array_equal(sheet.unpatchify(patches, patch_size=4), image[0])


def test_pictures_change_where_patches_are_masked():
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    mask = np.array([False, True, False, False])  # the upper right of 2 x 2 patches
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    other = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
    normalised = ((other / 255 - mean) / std).astype(np.float32)
    patches = np.asarray(mim_target(normalised, patch_size=4))[0]
    rebuilt = sheet.reconstructed_picture(
        image, mask, patches[mask], patch_size=4, mean=mean, std=std
    )
    striped = sheet.masked_picture(image, mask, patch_size=4)
    assert np.array_equal(rebuilt[:4, 4:], other[0, :4, 4:])
    assert set(striped[:4, 4:].ravel().tolist()) == {96, 160}
    for picture in (rebuilt, striped):
        assert picture.dtype == np.uint8
        assert np.array_equal(picture[4:], image[4:])
        assert np.array_equal(picture[:, :4], image[:, :4])


def test_what_is_left_of_the_start_in_the_teacher():
    decays = np.linspace(0.9, 0.99, 20)
    teacher, student = 1.0, 0.0  # the start, and all that comes after
    for decay in decays:
        teacher = decay * teacher + (1 - decay) * student
    assert start_weight(decays) == pytest.approx(teacher)


def test_facts_follow_from_the_config():
    facts = inspection_reports.facts(images=100, batch_size=8, epochs=5)
    assert (facts.steps_per_epoch, facts.num_steps, facts.left_over) == (12, 60, 4)
    assert facts.ema_horizon == pytest.approx(100)
    assert inspection_reports.facts(ema_decay=1.0).ema_horizon == math.inf
