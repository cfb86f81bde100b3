"""The page on a finished run: what it holds, tells and refuses to hold, with labels and without."""

import math

import hypothesis
import inspection_reports
import numpy as np
import pytest
import run_reports as made
from hypothesis import strategies as st
from pages import (
    check_fetches_nothing,
    check_printable,
    heads_of,
    parse,
    rows_of,
    section_of,
    text_of,
)

from must_jax.reporting.advice import advice
from must_jax.reporting.page import render

ALWAYS = {
    "Checkpoints",
    "Quality without labels",
    "Training",
    "Predicted classes",
    "Classes, from zero-shot to adapted",
    "Pairs of classes",
    "Images",
    "Reconstructions",
    "Skipped",
    "Run",
}


def titles(tree):
    return [text_of(section.find("h2")) for section in tree.iter("section")]


def test_each_section_is_there_once_and_those_of_labels_only_with_labels():
    assert set(titles(parse(render(made.report())))) == ALWAYS | {"It looks well"}
    labelled = titles(parse(render(made.labelled())))
    assert set(labelled) == ALWAYS | {"It looks well", "Accuracy by the test labels"}
    assert len(labelled) == len(set(labelled))
    shown = text_of(parse(render(made.report())).find("body"))
    assert "y the test labels" not in shown
    assert "y the training labels" not in shown


TOLD = {
    "an alarm": (
        made.report(
            evaluations=(made.evaluation(1), made.evaluation(2, alarms={"collapse": "X; do Y"})),
            chosen=0,
        ),
        "Alarm, collapse: X; do Y.",
    ),
    "an alarm that stopped": (
        made.report(
            evaluations=(made.evaluation(1, alarms={"unsure": "X; do Y"}), made.evaluation(2))
        ),
        "The alarm unsure rang at epoch 1, and no more at the last evaluation",
    ),
    "an earlier choice": (
        made.report(
            evaluations=(
                made.evaluation(1, quality=made.quality(consensus=0.9)),
                made.evaluation(2, quality=made.quality(consensus=0.7)),
            ),
            chosen=0,
        ),
        "epoch 1 is chosen rather than the last one: consensus 0.900 against 0.700 "
        "(checkpoints/10)",
    ),
    "still changing": (
        made.report(
            evaluations=(
                made.evaluation(1),
                made.evaluation(2, quality=made.quality(stability=0.9)),
            )
        ),
        "still changed its mind on 10.0 % of the images",
    ),
    "few confident": (
        made.report(
            evaluations=(
                made.evaluation(1),
                made.evaluation(2, quality=made.quality(confidence=0.62)),
            ),
            trained=made.predictions(teacher=made.ranked(made.BALANCED, confidence=0.62)),
        ),
        "only 0.0 % of the images are confident enough to learn from at "
        "config.confidence_threshold 0.7; at 0.6 more than half would be",
    ),
    "skipped steps": (
        made.report(result=made.result(skipped_steps=3)),
        "3 steps were skipped",
    ),
    "missing classes": (
        made.report(trained=made.predictions(teacher=made.ranked(np.repeat([0, 1], 45)))),
        "takes none of 90 training images for 1 of 3 classes: star",
    ),
    "greedy classes": (
        made.report(
            trained=made.predictions(teacher=made.ranked(np.repeat([0, 1, 2], [80, 5, 5])))
        ),
        "1 of 3 classes take more than twice an equal share of the images: circle",
    ),
    "failed images": (
        made.report(failed=made.failed(("a.png", "cut short"))),
        "Of the training images, 1 (0.1 %) did not decode",
    ),
    "lost accuracy": (
        made.labelled(result=made.labelled().result | {"teacher_top1": 0.4, "student_top1": 0.4}),
        "training lost accuracy: 50.0 % before, 40.0 % after",
    ),
    "a slow teacher": (
        made.labelled(result=made.labelled().result | {"student_top1": 0.95}),
        "the teacher (90.0 %) lags behind the student (95.0 %)",
    ),
}


@pytest.mark.parametrize(("report", "told"), TOLD.values(), ids=TOLD)
def test_each_fault_is_told_on_top_of_the_page_with_what_to_do(report, told):
    assert any(told in text for text in advice(report))
    html = render(report)
    top = next(parse(html).iter("section"))
    assert told in text_of(top)
    title = text_of(top.find("h2"))
    assert title == (
        "Something went wrong" if report.last.alarms else "No alarm rings; look into this"
    )


@pytest.mark.parametrize(
    "name", ["still changing", "skipped steps", "failed images", "a slow teacher"]
)
def test_a_fault_that_stands_alone_is_told_alone(name):
    assert len(advice(TOLD[name][0])) == 1


def test_nothing_is_told_of_a_run_in_which_all_is_well():
    assert advice(made.report()) == advice(made.labelled()) == []


def test_checkpoints_stand_beside_one_another():
    shown = section_of(parse(render(made.labelled())), "Checkpoints")
    assert heads_of(shown) == [
        "",
        "last",
        "chosen without labels",
        "best by labels (chosen with them)",
    ]
    table = {name: values for name, *values in rows_of(shown)}
    assert table["epoch"] == ["2", "2", "1"]
    assert table["step"] == ["20", "20", "10"]
    assert table["teacher's accuracy"] == ["90.0 %", "90.0 %", "95.0 %"]
    shown = section_of(parse(render(made.report())), "Checkpoints")
    assert heads_of(shown) == ["", "last", "chosen without labels"]
    assert "teacher's accuracy" not in text_of(shown)


