"""The page: well-formed, complete in itself, safe whatever files and classes are called."""

import contextlib
import io
import json

import hypothesis
import inspection_reports as made
import numpy as np
import pytest
from hypothesis import strategies as st
from pages import check_fetches_nothing, check_printable, parse

from must_jax.inspection.page import render
from must_jax.inspection.sheet import Guess
from must_jax.inspection.warnings import warnings
from must_jax.progress import say


def text_of(html):
    return " ".join("".join(parse(html).find("body").itertext()).split())


WARNED = {
    "damage": (
        {"survey": made.survey(failures=(("a.png", "cut short"),))},
        "1 of the 4 images looked at do not decode, such as a.png: cut short",
    ),
    "small images": (
        {"facts": made.facts(image_size=32)},
        "66.7 % of the images looked at are smaller than image_size 32",
    ),
    "copies": (
        {"survey": made.survey(duplicates=(("a.png", "b.png", "c.png"),))},
        "2 of the 4 images looked at are copies of others, such as b.png of a.png",
    ),
    "nothing passes": (
        {"facts": made.facts(confidence_threshold=0.9)},
        "Only 0.0 % of the images pass confidence_threshold 0.9",
    ),
    "everything passes": (
        {"facts": made.facts(confidence_threshold=0.2)},
        "100.0 % of the images pass confidence_threshold 0.2",
    ),
    "missing classes": (
        {
            "predictions": made.predictions(
                confidence=np.tile([0.4, 0.6], 45), predicted=np.repeat([0, 2], 45)
            )
        },
        "1 of 3 classes are predicted for no image, more than chance explains: square",
    ),
    "greedy classes": (
        {
            "predictions": made.predictions(
                confidence=np.tile([0.4, 0.6], 45),
                predicted=np.repeat([0, 1, 2], [80, 5, 5]),
            )
        },
        "1 of 3 classes take more than twice their equal share of the images: circle",
    ),
    "one name twice": (
        {"near": made.near(same=(("tee", (0, 2)),))},
        "1 names stand for more than one class, such as 'tee' for circle, star",
    ),
    "close names": (
        {"near": made.near(num_flagged=1, pairs=((1, 2, 0.9995),))},
        "first square and star (cosine 1.000)",
    ),
    "cut prompts": (
        {"prompts": made.prompts(num_cut=1, longest=20, cut=(("a long one", 20),))},
        "1 of 6 prompts are longer than the 16 tokens that the text tower reads, and are cut, such "
        "as 'a long one' of 20 tokens",
    ),
    "images left out": (
        {"facts": made.facts(batch_size=60, epochs=200)},
        "batch_size 60 leaves 40 of the 100 images out of every epoch",
    ),
    "small batch": (
        {"facts": made.facts(batch_size=2, num_classes=3)},
        "batch_size 2 is smaller than the 3 classes",
    ),
    "slow teacher": (
        {"facts": made.facts(ema_decay=0.9998, start_weight=0.42)},
        "ema_decay 0.9998 averages over 5,000 steps, more than the run's 600: 42.0 % of the final",
    ),
    "finished": (
        {"facts": made.facts(checkpoint_step=600)},
        "The workdir is at step 600 of 600: there is nothing left to train",
    ),
}


@pytest.mark.parametrize(("changes", "told"), WARNED.values(), ids=WARNED)
def test_each_fault_is_warned_of_alone_and_on_top_of_the_page(changes, told):
    report = made.report(**changes)
    (warning,) = warnings(report)
    assert told in warning
    top = parse(render(report)).find(".//section[@class='warnings']")
    assert told in "".join(top.itertext())


def test_nothing_is_warned_of_in_a_sound_run():
    assert warnings(made.report()) == []
    assert "Nothing to warn of" in text_of(render(made.report()))


def hostile_report():
    name = made.HOSTILE
    return made.report(
        workdir=name,
        source=name,
        class_names=(name, f"{name}1", f"{name}2"),
        facts=made.facts(device_kind=name, checkpoint_step=7),
        survey=made.survey(
            formats={name: 3}, failures=((name, name),), duplicates=((name, f"{name}b"),)
        ),
        predictions=made.predictions(
            confidence=np.full(90, 0.6),
            predicted=np.repeat([0, 2], [80, 10]),
            labels=np.zeros(90, int),
        ),
        near=made.near(num_flagged=1, bound=0.75, same=((name, (0, 1)),)),
        prompts=made.prompts(num_cut=1, cut=((name, 99),)),
        cards=(made.card(name=name, label=0, teacher=Guess(predicted=0, confidence=1.0)),),
    )


