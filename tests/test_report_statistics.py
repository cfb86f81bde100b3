"""What a report counts: closed forms on few images, and scipy or plain loops on many."""

import collections
import json
import math

import numpy as np
import pytest

from must_jax.pages.charts import Line, line_chart, nice_ticks
from must_jax.reporting import history
from must_jax.reporting.statistics import (
    accuracy_changes,
    differing_pairs,
    least_sure,
    ranked_shares,
    share_changes,
    surest,
)


def test_pairs_are_counted_and_sorted():
    first = np.array([0, 0, 1, 1, 2, 2, 2, -1])
    second = np.array([0, 1, 0, 0, 1, 1, 1, 1])
    assert differing_pairs(first, second, num_classes=3) == [(2, 1, 3), (1, 0, 2), (0, 1, 1)]
    assert differing_pairs(first[:1], second[:1], num_classes=3) == []


def test_pairs_of_many_classes_are_those_of_a_plain_count():
    rng = np.random.default_rng(0)
    first, second = rng.integers(-1, 1000, (2, 5000)), rng.integers(0, 5, (2, 5000))
    for one, other in zip(first, second, strict=True):
        expected = collections.Counter(
            (int(a), int(b)) for a, b in zip(one, other, strict=True) if a >= 0 and a != b
        )
        found = differing_pairs(one, other, num_classes=1000)
        assert {(pair.first, pair.second): pair.images for pair in found} == expected
        assert [pair.images for pair in found] == sorted(expected.values(), reverse=True)


def test_changes_of_classes_go_from_the_largest_gain_to_the_largest_loss():
    before, after = np.array([0, 0, 0, 1, 2]), np.array([0, 1, 1, 1, 2])
    found = share_changes(before, after, num_classes=4)
    assert [tuple(change) for change in found] == [
        (1, None, 1, 3),
        (2, None, 1, 1),
        (3, None, 0, 0),
        (0, None, 3, 1),
    ]
    labels = np.array([0, 0, 1, 1, -1])
    found = accuracy_changes(before, after, labels=labels, num_classes=4)
    # Class 0: both right, then one; class 1: the second of its two, both times after the first too.
    assert [tuple(change) for change in found] == [(1, 2, 1, 2), (0, 2, 2, 1)]
    assert [change.gain for change in found] == [0.5, -0.5]


def test_the_surest_images_are_of_different_classes_first():
    confidence = np.array([0.9, 0.99, 0.8, 0.95, 0.5])
    classes = np.array([0, 0, 1, 0, 2])
    assert surest(confidence, classes, count=4).tolist() == [1, 2, 4, 3]
    assert surest(confidence, classes, count=9).tolist() == [1, 2, 4, 3, 0]
    assert least_sure(confidence, count=2).tolist() == [4, 2]


def test_ranks_in_columns_keep_the_sum():
    counts = np.random.default_rng(0).permutation(1000)
    columns = ranked_shares(counts, columns=50)
    assert columns.tolist() == [1000 - 20 * place - 10.5 for place in range(50)]
    assert ranked_shares(np.array([1, 3, 2]), columns=50).tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 100, [0, 50, 100]),
        (0.13, 0.87, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 4, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_single_value_enclose_it():
    for value in (0.0, 1.0, -7.5, 1e-12, 1e9):
        ticks = nice_ticks(value, value)
        assert ticks[0] < value < ticks[-1] or value == 0.0
        assert len(ticks) >= 2


def points_of(svg, line):
    polyline = svg.split(f'class="line s{line}" points="')[1].split('"')[0]
    return [tuple(map(float, point.split(","))) for point in polyline.split()]


def test_a_line_rises_where_its_values_do_and_leaves_out_what_is_no_number():
    values = [(0, 0.0), (1, math.nan), (2, 0.5), (3, math.inf), (4, 1.0)]
    svg = line_chart("t", [Line(name="a", points=values)], x_name="epoch", as_percent=True)
    (x0, y0), (x1, y1), (x2, y2) = points_of(svg, 0)
    # The middle one is half-way in both; coordinates have one decimal.
    assert (x1, y1) == (
        pytest.approx((x0 + x2) / 2, abs=0.11),
        pytest.approx((y0 + y2) / 2, abs=0.11),
    )
    assert y0 > y1 > y2
    assert line_chart("t", [Line(name="a", points=[(0, math.nan)])], x_name="epoch") == ""


def test_a_constant_line_and_a_single_point_can_be_drawn():
    for points in ([(1, 1.0), (2, 1.0)], [(3, 0.2)], [(0, 5.0)]):
        svg = line_chart("t", [Line(name="a", points=points)], x_name="epoch", as_percent=True)
        assert "nan" not in svg
        assert len(points_of(svg, 0)) == len(points)


def test_history_is_read_over_epochs_and_past_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 2, "a": 1.0}, {"step": 4, "b": 3}, {"step": 4, "a": 2.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "a"\n7\n')
    found = history.read_history(path, steps_per_epoch=4)
    assert found == {"a": [(0.5, 1.0), (1.0, 2.0)], "b": [(1.0, 3.0)]}
    assert history.read_history(tmp_path / "missing", steps_per_epoch=4) == {}
    steps = [-1, 1.5, 2**31, 1.7e308, -1.7e308, True, None, "4", 10**400]
    path.write_text("".join(json.dumps({"step": step, "a": 1.0}) + "\n" for step in steps))
    assert history.read_history(path, steps_per_epoch=1) == {}
    path.write_bytes(b'\xff\xfe\n{"step": 4, "a": 1.0}\n')
    assert history.read_history(path, steps_per_epoch=4) == {"a": [(1.0, 1.0)]}
    path.write_text('{"step": 4, "a": null, "b": 1.0}')
    ((_, gap),) = history.read_history(path, steps_per_epoch=4).pop("a")
    assert math.isnan(gap)
    assert history.read_history(path, steps_per_epoch=4)["b"] == [(1.0, 1.0)]


def test_long_lines_are_averaged_and_keep_their_end():
    points = [(float(i), 2.0 * i) for i in range(1001)]
    points[5] = (5.0, math.nan)
    found = history.thinned(points, most=101)
    assert len(found) == 101
    assert found[-1] == (1000.0, 2000.0)
    # Ten points each, the first without the sixth.
    assert found[0] == pytest.approx((40 / 9, 80 / 9))
    assert found[1] == pytest.approx((14.5, 29.0))