def test_pairs_changes_and_shares_are_those_of_the_predictions():
    before = made.BALANCED.copy()
    before[:6] = [1, 1, 2, 0, 1, 2]  # of 0 1 2 0 1 2, on which the teacher stays
    student = made.BALANCED.copy()
    student[89] = 0
    report = made.labelled(
        trained=made.predictions(zeroshot=made.ranked(before), student=made.ranked(student))
    )
    tree = parse(render(report))
    tables = section_of(tree, "Pairs of classes").findall(".//table")
    by_labels, moved, differing = (rows_of(table) for table in tables)
    # Of the first nine test images, all labelled 0, three are taken for each class.
    assert by_labels == [["circle", "square", "3"], ["circle", "star", "3"]]
    assert moved == [["square", "circle", "1"]]
    assert differing == [["star", "circle", "1"]]
    accuracy, shares = section_of(tree, "Classes, from zero-shot to adapted").findall(".//table")
    assert ["circle", "36", "83.3 %", "83.3 %", "+0.0"] in rows_of(accuracy)
    assert rows_of(shares) == [
        ["circle", "29", "30", "+1"],
        ["star", "30", "30", "+0"],
        ["square", "31", "30", "-1"],
    ]
    bars = text_of(section_of(tree, "Predicted classes").find(".//*[@class='bars']"))
    assert "circle30 (zero-shot 29)" in bars.replace(" 30 (", "30 (")


def hostile(name):
    """A report that has everything, each name being `name`."""
    return made.labelled(
        workdir=name,
        train=name,
        test=name,
        class_names=(name, f"{name}1", f"{name}2"),
        config=made.report().config | {"checkpoint": name},
        history={"quality/consensus": [(1, 0.5)]},
        evaluations=(made.evaluation(1, accuracy=0.5, alarms={name: name}),),
        chosen=0,
        trained=made.predictions(
            teacher=made.ranked(np.repeat([0, 2], [80, 10])),
            student=made.ranked(np.repeat([2, 0], [80, 10])),
        ),
        surest=(made.thumbnail(name=name, label=1),),
        least_sure=(made.thumbnail(name=name, picture=""),),
        mistakes=(made.thumbnail(name=name, label=0),),
        cards=(made.card(name=name, label=0),),
        failed=made.failed((name, name)),
    )


def test_names_of_files_and_classes_cannot_add_to_the_page():
    html = render(hostile(inspection_reports.HOSTILE))
    check_printable(html)
    check_fetches_nothing(html)
    tree, harmless = parse(html), parse(render(hostile("harmless")))
    assert [element.tag for element in tree.iter()] == [element.tag for element in harmless.iter()]
    shown = text_of(tree.find("body"))
    assert shown.count("<script>alert(1)</script>&amp;<img src=x>\\x1b[31m\\x00\\n\\u202e") > 20


@hypothesis.given(st.text(st.characters(codec=None), min_size=1, max_size=30))
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_no_name_adds_a_tag_or_an_attribute(name):
    def shape(html):
        return [(element.tag, sorted(element.attrib)) for element in parse(html).iter()]

    html = render(hostile(name))
    assert shape(html) == shape(render(hostile("harmless")))
    assert not set("\x1b\x07\u202e\u2066\u200f\u2028") & set(html)


def test_the_page_fetches_and_runs_nothing():
    check_fetches_nothing(render(made.labelled()))


def test_every_picture_and_chart_is_told_in_words():
    tree = parse(render(made.labelled()))
    pictures = tree.findall(".//img")
    assert len(pictures) == 3 + 4
    assert all("some/image.png" in picture.get("alt") for picture in pictures)
    charts = tree.findall(".//*[@role='img']")
    assert charts
    assert all(chart.get("aria-label") for chart in charts)


def test_a_thousand_classes_stay_readable_and_small():
    names = tuple(f"class {k}" for k in range(1000))
    rng = np.random.default_rng(0)

    def of_many():
        return made.ranked(rng.integers(0, 900, 5000), num_classes=1000)

    many = made.predictions(
        records=np.arange(5000),
        labels=rng.integers(0, 1000, 5000),
        zeroshot=of_many(),
        student=of_many(),
        teacher=of_many(),
        num_classes=1000,
    )
    report = made.labelled(
        class_names=names,
        trained=many,
        tested=many,
        failed=made.failed(*((f"{i}.png", "cut") for i in range(50))),
    )
    html = render(report)
    assert len(html) < 150_000
    tree = parse(html)
    assert len(tree.findall(".//tr")) < 200
    columns = section_of(tree, "Predicted classes").find(".//*[@class='bins']").findall("span")
    assert len(columns) == 50
    assert "980 classes in between" in text_of(
        section_of(tree, "Classes, from zero-shot to adapted")
    )


def test_a_run_that_diverged_or_was_never_evaluated_has_a_page_too():
    nothing = made.report(evaluations=(), chosen=None, history={})
    assert "Checkpoints" not in titles(parse(render(nothing)))
    worst = made.evaluation(1, quality=made.quality(consensus=math.nan), alarms={"diverged": "X"})
    unsure = made.ranked(made.BALANCED, confidence=math.nan)
    html = render(
        made.report(
            evaluations=(worst,),
            chosen=0,
            trained=made.predictions(teacher=unsure, student=unsure),
            history={"train/loss": [(1, math.nan)]},
        )
    )
    assert "Something went wrong" in titles(parse(html))