def test_names_of_files_and_classes_cannot_add_to_the_page():
    html = render(hostile_report())
    tree = parse(html)
    check_printable(html)
    assert {element.tag for element in tree.iter()} == {
        element.tag for element in parse(render(sound_with_everything())).iter()
    }
    shown = text_of(html)
    assert shown.count("<script>alert(1)</script>&amp;<img src=x>\\x1b[31m\\x00\\n\\u202e") > 10


def sound_with_everything():
    """As `hostile_report`, with harmless names."""
    return made.report(
        survey=made.survey(failures=(("a", "b"),), duplicates=(("a", "b"),)),
        near=made.near(num_flagged=1, same=(("tee", (0, 1)),)),
        prompts=made.prompts(num_cut=1, cut=(("a", 99),)),
        cards=(made.card(label=0, teacher=Guess(predicted=0, confidence=1.0)),),
    )


def test_the_page_fetches_and_runs_nothing():
    html = render(hostile_report())
    check_fetches_nothing(html)


def test_every_picture_and_chart_is_told_in_words():
    tree = parse(render(made.report()))
    assert len(tree.findall(".//img")) == 4
    for picture in tree.findall(".//img"):
        assert "some/image.png" in picture.get("alt")
    charts = tree.findall(".//*[@role='img']")
    assert len(charts) == 2
    assert all(chart.get("aria-label") for chart in charts)


def test_columns_that_pass_the_threshold_are_stressed():
    tree = parse(render(made.report()))
    bins = tree.find(".//*[@class='bins']").findall("span")
    heights = [
        float(column.get("style").removeprefix("height:").removesuffix("%")) for column in bins
    ]
    counts, _ = np.histogram([0.3, 0.9, 0.7, 0.6], bins=20, range=(0, 1))
    assert heights == (100.0 * counts).tolist()
    assert [column.get("class") for column in bins] == ["off"] * 10 + ["on"] * 10


def test_the_decoder_is_called_untrained_until_there_is_a_checkpoint():
    assert "noise" in text_of(render(made.report()))
    trained = made.report(
        facts=made.facts(checkpoint_step=40),
        cards=(made.card(teacher=Guess(predicted=2, confidence=0.8)),),
    )
    shown = text_of(render(trained))
    assert "noise" not in shown
    assert "the checkpoint at step 40" in shown
    assert "teacher: star, 80%" in shown


def test_labels_only_show_where_they_exist():
    assert "by the labels" not in text_of(render(made.report()))
    labelled = made.report(predictions=made.predictions(labels=np.array([0, 1, 1, 1])))
    assert "75.0 % zero-shot, by the labels" in text_of(render(labelled)).replace("%z", "% z")
    row = "0.5 75.0 % 66.7 % configured, suggested"
    cells = parse(render(labelled)).findall(".//tr[@class='mark']")
    assert row in [" ".join("".join(c.itertext()) for c in line) for line in cells]


def test_many_classes_and_failures_are_cut_short():
    names = tuple(f"class {k}" for k in range(3000))
    report = made.report(
        class_names=names,
        facts=made.facts(num_classes=3000),
        predictions=made.predictions(
            num_classes=3000, confidence=np.full(9, 0.5), predicted=np.arange(9)
        ),
        survey=made.survey(failures=tuple((f"{i}.png", "cut") for i in range(5000))),
    )
    html = render(report)
    assert "and 2941 more" in html
    assert len(html) < 100_000


def test_numbers_are_json():
    numbers = json.loads(json.dumps(made.report().numbers()))
    assert numbers["zero_shot"]["suggested_threshold"] == 0.5
    assert numbers["zero_shot"]["passing"] == 0.75
    assert numbers["images"]["short_side"] == [16, 20, 40]
    assert numbers["run"]["num_steps"] == 600


@hypothesis.given(st.text(st.characters(codec=None), min_size=1, max_size=30))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_no_name_adds_a_tag_or_an_attribute(name):
    """The oracle is the page whose names are harmless: the same tags with the same attributes."""

    def shape(html):
        return [(element.tag, sorted(element.attrib)) for element in parse(html).iter()]

    def page(name):
        return render(
            made.report(
                workdir=name,
                source=name,
                class_names=(name, f"a{name}", f"{name}b"),
                survey=made.survey(formats={name: 3}, failures=((name, name),)),
                near=made.near(same=((name, (0, 1)),)),
                prompts=made.prompts(num_cut=1, cut=((name, 99),)),
                cards=(made.card(name=f"x{name}", label=0),),
            )
        )

    html = page(name)
    assert shape(html) == shape(page("harmless"))
    assert not set("\x1b\x07\u202e\u2066\u200f\u2028") & set(html)


@hypothesis.given(st.text(st.characters(codec=None), max_size=60))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_whatever_is_logged_is_one_printable_line(text):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        say(text)
    line = output.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    line.encode()
