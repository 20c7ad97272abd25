import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.errors import OptionError
from adaptx.evaluation.report import Report

LABELS = ("afya", "michezo", "siasa")


def report(pairs, labels=LABELS):
    targets, predicted = np.array(pairs).T
    return Report(labels, targets, predicted)


def test_the_scores_of_a_report_counted_by_hand():
    found = report([(0, 0), (0, 0), (0, 1), (1, 1), (1, 0), (2, 1)])
    assert found.rows == 6
    assert found.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert found.scores["accuracy"] == 3 / 6
    assert found.scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)
    assert found.scores["weighted_f1"] == pytest.approx((3 * 2 / 3 + 2 * 2 / 5 + 0) / 6)
    assert found.by_label["michezo"] == {
        "precision": pytest.approx(1 / 3),
        "recall": 1 / 2,
        "f1": pytest.approx(2 / 5),
        "rows": 2,
    }
    assert found.by_label["siasa"] == {"precision": 0, "recall": 0, "f1": 0, "rows": 1}
    assert found.commonest == 3 / 6


def test_a_label_that_no_row_has_keeps_its_place():
    found = report([(0, 0), (2, 2)])
    assert found.by_label["michezo"]["rows"] == 0
    assert found.confusion.shape == (3, 3)
    assert found.scores["macro_f1"] == 1  # it stands in neither


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_the_interval_is_wilsons(pairs):
    found = report(pairs)
    low, high = found.interval
    p, n, z = found.scores["accuracy"], found.rows, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert low == pytest.approx(middle - half, abs=1e-9)
    assert high == pytest.approx(middle + half, abs=1e-9)
    assert low < high


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40))
def test_a_pooled_report_counts_every_row_once(pairs):
    half = len(pairs) // 2
    parts = report(pairs[:half]), report(pairs[half:])
    pooled = parts[0].with_others(parts[1:])
    assert pooled.to_json() == report(pairs).to_json()
    assert (pooled.confusion == sum(part.confusion for part in parts)).all()


def test_a_report_is_json():
    found = report([(0, 0), (1, 2), (2, 2)]).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["labels"].keys() == set(LABELS)


@pytest.mark.parametrize(("targets", "predicted"), [([], []), ([0, 1], [0]), ([[0]], [[0]])])
def test_a_report_needs_an_answer_for_each_row(targets, predicted):
    with pytest.raises(OptionError, match="one answer for each row"):
        Report(LABELS, np.array(targets, dtype=int), np.array(predicted, dtype=int))
